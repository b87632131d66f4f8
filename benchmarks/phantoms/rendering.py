"""Phantoms as network inputs without DICOM in between: the scans' grids and noise, then the runtime's preprocessing.

Only the voxels the region needs are computed. Reading files, phases and geometry checks are not part of this.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.phantoms.phantom import BOX_PHASE, PHASES, Phantom
from fourphase.benchmarks.phantoms.scan import lesion_voxels, make_scans
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.geometry import Region
from fourphase.runtime.preprocess import normalized, plan_sampling

__all__ = ["augmented", "render_hu", "to_input"]

Volume = NDArray[np.float32]
Rng = np.random.Generator

#: Fields of view of real scanners come in many matrices; the default phantom studies only in small ones.
_TRAINING_MATRICES = (160, 192, 224, 256, 320, 384, 512)
#: A hand-drawn box sits this far off the lesion's outline, mm: mostly too large, sometimes too small.
_BOX_ERROR_MM = (-1.5, 5.0)


def render_hu(phantom: Phantom, config: PreprocessingConfig, rng: Rng | None = None) -> Volume:
    """HU of all phases on the network's grid, float32 (P, T, H, W).

    Args:
        rng: None renders what a study written by `phantom_dicom` shows (but for the noise's draw); a generator
            varies the matrix and how well the box fits, for training.
    """
    if rng is None:
        scans = make_scans(phantom)
        box = lesion_voxels(phantom, scans[BOX_PHASE]).box
    else:
        scans = make_scans(phantom, matrix=int(rng.choice(_TRAINING_MATRICES)))
        box = _loose(phantom.lesion_bounds, rng)
    region, phases = box.grown(config.margin_mm), []
    for phase in PHASES:
        plan = plan_sampling(scans[phase].geometry, region, config)
        phases.append(plan.resample(scans[phase].voxels(phantom, plan.window)))
    return np.stack(phases)


def to_input(hu: Volume, config: PreprocessingConfig) -> Volume:
    """HU (P, T, H, W) -> the network's input, float32 (P, T, C, H, W)."""
    return np.stack([normalized(volume, config) for volume in hu])


def augmented(hu: Volume, rng: Rng) -> Volume:
    """HU (P, T, H, W), mirrored and transposed at random, with another scanner's calibration and contrast timing."""
    for axis in (1, 2, 3):
        if rng.random() < 0.5:
            hu = np.flip(hu, axis)
    if rng.random() < 0.5:
        hu = np.swapaxes(hu, 2, 3)
    shift = rng.normal(0, 5) + rng.normal(0, 3, (len(hu), 1, 1, 1))
    return np.ascontiguousarray(hu * rng.uniform(0.95, 1.05) + shift, dtype=np.float32)


def _loose(outline: Region, rng: Rng) -> Region:
    low, high = (rng.uniform(*_BOX_ERROR_MM, 3) for _ in range(2))
    (x, y, z), (u, v, w) = np.asarray(outline.min) - low, np.asarray(outline.max) + high
    return Region((float(x), float(y), float(z)), (float(u), float(v), float(w)))
