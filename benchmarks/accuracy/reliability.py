"""Whether probabilities mean what they say: the calibration curve, Brier score and expected calibration error.

numpy only. Nothing here changes a probability (temperature scaling and the like), and int8 calibration is another
thing (`fourphase.calibration`).
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.calibration.metrics import scores_of

__all__ = [
    "BINS",
    "CalibrationCurve",
    "brier_score",
    "calibration_curve",
    "calibration_error",
    "expected_by_chance",
    "probabilities_of",
]

Floats = NDArray[np.float64]
Truth = NDArray[np.bool_]

#: Bins of the calibration curve and of the ECE, with as many cases in each.
BINS = 10
#: Draws of the truth for the ECE that chance alone brings.
_DRAWS = 1000


@dataclass(frozen=True)
class CalibrationCurve:
    """A reliability diagram: one entry per bin, from low to high probability.

    Attributes:
        predicted: mean probability of the positive class, 0 to 1.
        observed: share of positives.
        count: cases.
    """

    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    count: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {name: list(values) for name, values in asdict(self).items()}


def probabilities_of(logits: NDArray[np.float32] | Floats, positive: int = 1) -> Floats:
    """Logits (N, K) -> the softmax's share of the class `positive`, float64 (N,)."""
    # Written with tanh, which overflows nowhere.
    return np.asarray(0.5 * (1 + np.tanh(0.5 * scores_of(logits, positive))))


def calibration_curve(probabilities: Floats, positives: Truth, bins: int = BINS) -> CalibrationCurve:
    """Bins of equal count over the sorted probabilities (N,), against the truth (N,).

    Equal probabilities are never parted, so the order of the cases does not matter; then bins are fewer or unequal.
    """
    order, bounds = _bins(probabilities, bins)
    values, truth = probabilities[order], positives[order]
    parts = [slice(int(first), int(last)) for first, last in itertools.pairwise(bounds)]
    return CalibrationCurve(
        tuple(float(values[part].mean()) for part in parts),
        tuple(float(truth[part].mean()) for part in parts),
        tuple(part.stop - part.start for part in parts),
    )


def brier_score(probabilities: Floats, positives: Truth) -> float:
    """Mean of (probability - truth)^2: 0 is perfect, always saying 0.5 has 0.25 (Brier 1950)."""
    return float(np.square(probabilities - positives).mean())


def calibration_error(probabilities: Floats, positives: Truth, bins: int = BINS) -> float:
    """Expected calibration error (ECE): mean over the cases of |predicted - observed| of their bin.

    Naeini et al. 2015 (AAAI), with bins of equal count. Few cases per bin make it too high: see `expected_by_chance`.
    """
    order, bounds = _bins(probabilities, bins)
    return _errors((probabilities - positives)[order], bounds)


def expected_by_chance(probabilities: Floats, bins: int = BINS, *, seed: int = 0) -> float:
    """The mean ECE if every case were positive with just its probability: what is left of it without any fault."""
    order, bounds = _bins(probabilities, bins)
    generator, said = np.random.default_rng(seed), probabilities[order]
    # One draw at a time: all at once would not fit into memory for many cases.
    return float(np.mean([_errors(said - (generator.random(len(said)) < said), bounds) for _ in range(_DRAWS)]))


def _errors(differences: Floats, bounds: NDArray[np.intp]) -> float:
    """Probability minus truth, sorted, (N,) -> ECE: |sum of a bin| / N, added over the bins."""
    return float(np.abs(np.add.reduceat(differences, bounds[:-1])).sum() / len(differences))


def _bins(probabilities: Floats, bins: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The sorting order, and where bins begin in it, with the end of the last; a bound moves to the end of its tie."""
    order = np.argsort(probabilities, kind="stable")
    values, count = probabilities[order], len(probabilities)
    places = np.arange(1, bins + 1) * count // bins
    ends = np.searchsorted(values, values[places[places > 0] - 1], side="right")
    return order, np.concatenate([[0], np.unique(ends)])
