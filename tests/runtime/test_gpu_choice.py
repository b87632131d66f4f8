"""Exact plan, rebuild if allowed, CPU: which is taken, that it is said, and that nothing damaged is passed over."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fourphase.runtime import backends, gpu_choice, plan_choice, tensorrt_backend
from fourphase.runtime.backend import Outputs
from fourphase.runtime.backends import choose_backend
from fourphase.runtime.bundle import Bundle, SplitFiles
from fourphase.runtime.cuda import Device, Probe
from fourphase.runtime.errors import (
    EngineBuildFailed,
    EnvironmentFault,
    GPUUnavailable,
    IntegrityError,
    ModelIncompatible,
)
from fourphase.runtime.plan_choice import PlanPolicy, report_plans
from fourphase.runtime.plan_meta import Machine
from fourphase.runtime.plan_store import PlanStore
from fourphase.runtime.tensorrt_backend import EngineParts
from tests.support.plans import META
from tests.support.tiny_bundle import write_tiny

L4 = Probe(Device("NVIDIA L4", "8.9", "13.0", "580.1"), "CUDA device NVIDIA L4, compute capability 8.9")
MACHINE = Machine({"tensorrt": "10.13.3.9", "tensorrt-rtx": "1.7.1.116"}, L4, "linux", "x86_64")


@dataclass
class FakeEngine:
    """What `load_engine_backend` returns, computing nothing."""

    parts: EngineParts
    notes: tuple[str, ...] = ("CUDA graph not used: a stand-in",)

    @property
    def name(self) -> str:
        return self.parts.flavour

    @property
    def precision(self) -> str:
        return self.parts.precision

    @property
    def max_batch(self) -> int:
        return self.parts.max_batch

    def close(self) -> None:
        raise AssertionError("not loaded to be closed")

    def infer(self, study: NDArray[np.float32]) -> Outputs:
        raise AssertionError("not run here")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny(tmp_path / "bundle")


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "probe", lambda: L4)
    monkeypatch.setattr(gpu_choice, "this_machine", lambda: MACHINE)
    monkeypatch.setattr(tensorrt_backend, "is_available", lambda: True)
    monkeypatch.setattr(tensorrt_backend, "load_engine_backend", lambda parts, bundle: FakeEngine(parts))


def put(bundle: Bundle, plan: bytes = b"plan", file: str = "model.fp32.onnx", **changes: Any) -> str:
    meta = {**META, "onnx_sha256": bundle.files[file].sha256, "precision": "fp32", **changes}
    return PlanStore(bundle).put(plan, {**meta, "plan_sha256": hashlib.sha256(plan).hexdigest()}).key


def loaded(choice: backends.Choice) -> EngineParts:
    assert isinstance(choice.backend, FakeEngine)
    return choice.backend.parts


def test_a_plan_that_fits_is_taken_and_named(bundle: Bundle) -> None:
    key = put(bundle)
    choice = choose_backend(bundle)
    assert choice.backend.name == "tensorrt"
    assert loaded(choice).plans == {"whole": b"plan"}
    assert loaded(choice).max_batch == 2
    assert choice.plans == {"whole": key}
    assert choice.reason == f"engine {key} fits this machine; CUDA graph not used: a stand-in"
    assert choose_backend(bundle, "tensorrt").reason.startswith("asked for; engine")
    assert choose_backend(bundle, require="tensorrt").backend.name == "tensorrt"


def test_tensorrt_comes_before_rtx(bundle: Bundle) -> None:
    put(bundle, flavour="tensorrt-rtx", version="1.7.1.116")
    assert choose_backend(bundle).backend.name == "tensorrt-rtx"
    put(bundle)
    assert choose_backend(bundle).backend.name == "tensorrt"
    assert choose_backend(bundle, "tensorrt-rtx").backend.name == "tensorrt-rtx"


def test_without_a_plan_that_fits_the_cpu_is_used_and_all_of_it_is_said(bundle: Bundle) -> None:
    reason = choose_backend(bundle).reason
    assert reason == "a CUDA device is present (NVIDIA L4), but the bundle has no plan"
    put(bundle, driver="570.0")
    choice = choose_backend(bundle)
    assert choice.backend.name == "onnxruntime"
    assert choice.plans == {}
    assert "built with driver 570.0, this is 580.1" in choice.reason


def test_a_fallback_is_an_error_where_a_backend_is_required(bundle: Bundle) -> None:
    with pytest.raises(GPUUnavailable, match="tensorrt is required, but onnxruntime would be used") as caught:
        choose_backend(bundle, require="tensorrt")
    assert caught.value.code == 22
    put(bundle)
    with pytest.raises(GPUUnavailable, match="tensorrt-rtx is required, but onnxruntime would be used") as caught:
        choose_backend(bundle, require="tensorrt-rtx")
    assert "fits this machine" not in caught.value.message
    assert choose_backend(bundle, require="onnxruntime").backend.name == "onnxruntime"


def test_asking_for_an_engine_that_is_not_there_names_the_cure(bundle: Bundle) -> None:
    with pytest.raises(ModelIncompatible, match="has no engine") as caught:
        choose_backend(bundle, "tensorrt")
    assert (caught.value.code, caught.value.key) == (20, "plan_missing")
    assert "--rebuild" in caught.value.hint
    with pytest.raises(ModelIncompatible, match="no model in int8"):
        choose_backend(bundle, "tensorrt", precision="int8")


def test_a_plan_with_host_code_is_loaded_only_if_that_is_allowed(bundle: Bundle) -> None:
    key = put(bundle)
    assert not loaded(choose_backend(bundle)).host_code
    (bundle.path / f"engines/{key}.json").unlink()
    put(bundle, flags={**META["flags"], "version_compatible": True})
    assert "host code from plans is not allowed" in choose_backend(bundle).reason
    assert loaded(choose_backend(bundle, plans=PlanPolicy(host_code=True))).host_code


def test_without_pycuda_the_extra_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bundle)
    monkeypatch.setattr(tensorrt_backend, "is_available", lambda: False)
    assert "extra [gpu]" in choose_backend(bundle).reason
    with pytest.raises(EnvironmentFault, match="pycuda"):
        choose_backend(bundle, "tensorrt")


def test_a_changed_plan_stops_the_run(bundle: Bundle) -> None:
    key = put(bundle)
    (bundle.path / f"engines/{key}.plan").write_bytes(b"plao")
    with pytest.raises(IntegrityError, match="quarantine"):
        choose_backend(bundle)
    assert choose_backend(bundle).backend.name == "onnxruntime"


def test_a_plan_of_a_dearer_precision_is_named_as_such(bundle: Bundle) -> None:
    both = replace(bundle, models={**bundle.models, "fp16": replace(bundle.models["fp32"], file="golden.npz")})
    put(both)
    choice = choose_backend(both)
    assert choice.backend.precision == "fp32"
    assert "no plan of fp16 fits, so fp32 is used" in choice.reason
    put(both, file="golden.npz", precision="fp16")
    assert choose_backend(both).backend.precision == "fp16"
    assert choose_backend(both, precision="fp32").backend.precision == "fp32"


def test_both_halves_of_a_split_model_are_needed(bundle: Bundle) -> None:
    """Any files of the bundle stand for trunk and tail: only their hashes matter here."""
    split = SplitFiles(8, "golden.npz", "report.json")
    halves = replace(bundle, models={"fp32": replace(bundle.models["fp32"], split=split)})
    dla = {**META["flags"], "dla_core": 1}
    trunk = put(halves, b"trunk", "golden.npz", part="trunk", slices=8, batch=[1, 1, 1], flags=dla)
    assert choose_backend(halves).backend.name == "onnxruntime"
    tail = put(halves, b"tail", "report.json", part="tail", batch=[1, 1, 4])
    choice = choose_backend(halves)
    assert loaded(choice).plans == {"trunk": b"trunk", "tail": b"tail"}
    assert (loaded(choice).slices, loaded(choice).max_batch, loaded(choice).dla_core) == (8, 4, 1)
    assert choice.plans == {"trunk": trunk, "tail": tail}
    put(halves)
    assert loaded(choose_backend(halves)).slices == 8, "what was asked for at the build comes first"


def test_of_several_that_fit_the_newest_is_taken_and_that_is_said(bundle: Bundle) -> None:
    first, second = put(bundle, b"first"), put(bundle, b"second", batch=[1, 4, 8])
    for key, when in ((first, 200), (second, 100)):
        os.utime(bundle.path / "engines" / f"{key}.json", (when, when))
    choice = choose_backend(bundle)
    assert choice.plans == {"whole": first}
    assert "; of 2 that fit the newest" in choice.reason
    os.utime(bundle.path / "engines" / f"{second}.json", (300, 300))
    assert choose_backend(bundle).plans == {"whole": second}


def test_a_plan_that_is_not_the_part_it_says_is_not_loaded(bundle: Bundle) -> None:
    """The whole model's hash on what calls itself a tail."""
    put(bundle, part="tail")
    choice = choose_backend(bundle)
    assert choice.backend.name == "onnxruntime"
    assert "no plan of the precision and kind asked for fits" in choice.reason


def test_the_reason_speaks_of_the_plan_that_comes_nearest(bundle: Bundle) -> None:
    put(bundle, arch="aarch64", gpu={"name": "Orin", "compute_capability": "8.7"}, compute_capabilities=["8.7"])
    put(bundle, driver="570.0")
    put(bundle, os="windows", version="8.0")
    reason = choose_backend(bundle).reason
    assert "built with driver 570.0, this is 580.1, and 2 more" in reason


def test_every_plan_is_reported_with_its_reasons(bundle: Bundle) -> None:
    put(bundle)
    put(bundle, arch="aarch64", gpu={"name": "Orin", "compute_capability": "8.7"}, compute_capabilities=["8.7"])
    (bundle.path / "engines" / "0123456789abcdef.json").write_text("{")
    reports = report_plans(bundle, MACHINE)
    by_reason = sorted((len(report.reasons), report.fits) for report in reports)
    assert by_reason == [(0, True), (1, False), (2, False)]
    assert all(json.dumps(report.to_dict()) for report in reports)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Replaces the program that builds; returns a function of its body, which gives the file of its arguments."""

    def use(body: str) -> Path:
        log = tmp_path / "arguments.json"
        script = f"import json, sys; open({str(log)!r}, 'w').write(json.dumps(sys.argv[1:]));\n{body}"
        monkeypatch.setattr(plan_choice, "REBUILD_COMMAND", (sys.executable, "-c", script))
        return log

    return use


def test_a_rebuild_happens_only_if_it_is_allowed(bundle: Bundle, builder: Callable[[str], Path]) -> None:
    log = builder("pass")
    choose_backend(bundle)
    assert not log.exists()
    reason = choose_backend(bundle, plans=PlanPolicy(rebuild=True)).reason
    assert log.exists()
    assert "a plan was built, but the bundle has no plan" in reason


def test_what_was_rebuilt_is_loaded(bundle: Bundle, builder: Callable[[str], Path], tmp_path: Path) -> None:
    meta = {**META, "onnx_sha256": bundle.files["model.fp32.onnx"].sha256, "precision": "fp32"}
    meta["plan_sha256"] = hashlib.sha256(b"new").hexdigest()
    body = (
        "from pathlib import Path; from fourphase.runtime.bundle import load_bundle\n"
        "from fourphase.runtime.plan_store import PlanStore\n"
        "folder = Path(sys.argv[sys.argv.index('--plans') + 1])\n"
        f"PlanStore(load_bundle(Path(sys.argv[1])), folder).put(b'new', {meta!r})"
    )
    log = builder(body)
    policy = PlanPolicy(tmp_path / "plans", rebuild=True)
    choice = choose_backend(bundle, plans=policy)
    assert loaded(choice).plans == {"whole": b"new"}
    assert "the bundle has no plan; built for this machine now" in choice.reason
    arguments = json.loads(log.read_text())
    assert arguments[1:5] == ["--target", "tensorrt", "--precision", "fp32"]
    log.unlink()
    choose_backend(bundle, plans=policy)
    assert not log.exists(), "it is there now"


def test_a_rebuild_that_fails_is_told(bundle: Bundle, builder: Callable[[str], Path]) -> None:
    error = {"code": 26, "key": "build_out_of_memory", "message": "memory ran out", "hint": "add swap"}
    builder(f"print(json.dumps({{'error': {error!r}}})); sys.exit(26)")
    allowed = PlanPolicy(rebuild=True)
    choice = choose_backend(bundle, plans=allowed)
    assert choice.backend.name == "onnxruntime"
    assert "none could be built: memory ran out" in choice.reason
    with pytest.raises(EngineBuildFailed, match="memory ran out") as caught:
        choose_backend(bundle, "tensorrt", plans=allowed)
    assert caught.value.hint == "add swap"
    with pytest.raises(GPUUnavailable):
        choose_backend(bundle, require="tensorrt", plans=allowed)
    builder("print('Segmentation', file=sys.stderr); sys.exit(139)")
    with pytest.raises(EngineBuildFailed, match=r"exit code 139\): Segmentation"):
        choose_backend(bundle, "tensorrt", plans=allowed)
