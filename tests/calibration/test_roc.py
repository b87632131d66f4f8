from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourphase.calibration.roc import auc, roc_curve
from fourphase.runtime.errors import UsageError

Point = tuple[float, float]

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


@given(CASES)
def test_corners_make_the_same_curve_with_no_point_on_a_straight_line(cases: list[tuple[int, bool]]) -> None:
    scores, truth = [score / 3 for score, _ in cases], [positive for _, positive in cases]
    x, y = roc_curve(scores, truth, corners=True)
    every_x, every_y = roc_curve(scores, truth)
    assert {*zip(x, y, strict=True)} <= {*zip(every_x, every_y, strict=True)}
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    for point in zip(every_x, every_y, strict=True):
        assert min(_off_segment(point, *ends) for ends in pairwise(zip(x, y, strict=True))) < 1e-12
    corners = list(zip(x, y, strict=True))
    for first, middle, last in zip(corners, corners[1:], corners[2:], strict=False):
        assert _off_segment(middle, first, last) > 1e-4


def _off_segment(point: Point, start: Point, end: Point) -> float:
    """How far a point is from the line between two others."""
    along, off = np.subtract(end, start), np.subtract(point, start)
    share = np.clip(np.dot(off, along) / np.dot(along, along), 0, 1)
    return float(np.linalg.norm(off - share * along))


def test_perfect_and_reversed_scores() -> None:
    assert auc([0, 1, 2, 3], [False, False, True, True]) == 1
    assert auc([3, 2, 1, 0], [False, False, True, True]) == 0
    assert auc([1, 1, 1], [True, False, True]) == 0.5


@pytest.mark.parametrize("truth", [[True, True], [False, False]])
def test_one_class_alone_has_no_curve(truth: list[bool]) -> None:
    with pytest.raises(UsageError):
        auc([0, 1], truth)
