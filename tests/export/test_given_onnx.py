"""Bring your own ONNX: what is taken, what is refused, and that the report says what was not measured."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from fourphase.calibration.blocks import block_names, node_blocks
from fourphase.export.build import build_bundle, verified_onnx
from fourphase.export.build_request import BuildRequest
from fourphase.export.given_onnx import GIVEN, block_of_node, given_baseline, load_given_onnx, model_of_given
from fourphase.export.verify import verify_bundle, verify_onnx
from fourphase.runtime.backends import choose_backend
from fourphase.runtime.errors import ModelIncompatible, ParityFailed, UsageError
from tests.support.any_network import FACTORY, tiny_baseline, write_weights
from tests.support.networks import random_study

CONFIG = "[preprocessing]\nsize = [8, 32, 32]\n"
NAME = "stic"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tiny baseline by PyTorch's older exporter, as many people have one: opset 18, paths in the nodes' names."""
    path = tmp_path_factory.mktemp("given") / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            tiny_baseline(NAME), (torch.zeros(2, 4, 8, 3, 32, 32),), str(path), dynamo=False, opset_version=18,
            input_names=["study"], output_names=["logits"],
            dynamic_axes={"study": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    return path.read_bytes()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "net.toml").write_text(CONFIG)
    return tmp_path / "net.toml"


@pytest.fixture
def given(exported: bytes, tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(exported)
    return tmp_path / "model.onnx"


def test_it_becomes_a_bundle_that_computes_the_same(given: Path, config: Path, tmp_path: Path) -> None:
    """Against PyTorch here, where PyTorch is at hand; the build had the file alone."""
    result = build_bundle(given, tmp_path / "b", BuildRequest(precision="fp16", target="none", config=config))
    bundle, report = result.bundle, result.report
    assert bundle.network["onnx"]["opset"] == 18
    assert bundle.network["onnx"]["sha256"] == report["checkpoint"]["sha256"]
    study = random_study(3, seed=9)
    with torch.no_grad():
        wanted = tiny_baseline(NAME)(torch.from_numpy(study)).numpy()
    for precision, far in (("fp32", 1e-4), ("fp16", 3e-2)):
        found = choose_backend(bundle, "onnxruntime", precision=precision).backend.infer(study)
        assert found.phase_logits is None
        assert np.abs(found.logits - wanted).max() <= far * np.ptp(wanted)
    assert report["parity"]["baseline"] == GIVEN
    assert "parity with PyTorch was not measured" in report["checkpoint"]["notes"][0]
    assert bundle.parity["given_onnx_to_onnx_fp32"]["worst_relative"] < 1e-5
    assert "torch_fp32_to_onnx_fp32" not in bundle.parity
    assert bundle.parity["ladder"]["baseline"] == GIVEN
    assert b"parity with PyTorch was not measured" in bundle.read("report.html")
    assert len(report["ladder"][1]["blocks"]) > 10
    assert verify_bundle(bundle.path, given, config)["steps"]["parity"].startswith("configuration equal")
    other = onnx.load(given)
    weight = next(tensor for tensor in other.graph.initializer if tensor.name == "head.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), "head.weight"))
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ParityFailed, match="network section"):
        verify_bundle(bundle.path, tmp_path / "other.onnx", config)


def test_the_graph_has_the_contracts_opset_named_nodes_and_blocks(given: Path, config: Path) -> None:
    verified = verified_onnx(load_given_onnx(given, config), "unrolled")
    model = verified.model
    assert [entry.version for entry in model.opset_import if not entry.domain] == [20]
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert set(node_blocks(model)) == {node.name for node in model.graph.node}
    assert {"features.0/input", "features.28", "gru/recurrence", "head/logits"} <= set(node_blocks(model).values())
    made = {value for node in model.graph.node for value in node.output}
    assert set(block_names(model)) <= made
    assert "GRU" not in {node.op_type for node in model.graph.node}
    assert {row.block for row in verified.parity.rows} == {"logits"}


def test_the_commands_say_loudly_what_was_not_measured(given: Path, config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fourphase.export.cli", "onnx", str(given), "-o", str(tmp_path / "clean.onnx")]
    outcome = subprocess.run([*command, "--config", str(config), "--json"], capture_output=True, text=True, check=True)
    assert "parity with PyTorch was not measured" in outcome.stderr
    assert json.loads(outcome.stdout)["parity"]["baseline"] == GIVEN
    onnx.checker.check_model(onnx.load(tmp_path / "clean.onnx"), full_check=True)


def _rename_input(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["image" if name == "study" else name for name in node.input]
    model.graph.input[0].name = "image"


def _bake_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _double(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


def _old(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 17


def _loop(model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="If", name="branch", input=["study"], output=["x"])
    for name in ("then_branch", "else_branch"):
        graph = onnx.helper.make_graph([], name, [], [])
        node.attribute.append(onnx.helper.make_attribute(name, graph))


def _foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


def _half(model: onnx.ModelProto) -> None:
    model.graph.node.add(op_type="Cast", name="half", input=["study"], output=["x"]).attribute.append(
        onnx.helper.make_attribute("to", onnx.TensorProto.FLOAT16)
    )


def _quantized(model: onnx.ModelProto) -> None:
    model.graph.node.add(op_type="QuantizeLinear", name="int8", input=["study", "s"], output=["x"])


@pytest.mark.parametrize(
    ("doctor", "cause"),
    [
        (_rename_input, "image instead of study"),
        (_bake_batch, r"\[1, 4, 8, 3, 32, 32\] instead of \[batch, 4, 8, 3, 32, 32\]"),
        (_double, "not float32"),
        (_old, "opset is 17"),
        (_foreign_operator, r"com\.example"),
        (_loop, "If cannot be optimised"),
        (_half, "Cast: the graph is lowered already"),
        (_quantized, "QuantizeLinear: the graph is lowered already"),
    ],
)
def test_what_is_not_the_contracts_is_refused(
    doctor: Callable[[onnx.ModelProto], None], cause: str, exported: bytes, config: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # The checker has an opinion of its own on doctored graphs; what is asked here is ours.
    monkeypatch.setattr("onnx.checker.check_model", lambda *arguments, **keys: None)
    model = onnx.load_model_from_string(exported)
    doctor(model)
    path = tmp_path / "doctored.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelIncompatible, match=cause) as caught:
        load_given_onnx(path, config)
    assert caught.value.code == 20


@pytest.mark.parametrize(
    ("text", "kind", "cause"),
    [
        ("", ModelIncompatible, r"instead of \[batch, 4, 64, 3, 128, 128\]"),
        (CONFIG + '[model]\nclasses = ["A", "B", "C"]\n', ModelIncompatible, r"instead of \[batch, 3\]"),
        (CONFIG + '[model]\nphases = ["NC", "PV"]\n', ModelIncompatible, r"instead of \[batch, 2, 8, 3, 32, 32\]"),
        (CONFIG + "[network]\nwidth = 4\n", UsageError, r"\[network\] speaks of a PyTorch network"),
    ],
)
def test_a_configuration_that_does_not_fit(text: str, kind: Any, cause: str, given: Path, config: Path) -> None:
    config.write_text(text)
    with pytest.raises(kind, match=cause):
        load_given_onnx(given, config)


def test_a_file_that_is_no_onnx(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x00not a model")
    with pytest.raises(ModelIncompatible, match="not a valid ONNX"):
        load_given_onnx(path)


@pytest.mark.parametrize(
    ("name", "scopes", "block"),
    [
        ("/layer1/layer1.0/conv1/Conv", None, "layer1.0"),
        ("/features/features.4/features.4.0/new/new.0/Relu", None, "features.4.0"),
        ("/head/Gemm", None, "head"),
        ("Conv_12", None, "network"),
        ("/Gather", None, "network"),
        ("node_conv2d", ["", "layer1", "layer1.0", "layer1.0.conv1", "conv2d"], "layer1.0"),
        ("node_gru", ["", "gru", "gru"], "gru"),
        ("node_add", ["", "add"], "network"),
        ("node_sym", ["_empty_nn_module_stack_from_metadata_hook", "sym_size"], "network"),
    ],
)
def test_blocks_from_what_exporters_leave(name: str, scopes: list[str] | None, block: str) -> None:
    metadata = {} if scopes is None else {"pkg.torch.onnx.name_scopes": repr(scopes)}
    assert block_of_node(ir.node("Relu", [], name=name, metadata_props=metadata)) == block


#: Says [batch, ...] outside, and is for two studies inside; or does not fit together at all.
BAKED = """
<ir_version: 9, opset_import: ["": 20]>
g (float[batch, 4, 8, 3, 32, 32] study) => (float[batch, 2] logits) <int64[2] flat = {ROWS, 98304}>
{ rows = Reshape(study, flat)  logits = MatMul(rows, w) }
"""


@pytest.mark.parametrize(
    ("rows", "width", "cause"), [(2, 98304, "run the model on 3 studies at once"), (-1, 98303, "load the model")]
)
def test_a_model_that_onnx_runtime_cannot_run(rows: int, width: int, cause: str, config: Path, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(BAKED.replace("ROWS", str(rows)))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((width, 2), np.float32), "w"))
    onnx.save(model, tmp_path / "baked.onnx")
    given = load_given_onnx(tmp_path / "baked.onnx", config)
    with pytest.raises(ModelIncompatible, match=f"ONNX Runtime cannot {cause}: ..") as caught:
        given_baseline(given).run(random_study(3))
    assert (caught.value.code, caught.value.key) == (20, "onnx_not_runnable")


def test_notes_of_an_exporter_that_cannot_be_read(exported: bytes, config: Path, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(exported)
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['layer1'")
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelIncompatible) as caught:
        model_of_given(load_given_onnx(tmp_path / "model.onnx", config))
    assert caught.value.key == "onnx_unsupported"


def test_nothing_of_the_exporting_machine_is_shipped(exported: bytes, config: Path, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(exported)
    for holder in (model, model.graph, model.graph.node[0], model.graph.input[0], model.graph.initializer[0]):
        holder.metadata_props.add(key="origin", value="/somewhere/of/mine.py")
    onnx.save(model, tmp_path / "model.onnx")
    shipped = model_of_given(load_given_onnx(tmp_path / "model.onnx", config)).SerializeToString()
    assert b"mine.py" not in shipped


def test_a_cleaned_graph_is_verified_against_the_weights_too(given: Path, config: Path, tmp_path: Path) -> None:
    """Its blocks are called as its own exporter called them, so only the outputs are compared."""
    onnx.save(verified_onnx(load_given_onnx(given, config)).model, tmp_path / "clean.onnx")
    weights, net = write_weights(tmp_path / "w.safetensors", tiny_baseline(NAME)), tmp_path / "model.toml"
    net.write_text(f'[network]\nname = "{NAME}"\n{CONFIG}')
    report = verify_onnx(tmp_path / "clean.onnx", weights, net, FACTORY)
    assert {(row["block"], row["passed"]) for row in report["parity"]["rows"]} == {("logits", True)}
