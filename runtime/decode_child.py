"""One child process of `decode_pool`: started, asked for a frame, and not believed.

Any failure leaves a child useless; replacing it is the pool's task.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import NoReturn

import numpy as np

from fourphase.runtime import decode_worker as wire
from fourphase.runtime.decode_worker import FrameFormat
from fourphase.runtime.decoders import DecoderFailed, DecoderLost, Unsigned, missing_package

__all__ = ["DecodeChild", "lost"]

#: Python and numpy from a slow disk.
START_S = 60.0
#: One answer of a 512 x 512 slice fits, as far as the system allows.
PIPE_BYTES = 2**20


class DecodeChild:
    """One process and its two pipes. Any failure leaves it useless: kill it."""

    def __init__(self, decoder: str) -> None:
        command = [sys.executable, "-m", wire.__name__, decoder, str(os.getpid())]
        # From the root folder: with -m Python imports from the working directory first, which may be a study's.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_environment(),
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        for pipe in (self._requests, self._answers):
            os.set_blocking(pipe, False)
            with suppress(OSError, AttributeError):  # the system's limit for users is lower
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.frames = 0

    def wait_ready(self) -> None:
        """Raises: DecoderLost if the child does not come up."""
        self._answer(0, time.monotonic() + START_S)

    def decode(self, frame: bytes, form: FrameFormat, limit_s: float) -> Unsigned:
        """Raises: DecoderFailed, DecoderLost, EnvironmentFault as `decoders.decode`."""
        self.frames += 1
        deadline = time.monotonic() + limit_s
        self._send(wire.request(self.frames, frame, form), deadline)
        status, cell, length = self._answer(self.frames, deadline)
        if status == wire.MISSING:
            raise missing_package(form.transfer_syntax)
        if status == wire.NO_MEMORY:
            raise lost("its decoder ran out of memory")
        if status != wire.OK:
            raise DecoderFailed
        if cell not in (1, 2) or length % cell:
            raise lost("its decoder answered nonsense")
        if length != form.rows * form.columns * cell:
            raise DecoderFailed
        data = bytearray(length)
        self._receive(memoryview(data), deadline)
        cells: Unsigned = np.frombuffer(data, np.uint8) if cell == 1 else np.frombuffer(data, np.uint16)
        return cells.reshape(form.rows, form.columns)

    def stop(self) -> None:
        """Ends the process and takes its status, so that no zombie stays; from any thread, more than once."""
        self._process.kill()
        self._process.wait()

    def kill(self) -> None:
        """Ends the process and closes its pipes; only from the thread that uses them."""
        self.stop()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _answer(self, number: int, deadline: float) -> tuple[int, int, int]:
        """(status, bytes per cell, bytes that follow) of the answer to a request."""
        head = bytearray(wire.ANSWER.size)
        self._receive(memoryview(head), deadline)
        magic, answered, status, cell, length = wire.ANSWER.unpack(head)
        if magic != wire.MAGIC or answered != number:
            raise lost("its decoder answered nonsense")
        return status, cell, length

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._requests, select.POLLOUT, deadline)
            try:
                view = view[os.write(self._requests, view) :]
            except BlockingIOError:
                continue
            except OSError:
                self._explain()

    def _receive(self, view: memoryview, deadline: float) -> None:
        while view:
            self._wait(self._answers, select.POLLIN, deadline)
            try:
                count = os.readv(self._answers, [view])
            except BlockingIOError:
                continue
            except OSError:
                count = 0
            if not count:
                self._explain()
            view = view[count:]

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1e3):
            raise lost("its decoder did not come to an end")

    def _explain(self) -> NoReturn:
        """The child closed its pipes: its status says why."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        if self._process.returncode == -signal.SIGXCPU:
            raise lost("its decoder did not come to an end")
        raise lost("its decoder crashed")


def _environment() -> dict[str, str]:
    """The child imports from where this process does; one thread each, because there is a child per processor."""
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "OPJ_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    return {**os.environ, **threads, "PYTHONPATH": path}


def lost(how: str) -> DecoderLost:
    return DecoderLost(f"cannot be decompressed: {how}")
