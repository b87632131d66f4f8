"""The SRs of `fp-listen` that wait to be sent, as files; nothing is sent here.

    SPOOL/outbox/KEY-RUN.dcm    to be sent
    SPOOL/outbox/KEY-RUN.sent   empty: it was sent, and is not put here again

Only a crash between the receiver's answer and the mark sends an SR a second time: it is then the same instance.
"""

from __future__ import annotations

from pathlib import Path

from fourphase.runtime.atomic import write_file
from fourphase.runtime.listen.files import listing, not_writable

__all__ = ["Outbox"]


class Outbox:
    """Files to be sent, named by their study and run.

    Raises: OutputNotWritable (30), from any method that writes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in listing(folder):
                # A temporary file of a process that was killed, or what was sent just before.
                if path.name.startswith(".") or (path.suffix == ".dcm" and path.with_suffix(".sent").exists()):
                    path.unlink()
        except OSError as error:
            raise not_writable(error) from error

    def put(self, name: str, data: bytes) -> None:
        """Adds a file, unless it was sent or is here already."""
        path = self._folder / f"{name}.dcm"
        if not path.with_suffix(".sent").exists() and not path.exists():
            write_file(path, data)

    def waiting(self) -> list[Path]:
        """What is to be sent, the oldest first."""
        return sorted((path for path in listing(self._folder) if _is_waiting(path)), key=_age)

    def sent(self, path: Path) -> None:
        """Marks a file as sent and deletes it."""
        write_file(path.with_suffix(".sent"), b"")
        path.unlink(missing_ok=True)

    def holds(self, key: str) -> bool:
        """Whether something of this study is still to be sent."""
        return any(path.name.startswith(key) and _is_waiting(path) for path in listing(self._folder))

    def forget(self, key: str) -> None:
        for path in listing(self._folder):
            if path.name.startswith(key) and path.suffix == ".sent":
                path.unlink(missing_ok=True)


def _is_waiting(path: Path) -> bool:
    return path.suffix == ".dcm" and not path.name.startswith(".")


def _age(path: Path) -> tuple[int, str]:
    try:
        return path.stat().st_mtime_ns, path.name
    except FileNotFoundError:
        return 0, path.name
