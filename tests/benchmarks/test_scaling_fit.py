"""The power law of a sweep: against the closed form of least squares, its interval against scipy, and its refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fourphase.benchmarks.scaling.fit import FEWEST_POINTS, PowerLaw, power_law, slope_of, verdict
from fourphase.benchmarks.scaling.sweeps import Point, Size, Sweep, SweepResult

X = (16, 32, 64, 128, 256)


def test_an_exact_power_is_found() -> None:
    law, reason = power_law(X, [0.25 * x**1.5 for x in X])
    assert reason == ""
    assert law is not None
    assert (law.exponent, law.low, law.high, law.factor) == pytest.approx((1.5, 1.5, 1.5, 0.25))
    assert law.r_squared == pytest.approx(1)
    assert law.at(100) == pytest.approx(250)


def test_interval_is_that_of_the_closed_form() -> None:
    y = np.array(X) ** 1.1 * np.exp(np.random.default_rng(0).normal(0, 0.05, len(X)))
    law, _ = power_law(X, list(y))
    assert law is not None
    design = np.stack([np.ones(len(X)), np.log(X)], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ np.log(y)
    residuals = np.log(y) - design @ coefficients
    error = math.sqrt(residuals @ residuals / (len(X) - 2) * inverse[1, 1])
    low, high = stats.t.interval(0.95, len(X) - 2, coefficients[1], error)
    assert (law.exponent, law.low, law.high) == pytest.approx((coefficients[1], low, high))
    centred = np.log(y) - np.log(y).mean()
    assert law.r_squared == pytest.approx(1 - residuals @ residuals / (centred @ centred))


def test_two_points_make_no_line() -> None:
    law, reason = power_law(X[: FEWEST_POINTS - 1], [1.0, 2.0])
    assert law is None
    assert reason == "2 points, a fit needs 3"
    assert power_law([16, 16, 16], [1.0, 1.1, 1.2])[0] is None


def test_what_is_no_power_or_too_noisy_has_no_exponent() -> None:
    law, reason = power_law(X, [1.0, 5.0, 2.0, 9.0, 4.0])
    assert law is None
    assert "wider than 0.5" in reason


def test_numbers_must_match() -> None:
    with pytest.raises(ValueError, match="2 x and 1 y"):
        power_law([1, 2], [1.0])


def test_the_verdict_says_how_latency_stands_to_arithmetic() -> None:
    gmac = [x**2 / 100 for x in X]
    assert slope_of(X, gmac) == pytest.approx(2)
    law = PowerLaw(1.8, 1.7, 1.9, 0.99, 1.0)
    said = verdict("crop", law, X, [x**1.8 for x in X], gmac)
    assert "crop^1.80 (1.70 to 1.90), more than linear" in said
    assert "the arithmetic grows as crop^2.00, latency less than it" in said
    at_ends = [100 * 16**-0.2, 100 * 256**-0.2]
    assert said.endswith(f"{at_ends[0]:.3g} ms per GMAC at 16, {at_ends[1]:.3g} at 256")
    equal = verdict("slices", PowerLaw(1.0, 0.98, 1.02, 1, 1), X, list(X), list(X))
    assert "(0.98 to 1.02), linear; the arithmetic grows as slices^1.00, latency as it does" in equal
    assert "less than linear" in verdict("slices", PowerLaw(0.9, 0.88, 0.92, 1, 1), X, list(X), list(X))


def swept(spread: float, count: int = 5) -> SweepResult:
    """Latency 2 x, with rounds that differ by a factor of `spread`."""
    rounds = {x: tuple(2.0 * x * spread ** (i % 2) for i in range(count)) for x in X}
    points = tuple(Point(x, "ok", "", {"p50": 2.0 * x}, rounds[x], x / 10) for x in X)
    return SweepResult(Sweep("slices", X, Size(16, 64, 1, 64)), "four-phase", "onnxruntime", points)


def test_a_sweep_of_steady_points_has_its_exponent_and_its_sentence() -> None:
    found = swept(1.01).to_dict()
    assert found["fit"]["exponent"] == pytest.approx(1)
    assert found["reason"] == ""
    assert found["held"] == {"crop": 64, "batch": 1, "width": 64}
    assert "20 ms per GMAC at 16, 20 at 256" in found["statement"]


def test_a_sweep_of_unsteady_points_has_none() -> None:
    for result, words in ((swept(1.5), "noisy"), (swept(1.0, count=4), "4 rounds")):
        found = result.to_dict()
        assert found["fit"] is None
        assert found["statement"] == ""
        assert found["reason"].startswith("slices 16 is not steady")
        assert words in found["reason"]


def test_points_without_a_time_are_no_part_of_the_fit() -> None:
    full = swept(1.0)
    points = (*full.points[:2], Point(64, "failed", "no memory"), *full.points[3:])
    law, _ = SweepResult(full.sweep, full.network, full.runtime, points).law()
    assert law is not None
    assert law.exponent == pytest.approx(1)
    law, reason = SweepResult(full.sweep, full.network, full.runtime, full.points[:2]).law()
    assert law is None
    assert "2 points" in reason
