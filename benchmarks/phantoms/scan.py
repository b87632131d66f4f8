"""How a phantom is scanned: the voxel grid of each phase's series, its noise, and the lesion as voxels.

Writing files is `phantom_dicom`'s. Training renders the same grids with the same noise, only fewer voxels of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.phantoms.phantom import PHASES, Phantom
from fourphase.benchmarks.phantoms.shapes import Field
from fourphase.runtime.errors import UsageError
from fourphase.runtime.geometry import Region, SeriesGeometry
from fourphase.runtime.preprocess import VoxelWindow

__all__ = ["LesionVoxels", "Scan", "lesion_voxels", "make_scans"]

Rng = np.random.Generator

#: Around the lesion every series covers at least the contract's margin, breathing, and a little more, mm.
COVERED_AROUND_LESION_MM = 10 + 3 + 5
_THICKNESSES_MM = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
_MATRICES = (160, 176, 192, 208, 224, 256)
_MOST_SLICES = 90
#: A study of the default size stays below this.
_STUDY_BYTES = 30e6
_SLICES_AT_A_TIME = 16
_LOWEST_HU, _HIGHEST_HU = -1024, 3071


@dataclass(frozen=True)
class Scan:
    """The grid and the noise of one phase's series: axial, head first, supine.

    Attributes:
        phase: one of `PHASES`.
        origin: centre of the lowest slice's first voxel, LPS mm.
        pixel_spacing: (dy, dx) in mm.
        slice_spacing: distance between slices, mm; less than `thickness` where slices overlap.
        shape: (slices, rows, columns); slices ascend towards the head.
        noise_hu: standard deviation.
        smoothness: 0 (white noise) to 1: how much of its neighbours' noise a voxel shares, in plane.
        entropy: seeds the noise.
    """

    phase: str
    origin: tuple[float, float, float]
    pixel_spacing: tuple[float, float]
    slice_spacing: float
    thickness: float
    shape: tuple[int, int, int]
    noise_hu: float
    smoothness: float
    entropy: tuple[int, ...]

    @property
    def geometry(self) -> SeriesGeometry:
        slices, rows, columns = self.shape
        positions = np.tile(np.array(self.origin), (slices, 1))
        positions[:, 2] += self.slice_spacing * np.arange(slices)
        axes = np.eye(3)
        return SeriesGeometry(axes[0], axes[1], positions, self.pixel_spacing, rows, columns)

    @property
    def all_voxels(self) -> VoxelWindow:
        slices, rows, columns = self.shape
        return VoxelWindow(slice(0, slices), slice(0, rows), slice(0, columns))

    def centres(self, window: VoxelWindow) -> tuple[NDArray[np.float64], ...]:
        """x (1, 1, columns), y (1, rows, 1) and z (slices, 1, 1) of a window's voxel centres, LPS mm."""
        (x, y, z), (dy, dx) = self.origin, self.pixel_spacing
        columns, rows, slices = (
            first + step * np.arange(part.start, part.stop)
            for first, step, part in (
                (x, dx, window.columns),
                (y, dy, window.rows),
                (z, self.slice_spacing, window.slices),
            )
        )
        return columns[None, None, :], rows[None, :, None], slices[:, None, None]

    def voxels(self, phantom: Phantom, window: VoxelWindow) -> NDArray[np.int16]:
        """HU with noise of a window, int16 (slices, rows, columns).

        The noise belongs to the window: the same window gives the same voxels, an overlapping one has other noise.
        """
        x, y, z = self.centres(window)
        corner = (window.slices.start, window.rows.start, window.columns.start)
        rng = np.random.default_rng([*self.entropy, *corner])
        result = np.empty(window.shape, dtype=np.int16)
        for first in range(0, len(z), _SLICES_AT_A_TIME):
            part = slice(first, first + _SLICES_AT_A_TIME)
            hu = phantom.hu(self.phase, x, y, z[part])
            if self.noise_hu:
                hu += np.float32(self.noise_hu) * correlated_noise(rng, hu.shape, self.smoothness)
            result[part] = np.rint(hu, out=hu).clip(_LOWEST_HU, _HIGHEST_HU, out=hu)
        return result


@dataclass(frozen=True, eq=False)
class LesionVoxels:
    """The lesion on a scan's grid.

    Attributes:
        mask: uint8 (slices, rows, columns), 1 inside the outline, of the window only.
        window: where the mask lies in the scan; tight.
        box: the outer faces of the mask's voxels, LPS mm.
    """

    mask: NDArray[np.uint8]
    window: VoxelWindow
    box: Region


def correlated_noise(rng: Rng, shape: tuple[int, ...], smoothness: float) -> Field:
    """Normal noise of variance 1, each voxel sharing `smoothness` / 2 of its in-plane neighbours' noise."""
    slices, rows, columns = shape
    white = rng.standard_normal((slices, rows + 2, columns + 2), dtype=np.float32)
    share = np.float32(smoothness / 2)
    along_rows = white[:, :, 1:-1] + share * (white[:, :, :-2] + white[:, :, 2:])
    both = along_rows[:, 1:-1] + share * (along_rows[:, :-2] + along_rows[:, 2:])
    return both / (1 + 2 * share * share)


def make_scans(phantom: Phantom, matrix: int | None = None, slices: int | None = None) -> dict[str, Scan]:
    """A random protocol for a phantom: one scan per phase, all covering the lesion with its margin.

    Args:
        matrix: rows and columns; None draws one so that a study stays below 30 MB.
        slices: per series; None follows from a drawn slice thickness of 1 to 5 mm.

    Raises: UsageError for a matrix or a number of slices that cannot show a lesion.
    """
    if (matrix is not None and not 64 <= matrix <= 1024) or (slices is not None and not 16 <= slices <= 2000):
        raise UsageError(
            "the phantom's matrix or number of slices is out of range",
            "use a matrix of 64 to 1024 and 16 to 2000 slices",
            key="phantom_size",
        )
    rng = np.random.default_rng([*phantom.entropy, 1])
    thickness, spacing, count = _slice_plan(phantom.lesion_bounds.extent_mm[2], slices, rng)
    side = matrix or _matrix(count, rng)
    width = 2 * (phantom.anatomy.body.radii[0] + float(rng.uniform(10, 24)))
    pixel, smoothness = round(width / side, 6), float(rng.uniform(0.2, 0.9))
    x, y, _ = phantom.offset
    low, high = phantom.lesion_bounds.min[2], phantom.lesion_bounds.max[2]
    spare = spacing * (count - 1) - (high - low) - 2 * COVERED_AROUND_LESION_MM
    place = float(rng.uniform(0.2, 0.8))
    scans = {}
    for index, phase in enumerate(PHASES):
        # The table stops within half a slice of the same place, so the phases' slices do not coincide.
        lowest = low - COVERED_AROUND_LESION_MM - max(spare, 0) * place + float(rng.uniform(-0.5, 0)) * spacing
        half = pixel * (side - 1) / 2
        scans[phase] = Scan(
            phase=phase,
            origin=(round(x - half, 3), round(y - half, 3), round(lowest, 3)),
            pixel_spacing=(pixel, pixel),
            slice_spacing=spacing,
            thickness=thickness,
            shape=(count, side, side),
            noise_hu=phantom.noise_hu,
            smoothness=smoothness,
            entropy=(*phantom.entropy, 2 + index),
        )
    return scans


def lesion_voxels(phantom: Phantom, scan: Scan) -> LesionVoxels:
    """The lesion's mask on a scan's grid (the one of `BOX_PHASE`, where it has its place) and the box around it."""
    bounds, axes = phantom.lesion_bounds, scan.centres(scan.all_voxels)
    loose = [_indices_within(axes[i].ravel(), bounds.min[i], bounds.max[i]) for i in (2, 1, 0)]
    mask = phantom.in_lesion(*scan.centres(VoxelWindow(*loose)))
    tight = [_indices_hit(np.asarray(mask.any(axis=tuple({0, 1, 2} - {axis})))) for axis in range(3)]
    window = VoxelWindow(*(slice(a.start + b.start, a.start + b.stop) for a, b in zip(loose, tight, strict=True)))
    return LesionVoxels(mask[tuple(tight)].astype(np.uint8), window, _faces(scan, window))


def _slice_plan(lesion_mm: float, slices: int | None, rng: Rng) -> tuple[float, float, int]:
    """(thickness, spacing, number of slices) that cover the lesion generously."""
    needed = lesion_mm + 2 * COVERED_AROUND_LESION_MM
    thickness, overlap = float(rng.choice(_THICKNESSES_MM)), float(rng.choice((1.0, 1.0, 0.8)))
    coverage = max(float(rng.uniform(110, 170)), needed)
    if slices is not None:
        spacing = math.ceil(max(coverage, 220) / slices * 20) / 20
        return spacing, spacing, slices
    spacing = round(thickness * overlap, 3)
    # One more slice than gaps, and one because the table may stop half a slice early.
    fewest, wanted = math.ceil(needed / spacing) + 2, math.ceil(coverage / spacing) + 2
    return thickness, spacing, max(fewest, min(wanted, _MOST_SLICES))


def _matrix(slices: int, rng: Rng) -> int:
    allowed = [side for side in _MATRICES if len(PHASES) * slices * side**2 * 2 <= _STUDY_BYTES]
    return int(rng.choice(allowed or _MATRICES[:1]))


def _indices_within(centres: NDArray[np.float64], low: float, high: float) -> slice:
    return slice(int(np.searchsorted(centres, low)), int(np.searchsorted(centres, high, side="right")))


def _indices_hit(hit: NDArray[np.bool_]) -> slice:
    found = np.flatnonzero(hit)
    return slice(int(found[0]), int(found[-1]) + 1)


def _faces(scan: Scan, window: VoxelWindow) -> Region:
    """The outer faces of a window's voxels, LPS mm."""
    (dy, dx), dz = scan.pixel_spacing, scan.slice_spacing
    sides = (
        (window.columns, scan.origin[0], dx),
        (window.rows, scan.origin[1], dy),
        (window.slices, scan.origin[2], dz),
    )
    low, high = (
        [round(origin + (getattr(part, end) - 0.5) * step, 4) for part, origin, step in sides]
        for end in ("start", "stop")
    )
    return Region((low[0], low[1], low[2]), (high[0], high[1], high[2]))
