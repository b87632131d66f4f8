"""A study as it was given -> a folder to read: a folder is taken as it is, a zip is unpacked into a private copy.

Nothing that a zip says of itself is believed: names choose no place, sizes are counted, ranges may not overlap, and a
file's own name is not kept. Archives within it are not unpacked. Which of the files are DICOM is `study`'s question.
"""

from __future__ import annotations

import io
import os
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from fourphase.runtime.console import progress
from fourphase.runtime.dicom_file import open_regular
from fourphase.runtime.errors import InputMissing, Notice, PixelDataError
from fourphase.runtime.private_copy import not_writable, private_folder, sweep_copies
from fourphase.runtime.study_snapshot import folder_error
from fourphase.runtime.zip_directory import (
    Limits,
    check_claims,
    data_start,
    entries,
    is_file,
    is_folder,
    over_limits,
    read,
    targets,
)

__all__ = ["Limits", "OpenedStudy", "open_study"]


#: What a file shows of itself: (offset, bytes). A nested archive is counted, not unpacked.
_KINDS = {
    "gzip": (0, b"\x1f\x8b"),
    "bzip2": (0, b"BZh"),
    "xz": (0, b"\xfd7zXZ\0"),
    "zstd": (0, b"\x28\xb5\x2f\xfd"),
    "7z": (0, b"7z\xbc\xaf\x27\x1c"),
    "rar": (0, b"Rar!\x1a\x07"),
    "tar": (257, b"ustar"),
    "ISO image": (32769, b"CD001"),
}
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_HEAD_BYTES = 32774
_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class OpenedStudy:
    """Where a study's files can be read.

    Attributes:
        folder: the folder given, or the private copy of a zip's content, gone when the context ends.
        kind: what was given.
        warnings: what the user should know about the zip.
    """

    folder: Path
    kind: Literal["folder", "zip"]
    warnings: tuple[Notice, ...] = ()


@contextmanager
def open_study(path: Path, *, limits: Limits | None = None) -> Iterator[OpenedStudy]:
    """Yields the folder that holds the study's files; a zip is told by its content, not by its name.

    A zip's subfolders keep their names where these are safe, since `--phase NC=subfolder` names them.

    Raises:
        InputMissing (10): nothing there; another kind of file (key archive_unsupported, single_file); a zip that is
            incomplete or contradicts itself (archive_damaged), encrypted (archive_encrypted), of overlapping members
            (archive_overlap) or packed otherwise than deflated or stored (archive_method).
        PixelDataError (15): the content does not match its checksum (archive_corrupt); a bomb (archive_over_limits).
        OutputNotWritable (30), key unpack_not_writable: no place to unpack it.
    """
    sweep_copies()
    if os.path.isdir(path):
        yield OpenedStudy(path, "folder")
        return
    with _opened_zip(path) as file, private_folder() as folder:
        warnings = _unpack(file, folder, limits or Limits())
        file.close()
        yield OpenedStudy(folder, "zip", warnings)


def _opened_zip(path: Path) -> BinaryIO:
    try:
        file = io.BufferedReader(open_regular(Path(os.path.realpath(path))))
    except FileNotFoundError as error:
        raise folder_error(error) from None
    except OSError:
        cause = PermissionError() if os.path.isfile(path) else NotADirectoryError()
        raise folder_error(cause) from None
    try:
        _check_kind(read(file, _HEAD_BYTES))
    except BaseException:
        file.close()
        raise
    return file


def _check_kind(head: bytes) -> None:
    if head[128:132] == b"DICM":
        raise InputMissing(
            "the study is a single DICOM file, not a folder", "give the folder that holds it", key="single_file"
        )
    if head.startswith(_ZIP_STARTS):
        return
    kind = _archive_kind(head)
    if kind:
        raise InputMissing(
            f"the study is a file of the kind {kind}, which is not unpacked here",
            "unpack it and give the folder, or pack it as zip",
            key="archive_unsupported",
        )
    raise folder_error(NotADirectoryError())


def _archive_kind(head: bytes) -> str | None:
    if head[128:132] == b"DICM":  # a preamble may look like anything
        return None
    kinds = (kind for kind, (offset, magic) in _KINDS.items() if head.startswith(magic, offset))
    return "zip" if head.startswith(_ZIP_STARTS) else next(kinds, None)


def _unpack(file: BinaryIO, folder: Path, limits: Limits) -> tuple[Notice, ...]:
    deadline = time.monotonic() + limits.seconds
    infos = entries(file, limits)
    members = [info for info in infos if is_file(info)]
    check_claims(members, os.fstat(file.fileno()).st_size, limits)
    skipped = [info for info in infos if not is_file(info) and (info.file_size or not is_folder(info))]
    counts = Counter(archive_entries_skipped=len(skipped))
    counts["archive_duplicate_names"] = len(members) - len({info.orig_filename for info in members})
    places = targets(members, folder, counts)
    try:
        with progress("unpacking the zip", len(members)) as advance:
            for info, target in zip(members, places, strict=True):
                head = _unpack_member(file, info, target, deadline)
                counts["archive_nested"] += _archive_kind(head) is not None
                advance(1)
    except OSError as error:  # what reading raises is an InputMissing already
        raise not_writable(error) from None
    return _notices(counts)


def _unpack_member(file: BinaryIO, info: zipfile.ZipInfo, target: Path, deadline: float) -> bytes:
    """Writes one file and returns its first bytes; at most one chunk more than the directory claims is inflated."""
    file.seek(data_start(file, info))
    size, checksum, head = 0, 0, b""
    target.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(target, flags, 0o600), "wb", buffering=0) as output:
        for piece in _pieces(file, info):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
            if size > info.file_size:
                break
            head = head or piece[:_HEAD_BYTES]
            _write(output, piece)
            if time.monotonic() > deadline:
                raise over_limits("unpacking it takes too long")
    if (size, checksum) != (info.file_size, info.CRC):
        raise PixelDataError(
            "a file in the zip does not match its checksum", "copy or send the zip again", key="archive_corrupt"
        )
    return head


def _write(output: io.FileIO, piece: bytes) -> None:
    """Unbuffered: a full disk shows here."""
    rest = memoryview(piece)
    while rest:
        rest = rest[output.write(rest) :]


def _pieces(file: BinaryIO, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """A member's content in pieces of at most _CHUNK bytes; ends early where the stream is damaged."""
    left = info.compress_size
    inflater = zlib.decompressobj(-zlib.MAX_WBITS) if info.compress_type == zipfile.ZIP_DEFLATED else None
    while left and (data := read(file, min(left, _CHUNK))):
        left -= len(data)
        if inflater is None:
            yield data
            continue
        more = True
        while more:  # what does not fit into a piece may wait in `data` or in the inflater
            try:
                piece = inflater.decompress(data, _CHUNK)
            except zlib.error:
                return
            yield piece
            data = inflater.unconsumed_tail
            more = not inflater.eof and (bool(data) or len(piece) == _CHUNK)
        if inflater.eof:
            return


def _notices(counts: Counter[str]) -> tuple[Notice, ...]:
    texts = {
        "archive_entries_skipped": "links or special entries of the zip were skipped",
        "archive_unsafe_folders": "folders of the zip had names that are not safe here and were renamed",
        "archive_duplicate_names": "files of the zip had the name of another one; all were read",
        "archive_nested": "archives within the zip were not unpacked",
    }
    return tuple(Notice(key, f"{text}: {counts[key]}") for key, text in texts.items() if counts[key])
