"""The plans of a bundle: those it was written with, and those built later for this machine, side by side.

A plan added later is `<key>.plan` with `<key>.json`, the latter written last: without it there is no entry. What does
not hold together is moved to `quarantine/`, with the reason, and never loaded. The bytes that were hashed are the bytes
that are handed out. Deserializing a plan runs native code: who can write the store can run programs here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fourphase.runtime.atomic import write_file
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.errors import FourphaseError, IntegrityError, OutputNotWritable, UsageError
from fourphase.runtime.locks import locked
from fourphase.runtime.plan_meta import check_meta, plan_key

__all__ = ["LOCK_TIMEOUT_S", "PlanEntry", "PlanStore"]

#: A build on a Jetson takes minutes; who waits for another's waits this long.
LOCK_TIMEOUT_S = 3600.0
#: Moving files takes no time; longer than this somebody is stopped in the middle.
_STORE_TIMEOUT_S = 60.0
_FOLDER = "engines"
_QUARANTINE = "quarantine"
_LOCK = ".lock"
_NOT_MOVED = "it could not be moved to the quarantine"


@dataclass(frozen=True, eq=False)
class PlanEntry:
    """One plan.

    Attributes:
        source: "bundle" (listed in the manifest) or "store" (added later).
        meta: the content of its JSON, checked; None if it cannot be used.
        problem: why not, None for a usable one.
        written_at: when it was added, in seconds; 0 for one of the bundle's own.
    """

    key: str
    source: str
    meta: Mapping[str, Any] | None
    problem: str | None = None
    written_at: float = 0.0


class PlanStore:
    """The plans of one bundle.

    Args:
        folder: where plans are added; None is the bundle's own `engines/`.
    """

    def __init__(self, bundle: Bundle, folder: Path | None = None) -> None:
        self.bundle = bundle
        self.folder = folder or bundle.path / _FOLDER
        self._shipped = {Path(found.plan).stem: found for found in bundle.engines}

    def entries(self) -> tuple[PlanEntry, ...]:
        """Every plan there is, the bundle's own first, then by key; damage of one is told, not raised.

        Raises: IntegrityError (21) if a plan's description that the manifest lists was changed.
        """
        shipped = [self._shipped_entry(key) for key in self._shipped]
        listed = set(self._shipped) if self._in_bundle else set()
        added = sorted(path.stem for path in self.folder.glob("*.json") if path.stem not in listed)
        return (*shipped, *(self._added_entry(key) for key in added))

    def find(self, key: str) -> PlanEntry | None:
        """The usable plan of that key, if there is one."""
        return next((entry for entry in self.entries() if entry.key == key and entry.problem is None), None)

    def read(self, entry: PlanEntry) -> bytes:
        """The plan's bytes, verified: what is returned is what was hashed.

        A damaged plan that was added later is quarantined, where that is possible.

        Raises: IntegrityError (21).
        """
        assert entry.meta is not None
        wanted = entry.meta["plan_sha256"]
        if entry.source == "bundle":
            data = self.bundle.read(self._shipped[entry.key].plan)
            if hashlib.sha256(data).hexdigest() != wanted:
                raise _damaged(f"engine {entry.key} is not the plan that its description was written for")
            return data
        data = self._bytes(entry.key)
        if hashlib.sha256(data).hexdigest() == wanted:
            return data
        return self._read_again(entry.key)

    def prepare(self, key: str) -> None:
        """Makes the folder, and refuses what would make a plan of that key useless, before minutes are spent on it.

        Raises: OutputNotWritable (30) for a folder that cannot be written, or that everybody can write; UsageError (2)
            for the key of a plan that came with the bundle: the manifest holds its hash.
        """
        if self._in_bundle and key in self._shipped:
            raise UsageError(
                f"engine {key} came with the bundle, which is never changed",
                "give --plans DIR to keep another one beside it",
                key="plan_shipped",
            )
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True)
                self.folder.chmod(self.folder.stat().st_mode & ~stat.S_IWOTH)
        except OSError as error:
            raise _not_writable(error) from error
        if not os.access(self.folder, os.W_OK):
            raise _not_writable(PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
        problem = _open_to_others(self.folder)
        if problem:
            raise OutputNotWritable(
                f"the plan store {problem}, so nothing in it would ever be loaded",
                "take that right away with chmod o-w, or give another folder: --plans DIR",
                key="plan_store_open",
            )

    def put(self, plan: bytes, meta: Mapping[str, Any]) -> PlanEntry:
        """Adds a plan, or replaces the one of its key; readers see the old one, none, or the new one.

        Raises: as `prepare`; LockTimeout (31); ModelIncompatible (20) for meta data that no reader accepts.
        """
        checked = check_meta(dict(meta))
        key = plan_key(checked)
        self.prepare(key)
        if hashlib.sha256(plan).hexdigest() != checked["plan_sha256"]:
            raise _damaged(f"engine {key} is not the plan that its description says")
        with self._exclusive():
            description = self.folder / f"{key}.json"
            try:
                for left in self.folder.glob(".*.tmp"):
                    left.unlink(missing_ok=True)  # of a writer that was killed: nobody else writes now
                # Between these two steps there is no entry: a plan without a description is never read.
                description.unlink(missing_ok=True)
            except OSError as error:
                raise _not_writable(error) from error
            _write_closed(self.folder / f"{key}.plan", plan)
            _write_closed(description, (json.dumps(checked, indent=1, allow_nan=False) + "\n").encode())
        return PlanEntry(key, "store", checked)

    def clean(self, onnx_sha256s: frozenset[str]) -> tuple[str, ...]:
        """Quarantines added plans that cannot be used or are of another model; says which and why.

        In a folder of its own (--plans) plans of other models stay: another bundle may keep them there.

        Raises: OutputNotWritable (30), LockTimeout (31).
        """
        suspects = [entry.key for entry in self.entries() if self._why_unfit(entry, onnx_sha256s)]
        if not suspects:
            return ()
        done = []
        with self._exclusive():
            for key in suspects:
                # Perhaps it was being replaced a moment ago: only what is wrong now, with the writers kept out, goes.
                reason = self._why_unfit(self._added_entry(key), onnx_sha256s) if self._has(key) else None
                if reason:
                    done.append(f"engine {key}: {reason}; {self._move_away(key, reason)}")
        return tuple(done)

    def _has(self, key: str) -> bool:
        return (self.folder / f"{key}.json").exists()

    def _why_unfit(self, entry: PlanEntry, onnx_sha256s: frozenset[str]) -> str | None:
        """Why an added plan belongs into quarantine; one that everybody may write is good again after a chmod."""
        if entry.source == "bundle" or _open_to_others(*self._paths(entry.key)):
            return None
        if entry.problem:
            return entry.problem
        stale = self._in_bundle and entry.meta is not None and entry.meta["onnx_sha256"] not in onnx_sha256s
        return "it was built from another model" if stale else None

    def _paths(self, key: str) -> tuple[Path, Path, Path]:
        return self.folder, self.folder / f"{key}.json", self.folder / f"{key}.plan"

    def key_lock(self, key: str) -> Path:
        """The lock file of everybody who builds the plan of that key."""
        return self.folder / f".{key}.lock"

    @property
    def _in_bundle(self) -> bool:
        return self.folder.resolve() == (self.bundle.path / _FOLDER).resolve()

    def _exclusive(self) -> AbstractContextManager[Any]:
        return locked(self.folder / _LOCK, _STORE_TIMEOUT_S, what="the plan store")

    def _shared(self) -> AbstractContextManager[Any]:
        """Keeps writers out for who may only read; where nobody ever wrote there is no lock, and nobody to keep out."""
        path = self.folder / _LOCK
        if not path.exists():
            return nullcontext()
        return locked(path, _STORE_TIMEOUT_S, what="the plan store", shared=True)

    def _shipped_entry(self, key: str) -> PlanEntry:
        found = self._shipped[key]
        return _entry(key, "bundle", self.bundle.read(found.meta))

    def _added_entry(self, key: str) -> PlanEntry:
        problem = _open_to_others(*self._paths(key))
        if problem:
            return PlanEntry(key, "store", None, problem)
        path = self.folder / f"{key}.json"
        try:
            data, written_at = path.read_bytes(), path.stat().st_mtime
        except OSError as error:
            return PlanEntry(key, "store", None, f"its description cannot be read ({_reason(error)})")
        entry = replace(_entry(key, "store", data), written_at=written_at)
        if entry.problem is None and not (self.folder / f"{key}.plan").is_file():
            return PlanEntry(key, "store", None, "its plan is missing")
        return entry

    def _read_again(self, key: str) -> bytes:
        """A plan whose bytes are not as described: perhaps it is being replaced, so look with the writers kept out."""
        may_write = os.access(self.folder, os.W_OK)
        with self._exclusive() if may_write else self._shared():
            again = self._added_entry(key)
            data = self._bytes(key)
            if again.meta is not None and hashlib.sha256(data).hexdigest() == again.meta["plan_sha256"]:
                return data
            reason = "its bytes are not those that were written (sha256)"
            moved = self._move_away(key, reason) if may_write else _NOT_MOVED
        raise _damaged(f"engine {key} was changed after it was built (sha256); {moved}")

    def _bytes(self, key: str) -> bytes:
        try:
            return (self.folder / f"{key}.plan").read_bytes()
        except OSError:
            return b""

    def _move_away(self, key: str, reason: str) -> str:
        """The caller holds the lock."""
        number = 1
        while (place := self.folder / _QUARANTINE / f"{key}-{number}").exists():
            number += 1
        try:
            place.mkdir(parents=True)
            for suffix in (".json", ".plan"):
                path = self.folder / f"{key}{suffix}"
                if path.exists() or path.is_symlink():
                    path.rename(place / path.name)
            write_file(place / "reason.txt", f"{reason}\n".encode())
        except (OSError, OutputNotWritable):
            return _NOT_MOVED
        return f"moved to {_QUARANTINE}/{place.name}"


def _entry(key: str, source: str, data: bytes) -> PlanEntry:
    try:
        meta = check_meta(json.loads(data))
    except (ValueError, RecursionError):
        return PlanEntry(key, source, None, "its description is not valid JSON")
    except FourphaseError as error:
        return PlanEntry(key, source, None, error.message)
    try:
        own = plan_key(meta)
    except ValueError:
        return PlanEntry(key, source, None, "its description holds a number that is not finite")
    if own != key:
        return PlanEntry(key, source, None, f"its description belongs to the key {own}")
    return PlanEntry(key, source, meta)


def _open_to_others(*paths: Path) -> str | None:
    """A plan is a program: what everybody may change is not run."""
    for path in paths:
        try:
            mode = path.stat().st_mode
        except OSError:
            continue
        if mode & stat.S_IWOTH and not (mode & stat.S_ISVTX and path.is_dir()):
            return f"{path.name} can be written by everybody (chmod o-w)"
    return None


def _write_closed(path: Path, data: bytes) -> None:
    """Writes a file that not everybody may change, whatever the umask says."""
    write_file(path, data)
    mode = path.stat().st_mode
    if mode & stat.S_IWOTH:
        path.chmod(mode & ~stat.S_IWOTH)


def _reason(error: OSError) -> str:
    return (error.strerror or "error").lower()


def _damaged(message: str) -> IntegrityError:
    return IntegrityError(message, "build it again with fp-export build-plan", key="plan_damaged")


def _not_writable(error: OSError) -> OutputNotWritable:
    return OutputNotWritable(
        f"the plan store cannot be written: {_reason(error)}", "give a folder that you may write to: --plans DIR"
    )
