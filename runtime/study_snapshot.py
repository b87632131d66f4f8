"""What a study's files are: whether they changed while they were read, and hashes that stand for content and request.

Files are listed and hashed, never interpreted. A copy that pauses for longer than SETTLE_S cannot be told from one that
has ended. On network file systems that cache attributes, a change may show seconds late.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fourphase.runtime.config import canonical_json
from fourphase.runtime.dicom_file import open_regular
from fourphase.runtime.errors import InputMissing, PixelDataError, StudyError

__all__ = [
    "SETTLE_S",
    "Snapshot",
    "check_unchanged",
    "content_hash",
    "folder_error",
    "regular_files",
    "request_hash",
    "take_snapshot",
    "unchanged",
]

#: A study is believed to be complete when its newest file has been left alone for this long.
SETTLE_S = 1.0

#: All files of a study; a sparse file can claim more than can be hashed in a day.
CONTENT_LIMIT = 64 * 1024**3
_CHUNK = 1024 * 1024
#: sha256 runs without the interpreter's lock; more threads than this only wait for the disk.
_THREADS = 4
_UNREADABLE = bytes(32)


@dataclass(frozen=True)
class Snapshot:
    """The regular files of a study at one moment.

    Attributes:
        files: path below the study -> (size, mtime_ns, ctime_ns, inode); never print the paths, they may name people.
        age_s: seconds since the newest change, by the machine's clock; 0 if that lies in the future (clocks differ),
            inf without files.
        taken_s: `time.monotonic()` when it was taken.
    """

    files: Mapping[str, tuple[int, int, int, int]] = field(repr=False)
    age_s: float
    taken_s: float


def take_snapshot(study: Path) -> Snapshot:
    """The state of every regular file below the folder `study`, by the rule of `regular_files`; or of one file (a zip).

    Raises: InputMissing (10): no such folder or file, or it cannot be read.
    """
    taken_s, now_s = time.monotonic(), time.time()
    status = _regular(study)
    if status:
        files = {"": _state(status)}
    else:
        prefix = len(str(study))
        files = {entry.path[prefix:]: _entry_state(entry) for entry in regular_files(study, Counter())}
    newest_s = max((state[2] for state in files.values()), default=-float("inf")) / 1e9
    return Snapshot(files, max(0.0, now_s - newest_s), taken_s)


def check_unchanged(before: Snapshot, study: Path) -> None:
    """Compares the study with a snapshot taken before it was read.

    A study whose newest change was younger than SETTLE_S when the snapshot was taken is first left alone until that
    time has passed, so at most SETTLE_S; an older one costs no waiting.

    Raises: InputMissing (10), key study_changing: files came, went or changed.
    """
    rest_s = SETTLE_S - before.age_s - (time.monotonic() - before.taken_s)
    if rest_s > 0:
        time.sleep(rest_s)
    try:
        same = take_snapshot(study).files == before.files
    except (InputMissing, OSError):
        same = False
    if not same:
        raise InputMissing(
            "the study changed while it was read; it is perhaps still being copied",
            "wait until the copy has ended, then run it again",
            key="study_changing",
        )


@contextmanager
def unchanged(study: Path) -> Iterator[Callable[[], None]]:
    """Within the context the study is read; if it changed meanwhile, that is the error, not how its half copy looks.

    Yields a function that checks at once, for when all has been read but not yet written; without a call of it the
    check comes at the end. What changes after the check does not count.

    Raises: InputMissing (10), key study_changing; or whatever the block raises.
    """
    before, checked = take_snapshot(study), False

    def check() -> None:
        nonlocal checked
        if not checked:
            checked = True
            check_unchanged(before, study)

    try:
        yield check
    except StudyError:
        check()
        raise
    check()


def regular_files(folder: Path, skipped: Counter[str]) -> list[os.DirEntry[str]]:
    """Every regular file below `folder`, in no order; the folder itself may be a link, nothing below it is followed.

    Args:
        skipped: counts what is no regular file: symlink, special_file, unreadable_folder.

    Raises: InputMissing (10): the folder itself cannot be read.
    """
    files: list[os.DirEntry[str]] = []
    pending = [str(folder)]
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        files.append(entry)
                    else:
                        skipped["symlink" if entry.is_symlink() else "special_file"] += 1
        except OSError as error:
            if current == str(folder):
                raise folder_error(error) from None
            skipped["unreadable_folder"] += 1
    return files


def folder_error(error: OSError) -> InputMissing:
    """Why a study's folder cannot be read, without its name."""
    causes = {FileNotFoundError: "does not exist", NotADirectoryError: "is not a folder"}
    cause = causes.get(type(error), "cannot be read")
    return InputMissing(
        f"the study folder {cause}", "give a folder with the study's DICOM files, or a zip file of such a folder"
    )


def content_hash(study: Path) -> str:
    """sha256 (hex) of what is in a study: every file's content and folder; names and order of files do not count.

    The folder counts because `--phase NC=subfolder` names it. A file or folder that cannot be read counts as such: the
    hash stands for what the reader can see. Links and special files are not followed and do not count. A zip is hashed
    as one file, so it differs from the folder that was packed.

    Raises:
        InputMissing (10): no such folder or file, or it cannot be read.
        PixelDataError (15), key study_over_limits: more than 64 GiB.
    """
    skipped: Counter[str] = Counter()
    if single := _regular(study) is not None:
        files = {os.path.realpath(study): "file"}
    else:
        found = regular_files(study, skipped)
        files = {entry.path: os.path.relpath(os.path.dirname(entry.path), study) for entry in found}
    digests = _file_digests(list(files))
    folders = [hashlib.sha256(os.fsencode(folder)).digest() for folder in files.values()]
    if single and digests == [_UNREADABLE]:
        raise folder_error(PermissionError())
    whole = hashlib.sha256(b"fourphase.study/1\0%d\0" % skipped["unreadable_folder"])
    for record in sorted(map(bytes.__add__, folders, digests)):
        whole.update(record)
    return whole.hexdigest()


def request_hash(study_sha256: str, box: bytes, options: Mapping[str, str]) -> str:
    """sha256 (hex) of all that a result depends on: equal hashes mean that the work has been done.

    Args:
        study_sha256: `content_hash` of the study.
        box: the content of the box file.
        options: name -> value of everything else, left out where not given: "label", "roi", "phase.NC" and so on for
            each override, "site" (sha256 of the site's phases.toml), "bundle" (its sha256), "precision", "backend",
            "preprocess", "version" (fourphase's). The order does not count.
    """
    request = {
        "schema": "fourphase.request/1",
        "study": study_sha256,
        "box": hashlib.sha256(box).hexdigest(),
        "options": dict(options),
    }
    return hashlib.sha256(canonical_json(request).encode()).hexdigest()


def _regular(path: Path) -> os.stat_result | None:
    """The status of a regular file or a link to one; None of anything else."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _state(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _entry_state(entry: os.DirEntry[str]) -> tuple[int, int, int, int]:
    """All zero for a file that is gone already: a later snapshot differs."""
    try:
        return _state(entry.stat(follow_symlinks=False))
    except OSError:
        return 0, 0, 0, 0


def _file_digests(paths: list[str]) -> list[bytes]:
    if sum(_size(path) for path in paths) > CONTENT_LIMIT:
        raise PixelDataError(
            f"the study's files hold more than {CONTENT_LIMIT >> 30} GiB",
            "give the folder of one study",
            key="study_over_limits",
        )
    halted = threading.Event()
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        try:
            return list(pool.map(lambda path: _digest(path, halted), paths))
        finally:  # a signal must not wait for a large file
            halted.set()


def _size(path: str) -> int:
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _digest(path: str, halted: threading.Event) -> bytes:
    """sha256 of as many bytes as the file has when it is opened: one that grows for ever ends."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    try:
        with open_regular(Path(path)) as file:
            left = os.fstat(file.fileno()).st_size
            while left > 0 and not halted.is_set():
                size = file.readinto(buffer[: min(left, _CHUNK)])
                if not size:
                    break
                digest.update(buffer[:size])
                left -= size
    except OSError:
        return _UNREADABLE
    return digest.digest()
