"""Where to clip an activation before it becomes int8: four algorithms, each from one histogram to one threshold.

`entropy` and `percentile` are onnxruntime's own, fed with our histograms; `minmax` is the largest magnitude; `mse`
is ours: the threshold whose codes are closest to the values, in the mean of squares.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.calibration.histograms import BINS, Histogram
from fourphase.calibration.int8 import QMAX, scale_of

__all__ = ["ALGORITHMS", "DEFAULT_ALGORITHM", "threshold_of"]

Counts = NDArray[np.int64]

#: Of the magnitudes, zeros included; onnxruntime's default.
_PERCENTILE = 99.999
#: Bins per side for the entropy, and the levels it is taken over (onnxruntime's default). Its search is smooth in
#: neither: of 256 to 2048 bins with 128 or 255 levels, on rectified, normal, Laplace and Student-t values, this pair
#: stayed within 4 dB of `mse`; the others fell 7 to 32 dB below it on one of them.
_ENTROPY_BINS = 256
_ENTROPY_LEVELS = 128
#: Thresholds tried for the mean square, in equal steps from a sixteenth of the largest magnitude up to all of it.
_MSE_STEPS = 240


def threshold_of(histogram: Histogram, algorithm: str) -> float:
    """The magnitude that maps to 127, by one of ALGORITHMS; 0 where nothing but zeros was seen."""
    if histogram.largest == 0:
        return 0.0
    return min(ALGORITHMS[algorithm](histogram), histogram.largest)


def _minmax(histogram: Histogram) -> float:
    return histogram.largest


def _percentile(histogram: Histogram) -> float:
    counts = histogram.magnitudes
    counts[0] += histogram.zeros
    edges = np.arange(BINS + 1) * histogram.width
    collector = _collector("percentile", BINS)
    collector.histogram_dict["x"] = (counts, edges, np.float64(-edges[-1]), np.float64(edges[-1]))
    with contextlib.redirect_stdout(io.StringIO()):
        return float(collector.compute_percentile()["x"][1])


def _entropy(histogram: Histogram) -> float:
    """Kullback-Leibler divergence between the clipped values and their codes, smallest over the thresholds."""
    merged = BINS // _ENTROPY_BINS
    counts = histogram.counts.reshape(-1, merged).sum(axis=1)
    counts[_ENTROPY_BINS] += histogram.zeros
    width = histogram.width * merged
    used = int(histogram.largest // width) + 1
    counts = counts[_ENTROPY_BINS - used : _ENTROPY_BINS + used]
    edges = np.arange(-used, used + 1) * width
    bounds = np.float64(histogram.low), np.float64(histogram.high)
    low, high = _collector("entropy", 2 * used).get_entropy_threshold((counts, edges, *bounds), _ENTROPY_LEVELS)
    return float(max(-low, high))


def _mse(histogram: Histogram) -> float:
    counts = histogram.magnitudes
    seen = np.flatnonzero(counts)
    values = ((seen + 0.5) * histogram.width).astype(np.float32)
    weights = counts[seen] / counts.sum()
    candidates = np.float32(histogram.largest) * np.linspace(1 / 16, 1, _MSE_STEPS, dtype=np.float32)
    errors = [_squared_error(values, weights, scale) for scale in scale_of(candidates)]
    return float(candidates[int(np.argmin(errors))])


def _squared_error(values: NDArray[np.float32], weights: NDArray[np.float64], scale: np.float32) -> float:
    """Mean of (code * scale - value)**2 over magnitudes; the one code more of the negative side is left out."""
    codes = np.minimum(np.rint(values / scale), np.float32(QMAX))
    return float(weights @ np.square(codes * scale - values, dtype=np.float64))


def _collector(method: str, bins: int) -> Any:
    from onnxruntime.quantization.calibrate import HistogramCollector

    return HistogramCollector(
        method=method,
        symmetric=True,
        num_bins=bins,
        num_quantized_bins=_ENTROPY_LEVELS,
        percentile=_PERCENTILE,
        scenario="same",
    )


#: Name -> the algorithm.
ALGORITHMS: Mapping[str, Callable[[Histogram], float]] = MappingProxyType(
    {"minmax": _minmax, "entropy": _entropy, "percentile": _percentile, "mse": _mse}
)
#: The one that won on 64 phantoms: docs/precision.md says by how much.
DEFAULT_ALGORITHM = "percentile"
