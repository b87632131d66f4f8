"""Does a decoded slice continue its neighbours? Codecs turn damaged data into wrong pixels without an error.

Only strong evidence counts, because metal, thick slices and noise are no damage: many whole rows of a slice lie far
outside what both neighbours hold around the same place, or a long run of one row jumps where neither neighbour does.
What damages less, above all a few code blocks of JPEG 2000, is not seen; docs/dicom.md has the shares.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["first_implausible"]

Stack: TypeAlias = NDArray[np.int16] | NDArray[np.float32]
Image: TypeAlias = NDArray[np.float32]

#: A slice with fewer pixels along an axis, or a stack with fewer slices, tells too little.
SMALLEST_SIDE, SMALLEST_STACK = 16, 3
#: A pixel is far outside if it leaves the range of its 2 x 9 neighbours by this and the range itself.
OUTSIDE_HU = 60.0
#: A row is lost if so much of it is far outside, a slice if so many of its rows are: metal's streaks cross rows.
ROW_SHARE, LOST_SHARE = 0.8, 0.2
#: A run of a row jumps if, of so many pixels, this part stands off the rows above and below in the same direction ...
RUN_SHARE = 0.85
#: ... by so many times the slice's own roughness, and at least by so much: a short run must jump higher.
RUN_ROUGHNESS = 6.0
RUNS_HU = {100: 120.0, 32: 500.0}
#: Skin, table and ribs lie a few rows higher or lower in the next slice.
ROWS_AROUND = 7


def first_implausible(hu: Stack) -> int | None:
    """The first slice that does not continue its neighbours; None if all do, or if there is too little to tell.

    Args:
        hu: (slices, rows, columns), HU, slices in the order of their positions.
    """
    if len(hu) < SMALLEST_STACK or min(hu.shape[1:]) < SMALLEST_SIDE:
        return None
    jumps = [_jumps(plane) for plane in hu]
    for index in range(len(hu)):
        one, other = _neighbours(index, len(hu))
        if _lost_share(hu[index], hu[one], hu[other]) > LOST_SHARE:
            return index
        if max(map(_run_jump, jumps[index], jumps[one], jumps[other])) > RUN_SHARE:
            return index
    return None


def _neighbours(index: int, count: int) -> tuple[int, int]:
    """The slices beside it; for the first and the last, the next two."""
    first = min(max(index - 1, 0), count - 3)
    one, other = (place for place in range(first, first + 3) if place != index)
    return one, other


def _lost_share(plane: Stack, one: Stack, other: Stack) -> float:
    """The share of rows that lie, nearly whole, far outside the range of both neighbours around the same place."""
    low = ndimage.minimum_filter(np.minimum(one, other), 3).astype(np.float32)
    high = ndimage.maximum_filter(np.maximum(one, other), 3).astype(np.float32)
    margin = OUTSIDE_HU + (high - low)
    outside = (plane < low - margin) | (plane > high + margin)
    return float(np.mean(outside.mean(axis=1) >= ROW_SHARE))


def _jumps(plane: Stack) -> list[Image]:
    """Per length of run and per run, the share of its pixels that stand off both rows beside them, by its sign.

    float32 (rows - 2, columns). An edge between tissues is no jump: there the rows beside differ as much.
    """
    values = plane.astype(np.float32)
    above, below = values[:-2], values[2:]
    off = values[1:-1] - (above + below) / 2
    step = RUN_ROUGHNESS * 1.4826 * float(np.median(np.abs(off)))
    alone = np.where(np.abs(above - below) < np.abs(off), off, 0)
    return [
        ndimage.uniform_filter1d(np.sign(alone) * (np.abs(alone) > max(step, least)), min(run, off.shape[1]), axis=1)
        for run, least in RUNS_HU.items()
    ]


def _run_jump(plane: Image, one: Image, other: Image) -> float:
    """The largest share of a run that jumps where neither neighbour does, a few rows up or down."""
    low = ndimage.minimum_filter1d(np.minimum(one, other), ROWS_AROUND, axis=0)
    high = ndimage.maximum_filter1d(np.maximum(one, other), ROWS_AROUND, axis=0)
    return float(np.abs(plane - np.clip(plane, low, high)).max())
