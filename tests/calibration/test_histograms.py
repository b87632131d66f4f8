"""Held against numpy's histogram on the same edges; order and portions of the data must not matter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from fourphase.calibration.histograms import BINS, Histogram

Floats = NDArray[np.float32]
VALUES = arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32))


def filled(*parts: Floats) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e4])
def test_counts_are_numpys_on_the_same_edges(scale: float) -> None:
    values = (np.random.default_rng(0).laplace(0, scale, 300_000)).astype(np.float32)
    values[:1000] = 0
    histogram = filled(values)
    edges = np.arange(-BINS, BINS + 1) * histogram.width
    expected = np.histogram(values[values != 0].astype(np.float64), bins=edges)[0]
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.zeros == 1000
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    assert histogram.largest == np.abs(values).max()
    assert BINS / 2 <= histogram.largest / histogram.width <= BINS


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_neither_order_nor_portions_matter(parts: list[Floats]) -> None:
    forward, backward, whole = filled(*parts), filled(*reversed(parts)), filled(np.concatenate(parts))
    for other in (backward, whole):
        np.testing.assert_array_equal(forward.counts, other.counts)
        assert forward.exponent == other.exponent
        assert forward.zeros == other.zeros
        assert (forward.low, forward.high) == (other.low, other.high)
    assert forward.counts.sum() + forward.zeros == sum(part.size for part in parts)


def test_a_negative_value_that_underflows_stays_below_zero() -> None:
    tiny = np.array([-1e-45], dtype=np.float32)
    large = np.array([8192.0], dtype=np.float32)
    for parts in ((large, tiny), (tiny, large)):
        assert filled(*parts).counts[BINS - 1] == 1


def test_magnitudes_join_both_signs() -> None:
    values = np.random.default_rng(1).normal(size=10_000).astype(np.float32)
    histogram = filled(values)
    edges = np.arange(BINS + 1) * histogram.width
    expected = np.histogram(np.abs(values).astype(np.float64), bins=edges)[0]
    np.testing.assert_array_equal(histogram.magnitudes, expected)


@pytest.mark.parametrize("value", [0.0, 1e-44, 1e-38, 3e38, -3e38, 1.0, -1.0, 0.5])
def test_extreme_values_fit(value: float) -> None:
    histogram = filled(np.full((2, 3), value, dtype=np.float32))
    assert histogram.counts.sum() + histogram.zeros == 6
    assert histogram.largest == abs(np.float32(value))


def test_memory_does_not_grow() -> None:
    histogram = filled(*(np.full(1, 10.0**power, dtype=np.float32) for power in range(-30, 30)))
    assert histogram.counts.shape == (2 * BINS,)
    assert histogram.counts.sum() == 60
