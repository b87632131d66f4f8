"""The spool of `fp-listen` on disk: received instances and the state of each study, durable; nothing is decided here.

    SPOOL/salt                       makes the names below
    SPOOL/incoming/                  instances being written; emptied at the start
    SPOOL/studies/KEY/state.json     see `state`
    SPOOL/studies/KEY/error.json     of a failed study
    SPOOL/studies/KEY/instances/SOP-CONTENT.KIND.dcm
    SPOOL/work/KEY/                  hard links to what a run reads; emptied at the start

KEY and SOP are salted hashes of StudyInstanceUID and SOPInstanceUID, CONTENT is a digest of the data set as it came:
the names alone tell a resend from a correction, after any crash. A name appears when its file is whole and synced.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fourphase.runtime.atomic import write_file
from fourphase.runtime.errors import OutputNotWritable
from fourphase.runtime.listen.files import (
    SMALLEST,
    listing,
    not_writable,
    read_salt,
    size_of,
    sync_folder,
    write_synced,
)
from fourphase.runtime.listen.instance import OUT_OF_RESOURCES, Identity, Refused
from fourphase.runtime.listen.refusals import Refusals
from fourphase.runtime.listen.state import StudyState, read_state, write_state

__all__ = ["Entry", "Spool"]

#: Room that is left on the disk for states and results.
RESERVE_BYTES = 256 * 2**20


@dataclass
class Entry:
    """A study in memory: what the worker has to know at every look; the rest is on disk.

    Attributes:
        active: when its last instance came, by the monotonic clock.
        news: instances may be there that its state does not speak of.
    """

    key: str
    state: StudyState
    active: float
    news: bool = True
    not_before: float = 0.0
    sops: dict[str, str] | None = None


class Spool:
    """The spool; made once per process, under a lock that the caller holds.

    Raises: OutputNotWritable (30), from any method that writes.
    """

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self.root = root
        self._limit = limit_bytes
        self._lock = threading.RLock()
        self._incoming, self._studies, self._work = root / "incoming", root / "studies", root / "work"
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self._incoming, self._work):
                shutil.rmtree(folder, ignore_errors=True)
            for folder in (self._incoming, self._studies, self._work):
                folder.mkdir(mode=0o700, exist_ok=True)
            self._salt = read_salt(root / "salt")
        except OSError as error:
            raise not_writable(error) from error
        self.damaged = 0
        self.refusals = Refusals()
        self._used = 0
        self._entries: dict[str, Entry] = {}
        for folder in sorted(self._studies.iterdir()):
            self._recover(folder)

    def _recover(self, folder: Path) -> None:
        """A study as the last process left it; its quiet time starts now: nobody could send while nobody listened."""
        self._used += sum(size_of(path) for path in listing(folder / "instances"))
        state = read_state(folder / "state.json")
        if state is not None and hmac.compare_digest(self.key(state.uid), folder.name):
            self._entries[folder.name] = Entry(folder.name, state, time.monotonic())
        elif not any(listing(folder / "instances")):
            shutil.rmtree(folder, ignore_errors=True)  # nothing in it was ever acknowledged
        else:
            self.damaged += 1

    @property
    def entries(self) -> list[Entry]:
        with self._lock:
            return list(self._entries.values())

    @property
    def used_bytes(self) -> int:
        return self._used

    def key(self, study_uid: str) -> str:
        """The folder name that stands for a study: 32 hex digits."""
        return self._hash("study", study_uid)

    def folder(self, key: str) -> Path:
        return self._studies / key

    @contextmanager
    def incoming(self, chunks: Sequence[bytes | memoryview]) -> Iterator[Path]:
        """Writes an instance and syncs it; yields the file, which is deleted at the end unless it was kept.

        Raises:
            Refused: the spool's limit is reached, or the disk is full or broken.
        """
        size = max(SMALLEST, sum(len(chunk) for chunk in chunks))
        path = self._incoming / secrets.token_hex(16)
        self._take(size)
        kept = False
        try:
            try:
                write_synced(path, chunks)
            except OSError as error:
                raise Refused(OUT_OF_RESOURCES, f"disk_{(error.strerror or 'error').lower()}") from None
            yield path
            kept = not path.exists()
        finally:
            if not kept:
                path.unlink(missing_ok=True)
                self._used_changes(-size)

    def keep(self, path: Path, identity: Identity, digest: str) -> bool:
        """Gives a file of `incoming` its place; False if the study has exactly this instance already.

        Args:
            digest: hex, of the transfer syntax and the data set.

        Raises: Refused as `incoming`.
        """
        sop = self._hash("instance", identity.sop_uid)
        name = f"{sop}-{digest[:32]}.{identity.kind}.dcm"
        try:
            with self._lock:
                entry = self._entry(identity.study_uid)
                entry.active = time.monotonic()
                folder = self.folder(entry.key) / "instances"
                known = self._sops(entry)
                if known.get(sop) == name:
                    self.refusals.stored(entry.key, sop)
                    return False
                os.replace(path, folder / name)
                if sop in known:
                    self._delete(folder / known[sop])
                known[sop] = name
                entry.news = True
            sync_folder(folder)
            self.refusals.stored(entry.key, sop)
        except (OSError, OutputNotWritable):
            raise Refused(OUT_OF_RESOURCES, "disk") from None
        return True

    def remember_refusal(self, study_uid: str, sop_uid: str, digest: str) -> None:
        """The sender of this instance was told to try again; a resend of what the study has is not missed."""
        key, sop = self.key(study_uid), self._hash("instance", sop_uid)
        start = f"{sop}-{digest[:32]}."
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                known = (*entry.state.content, self._sops(entry).get(sop, ""))
                if any(name.startswith(start) for name in known):
                    return
                entry.active = time.monotonic()
            self.refusals.add(key, sop)

    def save(self, entry: Entry, **changes: Any) -> None:
        """Writes a study's state with some changes."""
        with self._lock:
            state = replace(entry.state, **{"changed": time.time(), **changes})
            folder = self.folder(entry.key)
            write_state(folder / "state.json", state)
            if state.error is None:
                (folder / "error.json").unlink(missing_ok=True)
            else:
                body = {"schema": "fourphase.error/1", "error": state.error}
                write_file(folder / "error.json", json.dumps(body, indent=1).encode("ascii") + b"\n")
            entry.state = state
            if not entry.news:
                entry.sops = None

    def names(self, entry: Entry) -> frozenset[str]:
        """The study's instances; of two with one SOPInstanceUID, which only a crash leaves, the later one."""
        with self._lock:
            entry.news = False
            entry.sops = None
            return frozenset(self._sops(entry).values())

    def snapshot(self, entry: Entry, names: frozenset[str]) -> Path | None:
        """A folder with hard links to these instances, which stays as it is whatever arrives; see `drop_snapshot`.

        None if one of them was replaced meanwhile.
        """
        target = self._work / entry.key
        try:
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(mode=0o700)
            for name in names:
                os.link(self.folder(entry.key) / "instances" / name, target / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise not_writable(error) from error
        return target

    def drop_snapshot(self, entry: Entry) -> None:
        shutil.rmtree(self._work / entry.key, ignore_errors=True)

    def delete_files(self, entry: Entry) -> None:
        """Deletes the instances of a study that has no news; its state stays."""
        with self._lock:
            if entry.news:
                return
            self.save(entry, files_deleted=True)
            for path in listing(self.folder(entry.key) / "instances"):
                self._delete(path)
            entry.sops = None

    def forget(self, entry: Entry) -> None:
        """Deletes all that is known of a study without news."""
        with self._lock:
            if not entry.news:
                del self._entries[entry.key]
                self.refusals.forget(entry.key)
                shutil.rmtree(self.folder(entry.key), ignore_errors=True)

    def _entry(self, study_uid: str) -> Entry:
        key = self.key(study_uid)
        if key not in self._entries:
            (self.folder(key) / "instances").mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(self._studies)
            # News from the start: the instances of a study whose state was damaged are there already.
            entry = Entry(key, StudyState(study_uid), time.monotonic())
            self.save(entry)
            self._entries[key] = entry
        return self._entries[key]

    def _sops(self, entry: Entry) -> dict[str, str]:
        """SOP -> file name, from the disk where it is not in memory."""
        if entry.sops is None:
            entry.sops = {}
            for path in sorted(listing(self.folder(entry.key) / "instances"), key=lambda one: one.stat().st_mtime_ns):
                sop = path.name.partition("-")[0]
                if sop in entry.sops:
                    self._delete(path.with_name(entry.sops[sop]))
                entry.sops[sop] = path.name
        return entry.sops

    def _take(self, size: int) -> None:
        with self._lock:
            if self._used + size > self._limit:
                raise Refused(OUT_OF_RESOURCES, "spool_limit")
            if shutil.disk_usage(self.root).free < size + RESERVE_BYTES:
                raise Refused(OUT_OF_RESOURCES, "disk_full")
            self._used += size

    def _delete(self, path: Path) -> None:
        size = size_of(path)
        path.unlink(missing_ok=True)
        self._used_changes(-size)

    def _used_changes(self, size: int) -> None:
        with self._lock:
            self._used += size

    def _hash(self, *parts: str) -> str:
        return hmac.new(self._salt, "\0".join(parts).encode(), hashlib.sha256).hexdigest()[:32]
