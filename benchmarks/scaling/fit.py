"""A power law through the points of a sweep: latency = a x^k, with an interval of k, or the reason why there is none.

Least squares on logarithms; the interval is Student's for the slope. No machine here: numbers in, numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["FEWEST_POINTS", "WIDEST_EXPONENT", "PowerLaw", "power_law", "slope_of", "verdict"]

#: Two points lie on every power law.
FEWEST_POINTS = 3
#: An interval of the exponent that is wider tells nobody whether cost is linear or quadratic.
WIDEST_EXPONENT = 0.5
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class PowerLaw:
    """y = factor * x ** exponent.

    Attributes:
        low, high: 95 % confidence interval of the exponent.
        factor: y at x = 1, in y's unit.
        r_squared: share of the variance of log y that the line explains.
    """

    exponent: float
    low: float
    high: float
    r_squared: float
    factor: float

    def at(self, x: float) -> float:
        """y of the fitted line."""
        return float(self.factor * x**self.exponent)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def power_law(x: Sequence[float], y: Sequence[float]) -> tuple[PowerLaw | None, str]:
    """The power law of points (x, y), all above 0, and "", or None and why there is none.

    Raises: ValueError if there are not as many x as y.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} x and {len(y)} y")
    if len(set(x)) < FEWEST_POINTS:
        return None, f"{len(set(x))} points, a fit needs {FEWEST_POINTS}"
    from scipy.stats import linregress, t

    line = linregress([math.log(value) for value in x], [math.log(value) for value in y])
    half = float(t.ppf((1 + _CONFIDENCE) / 2, len(x) - 2)) * float(line.stderr)
    exponent = float(line.slope)
    low, high = exponent - half, exponent + half
    if not high - low <= WIDEST_EXPONENT:
        wide = f"the exponent's interval {low:.2f} to {high:.2f} is wider than {WIDEST_EXPONENT:g}"
        return None, f"{wide}: a noisy run, or no power of x"
    return PowerLaw(exponent, low, high, float(line.rvalue) ** 2, math.exp(float(line.intercept))), ""


def slope_of(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent alone of numbers that carry no noise (counted arithmetic); the least-squares line through them."""
    from scipy.stats import linregress

    return float(linregress([math.log(value) for value in x], [math.log(value) for value in y]).slope)


def verdict(what: str, law: PowerLaw, x: Sequence[float], latency_ms: Sequence[float], gmac: Sequence[float]) -> str:
    """One sentence on how latency grows, beside how the counted arithmetic does.

    The reason is in the numbers: where latency grows less than arithmetic, a GMAC costs less at the large end.
    """
    counted = slope_of(x, gmac)
    per_gmac = [time / work for time, work in zip(latency_ms, gmac, strict=True)]
    return (
        f"latency grows as {what}^{law.exponent:.2f} ({law.low:.2f} to {law.high:.2f}), {_beside(law, 1.0, 'linear')};"
        f" the arithmetic grows as {what}^{counted:.2f}, latency {_beside(law, counted, 'as it does')}:"
        f" {per_gmac[0]:.3g} ms per GMAC at {x[0]:g}, {per_gmac[-1]:.3g} at {x[-1]:g}"
    )


def _beside(law: PowerLaw, exponent: float, equal: str) -> str:
    if law.low <= exponent <= law.high:
        return equal
    way = "less" if law.high < exponent else "more"
    return f"{way} than {equal}" if equal == "linear" else f"{way} than it"
