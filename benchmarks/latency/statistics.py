"""Latency in trtexec's terms: how long to measure, which percentiles, when a measurement is too noisy to quote.

No torch and no GPU here: what is measured comes in as functions that run one inference and return its times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any

__all__ = ["QUICK", "Measurement", "Protocol", "Sample", "measure_interleaved", "percentile", "statistics", "summary"]

PERCENTILES = (50, 90, 95, 99)
#: Coefficient of variation above which trtexec warns that the GPU's clock was not stable.
NOISY_PERCENT = 2.5
#: Enqueueing that takes this share of the compute time bounds the throughput (trtexec's warning).
ENQUEUE_BOUND = 0.8
_PARTS = ("latency_ms", "h2d_ms", "compute_ms", "d2h_ms", "enqueue_ms")


@dataclass(frozen=True)
class Protocol:
    """How long each candidate is measured; the defaults are trtexec's, split into rounds so that candidates take turns.

    Attributes:
        warmup_s: unmeasured time before every round.
        seconds, iterations: measured at least this long and at least this often, all rounds together.
    """

    warmup_s: float = 0.2
    seconds: float = 3.0
    iterations: int = 10
    rounds: int = 3


#: For rehearsals: shows that the code runs, not how fast.
QUICK = Protocol(warmup_s=0, seconds=0, iterations=4, rounds=2)


@dataclass(frozen=True)
class Sample:
    """One inference, in ms. On the CPU nothing is copied or enqueued: those parts are None."""

    compute_ms: float
    h2d_ms: float | None = None
    d2h_ms: float | None = None
    enqueue_ms: float | None = None

    @property
    def latency_ms(self) -> float:
        """Host to device + compute + device to host."""
        return self.compute_ms + (self.h2d_ms or 0) + (self.d2h_ms or 0)


@dataclass(eq=False)
class Measurement:
    """What one candidate gave: samples per round and the wall time they took, or the error that ended it."""

    rounds: list[list[Sample]] = field(default_factory=list)
    wall_s: float = 0.0
    error: Exception | None = None

    @property
    def samples(self) -> list[Sample]:
        return [sample for part in self.rounds for sample in part]


def measure_interleaved(
    candidates: Mapping[str, Callable[[], Sample]],
    protocol: Protocol,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Measurement]:
    """Measures all candidates in turns (A B C, A B C, ...), so that a drifting clock meets all of them.

    A candidate that raises is out, with its error; the others go on.
    """
    measurements = {name: Measurement() for name in candidates}
    for _ in range(protocol.rounds):
        for name, infer in candidates.items():
            if measurements[name].error is None:
                _measure_round(infer, measurements[name], protocol, clock)
    return measurements


def _measure_round(
    infer: Callable[[], Sample], measurement: Measurement, protocol: Protocol, clock: Callable[[], float]
) -> None:
    count, seconds = -(-protocol.iterations // protocol.rounds), protocol.seconds / protocol.rounds
    samples: list[Sample] = []
    try:
        started = clock()
        while clock() - started < protocol.warmup_s:
            infer()
        started = clock()
        while len(samples) < count or clock() - started < seconds:
            samples.append(infer())
        measurement.wall_s += clock() - started
        measurement.rounds.append(samples)
    except Exception as error:
        measurement.error = error


def percentile(values: Sequence[float], percent: int) -> float:
    """trtexec's percentile: the value at index max(N - 1 - int((1 - percent / 100) * N), 0) of the sorted values.

    The product is taken in whole numbers, so that 90 % of 10 values is the ninth whatever the rounding.
    """
    excluded = (100 - percent) * len(values) // 100
    return sorted(values)[max(len(values) - 1 - excluded, 0)]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Minimum, maximum, mean, percentiles (in the unit of the values) and the coefficient of variation in percent."""
    mean = fmean(values)
    return {
        "min": min(values),
        "max": max(values),
        "mean": mean,
        **{f"p{percent}": percentile(values, percent) for percent in PERCENTILES},
        "cv_percent": 100 * pstdev(values) / mean if mean else 0.0,
    }


def statistics(measurement: Measurement, batch: int) -> dict[str, Any]:
    """What is reported of one candidate; `batch` studies per inference.

    One inference is in flight at a time, so the throughput is that of a single client.
    """
    samples = measurement.samples
    parts = {name: [getattr(sample, name) for sample in samples] for name in _PARTS}
    summaries = {name: summary(values) for name, values in parts.items() if None not in values}
    enqueue, compute = summaries.get("enqueue_ms"), summaries["compute_ms"]
    return {
        "batch": batch,
        "iterations": len(samples),
        "wall_s": measurement.wall_s,
        "studies_per_second": len(samples) * batch / measurement.wall_s,
        **summaries,
        "round_medians_ms": [percentile([sample.latency_ms for sample in part], 50) for part in measurement.rounds],
        "noisy": compute["cv_percent"] > NOISY_PERCENT,
        "enqueue_bound": enqueue is not None and enqueue["p50"] > ENQUEUE_BOUND * compute["p50"],
    }
