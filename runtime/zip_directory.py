"""A zip's table of contents, believed in nothing: entries, limits, overlaps, and a safe place for each file.

Unpacking is `study_archive`'s task; here nothing is inflated and nothing written.
"""

from __future__ import annotations

import re
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fourphase.runtime.errors import InputMissing, PixelDataError

__all__ = ["Limits", "check_claims", "data_start", "entries", "is_file", "is_folder", "over_limits", "read", "targets"]

_METHODS = {1: "shrink", 6: "implode", 9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 98: "PPMd"}
#: Encrypted, strongly encrypted, header values masked: APPNOTE 4.4.4.
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_UTF8_NAME = 0x800
_LOCAL_HEADER = 30
#: No folder of a zip keeps a name that ends so: files and renamed folders have it, so none can take another's place.
_SUFFIX = ".fourphase"


@dataclass(frozen=True)
class Limits:
    """What a zip may hold. Defaults: ten times a large four-phase study.

    Attributes:
        members: entries, folders included.
        directory_bytes: the zip's table of contents; `zipfile` takes time quadratic in the length of an entry's extras.
        member_bytes: one unpacked file.
        total_bytes: all unpacked files.
        ratio, ratio_free_bytes: unpacked bytes per byte of the zip, beyond those that are free (images compress 2 to 4
            fold; deflate reaches 1032).
        seconds: for all of the unpacking.
    """

    members: int = 32768
    directory_bytes: int = 8 * 1024**2
    member_bytes: int = 2 * 1024**3
    total_bytes: int = 16 * 1024**3
    ratio: int = 100
    ratio_free_bytes: int = 512 * 1024**2
    seconds: float = 600.0


class _Directory:
    """The zip for `zipfile`, which reads the whole table of contents into memory, however long it is said to be.

    Attributes:
        entries: how many begin in what was read last, which is the table.
    """

    def __init__(self, file: BinaryIO, limits: Limits) -> None:
        self._file, self._limits, self.entries = file, limits, 0
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if size > self._limits.directory_bytes:
            raise over_limits("its table of contents is too long")
        data = read(self._file, size)
        self.entries = data.count(b"PK\x01\x02")
        if self.entries > self._limits.members:
            raise over_limits(f"it has more than {self._limits.members} entries")
        return data


def entries(file: BinaryIO, limits: Limits) -> list[zipfile.ZipInfo]:
    """The entries, each with a local header of its own that overlaps no other entry.

    Overlap is how a small zip claims the same data many times (D. Fifield, "A better zip bomb", 2019).
    """
    directory = _Directory(file, limits)
    try:
        archive = zipfile.ZipFile(directory)
    except (InputMissing, PixelDataError):
        raise
    except Exception:  # whatever damage makes zipfile raise: BadZipFile, struct.error, UnicodeDecodeError...
        raise _damaged() from None
    infos, end = sorted(archive.infolist(), key=lambda info: info.header_offset), archive.start_dir
    offsets = [info.header_offset for info in infos] + [end]
    # A zip cut within a stored zip ends like the inner one, which starts later. An entry whose comment is said to be
    # longer than it is swallows those after it.
    if offsets[0] != 0 or end != max(offsets) or directory.entries != len(infos):
        raise _damaged()
    stops = [data_start(file, info) + info.compress_size for info in infos]
    if any(stop > follower for stop, follower in zip(stops, offsets[1:], strict=True)):
        raise InputMissing("entries of the zip overlap", "pack the study again", key="archive_overlap")
    return infos


def data_start(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    file.seek(info.header_offset)
    header = read(file, _LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
        raise _damaged()
    name_bytes, extra_bytes = struct.unpack_from("<HH", header, 26)
    return info.header_offset + _LOCAL_HEADER + int(name_bytes) + int(extra_bytes)


def is_folder(info: zipfile.ZipInfo) -> bool:
    return info.orig_filename.endswith(("/", "\\")) or stat.S_ISDIR(info.external_attr >> 16)


def is_file(info: zipfile.ZipInfo) -> bool:
    """False for folders, and for links, devices and the like (Unix mode in the upper half of the attributes)."""
    return not is_folder(info) and stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)


def check_claims(members: Sequence[zipfile.ZipInfo], zip_bytes: int, limits: Limits) -> None:
    """That the sizes are true is seen when the members are unpacked."""
    if any(info.flag_bits & _ENCRYPTED for info in members):
        raise InputMissing("the zip is encrypted", "unpack it and give the folder", key="archive_encrypted")
    for info in members:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            method = _METHODS.get(info.compress_type, f"number {info.compress_type}")
            raise InputMissing(
                f"the zip is compressed with method {method}",
                "pack it with the usual method (deflate), or unpack it and give the folder",
                key="archive_method",
            )
    total = sum(info.file_size for info in members)
    if max((info.file_size for info in members), default=0) > limits.member_bytes:
        raise over_limits(f"a file in it unpacks to more than {limits.member_bytes >> 20} MiB")
    if total > limits.total_bytes:
        raise over_limits(f"it unpacks to more than {limits.total_bytes >> 20} MiB")
    if total > limits.ratio_free_bytes + limits.ratio * zip_bytes:
        raise over_limits(f"it unpacks to more than {limits.ratio} times its size")


def targets(members: Sequence[zipfile.ZipInfo], root: Path, counts: Counter[str]) -> list[Path]:
    """A numbered file for each member, in its folder's name or, where that is not safe, in a numbered folder."""
    renamed: dict[str, Path] = {}
    targets = []
    for number, info in enumerate(members):
        name = _name(info)
        parts = _safe_folders(name)
        if parts is None:
            given = name.replace("\\", "/").rpartition("/")[0]
            folder = renamed.setdefault(given, root / f"folder{len(renamed)}{_SUFFIX}")
        else:
            folder = root.joinpath(*parts)
        targets.append(folder / f"{number:06d}{_SUFFIX}")
    counts["archive_unsafe_folders"] = len(renamed)
    return targets


def _name(info: zipfile.ZipInfo) -> str:
    """Without the UTF-8 flag the standard says code page 437, but some tools write UTF-8 all the same."""
    if info.flag_bits & _UTF8_NAME:
        return info.orig_filename
    try:
        return info.orig_filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.orig_filename


def _safe_folders(name: str) -> list[str] | None:
    """The folders in a member's name, None if they are no plain way downwards. Windows tools may write backslashes."""
    if re.match(r"[A-Za-z]:|[/\\]", name):
        return None
    parts = [part for part in name.replace("\\", "/").split("/")[:-1] if part not in ("", ".")]
    safe = all(map(_is_safe, parts)) and len("/".join(parts).encode(errors="replace")) <= 1024
    return parts if safe else None


def _is_safe(part: str) -> bool:
    plain = not re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", part)
    return plain and part != ".." and len(part.encode()) <= 255 and not part.endswith(_SUFFIX)


def read(file: BinaryIO, size: int) -> bytes:
    try:
        return file.read(size)
    except OSError:
        raise InputMissing("the zip cannot be read", "check the disk that it is on", key="archive_unreadable") from None


def _damaged() -> InputMissing:
    return InputMissing("the zip is incomplete or damaged", "copy or send the zip again", key="archive_damaged")


def over_limits(cause: str) -> PixelDataError:
    return PixelDataError(f"the zip is over the limits: {cause}", "give a zip of one study", key="archive_over_limits")
