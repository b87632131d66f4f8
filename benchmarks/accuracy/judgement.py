"""What logits are worth against the truth: the paper's four figures, the ROC curve, and whether to believe the softmax.

All with 95 % bootstrap intervals over the studies, which know nothing of how else a training might have gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.accuracy.reliability import (
    CalibrationCurve,
    brier_score,
    calibration_curve,
    calibration_error,
    expected_by_chance,
    probabilities_of,
)
from fourphase.calibration.metrics import Classification, Interval, bootstrap, classification, scores_of
from fourphase.calibration.roc import roc_curve

__all__ = ["ECE_NOTE", "FIGURES", "PAPER", "Judgement", "figures_of", "intervals_text", "judgement_of", "paper_text"]

Floats = NDArray[np.float32]

#: Name in `Classification` -> heading.
FIGURES: Mapping[str, str] = MappingProxyType({"auc": "AUC", "accuracy": "ACC", "f1": "F1", "npv": "NPV"})
#: Qiao et al. 2024, full model, 398 patients, 5-fold (doi 10.1186/s12938-024-01297-x).
PAPER: Mapping[str, float] = MappingProxyType({"auc": 0.8973, "accuracy": 0.8550, "f1": 0.8544, "npv": 0.8635})
ECE_NOTE = (
    "the ECE of a resample is higher, because some phantoms are in it twice: its interval may lie above its value; "
    "'by chance' is what exact probabilities would have"
)
#: Decimals of the curves' points in JSON.
_DECIMALS = 6


@dataclass(frozen=True)
class Judgement:
    """What logits are worth.

    Attributes:
        figures: name in FIGURES -> value from 0 to 1 with its interval.
        roc: false and true positive rate, the corners of the curve from (0, 0) to (1, 1).
        curve: predicted probability of the second class against its observed share.
        brier, ece: of the same probabilities.
        ece_by_chance: the ECE to be expected of as many studies if every probability were exactly right.
    """

    figures: Mapping[str, Interval]
    roc: tuple[tuple[float, ...], tuple[float, ...]]
    curve: CalibrationCurve
    brier: Interval
    ece: Interval
    ece_by_chance: float

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        false_rate, true_rate = ([round(value, _DECIMALS) for value in rates] for rates in self.roc)
        return {
            **{name: asdict(interval) for name, interval in self.figures.items()},
            "roc": {"fpr": false_rate, "tpr": true_rate},
            "calibration_curve": self.curve.to_dict(),
            "brier": asdict(self.brier),
            "ece": asdict(self.ece),
            "ece_by_chance": self.ece_by_chance,
        }


def judgement_of(logits: Floats, positives: NDArray[np.bool_]) -> Judgement:
    """Judges logits (N, K) by the truth (N,), both kinds in it; see ECE_NOTE.

    Raises: UsageError if one of the kinds is absent.
    """
    probabilities = probabilities_of(logits)
    false_rate, true_rate = roc_curve(scores_of(logits), positives, corners=True)
    return Judgement(
        figures_of(logits, positives),
        (tuple(map(float, false_rate)), tuple(map(float, true_rate))),
        calibration_curve(probabilities, positives),
        bootstrap(lambda chosen: brier_score(probabilities[chosen], positives[chosen]), positives),
        bootstrap(lambda chosen: calibration_error(probabilities[chosen], positives[chosen]), positives),
        expected_by_chance(probabilities),
    )


def figures_of(logits: Floats, positives: NDArray[np.bool_]) -> dict[str, Interval]:
    """AUC, accuracy, F1 and NPV of logits (N, K), each with its 95 % bootstrap interval."""

    # Every figure is drawn with the same seed, so each resample needs to be judged once only.
    @cache
    def judged(chosen: bytes) -> Classification:
        indices = np.frombuffer(chosen, dtype=np.intp)
        return classification(logits[indices], positives[indices])

    def figure(name: str) -> Interval:
        return bootstrap(lambda chosen: getattr(judged(chosen.tobytes()), name), positives)

    return {name: figure(name) for name in FIGURES}


def intervals_text(interval: Interval, sign: str = "") -> str:
    """Per cent, the interval on a second line: "94.36" and "91.02 to 97.09"."""
    value, low, high = (f"{100 * number:{sign}.2f}" for number in (interval.value, interval.low, interval.high))
    return f"{value}\n{low} to {high}"


def paper_text() -> str:
    """The paper's figures in a sentence that says whose they are."""
    figures = ", ".join(f"{FIGURES[key]} {100 * value:.2f}" for key, value in PAPER.items())
    return f"The paper, on its 398 patients: {figures} %. Not comparable: other data."
