"""Region -> 1 mm samples -> network grid -> three windows: the contract's preprocessing, exact and in one pass.

Resampling and resizing are linear and, for an axis-aligned series, separable: the two matrices of each axis are
multiplied beforehand, so only the voxels that carry weight are read and touched once. Oblique and tilted series are
sampled point by point on the 1 mm grid, then resized with the same matrices. No smoothing, no antialiasing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.geometry import Region, SeriesGeometry

__all__ = [
    "ObliquePlan",
    "SamplingPlan",
    "SeparablePlan",
    "VoxelWindow",
    "normalized",
    "plan_sampling",
    "sample_counts",
]

Float = NDArray[np.float64]
Volume = NDArray[np.float32]
#: One array per patient axis, in the order z, y, x.
Axes = tuple[Float, Float, Float]
Matrices = tuple[sparse.csr_array, sparse.csr_array, sparse.csr_array]

#: The general path samples this many 1 mm planes at a time, to bound its memory.
PLANES_AT_A_TIME = 16


@dataclass(frozen=True)
class VoxelWindow:
    """The half-open index ranges of the voxels that carry weight, into the sorted series."""

    slices: slice
    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        depth, rows, columns = (part.stop - part.start for part in (self.slices, self.rows, self.columns))
        return depth, rows, columns


@dataclass(frozen=True, eq=False)
class SamplingPlan(ABC):
    """Which voxels a region needs, and what turns them into the network's grid.

    Attributes:
        window: the voxels to read.
        background_hu: the value outside the scanned volume.
        matrices: per patient axis z, y, x, sparse float32: (outputs, inputs); what the inputs are is the subclass's.
    """

    window: VoxelWindow
    background_hu: float
    matrices: Matrices

    @abstractmethod
    def resample(self, hu: NDArray[np.float32] | NDArray[np.int16]) -> Volume:
        """HU of the needed voxels (slices, rows, columns) -> HU on the network's grid, float32 (z, y, x).

        z ascends towards the head, y towards the back, x towards the patient's left.
        """


@dataclass(frozen=True, eq=False)
class SeparablePlan(SamplingPlan):
    """Both resampling steps in one matrix per axis, (outputs, needed voxels along that axis).

    `axes` gives, for z, y and x, which axis of the (slice, row, column) array runs along it.
    """

    axes: tuple[int, int, int]

    def resample(self, hu: NDArray[np.float32] | NDArray[np.int16]) -> Volume:
        # Zero weights must mean background, so work relative to it.
        volume: Volume = np.transpose(hu, self.axes).astype(np.float32, order="C")
        volume -= np.float32(self.background_hu)
        resampled = _contracted(volume, self.matrices)
        resampled += np.float32(self.background_hu)
        return resampled


@dataclass(frozen=True, eq=False)
class ObliquePlan(SamplingPlan):
    """Trilinear samples at the 1 mm centres (any orientation, any tilt), then one resize matrix per axis."""

    geometry: SeriesGeometry
    centres: Axes

    def resample(self, hu: NDArray[np.float32] | NDArray[np.int16]) -> Volume:
        z, y, x = self.centres
        millimetres: Volume = np.empty((len(z), len(y), len(x)), dtype=np.float32)
        relative = hu.astype(np.float32) - np.float32(self.background_hu)
        for first in range(0, len(z), PLANES_AT_A_TIME):
            chunk = slice(first, first + PLANES_AT_A_TIME)
            points = np.stack(np.meshgrid(x, y, z[chunk], indexing="ij"), axis=-1).transpose(2, 1, 0, 3)
            millimetres[chunk] = self._sample(relative, points)
        resampled = _contracted(millimetres, self.matrices)
        resampled += np.float32(self.background_hu)
        return resampled

    def _sample(self, relative: Volume, points: Float) -> Volume:
        """Trilinear samples at points (..., 3); edge value for half a voxel, zero (background) beyond.

        A tilted stack has its own in-plane origin per slice, so each of the two neighbouring slices is sampled at
        the point's projection onto that slice.
        """
        geometry = self.geometry
        depth = geometry.index_of(points)[..., 0]
        last = geometry.slices - 1
        inside = (depth >= -0.5) & (depth <= last + 0.5)
        clamped = np.clip(depth, 0, last)
        below = np.minimum(np.floor(clamped).astype(np.intp), max(last - 1, 0))
        weight = (clamped - below).astype(np.float32)
        origins, (dy, dx) = geometry.in_plane_origins, geometry.pixel_spacing
        along_row, along_column = points @ geometry.row_direction, points @ geometry.column_direction
        total = np.zeros(depth.shape, dtype=np.float32)
        for neighbour, share in ((below, 1 - weight), (np.minimum(below + 1, last), weight)):
            column = (along_row - origins[neighbour, 0]) / dx
            row = (along_column - origins[neighbour, 1]) / dy
            total += share * self._sample_slice(relative, neighbour, row, column)
        return np.where(inside, total, np.float32(0))

    def _sample_slice(self, relative: Volume, index: NDArray[np.intp], row: Float, column: Float) -> Volume:
        rows, columns = self.geometry.rows, self.geometry.columns
        inside = (row >= -0.5) & (row <= rows - 0.5) & (column >= -0.5) & (column <= columns - 0.5)
        top, down = _neighbours(row, rows, self.window.rows)
        left, right = _neighbours(column, columns, self.window.columns)
        plane = np.clip(index - self.window.slices.start, 0, relative.shape[0] - 1)
        down_weight, right_weight = down.astype(np.float32), right.astype(np.float32)
        bottom = np.minimum(top + 1, relative.shape[1] - 1)
        far = np.minimum(left + 1, relative.shape[2] - 1)
        upper = relative[plane, top, left] * (1 - right_weight) + relative[plane, top, far] * right_weight
        lower = relative[plane, bottom, left] * (1 - right_weight) + relative[plane, bottom, far] * right_weight
        return np.where(inside, upper * (1 - down_weight) + lower * down_weight, np.float32(0))


def _contracted(volume: Volume, matrices: Matrices) -> Volume:
    """Applies one matrix per axis (z, y, x) of a volume.

    A row holds a handful of weights, so sparse products touch far fewer numbers than dense ones, and they start no BLAS
    threads, which on a busy machine wait for each other. Each step contracts the first axis and puts it last; after
    three, all are back in place.
    """
    for matrix in matrices:
        rest = volume.shape[1:]
        product = matrix @ volume.reshape(len(volume), -1)
        volume = np.ascontiguousarray(product.T).reshape(*rest, -1)
    return volume


def _sparse(matrix: Float) -> sparse.csr_array:
    return sparse.csr_array(matrix.astype(np.float32))


def _neighbours(index: Float, count: int, needed: slice) -> tuple[NDArray[np.intp], Float]:
    """(lower neighbour within the needed range, weight of the upper one) of clamped continuous indices."""
    clamped = np.clip(index, 0, count - 1)
    lower = np.floor(clamped)
    local = np.clip(lower.astype(np.intp) - needed.start, 0, needed.stop - needed.start - 1)
    return local, clamped - lower


def plan_sampling(
    geometry: SeriesGeometry, region: Region, config: PreprocessingConfig, *, separable: bool | None = None
) -> SamplingPlan:
    """Plans the sampling of `region` (the lesion box with its margin) from a series.

    Args:
        geometry: the series' voxel grid.
        region: patient space, LPS mm.
        config: spacing, output size, background.
        separable: None takes the per-axis path for axis-aligned series; False forces the general one (to compare).
    """
    counts = sample_counts(region, config)
    z, y, x = (np.asarray(region.min[axis] + (np.arange(counts[axis]) + 0.5) * config.spacing_mm) for axis in (2, 1, 0))
    along_z, along_y, along_x = (
        _resize_matrix(out, counts[axis]) for out, axis in zip(config.size, (2, 1, 0), strict=True)
    )
    if separable is None:
        separable = geometry.is_axis_aligned
    plan = _separable_plan if separable else _oblique_plan
    return plan(geometry, region, (z, y, x), (along_z, along_y, along_x), config.background_hu)


def sample_counts(region: Region, config: PreprocessingConfig) -> tuple[int, int, int]:
    """Samples along x, y, z: max(1, floor(extent / spacing + 0.5))."""
    x, y, z = (max(1, math.floor(extent / config.spacing_mm + 0.5)) for extent in region.extent_mm)
    return x, y, z


def normalized(hu: Volume, config: PreprocessingConfig) -> Volume:
    """HU (z, y, x) -> windowed, clipped and normalised channels, float32 (z, channel, y, x)."""
    depth, rows, columns = hu.shape
    channels = np.empty((depth, config.channels, rows, columns), dtype=np.float32)
    for channel, ((low, high), mean, std) in enumerate(zip(config.windows_hu, config.mean, config.std, strict=True)):
        # ((clip(hu) - low) / (high - low) - mean) / std as one multiply and one add, after the clip.
        scale = 1 / ((high - low) * std)
        np.clip(hu, low, high, out=channels[:, channel])
        channels[:, channel] *= np.float32(scale)
        channels[:, channel] += np.float32(-low * scale - mean / std)
    return channels


def _separable_plan(
    geometry: SeriesGeometry, region: Region, centres: Axes, resize: Axes, background_hu: float
) -> SamplingPlan:
    dy, dx = geometry.pixel_spacing
    directions = np.stack([geometry.normal, geometry.column_direction, geometry.row_direction])
    origin = geometry.positions[0]
    needed = [slice(0, 1)] * 3
    axes, matrices = [], []
    for patient_axis, samples, shrink in zip((2, 1, 0), centres, resize, strict=True):
        axis = int(np.argmax(np.abs(directions[:, patient_axis])))
        sign = float(np.sign(directions[axis, patient_axis]))
        if axis == 0:
            voxels, half = geometry.depths * sign, geometry.slice_spacing / 2
        else:
            step, count = (dy, geometry.rows) if axis == 1 else (dx, geometry.columns)
            voxels, half = origin[patient_axis] + sign * step * np.arange(count), step / 2
        matrix = shrink @ _linear_weights(samples, voxels, half)
        used = np.flatnonzero(matrix.any(axis=0))
        if len(used):
            needed[axis] = slice(int(used[0]), int(used[-1]) + 1)
        axes.append(axis)
        matrices.append(_sparse(matrix[:, needed[axis]]))
    return SeparablePlan(
        VoxelWindow(*needed),
        background_hu,
        (matrices[0], matrices[1], matrices[2]),
        axes=(axes[0], axes[1], axes[2]),
    )


def _oblique_plan(
    geometry: SeriesGeometry, region: Region, centres: Axes, resize: Axes, background_hu: float
) -> SamplingPlan:
    index = geometry.index_of(region.corners())
    # With tilt, row and column are read on either neighbouring slice: allow for one slice's drift.
    drift = np.abs(np.diff(geometry.in_plane_origins, axis=0)).max(axis=0, initial=0.0)
    dy, dx = geometry.pixel_spacing
    slack = (0.0, float(drift[1]) / dy, float(drift[0]) / dx)
    needed = []
    for axis, count in enumerate((geometry.slices, geometry.rows, geometry.columns)):
        low = math.floor(float(index[:, axis].min()) - slack[axis]) - 1
        high = math.ceil(float(index[:, axis].max()) + slack[axis]) + 2
        first = min(max(low, 0), count - 1)
        needed.append(slice(first, max(min(high, count), first + 1)))
    z, y, x = map(_sparse, resize)
    return ObliquePlan(VoxelWindow(*needed), background_hu, (z, y, x), geometry=geometry, centres=centres)


def _linear_weights(samples: Float, voxels: Float, half_mm: float) -> Float:
    """Interpolation matrix (samples, voxels) along one axis; voxel centres ascend or descend, need not be even.

    Beyond the outermost centres the edge voxel holds for `half_mm`; further out the row is zero.
    """
    descending = len(voxels) > 1 and voxels[0] > voxels[-1]
    centres = voxels[::-1] if descending else voxels
    index = np.interp(samples, centres, np.arange(len(centres), dtype=np.float64))
    lower = np.minimum(np.floor(index).astype(np.intp), max(len(centres) - 2, 0))
    weight = index - lower
    inside = (samples >= centres[0] - half_mm) & (samples <= centres[-1] + half_mm)
    matrix = np.zeros((len(samples), len(centres)))
    row = np.arange(len(samples))
    matrix[row, lower] = np.where(inside, 1 - weight, 0)
    matrix[row, np.minimum(lower + 1, len(centres) - 1)] += np.where(inside, weight, 0)
    return matrix[:, ::-1] if descending else matrix


def _resize_matrix(out: int, count: int) -> Float:
    """Linear resize with half-pixel centres, clamped at the edges, no antialiasing: float64 (out, count)."""
    source = np.clip((np.arange(out) + 0.5) * count / out - 0.5, 0, count - 1)
    return _linear_weights(source, np.arange(count, dtype=np.float64), 0.5)
