"""Locks between processes: flock on a file of its own, which the system releases when the holder dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fourphase.runtime.errors import LockTimeout, OutputNotWritable

__all__ = ["locked"]

_POLL_S = 0.05


@contextmanager
def locked(
    path: Path, timeout_s: float, *, what: str, shared: bool = False, waiting: Callable[[], None] | None = None
) -> Iterator[bool]:
    """Holds the lock file `path` within the context; yields whether it had to be waited for.

    Args:
        what: what the lock guards, for the error.
        shared: several may hold it at once, as long as nobody holds it alone.
        waiting: called once if somebody else has it.

    The file stays: deleting it would let two processes hold two locks of one name.

    Raises: LockTimeout (31); OutputNotWritable (30) if the lock file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("rb" if shared and path.exists() else "ab")
    except OSError as error:
        raise OutputNotWritable(
            f"the lock {path.name} cannot be made: {(error.strerror or 'error').lower()}",
            "choose a folder that you may write to: --plans DIR for engines",
        ) from error
    with handle:
        yield _acquire(handle.fileno(), timeout_s, what, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, waiting)


def _acquire(descriptor: int, timeout_s: float, what: str, kind: int, waiting: Callable[[], None] | None) -> bool:
    deadline = time.monotonic() + timeout_s
    waited = False
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return waited
        except BlockingIOError:
            pass
        except OSError as error:
            raise OutputNotWritable(
                f"the file system cannot lock {what}: {(error.strerror or 'error').lower()}",
                "choose a folder on a local disk: --plans DIR, FOURPHASE_CACHE",
                key="lock_impossible",
            ) from error
        if time.monotonic() >= deadline:
            raise LockTimeout(
                f"another process has held the lock of {what} for {timeout_s:g} s",
                "wait for it, or stop it; the lock goes with its process",
            )
        if waiting and not waited:
            waiting()
        waited = True
        time.sleep(_POLL_S)
