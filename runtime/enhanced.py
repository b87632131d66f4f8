"""A multi-frame CT header -> one header per frame, with the tags that a single-frame CT image would have.

Enhanced CT and Legacy Converted Enhanced CT keep what differs between frames in functional groups (PS3.3 C.7.6.16); a
frame's own group wins over the shared one. Whether a frame is a usable slice is `headers`' question. The order of
frames, DimensionIndexValues and StackID are never read: positions are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from fourphase.runtime.dicom_file import SkippedFile, read_nested
from fourphase.runtime.elements import Found, Wanted
from fourphase.runtime.raw_header import RawHeader

__all__ = ["CALCULATION", "FRAME_LIMIT", "TEMPORAL_POSITION", "frame_headers"]

#: Four phases of 2,500 slices.
FRAME_LIMIT = 10_000

IMAGE_TYPE, FRAME_TYPE, CALCULATION = 0x00080008, 0x00089007, 0x00089207
ACQUISITION_DATE, ACQUISITION_DATETIME, ACQUISITION_TIME = 0x00080022, 0x0008002A, 0x00080032
FRAME_ACQUIRED, FRAME_REFERENCE = 0x00189074, 0x00189151
ACQUISITION_NUMBER, FRAME_ACQUISITION_NUMBER, TEMPORAL_POSITION = 0x00200012, 0x00209156, 0x00209128
POSITION, ORIENTATION, PIXEL_SPACING = 0x00200032, 0x00200037, 0x00280030
INTERCEPT, SLOPE, RESCALE_TYPE = 0x00281052, 0x00281053, 0x00281054
SLICE_THICKNESS, KERNEL = 0x00180050, 0x00181210
AGENT, AGENT_START, AGENT_PHASE = 0x00180010, 0x00181042, 0x00189344
AGENT_NUMBER, ADMINISTERED = 0x00189337, 0x00189342

AGENTS, ADMINISTRATION, USAGE = 0x00180012, 0x00189340, 0x00189341
SHARED, PER_FRAME = 0x52009229, 0x52009230
FRAME_CONTENT = 0x00209111
UNASSIGNED = (0x00209170, 0x00209171)

#: What only the functional groups may say of a multi-frame image: at the top level it would hold for every frame.
PER_FRAME_ONLY = (POSITION, ORIENTATION, PIXEL_SPACING, INTERCEPT, SLOPE, RESCALE_TYPE)


def _of(*tags: int) -> Wanted:
    return dict.fromkeys(tags)


#: Functional groups -> what is read from their one item.
PLAIN_GROUPS: Wanted = {
    0x00209113: _of(POSITION),  # PlanePositionSequence
    0x00209116: _of(ORIENTATION),  # PlaneOrientationSequence
    0x00289110: _of(PIXEL_SPACING, SLICE_THICKNESS),  # PixelMeasuresSequence
    0x00289145: _of(INTERCEPT, SLOPE, RESCALE_TYPE),  # PixelValueTransformationSequence
    0x00189329: _of(FRAME_TYPE, CALCULATION),  # CTImageFrameTypeSequence
    0x00189314: _of(KERNEL),  # CTReconstructionSequence
    FRAME_CONTENT: _of(FRAME_ACQUIRED, FRAME_REFERENCE, FRAME_ACQUISITION_NUMBER, TEMPORAL_POSITION),
}
#: Attributes of the single frames that found no other place in a legacy converted image (PS3.3 C.7.6.16.2.23).
CONVERTED = _of(
    *(ACQUISITION_DATE, ACQUISITION_TIME, ACQUISITION_DATETIME, ACQUISITION_NUMBER),
    *(AGENT, AGENT_START, KERNEL, SLICE_THICKNESS),
)
GROUPS: Wanted = {
    **PLAIN_GROUPS,
    **dict.fromkeys(UNASSIGNED, CONVERTED),
    USAGE: _of(AGENT_NUMBER, ADMINISTERED, AGENT_PHASE),
}
WANTED: Wanted = {
    AGENTS: {AGENT_NUMBER: None, ADMINISTRATION: _of(AGENT_START)},
    SHARED: GROUPS,
    PER_FRAME: GROUPS,
    CALCULATION: None,
}

Values: TypeAlias = dict[int, bytes]


def frame_headers(path: Path, raw: RawHeader, frames: int) -> list[RawHeader]:
    """One header per frame, in the order of the frames.

    Args:
        raw: the file's top level, with pixel data.
        frames: NumberOfFrames (0028,0008).

    Raises:
        SkippedFile: "over_limits", "damaged" (not one functional group item per frame), "multi_frame" (there are none).
    """
    if not 1 <= frames <= FRAME_LIMIT:
        raise SkippedFile("over_limits" if frames > 0 else "damaged")
    found = read_nested(path, raw, WANTED)
    shared, each = _items(found, SHARED), _items(found, PER_FRAME)
    if not shared and not each:
        raise SkippedFile("multi_frame")
    if len(shared) > 1 or len(each) != frames:
        raise SkippedFile("damaged")
    top = {tag: value for tag, value in raw.values.items() if tag not in PER_FRAME_ONLY}
    top |= _values(found, (CALCULATION,))
    common = shared[0] if shared else {}
    return [_frame(raw, top, {**common, **own}, _items(found, AGENTS)) for own in each]


def _frame(raw: RawHeader, top: Values, groups: Found, agents: list[Found]) -> RawHeader:
    """The top level with the frame's groups over it; what converters could not assign comes last of the groups."""
    values = dict(top)
    for tag in UNASSIGNED:
        values |= _values(_only(groups, tag))
    for tag in PLAIN_GROUPS:
        values |= _values(_only(groups, tag))
    values |= _contrast(groups, agents, raw)
    if FRAME_TYPE in values:
        values[IMAGE_TYPE] = values.pop(FRAME_TYPE)
    moment = values.pop(FRAME_ACQUIRED, b"") or values.pop(FRAME_REFERENCE, b"")
    if moment:
        values = {tag: value for tag, value in values.items() if tag not in (ACQUISITION_DATE, ACQUISITION_TIME)}
        values[ACQUISITION_DATETIME] = moment
    frame = dataclasses.replace(raw, values=values)
    number = frame.short(FRAME_ACQUISITION_NUMBER)
    if number is not None:
        values[ACQUISITION_NUMBER] = b"%d" % number
    return frame


def _contrast(groups: Found, agents: list[Found], raw: RawHeader) -> Values:
    """What the frame's ContrastBolusUsageSequence says of the agents, oral ones among them, as one answer.

    Phases that differ are joined, which is no phase; agents of which none was given yet are agent "NONE"; a start
    counts when the agents have only one.
    """
    usage = _items(groups, USAGE)
    if not usage:
        return {}
    values: Values = {}
    phases = {phase for item in usage if (phase := _text(raw, item, AGENT_PHASE))}
    if phases:
        values[AGENT_PHASE] = "\\".join(sorted(phases)).encode()
    given = {_text(raw, item, ADMINISTERED) for item in usage}
    if given == {"NO"}:
        values[AGENT] = b"NONE"
    used = {item.get(AGENT_NUMBER) for item in usage}
    starts = {
        start
        for agent in agents
        if agent.get(AGENT_NUMBER) in used
        for profile in _items(agent, ADMINISTRATION)
        if isinstance(start := profile.get(AGENT_START), bytes)
    }
    if len(starts) == 1:
        values[AGENT_START] = starts.pop()
    return values


def _text(raw: RawHeader, item: Found, tag: int) -> str:
    return dataclasses.replace(raw, values=_values(item)).text(tag).upper()


def _items(found: Found, tag: int) -> list[Found]:
    items = found.get(tag)
    return items if isinstance(items, list) else []


def _only(groups: Found, tag: int) -> Found:
    """The one item of a functional group.

    Raises: SkippedFile if there are several: which of them holds is unknown.
    """
    items = _items(groups, tag)
    if len(items) > 1:
        raise SkippedFile("damaged")
    return items[0] if items else {}


def _values(found: Mapping[int, bytes | list[Found]], tags: tuple[int, ...] | None = None) -> Values:
    chosen = found if tags is None else [tag for tag in tags if tag in found]
    return {tag: value for tag in chosen if isinstance(value := found[tag], bytes)}
