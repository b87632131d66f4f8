"""Any network through the road of ours: the baselines, in every precision, against PyTorch, in every runtime here."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from fourphase.benchmarks.networks import BASELINES, TINY
from fourphase.calibration.blocks import block_names, node_blocks
from fourphase.calibration.gates import Acceptance
from fourphase.engine.build import build_engine
from fourphase.engine.bundle import model_of
from fourphase.engine.options import BuildOptions
from fourphase.engine.plans import sources_of
from fourphase.export.build import build_bundle
from fourphase.export.build_request import BuildRequest
from fourphase.export.search_bundle import SearchRequest, held_blocks, search_bundle
from fourphase.export.verify import verify_bundle
from fourphase.runtime import flavour
from fourphase.runtime.backends import choose_backend
from fourphase.runtime.bundle import Bundle, load_bundle
from fourphase.runtime.cache import CACHE_VARIABLE
from fourphase.runtime.cuda import Probe
from fourphase.runtime.selfcheck import self_check
from tests.support.any_network import FACTORY, tiny_baseline, write_weights
from tests.support.networks import random_study
from tests.support.study_sets import write_random_set

#: Untrained networks decide by chance: only the numbers are judged.
LOOSE = "[fp16]\nmax_flips = 99\nmax_auc_drop = 1.0\n[int8]\nmax_flips = 99\nmax_auc_drop = 1.0\nmin_sqnr_db = 10\n"
#: How far a lowered model's logits may be from PyTorch's FP32, relative to their spread over studies and classes.
FAR = {"fp32": 1e-4, "fp16": 3e-2, "int8": 0.3}
#: TDN's graph is five times as large as the others.
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name == "tdn" else name for name in BASELINES]


@functools.cache
def place() -> Path:
    """What a user has made before the build; the folder goes with the session."""
    folder = Path(_HOME.name)
    write_random_set(folder / "calibration", 2, seed=1)
    (folder / "accept.toml").write_text(LOOSE)
    return folder


_HOME = tempfile.TemporaryDirectory(prefix="fourphase-any-network-")


@functools.cache
def built(name: str) -> Bundle:
    """The INT8 bundle of a tiny baseline, with FP32 and FP16 on the way: once per session."""
    folder = place()
    weights = write_weights(folder / f"{name}.safetensors", tiny_baseline(name))
    config = folder / f"{name}.toml"
    config.write_text(f'[network]\nname = "{name}"\n[preprocessing]\nsize = [8, 32, 32]\n')
    request = BuildRequest(
        precision="int8", target="none", calibration=folder / "calibration", accept=folder / "accept.toml",
        config=config, model=FACTORY,
    )  # fmt: skip
    return build_bundle(weights, folder / f"{name}.bundle", request).bundle


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(Path(_HOME.name) / "cache"))


def graph_of(bundle: Bundle, precision: str) -> onnx.ModelProto:
    return onnx.load_model_from_string(bundle.read(bundle.models[precision].file))


def torch_logits(name: str, study: Any) -> Any:
    with torch.no_grad():
        return tiny_baseline(name)(torch.from_numpy(study)).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_every_precision_computes_what_pytorch_does_at_any_batch(name: str) -> None:
    bundle = built(name)
    assert list(bundle.models) == ["fp32", "fp16", "int8"]
    assert bundle.outputs == ("logits",)
    study = random_study(3, seed=7)
    wanted = torch_logits(name, study)
    assert np.ptp(wanted, axis=0).max() > 1e-3, "a network that says the same of every study proves nothing"
    for precision in bundle.models:
        backend = choose_backend(bundle, "onnxruntime", precision=precision).backend
        for batch in (1, 2, 3):
            found = backend.infer(study[:batch])
            assert found.phase_logits is None
            assert np.abs(found.logits - wanted[:batch]).max() <= FAR[precision] * np.ptp(wanted), (precision, batch)


@pytest.mark.parametrize("name", NAMES)
def test_parity_names_the_blocks_of_the_module_tree(name: str) -> None:
    bundle = built(name)
    rows = json.loads(bundle.read("report.json"))["parity"]["rows"]
    assert {row["batch"] for row in rows if row["block"] == "logits"} == {1, 2, 3}
    blocks = {row["block"] for row in rows} - {"logits"}
    assert blocks == set(block_names(graph_of(bundle, "fp32")))
    modules = dict(tiny_baseline(name).named_modules())
    assert len(blocks) >= 9
    assert blocks <= set(modules)
    assert all(row["passed"] for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_int8_is_where_it_pays_and_fp32_is_where_rounding_hurts(name: str) -> None:
    bundle = built(name)
    lowered, policy = graph_of(bundle, "int8"), bundle.models["int8"].blocks
    blocks, makers = node_blocks(lowered), {value: node for node in lowered.graph.node for value in node.output}
    quantized, types = set(), {}
    inferred = onnx.shape_inference.infer_shapes(lowered).graph
    for value in (*inferred.value_info, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type
    for node in lowered.graph.node:
        weight = makers.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type in ("Conv", "Gemm", "MatMul") and weight is not None and weight.op_type == "DequantizeLinear":
            quantized.add(blocks[node.name])
        if node.op_type in ("GRU", "Softmax", "LayerNormalization"):
            assert types[node.output[0]] == onnx.TensorProto.FLOAT, node.name
    assert quantized == {block for block, precision in policy.items() if precision == "int8"}
    assert quantized
    assert not any(block.endswith(("/input", "/logits", "/norm", "/recurrence", "/softmax")) for block in quantized)
    assert {policy[block] for block in policy if block.endswith("/logits")} == {"fp32"}
    assert {policy[block] for block in policy if block.endswith("/input")} == {"fp16"}
    assert any(kind == onnx.TensorProto.FLOAT16 for kind in types.values())


@pytest.mark.parametrize("name", NAMES)
def test_openvino_runs_every_precision(name: str) -> None:
    pytest.importorskip("openvino", reason="needs the extra [openvino]")
    bundle = built(name)
    for precision in bundle.models:
        self_check(choose_backend(bundle, "openvino", precision=precision).backend, bundle, all_inputs=True)


@pytest.mark.rtx
@pytest.mark.parametrize("name", NAMES)
def test_nvidias_parser_and_builder_take_every_precision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavour, "probe", lambda: Probe(None, "no CUDA device (no NVIDIA driver)"))
    bundle, options = built(name), BuildOptions(batch=(1, 2, 4), compute_capabilities=("8.9",))
    for precision in bundle.models:
        (source,) = sources_of(precision, model_of(bundle, precision))
        built_plan = build_engine(source, "tensorrt-rtx", options)
        assert len(built_plan.plan) > 10_000
        slices, rows, columns = TINY.size
        assert built_plan.meta["profile"]["study"]["max"] == [4, 4, slices, 3, rows, columns]


def test_a_bundle_is_verified_against_weights_and_factory() -> None:
    """And against other weights it is not."""
    from fourphase.runtime.errors import ParityFailed

    name, folder = "stic", place()
    bundle, config = built(name), folder / f"{name}.toml"
    report = verify_bundle(bundle.path, folder / f"{name}.safetensors", config, factory=FACTORY)
    assert report["steps"]["parity"] == "configuration equal, every block passed"
    assert "typing int8" in report["steps"]
    network = tiny_baseline(name)
    with torch.no_grad():
        network.get_parameter("features.10.weight").mul_(2)
    other = write_weights(folder / "other.safetensors", network)
    with pytest.raises(ParityFailed, match=r"block features\.10 "):
        verify_bundle(bundle.path, other, config, factory=FACTORY)


def test_the_manifest_says_who_made_the_network() -> None:
    bundle = load_bundle(built("stic").path)
    assert dict(bundle.network) == {"factory": FACTORY, "arguments": {"name": "stic"}}
    with np.load(bundle.path / "golden.npz") as golden:
        assert set(golden.files) == {"inputs_u8", "logits", "logits.fp16", "logits.int8"}
        study = bundle.golden().study(0)
        np.testing.assert_allclose(golden["logits"][:1], torch_logits("stic", study), rtol=1e-4, atol=1e-6)


def test_an_unrolled_gru_is_no_other_network() -> None:
    """In FP16 as well: what was a Transpose and a Cast before the first product crashed ONNX Runtime."""
    folder = place()
    built("stic")
    request = BuildRequest(
        precision="fp16", target="none", config=folder / "stic.toml", model=FACTORY, gru="unrolled",
        accept=folder / "accept.toml",
    )  # fmt: skip
    bundle = build_bundle(folder / "stic.safetensors", folder / "unrolled.bundle", request).bundle
    kinds = [node.op_type for node in graph_of(bundle, "fp32").graph.node]
    assert (kinds.count("GRU"), kinds.count("Tanh")) == (0, 4)
    study = random_study(2, seed=3)
    wanted = torch_logits("stic", study)
    found = choose_backend(bundle, "onnxruntime", precision="fp16").backend.infer(study).logits
    assert np.abs(found - wanted).max() <= FAR["fp16"] * np.ptp(wanted)


def test_a_gru_that_is_not_there_is_not_said_to_be_unrolled(tmp_path: Path) -> None:
    name = "resnet3d-18-s222"
    weights, config = write_weights(tmp_path / "w.safetensors", tiny_baseline(name)), tmp_path / "net.toml"
    config.write_text(f'[network]\nname = "{name}"\n[preprocessing]\nsize = [8, 32, 32]\n')
    request = BuildRequest(precision="fp32", target="none", config=config, model=FACTORY, gru="unrolled")
    report = build_bundle(weights, tmp_path / "b", request).report
    assert report["gru"] == {"form": "none", "reason": "the network has no GRU"}
    unrolled = json.loads((place() / "unrolled.bundle" / "report.json").read_bytes())
    assert unrolled["gru"] == {"form": "unrolled", "reason": "asked for"}


def test_a_search_holds_what_rounding_hurts_by_name() -> None:
    blocks = ("stem/input", "layers.0", "layers.0/norm", "layers.0/softmax", "gru/recurrence", "head/logits")
    kept = ("gru/recurrence", "head/logits", "layers.0/norm", "layers.0/softmax")
    assert held_blocks(blocks, {"layers.0"}) == tuple(sorted((*kept, "layers.0")))
    # Of ours, only what does not fit into FP16: its search decides over gates, GRU and heads.
    assert held_blocks(("stem/NC", "gate1.channel/NC", "gru", "head"), {"stem/NC"}) == ("stem/NC",)


def test_a_search_lowers_no_part_that_stays_fp32(tmp_path: Path) -> None:
    limits = Acceptance(min_sqnr_db=0.0, max_flips=99, max_auc_drop=1.0)
    request = SearchRequest(place() / "calibration", limits=limits, target="none")
    outcome = search_bundle(built("stic").path, tmp_path / "b", request)
    assert outcome.result.held == ("gru/recurrence", "head/logits")
    precisions = outcome.bundle.models[outcome.report["precision"]].blocks
    assert {precisions[block] for block in outcome.result.held} == {"fp32"}
    assert "int8" in precisions.values()
    tried = {(row.group, row.precision) for row in outcome.result.sensitivities}
    assert not {("gru", "int8"), ("head", "int8")} & tried, "what pays there is held"
