"""Where the voxels of a series are: patient space (LPS, mm), from ImagePositionPatient and ImageOrientationPatient.

Nothing here reads files, InstanceNumber, SliceThickness or SpacingBetweenSlices (DICOM PS3.3 C.7.6.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.errors import GeometryRefused

__all__ = ["Region", "SeriesGeometry", "slice_gaps"]

Float = NDArray[np.float64]

#: A slice may sit this far from its regular place before a gap counts as irregular: the larger of 0.1 mm and 2 %.
GAP_TOLERANCE_MM = 0.1
GAP_TOLERANCE_RATIO = 0.02
#: Below this no voxel of a body CT moves by a visible amount, so the per-axis (separable) path is exact.
AXIS_ALIGNED_TOLERANCE = 1e-6
DRIFT_TOLERANCE_MM = 1e-3


@dataclass(frozen=True)
class Region:
    """An axis-aligned box in patient space: `min` and `max` are (x, y, z) in LPS mm."""

    min: tuple[float, float, float]
    max: tuple[float, float, float]

    @classmethod
    def of(cls, low: Float, high: Float) -> Region:
        """From two float64 (3,) corners."""
        return cls((float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2])))

    def grown(self, margin_mm: float) -> Region:
        """The region with `margin_mm` added on every side."""
        x, y, z = self.min
        u, v, w = self.max
        return Region((x - margin_mm, y - margin_mm, z - margin_mm), (u + margin_mm, v + margin_mm, w + margin_mm))

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        return (self.max[0] - self.min[0], self.max[1] - self.min[1], self.max[2] - self.min[2])

    def corners(self) -> Float:
        """The eight corners, float64 (8, 3)."""
        low, high = np.array(self.min), np.array(self.max)
        choice = np.array([[i >> axis & 1 for axis in range(3)] for i in range(8)], dtype=bool)
        return np.where(choice, high, low)


@dataclass(frozen=True, eq=False)
class SeriesGeometry:
    """The voxel grid of one series, slices sorted along the normal.

    Attributes:
        row_direction: unit vector of increasing column index, ImageOrientationPatient[0:3], float64 (3,).
        column_direction: unit vector of increasing row index, ImageOrientationPatient[3:6], float64 (3,).
        positions: centre of the first voxel of every slice, ascending along `normal`, float64 (slices, 3), mm.
        pixel_spacing: (dy, dx) in mm: distance between rows, distance between columns (PixelSpacing, 0028,0030).
        rows, columns: voxels of a slice.
    """

    row_direction: Float
    column_direction: Float
    positions: Float
    pixel_spacing: tuple[float, float]
    rows: int
    columns: int

    def __post_init__(self) -> None:
        """Raises: GeometryRefused if the directions are not two orthogonal unit vectors or a length is not positive."""
        directions = np.stack([self.row_direction, self.column_direction])
        gram = directions @ directions.T
        if not np.isfinite(gram).all() or np.abs(gram - np.eye(2)).max() > 1e-3:
            raise GeometryRefused(
                "ImageOrientationPatient is not a pair of orthogonal unit vectors",
                "export the series again from the archive; its orientation cannot be trusted",
                key="orientation_invalid",
            )
        if not (min(self.pixel_spacing) > 0 and np.isfinite(self.pixel_spacing).all()):
            raise GeometryRefused(
                "PixelSpacing is missing, zero or not finite",
                "export the series again from the archive; its voxel size is unknown",
                key="pixel_spacing_invalid",
            )
        if not np.isfinite(self.positions).all():
            raise GeometryRefused(
                "ImagePositionPatient is not finite", "export the series again from the archive", key="position_invalid"
            )

    @property
    def slices(self) -> int:
        return len(self.positions)

    @property
    def normal(self) -> Float:
        return np.asarray(np.cross(self.row_direction, self.column_direction), dtype=np.float64)

    @property
    def depths(self) -> Float:
        """Position of every slice along the normal, ascending, float64 (slices,), mm."""
        return self.positions @ self.normal

    @property
    def slice_spacing(self) -> float:
        """Median distance between neighbouring slices, mm."""
        return float(np.median(np.diff(self.depths)))

    @property
    def tilt_degrees(self) -> float:
        """Angle between the line through the slice origins and the normal (gantry tilt, or a sheared stack)."""
        line = self.positions[-1] - self.positions[0]
        length = float(np.linalg.norm(line))
        if length == 0:
            return 0.0
        cosine = abs(float(line @ self.normal)) / length
        sine = float(np.linalg.norm(np.cross(line, self.normal))) / length
        return float(np.degrees(np.arctan2(sine, cosine)))

    @property
    def in_plane_origins(self) -> Float:
        """Slice origins along (row_direction, column_direction), float64 (slices, 2), mm; constant without tilt."""
        return np.stack([self.positions @ self.row_direction, self.positions @ self.column_direction], axis=1)

    @property
    def is_axis_aligned(self) -> bool:
        """True if every voxel axis runs along a patient axis, so that resampling separates into per-axis matrices."""
        axes = np.stack([self.row_direction, self.column_direction, self.normal])
        aligned = bool(np.abs(np.abs(axes) - np.round(np.abs(axes))).max() <= AXIS_ALIGNED_TOLERANCE)
        return aligned and float(np.ptp(self.in_plane_origins, axis=0).max()) <= DRIFT_TOLERANCE_MM

    def index_of(self, points: Float) -> Float:
        """Continuous (slice, row, column) index of points (..., 3) in LPS mm, extrapolated beyond the outer slices.

        With tilt, row and column are taken on the plane that holds the point, its origin interpolated between slices.
        """
        depths, spacing = self.depths, self.slice_spacing
        depth = points @ self.normal
        index = np.interp(depth, depths, np.arange(self.slices, dtype=np.float64))
        index = np.where(depth < depths[0], (depth - depths[0]) / spacing, index)
        index = np.where(depth > depths[-1], self.slices - 1 + (depth - depths[-1]) / spacing, index)
        origins = self.in_plane_origins
        along_row = np.interp(depth, depths, origins[:, 0])
        along_column = np.interp(depth, depths, origins[:, 1])
        dy, dx = self.pixel_spacing
        column = (points @ self.row_direction - along_row) / dx
        row = (points @ self.column_direction - along_column) / dy
        return np.stack([index, row, column], axis=-1)

    def bounds(self) -> Region:
        """The smallest axis-aligned region that holds every voxel, half a voxel beyond the outermost centres."""
        dy, dx = self.pixel_spacing
        half = self.slice_spacing / 2
        ends = np.stack([self.positions[0] - half * self.normal, self.positions[-1] + half * self.normal])
        rows = np.array([-0.5, self.rows - 0.5])[:, None] * dy * self.column_direction
        columns = np.array([-0.5, self.columns - 0.5])[:, None] * dx * self.row_direction
        corners = (ends[:, None, None] + rows[None, :, None] + columns[None, None, :]).reshape(-1, 3)
        return Region.of(corners.min(axis=0), corners.max(axis=0))


def slice_gaps(depths: Float) -> list[tuple[float, float]]:
    """The (from, to) depths in mm between neighbouring slices whose distance is not the median distance.

    Args:
        depths: ascending positions along the normal, float64 (slices,), mm.

    Tolerance: the larger of 0.1 mm and 2 % of the median.
    """
    steps = np.diff(depths)
    median = float(np.median(steps))
    allowed = max(GAP_TOLERANCE_MM, GAP_TOLERANCE_RATIO * median)
    return [(float(depths[i]), float(depths[i + 1])) for i in np.flatnonzero(np.abs(steps - median) > allowed)]
