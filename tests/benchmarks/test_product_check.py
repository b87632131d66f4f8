"""The product on stand-ins of TensorRT and CUDA that compute: what the check must see, and what it must not miss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourphase.benchmarks.gpu import product_endurance, product_engines
from fourphase.benchmarks.gpu.kit import BATCH, BUNDLE, SMALL
from fourphase.benchmarks.gpu.product_check import check_product
from fourphase.benchmarks.gpu.product_endurance import check_leaks, check_rebuilds
from fourphase.benchmarks.guarded_steps import Outcome
from fourphase.engine.build import EnginePlan
from fourphase.engine.bundle import GoldenFile, GoldenOutputs, OnnxModel, SplitOnnx
from fourphase.engine.options import BuildOptions, EngineSource
from fourphase.runtime.cuda_context import open_gpu
from fourphase.runtime.errors import EngineBuildFailed
from fourphase.runtime.golden import Tolerance, study_from_codes
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_tensorrt import FakeTensorRT, features_of, outputs_of, tail_plan, trunk_plan, whole_plan
from tests.support.tiny_bundle import PREPROCESSING, SHAPE, write_tiny

PLANS = {
    b"whole": whole_plan(SHAPE, max_batch=BATCH),
    b"trunk": trunk_plan(SHAPE, 1),
    b"tail": tail_plan(SHAPE, max_batch=BATCH),
}
FORMS = ["whole, CUDA graph", "whole, plain", "split, CUDA graph", "split, plain"]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    yield FakeCuda().install(monkeypatch)
    open_gpu.cache_clear()


@pytest.fixture
def trt(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    monkeypatch.setattr("fourphase.benchmarks.gpu.tensorrt_check.FLAVOURS", {"tensorrt": "json"})
    monkeypatch.setattr(product_engines, "is_available", lambda: True)  # the stand-in of pycuda is no real module
    return FakeTensorRT(cuda, dict(PLANS)).install(monkeypatch)


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """Two bundles whose model is known in closed form; its "ONNX" is the plan's name."""
    codes = np.random.default_rng(1).integers(0, 256, (2, *SHAPE), dtype=np.uint8)
    wanted = outputs_of(features_of(study_from_codes(codes, PREPROCESSING)))
    logits, phase_logits = (wanted[name].astype(np.float32) for name in ("logits", "phase_logits"))
    golden = GoldenOutputs(logits, phase_logits, Tolerance(1e-4, 1e-4, 1e-4))
    model = OnnxModel(b"whole", {}, split=SplitOnnx(1, b"trunk", b"tail"))
    for name in (BUNDLE, SMALL):
        write_tiny(tmp_path / name, models={"fp32": model}, golden=GoldenFile(codes, {"fp32": golden}))
    return tmp_path


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Builds hand the ONNX on as the plan; the list is of what was built for."""
    made: list[tuple[str, ...]] = []

    def built(source: EngineSource, target: str, options: BuildOptions) -> tuple[EnginePlan, None]:
        made.append(options.compute_capabilities)
        assert options.batch == ((1, 1, 1) if source.part == "trunk" else (1, 1, BATCH))
        if options.compute_capabilities == ("7.5",):
            raise EngineBuildFailed("not for this GPU", "take another")
        return EnginePlan(source.onnx, {"part": source.part, "flavour": target, "audit": "not audited"}), None

    monkeypatch.setattr(product_engines, "built_anyway", built)
    return made


def product(kit: Path, *, device: str = "cuda", capabilities: tuple[str | None, ...] = (None,)) -> Outcome:
    return check_product(
        lambda _: None, kit=str(kit), precision="fp32", target="tensorrt", device=device, quick=True,
        capabilities=list(capabilities),
    )  # fmt: skip


@pytest.mark.usefixtures("builds")
def test_every_form_is_checked_timed_and_compared(kit: Path, trt: FakeTensorRT) -> None:
    outcome = product(kit)
    assert (outcome.status, outcome.reason) == ("ok", "")
    result = outcome.result
    assert list(result["forms"]) == FORMS
    for name, form in result["forms"].items():
        assert form["self_check"] == "passed"
        assert form["batches"] == [1, BATCH]
        assert form["max_abs_difference"] < 1e-4
        assert form["streams"]["studies"] == 4
        assert form["streams"]["same_bytes"] is True
        assert form["notes"] == ([] if "graph" in name else ["CUDA graph not used: not asked for"])
    assert result["same"] == {"whole, graph and plain": True, "split, graph and plain": True}
    assert result["whole_to_split"] < 1e-4
    assert [(row["variant"], row["batch"]) for row in result["rows"]] == [(f, n) for n in (1, BATCH) for f in FORMS]
    assert trt.contexts_live == 0  # everything was closed


@pytest.mark.usefixtures("builds")
def test_a_form_that_is_wrong_is_named(kit: Path, trt: FakeTensorRT) -> None:
    trt.plans[b"tail"] = PLANS[b"tail"].changed(
        compute=lambda given: {name: 1.01 * value for name, value in outputs_of(given["features"]).items()}
    )
    outcome = product(kit)
    assert (outcome.status, outcome.reason) == ("failed", "wrong or not loaded: split, CUDA graph; split, plain")
    assert outcome.result["forms"]["split, plain"]["error"]["key"] == "self_check_failed"
    assert outcome.result["forms"]["whole, plain"]["self_check"] == "passed"
    assert outcome.result["whole_to_split"] > 1e-3


def test_what_does_not_load_is_built_for_the_next_capability(
    kit: Path, trt: FakeTensorRT, builds: list[tuple[str, ...]]
) -> None:
    outcome = product(kit, capabilities=("7.5", "8.0"))
    assert outcome.status == "ok"
    assert [(one["form"], one["capability"]) for one in outcome.result["refused"]] == [
        ("whole", "7.5"),
        ("split", "7.5"),
    ]
    assert outcome.result["forms"]["whole, plain"]["capability"] == "8.0"
    assert builds == [("7.5",), ("8.0",), ("7.5",), ("8.0",), ("8.0",)]
    nothing = product(kit, capabilities=("7.5",))
    assert (nothing.status, nothing.reason) == ("failed", "no engine could be loaded")


def test_a_rehearsal_builds_and_runs_nothing(
    kit: Path, trt: FakeTensorRT, builds: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fourphase.benchmarks.gpu.product_check.why_not", lambda *_: "")
    outcome = product(kit, device="cpu")
    assert outcome.status == "skipped"
    assert outcome.reason.startswith("built, not run")
    assert len(builds) == 3
    assert trt.contexts_made == 0


def leaks(kit: Path) -> Outcome:
    return check_leaks(lambda _: None, kit=str(kit), target="tensorrt", device="cuda", quick=True, capabilities=[None])


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], None]:
    """What the device says is free, call by call."""
    return lambda answers: monkeypatch.setattr(product_endurance, "_free_bytes", iter(answers).__next__)


@pytest.mark.usefixtures("builds", "trt")
def test_runs_by_the_thousand_are_counted(kit: Path, free: Callable[[list[int]], None]) -> None:
    free([10 << 20, 10 << 20] * 4)
    outcome = leaks(kit)
    assert (outcome.status, outcome.reason) == ("ok", "")
    for form in FORMS:
        found = outcome.result[form]
        assert (found["runs"], found["outputs_same"], found["gpu_bytes_lost"]) == (20, True, 0)


@pytest.mark.usefixtures("builds")
def test_a_leak_and_a_wavering_answer_are_named(
    kit: Path, trt: FakeTensorRT, free: Callable[[list[int]], None]
) -> None:
    free([10 << 20, 8 << 20, *[10 << 20] * 6])
    runs = iter(range(10**6))
    split = PLANS[b"tail"].compute
    trt.plans[b"tail"] = PLANS[b"tail"].changed(
        compute=lambda given: {name: value + (next(runs) == 100) for name, value in split(given).items()}
    )
    outcome = leaks(kit)
    assert outcome.status == "failed"
    assert outcome.result["whole, CUDA graph"]["gpu_bytes_lost"] == 2 << 20
    wavering = [form for form in FORMS if not outcome.result[form]["outputs_same"]]
    assert len(wavering) == 1
    assert outcome.reason == f"leaks or wavers: whole, CUDA graph; {wavering[0]}"


def test_three_rebuilds_are_handed_to_the_check_on_the_device(
    kit: Path, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta: dict[str, Any] = {"part": "whole"}
    monkeypatch.setattr(product_endurance, "built_anyway", lambda source, *_: (EnginePlan(source.onnx, meta), None))
    asked: list[Any] = []

    def check(contents: Any, precision: str, rebuilds: int, build: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
        asked.extend((contents, precision, rebuilds, build()))
        return {"state": "passed", "rebuilds": [1, 2, 3], "logits_spread": 1e-6}, ()

    monkeypatch.setattr(product_endurance, "check_on_device", check)

    def rebuilds(device: str) -> Outcome:
        return check_rebuilds(
            lambda _: None, kit=str(kit), precision="fp32", target="tensorrt", device=device, quick=False
        )

    assert rebuilds("cuda").result["on_device"]["logits_spread"] == 1e-6
    contents, precision, count, again = asked
    assert (precision, count, [plan.plan for plan in again]) == ("fp32", 3, [b"whole"])
    assert [plan.plan for plan in contents.engines] == [b"whole"]
    monkeypatch.setattr(product_endurance, "check_on_device", lambda *_: ({"state": "not run", "reason": "why"}, ()))
    assert (rebuilds("cuda").status, rebuilds("cuda").reason) == ("failed", "why")
    assert rebuilds("cpu").status == "skipped"
