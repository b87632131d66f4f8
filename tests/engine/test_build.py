"""NVIDIA's parser and builder on small graphs, in a child process (TensorRT for RTX, no GPU)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fourphase.engine.build import EnginePlan, build_engine, check_build
from fourphase.engine.options import BuildOptions, EngineSource
from fourphase.runtime import flavour
from fourphase.runtime.cuda import Probe
from fourphase.runtime.errors import EngineBuildFailed, UsageError
from fourphase.runtime.plan_meta import check_meta, plan_key
from tests.support.trt_graphs import conv_trunk, gate, gru, refused

NO_GPU = Probe(None, "no CUDA device (no NVIDIA driver)")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavour, "probe", lambda: NO_GPU)


def build(onnx: bytes, **options: Any) -> EnginePlan:
    return build_engine(EngineSource(onnx, "fp32"), "tensorrt-rtx", BuildOptions(**options))


@pytest.mark.rtx
@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("graph", [gru, gate, conv_trunk])
def test_the_networks_parts_build_with_a_dynamic_batch(graph: Any) -> None:
    built = build(graph(), batch=(1, 2, 4), compute_capabilities=("8.9",))
    assert len(built.plan) > 10_000
    shapes = built.meta["profile"]["x"]
    assert [shapes[corner][0] for corner in ("min", "opt", "max")] == [1, 2, 4]
    assert shapes["min"][1:] == shapes["max"][1:]
    assert built.meta["compute_capabilities"] == ["8.9"]
    flags = built.meta["flags"]
    assert (flags["strongly_typed"], flags["tf32"], flags["workspace_bytes"]) == (True, False, 4 << 30)
    assert built.meta["attempts"] == [{"workspace_bytes": 4 << 30, "outcome": "built"}]
    assert built.meta["audit"] == "not audited: there is no GPU here to load the engine on"
    assert built.meta["timing_cache"]["state"] == "none"
    assert check_meta(dict(built.meta))
    assert built.meta["gpu"] is built.meta["cuda"] is built.meta["driver"] is None


@pytest.mark.rtx
@pytest.mark.usefixtures("no_gpu")
def test_the_key_depends_on_what_decides_whether_a_plan_fits() -> None:
    first, again = build(gru()), build(gru())
    assert first.key == again.key
    assert len(first.key) == 16
    assert json.loads(json.dumps(dict(first.meta))) == dict(first.meta)
    others = [
        build(gru(hidden=4)),
        build(gru(), batch=(1, 1, 4)),
        build(gru(), workspace_bytes=1 << 30),
        build(gru(), compute_capabilities=("8.6",)),
        build_engine(EngineSource(gru(), "fp16"), "tensorrt-rtx"),
    ]
    assert len({first.key, *(other.key for other in others)}) == 6
    assert plan_key({**first.meta, "build_seconds": 99.0, "warnings": ["x"], "plan_sha256": ""}) == first.key
    for name in ("version", "cuda", "driver", "gpu", "os", "arch", "flavour"):
        assert plan_key({**first.meta, name: "other"}) != first.key


@pytest.mark.rtx
@pytest.mark.usefixtures("no_gpu")
def test_the_default_compute_capability_is_stated_and_reported() -> None:
    built = build(gru())
    assert built.meta["compute_capabilities"] == ["8.9"]
    assert any("8.9, the default: no CUDA device" in warning for warning in built.meta["warnings"])
    assert not any("default" in warning for warning in build(gru(), compute_capabilities=("8.9",)).meta["warnings"])


@pytest.mark.rtx
@pytest.mark.usefixtures("no_gpu")
def test_one_engine_for_several_gpus() -> None:
    both = build(conv_trunk(), compute_capabilities=("8.6", "12.0", "8.6"))
    assert both.meta["compute_capabilities"] == ["8.6", "12.0"]
    assert both.key == build(conv_trunk(), compute_capabilities=("12.0", "8.6")).key
    assert both.plan != build(conv_trunk(), compute_capabilities=("8.6",)).plan


@pytest.mark.rtx
@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("capability", ["9.0", "89", "SM89", "current", ""])
def test_an_unknown_compute_capability_lists_the_known_ones(capability: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_build("tensorrt-rtx", BuildOptions(compute_capabilities=(capability,)))
    with pytest.raises(UsageError):
        build(gru(), compute_capabilities=(capability,))
    assert caught.value.hint == "choose from 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"


@pytest.mark.rtx
@pytest.mark.usefixtures("no_gpu")
def test_a_refused_operator_is_named_with_node_and_block() -> None:
    blocks = {"node_17": "stage2.gate", "before": "stem"}
    with pytest.raises(EngineBuildFailed) as caught:
        build_engine(EngineSource(refused("node_17"), "fp32", blocks=blocks), "tensorrt-rtx")
    error = caught.value
    assert (error.code, error.key) == (26, "parser_refused")
    assert "node node_17 (Nonsense) of block stage2.gate" in error.message
    assert "\n" not in error.message
    assert error.table[0]["node"] == "node_17"
    assert "INVALID_NODE" in error.table[0]["reason"]


@pytest.mark.rtx
@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("onnx", "reason"), [(b"not an onnx", "Failed to parse"), (b"", "no outputs")])
def test_bytes_that_are_no_model_are_refused(onnx: bytes, reason: str) -> None:
    with pytest.raises(EngineBuildFailed, match=reason):
        build(onnx)


@pytest.mark.rtx
@pytest.mark.usefixtures("no_gpu")
def test_the_builders_own_words_reach_the_user() -> None:
    """Turing has no FP32 matrix multiply in TensorRT for RTX."""
    with pytest.raises(EngineBuildFailed, match=r"compute capability 7\.5.*Turing") as caught:
        build(gru(), compute_capabilities=("7.5",))
    assert caught.value.table
    # The next build does not inherit the words.
    assert not any("Turing" in warning for warning in build(gru()).meta["warnings"])


@pytest.mark.rtx
@pytest.mark.usefixtures("no_gpu")
def test_a_dynamic_axis_besides_the_batch_is_refused() -> None:
    import onnx

    model = onnx.load_from_string(gru())
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "T"
    with pytest.raises(EngineBuildFailed, match="dynamic axis besides the batch"):
        build(model.SerializeToString())


@pytest.mark.gpu
@pytest.mark.rtx
def test_an_engine_is_built_for_the_gpu_at_hand() -> None:
    built = build(conv_trunk())
    assert built.meta["compute_capabilities"] == [built.meta["gpu"]["compute_capability"]]
