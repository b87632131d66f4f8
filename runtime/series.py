"""Slices -> series: grouped, copies dropped, acquisitions separated, sorted along the normal, geometry checked.

A series with a fault keeps it: asking for its geometry raises. So a fault in a series that no phase needs stops
nothing, and no fault can be overlooked. Missing slices are judged where the box is known: `box.check_coverage`.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

from fourphase.runtime.acquisitions import (
    acquisitions,
    are_interleaved,
    position_count,
    sorted_slices,
    without_duplicates,
)
from fourphase.runtime.errors import GeometryRefused, Notice
from fourphase.runtime.geometry import SeriesGeometry
from fourphase.runtime.series_checks import ORIENTATION_TOLERANCE, checked_grid
from fourphase.runtime.slice_header import SeriesTags, SliceHeader

__all__ = ["Series", "scalings", "series_from_slices"]

TILT_TOLERANCE_DEGREES = 0.5
#: Every second slice of a contiguous scan lies two slice thicknesses from the next one.
FAR_APART_THICKNESSES = 1.9
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


def series_from_slices(
    headers: Iterable[SliceHeader],
    unusable: Iterable[SliceHeader] = (),
    unplaced: Collection[str] = (),
    *,
    losses: bool = False,
) -> tuple[tuple[Series, ...], int]:
    """Every series with at least two slice positions, and the number of slices left over (single images).

    Slices are grouped by SeriesInstanceUID, SeriesNumber and SeriesDescription; without UID also by folder and grid.

    Args:
        unusable: images that are no slices although they have a place; where one of them, or a single image, is the
            next slice of a series, the series is damaged at its end, where no gap tells.
        unplaced: SeriesInstanceUIDs of which an image has no place.
        losses: the study holds files that may be slices and cannot be read.
    """
    groups: dict[object, list[SliceHeader]] = defaultdict(list)
    for header in headers:
        groups[_group_key(header)].append(header)
    found = [series for group in groups.values() for series in _series_of_group(sorted_slices(group))]
    usable = [series for series in found if _is_stack(series)]
    single = [header for series in found if not _is_stack(series) for header in series.slices]
    beside = [*single, *unusable]
    return tuple(_with_losses(series, beside, unplaced, losses=losses) for series in usable), len(single)


def _is_stack(series: Series) -> bool:
    """True with several positions, or when an impossible orientation hides how many there are."""
    hidden = series.problem is not None and series.problem.key == "orientation_invalid"
    return len(series.slices) > 1 and (hidden or position_count(series.slices) > 1)


def _with_losses(series: Series, beside: list[SliceHeader], unplaced: Collection[str], *, losses: bool) -> Series:
    """The series, refused if a slice at one of its ends, or every second one, is known to be lost."""
    if series.problem is not None:
        return series
    if series.uid and series.uid in unplaced:
        what = "an image of it has no position"
    elif any(_goes_on(series, header) for header in beside):
        what = "the image next to its last slice is not usable, or is marked as of another series"
    elif losses and _far_apart(series.tags, series.grid):
        what = "its slices lie far apart, and files that may be slices between them are damaged"
    else:
        return series
    hint = "export the series again from the archive, or leave it out with --phase"
    fault = GeometryRefused(f"{series.name}: {what}", hint, key="slice_lost")
    return dataclasses.replace(series, grid=fault)


def _goes_on(series: Series, header: SliceHeader) -> bool:
    """True if the image is by its tags of the series, and by its place the slice before the first or after the last."""
    tags, geometry = header.tags, series.geometry
    named = (tags.number, tags.description) == (series.tags.number, series.tags.description)
    if not (named or (series.uid and tags.uid == series.uid)):
        return False
    if (header.rows, header.columns) != (geometry.rows, geometry.columns):
        return False
    directions = [geometry.row_direction, geometry.column_direction]
    if np.abs(np.concatenate(directions) - header.orientation).max() > ORIENTATION_TOLERANCE:
        return False
    position, step = np.array(header.position), geometry.slice_spacing
    depth = float(position @ geometry.normal)
    beyond = max(geometry.depths[0] - depth, depth - geometry.depths[-1])
    if not step / 2 < beyond < step * 3 / 2:
        return False
    end = int(depth > geometry.depths[-1])
    origins = geometry.in_plane_origins
    drift = (origins[-1] - origins[0]) / (geometry.slices - 1) * (1 if end else -1)
    sideways = np.stack(directions) @ position - origins[-end] - drift
    dy, dx = geometry.pixel_spacing
    return bool((np.abs(sideways) <= 2 * np.array([dx, dy])).all())


def _group_key(header: SliceHeader) -> object:
    tags = header.tags
    key = (tags.study_uid, tags.uid, tags.number, tags.description)
    if tags.uid:
        return key
    return (*key, header.folder, header.rows, header.columns, header.pixel_spacing, header.orientation)


def _series_of_group(slices: Slices) -> list[Series]:
    kept = slices if position_count(slices) == len(slices) else without_duplicates(slices)
    dropped = len(slices) - len(kept)
    notices: tuple[Notice, ...] = ()
    if dropped:
        notices = (Notice("duplicate_slices", f"{_name(kept[0].tags)}: exact copies of slices dropped: {dropped}"),)
    if position_count(kept) == len(kept) and not are_interleaved(kept):
        return [_series(kept, warnings=notices)]
    parts = acquisitions(kept)
    return [_series(part, number, notices) for number, part in enumerate(parts, 1)] or [_series(kept, warnings=notices)]


def _series(slices: Slices, part: int | None = None, warnings: tuple[Notice, ...] = ()) -> Series:
    tags = slices[0].tags
    name = _name(tags, part)
    try:
        grid: SeriesGeometry | GeometryRefused = checked_grid(slices)
    except GeometryRefused as fault:
        grid = GeometryRefused(f"{name}: {fault.message}", fault.hint, key=fault.key)
    return Series(tags, slices, grid, part, (*warnings, *_notices(name, slices, grid)))


def _name(tags: SeriesTags, part: int | None = None) -> str:
    number = "without number" if tags.number is None else str(tags.number)
    return f"series {number}" if part is None else f"series {number}, acquisition {part}"


def scalings(slices: Slices) -> set[tuple[float, float, int, bool]]:
    """The different ways in which stored bits become HU: slope, intercept, lowest bit, signedness."""
    return {
        (one.slope, one.intercept, one.pixels.high_bit - one.pixels.bits_stored, one.pixels.signed) for one in slices
    }


def _far_apart(tags: SeriesTags, grid: SeriesGeometry | GeometryRefused) -> bool:
    """True if so much lies between the slices that others are missing, evenly, or that it was never scanned.

    SliceThickness (0018,0050) is a hint here, never geometry.
    """
    thick = tags.thickness_mm or 0.0
    return isinstance(grid, SeriesGeometry) and 0 < thick * FAR_APART_THICKNESSES < grid.slice_spacing


def _notices(name: str, slices: Slices, grid: SeriesGeometry | GeometryRefused) -> list[Notice]:
    notices = []
    if isinstance(grid, SeriesGeometry) and grid.tilt_degrees > TILT_TOLERANCE_DEGREES:
        tilt = f"{name} is tilted by {grid.tilt_degrees:.1f} degrees; every slice is sampled where it was scanned"
        notices.append(Notice("gantry_tilt", tilt))
    if isinstance(grid, SeriesGeometry) and _far_apart(slices[0].tags, grid):
        distance = f"lie {grid.slice_spacing:.2f} mm apart"
        missing = f"{name}: slices {slices[0].tags.thickness_mm:g} mm thick {distance}; every second one may be missing"
        notices.append(Notice("slices_far_apart", missing))
    if len(scalings(slices)) > 1:
        scaling = f"{name}: the slices differ in rescale slope, intercept or pixel format; each is scaled with its own"
        notices.append(Notice("rescale_differs", scaling))
    if any(header.pixels.high_bit != header.pixels.bits_stored - 1 for header in slices):
        unusual = f"{name} has values that do not start at the lowest bit (HighBit is not BitsStored - 1)"
        notices.append(Notice("high_bit_unusual", unusual))
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
