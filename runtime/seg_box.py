"""A DICOM segmentation (SEG) -> the extent of one of its segments in patient space.

Geometry comes from each frame's position, orientation and pixel spacing only (PS3.3 C.7.6.16.2, C.8.20); the images it
was drawn on are not looked at. Frames are read one by one, so a segmentation of any claimed size costs no memory.
"""

from __future__ import annotations

import math
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
    Damaged,
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
from fourphase.runtime.seg_pixels import NATIVE, RLE, Frame, Layout, planes

__all__ = ["SEGMENTATIONS", "read_seg"]

Float = NDArray[np.float64]

#: Segmentation and Label Map Segmentation.
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
#: SegmentationType (0062,0001) -> BitsAllocated.
BITS = {"BINARY": (1,), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}

LARGEST_SIDE = 4096
MOST_FRAMES = 20_000
#: Voxels of the frames to be read: 512 x 512 x 4096.
LARGEST_MASK = 2**30
#: Frame positions are written with few digits: closer ones are the same, and slice distances agree within this.
SAME_POSITION_MM = 0.01
GAP_TOLERANCE_MM = 0.1
GAP_TOLERANCE_RATIO = 0.02
#: A distance of frames so much larger than SliceThickness may be that of every other slice.
WIDE_RATIO = 1.5
ORIENTATION_TOLERANCE = 1e-3

REFERENCED_SERIES, SERIES_UID, FRAME_OF_REFERENCE = 0x00081115, 0x0020000E, 0x00200052
FRAMES, ROWS, COLUMNS, SAMPLES = 0x00280008, 0x00280010, 0x00280011, 0x00280002
BITS_ALLOCATED, BITS_STORED, SIGNED = 0x00280100, 0x00280101, 0x00280103
SEGMENTATION_TYPE, SEGMENTS, SEGMENT_NUMBER, SEGMENT_LABEL = 0x00620001, 0x00620002, 0x00620004, 0x00620005
SEGMENT_TYPE_CODE, CODE_VALUE, CODE_SCHEME = 0x0062000F, 0x00080100, 0x00080102
SEGMENT_OF_FRAME, REFERENCED_SEGMENT, LARGEST_FRACTION = 0x0062000A, 0x0062000B, 0x0062000E
SHARED_GROUPS, FRAME_GROUPS = 0x52009229, 0x52009230
PLANE_POSITION, POSITION, PLANE_ORIENTATION, ORIENTATION = 0x00209113, 0x00200032, 0x00209116, 0x00200037
MEASURES, SPACING, THICKNESS = 0x00289110, 0x00280030, 0x00180050
TILED_COLUMNS, SLIDE_POSITION = 0x00480006, 0x0048021A

_GROUPS: Wanted = {
    PLANE_POSITION: {POSITION: None},
    PLANE_ORIENTATION: {ORIENTATION: None},
    MEASURES: {SPACING: None, THICKNESS: None},
    SEGMENT_OF_FRAME: {REFERENCED_SEGMENT: None},
    SLIDE_POSITION: {},
}
WANTED: Wanted = {
    **dict.fromkeys((FRAMES, ROWS, COLUMNS, SAMPLES, BITS_ALLOCATED, BITS_STORED, SIGNED, FRAME_OF_REFERENCE)),
    **dict.fromkeys((SEGMENTATION_TYPE, LARGEST_FRACTION, TILED_COLUMNS)),
    REFERENCED_SERIES: {SERIES_UID: None},
    SEGMENTS: {SEGMENT_NUMBER: None, SEGMENT_LABEL: None, SEGMENT_TYPE_CODE: {CODE_VALUE: None, CODE_SCHEME: None}},
    SHARED_GROUPS: _GROUPS,
    FRAME_GROUPS: _GROUPS,
}

_NOTHING = Item({}, True, b"")

#: A code that is a code: a patient's name does not look like one. Only these are shown.
_CODE = re.compile(r"(?:[A-Z]-|RID)?[0-9A-F]*\d[0-9A-F]*")
_SCHEMES = ("SCT", "SRT", "SNM3", "DCM", "FMA", "RADLEX")


def read_seg(found: BoxObject, label: int | None, roi: str | None) -> Drawing:
    """The box of one segment: its voxels, half a voxel beyond their centres.

    BINARY, FRACTIONAL and LABELMAP; of FRACTIONAL the voxels with at least half of MaximumFractionalValue
    (0062,000E). The distance of slices is that of the frames; a segmentation of one frame says how thick it is, which
    the box's warnings repeat.

    Args:
        label: SegmentNumber. roi: SegmentLabel. Both None when there is only one segment.

    Raises:
        Damaged, SkippedFile: the file contradicts itself. BoxInvalid: anything else that is wrong with it.
    """
    root = found.root(WANTED)
    layout = _layout(found, root)
    segment = choose([_candidate(item) for item in _segments(root, layout)], label, roi, "segment")
    frames = _frames(root, layout)
    own = [frame for frame in frames if frame.segment in (None, segment.number)]
    if len(own) * layout.rows * layout.columns > LARGEST_MASK:
        raise over_limits()
    low, high = _centres_and_halves(found, layout, own, segment.number)
    distance, warnings = _slice_distance(own, frames)
    half = np.abs(np.cross(own[0].row, own[0].column)) * distance / 2
    series = {item.header.uid(SERIES_UID) for item in root.items(REFERENCED_SERIES)}
    frame_of_reference = root.header.uid(FRAME_OF_REFERENCE)
    return drawing_of(root, Region.of(low - half, high + half), frame_of_reference, series, warnings)


def _refuse(what: str, key: str, hint: str = "save it again, drawn on one of the study's series") -> NoReturn:
    raise refused(what, key, hint)


# ---- header


def _layout(found: BoxObject, root: Item) -> Layout:
    """Everything the header must say before pixels are touched."""
    header, syntax = root.header, found.raw.transfer_syntax
    if TILED_COLUMNS in root.found:
        _refuse("is a segmentation of a tiled (microscopy) image", "mask_tiled")
    if syntax not in (*NATIVE, RLE):
        hint = "have it saved uncompressed (Explicit VR Little Endian)"
        shown = syntax if syntax.replace(".", "").isdigit() else "unreadable"
        _refuse(f"is a segmentation in a transfer syntax that is not supported: {shown}", "mask_syntax", hint)
    kind, bits = header.text(SEGMENTATION_TYPE), header.short(BITS_ALLOCATED) or 0
    if not kind:
        raise Damaged
    if bits not in BITS.get(kind, ()) or (bits == 1 and syntax == RLE):
        _refuse("is a segmentation whose type and bits do not fit", "mask_format")
    if (header.short(BITS_STORED), header.short(SIGNED), header.short(SAMPLES)) != (bits, 0, 1):
        _refuse("is a segmentation with impossible pixels", "mask_format")
    rows, columns, frames = header.short(ROWS) or 0, header.short(COLUMNS) or 0, header.integer(FRAMES) or 0
    if min(rows, columns, frames) < 1:
        raise Damaged
    if max(rows, columns) > LARGEST_SIDE or frames > MOST_FRAMES:
        raise over_limits()
    largest = header.short(LARGEST_FRACTION) or 0
    if kind == "FRACTIONAL" and not 0 < largest < 256:
        _refuse("is a segmentation without a possible MaximumFractionalValue", "mask_format")
    return Layout(kind, bits, frames, rows, columns, largest / 2)


def _segments(root: Item, layout: Layout) -> list[Item]:
    """Their descriptions; number 0 of a label map is its background."""
    items = root.items(SEGMENTS)
    return [item for item in items if layout.kind != "LABELMAP" or item.header.short(SEGMENT_NUMBER) != 0]


def _candidate(item: Item) -> Candidate:
    number = item.header.short(SEGMENT_NUMBER)
    if number is None:
        raise Damaged
    kind = "no standard code"
    for code in item.items(SEGMENT_TYPE_CODE):
        value, scheme = code.header.text(CODE_VALUE), code.header.text(CODE_SCHEME)
        if _CODE.fullmatch(value) and scheme in _SCHEMES:
            kind = f"{scheme} {value}"
    return Candidate(number, item.header.free_text(SEGMENT_LABEL), kind)


def _frames(root: Item, layout: Layout) -> list[Frame]:
    """Every frame; what is not said for each is shared by all (PS3.3 C.7.6.16.1)."""
    shared, per_frame = root.items(SHARED_GROUPS), root.items(FRAME_GROUPS)
    if len(per_frame) != layout.frames or len(shared) > 1:
        raise Damaged
    frames = [_frame(index, [item, *shared], layout) for index, item in enumerate(per_frame)]
    first = np.concatenate([frames[0].row, frames[0].column])
    turned = [np.abs(np.concatenate([frame.row, frame.column]) - first).max() for frame in frames]
    if max(turned) > ORIENTATION_TOLERANCE:
        _refuse("is a segmentation whose frames are not parallel", "mask_orientation")
    return frames


def _frame(index: int, groups: Sequence[Item], layout: Layout) -> Frame:
    segment = None
    if layout.kind != "LABELMAP":
        segment = _group(groups, SEGMENT_OF_FRAME).header.short(REFERENCED_SEGMENT)
        if segment is None:
            raise Damaged
    if any(SLIDE_POSITION in group.found for group in groups):
        _refuse("is a segmentation of a tiled (microscopy) image", "mask_tiled")
    measures = _group(groups, MEASURES).header
    position, spacing = _group(groups, PLANE_POSITION).header.floats(POSITION, 3), measures.floats(SPACING, 2)
    directions = _group(groups, PLANE_ORIENTATION).header.floats(ORIENTATION, 6)
    if position is None or directions is None or spacing is None:
        _refuse("is a segmentation whose frames have no place in the patient", "mask_geometry")
    if max(map(abs, position)) > LARGEST_MM or not 0 < min(spacing) <= max(spacing) < LARGEST_MM:
        _refuse("is a segmentation with an impossible position or pixel spacing", "mask_geometry")
    row, column = np.array(directions[:3]), np.array(directions[3:])
    gram = np.array([row @ row - 1, column @ column - 1, row @ column])
    if not np.abs(gram).max() <= ORIENTATION_TOLERANCE:
        _refuse("is a segmentation with an impossible orientation", "mask_orientation")
    row, pixel = row / np.linalg.norm(row), (spacing[0], spacing[1])
    column = column - (column @ row) * row
    column = column / np.linalg.norm(column)
    return Frame(index, np.array(position), row, column, pixel, measures.decimal(THICKNESS), segment)


def _group(groups: Sequence[Item], tag: int) -> Item:
    """The one item of a functional group, the frame's own or else the shared one; empty without one."""
    for group in groups:
        found = group.items(tag)
        if found:
            return found[0] if len(found) == 1 else _NOTHING
    return _NOTHING


def _slice_distance(own: Sequence[Frame], every: Sequence[Frame]) -> tuple[float, tuple[Notice, ...]]:
    """The smallest distance between frames: frames without a voxel are left out as a rule, which only widens gaps.

    All frames count if they lie on one regular grid, else those of the segment. SliceThickness serves a single slice.
    """
    thickness = own[0].thickness
    for frames in (every, own):
        gap = _regular_gap(frames)
        if gap is not None and gap <= LARGEST_GAP_MM:
            if thickness is None or gap <= WIDE_RATIO * thickness:
                return gap, ()
            message = f"the lesion's frames lie {gap:g} mm apart, more than their thickness of {thickness:g} mm"
            return gap, (Notice("box_thickness_unsure", message),)
    if thickness is None or not 0 < thickness <= LARGEST_GAP_MM:
        _refuse("is a segmentation whose slices have no known distance", "mask_geometry")
    message = f"the lesion lies on slices of unknown distance; their thickness is what the file says, {thickness:g} mm"
    return thickness, (Notice("box_thickness_claimed", message),)


def _regular_gap(frames: Sequence[Frame]) -> float | None:
    """The smallest distance along the normal, if all others are its multiples."""
    normal = np.cross(frames[0].row, frames[0].column)
    gaps = np.diff(np.sort(np.array([frame.position for frame in frames]) @ normal))
    gaps = gaps[gaps > SAME_POSITION_MM]
    if not len(gaps):
        return None
    smallest = float(gaps.min())
    steps = gaps / np.rint(gaps / smallest)
    regular = np.abs(steps - smallest).max() <= max(GAP_TOLERANCE_MM, GAP_TOLERANCE_RATIO * smallest)
    return float(np.median(steps)) if regular else None


# ---- voxels


def _centres_and_halves(found: BoxObject, layout: Layout, frames: Sequence[Frame], number: int) -> tuple[Float, Float]:
    """Lowest and highest corner of the segment's voxels, float64 (3,), their thickness left out."""
    low, high = np.full(3, math.inf), np.full(3, -math.inf)
    for frame, values in zip(frames, planes(found, layout, frames), strict=True):
        mask = values == number if layout.kind == "LABELMAP" else values >= max(layout.threshold, 1)
        rows = np.flatnonzero(mask.any(axis=1))
        if not len(rows):
            continue
        first, last = mask[rows].argmax(axis=1), layout.columns - 1 - mask[rows, ::-1].argmax(axis=1)
        ends = np.stack([np.tile(rows, 2), np.concatenate([first, last])], axis=1) * np.array(frame.spacing)
        centres = frame.position + ends[:, :1] * frame.column + ends[:, 1:] * frame.row
        half = (np.abs(frame.column) * frame.spacing[0] + np.abs(frame.row) * frame.spacing[1]) / 2
        low, high = np.minimum(low, centres.min(axis=0) - half), np.maximum(high, centres.max(axis=0) + half)
    if not np.isfinite(low).all():
        _refuse("is an empty segment", "mask_empty", "draw the lesion and save it again")
    return low, high
