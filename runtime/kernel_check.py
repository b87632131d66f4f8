"""The preprocessing kernel on this GPU against NumPy's path: two small synthetic series, one of them tilted.

It says whether this GPU and this compiler compute what `preprocess` computes; run once, before the first study.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.cuda_buffers import DeviceMemory, poison
from fourphase.runtime.cuda_context import Gpu
from fourphase.runtime.errors import SelfCheckFailed
from fourphase.runtime.geometry import Region, SeriesGeometry
from fourphase.runtime.gpu_preprocess import GpuPreprocessor
from fourphase.runtime.kernel_plan import KernelPlan
from fourphase.runtime.preprocess import SamplingPlan, normalized, plan_sampling

__all__ = ["ALLOWED_HU", "check_kernel"]

Floats = NDArray[np.float32]

#: The contract's bound between two ways to compute the same input. Float32 over 4096 HU: 1e-3 is to be expected.
ALLOWED_HU = 0.5
#: Of the synthetic series (slices, rows, columns) and of the output: no multiple of the kernel's blocks.
_SHAPE, _SIZE = (9, 12, 14), (5, 9, 33)
#: Inside both series.
_REGION = Region((-5.2, -4.3, -7.1), (4.1, 3.9, 6.3))


def check_kernel(gpu: Gpu, preprocessor: GpuPreprocessor, config: PreprocessingConfig) -> float:
    """Samples the two series with the model's own windows, spacing and background: both kernels, both voxel types.

    Args:
        preprocessor: that writes FP32.

    Returns: the largest difference, in HU.

    Raises: SelfCheckFailed above ALLOWED_HU, or if something was not written; GPUUnavailable.
    """
    small = replace(config, size=_SIZE)
    plans = [plan_sampling(_series(shear), _REGION, small) for shear in ((0.0, 0.0), (0.2, 0.4))]
    voxels = [_noise(plan, small, seed) for seed, plan in enumerate(plans)]
    found = _on_device(gpu, preprocessor, [KernelPlan.of(plan, small) for plan in plans], voxels)
    expected = np.stack([normalized(plan.resample(hu), small) for plan, hu in zip(plans, voxels, strict=True)])
    hu_per_unit = [(high - low) * std for (low, high), std in zip(config.windows_hu, config.std, strict=True)]
    difference = np.abs(found - expected) * np.array(hu_per_unit)[:, None, None]
    # Written so that a NaN fails.
    if not (difference <= ALLOWED_HU).all():
        raise SelfCheckFailed(
            f"the preprocessing kernel is off the CPU's result by {difference.max():.3g} HU (allowed {ALLOWED_HU:g})",
            "use --preprocess cpu; update the driver and nvcc before trying again",
            key="preprocessing_off",
        )
    return float(difference.max())


def _series(shear: tuple[float, float]) -> SeriesGeometry:
    """Voxels of 1 x 1.25 x 2 mm (x, y, z); each slice is moved by `shear` mm along x and y from the one below."""
    step = np.array([*shear, 2.0])
    positions = np.array([-7.0, -7.0, -8.0]) + np.arange(_SHAPE[0])[:, None] * step
    return SeriesGeometry(np.eye(3)[0], np.eye(3)[1], positions, (1.25, 1.0), _SHAPE[1], _SHAPE[2])


def _noise(plan: SamplingPlan, config: PreprocessingConfig, seed: int) -> NDArray[np.int16] | Floats:
    """White noise over all windows, so that little is clipped: int16 for series 0, float32 for series 1."""
    low = min(low for low, _ in config.windows_hu)
    high = max(high for _, high in config.windows_hu)
    noise = np.random.default_rng(seed).uniform(low, high, plan.window.shape)
    return np.rint(noise).astype(np.int16) if seed == 0 else noise.astype(np.float32)


def _on_device(
    gpu: Gpu, preprocessor: GpuPreprocessor, plans: list[KernelPlan], voxels: list[NDArray[np.int16] | Floats]
) -> Floats:
    """float32 (series, T, C, H, W) as the kernels wrote it, NaN elsewhere."""
    found = np.empty(len(plans) * plans[0].output_bytes(half=False), np.uint8)
    with gpu.current():
        stream, memory = gpu.new_stream(), DeviceMemory(gpu, found.nbytes)
        try:
            poison(gpu, memory.pointer, memory.nbytes, stream)
            for phase, (plan, hu) in enumerate(zip(plans, voxels, strict=True)):
                preprocessor.enqueue(plan, hu, memory.pointer, stream, phase=phase)
            stream.synchronize()
            gpu.driver.memcpy_dtoh(found, memory.pointer)
        finally:
            memory.close()
    return found.view(np.float32).reshape(len(plans), _SIZE[0], -1, *_SIZE[1:])
