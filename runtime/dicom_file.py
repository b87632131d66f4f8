"""One DICOM file on disk: its raw header values and where its pixel data starts. Nothing is interpreted here.

pydicom finds the elements; the values stay bytes and are decoded by `RawHeader`, because pydicom's converters cost more
than the parsing and put header text into their warnings. No pixel is read, no symlink followed, no device opened.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydicom import charset
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filereader import data_element_generator
from pydicom.tag import BaseTag

__all__ = [
    "DEFLATED",
    "RawHeader",
    "SkippedFile",
    "dataset_bytes",
    "open_regular",
    "quiet_pydicom",
    "read_raw_header",
]

#: Deflated Explicit VR Little Endian, PS3.5 A.5.
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"

TRANSFER_SYNTAX, MEDIA_CLASS = 0x00020010, 0x00020002

#: Nearly every CT header ends before this; a longer one is parsed again from more of the file.
HEAD_BYTES = 32 * 1024
#: The largest CT slice within limits (4096 x 4096 x 16 bit) and a generous header.
FILE_LIMIT = 48 * 1024 * 1024

_UID = re.compile(r"[0-9.]{1,64}")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


class SkippedFile(Exception):
    """A file that is no usable CT slice; `reason` is a stable snake_case name that is counted, never a path."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class RawHeader:
    """The wanted elements of one file.

    Attributes:
        values: tag -> value as it is in the file; absent and empty elements are left out.
        transfer_syntax: UID; without file meta information, the one that the encoding shows.
        little_endian: byte order of `values` (Explicit VR Big Endian is retired but exists).
        pixel_offset: byte offset of the (7FE0,0010) element in `dataset_bytes`; None if the header ends without one.
        media_class: MediaStorageSOPClassUID of the file meta information, '' without it.
    """

    values: dict[int, bytes]
    transfer_syntax: str = ""
    little_endian: bool = True
    pixel_offset: int | None = None
    media_class: str = ""

    def text(self, tag: int) -> str:
        """A code string, UID or time: ASCII without padding; '' when absent."""
        return _ascii(self.values.get(tag, b""))

    def uid(self, tag: int) -> str:
        """A UID; '' when absent or anything else than digits and dots: UIDs are printed, so they hold no other text."""
        text = self.text(tag)
        return text if _UID.fullmatch(text) else ""

    def strings(self, tag: int) -> tuple[str, ...]:
        return tuple(part.strip(" \0") for part in self.text(tag).split("\\")) if tag in self.values else ()

    def free_text(self, tag: int) -> str:
        """Text in the file's SpecificCharacterSet (0008,0005). Never print it: it may name the patient."""
        return _decoded(self.values.get(tag, b""), self.values.get(0x00080005, b""))

    def floats(self, tag: int, count: int) -> tuple[float, ...] | None:
        """`count` decimal strings; None if absent, another number of them, or not finite numbers."""
        parts = self.strings(tag)
        if len(parts) != count or not all(_NUMBER.fullmatch(part) for part in parts):
            return None
        numbers = tuple(float(part) for part in parts)
        return numbers if all(map(math.isfinite, numbers)) else None

    def decimal(self, tag: int) -> float | None:
        values = self.floats(tag, 1)
        return values[0] if values else None

    def integer(self, tag: int) -> int | None:
        """An integer string (VR IS); None if absent or not an integer."""
        text = self.text(tag)
        return int(text) if re.fullmatch(r"[-+]?\d{1,12}", text) else None

    def short(self, tag: int, *, signed: bool = False) -> int | None:
        """A 16-bit integer (VR US or SS); None if absent or of another length."""
        value = self.values.get(tag, b"")
        return (
            int.from_bytes(value, "little" if self.little_endian else "big", signed=signed) if len(value) == 2 else None
        )


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silences pydicom's warnings and log records, which quote header values and file names."""
    logger = logging.getLogger("pydicom")
    silence, propagate = logging.NullHandler(), logger.propagate
    logger.addHandler(silence)
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.propagate = propagate
        logger.removeHandler(silence)


def open_regular(path: Path) -> io.FileIO:
    """Opens a regular file for reading, unbuffered; a symlink, FIFO or device that took its place is refused.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return io.FileIO(descriptor, "rb")


def dataset_bytes(path: Path, *, deflated: bool, offset: int = 0, limit: int = FILE_LIMIT) -> bytes:
    """The file's bytes from `offset` on, at most `limit`; a deflated data set comes inflated, within the same limit.

    Raises:
        OSError: the file cannot be read.
        SkippedFile: a deflated data set is damaged or inflates beyond the limit.
    """
    with open_regular(path) as file:
        if not deflated:
            file.seek(offset)
            return file.read(limit)
        return _inflated(file.read(limit))[offset : offset + limit]


def read_raw_header(path: Path, tags: tuple[int, ...]) -> RawHeader:
    """Reads the wanted elements of a file; call it within `quiet_pydicom`.

    Raises:
        SkippedFile: "unreadable", "not_dicom", "damaged" or "over_limits".
    """
    try:
        with open_regular(path) as file:
            head = file.read(HEAD_BYTES)
            if not _looks_like_dicom(head):
                raise SkippedFile("not_dicom")
            if DEFLATED.encode() in head[132:1024]:
                whole = _inflated(head + file.read(FILE_LIMIT))
                return dataclasses.replace(_parsed(whole, tags), transfer_syntax=DEFLATED)
            if len(head) < HEAD_BYTES:
                return _parsed(head, tags)
            return _parsed_head(head, tags) or _parsed(head + file.read(FILE_LIMIT), tags)
    except OSError:
        raise SkippedFile("unreadable") from None


def _parsed_head(head: bytes, tags: tuple[int, ...]) -> RawHeader | None:
    """The header if it ends within `head`, else None."""
    try:
        header = _parsed(head, tags)
    except SkippedFile:
        return None
    return header if header.pixel_offset is not None else None


def _looks_like_dicom(head: bytes) -> bool:
    """True with the DICM prefix, or when the file starts like a bare data set: group 0002 or 0008, a sane element."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 16:
        return False
    shows_vr = head[4:6].isalpha() and head[4:6].isupper()
    little, big = struct.unpack_from("<HHI", head), struct.unpack_from(">HH", head)
    if big[0] == 0x0008 and big[1] < 0x1200:
        return shows_vr
    return little[0] in (0x0002, 0x0008) and little[1] < 0x1200 and (shows_vr or little[2] <= 1024)


def _parsed(data: bytes, tags: tuple[int, ...]) -> RawHeader:
    stream = io.BytesIO(data)
    stream.seek(132 if data[128:132] == b"DICM" else 0)
    try:
        meta = _values(data_element_generator(stream, False, True, stop_when=_after_meta))
        syntax = _ascii(meta.get(TRANSFER_SYNTAX, b""))
        little, implicit = _encoding(data[stream.tell() : stream.tell() + 6], syntax)
        elements = data_element_generator(stream, implicit, little, stop_when=_at_pixels, specific_tags=list(tags))
        values = _values(elements)
    except Exception:  # whatever a damaged header makes pydicom raise, recursion and lying lengths included
        raise SkippedFile("damaged") from None
    offset = stream.tell()
    found = stream.read(4) == struct.pack("<HH" if little else ">HH", 0x7FE0, 0x0010)
    shown = EXPLICIT_BIG if not little else IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE
    return RawHeader(values, syntax or shown, little, offset if found else None, _ascii(meta.get(MEDIA_CLASS, b"")))


def _values(elements: Iterable[DataElement | RawDataElement]) -> dict[int, bytes]:
    """Sequences and empty values are left out: none of the wanted elements is a sequence."""
    return {
        int(element.tag): element.value
        for element in elements
        if isinstance(element, RawDataElement) and isinstance(element.value, bytes) and element.value
    }


def _after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag >> 16 != 0x0002


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    """Float, double or integer pixel data, or whatever follows; the retired group length (7FE0,0000) comes before."""
    return int(tag) >= 0x7FE00008


def _encoding(first: bytes, transfer_syntax: str) -> tuple[bool, bool]:
    """(little endian, implicit VR) of the data set; what its first element shows wins over what the UID claims."""
    shows_vr = len(first) == 6 and first[4:].isalpha() and first[4:].isupper()
    shows_big = shows_vr and not transfer_syntax and int.from_bytes(first[:2], "little") >= 0x0400
    return transfer_syntax != EXPLICIT_BIG and not shows_big, not shows_vr


def _ascii(value: bytes) -> str:
    return value.decode("ascii", errors="replace").strip(" \0")


def _inflated(deflated: bytes) -> bytes:
    """The file as if it had been written in Explicit VR Little Endian, whose UID fits in the place of the deflated one.

    Inflation is bounded: a data set beyond FILE_LIMIT is no CT slice.
    """
    if deflated[132:136] != b"\x02\x00\x00\x00" or deflated[136:140] != b"UL\x04\x00":
        raise SkippedFile("damaged")
    start = 144 + struct.unpack_from("<I", deflated, 140)[0]
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        body = inflater.decompress(deflated[start:], FILE_LIMIT)
    except zlib.error:
        raise SkippedFile("damaged") from None
    if inflater.unconsumed_tail:
        raise SkippedFile("over_limits")
    return deflated[:start].replace(DEFLATED.encode(), EXPLICIT_LITTLE.encode().ljust(len(DEFLATED), b"\0")) + body


@lru_cache(maxsize=4096)
def _decoded(value: bytes, character_set: bytes) -> str:
    """Text in a SpecificCharacterSet; UTF-8 wins when the bytes are UTF-8 whatever the header claims (common fault)."""
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii").strip(" \0")
    try:
        return value.decode("utf-8").strip(" \0") if b"\x1b" not in value else _by_charset(value, character_set)
    except UnicodeDecodeError:
        return _by_charset(value, character_set)


def _by_charset(value: bytes, character_set: bytes) -> str:
    try:
        names: Any = character_set.decode("ascii").strip(" \0").split("\\")
        encodings = charset.convert_encodings(names)
        return charset.decode_bytes(value, encodings, set()).strip(" \0")
    except Exception:  # an unknown or broken character set: unreadable text is no evidence
        return value.decode("latin-1").strip(" \0")
