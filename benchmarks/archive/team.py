"""Worker processes on this machine, each pinned to its own cores; and what any team of workers can do.

A team says what happened to its workers. What a study is worth after its worker died is `dispatch`'s to say.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from fourphase.benchmarks.archive.job import Job, Report, Task, Used
from fourphase.runtime.errors import error_from_dict

__all__ = ["Ended", "Event", "ProcessTeam", "Ready", "Reported", "Team", "chunks", "thread_limits"]

_COMMAND = (sys.executable, "-m", "fourphase.benchmarks.archive.worker")
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Ready:
    """The worker has loaded the bundle and waits for a study; `model`: backend, precision, and why these."""

    worker: int
    used: Used
    model: Mapping[str, str]


@dataclass(frozen=True)
class Reported:
    """The worker has run a study and waits for the next."""

    worker: int
    report: Report


@dataclass(frozen=True)
class Ended:
    """The worker is gone; `why` for a person: "was ended by SIGKILL"."""

    worker: int
    why: str


Event = Ready | Reported | Ended


class Team(Protocol):
    """Workers by number, from 0."""

    @property
    def size(self) -> int: ...

    def start(self, worker: int) -> None:
        """Starts a worker, or another one in the place of one that has ended; `wait` tells when it is ready."""
        ...

    def give(self, worker: int, task: Task) -> None:
        """A study for a worker that waits."""
        ...

    def wait(self) -> Event:
        """The next thing that happens. Raises: the FourphaseError with which a worker could not load the bundle."""
        ...

    def close(self) -> None:
        """Ends all workers at once."""
        ...


def chunks(cpus: Sequence[int], workers: int, threads: int) -> list[list[int]]:
    """Each worker's own cores, neighbours together; workers * threads of them are used."""
    return [list(cpus[index * threads : (index + 1) * threads]) for index in range(workers)]


def thread_limits(threads: int) -> dict[str, str]:
    """Environment variables for libraries that count threads otherwise than by the cores they are pinned to."""
    return dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))


class ProcessTeam:
    """Processes of `worker`; `cpus`: the cores of each."""

    def __init__(self, job: Job, cpus: Sequence[Sequence[int]]) -> None:
        self.size = len(cpus)
        self._job, self._cpus = job, cpus
        self._workers: dict[int, _Process] = {}
        self._selector = selectors.DefaultSelector()

    @property
    def pids(self) -> dict[int, int]:
        """Worker -> process id."""
        return {number: worker.pid for number, worker in self._workers.items()}

    def start(self, worker: int) -> None:
        cpus = list(self._cpus[worker])
        process = _Process(thread_limits(len(cpus)))
        self._workers[worker] = process
        self._selector.register(process.answers, selectors.EVENT_READ, worker)
        process.send({"cpus": cpus, "job": self._job.to_dict()})

    def give(self, worker: int, task: Task) -> None:
        self._workers[worker].send(asdict(task))

    def wait(self) -> Event:
        while True:
            for worker, process in self._workers.items():
                line = process.line()
                if line is not None:
                    return _event(worker, json.loads(line))
            for key, _ in self._selector.select():
                if not self._workers[key.data].read():
                    return self._ended(key.data)

    def close(self) -> None:
        for worker in list(self._workers):
            self._ended(worker)
        self._selector.close()

    def _ended(self, worker: int) -> Ended:
        process = self._workers.pop(worker)
        self._selector.unregister(process.answers)
        return Ended(worker, _why(process.end()))


def _event(worker: int, body: Mapping[str, Any]) -> Event:
    if "error" in body:
        raise error_from_dict(body["error"])
    if "ready" in body:
        return Ready(worker, Used(**body["ready"]), body["model"])
    return Reported(worker, Report.from_dict(body["report"]))


def _why(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class _Process:
    """One process in a session of its own, so that its decoders end with it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
            env={**os.environ, **environment},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.answers = self._process.stdout.fileno()
        self._tasks = self._process.stdin
        self._left = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, body: Mapping[str, Any]) -> None:
        """What a worker that has died does not read comes back as its end."""
        with contextlib.suppress(BrokenPipeError):
            self._tasks.write(json.dumps(body).encode() + b"\n")

    def read(self) -> bool:
        """Takes what has arrived; False if nothing will any more."""
        part = os.read(self.answers, _BLOCK)
        self._left += part
        return bool(part)

    def line(self) -> bytes | None:
        """A whole answer, if one has arrived."""
        whole, found, rest = self._left.partition(b"\n")
        if not found:
            return None
        self._left = rest
        return whole

    def end(self) -> int:
        """Kills it and its children, if they are still there; its exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return code
