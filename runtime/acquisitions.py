"""Which slices of one SeriesInstanceUID belong together: sorted, copies dropped, acquisitions told apart.

Position is dot(ImagePositionPatient, normal). InstanceNumber is never used: it is often wrong and sometimes absent.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.codestream import CodestreamError
from fourphase.runtime.dicom_file import SkippedFile, dataset_bytes
from fourphase.runtime.frames import stored_frame
from fourphase.runtime.slice_header import SliceHeader

__all__ = ["acquisitions", "are_interleaved", "position_count", "sorted_slices", "without_duplicates"]

Slices = tuple[SliceHeader, ...]

#: Two slices closer than this along the normal are at the same position.
SAME_POSITION_MM = 0.01
#: Two phases are at least 20 s apart; a pause beyond this lies between two acquisitions.
PAUSE_S = 10.0

Key = Callable[[SliceHeader], Hashable]
#: What says which acquisition a slice is of: AcquisitionNumber, TemporalPositionIndex, ContrastBolusAgentPhase.
KEYS: tuple[Key, ...] = (
    lambda header: header.acquisition_number,
    lambda header: header.temporal_position,
    lambda header: header.tags.agent_phase or None,
)


def _depths(slices: Sequence[SliceHeader]) -> NDArray[np.float64]:
    """Positions along the first slice's normal, mm, float64 (slices,)."""
    orientation = np.array(slices[0].orientation)
    return np.array([header.position for header in slices]) @ np.cross(orientation[:3], orientation[3:])


def sorted_slices(slices: Sequence[SliceHeader]) -> Slices:
    depths = _depths(slices)
    order = sorted(range(len(slices)), key=lambda i: (depths[i], *_name(slices[i])))
    return tuple(slices[i] for i in order)


def _name(header: SliceHeader) -> tuple[str, Path, int]:
    return header.sop_instance_uid, header.path, header.frame


def _clusters(slices: Slices) -> list[Slices]:
    """Sorted slices by position."""
    starts = np.flatnonzero(np.diff(_depths(slices), prepend=-np.inf) > SAME_POSITION_MM)
    return [slices[a:b] for a, b in zip(starts, [*starts[1:], len(slices)], strict=True)]


def position_count(slices: Slices) -> int:
    return len(_clusters(slices))


def without_duplicates(slices: Slices) -> Slices:
    """Drops slices whose position, acquisition, scaling and stored pixels another slice already has."""
    kept: list[SliceHeader] = []
    for cluster in _clusters(slices):
        seen = set()
        for header in cluster:
            identity = _identity(header) if len(cluster) > 1 else _name(header)
            if identity not in seen:
                kept.append(header)
            seen.add(identity)
    return tuple(kept)


def _identity(header: SliceHeader) -> object:
    """Equal for two slices only if they are the same; reads the stored pixels, of a multi-frame file the frame's."""
    try:
        if header.frames > 1:
            content = stored_frame(header)
        else:
            content = dataset_bytes(header.path, deflated=header.is_deflated, offset=header.pixel_offset)
    except (OSError, SkippedFile, CodestreamError):
        return _name(header)
    digest = hashlib.sha256(content).digest()
    scaling = (header.slope, header.intercept, header.pixels, header.rows, header.columns, header.pixel_spacing)
    acquisition = (*(key(header) for key in KEYS), header.acquired_day, header.acquired_time)
    return (digest, scaling, header.position, header.orientation, acquisition)


def acquisitions(slices: Slices) -> list[Slices]:
    """The slices by acquisition, in order of time; empty if nothing in the headers gives one slice per position."""
    for parts in (*(_by_key(slices, key) for key in KEYS), _by_time(slices)):
        if len(parts) > 1 and all(len(part) == position_count(part) > 1 for part in parts):
            return sorted(parts, key=lambda part: min(_moment(header) for header in part))
    return []


def are_interleaved(slices: Slices) -> bool:
    """True if the slices of several acquisitions alternate along the normal, as of two phases half a step apart.

    Acquisitions that follow each other along the body (step and shoot) do not, nor does one odd slice among others.
    """
    found = [[key(header) for header in slices] for key in KEYS]
    part_of = {_name(header): number for number, part in enumerate(_by_time(slices)) for header in part}
    found.append([part_of.get(_name(header)) for header in slices])
    return any(1 + sum(a != b for a, b in pairwise(keys)) > len(set(keys)) + 1 for keys in found)


def _by_key(slices: Slices, key: Key) -> list[Slices]:
    parts: dict[Hashable, list[SliceHeader]] = defaultdict(list)
    for header in slices:
        parts[key(header)].append(header)
    return [] if None in parts else [tuple(part) for part in parts.values()]


def _by_time(slices: Slices) -> list[Slices]:
    """Cuts at the longest pauses, as many as positions are repeated, without repetition at all that two phases explain;
    each must be longer than any pause left inside.
    """
    moments = np.array([_moment(header) for header in slices])
    if not np.isfinite(moments).all():
        return []
    order = np.argsort(moments, kind="stable")
    pauses = np.diff(moments[order])
    repeats = max(len(cluster) for cluster in _clusters(slices)) - 1 or int((pauses > PAUSE_S).sum())
    longest = np.argsort(pauses, kind="stable")[::-1]
    cuts, inner = longest[:repeats], longest[repeats:]
    if not len(cuts) or pauses[cuts].min() <= 2 * pauses[inner].max(initial=0.0):
        return []
    return [tuple(slices[i] for i in sorted(part)) for part in np.split(order, np.sort(cuts) + 1)]


def _moment(header: SliceHeader) -> float:
    """Seconds, comparable within a series; infinite when the time is unknown."""
    if header.acquired_time is None:
        return math.inf
    return (header.acquired_day or 0) * 86400.0 + header.acquired_time
