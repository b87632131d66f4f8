"""How well scores separate two classes: the ROC curve and the area under it. numpy only; no confidence intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fourphase.runtime.errors import UsageError

__all__ = ["auc", "roc_curve"]

Float = NDArray[np.float64]


def auc(scores: ArrayLike, positives: ArrayLike) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties counting half.

    Computed from ranks (Mann-Whitney U; Hanley and McNeil 1982, doi 10.1148/radiology.143.1.7063747).

    Args:
        scores: (n,), higher means more likely positive.
        positives: bool (n,).

    Raises: UsageError if one of the classes is absent.
    """
    values, positive = _checked(scores, positives)
    _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
    # Tied scores share the mean of their ranks.
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[position]
    hits = int(positive.sum())
    u = float(ranks[positive].sum()) - hits * (hits + 1) / 2
    return u / (hits * (len(positive) - hits))


def roc_curve(scores: ArrayLike, positives: ArrayLike, *, corners: bool = False) -> tuple[Float, Float]:
    """(false positive rate, true positive rate), one point per distinct score from (0, 0) to (1, 1), float64.

    Args:
        corners: only the points where the curve changes its direction, which make the same curve.

    Raises: UsageError if one of the classes is absent.
    """
    values, positive = _checked(scores, positives)
    order = np.argsort(-values, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    hits, misses = np.cumsum(positive[order])[last_of_tie], np.cumsum(~positive[order])[last_of_tie]
    misses, hits = np.append(0, misses), np.append(0, hits)
    if corners:
        # In whole cases, so that straight is straight exactly.
        right, up = np.diff(misses), np.diff(hits)
        turns = right[:-1] * up[1:] != right[1:] * up[:-1]
        kept = np.concatenate([[True], turns, [True]])
        misses, hits = misses[kept], hits[kept]
    return misses / misses[-1], hits / hits[-1]


def _checked(scores: ArrayLike, positives: ArrayLike) -> tuple[Float, NDArray[np.bool_]]:
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(positives, dtype=bool)
    if positive.all() or not positive.any():
        raise UsageError(
            "an ROC curve needs cases of both classes", "add cases of the class that is missing", key="one_class"
        )
    return values, positive
