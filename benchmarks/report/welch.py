"""The ratio of two measurements that were not taken in turns, with the noise of both: Welch's t on logarithms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

__all__ = ["FEWEST_ROUNDS", "Change", "change_of_rounds", "change_of_spreads"]

#: A variance of fewer says nothing.
FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Change:
    """NEW over OLD.

    Attributes:
        old, new: geometric means of the round medians, or the medians.
        noise: what the ratio may be above 1, or 1 over it, by chance: 0.03 is 3 %.
        noise_from: "rounds" or "spread".
    """

    old: float
    new: float
    noise: float
    noise_from: str

    @property
    def ratio(self) -> float:
        return self.new / self.old


def change_of_rounds(old: Sequence[float], new: Sequence[float], confidence: float = 0.95) -> Change:
    """From the medians of rounds, all above 0; the noise is the half-width of the interval of that confidence.

    Degrees of freedom are Welch and Satterthwaite's. Drift between the two runs is not in it: two rounds of one run
    are more alike than two runs, which is why `compare` has a tolerance besides.

    Raises: ValueError with fewer than FEWEST_ROUNDS rounds.
    """
    if min(len(old), len(new)) < FEWEST_ROUNDS:
        raise ValueError(f"an interval needs {FEWEST_ROUNDS} rounds")
    from scipy.stats import t

    logs = [[math.log(value) for value in values] for values in (old, new)]
    before, after = (math.exp(fmean(values)) for values in logs)
    shares = [variance(values) / len(values) for values in logs]
    if sum(shares) == 0:
        return Change(before, after, 0.0, "rounds")
    freedom = sum(shares) ** 2 / sum(share**2 / (len(values) - 1) for share, values in zip(shares, logs, strict=True))
    half = float(t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(sum(shares))
    return Change(before, after, math.expm1(half), "rounds")


def change_of_spreads(
    old: float, new: float, cv_old_percent: float, cv_new_percent: float, confidence: float = 0.95
) -> Change:
    """From two medians and the coefficients of variation of single runs, where no rounds were kept.

    The noise is that of single runs, which is more than that of their median: a small change is not seen this way.
    """
    beyond = NormalDist().inv_cdf((1 + confidence) / 2)
    return Change(old, new, math.expm1(beyond * math.hypot(cv_old_percent, cv_new_percent) / 100), "spread")
