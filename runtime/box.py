"""The lesion box against the study: same patient, study and frame of reference, within the scanned volume, no slice
missing around it.

The region is in patient space (LPS, mm) and without margin. Breathing shifts: `breathing`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fourphase.runtime.box_file import ROUNDING_MM, SMALLEST_MM, LesionBox, box_invalid, hull, read_box
from fourphase.runtime.errors import GeometryRefused, MixedStudies, Notice
from fourphase.runtime.geometry import Region, SeriesGeometry, slice_gaps
from fourphase.runtime.phase_tokens import CLASSES
from fourphase.runtime.series import Series

__all__ = ["FittedBox", "LesionBox", "check_coverage", "fit_box", "read_box"]

#: Two volumes whose faces differ by less are the same volume, mirrored or not.
SAME_BOUNDS_MM = 3.0
SAME_DIRECTION = 1e-3
#: Boxes are written with few digits: a face this close to the volume's is not beyond it.
FACE_TOLERANCE_MM = 0.01


@dataclass(frozen=True)
class FittedBox:
    """A lesion box within the scanned volume, without margin.

    Attributes:
        region: LPS mm; with boxes per phase, the region that holds them all.
        by_phase: phase -> the region to sample, the same for all phases unless the box came per phase.
        clipped_mm: along x, y, z, how much of the box lay outside the volume (the worst phase).
        source: "json", "nifti", "dicom-seg" or "rtstruct".
        warnings: what the user should know.
        drawn_on: the phases whose series the DICOM object says it was drawn on.
    """

    region: Region
    by_phase: Mapping[str, Region]
    clipped_mm: tuple[float, float, float]
    source: str
    warnings: tuple[Notice, ...]
    drawn_on: tuple[str, ...] = ()


def fit_box(box: LesionBox, series_by_phase: Mapping[str, Series]) -> FittedBox:
    """Clips the box to the volume that the phases share.

    Raises:
        BoxInvalid: outside the volume, drawn on other images, mirrored, or without a box for a phase.
        GeometryRefused: one box for phases that are not in one frame of reference.
        MixedStudies: drawn on another patient or in another study.
    """
    _check_identity(box, series_by_phase)
    drawn_on = tuple(phase for phase, series in series_by_phase.items() if series.uid and series.uid in box.series_uids)
    warnings = [*box.warnings, *_drawing_notices(box, drawn_on)]
    warnings += _check_phase_boxes(box, series_by_phase) if box.by_phase else _check_frames(box, series_by_phase)
    if box.volume is not None:
        _check_not_mirrored(box.volume, [series.geometry.bounds() for series in series_by_phase.values()])
    given = {phase: _region_of_phase(box, phase) for phase in series_by_phase}
    fitted = {phase: _clipped(given[phase], phase, series.geometry) for phase, series in series_by_phase.items()}
    if not box.by_phase:
        shared = _shared(list(fitted.values()))
        fitted = dict.fromkeys(fitted, shared)
    cut = np.max([np.subtract(given[phase].extent_mm, fitted[phase].extent_mm) for phase in given], axis=0)
    clipped = (round(float(cut[0]), 3), round(float(cut[1]), 3), round(float(cut[2]), 3))
    if max(clipped) > 0:
        message = "the lesion box reaches beyond the scanned volume by {:.1f}, {:.1f}, {:.1f} mm (x, y, z)"
        warnings.append(Notice("box_clipped", message.format(*clipped)))
    return FittedBox(hull(fitted), fitted, clipped, box.source, tuple(warnings), drawn_on)


def _check_phase_boxes(box: LesionBox, series_by_phase: Mapping[str, Series]) -> list[Notice]:
    """Boxes per phase need no common frame of reference; but what they name must be this study's.

    Raises: BoxInvalid.
    """
    if set(box.by_phase) - {*CLASSES, *series_by_phase}:
        known = ", ".join(series_by_phase)
        raise box_invalid('has "phases" of another name', "box_phase_unknown", f"the model's phases are {known}")
    frames = {series.frame_of_reference_uid for series in series_by_phase.values()}
    if box.frame_of_reference_uid and frames - {"", box.frame_of_reference_uid}:
        raise box_invalid("was drawn in another frame of reference", "box_frame_of_reference", "give this study's box")
    return []


def _check_identity(box: LesionBox, series_by_phase: Mapping[str, Series]) -> None:
    """Empty identifiers (anonymised data) contradict nothing. Never says which patient."""
    tags = [series.tags for series in series_by_phase.values()]
    pairs = (
        ("patient", box.patient, {tag.patient for tag in tags}),
        ("study", box.study_uid, {tag.study_uid for tag in tags}),
    )
    for what, given, scanned in pairs:
        if given and scanned - {"", given}:
            raise MixedStudies(
                f"the lesion box was drawn on another {what}",
                "give the lesion that was drawn on this study",
                key=f"box_of_another_{what}",
            )


def _drawing_notices(box: LesionBox, drawn_on: Sequence[str]) -> list[Notice]:
    """What a DICOM object leaves open about the images it was drawn on."""
    if box.source not in ("dicom-seg", "rtstruct") or drawn_on:
        return []
    notices = []
    if box.series_uids:
        message = "the lesion was drawn on a series that is none of the phases"
        notices.append(Notice("box_drawn_elsewhere", message))
    if not box.frame_of_reference_uid:
        message = "the lesion names no frame of reference and no phase; its coordinates were taken as the study's"
        notices.append(Notice("box_frame_of_reference_missing", message))
    return notices


def _region_of_phase(box: LesionBox, phase: str) -> Region:
    if not box.by_phase:
        return box.region
    if phase not in box.by_phase:
        raise box_invalid(
            f"has no box for phase {phase}", "box_phase_missing", "give one box per phase, or one for all"
        )
    return box.by_phase[phase]


def _clipped(region: Region, phase: str, geometry: SeriesGeometry) -> Region:
    """The part of the region within the series' volume."""
    bounds = geometry.bounds()
    low, high = np.array(region.min), np.array(region.max)
    low = np.where(low < np.array(bounds.min) - FACE_TOLERANCE_MM, bounds.min, low)
    high = np.where(high > np.array(bounds.max) + FACE_TOLERANCE_MM, bounds.max, high)
    outside = (high - low < SMALLEST_MM - ROUNDING_MM).any()
    if not outside and not geometry.is_axis_aligned:
        centre = geometry.index_of((low + high) / 2)
        size = np.array([geometry.slices, geometry.rows, geometry.columns])
        outside = ((centre < -0.5) | (centre > size - 0.5)).any()
    if outside:
        raise box_invalid(
            f"lies outside the volume scanned in phase {phase}",
            "box_outside",
            "check that it is in LPS mm and belongs to this study",
        )
    return Region.of(low, high)


def _shared(regions: Sequence[Region]) -> Region:
    low = np.max([region.min for region in regions], axis=0)
    high = np.min([region.max for region in regions], axis=0)
    if (high - low < SMALLEST_MM - ROUNDING_MM).any():
        raise box_invalid("lies outside the volume that the phases share", "box_outside", "give one box per phase")
    return Region.of(low, high)


def _check_frames(box: LesionBox, series_by_phase: Mapping[str, Series]) -> list[Notice]:
    """One box serves all phases only in one frame of reference (0020,0052)."""
    frames = {series.frame_of_reference_uid for series in series_by_phase.values()}
    if len(frames - {""}) > 1:
        raise GeometryRefused(
            "the phases have different frames of reference, so one lesion box cannot serve them all",
            'give one box per phase ("phases" in the box JSON)',
            key="frame_of_reference_differs",
        )
    if box.frame_of_reference_uid and frames - {"", box.frame_of_reference_uid}:
        raise box_invalid("was drawn in another frame of reference", "box_frame_of_reference", "give this study's box")
    if "" not in frames:
        return []
    if not _geometry_agrees([series.geometry for series in series_by_phase.values()]):
        raise GeometryRefused(
            "the phases have no frame of reference and different volumes, so one lesion box cannot serve them all",
            'give one box per phase ("phases" in the box JSON)',
            key="frame_of_reference_missing",
        )
    message = "the series have no frame of reference; the phases were matched because their volumes agree"
    return [Notice("frame_of_reference_missing", message)]


def _geometry_agrees(geometries: Sequence[SeriesGeometry]) -> bool:
    """Same orientation, same faces across x and y, and mostly the same extent along z."""
    first, bounds = geometries[0], [geometry.bounds() for geometry in geometries]
    directions = [np.concatenate([geometry.row_direction, geometry.column_direction]) for geometry in geometries]
    if max(float(np.abs(direction - directions[0]).max()) for direction in directions) > SAME_DIRECTION:
        return False
    faces = np.array([[*one.min[:2], *one.max[:2]] for one in bounds])
    shared = min(one.max[2] for one in bounds) - max(one.min[2] for one in bounds)
    return bool(np.ptp(faces, axis=0).max() <= SAME_BOUNDS_MM) and shared >= first.bounds().extent_mm[2] / 2


def _check_not_mirrored(volume: Region, scanned: Sequence[Region]) -> None:
    """Raises: BoxInvalid if the mask's grid is a series' grid with x, y or z negated: RAS and LPS were confused."""
    grids = [np.array([region.min, region.max]) for region in scanned]
    mask = np.array([volume.min, volume.max])
    if any(np.abs(mask - grid).max() <= SAME_BOUNDS_MM for grid in grids):
        return
    for signs in itertools.product((1, -1), repeat=3):
        for grid in grids:
            mirrored = np.sort(grid * signs, axis=0)
            if np.abs(mask - mirrored).max() <= SAME_BOUNDS_MM:
                hint = "save the mask again with the orientation of the images (NIfTI is RAS, DICOM is LPS)"
                raise box_invalid("is a mask on a mirrored grid", "mask_mirrored", hint)


def _beyond(geometry: SeriesGeometry, region: Region) -> float:
    """How far a region reaches beyond the outer faces of the voxels, mm along the series' own axes; negative within.

    Not against `bounds`: of a turned volume they hold much that was not scanned.
    """
    index = geometry.index_of(region.corners())
    last = np.array([geometry.slices, geometry.rows, geometry.columns]) - 0.5
    outside = np.maximum(-0.5 - index, index - last) * [geometry.slice_spacing, *geometry.pixel_spacing]
    return float(outside.max())


def check_coverage(series: Series, region: Region) -> tuple[Notice, ...]:
    """Checks that no slice is missing where the region (lesion box with margin) needs it.

    Raises:
        GeometryRefused: the distance of two slices is irregular within the region.
    """
    geometry = series.geometry
    depths = region.corners() @ geometry.normal
    gaps = slice_gaps(geometry.depths)
    for below, above in gaps:
        if above > depths.min() and below < depths.max():
            raise GeometryRefused(
                f"{series.name} misses slices within the lesion box and its margin: "
                f"two neighbours are {above - below:.2f} mm apart instead of {geometry.slice_spacing:.2f} mm",
                "send the complete series",
                key="slices_missing",
            )
    notices = []
    if gaps:
        message = f"{series.name} has {len(gaps)} irregular slice distances, all outside the lesion box and its margin"
        notices.append(Notice("slices_missing_elsewhere", message))
    beyond = _beyond(geometry, region)
    if beyond > FACE_TOLERANCE_MM:
        message = f"the margin reaches {beyond:.1f} mm beyond the scanned volume; background is taken there"
        notices.append(Notice("margin_outside_volume", message))
    return tuple(notices)
