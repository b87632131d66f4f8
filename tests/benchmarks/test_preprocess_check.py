"""The step that compiles and runs the preprocessing kernel, as far as that goes without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fourphase.benchmarks.gpu import preprocess_check
from fourphase.benchmarks.gpu.preprocess_check import CAPABILITIES, check_kernel_compilers, check_preprocessing
from fourphase.runtime import kernel_module
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import EnvironmentFault

CONFIG = PreprocessingConfig(size=(2, 4, 5))


@pytest.mark.skipif(kernel_module._nvcc() is None, reason="there is no nvcc")
def test_the_kernels_are_compiled_afresh_and_a_failing_nvcc_is_stepped_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preprocess_check, "CAPABILITIES", ("9.0",))
    outcome = check_kernel_compilers(lambda _: None, device="cpu")
    assert outcome.status == "ok"
    found = outcome.result["9.0"]
    assert found["first choice"]["compiler"] == "nvcc"
    assert found["first choice"]["bytes"] > 1000
    other = found["without nvcc"]
    text = other["error"]["message"] if "error" in other else other["compiler"]
    assert "nvcc says: error: not to be used" in text


@pytest.mark.parametrize(("device", "status"), [("cpu", "skipped"), ("cuda", "failed")])
def test_without_a_compiler_the_reason_is_told(device: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(capability: str) -> Any:
        raise EnvironmentFault(f"no compiler for {capability}", "install nvcc", key="kernel_not_compiled")

    monkeypatch.setattr(kernel_module, "compile_module", refuse)
    monkeypatch.setattr(preprocess_check, "probe", lambda: SimpleNamespace(device=None))
    outcome = check_kernel_compilers(lambda _: None, device=device)
    assert (outcome.status, outcome.reason) == (status, f"no compiler for {CAPABILITIES[0]}")
    assert list(outcome.result) == list(CAPABILITIES)


def test_on_the_cpu_the_kernel_is_not_run() -> None:
    outcome = check_preprocessing(lambda _: None, device="cpu", quick=True)
    assert (outcome.status, outcome.reason.split(":")[0]) == ("skipped", "the kernel needs a CUDA device")


def test_both_paths_are_timed_and_a_wrong_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's path stands in for the kernel; half precision goes wrong on the tilted grid."""

    def on_gpu(phases: Any, config: Any, wanted: Any, half: bool, repeats: int) -> dict[str, Any]:
        tilted = phases[0].geometry.positions[1, 0] != 0
        output = wanted + np.float32(0.1 if half and tilted else 0)
        return {"gpu_ms": {"median": 1.0}, **preprocess_check._difference(output, wanted, config, half)}

    monkeypatch.setattr(preprocess_check, "is_available", lambda: True)
    monkeypatch.setattr(preprocess_check, "PreprocessingConfig", lambda: CONFIG)
    monkeypatch.setattr(preprocess_check, "_on_gpu", on_gpu)
    outcome = check_preprocessing(lambda _: None, device="cuda", quick=True)
    assert (outcome.status, outcome.reason) == ("failed", "off NumPy: tilted fp16")
    grids = outcome.result["grids"]
    assert list(grids) == ["axis-aligned", "tilted"]
    assert grids["tilted"]["numpy_ms"]["median"] > 0
    assert grids["axis-aligned"]["fp32"]["max_hu"] == 0


def test_differences_are_told_in_hu_of_their_channel() -> None:
    wanted = np.zeros((4, 2, 3, 4, 5), np.float32)
    output = wanted.copy()
    (low, high), std = CONFIG.windows_hu[1], CONFIG.std[1]
    output[2, 1, 1, 3, 4] = 0.4 / ((high - low) * std)
    found = preprocess_check._difference(output, wanted, CONFIG, False)
    assert found["max_hu"] == pytest.approx(0.4, rel=1e-4)
    assert found["passed"]
    output[2, 1, 1, 3, 4] *= 1.5
    assert not preprocess_check._difference(output, wanted, CONFIG, False)["passed"]
    output[0] = np.nan  # never written
    lost = preprocess_check._difference(output, wanted, CONFIG, False)
    assert (lost["passed"], lost["finite"], lost["max_hu"]) == (False, False, None)


def test_the_voxels_cover_the_region_of_a_grid_straight_or_tilted() -> None:
    for tilt in (0.0, 0.3):
        series = preprocess_check._series(1, tilt, True)
        (phase,) = preprocess_check._by_numpy([series], CONFIG)
        assert phase.shape == (2, 3, 4, 5)
        assert series.geometry.is_axis_aligned == (tilt == 0)
        assert np.isfinite(phase).all()
        assert np.ptp(phase[:, 0]) > 0.1  # no constant background
