"""The call sequence of TensorRT proper, through the common API alone, against a stand-in with exactly those names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from fourphase.engine import build as building
from fourphase.engine import builder
from fourphase.engine.build import check_build
from fourphase.engine.builder import OUT_OF_MEMORY, WORKSPACE_TOO_SMALL, build_plan
from fourphase.engine.options import BuildOptions, EngineSource
from fourphase.runtime.cuda import Device, Probe
from fourphase.runtime.errors import EngineBuildFailed, UsageError
from fourphase.runtime.flavour import Flavour
from tests.support.fake_builder import FakeTensorRT, Recorder

L4 = Probe(Device("NVIDIA L4", "8.9", "13.0", "580.1"), "CUDA device NVIDIA L4, compute capability 8.9")
SOURCE = EngineSource(b"onnx", "fp16")
TRUNK = EngineSource(b"onnx", "fp16", "trunk", 8)


class FakeAudit:
    def to_dict(self) -> dict[str, Any]:
        return {"layers": 1}


@pytest.fixture(autouse=True)
def audits(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the audit was asked; its own calls of TensorRT are held to the common API in test_audit."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(builder, "audit_engine", lambda trt, engine, blocks: FakeAudit())
    monkeypatch.setattr(
        builder, "require_precision", lambda audit, wanted, exempt: asked.append({"wanted": wanted, "exempt": exempt})
    )
    return asked


def tensorrt(fake: FakeTensorRT, version: str = "10.3.0.26") -> Flavour:
    return Flavour("tensorrt", fake, version, L4)


def calls_of(fake: FakeTensorRT) -> dict[str, Any]:
    return {repr(call[0]).strip("'"): call[1:] for call in fake.calls}


def options_calls(options: BuildOptions, source: EngineSource = SOURCE, cores: int = 0) -> dict[str, Any]:
    """The values that were set, as text: members of enums have no equality here."""
    fake = FakeTensorRT(cores=cores)
    build_plan(tensorrt(fake), source, options)
    return {name: repr(value) for name, value in calls_of(fake).items()}


@pytest.mark.parametrize("batch", [(0, 1, 1), (2, 1, 2), (1, 3, 2)])
def test_a_profile_out_of_order_is_a_usage_error(batch: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="min <= opt <= max"):
        BuildOptions(batch=batch)


def test_tensorrt_proper_is_driven_through_the_common_api_alone() -> None:
    fake = FakeTensorRT()
    built = build_plan(tensorrt(fake), SOURCE, BuildOptions((1, 1, 2), 1 << 30))
    calls = calls_of(fake)
    assert calls["Builder.create_network"] == (1 << 1,)
    assert repr(calls["IBuilderConfig.clear_flag"]) == "(BuilderFlag.TF32,)"
    assert repr(calls["IBuilderConfig.set_memory_pool_limit"]) == f"(MemoryPoolType.WORKSPACE, {1 << 30})"
    assert repr(calls["IBuilderConfig.profiling_verbosity"]) == "(ProfilingVerbosity.DETAILED,)"
    one, two = [1, 4, 64, 3, 128, 128], [2, 4, 64, 3, 128, 128]
    assert calls["IOptimizationProfile.set_shape"] == ("study", one, one, two)
    assert calls["OnnxParser.parse"] == (b"onnx",)
    assert "IBuilderConfig.set_flag" not in calls
    assert built.plan == b"plan"
    assert built.warnings == ("slow tactic",)
    assert calls["Runtime.deserialize_cuda_engine"] == (b"plan",)
    assert built.audit == {"layers": 1}


def test_options_reach_the_builder() -> None:
    assert options_calls(BuildOptions(optimization_level=5))["IBuilderConfig.builder_optimization_level"] == "(5,)"
    set_flag = options_calls(BuildOptions(version_compatible=True))["IBuilderConfig.set_flag"]
    assert set_flag == "(BuilderFlag.VERSION_COMPATIBLE,)"
    level = options_calls(BuildOptions(hardware_compatibility="ampere-plus"))
    assert level["IBuilderConfig.hardware_compatibility_level"] == "(HardwareCompatibilityLevel.AMPERE_PLUS,)"
    assert "IBuilderConfig.builder_optimization_level" not in options_calls(BuildOptions())


def test_the_price_of_a_choice_is_stated() -> None:
    chosen = BuildOptions(hardware_compatibility="ampere-plus", version_compatible=True)
    ampere, version = chosen.prices()
    assert "8.0 and newer" in ampere
    assert "host code" in version
    assert BuildOptions().prices() == ()
    assert BuildOptions.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen


def test_a_level_that_this_version_lacks_is_refused_and_one_that_it_has_is_used() -> None:
    options = BuildOptions(hardware_compatibility="same-compute-capability")
    with pytest.raises(UsageError, match=r"needs TensorRT 10\.9, this is 10\.3"):
        build_plan(tensorrt(FakeTensorRT()), SOURCE, options)

    class Newer(FakeTensorRT):
        class HardwareCompatibilityLevel:
            __members__ = MappingProxyType({"NONE": "none", "SAME_COMPUTE_CAPABILITY": "same"})

    fake = Newer()
    build_plan(tensorrt(fake, "10.9.0.34"), SOURCE, options)
    assert calls_of(fake)["IBuilderConfig.hardware_compatibility_level"] == ("same",)


def test_the_accelerator_takes_the_trunk_alone() -> None:
    options = BuildOptions(batch=(1, 1, 1), dla_core=0)
    calls = options_calls(options, TRUNK, cores=2)
    assert calls["IBuilderConfig.default_device_type"] == "(DeviceType.DLA,)"
    assert calls["IBuilderConfig.DLA_core"] == "(0,)"
    assert calls["IBuilderConfig.set_flag"] == "(BuilderFlag.GPU_FALLBACK,)"
    assert calls["ITensor.shape"] == "([1, 4, 64, 3, 128, 128],)", "a dynamic shape cannot run there"
    for source, reason in ((SOURCE, "GRU"), (replace(TRUNK, precision="fp32"), "FP16 and INT8 only")):
        with pytest.raises(UsageError, match=reason) as caught:
            build_plan(tensorrt(FakeTensorRT()), source, options)
        assert caught.value.key == "dla_impossible"
    with pytest.raises(UsageError, match="finds 0 deep learning accelerators here, so there is no core 0"):
        build_plan(tensorrt(FakeTensorRT()), TRUNK, options)


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("[x.cpp] Error Code 2: OutOfMemory (Requested size was 99 bytes.)", OUT_OF_MEMORY),
        ("Error Code 2: OutOfMemory (Requested size was 4294967297 bytes.)", WORKSPACE_TOO_SMALL),
        ("autotuning: User allocator error allocating 5000000000-byte buffer: out of memory", OUT_OF_MEMORY),
        ("no tactics to implement the operation within workspace limit", WORKSPACE_TOO_SMALL),
        ("Error Code 10: Could not find any implementation for node {x}", "engine_build_failed"),
    ],
)
def test_a_builder_that_returns_nothing_is_an_error_with_its_words(said: str, key: str) -> None:
    with pytest.raises(EngineBuildFailed) as caught:
        build_plan(tensorrt(FakeTensorRT(None, error=said)), SOURCE, BuildOptions())
    assert said in caught.value.message
    assert caught.value.key == key


def test_the_timing_cache_is_a_miss_then_a_hit_then_extended(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"

    def use(*tactics: str) -> tuple[str, list[str]]:
        fake = FakeTensorRT(tactics=tactics)
        built = build_plan(tensorrt(fake), SOURCE, BuildOptions(), path)
        return built.timing_cache.state, fake.measured

    assert use("a", "b") == ("miss", ["a", "b"])
    assert use("a", "b") == ("hit", [])
    assert use("a", "c") == ("extended", ["c"])
    assert path.read_bytes() == b"cache\na\nb\nc"
    for damage in (b"damaged", b"unreadable"):
        path.write_bytes(damage)
        assert use("a") == ("rejected", ["a"])
    assert use("a") == ("hit", [])
    assert build_plan(tensorrt(FakeTensorRT()), SOURCE, BuildOptions(), None).timing_cache.state == "off"


def test_what_another_build_measured_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"

    fake = FakeTensorRT(tactics=("mine",))
    original = fake.Builder

    def meanwhile(logger: Any) -> Any:
        made = original(logger)
        path.write_bytes(b"cache\ntheirs")
        return made

    path.write_bytes(b"cache\nold")
    fake.Builder = meanwhile  # type: ignore[method-assign]
    build_plan(tensorrt(fake), SOURCE, BuildOptions(), path)
    assert path.read_bytes() == b"cache\nmine\ntheirs"


def test_a_cache_that_cannot_be_kept_is_reported(tmp_path: Path) -> None:
    missing = tmp_path / "file"
    missing.write_text("not a folder")
    built = build_plan(tensorrt(FakeTensorRT()), SOURCE, BuildOptions(), missing / "timing.cache")
    assert built.timing_cache.state == "not kept"


def test_tensorrt_proper_builds_for_the_gpu_at_hand_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "load_flavour", lambda name: tensorrt(FakeTensorRT()))
    options = replace(BuildOptions(), compute_capabilities=("8.6",))
    with pytest.raises(UsageError, match="GPU at hand"):
        check_build("tensorrt", options)
    check_build("tensorrt")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"hardware_compatibility": "all"}, "hardware_compatibility_unknown"),
        ({"optimization_level": 6}, "optimization_level_invalid"),
        ({"workspace_bytes": 4096}, "workspace_invalid"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UsageError) as caught:
        BuildOptions(**options)
    assert caught.value.key == key


AUDITED = EngineSource(b"onnx", "int8", blocks={"n": "stem"}, precisions={"stem": "int8", "gru": "fp32"}, exempt=("n",))


def test_a_part_is_audited_for_the_blocks_it_holds(audits: list[dict[str, Any]]) -> None:
    build_plan(tensorrt(FakeTensorRT()), AUDITED, BuildOptions())
    assert audits == [{"wanted": {"stem": "int8"}, "exempt": ("n",)}]


def refusing(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    def refuse(audit: object, wanted: object, exempt: object) -> None:
        raise EngineBuildFailed("it is not told", "look", key=key)

    monkeypatch.setattr(builder, "require_precision", refuse)


@pytest.mark.parametrize("key", ["precision_not_held", "audit_incomplete"])
def test_an_engine_that_fails_its_audit_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    refusing(monkeypatch, key)
    with pytest.raises(EngineBuildFailed, match="it is not told"):
        build_plan(tensorrt(FakeTensorRT()), AUDITED, BuildOptions())


def test_an_engine_that_cannot_be_loaded_where_it_was_built_is_refused() -> None:
    class Refusing(FakeTensorRT):
        def Runtime(self, logger: Any) -> Any:
            logger.log(self.ILogger.ERROR, "magic tag does not match")
            return Recorder("Runtime", self.calls, deserialize_cuda_engine=lambda plan: None)

    with pytest.raises(EngineBuildFailed, match="magic tag") as caught:
        build_plan(tensorrt(Refusing()), SOURCE, BuildOptions())
    assert caught.value.key == "plan_not_loadable"


def test_options_that_a_flavour_lacks_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    rtx = SimpleNamespace(ComputeCapability=SimpleNamespace(__members__={"SM89": 89}))
    monkeypatch.setattr(building, "load_flavour", lambda name: Flavour("tensorrt-rtx", rtx, "1.7.1.116", L4))
    for options, key in (
        (BuildOptions(version_compatible=True), "version_compatible_impossible"),
        (BuildOptions(hardware_compatibility="ampere-plus"), "hardware_compatibility_unknown"),
        (BuildOptions(dla_core=0), "dla_impossible"),
        (BuildOptions(compute_capabilities=("9.0",)), "compute_capability_unknown"),
    ):
        with pytest.raises(UsageError) as caught:
            check_build("tensorrt-rtx", options)
        assert caught.value.key == key
    check_build("tensorrt-rtx", BuildOptions(compute_capabilities=("8.9",)))
