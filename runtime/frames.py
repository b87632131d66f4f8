"""The stored bytes of one frame of a multi-frame file: where they are, and only they are read.

Offset tables are hints: the fragments are walked and a table that contradicts them is damage. Nothing is decoded here.
"""

from __future__ import annotations

import os
import struct
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from fourphase.runtime.codestream import ITEM, SEQUENCE_END, CodestreamError
from fourphase.runtime.dicom_file import NATIVE, dataset_bytes, open_regular

if TYPE_CHECKING:
    from fourphase.runtime.slice_header import SliceHeader

__all__ = ["compressed_limit", "deflated_dataset", "encapsulated_frame", "native_header_size", "stored_frame"]

#: Fragments of one file, per frame on average, beyond which it is a trick.
FRAGMENTS_PER_FRAME = 64

#: Byte offset and length in the file.
Span: TypeAlias = tuple[int, int]
#: What tells whether a file is still the same: device, inode, size, time of its last change.
State: TypeAlias = tuple[int, int, int, int]


def encapsulated_frame(header: SliceHeader, limit: int) -> bytes:
    """The joined fragments of the header's frame (PS3.5 A.4).

    Several fragments make a frame only where a Basic or Extended Offset Table says which; without a table there is one
    fragment per frame. May be called from several threads.

    Raises:
        OSError: the file cannot be read.
        CodestreamError: damaged, cut short, more than `limit` bytes, or not as many frames as the header says.
    """
    with open_regular(header.path) as file:
        descriptor = file.fileno()
        place = (header.pixel_offset, header.frames, header.offset_table)
        spans = _frame_spans(header.path, _state(descriptor), *place)[header.frame]
        if sum(length for _, length in spans) > limit:
            raise CodestreamError("one of its frames is larger than its pixels")
        parts = [os.pread(descriptor, length, start) for start, length in spans]
    frame = b"".join(parts)
    if len(frame) != sum(length for _, length in spans):
        raise CodestreamError("it ends within a fragment")
    return frame


def deflated_dataset(path: Path) -> bytes:
    """An inflated data set of several frames, within the limit of `dataset_bytes`; the last one is kept.

    Raises: as `dataset_bytes`.
    """
    with open_regular(path) as file:
        return _inflated(path, _state(file.fileno()))


def stored_frame(header: SliceHeader) -> bytes:
    """The frame as it is stored, compressed or not, padding left out: equal for equal frames of one encoding.

    Raises:
        OSError, SkippedFile, CodestreamError: it cannot be had.
    """
    size = header.rows * header.columns * header.pixels.bits_allocated // 8
    if header.pixels.transfer_syntax not in NATIVE:
        return encapsulated_frame(header, compressed_limit(size))
    skip = header.pixel_offset + header.frame * size
    if header.is_deflated:
        data = deflated_dataset(header.path)
        start = skip + native_header_size(data[header.pixel_offset :][:12])
        return data[start : start + size]
    with open_regular(header.path) as file:
        start = skip + native_header_size(os.pread(file.fileno(), 12, header.pixel_offset))
        return os.pread(file.fileno(), size, start)


def native_header_size(start: bytes) -> int:
    """Bytes of a native PixelData element before its value, from its first bytes; no native length looks like a VR."""
    return 12 if start[4:6] in (b"OW", b"OB") else 8


def compressed_limit(native_bytes: int) -> int:
    """The most bytes that so many bytes of pixels are compressed to; more is a trick."""
    return 2 * native_bytes + 65536


def _state(descriptor: int) -> State:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=1)
def _inflated(path: Path, state: State) -> bytes:
    return dataset_bytes(path, deflated=True)


@lru_cache(maxsize=16)
def _frame_spans(
    path: Path, state: State, pixel_offset: int, frames: int, extended: bytes
) -> tuple[tuple[Span, ...], ...]:
    """The spans of every frame's fragments."""
    with open_regular(path) as file:
        descriptor = file.fileno()
        first, *fragments = _fragments(descriptor, pixel_offset, FRAGMENTS_PER_FRAME * frames + 1)
        basic = os.pread(descriptor, min(first[1], 4 * frames + 4), first[0])
    offsets = _offsets(extended, "Q", frames) if extended else _offsets(basic, "I", frames) if basic else None
    if offsets is None:
        if len(fragments) != frames:
            raise CodestreamError("it holds another number of frames than its header says")
        return tuple((fragment,) for fragment in fragments)
    if not fragments:
        raise CodestreamError("it holds no frame")
    origin = fragments[0][0]
    places = {start - origin: index for index, (start, _) in enumerate(fragments)}
    starts = [places.get(offset, -1) for offset in offsets]
    if starts[0] != 0 or min(starts) < 0 or any(a >= b for a, b in pairwise(starts)):
        raise CodestreamError("its offset table contradicts its fragments")
    return tuple(tuple(fragments[a:b]) for a, b in zip(starts, [*starts[1:], len(fragments)], strict=True))


def _offsets(table: bytes, code: str, frames: int) -> tuple[int, ...]:
    if len(table) != frames * struct.calcsize(f"<{code}"):
        raise CodestreamError("its offset table has another number of frames than its header says")
    return struct.unpack(f"<{frames}{code}", table)


def _fragments(descriptor: int, pixel_offset: int, most: int) -> list[Span]:
    """Every item of the PixelData element: the Basic Offset Table, then the fragments."""
    start = os.pread(descriptor, 12, pixel_offset)
    if start[4:6] not in (b"OB", b"OW") or start[8:12] != b"\xff\xff\xff\xff":
        raise CodestreamError("it is not encapsulated")
    size, position = os.fstat(descriptor).st_size, pixel_offset + 12
    items: list[Span] = []
    while (mark := os.pread(descriptor, 8, position)) != SEQUENCE_END:
        if mark[:4] != ITEM or len(mark) != 8:
            raise CodestreamError("it ends before its last fragment")
        (length,) = struct.unpack_from("<I", mark, 4)
        if position + 8 + length > size:
            raise CodestreamError("it ends within a fragment")
        items.append((position + 8, length))
        if len(items) > most:
            raise CodestreamError("it holds more fragments than its frames explain")
        position += 8 + length
    if not items:
        raise CodestreamError("it holds no frame")
    return items
