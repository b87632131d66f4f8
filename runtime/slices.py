"""HU of a region on an isotropic grid, from a bounded number of slices: for looking and comparing, not for the network.

Of a series with many slices in the region every k-th is read; what lies between is interpolated by `preprocess`, so
that every orientation, order and tilt is right here as it is there. Which k was taken is part of the answer.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.geometry import Region, SeriesGeometry
from fourphase.runtime.pixels import Hounsfield, read_hu
from fourphase.runtime.preprocess import VoxelWindow, plan_sampling
from fourphase.runtime.series import Series
from fourphase.runtime.stored_values import NATIVE

__all__ = ["OUTSIDE_HU", "RegionGrid", "SampledRegion", "sample_region"]

#: Marks samples beyond the scanned volume; no HU comes near.
OUTSIDE_HU = -100_000.0
#: Reading an uncompressed slice costs a tenth of a millisecond, decoding a compressed one up to fifty.
NATIVE_SLICES, COMPRESSED_SLICES = 160, 24


@dataclass(frozen=True)
class RegionGrid:
    """Isotropic samples in patient space.

    Attributes:
        low: the corner with the smallest coordinates, LPS mm; the first sample's centre lies half a spacing further.
        counts: samples along (x, y, z).
        spacing_mm: between samples.
    """

    low: tuple[float, float, float]
    counts: tuple[int, int, int]
    spacing_mm: float

    @property
    def region(self) -> Region:
        low = np.array(self.low)
        return Region.of(low, low + np.array(self.counts) * self.spacing_mm)

    @property
    def sampling(self) -> PreprocessingConfig:
        """One sample per cell, and no resize after it; counts that rounding cannot change."""
        x, y, z = self.counts
        return PreprocessingConfig(spacing_mm=self.spacing_mm, size=(z, y, x), background_hu=OUTSIDE_HU)


@dataclass(frozen=True, eq=False)
class SampledRegion:
    """HU on a grid.

    Attributes:
        hu: float32 (z, y, x), ascending towards head, back and left; below `OUTSIDE_HU` / 2 outside the volume.
        step: every how many slices one was read.
    """

    hu: NDArray[np.float32]
    step: int


def sample_region(series: Series, grid: RegionGrid, *, step_mm: float = 0.0, average: bool = False) -> SampledRegion:
    """Samples a region of a series.

    Args:
        series: with a geometry.
        grid: where to sample.
        step_mm: slices closer than this are not needed: leave out as many as keep within it.
        average: first replace in-plane blocks of voxels, no larger than a sample, by their means.

    Raises:
        GeometryRefused: the series has no geometry.
        PixelDataError: a slice that is needed cannot be read.
    """
    config = grid.sampling
    # Blocks start at the window's corner: with one more sample around, the last of them reaches beyond the region.
    needed = grid.region.grown(grid.spacing_mm if average else 0)
    plan = plan_sampling(series.geometry, needed, config)
    step = _step(series, plan.window, step_mm)
    if step > 1:
        series = _every(step, series)
        plan = plan_sampling(series.geometry, needed, config)
    if not average:
        return SampledRegion(plan.resample(read_hu(series, plan.window)), step)
    window = _two_slices(plan.window, series.geometry.slices)
    hu, geometry = _averaged(read_hu(series, window), series.geometry, window, grid.spacing_mm)
    plan = plan_sampling(geometry, grid.region, config)
    return SampledRegion(plan.resample(hu[plan.window.slices, plan.window.rows, plan.window.columns]), step)


def _step(series: Series, window: VoxelWindow, step_mm: float) -> int:
    """Every how many slices one is read: no more than allowed of the window's, and at least two of the series'."""
    native = all(header.pixels.transfer_syntax in NATIVE for header in series.slices[window.slices])
    most = NATIVE_SLICES if native else COMPRESSED_SLICES
    wanted = max(math.ceil(window.shape[0] / most), int(step_mm / series.geometry.slice_spacing))
    return max(1, min(wanted, series.geometry.slices - 1))


def _every(step: int, series: Series) -> Series:
    geometry = series.geometry
    kept = dataclasses.replace(geometry, positions=geometry.positions[::step])
    return dataclasses.replace(series, slices=series.slices[::step], grid=kept)


def _two_slices(window: VoxelWindow, count: int) -> VoxelWindow:
    """At least two slices, without which there is no distance between them."""
    first = min(window.slices.start, count - 2)
    return VoxelWindow(slice(first, max(window.slices.stop, first + 2)), window.rows, window.columns)


def _averaged(
    hu: Hounsfield, geometry: SeriesGeometry, window: VoxelWindow, spacing_mm: float
) -> tuple[NDArray[np.float32], SeriesGeometry]:
    """(means of in-plane blocks of the window's voxels, the grid they lie on).

    A block is as many voxels as fit into a sample; what fills none at the far side counts as not scanned.
    """
    down, across = (
        min(max(1, int(spacing_mm / step)), count)
        for step, count in zip(geometry.pixel_spacing, window.shape[1:], strict=True)
    )
    depth, rows, columns = (hu.shape[0], hu.shape[1] // down, hu.shape[2] // across)
    cells = hu[:, : rows * down, : columns * across].reshape(depth, rows, down, columns * across)
    means = cells.sum(axis=2, dtype=np.float32).reshape(depth, rows, columns, across).sum(axis=3)
    means *= np.float32(1 / (down * across))
    dy, dx = geometry.pixel_spacing
    corner = (window.rows.start + (down - 1) / 2) * dy * geometry.column_direction
    corner = corner + (window.columns.start + (across - 1) / 2) * dx * geometry.row_direction
    positions = geometry.positions[window.slices] + corner
    return means, dataclasses.replace(
        geometry, positions=positions, pixel_spacing=(down * dy, across * dx), rows=rows, columns=columns
    )
