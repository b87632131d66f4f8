from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fourphase.calibration.metrics import auc_difference, bootstrap, classification, flips, scores_of, sqnr_db
from fourphase.runtime.errors import UsageError

TRUTH = np.array([True, True, True, False, False, False])


def test_sqnr_is_the_closed_form() -> None:
    reference = np.array([3.0, 4.0], np.float32)
    assert sqnr_db(reference, reference + np.float32(0.5)) == pytest.approx(10 * np.log10(25 / 0.5))
    assert sqnr_db(reference, reference) == float("inf")
    assert sqnr_db(np.zeros(2, np.float32), reference) == float("-inf")


def test_flips_counts_changed_decisions() -> None:
    before = np.array([[1, 0], [0, 1], [2, 1]], np.float32)
    after = np.array([[0, 1], [0, 1], [1.1, 1]], np.float32)
    assert flips(before, after) == 1


def test_four_figures_against_a_table_counted_by_hand() -> None:
    # called positive: 0, 1, 3; so 2 hits, 1 false alarm, 1 miss, 2 rejected.
    logits = np.array([[0, 2], [0, 1], [1, 0], [0, 0.5], [1, 0.5], [3, 0]], np.float32)
    figures = classification(logits, TRUTH)
    assert figures.count == 6
    assert figures.accuracy == pytest.approx(4 / 6)
    assert figures.f1 == pytest.approx(2 * 2 / (2 * 2 + 2))
    assert figures.npv == pytest.approx(2 / 3)
    assert figures.auc == pytest.approx(7 / 9)  # scores 2, 1, -1 against 0.5, -0.5, -3


def test_one_class_only_is_an_error() -> None:
    with pytest.raises(UsageError):
        classification(np.zeros((2, 2), np.float32), np.array([True, True]))


@given(arrays(np.float32, (7, 2), elements=st.floats(-50, 50, width=32)))
def test_the_score_of_two_classes_is_the_difference_of_logits(logits: np.ndarray) -> None:
    np.testing.assert_allclose(scores_of(logits), logits[:, 1].astype(float) - logits[:, 0], atol=1e-9)


def test_the_score_of_three_classes_orders_like_the_softmax() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    share = np.exp(logits[:, 1]) / np.exp(logits).sum(axis=1)
    assert (np.argsort(scores_of(logits)) == np.argsort(share)).all()


def test_equal_logits_have_no_auc_difference() -> None:
    logits = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
    difference = auc_difference(logits, logits.copy(), TRUTH)
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Mean of a normal sample: the 95 % interval must cover the true mean in most of 100 repeats."""
    generator = np.random.default_rng(2)
    positives = np.arange(80) % 2 == 0
    covered = 0
    for _ in range(100):
        sample = generator.normal(size=80)
        interval = bootstrap(lambda chosen, s=sample: float(s[chosen].mean()), positives, resamples=200)  # type: ignore[misc]
        covered += interval.low <= 0 <= interval.high
    assert 85 <= covered <= 100
