"""Where results that take minutes are kept between commands: int8 scales, logits of policies tried, timings of builds.

Everything in it is bound by hash to what it was computed from and verified when read, so it can be deleted at any time
and never makes a result wrong. The place is $FOURPHASE_CACHE, else $XDG_CACHE_HOME/fourphase, else ~/.cache/fourphase.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["CACHE_VARIABLE", "cache_folder"]

CACHE_VARIABLE = "FOURPHASE_CACHE"


def cache_folder(kind: str) -> Path | None:
    """The folder for one kind of result, made if it is not there; None where it cannot be written."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(os.environ.get(CACHE_VARIABLE) or os.path.join(home, "fourphase")) / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
