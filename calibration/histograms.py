"""How often an activation takes which value: a histogram of fixed size that any amount of data can go into.

Bins are a power of two wide and lie symmetrically about zero. When a value lies outside, bins are merged in pairs until
it fits, which is exact: the result does not depend on the order of the data, only on all of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "Histogram"]

Floats = NDArray[np.float32]
Counts = NDArray[np.int64]

#: Bins on either side of zero. The largest magnitude lies in the outer half, so that even a clipping threshold of a
#: sixteenth of it has steps (threshold / 127) more than two bins wide.
BINS = 8192
#: Values this small are noise of any activation; below, the bins' width would leave float32.
_SMALLEST_EXPONENT = -100
#: Values binned at a time: the temporary arrays stay in the cache.
_CHUNK = 1 << 16


class Histogram:
    """Counts of finite float32 values.

    Attributes:
        counts: int64 (2 * BINS,); bin BINS + k holds k * width <= x < (k + 1) * width. Exact zeros are not in it.
        exponent: all values lie within 2**exponent of zero.
        zeros: how many values were exactly zero (after a ReLU, about half; they are exact in any coding).
        low, high: the smallest and the largest value, float32.
    """

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(2 * BINS, dtype=np.int64)
        self.exponent: int | None = None
        self.zeros = 0
        self.low, self.high = np.float32(np.inf), np.float32(-np.inf)

    @property
    def width(self) -> float:
        """Of a bin."""
        return float(np.ldexp(1.0 / BINS, self.exponent or 0))

    @property
    def largest(self) -> float:
        """The largest magnitude, exactly; 0 where nothing but zeros was seen."""
        return float(max(-self.low, self.high, np.float32(0)))

    @property
    def magnitudes(self) -> Counts:
        """Counts of |x|, int64 (BINS,), without the exact zeros; bin k holds about k * width to (k + 1) * width."""
        return self.counts[BINS:] + self.counts[BINS - 1 :: -1]

    def add(self, values: Floats) -> None:
        """Counts finite float32 values of any shape."""
        flat = values.reshape(-1)
        low, high = flat.min(), flat.max()
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if largest == 0:
            self.zeros += flat.size
            return
        self._widen(max(int(np.frexp(largest)[1]), _SMALLEST_EXPONENT))
        scale = np.float32(1 / self.width)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            # The scale is a power of two, so the product is exact, unless it underflows: to zero, which is the bin of
            # values above.
            bins = np.floor(part * scale).astype(np.int32)
            bins -= (part < 0) & (bins == 0)
            bins += BINS
            self.counts += np.bincount(bins, minlength=2 * BINS)
            zeros = part.size - int(np.count_nonzero(part))
            self.counts[BINS] -= zeros
            self.zeros += zeros

    def _widen(self, exponent: int) -> None:
        """Merges bins in pairs until values up to 2**exponent fit."""
        if self.exponent is None:
            self.exponent = exponent
        while self.exponent < exponent:
            merged = np.zeros_like(self.counts)
            merged[BINS // 2 : BINS + BINS // 2] = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = merged
            self.exponent += 1
