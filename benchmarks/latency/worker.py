"""The process of one candidate: loads it, runs it once, then measures a turn whenever it is asked to.

Started by `workers` as `python -m ... FD`; FD is its end of a socket, over which both send JSON. Between two turns it
waits for the next message, and afterwards says how much of a core it used meanwhile: it should be nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fourphase.benchmarks.latency.candidate import Task
from fourphase.benchmarks.latency.runtimes import Loaded, load_task
from fourphase.benchmarks.latency.sensors import watch
from fourphase.benchmarks.latency.statistics import Protocol, Sample, measure_interleaved
from fourphase.benchmarks.with_parent import end_with_parent
from fourphase.runtime.errors import FourphaseError

__all__ = ["Idle", "host_bytes", "main", "why_failed"]

_STATUS = Path("/proc/self/status")
_KIB = 1024
#: What libraries say, in exceptions of many types, when memory does not suffice.
_OUT_OF_MEMORY = ("out of memory", "bad_alloc", "not enough memory", "can't allocate memory", "cannot allocate memory")


class Idle:
    """How much CPU time the process uses while it waits."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, used: Callable[[], float] = time.process_time):
        self._clock, self._used = clock, used
        self._since = (clock(), used())

    def begin(self) -> None:
        self._since = (self._clock(), self._used())

    def end(self) -> tuple[float, float]:
        """(seconds waited, CPU seconds used) since `begin`."""
        started, used = self._since
        return self._clock() - started, self._used() - used


def host_bytes() -> dict[str, int | None]:
    """This process's resident memory: the most so far (VmHWM, loading included) and now; None where it is unknown."""
    found: dict[str, int] = {}
    with suppress(OSError, ValueError):
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name in ("VmHWM", "VmRSS"):
                found[name] = int(value.split()[0]) * _KIB
    return {"host_peak_bytes": found.get("VmHWM"), "host_bytes": found.get("VmRSS")}


def why_failed(error: BaseException) -> dict[str, str]:
    """The reason for a row: one sentence, and whether memory did not suffice."""
    text = error.message if isinstance(error, FourphaseError) else str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    # OpenVINO's and inductor's texts begin with the place in their own source.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = first if len(lines) < 2 or not first.startswith("Exception from") else lines[1]
    lacks = isinstance(error, MemoryError) or any(words in text.lower() for words in _OUT_OF_MEMORY)
    if lacks:
        return {"reason": f"out of memory: {reason or type(error).__name__}", "kind": "memory"}
    named = reason if isinstance(error, FourphaseError) else f"{type(error).__name__}: {reason}".rstrip(": ")
    return {"reason": named, "kind": "error"}


def main(descriptor: int) -> None:
    """Serves one parent until it says "end" or is gone."""
    end_with_parent(descriptor)
    connection = Connection(descriptor)
    task = Task.from_dict(_received(connection))
    try:
        loaded, seconds = _timed_load(task)
    except Exception as error:
        _send(connection, why_failed(error))
        return
    outputs = {name: values.tolist() for name, values in loaded.outputs.items()}
    _send(connection, {"load_s": seconds, "outputs": outputs, "note": loaded.note, "memory": _memory(loaded)})
    idle = Idle()
    while (order := _received(connection)) != {"end": True}:
        waited = idle.end()
        try:
            answer = {**_turn(loaded.infer, order), "memory": _memory(loaded), "waited": waited}
        except Exception as error:
            answer = why_failed(error)
        _send(connection, answer)
        idle.begin()


def _timed_load(task: Task) -> tuple[Loaded, float]:
    started = time.perf_counter()
    loaded = load_task(task)
    return loaded, time.perf_counter() - started


def _turn(infer: Callable[[], Sample], order: Mapping[str, Any]) -> dict[str, Any]:
    """A short warm-up with the sensors open, so that opening them cools nothing down, then one watched round.

    `warmup_s` is 0 where the candidate's inferences are so long that they are their own (see `turns.Rounds`).
    """
    protocol = Protocol(warmup_s=0.0, seconds=order["seconds"], iterations=order["iterations"], rounds=1)
    with watch(gpu=order["gpu"], before=lambda: _warm_up(infer, order["warmup_s"])) as watcher:
        measurement = measure_interleaved({"": infer}, protocol)[""]
    if measurement.error:
        raise measurement.error
    samples = [[one.compute_ms, one.h2d_ms, one.d2h_ms, one.enqueue_ms] for one in measurement.samples]
    return {"samples": samples, "wall_s": measurement.wall_s, "watched": watcher.result().to_dict()}


def _warm_up(infer: Callable[[], Sample], seconds: float) -> None:
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        infer()


def _memory(loaded: Loaded) -> dict[str, int | None]:
    return {**host_bytes(), "device_peak_bytes": loaded.device_peak_bytes()}


def _send(connection: Connection, content: Mapping[str, Any]) -> None:
    connection.send_bytes(json.dumps(content).encode())


def _received(connection: Connection) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone: nobody wants an answer
    return content


if __name__ == "__main__":
    main(int(sys.argv[1]))
