"""Probabilities against closed forms and against cases counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from fourphase.benchmarks.accuracy.reliability import (
    brier_score,
    calibration_curve,
    calibration_error,
    expected_by_chance,
    probabilities_of,
)

#: Few distinct probabilities, so that ties are the rule.
CASES = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=40)


@pytest.mark.parametrize("classes", [2, 4])
def test_probabilities_are_the_softmax(classes: int) -> None:
    logits = np.random.default_rng(0).normal(0, 4, (50, classes)).astype(np.float32)
    for positive in range(classes):
        expected = softmax(logits.astype(np.float64), axis=1)[:, positive]
        np.testing.assert_allclose(probabilities_of(logits, positive), expected, rtol=1e-9, atol=1e-15)


def test_sure_logits_overflow_nowhere() -> None:
    np.testing.assert_array_equal(probabilities_of(np.array([[0, 1e4], [1e4, 0]], np.float32)), [1, 0])


def test_brier_is_the_closed_form() -> None:
    """Always saying q of a share s: s (1 - q)^2 + (1 - s) q^2."""
    truth = np.arange(20) < 6
    for said in (0.0, 0.3, 0.5, 1.0):
        expected = 0.3 * (1 - said) ** 2 + 0.7 * said**2
        assert brier_score(np.full(20, said), truth) == pytest.approx(expected)
    assert brier_score(truth.astype(float), truth) == 0


def test_one_probability_for_all_has_the_error_of_its_distance() -> None:
    truth = np.arange(20) < 6
    curve = calibration_curve(np.full(20, 0.5), truth)
    assert (curve.predicted, curve.count) == ((0.5,), (20,))
    assert curve.observed == pytest.approx((0.3,))
    assert calibration_error(np.full(20, 0.5), truth) == pytest.approx(0.2)


def test_overconfidence_is_seen() -> None:
    """Says 0.1 and 0.9 where the truth is 0.3 and 0.7: off by 0.2 everywhere, on the side of overconfidence."""
    said = np.repeat([0.1, 0.9], 100)
    truth = np.concatenate([np.arange(100) < 30, np.arange(100) < 70])
    curve = calibration_curve(said, truth)
    assert curve.observed == pytest.approx((0.3, 0.7))
    assert curve.count == (100, 100)
    assert calibration_error(said, truth) == pytest.approx(0.2)


def test_a_perfectly_calibrated_score_lies_on_the_diagonal() -> None:
    """Truth drawn with the very probability: every bin within four deviations of its binomial."""
    generator = np.random.default_rng(3)
    said = generator.random(5000)
    truth = generator.random(5000) < said
    curve = calibration_curve(said, truth)
    assert curve.count == (500,) * 10
    np.testing.assert_allclose(curve.predicted, np.arange(10) / 10 + 0.05, atol=0.02)
    off = np.abs(np.subtract(curve.observed, curve.predicted))
    assert (off < 4 * np.sqrt(np.multiply(curve.predicted, np.subtract(1, curve.predicted)) / 500)).all()
    assert calibration_error(said, truth) == pytest.approx(expected_by_chance(said), abs=0.006)
    assert calibration_error(said**2, truth) > 0.1


def test_what_chance_leaves_is_the_mean_deviation_of_a_binomial() -> None:
    """One bin of n cases at p: E|X / n - p|, about sqrt(2 p (1 - p) / (pi n))."""
    said = np.full(400, 0.3)
    assert expected_by_chance(said) == pytest.approx(np.sqrt(2 * 0.3 * 0.7 / (np.pi * 400)), rel=0.06)
    assert expected_by_chance(np.ones(10)) == 0


@given(CASES)
def test_bins_keep_all_cases_part_no_ties_and_do_not_mind_the_order(cases: list[tuple[int, bool]]) -> None:
    said, truth = np.array([value / 8 for value, _ in cases]), np.array([positive for _, positive in cases])
    curve = calibration_curve(said, truth, bins=4)
    assert sum(curve.count) == len(cases)
    assert np.dot(curve.observed, curve.count) == pytest.approx(truth.sum())
    assert np.dot(curve.predicted, curve.count) == pytest.approx(said.sum())
    assert list(curve.predicted) == sorted(curve.predicted)
    assert len(curve.count) <= min(4, len(set(said)))
    shuffled = np.random.default_rng(0).permutation(len(cases))
    again = calibration_curve(said[shuffled], truth[shuffled], bins=4)
    assert again.count == curve.count
    assert again.observed == pytest.approx(curve.observed)


@given(CASES)
def test_the_error_is_the_mean_gap_of_the_curve(cases: list[tuple[int, bool]]) -> None:
    said, truth = np.array([value / 8 for value, _ in cases]), np.array([positive for _, positive in cases])
    curve = calibration_curve(said, truth, bins=4)
    gaps = [abs(p - o) * n for p, o, n in zip(curve.predicted, curve.observed, curve.count, strict=True)]
    assert calibration_error(said, truth, bins=4) == pytest.approx(sum(gaps) / len(cases))
