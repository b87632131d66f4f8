"""How much a lowered precision changes: signal-to-noise, decision flips, and the paired difference in AUC.

Everything is measured against one FP32 baseline on the same studies; numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourphase.calibration.roc import auc

__all__ = [
    "Classification",
    "Interval",
    "auc_difference",
    "bootstrap",
    "classification",
    "flips",
    "scores_of",
    "sqnr_db",
]

Floats = NDArray[np.float32] | NDArray[np.float64]
Metric = Callable[[NDArray[np.intp]], float]

_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Classification:
    """The paper's four figures of a binary classifier, each from 0 to 1; `positive` is the class they speak of."""

    count: int
    auc: float
    accuracy: float
    f1: float
    npv: float


def sqnr_db(reference: Floats, value: Floats) -> float:
    """Signal to quantization noise in decibel: 10 log10(sum reference^2 / sum (reference - value)^2).

    inf if both are equal, -inf if a value is not finite.
    """
    if not np.isfinite(value).all():
        return float("-inf")
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(np.subtract(reference, value, dtype=np.float64)).sum())
    if noise == 0:
        return float("inf")
    return 10 * float(np.log10(signal / noise)) if signal > 0 else float("-inf")


def flips(reference: Floats, value: Floats) -> int:
    """Studies whose largest logit is another class's than the baseline's; logits (N, K)."""
    return int((reference.argmax(axis=-1) != value.argmax(axis=-1)).sum())


def scores_of(logits: Floats, positive: int = 1) -> NDArray[np.float64]:
    """Logits (N, K) -> one score per study that rises with the class `positive`: its logit against the others' sum."""
    values = logits.astype(np.float64)
    others = np.delete(values, positive, axis=1)
    peak = others.max(axis=1, keepdims=True)
    rest = peak[:, 0] + np.log(np.exp(others - peak).sum(axis=1))
    return np.asarray(values[:, positive] - rest)


def classification(logits: Floats, positives: NDArray[np.bool_], positive: int = 1) -> Classification:
    """The four figures of logits (N, K) against the truth (N,), at the decision "largest logit".

    NPV and F1 are 0 where nothing was called negative or positive.

    Raises: UsageError if one of the classes is absent.
    """
    scores = scores_of(logits, positive)
    called = logits.argmax(axis=-1) == positive
    hits, rejected = int((called & positives).sum()), int((~called & ~positives).sum())
    wrong = int((called != positives).sum())
    f1 = 2 * hits / (2 * hits + wrong) if hits or wrong else 0.0
    npv = rejected / int((~called).sum()) if not called.all() else 0.0
    return Classification(len(scores), auc(scores, positives), 1 - wrong / len(scores), f1, npv)


def auc_difference(reference: Floats, value: Floats, positives: NDArray[np.bool_], positive: int = 1) -> Interval:
    """AUC of `value` minus AUC of `reference` (logits (N, K) of the same studies), with a paired bootstrap interval."""
    before, after = scores_of(reference, positive), scores_of(value, positive)

    def difference(chosen: NDArray[np.intp]) -> float:
        return float(auc(after[chosen], positives[chosen]) - auc(before[chosen], positives[chosen]))

    return bootstrap(difference, positives)


def bootstrap(metric: Metric, positives: NDArray[np.bool_], *, resamples: int = _RESAMPLES, seed: int = 0) -> Interval:
    """A metric of chosen cases with its percentile interval; resampled within each class, so both are always there.

    Args:
        metric: takes indices (n,) and returns a number.
        positives: the truth (n,), which defines the strata.
    """
    generator = np.random.default_rng(seed)
    strata = [np.flatnonzero(positives), np.flatnonzero(~positives)]
    values = [
        metric(np.concatenate([generator.choice(stratum, len(stratum)) for stratum in strata]))
        for _ in range(resamples)
    ]
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(metric(np.arange(len(positives))), float(low), float(high))
