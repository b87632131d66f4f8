"""The preprocessing kernel on this machine: compiled by nvcc and by NVRTC, run, held against NumPy and timed.

The voxels are white noise on the grid of a usual liver CT, straight and tilted: nothing is easier to get wrong.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.guarded_steps import Outcome, Save, error_record
from fourphase.runtime.cache import CACHE_VARIABLE
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.cuda import probe
from fourphase.runtime.cuda_context import is_available
from fourphase.runtime.errors import EnvironmentFault
from fourphase.runtime.geometry import Region, SeriesGeometry
from fourphase.runtime.preprocess import normalized, plan_sampling

__all__ = ["CAPABILITIES", "check_kernel_compilers", "check_preprocessing"]

Floats = NDArray[np.float32]
Voxels = NDArray[np.int16]

#: What is compiled for where there is no GPU to ask: Orin, L4, H100, Thor.
CAPABILITIES = ("8.7", "8.9", "9.0", "11.0")
#: The contract's bound, and what FP16 may add in normalised units (values up to 5: half a step of 2^-8).
_ALLOWED_HU, _HALF_STEP = 0.5, 2.0**-9
_PHASES, _SLICES, _EDGE = 4, 64, 512
_SPACING = (2.5, 0.8, 0.8)
_TILT = 0.3
_REPEATS = 20


@dataclass(frozen=True, eq=False)
class _Series:
    """One phase to be sampled."""

    geometry: SeriesGeometry
    region: Region
    volume: Voxels


def check_kernel_compilers(save: Save, *, device: str) -> Outcome:
    """Compiles the kernels afresh, as the product does, and once more with an nvcc that fails: NVRTC must step in.

    Result: per compute capability and way `compiler`, `seconds`, `bytes`, `sha256`, or `error`.
    """
    from fourphase.runtime.kernel_module import compile_module

    found = probe().device
    capabilities = CAPABILITIES if device == "cpu" or found is None else (found.compute_capability,)
    result: dict[str, Any] = {}
    for capability in capabilities:
        result[capability] = {}
        for way, surroundings in (("first choice", contextlib.nullcontext), ("without nvcc", _broken_nvcc)):
            with _fresh_cache(), surroundings():
                result[capability][way] = _compiled(compile_module, capability)
            save(result)
    made = [entry["first choice"] for entry in result.values()]
    if all("error" not in entry for entry in made):
        return Outcome("ok", result=result)
    reason = next(entry["error"]["message"] for entry in made if "error" in entry)
    return Outcome("skipped" if device == "cpu" else "failed", reason, result)


def check_preprocessing(save: Save, *, device: str, quick: bool) -> Outcome:
    """Four phases through NumPy's path and through the kernel, in FP32 and FP16.

    Result: per grid and type the largest difference (HU before the windows, and normalised), the median times in ms
        from voxels to the finished input, planning and upload included, and the compiler.
    """
    if device == "cpu":
        return Outcome("skipped", f"the kernel needs a CUDA device: {probe().reason}")
    if not is_available():
        return Outcome("skipped", "pycuda is not installed")
    result: dict[str, Any] = {"grids": {}}
    failed, config = [], PreprocessingConfig()
    for name, tilt in (("axis-aligned", 0.0), ("tilted", _TILT)):
        phases = [_series(seed, tilt, quick) for seed in range(_PHASES)]
        numpy_ms, wanted = _timed(functools.partial(_by_numpy, phases, config), 2 if quick else 5)
        result["grids"][name] = {"numpy_ms": numpy_ms}
        for half in (False, True):
            found = _on_gpu(phases, config, wanted, half, 2 if quick else _REPEATS)
            result["grids"][name]["fp16" if half else "fp32"] = found
            failed += [] if found["passed"] else [f"{name} {'fp16' if half else 'fp32'}"]
            save(result)
    return Outcome("failed", f"off NumPy: {', '.join(failed)}", result) if failed else Outcome("ok", result=result)


def _compiled(compile_module: Callable[[str], Any], capability: str) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        module = compile_module(capability)
    except EnvironmentFault as error:
        return {"error": error_record(error)}
    seconds = time.perf_counter() - started
    digest = hashlib.sha256(module.cubin).hexdigest()
    return {"compiler": module.compiler, "seconds": seconds, "bytes": len(module.cubin), "sha256": digest}


@contextlib.contextmanager
def _fresh_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, _environment({CACHE_VARIABLE: folder}):
        yield


@contextlib.contextmanager
def _broken_nvcc() -> Iterator[None]:
    """An nvcc that fails, in front of any other."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "nvcc")
        program.write_text("#!/bin/sh\necho 'error: not to be used' >&2\nexit 1\n")
        program.chmod(0o755)
        with _environment({"PATH": os.pathsep.join([folder, os.environ.get("PATH", "")])}):
            yield


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _series(seed: int, tilt: float, quick: bool) -> _Series:
    """A grid of usual spacing; each slice is moved by `tilt` mm along x and y from the one below."""
    slices, edge = (8, 64) if quick else (_SLICES, _EDGE)
    thickness, dy, dx = _SPACING
    positions = np.arange(slices)[:, None] * np.array([tilt, tilt, thickness])
    geometry = SeriesGeometry(np.eye(3)[0], np.eye(3)[1], positions, (dy, dx), edge, edge)
    ends = np.array([(edge - 1) * dx, (edge - 1) * dy, (slices - 1) * thickness])
    volume = np.random.default_rng(seed).integers(-1024, 3072, (slices, edge, edge), dtype=np.int16)
    return _Series(geometry, Region.of(0.3 * ends, 0.7 * ends), volume)


def _window(plan: Any, volume: Voxels) -> Voxels:
    part = plan.window
    return np.ascontiguousarray(volume[part.slices, part.rows, part.columns])


def _by_numpy(phases: Sequence[_Series], config: PreprocessingConfig) -> Floats:
    """float32 (P, T, C, H, W)."""
    found = []
    for phase in phases:
        plan = plan_sampling(phase.geometry, phase.region, config)
        found.append(normalized(plan.resample(_window(plan, phase.volume)), config))
    return np.stack(found)


def _on_gpu(
    phases: Sequence[_Series], config: PreprocessingConfig, wanted: Floats, half: bool, repeats: int
) -> dict[str, Any]:
    from fourphase.runtime.cuda_buffers import DeviceMemory, poison
    from fourphase.runtime.cuda_context import open_gpu
    from fourphase.runtime.gpu_preprocess import GpuPreprocessor
    from fourphase.runtime.kernel_module import compile_module
    from fourphase.runtime.kernel_plan import KernelPlan

    gpu, found = open_gpu(), probe().device
    assert found is not None
    module = compile_module(found.compute_capability)
    preprocessor = GpuPreprocessor(gpu, module, half=half)
    output = np.empty(wanted.shape, np.float16 if half else np.float32)
    with gpu.current():
        stream, memory = gpu.new_stream(), DeviceMemory(gpu, output.nbytes)
        poison(gpu, memory.pointer, memory.nbytes, stream)

    def run() -> None:
        for index, phase in enumerate(phases):
            plan = plan_sampling(phase.geometry, phase.region, config)
            voxels = _window(plan, phase.volume)
            preprocessor.enqueue(KernelPlan.of(plan, config), voxels, memory.pointer, stream, phase=index)
        with gpu.current():
            stream.synchronize()

    try:
        milliseconds, _ = _timed(run, repeats)
        with gpu.current():
            gpu.driver.memcpy_dtoh(output, memory.pointer)
    finally:
        preprocessor.close()
        with gpu.releasing():
            memory.close()
    return {"gpu_ms": milliseconds, "compiler": module.compiler, **_difference(output, wanted, config, half)}


def _difference(output: NDArray[Any], wanted: Floats, config: PreprocessingConfig, half: bool) -> dict[str, Any]:
    """The largest difference in normalised units, and in HU of the channel it is in."""
    apart = np.abs(output.astype(np.float32) - wanted)
    hu_per_unit = np.array([(high - low) * std for (low, high), std in zip(config.windows_hu, config.std, strict=True)])
    allowed = np.float32(_HALF_STEP if half else 0) + _ALLOWED_HU / hu_per_unit
    finite = bool(np.isfinite(output).all())
    return {
        "max_abs": float(apart.max()) if finite else None,
        "max_hu": float((apart.max(axis=(0, 1, 3, 4)) * hu_per_unit).max()) if finite else None,
        "finite": finite,
        # Written so that a NaN fails.
        "passed": bool((apart <= allowed[:, None, None]).all()),
    }


def _timed(run: Callable[[], Any], repeats: int) -> tuple[dict[str, float], Any]:
    """(median, min and max in ms, what the last run gave), the first run not counted."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        value = run()
        times.append(1e3 * (time.perf_counter() - started))
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}, value
