"""Mutants in worker processes: each mutant has a time limit, and a worker that dies or hangs is replaced.

What a worker does with a number is not known here, only that it answers with one line of JSON.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from fourphase.benchmarks.mutants.check import Verdict

__all__ = ["LIMIT_S", "run_mutants"]

LIMIT_S = 10.0
#: Imports and sound studies, on a busy machine.
START_S = 180.0


class _Lost(Exception):
    """The worker is of no use any more; `args` are outcome and detail."""


def run_mutants(
    numbers: Iterable[int],
    ended: Callable[[Verdict], None],
    *,
    seed: int = 0,
    workers: int = 2,
    limit_s: float = LIMIT_S,
    command: Sequence[str] | None = None,
) -> None:
    """Runs mutants and tells `ended` of each, one at a time, in no order.

    Args:
        command: the worker; default: `mutant_worker` with the seed.

    Raises: RuntimeError if a worker does not come up.
    """
    command = command or [sys.executable, "-m", "fourphase.benchmarks.mutants.worker", str(seed)]
    waiting: SimpleQueue[int] = SimpleQueue()
    for number in numbers:
        waiting.put(number)
    lock, faults = threading.Lock(), list[BaseException]()

    def serve() -> None:
        worker: _Worker | None = None
        try:
            while not faults:
                number = waiting.get_nowait()
                worker = worker or _Worker(command)
                try:
                    verdict = worker.verdict(number, limit_s)
                except _Lost as lost:
                    worker.kill()
                    worker, verdict = None, Verdict(number, "", "", "", *lost.args)
                with lock:
                    ended(verdict)
        except Empty:
            pass
        except BaseException as fault:
            faults.append(fault)
        finally:
            if worker is not None:
                worker.kill()

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


class _Worker:
    """One process in a session of its own, so that its decoders end with it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        self._left = b""
        try:
            self._line(START_S)
        except _Lost as lost:
            self.kill()
            raise RuntimeError(f"a worker does not start: {lost.args[0]}") from None

    def verdict(self, number: int, limit_s: float) -> Verdict:
        """Raises: _Lost if the worker dies or takes longer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"%d\n" % number)
        except OSError:
            raise _Lost("crash", f"the worker ended with {self._process.wait()}") from None
        return Verdict(**json.loads(self._line(limit_s)))

    def _line(self, limit_s: float) -> bytes:
        assert self._process.stdout is not None
        pipe, deadline = self._process.stdout.fileno(), time.monotonic() + limit_s
        while b"\n" not in self._left:
            ready, _, _ = select.select([pipe], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise _Lost("hang", f"no answer within {limit_s:g} s")
            part = os.read(pipe, 2**16)
            if not part:
                raise _Lost("crash", f"the worker ended with {self._process.wait()}")
            self._left += part
        line, self._left = self._left.split(b"\n", 1)
        return line

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
