"""Workers with a scripted runtime: known times come back as known ratios; what goes wrong takes down one row."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fourphase.benchmarks.latency import turns, worker
from fourphase.benchmarks.latency.candidate import Candidate, Task
from fourphase.benchmarks.latency.groups import Group
from fourphase.benchmarks.latency.rows import measured_row, pairs_of
from fourphase.benchmarks.latency.statistics import Sample
from fourphase.benchmarks.latency.turns import LONG_S, PlayedGroup, Rounds, play
from fourphase.benchmarks.latency.worker import Idle, why_failed
from fourphase.benchmarks.latency.workers import Patience, Started, Turn
from fourphase.runtime.errors import GPUUnavailable

#: A runtime that says what its script (in place of a checkpoint) says: times in ms, or what is to happen instead.
STUB = """
import json, os, signal, time
import numpy as np
from fourphase.benchmarks.latency.runtimes import Loaded
from fourphase.benchmarks.latency.statistics import Sample

def load(task):
    script = json.loads(task.checkpoint)
    happen(script.get("load"))
    times = iter(script["times"])
    def infer():
        value = next(times)
        happen(value)
        return Sample(value)
    return Loaded(infer, {"logits": np.array([[1.0, 2.0]], np.float32)}, note=script.get("note", ""))

def happen(what):
    if what in ("SEGV", "KILL"):
        os.kill(os.getpid(), getattr(signal, "SIG" + what))
    elif what == "hang":
        time.sleep(600)
    elif what == "memory":
        raise RuntimeError("std::bad_alloc")
    elif what == "error":
        raise ValueError("no such kernel\\nand more")
"""

ROUNDS = Rounds(rounds=5, seconds=0.0, iterations=3, warmup_s=0.0)
#: One factor per round: what a clock that drifts does to both.
DRIFT = (1.0, 1.01, 1.02, 1.05, 1.1)
RATIOS = (2.0, 2.02, 1.98, 2.01, 2.0)
FAST = [value * drift for drift in DRIFT for value in (9.0, 10.0, 30.0)]
SLOW = [value * drift * ratio for drift, ratio in zip(DRIFT, RATIOS, strict=True) for value in (10.0, 9.0, 30.0)]
SCRIPTS: dict[str, dict[str, Any]] = {
    "slow": {"times": SLOW},
    "fast": {"times": FAST, "note": "scripted"},
    "crashes": {"times": [5.0, 5.0, 5.0, 5.0, "SEGV"]},
    "killed": {"load": "KILL", "times": []},
    "hangs": {"times": [5.0, 5.0, 5.0, "hang"]},
    "starves": {"load": "memory", "times": []},
    "raises": {"times": ["error"]},
    "exits": {"load": "error", "times": []},
}


def candidate(name: str) -> Candidate:
    return Candidate("net", name, "fp32")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> PlayedGroup:
    folder = tmp_path_factory.mktemp("stub")
    (folder / "scripted_runtime.py").write_text(STUB)
    tasks = {
        candidate(name): Task("scripted_runtime", name, "fp32", 1, "cpu", "", checkpoint=json.dumps(script))
        for name, script in SCRIPTS.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        return play(tasks, ROUNDS, patience=Patience(load_s=120, turn_s=8))


def test_scripted_times_come_back_round_by_round(result: PlayedGroup) -> None:
    fast = result.played[candidate("fast")]
    assert fast.medians_ms == pytest.approx([10 * drift for drift in DRIFT])
    assert [len(turn.samples) for turn in fast.turns] == [3] * 5
    row = measured_row(candidate("fast"), [fast], {"logits": np.array([[1.0, 2.001]], np.float32)})
    assert (row["status"], row["note"], row["statistics"]["iterations"]) == ("ok", "scripted", 15)
    assert row["statistics"]["latency_ms"]["mean"] == pytest.approx(np.mean(FAST))
    assert row["difference"]["max_abs"] == pytest.approx(0.001, rel=1e-3)
    assert row["memory"]["host_peak_bytes"] > 10e6
    assert row["memory"]["device_peak_bytes"] is None


def test_the_ratio_is_the_scripts(result: PlayedGroup) -> None:
    """The rounds' ratios by hand: drift cancels, and an outlier in every round moves no median."""
    pairs = pairs_of(Group("networks", tuple(result.played)), replace(result, busy_elsewhere=None))
    (pair,) = pairs
    assert (pair["a"]["runtime"], pair["b"]["runtime"]) == ("fast", "slow")  # the first is the anchor
    logarithms = -np.log(RATIOS)
    low, high = stats.t.interval(0.95, 4, logarithms.mean(), stats.sem(logarithms))
    assert pair["ratio"]["value"] == pytest.approx(np.exp(logarithms.mean()))
    assert (pair["ratio"]["low"], pair["ratio"]["high"]) == pytest.approx((np.exp(low), np.exp(high)))


@pytest.mark.parametrize(
    ("name", "kind", "reason", "turns"),
    [
        ("crashes", "crash", "crashed: ended by SIGSEGV", 1),
        ("killed", "memory", "killed by SIGKILL, as the kernel does when memory runs out", 0),
        ("hangs", "timeout", "stopped: a turn took longer than 8 s", 1),
        ("starves", "memory", "out of memory: std::bad_alloc", 0),
        ("raises", "error", "ValueError: no such kernel", 0),
        ("exits", "error", "ValueError: no such kernel", 0),
    ],
)
def test_what_goes_wrong_takes_down_one_row(result: PlayedGroup, name: str, kind: str, reason: str, turns: int) -> None:
    game = result.played[candidate(name)]
    assert game.failed is not None
    assert (game.failed.kind, game.failed.reason, len(game.turns)) == (kind, reason, turns)
    row = measured_row(candidate(name), [game], {"logits": np.array([[1.0, 2.0]], np.float32)})
    assert (row["status"], row["reason"]) == ("failed", reason)
    assert (row["statistics"] is not None) == bool(turns)


def test_while_it_waits_a_worker_uses_no_cpu(result: PlayedGroup) -> None:
    """Seven seconds of them while another hangs."""
    waits = [turn.waited for turn in result.played[candidate("fast")].turns[1:]]
    assert sum(seconds for seconds, _ in waits) > 5
    assert sum(used for _, used in waits) < 0.1


def test_idle_time_and_use_are_between_begin_and_end() -> None:
    clock, used = iter([1.0, 5.0, 9.0]), iter([0.5, 1.0, 1.25])
    idle = Idle(lambda: next(clock), lambda: next(used))
    idle.begin()
    assert idle.end() == (4.0, 0.25)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GPUUnavailable("the GPU is full", "free it"), "the GPU is full"),
        (MemoryError(), "out of memory: MemoryError"),
        (RuntimeError("CUDA out of memory. Tried"), "out of memory: CUDA out of memory. Tried"),
        (RuntimeError("Exception from src/core.cpp:1:\nthe model is odd"), "RuntimeError: the model is odd"),
        (KeyError(), "KeyError"),
    ],
)
def test_reasons_are_one_sentence(error: Exception, reason: str) -> None:
    assert why_failed(error)["reason"] == reason


def test_a_worker_whose_parent_is_gone_ends(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "fourphase.benchmarks.latency.worker", str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=(theirs.fileno(),), cwd=tmp_path, env=dict(os.environ)) as process:
        theirs.close()
        ours.close()
        assert process.wait(timeout=120) == 0


class FakeWorker:
    """Takes as long per turn as the test says; keeps what it was asked for."""

    times_ms: list[float]
    asked: list[tuple[float, float, int]]
    patience: Patience | None

    def __init__(self, task: Task, patience: Patience | None) -> None:
        FakeWorker.asked, FakeWorker.patience = [], patience

    def started(self) -> Started:
        return Started(0.1, {}, {}, "")

    def turn(self, warmup_s: float, seconds: float, iterations: int) -> Turn:
        self.asked.append((warmup_s, seconds, iterations))
        return Turn((Sample(self.times_ms[len(self.asked) - 1]),), 0.0, {"busy_elsewhere": 0.4}, {}, (0.0, 0.0))

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def fake_worker(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    monkeypatch.setattr(turns, "Worker", FakeWorker)
    return FakeWorker


TASK = {candidate("fake"): Task("module", "fake", "fp32", 1, "cpu", "")}


def test_after_a_long_turn_there_is_no_warm_up(fake_worker: type[FakeWorker]) -> None:
    fake_worker.times_ms = [1e3 * LONG_S, 1e3 * LONG_S + 1, 1.0, 9e3]
    found = play(TASK, Rounds(rounds=4, seconds=2.0, iterations=1, warmup_s=0.2))
    assert [warmup for warmup, *_ in fake_worker.asked] == [0.2, 0.2, 0.0, 0.2]
    assert {asked[1:] for asked in fake_worker.asked} == {(0.5, 1)}
    # Its own cores were busy, whatever the whole machine was.
    assert found.busy_elsewhere is not None
    assert found.busy_elsewhere >= 0.4


def test_a_worker_is_waited_for_as_long_as_it_was_told_to_measure(fake_worker: type[FakeWorker]) -> None:
    fake_worker.times_ms = [1.0] * 5
    play(TASK, Rounds(rounds=5, seconds=5000.0))
    assert fake_worker.patience == Patience(1800.0, 600.0 + 2 * 1000.0)
    play(TASK, Rounds(rounds=5, seconds=5000.0), patience=Patience(1.0, 2.0))
    assert fake_worker.patience == Patience(1.0, 2.0)


def test_warming_up_is_after_the_sensors_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    @contextmanager
    def watching(*, gpu: bool, before: Callable[[], object]) -> Iterator[Any]:
        events.append("open")
        before()
        events.append("watch")
        yield SimpleNamespace(result=lambda: SimpleNamespace(to_dict=dict))

    def infer() -> Sample:
        events.append("run")
        return Sample(1.0)

    monkeypatch.setattr(worker, "watch", watching)
    clock = iter([0.0, 0.0, 0.1, 0.2])  # two runs fit into 0.15 s
    monkeypatch.setattr(worker, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    answer = worker._turn(infer, {"warmup_s": 0.15, "seconds": 0.0, "iterations": 3, "gpu": True})
    assert events == ["open", "run", "run", "watch", "run", "run", "run"]
    assert len(answer["samples"]) == 3
