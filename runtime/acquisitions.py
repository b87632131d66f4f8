"""Which slices of one SeriesInstanceUID belong together: sorting along the normal, exact copies, repeated positions.

Position is dot(ImagePositionPatient, normal). InstanceNumber is never used: it is often wrong and sometimes absent.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.dicom_file import SkippedFile, dataset_bytes
from fourphase.runtime.headers import SliceHeader

__all__ = ["acquisitions", "position_count", "sorted_slices", "without_duplicates"]

Slices = tuple[SliceHeader, ...]

#: Two slices closer than this along the normal are at the same position.
SAME_POSITION_MM = 0.01


def _depths(slices: Sequence[SliceHeader]) -> NDArray[np.float64]:
    """Positions along the first slice's normal, mm, float64 (slices,)."""
    orientation = np.array(slices[0].orientation)
    return np.array([header.position for header in slices]) @ np.cross(orientation[:3], orientation[3:])


def sorted_slices(slices: Sequence[SliceHeader]) -> Slices:
    depths = _depths(slices)
    order = sorted(range(len(slices)), key=lambda i: (depths[i], slices[i].sop_instance_uid, slices[i].path))
    return tuple(slices[i] for i in order)


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
            identity = _identity(header) if len(cluster) > 1 else header.path
            if identity not in seen:
                kept.append(header)
            seen.add(identity)
    return tuple(kept)


def _identity(header: SliceHeader) -> object:
    """Equal for two files only if they hold the same slice; reads the stored pixels."""
    try:
        content = dataset_bytes(header.path, deflated=header.is_deflated, offset=header.pixel_offset)
    except (OSError, SkippedFile):
        return header.path
    digest = hashlib.sha256(content).digest()
    scaling = (header.slope, header.intercept, header.pixels, header.rows, header.columns, header.pixel_spacing)
    acquisition = (header.acquisition_number, header.acquired_day, header.acquired_time)
    return (digest, scaling, header.position, header.orientation, acquisition)


def acquisitions(slices: Slices) -> list[Slices]:
    """The slices by acquisition, in order of time; empty if neither number nor time gives one slice per position."""
    for parts in (_by_number(slices), _by_time(slices)):
        if len(parts) > 1 and all(len(part) == position_count(part) > 1 for part in parts):
            return sorted(parts, key=lambda part: min(_moment(header) for header in part))
    return []


def _by_number(slices: Slices) -> list[Slices]:
    parts: dict[int | None, list[SliceHeader]] = defaultdict(list)
    for header in slices:
        parts[header.acquisition_number].append(header)
    return [] if None in parts else [tuple(parts[number]) for number in sorted(parts, key=lambda number: number or 0)]


def _by_time(slices: Slices) -> list[Slices]:
    """Cuts at the longest pauses, as many as positions are repeated; each must be longer than any pause left inside."""
    moments = np.array([_moment(header) for header in slices])
    if not np.isfinite(moments).all():
        return []
    repeats = max(len(cluster) for cluster in _clusters(slices))
    order = np.argsort(moments, kind="stable")
    pauses = np.diff(moments[order])
    longest = np.argsort(pauses, kind="stable")[::-1]
    cuts, inner = longest[: repeats - 1], longest[repeats - 1 :]
    if pauses[cuts].min() <= 2 * pauses[inner].max(initial=0.0):
        return []
    return [tuple(slices[i] for i in sorted(part)) for part in np.split(order, np.sort(cuts) + 1)]


def _moment(header: SliceHeader) -> float:
    """Seconds, comparable within a series; infinite when the time is unknown."""
    if header.acquired_time is None:
        return math.inf
    return (header.acquired_day or 0) * 86400.0 + header.acquired_time
