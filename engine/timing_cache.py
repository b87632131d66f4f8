"""TensorRT's timing cache, kept between builds: locked, merged with what others wrote, its use always reported.

It holds how long tactics took on one kind of GPU; a wrong one makes an engine slower, never wrong. TensorRT for RTX has
none: it chooses kernels when an engine is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourphase.runtime.atomic import write_file
from fourphase.runtime.errors import LockTimeout, OutputNotWritable
from fourphase.runtime.locks import locked

__all__ = ["CacheUse", "attach_cache", "keep_cache"]

_LOCK_PATIENCE_S = 20.0


@dataclass(frozen=True)
class CacheUse:
    """What a build did with the cache.

    Attributes:
        state: "off", "miss" (there was none), "hit" (nothing had to be measured), "extended" (some had to), "rejected"
            (TensorRT refused what was there), or "not kept" (its file is locked or cannot be written).
        entries_bytes: the cache's size before and after the build.
    """

    state: str
    entries_bytes: tuple[int, int] = (0, 0)

    def to_dict(self) -> dict[str, Any]:
        return {"state": self.state, "bytes_before": self.entries_bytes[0], "bytes_after": self.entries_bytes[1]}


def attach_cache(config: Any, path: Path | None) -> CacheUse:
    """Gives the builder the cache of the file `path`, or an empty one. None: the builder keeps none."""
    if path is None:
        return CacheUse("off")
    before = _read(path)
    cache = config.create_timing_cache(before)
    # What TensorRT cannot read at all it answers with None.
    if cache is not None and config.set_timing_cache(cache, False):
        return CacheUse("hit" if before else "miss", (len(before), len(before)))
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return CacheUse("rejected", (len(before), 0))


def keep_cache(config: Any, path: Path | None, use: CacheUse) -> CacheUse:
    """Writes what the build measured, merged with what other builds wrote meanwhile; returns how it went."""
    if path is None:
        return use
    mine = config.get_timing_cache()
    after = bytes(mine.serialize())
    state = "extended" if use.state == "hit" and len(after) > use.entries_bytes[0] else use.state
    try:
        with locked(path.with_suffix(".lock"), _LOCK_PATIENCE_S, what="the timing cache"):
            theirs = _read(path)
            if use.state != "rejected" and theirs:
                # What TensorRT cannot merge is replaced: it is of another version or damaged.
                other = config.create_timing_cache(theirs)
                if other is not None:
                    mine.combine(other, False)
                after = bytes(mine.serialize())
            write_file(path, after)
    except (LockTimeout, OutputNotWritable):
        return CacheUse("not kept", (use.entries_bytes[0], len(after)))
    return CacheUse(state, (use.entries_bytes[0], len(after)))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
