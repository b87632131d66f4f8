"""A DICOM structure set (RTSTRUCT) -> the extent of one of its ROIs.

Contours are planes in patient space: only their points and the distance of the planes are used, no image is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.dicom_drawing import (
    LARGEST_GAP_MM,
    LARGEST_MM,
    BoxObject,
    Candidate,
    Drawing,
    Item,
    choose,
    drawing_of,
    over_limits,
    refused,
)
from fourphase.runtime.elements import Wanted
from fourphase.runtime.errors import Notice
from fourphase.runtime.geometry import Region

__all__ = ["RTSTRUCT", "read_rtstruct"]

Float = NDArray[np.float64]

RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"

MOST_POINTS = 2_000_000

#: Contour points are written with few digits; points of one plane differ by no more than this along its normal.
PLANE_TOLERANCE_MM = 0.1

SERIES_UID, FRAME_OF_REFERENCE = 0x0020000E, 0x00200052
REFERENCED_FRAMES, RT_STUDIES, RT_SERIES = 0x30060010, 0x30060012, 0x30060014
ROIS, ROI_NUMBER, ROI_FRAME, ROI_NAME = 0x30060020, 0x30060022, 0x30060024, 0x30060026
ROI_CONTOURS, CONTOURS, CONTOUR_TYPE, SLAB_THICKNESS = 0x30060039, 0x30060040, 0x30060042, 0x30060044
OFFSET_VECTOR, POINT_COUNT, CONTOUR_DATA = 0x30060045, 0x30060046, 0x30060050
OBSERVATIONS, REFERENCED_ROI, INTERPRETED_TYPE = 0x30060080, 0x30060084, 0x300600A4

#: PS3.3 C.8.8.6: an XOR contour takes away from others or adds to them; the hull of all holds the ROI either way.
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
NOT_CLOSED = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")
#: PS3.3 C.8.8.8.1; what is none of them may be free text, so it is not shown.
ROI_TYPES = (
    *("EXTERNAL", "PTV", "CTV", "GTV", "TREATED_VOLUME", "IRRAD_VOLUME", "BOLUS", "AVOIDANCE", "ORGAN", "MARKER"),
    *("REGISTRATION", "ISOCENTER", "CONTRAST_AGENT", "CAVITY", "SUPPORT", "FIXATION", "CONTROL", "DOSE_REGION"),
)

#: The elements that are needed here, and those of its sequences.
WANTED: Wanted = {
    REFERENCED_FRAMES: {FRAME_OF_REFERENCE: None, RT_STUDIES: {RT_SERIES: {SERIES_UID: None}}},
    ROIS: {ROI_NUMBER: None, ROI_FRAME: None, ROI_NAME: None},
    ROI_CONTOURS: {
        REFERENCED_ROI: None,
        CONTOURS: dict.fromkeys((CONTOUR_TYPE, SLAB_THICKNESS, OFFSET_VECTOR, POINT_COUNT, CONTOUR_DATA)),
    },
    OBSERVATIONS: {REFERENCED_ROI: None, INTERPRETED_TYPE: None},
}


def read_rtstruct(found: BoxObject, label: int | None, roi: str | None) -> Drawing:
    """The box of one ROI: its contours, grown by half their distance along the planes' normal.

    The distance is the (lower) median of the gaps between planes. A ROI of one plane has none: its Contour Slab
    Thickness (3006,0044) is taken and said, and without one it is refused.

    Args:
        label: ROINumber. roi: ROIName. Both None when there is only one ROI.

    Raises:
        SkippedFile: the file is damaged. BoxInvalid: anything else that is wrong with it.
    """
    root = found.root(WANTED)
    kinds = {one.header.integer(REFERENCED_ROI): one.header.text(INTERPRETED_TYPE) for one in root.items(OBSERVATIONS)}
    rois = [(item.header.integer(ROI_NUMBER), item.header) for item in root.items(ROIS)]
    candidates = [
        Candidate(number, header.free_text(ROI_NAME), _shown(kinds.get(number, "")))
        for number, header in rois
        if number is not None
    ]
    chosen = choose(candidates, label, roi, "ROI")
    contours = [
        contour
        for item in root.items(ROI_CONTOURS)
        if item.header.integer(REFERENCED_ROI) == chosen.number
        for contour in item.items(CONTOURS)
    ]
    slabs = {contour.header.decimal(SLAB_THICKNESS) for contour in contours}
    region, warnings = _extent(_points(contours), slabs.pop() if len(slabs) == 1 else None)
    frame, series = _references(root, next(header.uid(ROI_FRAME) for number, header in rois if number == chosen.number))
    return drawing_of(root, region, frame, series, warnings)


def _shown(kind: str) -> str:
    return kind if kind in ROI_TYPES else "no standard type"


def _references(root: Item, frame: str) -> tuple[str, set[str]]:
    """The frame of reference (that of the ROI; if it names none, the only one there is) and the series drawn on."""
    references = root.items(REFERENCED_FRAMES)
    named = {item.header.uid(FRAME_OF_REFERENCE) for item in references} - {""}
    frame = frame or (named.pop() if len(named) == 1 else "")
    series = {
        series.header.uid(SERIES_UID)
        for item in references
        if item.header.uid(FRAME_OF_REFERENCE) in ("", frame)
        for study in item.items(RT_STUDIES)
        for series in study.items(RT_SERIES)
    }
    return frame, series


def _points(contours: Sequence[Item]) -> list[Float]:
    """The points of every contour, float64 (points, 3), LPS mm."""
    found: list[Float] = []
    total = 0
    for contour in contours:
        kind = contour.header.text(CONTOUR_TYPE).upper()
        if kind not in CLOSED:
            shown = kind if kind in NOT_CLOSED else "unknown"
            raise refused(f"has contours of type {shown}", "contour_type", "draw the lesion as closed contours")
        if any(contour.header.floats(OFFSET_VECTOR, 3) or ()):
            raise refused("has contours with an offset", "contour_type", "export the contours in patient space")
        points = _numbers(contour.header.values.get(CONTOUR_DATA, b""), contour.header.integer(POINT_COUNT))
        found += [points] if len(points) else []
        total += len(points)
        if total > MOST_POINTS:
            raise over_limits()
    if not found:
        raise refused("has no contours", "mask_empty", "draw the lesion and save it again")
    return found


def _numbers(text: bytes, claimed: int | None) -> Float:
    """Points from decimal strings; NaN and Infinity are none."""
    if text.count(b"\\") > 3 * MOST_POINTS:
        raise over_limits()
    if re.fullmatch(rb"[-+.0-9eE\\ \0]*", text) is None:
        _refuse_points()
    try:
        numbers = np.array([float(part) for part in text.strip(b" \0").split(b"\\")] if text else [], dtype=np.float64)
    except ValueError:
        _refuse_points()
    if len(numbers) % 3 or claimed not in (None, len(numbers) // 3) or (np.abs(numbers) > LARGEST_MM).any():
        _refuse_points()
    return numbers.reshape(-1, 3)


def _refuse_points() -> NoReturn:
    raise refused("has contour points that are no coordinates", "contour_points", "export the contours again")


def _extent(contours: Sequence[Float], slab_mm: float | None) -> tuple[Region, tuple[Notice, ...]]:
    largest = max((_area(points) for points in contours), key=lambda area: float(np.linalg.norm(area)))
    if np.linalg.norm(largest) < 1e-6:
        raise refused("has contours that enclose nothing", "mask_empty", "draw the lesion and save it again")
    normal = largest / np.linalg.norm(largest)
    depths = [points @ normal for points in contours]
    if max(float(np.ptp(depth)) for depth in depths) > PLANE_TOLERANCE_MM:
        raise refused("has contours that are not parallel planes", "contour_planes", "draw it on parallel slices")
    planes = np.sort([depth.mean() for depth in depths])
    gaps = np.diff(planes)
    distance, warnings = _plane_distance(gaps[gaps > PLANE_TOLERANCE_MM], slab_mm)
    points, half = np.concatenate(contours), np.abs(normal) * distance / 2
    return Region.of(points.min(axis=0) - half, points.max(axis=0) + half), warnings


def _area(points: Float) -> Float:
    """Twice the polygon's area, along its normal (Newell's method)."""
    spokes = points - points[0]
    return np.asarray(np.cross(spokes, np.roll(spokes, -1, axis=0)).sum(axis=0))


def _plane_distance(gaps: Float, slab_mm: float | None) -> tuple[float, tuple[Notice, ...]]:
    if len(gaps):
        distance = float(np.quantile(gaps, 0.5, method="lower"))
        if distance > LARGEST_GAP_MM:
            what = f"has contours {distance:.0f} mm apart, which is no distance of slices"
            raise refused(what, "contour_planes", "draw the lesion on every slice that shows it")
        return distance, ()
    if slab_mm is None or not 0 < slab_mm <= LARGEST_GAP_MM:
        hint = "draw it on the neighbouring slices too, or give the box as JSON"
        raise refused("has contours on one plane only, so that its thickness is unknown", "contour_planes", hint)
    message = f"the lesion has contours on one plane only; its thickness is what the file says, {slab_mm:g} mm"
    return slab_mm, (Notice("box_thickness_claimed", message),)
