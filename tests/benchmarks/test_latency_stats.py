"""The statistics against numpy and closed forms; the taking of turns against a clock that only candidates advance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourphase.benchmarks.latency.statistics import (
    Measurement,
    Protocol,
    Sample,
    measure_interleaved,
    percentile,
    statistics,
    summary,
)


class Clock:
    """Seconds that pass only while a candidate runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[str] = []

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, seconds: float) -> Callable[[], Sample]:
        def infer() -> Sample:
            self.now += seconds
            self.runs.append(name)
            return Sample(1e3 * seconds)

        return infer


@pytest.mark.parametrize(
    ("count", "percent", "index"),
    [(10, 50, 4), (10, 90, 8), (10, 99, 9), (1000, 50, 499), (1000, 90, 899), (1000, 99, 989), (1, 50, 0), (3, 50, 1)],
)
def test_the_percentile_index_is_trtexecs(count: int, percent: int, index: int) -> None:
    values = [float(value) for value in range(count)]
    assert percentile(values[::-1], percent) == index


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=300), st.sampled_from([50, 90, 95, 99]))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    enough = [one for one in values if 100 * sum(other <= one for other in values) >= percent * len(values)]
    assert percentile(values, percent) == min(enough)


@pytest.mark.parametrize("count", [11, 101, 997])
@pytest.mark.parametrize("percent", [50, 90, 95, 99])
def test_percentiles_are_numpys_inverted_distribution(count: int, percent: int) -> None:
    values = np.random.default_rng(count).gamma(2, size=count)
    assert percentile(values.tolist(), percent) == np.percentile(values, percent, method="inverted_cdf")


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=50))
def test_the_summary_is_numpys(values: list[float]) -> None:
    found = summary(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["cv_percent"] == pytest.approx(100 * np.std(values) / np.mean(values), abs=1e-9)
    assert (found["min"], found["max"]) == (min(values), max(values))


def test_candidates_take_turns_and_each_gets_its_time_and_its_count() -> None:
    clock = Clock()
    candidates = {"fast": clock.candidate("fast", 0.0625), "slow": clock.candidate("slow", 0.5)}
    protocol = Protocol(warmup_s=0.25, seconds=1.5, iterations=10, rounds=2)
    measured = measure_interleaved(candidates, protocol, clock=clock)
    turns = [name for before, name in zip(["", *clock.runs], clock.runs, strict=False) if name != before]
    assert turns == ["fast", "slow", "fast", "slow"]
    assert [len(part) for part in measured["fast"].rounds] == [12, 12]  # 0.75 s each
    assert [len(part) for part in measured["slow"].rounds] == [5, 5]  # the count rules
    assert measured["fast"].wall_s == 1.5
    assert measured["slow"].wall_s == 5.0
    assert clock.runs.count("fast") == 2 * (4 + 12)  # warm-up before each round
    assert clock.runs.count("slow") == 2 * (1 + 5)


def test_the_defaults_are_trtexecs() -> None:
    clock = Clock()
    measured = measure_interleaved({"a": clock.candidate("a", 0.001)}, Protocol(), clock=clock)["a"]
    assert measured.wall_s >= 3
    assert clock.now >= 3 + 3 * 0.2
    slow = measure_interleaved({"a": clock.candidate("a", 10)}, Protocol(), clock=clock)["a"]
    assert len(slow.samples) >= 10


def test_a_candidate_that_raises_is_out_and_the_others_go_on() -> None:
    clock = Clock()
    good = clock.candidate("good", 0.25)

    def bad() -> Sample:
        if clock.runs.count("good") > 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return good()

    measured = measure_interleaved({"bad": bad, "good": good}, Protocol(0, 1.5, 6, 2), clock=clock)
    assert str(measured["bad"].error) == "CUDA error: an illegal memory access was encountered"
    assert measured["good"].error is None
    assert len(measured["good"].samples) == 6


def test_statistics_of_a_gpu() -> None:
    samples = [Sample(compute_ms=2.0, h2d_ms=0.5, d2h_ms=0.25, enqueue_ms=1.0) for _ in range(10)]
    found = statistics(Measurement([samples[:5], samples[5:]], wall_s=0.04), batch=4)
    assert found["latency_ms"]["p50"] == 2.75
    assert found["h2d_ms"]["mean"] == 0.5
    assert found["studies_per_second"] == 10 * 4 / 0.04
    assert found["round_medians_ms"] == [2.75, 2.75]  # what ratios are of: the copies are part of it
    assert found["iterations"] == 10
    assert not found["noisy"]
    assert not found["enqueue_bound"]


def test_statistics_of_a_cpu_have_no_parts_that_do_not_exist() -> None:
    found = statistics(Measurement([[Sample(2.0)]], wall_s=0.002), batch=1)
    assert found["latency_ms"] == found["compute_ms"]
    assert not {"h2d_ms", "d2h_ms", "enqueue_ms"} & set(found)


@pytest.mark.parametrize(("spread", "noisy"), [(0.02, False), (0.03, True)])
def test_noise_is_flagged_above_two_and_a_half_percent(spread: float, noisy: bool) -> None:
    samples = [Sample(1 - spread), Sample(1 + spread)]  # coefficient of variation: spread
    assert statistics(Measurement([samples], wall_s=1), batch=1)["noisy"] is noisy


@pytest.mark.parametrize(("enqueue", "bound"), [(0.79, False), (0.81, True)])
def test_an_enqueue_bound_run_is_flagged(enqueue: float, bound: bool) -> None:
    samples = [Sample(1.0, 0.0, 0.0, enqueue)]
    assert statistics(Measurement([samples], wall_s=1), batch=1)["enqueue_bound"] is bound
