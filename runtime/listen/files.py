"""Small steps on files that `spool` is made of: synced writing, listings, the salt."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from fourphase.runtime.atomic import write_file
from fourphase.runtime.errors import OutputNotWritable

__all__ = ["SMALLEST", "listing", "not_writable", "read_salt", "size_of", "sync_folder", "write_synced"]

#: What a file takes at least, so that tiny instances cannot use up the inodes.
SMALLEST = 4096


def read_salt(path: Path) -> bytes:
    """The spool's own secret: without it nobody can compute a folder's name from a UID."""
    if not path.exists():
        write_file(path, secrets.token_hex(32).encode())
    salt = path.read_bytes()
    if len(salt) < 32:
        raise OutputNotWritable(
            "the spool's salt file is damaged",
            "restore it from a backup, or start with an empty spool",
            key="spool_salt",
        )
    return salt


def listing(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def size_of(path: Path) -> int:
    """Bytes, at least SMALLEST."""
    return max(SMALLEST, path.stat().st_size)


def write_synced(path: Path, chunks: Sequence[bytes | memoryview]) -> None:
    """Writes a new file and syncs it. Raises: OSError; what was written is then deleted again."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def not_writable(error: OSError) -> OutputNotWritable:
    cause = (error.strerror or "error").lower()
    return OutputNotWritable(
        f"the spool cannot be written: {cause}", "give --spool a folder on a local disk that you may write to"
    )
