"""The stored values of a DICOM segmentation, frame by frame: bits, bytes or words; uncompressed, deflated or RLE.

Which frames, and what their values mean, is `seg_box`'s question. Nothing is read but the frames asked for.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.dicom_drawing import BoxObject, Damaged, over_limits
from fourphase.runtime.dicom_file import DEFLATED, dataset_bytes, open_regular

__all__ = ["NATIVE", "RLE", "Frame", "Layout", "planes"]

Float = NDArray[np.float64]
Values: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]

NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", DEFLATED)
RLE = "1.2.840.10008.1.2.5"
#: Bytes of RLE, which is decoded in Python.
LARGEST_RLE = 2**25


class Layout(NamedTuple):
    """How the pixels are kept. `threshold`: a FRACTIONAL value from here on belongs to the segment."""

    kind: str
    bits: int
    frames: int
    rows: int
    columns: int
    threshold: float


class Frame(NamedTuple):
    """One frame: its place and the segment it shows; None in a label map, whose values are the segments."""

    number: int
    position: Float
    row: Float
    column: Float
    spacing: tuple[float, float]
    thickness: float | None
    segment: int | None


def planes(found: BoxObject, layout: Layout, frames: Sequence[Frame]) -> Iterator[Values]:
    """The frames' stored values, (rows, columns)."""
    if found.raw.pixel_offset is None:
        raise Damaged
    with open_regular(found.path) as file:
        if found.raw.transfer_syntax == DEFLATED:
            source: IO[bytes] = io.BytesIO(dataset_bytes(found.path, deflated=True))
        else:
            source = file
        head = _read(source, found.raw.pixel_offset, 12)
        where = 8 if head[4:6] in (b"OW", b"OB") else 4
        start, length = found.raw.pixel_offset + where + 4, int.from_bytes(head[where : where + 4], "little")
        if found.raw.transfer_syntax == RLE:
            yield from _rle_planes(source, start, layout, frames)
        else:
            yield from _native_planes(source, start, length, layout, frames)


def _read(source: IO[bytes], offset: int, count: int) -> bytes:
    source.seek(offset)
    data = source.read(count)
    if len(data) != count:
        raise Damaged
    return data


def _native_planes(
    source: IO[bytes], start: int, length: int, layout: Layout, frames: Sequence[Frame]
) -> Iterator[Values]:
    """Frames of single bits follow each other without a gap, the first in the lowest bit (PS3.5 8.1.1)."""
    size = layout.rows * layout.columns * layout.bits
    expected = -(-layout.frames * size // 8)
    if length not in (expected, expected + expected % 2) or source.seek(0, io.SEEK_END) < start + expected:
        raise Damaged
    for frame in frames:
        first, skipped = divmod(frame.number * size, 8)
        data = _read(source, start + first, -(-(skipped + size) // 8))
        if layout.bits == 1:
            cells = np.unpackbits(np.frombuffer(data, np.uint8), count=skipped + size, bitorder="little")[skipped:]
            yield cells.reshape(layout.rows, layout.columns)
        else:
            yield np.frombuffer(data, "<u2" if layout.bits == 16 else "u1").reshape(layout.rows, layout.columns)


def _rle_planes(source: IO[bytes], start: int, layout: Layout, frames: Sequence[Frame]) -> Iterator[Values]:
    places = _fragments(source, start, layout.frames)
    if sum(places[frame.number][1] for frame in frames) > LARGEST_RLE:
        raise over_limits()
    for frame in frames:
        yield _rle_plane(_read(source, *places[frame.number]), layout)


def _fragments(source: IO[bytes], position: int, frames: int) -> list[tuple[int, int]]:
    """(offset, length) of every frame: RLE has one fragment each, behind the Basic Offset Table (PS3.5 A.4)."""
    places: list[tuple[int, int]] = []
    while len(places) <= frames:
        head = _read(source, position, 8)
        if head[:4] != b"\xfe\xff\x00\xe0":
            raise Damaged
        places.append((position + 8, int.from_bytes(head[4:], "little")))
        position += 8 + places[-1][1]
    if _read(source, position, 8) != b"\xfe\xff\xdd\xe0\0\0\0\0":
        raise Damaged
    return places[1:]


def _rle_plane(data: bytes, layout: Layout) -> Values:
    """One segment per byte of a value, the highest first (PS3.5 G.2, G.5)."""
    try:
        count, *offsets = struct.unpack_from("<16I", data)
        if count != layout.bits // 8:
            raise Damaged
        size = layout.rows * layout.columns
        planes = [_unpacked(data[offset:], size) for offset in offsets[:count]]
    except (struct.error, IndexError):
        raise Damaged from None
    cells = np.frombuffer(planes[0], np.uint8)
    if count == 1:
        return cells.reshape(layout.rows, layout.columns)
    wide: NDArray[np.uint16] = cells.astype(np.uint16) * 256 + np.frombuffer(planes[1], np.uint8)
    return wide.reshape(layout.rows, layout.columns)


def _unpacked(data: bytes, size: int) -> bytes:
    """Byte runs (PS3.5 G.3), never more than the frame needs."""
    values, position = bytearray(), 0
    while len(values) < size:
        count = data[position]
        if count < 128:
            values += data[position + 1 : position + 2 + count]
            position += 2 + count
        elif count > 128:
            values += data[position + 1 : position + 2] * (257 - count)
            position += 2
        else:
            position += 1
    if len(values) != size:
        raise Damaged
    return bytes(values)
