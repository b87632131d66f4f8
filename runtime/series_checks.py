"""Do the slices of a series form one voxel grid? Each is compared with the others; none decides for them.

Missing slices of longer stacks are judged where the box is known: `box.check_coverage`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import TypeVar

import numpy as np

from fourphase.runtime.acquisitions import are_interleaved, position_count
from fourphase.runtime.errors import GeometryRefused
from fourphase.runtime.geometry import GAP_TOLERANCE_MM, GAP_TOLERANCE_RATIO, SeriesGeometry
from fourphase.runtime.slice_header import SliceHeader

__all__ = ["ORIENTATION_TOLERANCE", "checked_grid"]

#: PixelSpacing is written with few digits; a relative difference beyond this is another spacing.
SPACING_TOLERANCE = 1e-4
ORIENTATION_TOLERANCE = 1e-3
#: A slice origin may leave the straight line through all origins by this part of a pixel.
LATERAL_TOLERANCE_PIXELS = 0.5
#: Of the least-squares line's residual at a slice, what is left of a displacement there, at least.
SMALLEST_LEVER = 0.05
#: With fewer slices, no distance confirms the others.
FEWEST_SLICES = 3

Slices = tuple[SliceHeader, ...]
Value = TypeVar("Value", bound=Hashable)


def checked_grid(slices: Slices) -> SeriesGeometry:
    """The voxel grid of slices sorted along the normal.

    Raises:
        GeometryRefused: they do not form one.
    """
    geometry = _grid(slices)
    _check_uniform(slices)
    _check_few(geometry)
    _check_lateral(geometry)
    return geometry


def _grid(slices: Slices) -> SeriesGeometry:
    """The voxel grid with exact unit vectors; one slice written with other digits does not decide over the others.

    Raises:
        GeometryRefused: impossible orientation, spacing or position.
    """
    first = slices[0]
    orientation = np.array(_commonest(header.orientation for header in slices))
    spacing = _commonest(header.pixel_spacing for header in slices)
    row, column = orientation[:3], orientation[3:]
    positions = np.array([header.position for header in slices])
    raw = SeriesGeometry(row, column, positions, spacing, first.rows, first.columns)
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    return dataclasses.replace(raw, row_direction=row, column_direction=column / np.linalg.norm(column))


def _check_uniform(slices: Slices) -> None:
    """Raises: GeometryRefused if the slices differ in size, spacing, orientation or frame, or share a position."""
    spacing = np.array([header.pixel_spacing for header in slices])
    orientation = np.array([header.orientation for header in slices])
    usual_spacing = np.array(_commonest(header.pixel_spacing for header in slices))
    usual_orientation = np.array(_commonest(header.orientation for header in slices))
    mixed = {
        "size": len({(header.rows, header.columns) for header in slices}) > 1,
        "pixel_spacing": bool((np.abs(spacing - usual_spacing) > SPACING_TOLERANCE * np.abs(usual_spacing)).any()),
        "orientation": bool((np.abs(orientation - usual_orientation) > ORIENTATION_TOLERANCE).any()),
        "frame_of_reference": len({header.tags.frame_of_reference_uid for header in slices}) > 1,
    }
    for what, differs in mixed.items():
        if differs:
            raise GeometryRefused(
                f"its slices differ in {what.replace('_', ' ')}",
                "export the series again from the archive, or leave it out with --phase",
                key=f"mixed_{what}",
            )
    if position_count(slices) != len(slices):
        raise GeometryRefused(
            "several different slices lie at the same position, and neither AcquisitionNumber nor AcquisitionTime "
            "tells them apart",
            "send each acquisition as a series of its own, or leave this one out with --phase",
            key="slices_overlap",
        )
    if are_interleaved(slices):
        raise GeometryRefused(
            "slices of several acquisitions lie between each other",
            "send each acquisition as a series of its own, or leave this one out with --phase",
            key="acquisitions_interleaved",
        )


def _commonest(values: Iterable[Value]) -> Value:
    """Of several as common the first."""
    return Counter(values).most_common(1)[0][0]


def _check_few(geometry: SeriesGeometry) -> None:
    """Raises: GeometryRefused if there are so few slices that a wrong position of one could not be told."""
    steps = np.diff(geometry.depths)
    if len(steps) >= FEWEST_SLICES:
        return
    if geometry.slices < FEWEST_SLICES:
        raise GeometryRefused(
            f"it has {geometry.slices} slices, too few to confirm their distance",
            "send the complete series, or leave this one out with --phase",
            key="too_few_slices",
        )
    if np.ptp(steps) > max(GAP_TOLERANCE_MM, GAP_TOLERANCE_RATIO * float(steps.min())):
        raise GeometryRefused(
            f"the distances of its {geometry.slices} slices differ by {np.ptp(steps):.2f} mm",
            "send the complete series",
            key="slices_missing",
        )


def _check_lateral(geometry: SeriesGeometry) -> None:
    """Raises: GeometryRefused if a slice is displaced sideways.

    Each slice is compared with the line through all the others: the one through all would follow a displaced end.
    """
    origins, depths = geometry.in_plane_origins, geometry.depths
    line = np.polynomial.polynomial.polyfit(depths, origins, 1)
    centred = depths - depths.mean()
    lever = 1 - 1 / len(depths) - centred**2 / (centred @ centred)
    residuals = origins - np.polynomial.polynomial.polyval(depths, line).T
    off = np.abs(residuals / np.maximum(lever, SMALLEST_LEVER)[:, None]).max(axis=0)
    dy, dx = geometry.pixel_spacing
    if (off > LATERAL_TOLERANCE_PIXELS * np.array([dx, dy])).any():
        raise GeometryRefused(
            f"a slice lies {off.max():.1f} mm beside the line of the others",
            "export the series again from the archive; the position of a slice cannot be trusted",
            key="slice_displaced",
        )
