"""A folder for what the cache cannot keep: made once per process and prefix, gone when the process ends."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

__all__ = ["folder_for_this_run"]


@functools.cache
def folder_for_this_run(prefix: str) -> Path:
    """The folder of that prefix; the same for every call in this process. Raises: OSError."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
