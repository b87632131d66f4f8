"""What compressed pixel data says about itself, read before any decoder sees it: fragments, size, precision.

A decoder allocates what its codestream claims (627 bytes of JPEG 2000 can claim 12000 x 12000), so the claim is
compared with the DICOM header first. Nothing is decoded here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = [
    "ITEM",
    "JPEG2000_FRAME",
    "JPEG_LS_FRAME",
    "LOSSLESS_FRAME",
    "SEQUENCE_END",
    "Codestream",
    "CodestreamError",
    "codestream_of",
    "single_frame",
]

ITEM, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"
#: JPEG markers (T.81 table B.1, T.87 table C.1): Huffman lossless and JPEG-LS frames, tables, scan.
LOSSLESS_FRAME, JPEG_LS_FRAME, HUFFMAN_TABLE, SCAN = 0xC3, 0xF7, 0xC4, 0xDA
JPEG_FRAMES = (LOSSLESS_FRAME, JPEG_LS_FRAME)
#: What may precede the scan: frame, tables, restart interval, JPEG-LS parameters, application data, comment.
JPEG_SEGMENTS = (*JPEG_FRAMES, HUFFMAN_TABLE, 0xDD, 0xF8, *range(0xE0, 0xF0), 0xFE, SCAN)
JPEG2000_FRAME = 0x51
#: EOI of JPEG and JPEG-LS, EOC of JPEG 2000.
END = b"\xff\xd9"
JPEG2000_START = b"\xff\x4f\xff\x51"


class CodestreamError(Exception):
    """The compressed data contradicts itself or ends too early; `str()` says how, without any of the data."""


@dataclass(frozen=True)
class Codestream:
    """A compressed frame's own claim: kind of frame, rows, columns, components, and bits per sample.

    `marker` is LOSSLESS_FRAME, JPEG_LS_FRAME or, for JPEG 2000 and HTJ2K, JPEG2000_FRAME.
    """

    marker: int
    rows: int
    columns: int
    components: int
    precision: int


def single_frame(value: bytes) -> bytes:
    """The joined fragments of encapsulated pixel data that holds one frame (PS3.5 A.4).

    Args:
        value: from the Basic Offset Table item on; bytes after the sequence delimiter are ignored.

    Raises:
        CodestreamError: a fragment or the delimiter is missing.
    """
    fragments: list[bytes] = []
    position = 0
    while value[position : position + 8] != SEQUENCE_END:
        if value[position : position + 4] != ITEM or len(value) < position + 8:
            raise CodestreamError("it ends before its last fragment")
        (length,) = struct.unpack_from("<I", value, position + 4)
        fragments.append(value[position + 8 : position + 8 + length])
        if len(fragments[-1]) != length:
            raise CodestreamError("it ends within a fragment")
        position += 8 + length
    frame = b"".join(fragments[1:])  # the first item is the Basic Offset Table
    if not frame:
        raise CodestreamError("it holds no frame")
    return frame


def codestream_of(frame: bytes) -> Codestream:
    """The claim of a JPEG, JPEG-LS, JPEG 2000 or HTJ2K frame.

    Raises:
        CodestreamError: the header is damaged, or the end marker is missing.
    """
    if END not in frame.rstrip(b"\0")[-3:]:  # one byte of any value may pad it to an even length
        raise CodestreamError("its compressed data has no end")
    try:
        if frame.startswith(b"\xff\xd8"):
            return _jpeg(frame)
        start = frame.find(JPEG2000_START, 0, 4096)  # after a JP2 box header, if somebody wrote one
        if start >= 0:
            return _jpeg2000(frame, start)
    except (struct.error, IndexError):
        pass
    raise CodestreamError("its compressed header is damaged")


def _jpeg(frame: bytes) -> Codestream:
    """Walks every marker segment up to the scan: gdcm aborts the process where one of them is broken."""
    found: dict[int, int] = {}
    position = 2
    while SCAN not in found:
        marker, length = frame[position + 1], struct.unpack_from(">H", frame, position + 2)[0]
        if frame[position] != 0xFF or marker not in JPEG_SEGMENTS or length < 2:
            raise CodestreamError("its compressed header is damaged")
        found[marker] = position
        position += 2 + length
    frames = [marker for marker in found if marker in JPEG_FRAMES]
    if len(frames) != 1 or (frames == [LOSSLESS_FRAME] and HUFFMAN_TABLE not in found):
        raise CodestreamError("its compressed header is damaged")
    precision, rows, columns, components = struct.unpack_from(">BHHB", frame, found[frames[0]] + 4)
    return Codestream(frames[0], rows, columns, components, precision)


def _jpeg2000(frame: bytes, start: int) -> Codestream:
    """The SIZ marker segment (T.800 A.5.1)."""
    right, bottom, left, top = struct.unpack_from(">IIII", frame, start + 8)
    components, precision = struct.unpack_from(">HB", frame, start + 40)
    return Codestream(JPEG2000_FRAME, bottom - top, right - left, components, (precision & 0x7F) + 1)
