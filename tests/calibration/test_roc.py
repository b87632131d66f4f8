import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourphase.calibration.roc import auc, roc_curve
from fourphase.runtime.errors import UsageError

#: Few distinct scores, so that ties are the rule.
CASES = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40).filter(
    lambda cases: len({positive for _, positive in cases}) == 2
)


@given(CASES)
def test_auc_is_the_share_of_pairs_in_the_right_order(cases: list[tuple[int, bool]]) -> None:
    scores, truth = [score / 3 for score, _ in cases], [positive for _, positive in cases]
    hits = [score for score, positive in zip(scores, truth, strict=True) if positive]
    misses = [score for score, positive in zip(scores, truth, strict=True) if not positive]
    pairs = [(hit > miss) + 0.5 * (hit == miss) for hit in hits for miss in misses]
    assert auc(scores, truth) == pytest.approx(sum(pairs) / len(pairs))


@given(CASES)
def test_the_area_under_the_curve_is_the_auc(cases: list[tuple[int, bool]]) -> None:
    scores, truth = [score for score, _ in cases], [positive for _, positive in cases]
    false_rate, true_rate = roc_curve(scores, truth)
    assert (false_rate[0], true_rate[0], false_rate[-1], true_rate[-1]) == (0, 0, 1, 1)
    assert (np.diff(false_rate) >= 0).all()
    assert (np.diff(true_rate) >= 0).all()
    assert np.trapezoid(true_rate, false_rate) == pytest.approx(auc(scores, truth))


def test_perfect_and_reversed_scores() -> None:
    assert auc([0, 1, 2, 3], [False, False, True, True]) == 1
    assert auc([3, 2, 1, 0], [False, False, True, True]) == 0
    assert auc([1, 1, 1], [True, False, True]) == 0.5


@pytest.mark.parametrize("truth", [[True, True], [False, False]])
def test_one_class_alone_has_no_curve(truth: list[bool]) -> None:
    with pytest.raises(UsageError):
        auc([0, 1], truth)
