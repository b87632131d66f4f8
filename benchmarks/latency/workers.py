"""Workers as their parent sees them: started, asked for a turn, ended. One that dies, hangs or fails says so once.

A worker is the head of a process group, which is killed as a whole: also what an inference left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from fourphase.benchmarks.latency.candidate import Task
from fourphase.benchmarks.latency.statistics import Sample

__all__ = ["Patience", "Started", "Turn", "Worker", "WorkerFailed"]

_WORKER = "fourphase.benchmarks.latency.worker"
#: Seconds for a worker to end when it is told to.
_FAREWELL_S = 5.0


@dataclass(frozen=True)
class Patience:
    """Seconds that a worker may take to load (compiling included), and for one turn.

    `turns.play` adds to the latter what a turn is asked to take.
    """

    load_s: float = 1800.0
    turn_s: float = 600.0


@dataclass(frozen=True, eq=False)
class Started:
    """What a worker said when it had loaded. `outputs`: name -> nested lists; `memory`: see `worker.host_bytes`."""

    load_s: float
    outputs: Mapping[str, Any]
    memory: Mapping[str, int | None]
    note: str


@dataclass(frozen=True, eq=False)
class Turn:
    """One candidate's part of a round.

    Attributes:
        samples: at least one. wall_s: what they took.
        watched: what `sensors.Watched.to_dict()` gave.
        waited: seconds since the turn before, and CPU seconds used meanwhile.
    """

    samples: tuple[Sample, ...]
    wall_s: float
    watched: Mapping[str, Any]
    memory: Mapping[str, int | None]
    waited: tuple[float, float]


class WorkerFailed(Exception):
    """A worker that is no more. `kind`: "error", "memory", "crash" or "timeout"."""

    def __init__(self, reason: str, kind: str) -> None:
        super().__init__(reason)
        self.reason, self.kind = reason, kind


class Worker:
    """The process of one task; a context manager that ends it, whatever happened."""

    def __init__(self, task: Task, patience: Patience | None = None) -> None:
        self.task, self.patience = task, patience or Patience()
        self._ended = False
        ours, theirs = socket.socketpair()
        cores = sorted(os.sched_getaffinity(0))[: task.threads]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", _WORKER, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                # What libraries print is nobody's: a worker's words come over the socket.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": str(task.threads)},
            )
        # Before it imports anything: every library asks how many cores it may use.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(self._process.pid, cores)
        self._connection = Connection(ours.detach())
        self._send(task.to_dict())

    def started(self) -> Started:
        """Waits until it has loaded and run once. Raises: WorkerFailed."""
        answer = self._answer(self.patience.load_s, "loading")
        return Started(answer["load_s"], answer["outputs"], answer["memory"], answer["note"])

    def turn(self, warmup_s: float, seconds: float, iterations: int) -> Turn:
        """One round of at least so many seconds and iterations. Raises: WorkerFailed."""
        gpu = self.task.device == "cuda"
        self._send({"warmup_s": warmup_s, "seconds": seconds, "iterations": iterations, "gpu": gpu})
        answer = self._answer(self.patience.turn_s, "a turn")
        samples = tuple(Sample(*values) for values in answer["samples"])
        waited = (float(answer["waited"][0]), float(answer["waited"][1]))
        return Turn(samples, answer["wall_s"], answer["watched"], answer["memory"], waited)

    def close(self) -> None:
        """Ends it; twice is once."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(json.dumps({"end": True}).encode())
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_FAREWELL_S)
        self._kill()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, content: Mapping[str, Any]) -> None:
        # Where it is gone, the answer that does not come says so.
        with contextlib.suppress(OSError):
            self._connection.send_bytes(json.dumps(content).encode())

    def _answer(self, within_s: float, what: str) -> dict[str, Any]:
        try:
            if not self._connection.poll(within_s):
                self._kill()
                raise WorkerFailed(f"stopped: {what} took longer than {within_s:g} s", "timeout")
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            code = self._process.wait()
            self._kill()
            raise WorkerFailed(*_how_it_ended(code)) from None
        if "reason" in answer:
            self.close()
            raise WorkerFailed(answer["reason"], answer["kind"])
        return answer

    def _kill(self) -> None:
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()


def _how_it_ended(code: int) -> tuple[str, str]:
    if code == -signal.SIGKILL:
        return "killed by SIGKILL, as the kernel does when memory runs out", "memory"
    if code < 0:
        return f"crashed: ended by {signal.Signals(-code).name}", "crash"
    return f"crashed: ended with exit code {code} and no answer", "crash"
