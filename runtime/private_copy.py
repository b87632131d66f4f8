"""A private folder for what a zip holds: this user's alone, removed at the end, and by a later run after a SIGKILL.

It holds a patient's data, so it may not stay. What goes into it is `study_archive`'s task.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fourphase.runtime.console import note
from fourphase.runtime.errors import OutputNotWritable

__all__ = ["TMP_VARIABLE", "not_writable", "private_folder", "remove_copies", "sweep_copies"]

#: Where zips are unpacked instead of TMPDIR.
TMP_VARIABLE = "FOURPHASE_TMP"
_PREFIX = "fourphase-study-"
#: Between the making of a folder and its lock there is a moment in which it seems to be abandoned.
_ABANDONED_S = 60.0


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for this user alone (mode 0700), removed at the end; what SIGKILL leaves, the next run removes."""
    try:
        root = _root()
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        _copies.add(folder)
        lock = _locked(str(folder))
    except OSError as error:
        raise not_writable(error) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _copies.discard(folder)
        if lock is not None:
            os.close(lock)
        if folder.exists():
            note(f"warning: the unpacked study could not be removed; delete {folder}")


#: What is unpacked at the moment.
_copies: set[Path] = set()


def remove_copies() -> None:
    """Removes what is unpacked; for a process that ends without unwinding its stack."""
    for folder in list(_copies):
        shutil.rmtree(folder, ignore_errors=True)


def _root() -> str:
    return os.environ.get(TMP_VARIABLE) or tempfile.gettempdir()


def sweep_copies() -> None:
    """Removes the copies whose processes are gone: they are a patient's data. Only what this user made.

    Those younger than a minute are left for a later run: they may be in the making.
    """
    with suppress(OSError), os.scandir(_root()) as entries:
        _remove([entry.path for entry in entries if entry.name.startswith(_PREFIX)])


def _remove(copies: list[str]) -> None:
    for path in copies:
        with suppress(OSError):
            status = os.lstat(path)
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < _ABANDONED_S:
                continue
            lock = _locked(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _locked(folder: str) -> int | None:
    """The descriptor that holds the folder's lock, which goes with the process; None where it is held, or none can be.

    Raises: OSError: no such folder, or it is none.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def not_writable(error: OSError) -> OutputNotWritable:
    return OutputNotWritable(
        f"the zip cannot be unpacked: {(error.strerror or type(error).__name__).lower()}",
        f"free disk space for temporary files, or set {TMP_VARIABLE} to a folder with space that you may write to",
        key="unpack_not_writable",
    )
