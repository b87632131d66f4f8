"""`mse` against brute force over the values themselves; the others against onnxruntime's collector fed with them."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import HistogramCollector

from fourphase.calibration.histograms import Histogram
from fourphase.calibration.int8 import quantize, scale_of
from fourphase.calibration.thresholds import ALGORITHMS, threshold_of

Floats = NDArray[np.float32]


def samples(kind: str) -> Floats:
    """150,000 values whose largest magnitude is just below 8, so that both histograms end at 8."""
    rng = np.random.default_rng(5)
    normal = rng.normal(size=150_000)
    drawn = {
        "normal": normal,
        "rectified": np.maximum(normal, 0),
        "laplace": rng.laplace(size=150_000),
        "heavy": rng.standard_t(3, size=150_000),
        "negative": -np.abs(normal),
    }[kind]
    return np.asarray(drawn * (7.999999 / np.abs(drawn).max()), dtype=np.float32)


KINDS = ("normal", "rectified", "laplace", "heavy", "negative")


def histogram_of(values: Floats) -> Histogram:
    histogram = Histogram()
    for part in np.array_split(values, 3):
        histogram.add(part)
    return histogram


def squared_error(values: Floats, threshold: float) -> float:
    scale = scale_of(threshold)
    return float(np.square(quantize(values, scale) * scale - values, dtype=np.float64).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_as_good_as_brute_force_over_the_values(kind: str) -> None:
    values = samples(kind)
    chosen = threshold_of(histogram_of(values), "mse")
    best = min(squared_error(values, candidate) for candidate in np.linspace(0.4, 8, 400))
    assert squared_error(values, chosen) <= 1.01 * best
    assert best < 0.9 * squared_error(values, 8.0) or kind == "rectified"


def collected(values: Floats, method: str, bins: int) -> HistogramCollector:
    collector: Any = HistogramCollector(
        method=method, symmetric=True, num_bins=bins, num_quantized_bins=128, percentile=99.999, scenario="same"
    )
    with contextlib.redirect_stdout(io.StringIO()):
        collector.collect({"x": values})
    return collector


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_is_onnxruntimes(kind: str) -> None:
    values = samples(kind)
    collector = collected(values, "entropy", 512)
    low, high = collector.get_entropy_threshold(collector.histogram_dict["x"], 128)
    assert threshold_of(histogram_of(values), "entropy") == pytest.approx(max(-low, high), abs=8 / 256)


@pytest.mark.parametrize("kind", KINDS)
def test_percentile_is_that_of_the_magnitudes(kind: str) -> None:
    values = samples(kind)
    exact = np.quantile(np.abs(values), 0.99999, method="inverted_cdf")
    assert threshold_of(histogram_of(values), "percentile") == pytest.approx(exact, abs=2 * 8 / 8192)


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_is_the_largest_magnitude(kind: str) -> None:
    values = samples(kind)
    assert threshold_of(histogram_of(values), "minmax") == np.abs(values).max()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_but_zeros_has_the_threshold_zero(algorithm: str) -> None:
    assert threshold_of(histogram_of(np.zeros(9, np.float32)), algorithm) == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("values", [[1.0], [-3.0, 0.0], [1e-30, 2e-30], [1e30, 5.0]])
def test_a_threshold_is_never_beyond_the_largest_magnitude(algorithm: str, values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    assert 0 < threshold_of(histogram_of(np.tile(array, 3)), algorithm) <= np.abs(array).max()


def test_onnxruntime_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for algorithm in ALGORITHMS:
        threshold_of(histogram_of(samples("normal")), algorithm)
    assert capsys.readouterr().out == ""
