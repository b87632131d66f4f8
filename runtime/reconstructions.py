"""Several reconstructions of one acquisition -> the one to use, by preferences that are stated and reported.

Only series of the same phase and the same acquisition time come here; two acquisitions are never weighed against each
other, that would be a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from fourphase.runtime.geometry import Region
from fourphase.runtime.series import Series

__all__ = ["preferred", "same_acquisition"]

#: Reconstructions of one spiral may start some slices apart; two phases are at least 20 s apart.
SAME_ACQUISITION_S = 10.0

#: Siemens writes sharpness into the kernel's number (B30f, Br40d, I31f: soft; B70f: lung), Canon FC01-FC19 are soft.
_SIEMENS, _CANON = re.compile(r"[A-Z]{1,2}(\d\d)[A-Z]?\b"), re.compile(r"FC(\d\d)")
SOFT_KERNELS = ("STANDARD", "STND", "SOFT", "A", "B", "C")
SHARP_KERNELS = ("LUNG", "BONE", "BONEPLUS", "EDGE", "ULTRA", "D", "E", "L", "YA", "YB", "YC", "YD")


def same_acquisition(starts: Sequence[float | None]) -> bool:
    """True if the known start times (seconds) lie within one acquisition."""
    known = [start for start in starts if start is not None]
    return not known or max(known) - min(known) <= SAME_ACQUISITION_S


def preferred(series: Sequence[Series], thickness_mm: float, region: Region | None) -> tuple[list[Series], str]:
    """The series left when every preference has spoken (several only in a real tie), and the last one that decided.

    In this order: sound geometry, ORIGINAL PRIMARY AXIAL, soft kernel, covers the region, thickness nearest the
    training protocol's, lowest SeriesNumber.

    Args:
        region: lesion box with margin; None when unknown, then coverage does not count.
    """
    preferences: list[tuple[str, Callable[[Series], float]]] = [
        ("geometry", lambda one: one.problem is not None),
        ("image_type", lambda one: one.tags.image_type[:3] != ("ORIGINAL", "PRIMARY", "AXIAL")),
        ("kernel", lambda one: _sharpness(one.tags.kernel)),
        ("coverage", lambda one: region is not None and not _covers(one, region)),
        ("thickness", lambda one: abs(_thickness(one) - thickness_mm)),
        ("series_number", lambda one: float("inf") if one.number is None else one.number),
    ]
    left, decisive = list(series), ""
    for name, score in preferences:
        best = min(score(one) for one in left)
        kept = [one for one in left if score(one) == best]
        if len(kept) < len(left):
            left, decisive = kept, name
    return left, decisive


def _sharpness(kernel: str) -> int:
    """0 soft, 1 unknown, 2 sharp, from ConvolutionKernel (0018,1210)."""
    canon, siemens = _CANON.match(kernel), _SIEMENS.match(kernel)
    if canon:
        return 0 if int(canon.group(1)) < 20 else 2
    if siemens:
        return 0 if int(siemens.group(1)) < 50 else 2
    return 0 if kernel in SOFT_KERNELS else 2 if kernel in SHARP_KERNELS else 1


def _covers(series: Series, region: Region) -> bool:
    if series.problem is not None:
        return False
    bounds = series.geometry.bounds()
    lows = zip(bounds.min, region.min, strict=True)
    highs = zip(bounds.max, region.max, strict=True)
    return all(low <= needed for low, needed in lows) and all(high >= needed for high, needed in highs)


def _thickness(series: Series) -> float:
    """SliceThickness, else the distance of the slices; infinite when neither is known."""
    if series.tags.thickness_mm is not None:
        return series.tags.thickness_mm
    return series.geometry.slice_spacing if series.problem is None else float("inf")
