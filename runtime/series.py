"""Slices -> series: grouped, copies dropped, acquisitions separated, sorted along the normal, geometry checked.

A series with a fault keeps it: asking for its geometry raises. So a fault in a series that no phase needs stops
nothing, and no fault can be overlooked. Missing slices are judged where the box is known: `box.check_coverage`.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from fourphase.runtime.acquisitions import acquisitions, position_count, sorted_slices, without_duplicates
from fourphase.runtime.errors import GeometryRefused, Notice
from fourphase.runtime.geometry import SeriesGeometry
from fourphase.runtime.headers import SeriesTags, SliceHeader

__all__ = ["Series", "series_from_slices"]

#: PixelSpacing is written with few digits; a relative difference beyond this is another spacing.
SPACING_TOLERANCE = 1e-4
ORIENTATION_TOLERANCE = 1e-3
#: A slice origin may leave the straight line through all origins by this part of a pixel.
LATERAL_TOLERANCE_PIXELS = 0.5
TILT_TOLERANCE_DEGREES = 0.5
#: Between air and the densest bone; padding has no business there.
TISSUE_HU = (-900.0, 3000.0)
#: JPEG lossy, JPEG-LS near-lossless, JPEG 2000 and HTJ2K that may be lossy are told by (0028,2110), not by their UID.
LOSSY_SYNTAXES = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81")

Slices = tuple[SliceHeader, ...]


@dataclass(frozen=True, eq=False)
class Series:
    """One acquisition or reconstruction: at least two slices, sorted along the normal.

    Attributes:
        tags: the header text its slices share.
        slices: ascending along the normal, one per position.
        grid: the voxel grid, or why there is none.
        part: None, or 1, 2, ... when one SeriesInstanceUID held several acquisitions.
        warnings: what a user of this series should know.
    """

    tags: SeriesTags
    slices: Slices = field(repr=False)
    grid: SeriesGeometry | GeometryRefused = field(repr=False)
    part: int | None = None
    warnings: tuple[Notice, ...] = ()

    @property
    def uid(self) -> str:
        return self.tags.uid

    @property
    def number(self) -> int | None:
        return self.tags.number

    @property
    def frame_of_reference_uid(self) -> str:
        """'' when absent."""
        return self.tags.frame_of_reference_uid

    @property
    def problem(self) -> GeometryRefused | None:
        return self.grid if isinstance(self.grid, GeometryRefused) else None

    @property
    def geometry(self) -> SeriesGeometry:
        """The voxel grid.

        Raises:
            GeometryRefused: the slices do not form one.
        """
        if isinstance(self.grid, GeometryRefused):
            raise self.grid
        return self.grid

    @property
    def name(self) -> str:
        """How messages call it: by number, never by description."""
        return _name(self.tags, self.part)

    @property
    def folder(self) -> str | None:
        """The one folder, relative to the study, that holds every slice; None if there are several. Never printed."""
        folders = {header.folder for header in self.slices}
        return folders.pop() if len(folders) == 1 else None


def series_from_slices(headers: Iterable[SliceHeader]) -> tuple[tuple[Series, ...], int]:
    """Every series with at least two slice positions, and the number of slices left over (single images).

    Slices are grouped by SeriesInstanceUID, SeriesNumber and SeriesDescription; without UID also by folder and grid.
    """
    groups: dict[object, list[SliceHeader]] = defaultdict(list)
    for header in headers:
        groups[_group_key(header)].append(header)
    found = [series for group in groups.values() for series in _series_of_group(sorted_slices(group))]
    usable = tuple(series for series in found if _is_stack(series))
    return usable, sum(len(series.slices) for series in found) - sum(len(series.slices) for series in usable)


def _is_stack(series: Series) -> bool:
    """True with several positions, or when an impossible orientation hides how many there are."""
    hidden = series.problem is not None and series.problem.key == "orientation_invalid"
    return len(series.slices) > 1 and (hidden or position_count(series.slices) > 1)


def _group_key(header: SliceHeader) -> object:
    tags = header.tags
    key = (tags.study_uid, tags.uid, tags.number, tags.description)
    if tags.uid:
        return key
    return (*key, header.folder, header.rows, header.columns, header.pixel_spacing, header.orientation)


def _series_of_group(slices: Slices) -> list[Series]:
    if position_count(slices) == len(slices):
        return [_series(slices)]
    kept = without_duplicates(slices)
    dropped = len(slices) - len(kept)
    notices: tuple[Notice, ...] = ()
    if dropped:
        notices = (Notice("duplicate_slices", f"{_name(kept[0].tags)}: exact copies of slices dropped: {dropped}"),)
    if position_count(kept) == len(kept):
        return [_series(kept, warnings=notices)]
    parts = acquisitions(kept)
    return [_series(part, number, notices) for number, part in enumerate(parts, 1)] or [_series(kept, warnings=notices)]


def _series(slices: Slices, part: int | None = None, warnings: tuple[Notice, ...] = ()) -> Series:
    tags = slices[0].tags
    name = _name(tags, part)
    try:
        geometry = _grid(slices)
        _check_uniform(slices)
        _check_lateral(geometry)
        grid: SeriesGeometry | GeometryRefused = geometry
    except GeometryRefused as fault:
        grid = GeometryRefused(f"{name}: {fault.message}", fault.hint, key=fault.key)
    return Series(tags, slices, grid, part, (*warnings, *_notices(name, slices, grid)))


def _name(tags: SeriesTags, part: int | None = None) -> str:
    number = "without number" if tags.number is None else str(tags.number)
    return f"series {number}" if part is None else f"series {number}, acquisition {part}"


def _check_uniform(slices: Slices) -> None:
    """Raises: GeometryRefused if the slices differ in size, spacing, orientation or frame, or share a position."""
    spacing = np.array([header.pixel_spacing for header in slices])
    orientation = np.array([header.orientation for header in slices])
    mixed = {
        "size": len({(header.rows, header.columns) for header in slices}) > 1,
        "pixel_spacing": bool((np.abs(spacing - spacing[0]) > SPACING_TOLERANCE * np.abs(spacing[0])).any()),
        "orientation": bool((np.abs(orientation - orientation[0]) > ORIENTATION_TOLERANCE).any()),
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


def _grid(slices: Slices) -> SeriesGeometry:
    """The voxel grid with exact unit vectors.

    Raises:
        GeometryRefused: impossible orientation, spacing or position.
    """
    first = slices[0]
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    positions = np.array([header.position for header in slices])
    raw = SeriesGeometry(row, column, positions, first.pixel_spacing, first.rows, first.columns)
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    return dataclasses.replace(raw, row_direction=row, column_direction=column / np.linalg.norm(column))


def _check_lateral(geometry: SeriesGeometry) -> None:
    """Raises: GeometryRefused if a slice is displaced sideways."""
    if geometry.slices < 3:
        return
    origins, depths = geometry.in_plane_origins, geometry.depths
    line = np.polynomial.polynomial.polyfit(depths, origins, 1)
    off = np.abs(origins - np.polynomial.polynomial.polyval(depths, line).T).max(axis=0)
    dy, dx = geometry.pixel_spacing
    if (off > LATERAL_TOLERANCE_PIXELS * np.array([dx, dy])).any():
        raise GeometryRefused(
            f"a slice lies {off.max():.1f} mm beside the line of the others",
            "export the series again from the archive; the position of a slice cannot be trusted",
            key="slice_displaced",
        )


def _notices(name: str, slices: Slices, grid: SeriesGeometry | GeometryRefused) -> list[Notice]:
    notices = []
    if isinstance(grid, SeriesGeometry) and grid.tilt_degrees > TILT_TOLERANCE_DEGREES:
        tilt = f"{name} is tilted by {grid.tilt_degrees:.1f} degrees; every slice is sampled where it was scanned"
        notices.append(Notice("gantry_tilt", tilt))
    if any(header.pixels.photometric == "MONOCHROME1" for header in slices):
        notices.append(Notice("monochrome1", f"{name} asks for inverted display (MONOCHROME1); HU are used as stored"))
    if any(_pads_tissue(header) for header in slices):
        padding = f"{name} declares values as padding that are tissue in HU; they are taken as background"
        notices.append(Notice("padding_in_tissue", padding))
    if any(header.pixels.lossy or header.pixels.transfer_syntax in LOSSY_SYNTAXES for header in slices):
        notices.append(Notice("lossy_compression", f"{name} was compressed with loss; its HU are not exact"))
    return notices


def _pads_tissue(header: SliceHeader) -> bool:
    """True if PixelPaddingValue and its range reach into the HU that bodies have."""
    if header.pixels.padding is None:
        return False
    ends = [value * header.slope + header.intercept for value in header.pixels.padding]
    return max(ends) > TISSUE_HU[0] and min(ends) < TISSUE_HU[1]
