"""One DICOM file on disk: its raw header values and where its pixel data starts. Nothing is interpreted here.

pydicom finds the elements of an ordinary header, `elements` those of a long or nested one. The values stay bytes and
are decoded by `RawHeader`, because pydicom's converters cost more than the parsing and put header text into their
warnings. No pixel is read, no symlink followed, no device opened.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filereader import data_element_generator
from pydicom.tag import BaseTag

from fourphase.runtime.elements import Found, MalformedData, TooManyElements, Wanted, walk
from fourphase.runtime.raw_header import RawHeader, plain_ascii

__all__ = [
    "DEFLATED",
    "NATIVE",
    "RawHeader",
    "SkippedFile",
    "dataset_bytes",
    "open_regular",
    "quiet_pydicom",
    "read_nested",
    "read_raw_header",
]

#: Deflated Explicit VR Little Endian, PS3.5 A.5.
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"
#: Transfer syntaxes of uncompressed pixels.
NATIVE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED)

TRANSFER_SYNTAX, MEDIA_CLASS = 0x00020010, 0x00020002

#: Nearly every CT header ends before this; a longer one is parsed again from more of the file.
HEAD_BYTES = 32 * 1024
#: How much of a file with a longer header is looked at, first, then, at most.
LONGER_HEADS = (1024 * 1024, 8 * 1024 * 1024)
#: The largest CT slice within limits (4096 x 4096 x 16 bit) and a generous header; also the longest header.
FILE_LIMIT = 48 * 1024 * 1024


class SkippedFile(Exception):
    """A file that is no usable CT slice; `reason` is a stable snake_case name that is counted, never a path."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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
                return dataclasses.replace(_header(whole, tags), transfer_syntax=DEFLATED)
            if len(head) < HEAD_BYTES:
                return _parsed(head, tags)
            return _parsed_head(head, tags) or _long_header(file, head, tags)
    except OSError:
        raise SkippedFile("unreadable") from None


def read_nested(path: Path, header: RawHeader, wanted: Wanted) -> Found:
    """Reads wanted elements of a file again, those within sequences included.

    Args:
        header: the same file's, with pixel data.

    Raises:
        SkippedFile: "unreadable", "damaged" or "over_limits".
    """
    try:
        deflated = header.transfer_syntax == DEFLATED
        data = dataset_bytes(path, deflated=deflated, limit=FILE_LIMIT if deflated else header.pixel_offset or 0)
    except OSError:
        raise SkippedFile("unreadable") from None
    _, _, start = _meta(data)
    little, implicit = _encoding(data[start : start + 6], EXPLICIT_LITTLE if header.little_endian else EXPLICIT_BIG)
    return _walked(data, start, wanted, little, implicit)[0]


def _header(data: bytes, tags: tuple[int, ...]) -> RawHeader:
    return _parsed_head(data[:HEAD_BYTES], tags) or _walked_header(data, tags)


def _parsed_head(head: bytes, tags: tuple[int, ...]) -> RawHeader | None:
    """The header if it ends within `head`, else None."""
    try:
        header = _parsed(head, tags)
    except SkippedFile:
        return None
    return header if header.pixel_offset is not None else None


def _long_header(file: io.FileIO, data: bytes, tags: tuple[int, ...]) -> RawHeader:
    """The header out of as much of the file as it takes; cut within an element, a shorter part is no data set."""
    for size in (*LONGER_HEADS, FILE_LIMIT):
        wanted = size - len(data)
        more = file.read(wanted)
        data += more
        whole = len(more) < wanted or size == FILE_LIMIT
        try:
            header = _walked_header(data, tags)
        except SkippedFile as skip:
            if whole or skip.reason == "over_limits":
                raise
            continue
        if whole or header.pixel_offset is not None:
            return header
    raise AssertionError("the last size is the whole")


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
    """A short header: whatever a damaged one makes pydicom do is bounded by its length."""
    stream = io.BytesIO(data)
    syntax, media_class, start = _meta(data)
    little, implicit = _encoding(data[start : start + 6], syntax)
    stream.seek(start)
    try:
        elements = data_element_generator(stream, implicit, little, stop_when=_at_pixels, specific_tags=list(tags))
        values = _values(elements)
    except Exception:  # whatever a damaged header makes pydicom raise, recursion and lying lengths included
        raise SkippedFile("damaged") from None
    offset = stream.tell()
    found = stream.read(4) == struct.pack("<HH" if little else ">HH", 0x7FE0, 0x0010)
    return RawHeader(values, syntax or _shown(little, implicit), little, offset if found else None, media_class)


def _walked_header(data: bytes, tags: tuple[int, ...]) -> RawHeader:
    """A long header: its time and memory are bounded by the walk."""
    syntax, media_class, start = _meta(data)
    little, implicit = _encoding(data[start : start + 6], syntax)
    elements, offset = _walked(data, start, dict.fromkeys(tags), little, implicit)
    found = data[offset : offset + 4] == struct.pack("<HH" if little else ">HH", 0x7FE0, 0x0010)
    values = {tag: value for tag, value in elements.items() if isinstance(value, bytes)}
    return RawHeader(values, syntax or _shown(little, implicit), little, offset if found else None, media_class)


def _walked(data: bytes, start: int, wanted: Wanted, little: bool, implicit: bool) -> tuple[Found, int]:
    try:
        return walk(data, start, wanted, little=little, implicit=implicit)
    except MalformedData:
        raise SkippedFile("damaged") from None
    except TooManyElements:
        raise SkippedFile("over_limits") from None


def _meta(data: bytes) -> tuple[str, str, int]:
    """Transfer syntax and class of the file meta information, '' without it, and where the data set starts."""
    stream = io.BytesIO(data[:HEAD_BYTES])
    stream.seek(132 if data[128:132] == b"DICM" else 0)
    try:
        meta = _values(data_element_generator(stream, False, True, stop_when=_after_meta))
    except Exception:  # as in `_parsed`
        raise SkippedFile("damaged") from None
    return plain_ascii(meta.get(TRANSFER_SYNTAX, b"")), plain_ascii(meta.get(MEDIA_CLASS, b"")), stream.tell()


def _shown(little: bool, implicit: bool) -> str:
    """The transfer syntax that the encoding shows, without file meta information."""
    return EXPLICIT_BIG if not little else IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE


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
