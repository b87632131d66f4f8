"""Files and directories that are complete or absent, never half: temporary sibling, sync, rename.

It does not lock: two writers of one target leave one of the two complete results.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fourphase.runtime.errors import OutputNotWritable

__all__ = ["check_file_target", "new_directory", "write_file"]

#: Some network file systems cannot sync a directory; the rename itself is still atomic there.
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def write_file(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, creating missing parents; an existing file is replaced in one step.

    Raises: OutputNotWritable.
    """
    target = Path(os.path.realpath(path))
    temporary = _sibling(target, "tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(target.parent)
    except OSError as error:
        raise _not_writable(path, error) from error


def check_file_target(path: Path) -> None:
    """Raises: OutputNotWritable if `write_file(path)` could not work, before work is spent on what would be written."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputNotWritable(f"{path} is a directory", "name a file", key="output_is_directory")
    probe = _sibling(target, "tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise _not_writable(path, error) from error


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Yields an empty temporary sibling of `target`, which takes its name when the block ends without an exception.

    An existing target is replaced as a whole: it is moved aside, the new directory is moved in, then the old one is
    deleted. After any exception the temporary directory is gone and the old target is untouched. Only a process
    killed between those two renames leaves no target; the old one then lies beside it, complete, as `.NAME.*.old`.

    The block should do nothing but write: every OSError in it is reported as OutputNotWritable.

    Raises: OutputNotWritable.
    """
    final = Path(os.path.realpath(target))
    temporary = _sibling(final, "tmp")
    try:
        if final.exists() and not final.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            yield temporary
            _sync_tree(temporary)
            _move_in(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise _not_writable(target, error) from error


def _move_in(temporary: Path, final: Path) -> None:
    """The rename, with the old directory put back if the new one cannot take its place."""
    aside = _sibling(final, "old")
    replaced = final.exists()
    if replaced:
        final.rename(aside)
    try:
        temporary.rename(final)
    except BaseException:
        if replaced:
            aside.rename(final)
        raise
    _sync_directory(final.parent)
    if replaced:
        shutil.rmtree(aside, ignore_errors=True)


def _sibling(target: Path, suffix: str) -> Path:
    """A hidden name in the same directory, hence on the same file system, that nobody else has."""
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.{suffix}")


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            with open(os.path.join(folder, name), "rb") as handle:
                os.fsync(handle.fileno())
        _sync_directory(Path(folder))


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(descriptor)


def _not_writable(path: Path, error: OSError) -> OutputNotWritable:
    reason = error.strerror or type(error).__name__
    return OutputNotWritable(
        f"cannot write {path}: {reason.lower()}",
        "free disk space there, or choose a place on a disk that you may write to",
    )
