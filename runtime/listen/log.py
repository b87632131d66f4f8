"""What `fp-listen` tells its operator: one line per event on stderr, with the time in UTC.

    2026-11-25T21:50:43.120Z running study=5f0c6b1d2e3a instances=232 box=json attempt=1

Only words, numbers and salted hashes go in: no UID, no path below the spool, no text from a DICOM header. Log records
and warnings of pynetdicom and pydicom, which quote names and identifiers, are silenced for the whole process.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from datetime import datetime, timezone
from types import TracebackType

__all__ = ["EventLog", "plain", "silence_libraries"]

#: Whoever connects chooses the calling AE title (PS3.8 9.3.2): it is printed with what a line of a log can hold.
_UNFIT = re.compile(r"[^A-Za-z0-9_.:+-]")
_LONGEST = 64


class EventLog:
    """Writes events; with `quiet` only those that need somebody's attention."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._lock = threading.Lock()

    def info(self, event: str, **fields: object) -> None:
        if not self._quiet:
            self.attention(event, **fields)

    def attention(self, event: str, **fields: object) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = " ".join([now, event, *(f"{name}={plain(value)}" for name, value in fields.items())])
        # A log that cannot be written must not stop the reception.
        with self._lock, suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)

    def bug(self, where: str, error: BaseException) -> None:
        """An exception nobody expected, as its type and where it came from; its message may hold patient data."""
        self.attention("bug", where=where, type=type(error).__name__, at=_places(error.__traceback__))


def plain(value: object) -> str:
    """The value as one word of at most 64 harmless characters; '-' when nothing is left."""
    return _UNFIT.sub("_", str(value))[:_LONGEST] or "-"


def silence_libraries() -> None:
    """Silences pydicom, pynetdicom and highdicom for the rest of the process: what they say quotes header values."""
    for name in ("pydicom", "pynetdicom", "highdicom"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
        logger.setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore")


def _places(trace: TracebackType | None) -> str:
    frames = traceback.extract_tb(trace)[-3:]
    return "+".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames)
