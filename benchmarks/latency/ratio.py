"""The ratio of two candidates that took turns, with a confidence interval, or the reason why none is quoted.

Each round gives one ratio (the median of A over the median of B in that round), so that a clock that drifts, or a
neighbour that comes and goes, meets both. No torch and no machine here: numbers in, numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import Any

__all__ = ["BUSIEST", "FEWEST_ROUNDS", "WIDEST", "Ratio", "paired_ratio", "refused_if_busy", "why_busy"]

#: With fewer rounds an interval says nothing.
FEWEST_ROUNDS = 5
#: An interval whose ends differ by more than this factor is that of a noisy run: its ratio is not quoted.
WIDEST = 1.25
#: Above this share of the cores' time taken by others, no ratio is quoted.
BUSIEST = 0.15
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """A over B: above 1, A takes longer.

    Attributes:
        value: geometric mean of the rounds' ratios; None where it is not quoted.
        low, high: 95 % confidence interval (Student's t on the logarithms); kept for a noisy run, to be looked at.
        rounds: how many rounds both took part in.
        refused: why there is no value; "" if there is one.
    """

    value: float | None
    low: float | None
    high: float | None
    rounds: int
    refused: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """The ratio of two candidates measured in turns.

    Args:
        a, b: one time per round, in one unit; the i-th of both were measured in the same round. All above 0.

    Raises: ValueError if they have different numbers of rounds.
    """
    logarithms = [math.log(one / two) for one, two in zip(a, b, strict=True)]
    rounds = len(logarithms)
    if rounds < FEWEST_ROUNDS:
        return Ratio(None, None, None, rounds, f"{rounds} rounds, an interval needs {FEWEST_ROUNDS}")
    from scipy.stats import t

    mean = fmean(logarithms)
    half = float(t.ppf((1 + _CONFIDENCE) / 2, rounds - 1)) * stdev(logarithms) / math.sqrt(rounds)
    low, high = math.exp(mean - half), math.exp(mean + half)
    if high / low > WIDEST:
        return Ratio(None, low, high, rounds, f"noisy: the interval {low:.2f} to {high:.2f} is wider than {WIDEST:g} x")
    return Ratio(math.exp(mean), low, high, rounds)


def refused_if_busy(ratio: Ratio, busy: float | None) -> Ratio:
    """The ratio without its value where others took more than BUSIEST of the cores' time; `busy`: None is unknown."""
    said = why_busy(busy)
    return replace(ratio, value=None, refused="; ".join(filter(None, (ratio.refused, said)))) if said else ratio


def why_busy(busy: float | None) -> str:
    """Why nothing is quoted of a run in which others took that share; "" if it was small or is unknown."""
    if busy is None or busy <= BUSIEST:
        return ""
    return f"other processes took {busy:.0%} of the cores' time, more than {BUSIEST:.0%}"
