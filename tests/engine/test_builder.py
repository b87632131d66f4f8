"""NVIDIA's parser and builder on small graphs (TensorRT for RTX, no GPU), and the call sequence of TensorRT proper."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fourphase.engine import builder
from fourphase.engine.builder import BuildOptions, EnginePlan, build_engine, check_build, plan_key
from fourphase.runtime import flavour
from fourphase.runtime.cuda import Device, Probe
from fourphase.runtime.errors import EngineBuildFailed, UsageError
from fourphase.runtime.flavour import Flavour
from tests.support.trt_graphs import conv_trunk, gate, gru, refused

COMMON = frozenset(json.loads((Path(__file__).parent / "data" / "trt_api_common.json").read_text()))
L4 = Probe(Device("NVIDIA L4", "8.9", "13.0", "580.1"), "CUDA device NVIDIA L4, compute capability 8.9")
NO_GPU = Probe(None, "no CUDA device (no NVIDIA driver)")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavour, "probe", lambda: NO_GPU)


def build(onnx: bytes, **options: Any) -> EnginePlan:
    return build_engine(onnx, "tensorrt-rtx", precision="fp32", options=BuildOptions(**options))


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
    assert built.meta["flags"] == {"strongly_typed": True, "tf32": False, "workspace_bytes": 4 << 30}
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
        build_engine(gru(), "tensorrt-rtx", precision="fp16"),
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
    with pytest.raises(EngineBuildFailed) as caught:
        build_engine(
            refused("node_17"), "tensorrt-rtx", precision="fp32", blocks={"node_17": "stage2.gate", "before": "stem"}
        )
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


@pytest.mark.parametrize("batch", [(0, 1, 1), (2, 1, 2), (1, 3, 2)])
def test_a_profile_out_of_order_is_a_usage_error(batch: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="min <= opt <= max"):
        BuildOptions(batch=batch)


class Member:
    """An enum member of the fake TensorRT: usable as an int and as a key."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __int__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return self.name


class Recorder:
    """An object of class `owner` that has exactly the attributes of the common API and writes down every call."""

    def __init__(self, owner: str, calls: list[tuple[Any, ...]], **answers: Any) -> None:
        vars(self).update(_owner=owner, _calls=calls, _answers=answers)

    def __getattr__(self, name: str) -> Any:
        full = f"{self._owner}.{name}"
        if full not in COMMON:
            raise AttributeError(f"{full} is not in every supported TensorRT")
        answer = self._answers.get(name)
        if name in self._answers and not callable(answer):
            return answer

        def call(*arguments: Any) -> Any:
            self._calls.append((full, *arguments))
            return answer(*arguments) if callable(answer) else None

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        assert f"{self._owner}.{name}" in COMMON
        self._calls.append((f"{self._owner}.{name}", value))


class FakeTensorRT:
    """TensorRT as far as the builder needs it, with no name beyond the common API."""

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO = (Member(name) for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO"))

    def __init__(self, plan: bytes | None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.plan = plan

    def __getattr__(self, name: str) -> Any:
        if name not in COMMON:
            raise AttributeError(f"{name} is not in every supported TensorRT")
        return FakeEnum(name)

    def Builder(self, logger: Any) -> Recorder:
        def finish(network: Any, config: Any) -> bytes | None:
            logger.log(self.ILogger.WARNING, "slow\n tactic")
            logger.log(self.ILogger.INFO, "chatter")
            if self.plan is None:
                logger.log(self.ILogger.ERROR, "out of  memory")
            return self.plan

        tensor = Recorder("ITensor", self.calls, name="study", shape=(-1, 4, 64, 3, 128, 128))
        network = Recorder("INetworkDefinition", self.calls, num_outputs=2, num_inputs=1, get_input=lambda i: tensor)
        return Recorder(
            "Builder",
            self.calls,
            create_network=lambda flags: network,
            create_builder_config=lambda: Recorder("IBuilderConfig", self.calls),
            create_optimization_profile=lambda: Recorder("IOptimizationProfile", self.calls),
            build_serialized_network=finish,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Recorder:
        return Recorder("OnnxParser", self.calls, parse=lambda data: True, num_errors=0)


class FakeEnum:
    def __init__(self, owner: str) -> None:
        self._owner = owner

    def __getattr__(self, name: str) -> Member:
        assert f"{self._owner}.{name}" in COMMON
        return Member(f"{self._owner}.{name}")


def fake_tensorrt(monkeypatch: pytest.MonkeyPatch, plan: bytes | None = b"plan") -> FakeTensorRT:
    fake = FakeTensorRT(plan)
    monkeypatch.setattr(builder, "load_flavour", lambda name: Flavour(name, fake, "10.3.0.26", L4))
    return fake


def test_tensorrt_proper_is_driven_through_the_common_api_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt(monkeypatch)
    built = build_engine(b"onnx", "tensorrt", precision="fp32", options=BuildOptions((1, 1, 2), 1 << 30))
    calls = {repr(call[0]): call[1:] for call in fake.calls}
    assert calls["'Builder.create_network'"] == (1 << 1,)
    assert repr(calls["'IBuilderConfig.clear_flag'"]) == "(BuilderFlag.TF32,)"
    assert repr(calls["'IBuilderConfig.set_memory_pool_limit'"]) == f"(MemoryPoolType.WORKSPACE, {1 << 30})"
    assert repr(calls["'IBuilderConfig.profiling_verbosity'"]) == "(ProfilingVerbosity.DETAILED,)"
    one, two = [1, 4, 64, 3, 128, 128], [2, 4, 64, 3, 128, 128]
    assert calls["'IOptimizationProfile.set_shape'"] == ("study", one, one, two)
    assert calls["'OnnxParser.parse'"] == (b"onnx",)
    assert built.plan == b"plan"
    assert built.meta["gpu"] == {"name": "NVIDIA L4", "compute_capability": "8.9"}
    assert (built.meta["cuda"], built.meta["driver"], built.meta["version"]) == ("13.0", "580.1", "10.3.0.26")
    assert built.meta["warnings"] == ["slow tactic"]


def test_a_builder_that_returns_nothing_is_an_error_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt(monkeypatch, plan=None)
    with pytest.raises(EngineBuildFailed, match="out of memory"):
        build_engine(b"onnx", "tensorrt", precision="fp32")


def test_tensorrt_proper_builds_for_the_gpu_at_hand_only(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt(monkeypatch)
    options = replace(BuildOptions(), compute_capabilities=("8.6",))
    with pytest.raises(UsageError, match="GPU at hand"):
        check_build("tensorrt", options)
    check_build("tensorrt")


@pytest.mark.gpu
@pytest.mark.rtx
def test_an_engine_is_built_for_the_gpu_at_hand() -> None:
    built = build(conv_trunk())
    assert built.meta["compute_capabilities"] == [built.meta["gpu"]["compute_capability"]]
