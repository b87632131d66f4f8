from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from fourphase.calibration.blocks import block_names, node_blocks
from fourphase.export.guards import check_graph
from fourphase.export.interface import Interface
from fourphase.export.network import FourPhaseNet
from fourphase.export.onnx_export import onnx_from_module, onnx_from_network
from fourphase.export.parity import measure_parity
from fourphase.runtime.errors import EnvironmentFault, ExportRefused
from tests.support.networks import SMALL, random_study, small_network


def test_names_and_shapes_are_the_contracts(model: onnx.ModelProto) -> None:
    def shape(value: onnx.ValueInfoProto) -> list[str | int]:
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    assert {value.name: shape(value) for value in model.graph.input} == {"study": ["batch", 4, 8, 3, 32, 32]}
    assert {value.name: shape(value) for value in model.graph.output} == {
        "logits": ["batch", 2],
        "phase_logits": ["batch", 4, 2],
    }
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_the_batch_is_dynamic(exported: bytes, network: FourPhaseNet, batch: int) -> None:
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    study = random_study(batch, seed=batch)
    logits, phase_logits = session.run(["logits", "phase_logits"], {"study": study})
    expected = network(torch.from_numpy(study))
    np.testing.assert_allclose(logits, expected[0].detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(phase_logits, expected[1].detach().numpy(), rtol=1e-4, atol=1e-5)


def test_every_node_knows_its_block(model: onnx.ModelProto) -> None:
    blocks = node_blocks(model)
    assert len(blocks) == len(model.graph.node)
    by_op = {node.op_type: blocks[node.name] for node in model.graph.node}
    assert by_op["GRU"] == "gru"
    convolutions = {blocks[node.name] for node in model.graph.node if node.op_type == "Conv"}
    stages = {f"stage{number}/{phase}" for number in range(1, 5) for phase in ("NC", "ART", "PV", "DL")}
    assert convolutions >= stages | {"conv1d", "stem/NC", "gate1.spatial/DL"}


def test_every_blocks_output_keeps_its_name(model: onnx.ModelProto) -> None:
    produced = {name for node in model.graph.node for name in node.output}
    names = block_names(model)
    assert set(names) <= produced
    assert {"stem/NC", "gate4.channel/DL", "gate1.spatial/ART", "mix2/PV", "conv1d", "gru", "head"} <= set(names)
    # 4 stems, 4 x 4 stages, 2 x 16 gates, 16 mixed maps, 4 phase heads, conv1d, gru, head.
    assert len(names) == 4 + 16 + 32 + 16 + 4 + 3


def test_nothing_of_the_exporting_machine_is_in_the_file(exported: bytes) -> None:
    for trace in (b"site-packages", b".py", b"stack_trace", b"/home", b"Traceback"):
        assert trace not in exported


CONFIGS: dict[str, dict[str, Any]] = {
    "shared_bidirectional_two_layers": {"share_backbone": True, "bidirectional": True, "gru_layers": 2},
    "no_spm_three_phases": {"spm": False, "phases": ("NC", "ART", "PV"), "ipm_norm": "mean"},
    "no_exchange_stem_stride_1": {"ipm_stages": (), "stem_stride": 1},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_other_configurations_export_clean_and_equal(name: str) -> None:
    network = small_network(**CONFIGS[name])
    exported = onnx_from_network(network, SMALL)
    assert check_graph(exported, network.config, SMALL) == []
    report = measure_parity(network, exported, random_study(3, phases=network.config.count))
    assert report.first_failure is None, report.worst


def test_an_exporter_known_to_be_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourphase.export.onnx_export.version", lambda name: "0.7.0")
    with pytest.raises(EnvironmentFault, match="linear_before_reset"):
        onnx_from_network(small_network(), SMALL)


class Branching(torch.nn.Module):
    """Asks a value which way to go: torch.export cannot."""

    def forward(self, study: torch.Tensor) -> torch.Tensor:
        print("chatter")
        pooled = study.mean(dim=(2, 3, 4, 5))[:, :2]
        return pooled if float(pooled.sum()) > 0 else -pooled


def test_a_failed_export_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportRefused, match="PyTorch could not export the network: ") as caught:
        onnx_from_module(Branching(), Interface(outputs=("logits",)), SMALL)
    cause = caught.value.__cause__
    assert cause is not None
    assert cause.__cause__ is not None, "the exporter no longer wraps what stopped it"
    assert str(cause.__cause__).strip().splitlines()[0] in caught.value.message
    assert "Failed to export the model" not in caught.value.message
    shown = capsys.readouterr()
    assert "chatter" in shown.err
    assert shown.out == ""
