"""Child processes that decode compressed frames, so that a decoder's crash, hang or bomb ends there.

Children start at the first compressed frame and end with this process. One that fails is killed and replaced. What it
sends is believed only if its length is the image's; whether the pixels make sense is `pixel_checks`' question.
"""

from __future__ import annotations

import atexit
import os
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, LifoQueue

from fourphase.runtime import decode_worker as wire
from fourphase.runtime.decode_child import DecodeChild, lost
from fourphase.runtime.decode_worker import FrameFormat
from fourphase.runtime.decoders import DecoderLost, Unsigned
from fourphase.runtime.errors import EnvironmentFault

__all__ = ["MOST_CHILDREN", "DecodePool", "close_shared_pool", "shared_pool"]

#: More children than this wait for the one process that reads the files.
MOST_CHILDREN = 4
#: A child is replaced after so many frames: whatever its decoders leak stays small in a process that runs for weeks.
FRAMES_PER_CHILD = 4000


class DecodePool:
    """A few child processes with one frame each at a time; may be used from several threads at once.

    Args:
        children: default: one per processor that this process may use, at most MOST_CHILDREN.
        decoder: the module whose `decode_here` the children call.
        limit_s: how long a frame may take; default: by its size.
    """

    def __init__(
        self, children: int | None = None, *, decoder: str = "fourphase.runtime.decoders", limit_s: float | None = None
    ) -> None:
        self.children = children or min(MOST_CHILDREN, len(os.sched_getaffinity(0)))
        self._decoder = decoder
        self._limit_s = limit_s
        self._slots: LifoQueue[DecodeChild | None] = LifoQueue()
        for _ in range(self.children):
            self._slots.put(None)
        self._lock = threading.Lock()
        self._alive: set[DecodeChild] = set()
        self.closed = False
        # The kernel counts the thread that started a child as its parent, and kills the child when that thread ends.
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="decode-keeper")

    def decode(self, frame: bytes, form: FrameFormat) -> Unsigned:
        """One frame's cells, uint8 or uint16 (rows, columns). Waits for a free child.

        Raises:
            DecoderFailed, DecoderLost, EnvironmentFault: as `decoders.decode`.
        """
        child = self._slots.get()
        kept: DecodeChild | None = None
        try:
            if child is None:
                child = self._started()
            limit_s = wire.seconds(form) if self._limit_s is None else self._limit_s
            cells = child.decode(frame, form, limit_s)
            kept = child if child.frames < FRAMES_PER_CHILD and not self.closed else None
            return cells
        except DecoderLost:
            if self.closed:
                raise _stopped() from None
            raise
        finally:
            # After any failure too: what a decoder left behind in its process is anybody's guess.
            if child is not None and kept is None:
                self._end(child)
            self._slots.put(kept)

    def close(self) -> None:
        """Kills every child; whoever waits for one gets DecoderLost. A closed pool stays closed."""
        with self._lock:
            self.closed = True
            children = list(self._alive)
        for child in children:
            child.stop()
        # The pipes of a child at work are closed by the thread that reads them: their numbers may be given to others.
        with suppress(Empty):
            while True:
                child_or_none = self._slots.get_nowait()
                if child_or_none is not None:
                    self._end(child_or_none)
        for _ in range(self.children):
            self._slots.put(None)
        self._keeper.shutdown(wait=True, cancel_futures=True)

    def _started(self) -> DecodeChild:
        """Raises: EnvironmentFault if no child can be started; DecoderLost if the pool is closed."""
        try:
            child = self._keeper.submit(DecodeChild, self._decoder).result()
        except OSError:
            raise _no_process() from None
        except (RuntimeError, CancelledError):  # the executor is shut down
            raise _stopped() from None
        with self._lock:
            closed = self.closed
            if not closed:
                self._alive.add(child)
        if closed:
            child.kill()
            raise _stopped()
        try:
            child.wait_ready()
        except DecoderLost:
            self._end(child)
            if self.closed:
                raise
            raise _no_process() from None
        except BaseException:
            self._end(child)
            raise
        return child

    def _end(self, child: DecodeChild) -> None:
        with self._lock:
            self._alive.discard(child)
        child.kill()


def _stopped() -> DecoderLost:
    return lost("its decoding process was stopped")


def _no_process() -> EnvironmentFault:
    return EnvironmentFault(
        "the study is compressed and the process that decompresses it does not start",
        "run fp-doctor; check the limits on processes and memory (ulimit -a)",
        key="decoder_process",
    )


_shared: DecodePool | None = None
_shared_lock = threading.Lock()


def shared_pool() -> DecodePool:
    """The pool of this process, made at first use."""
    global _shared
    with _shared_lock:
        if _shared is None or _shared.closed:
            _shared = DecodePool()
        return _shared


def close_shared_pool() -> None:
    """Ends this process's decoders at once; whoever waits for one gets DecoderLost. The next use starts new ones."""
    with _shared_lock:
        pool = _shared
    if pool is not None:
        pool.close()


def _forget() -> None:
    """In a fork of this process: its pipes belong to the parent."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


atexit.register(close_shared_pool)
os.register_at_fork(after_in_child=_forget)
