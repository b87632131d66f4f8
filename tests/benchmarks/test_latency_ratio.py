"""The ratio of two candidates that took turns: against scipy's confidence interval, and its refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fourphase.benchmarks.latency.ratio import BUSIEST, FEWEST_ROUNDS, WIDEST, paired_ratio, refused_if_busy


def test_equal_candidates_have_ratio_one() -> None:
    found = paired_ratio([3.0, 4.0, 5.0, 6.0, 7.0], [3.0, 4.0, 5.0, 6.0, 7.0])
    assert (found.value, found.low, found.high, found.refused) == (1.0, 1.0, 1.0, "")


def test_a_drift_that_meets_both_leaves_the_ratio_alone() -> None:
    drift = np.linspace(1, 3, 8)
    found = paired_ratio(list(2 * drift), list(drift))
    assert found.value == pytest.approx(2)
    assert found.high == pytest.approx(found.low)


def test_interval_is_that_of_a_t_test_on_the_logarithms() -> None:
    rng = np.random.default_rng(0)
    a, b = (np.exp(rng.normal(centre, 0.03, 9)) for centre in (1.0, 0.3))
    interval = stats.ttest_1samp(np.log(a / b), 0).confidence_interval(0.95)
    found = paired_ratio(list(a), list(b))
    assert found.low == pytest.approx(math.exp(interval.low))
    assert found.high == pytest.approx(math.exp(interval.high))
    assert found.value == pytest.approx(stats.gmean(a / b))


def test_a_noisy_run_has_no_ratio_but_shows_its_interval() -> None:
    found = paired_ratio([1.0, 2.0, 1.0, 2.0, 1.0], [1.0] * 5)
    assert found.value is None
    assert "noisy" in found.refused
    assert found.low is not None
    assert found.high is not None
    assert found.high / found.low > WIDEST


def test_too_few_rounds_have_no_ratio() -> None:
    found = paired_ratio([1.0] * (FEWEST_ROUNDS - 1), [1.0] * (FEWEST_ROUNDS - 1))
    assert (found.value, found.low, found.rounds) == (None, None, FEWEST_ROUNDS - 1)
    assert "rounds" in found.refused


def test_rounds_must_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0], [1.0, 2.0])


@given(st.lists(st.tuples(st.floats(0.9, 1.1), st.floats(0.9, 1.1)), min_size=FEWEST_ROUNDS, max_size=12))
def test_the_other_way_round_is_the_inverse(pairs: list[tuple[float, float]]) -> None:
    one, two = [a for a, _ in pairs], [b for _, b in pairs]
    forth, back = paired_ratio(one, two), paired_ratio(two, one)
    assert (forth.value is None) == (back.value is None)
    if forth.value is not None and back.value is not None and back.low is not None and forth.high is not None:
        assert forth.value * back.value == pytest.approx(1)
        assert forth.high * back.low == pytest.approx(1)


@pytest.mark.parametrize(("busy", "quoted"), [(None, True), (BUSIEST, True), (BUSIEST + 0.01, False)])
def test_a_run_that_others_disturbed_has_no_ratio(busy: float | None, quoted: bool) -> None:
    found = refused_if_busy(paired_ratio([2.0] * 5, [1.0] * 5), busy)
    assert (found.value is not None) == quoted
    assert ("16% of the cores' time" in found.refused) != quoted
    assert found.low == pytest.approx(2)
    noisy = refused_if_busy(paired_ratio([1.0] * 4, [1.0] * 4), busy).refused
    assert noisy.startswith("4 rounds")
    assert ("; other processes" in noisy) != quoted
