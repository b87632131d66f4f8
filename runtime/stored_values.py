"""The stored values of one slice, as integers: read from the file or decompressed, before any scaling.

Uncompressed: only the needed rows are read. Compressed: the codestream's own claims are checked before it is decoded.
Of a multi-frame file only the slice's own frame is touched.
"""

from __future__ import annotations

import os
import struct

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.codestream import Codestream, CodestreamError, codestream_of, single_frame
from fourphase.runtime.decoders import DECODERS, RLE, DecoderFailed, Unsigned, decode
from fourphase.runtime.dicom_file import NATIVE, SkippedFile, dataset_bytes, open_regular
from fourphase.runtime.frames import compressed_limit, deflated_dataset, encapsulated_frame, native_header_size
from fourphase.runtime.preprocess import VoxelWindow
from fourphase.runtime.slice_header import PixelFormat, SliceHeader

__all__ = ["NATIVE", "PixelFault", "stored_values"]


class PixelFault(Exception):
    """What is wrong with one slice, as (key, sentence without its subject)."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(what)
        self.key = key


def stored_values(header: SliceHeader, window: VoxelWindow) -> NDArray[np.int32]:
    """The window's stored values, signed as the header says, int32 (rows, columns)."""
    pixels = header.pixels
    try:
        if pixels.transfer_syntax in NATIVE:
            values, bits = _native_rows(header, window.rows), pixels.bits_stored
        else:
            frame, bits = _decoded(header)
            values = frame[window.rows]
    except OSError:
        raise PixelFault("file_unreadable", "cannot be read any more") from None
    except SkippedFile as skip:
        raise PixelFault("pixel_data_damaged", f"has damaged pixel data ({skip.reason})") from None
    except DecoderFailed:
        raise PixelFault("pixel_data_undecodable", "cannot be decompressed") from None
    except CodestreamError as fault:
        raise PixelFault("pixel_data_damaged", f"has damaged pixel data: {fault}") from None
    return _as_signed(values[:, window.columns], bits, pixels)


def _as_signed(values: Unsigned, bits: int, pixels: PixelFormat) -> NDArray[np.int32]:
    """Cuts the stored bits out of their cells (unused ones may hold overlays) and extends the sign (PS3.5 8.1.1)."""
    cells = values.astype(np.int32)
    if pixels.transfer_syntax in (*NATIVE, RLE):
        cells >>= pixels.high_bit + 1 - pixels.bits_stored
    cells &= (1 << bits) - 1
    if pixels.signed:
        sign = 1 << (bits - 1)
        cells ^= sign
        cells -= sign
    return cells


def _native_rows(header: SliceHeader, rows: slice) -> Unsigned:
    """The cells of some rows of uncompressed pixel data; the whole of it must be there."""
    pixels = header.pixels
    cell = np.dtype(np.uint8 if pixels.bits_allocated == 8 else np.uint16)
    if not pixels.little_endian:
        if cell.itemsize == 1:
            raise PixelFault("pixel_format", "holds 8-bit pixels in big endian words, which is not supported")
        cell = cell.newbyteorder(">")
    row_bytes = header.columns * cell.itemsize
    frame_bytes = header.rows * row_bytes
    expected = header.frames * frame_bytes
    first, count = header.frame * frame_bytes + rows.start * row_bytes, (rows.stop - rows.start) * row_bytes
    if header.is_deflated:
        several = header.frames > 1
        data = deflated_dataset(header.path) if several else dataset_bytes(header.path, deflated=True)
        offset = header.pixel_offset
        start = offset + _check_native(data[offset : offset + 12], len(data) - offset, pixels, expected)
        band = data[start + first : start + first + count]
    else:
        with open_regular(header.path) as file:
            descriptor, offset = file.fileno(), header.pixel_offset
            available = os.fstat(descriptor).st_size - offset
            start = _check_native(os.pread(descriptor, 12, offset), available, pixels, expected)
            band = os.pread(descriptor, count, offset + start + first)
    if len(band) != count:
        raise PixelFault("pixel_data_truncated", "has truncated pixel data")
    values: Unsigned = np.frombuffer(band, dtype=cell).reshape(-1, header.columns)
    return values


def _check_native(start: bytes, available: int, pixels: PixelFormat, expected: int) -> int:
    """The size of the element's own header, once its length agrees with the image and with the file.

    Args:
        start: the first 12 bytes of the PixelData element.
        available: bytes of the file from there on.
        expected: bytes that all its frames need; padded to an even number in the file.
    """
    order = "<" if pixels.little_endian else ">"
    size = native_header_size(start)
    if len(start) < 12:
        raise PixelFault("pixel_data_truncated", "has truncated pixel data")
    (length,) = struct.unpack_from(f"{order}I", start, size - 4)
    if available < size + expected:
        raise PixelFault("pixel_data_truncated", "has truncated pixel data")
    if length not in (expected, expected + expected % 2):
        raise PixelFault("pixel_data_length", "has pixel data of another size than its rows and columns say")
    return size


def _decoded(header: SliceHeader) -> tuple[Unsigned, int]:
    """The whole decoded slice and its significant bits."""
    pixels = header.pixels
    native_bytes = header.rows * header.columns * pixels.bits_allocated // 8
    limit = compressed_limit(native_bytes)
    frame = encapsulated_frame(header, limit) if header.frames > 1 else _only_frame(header, limit)
    marker = DECODERS[pixels.transfer_syntax].marker
    if marker is None:
        return decode(frame, header, pixels.bits_allocated), pixels.bits_stored
    claim = codestream_of(frame)
    if claim != Codestream(marker, header.rows, header.columns, 1, claim.precision) or claim.precision > 16:
        raise CodestreamError("its compressed header contradicts the DICOM header")
    return decode(frame, header, claim.precision), min(pixels.bits_stored, claim.precision)


def _only_frame(header: SliceHeader, limit: int) -> bytes:
    element = dataset_bytes(header.path, deflated=False, offset=header.pixel_offset, limit=limit)
    if element[4:6] not in (b"OB", b"OW") or element[8:12] != b"\xff\xff\xff\xff":
        raise CodestreamError("it is not encapsulated")
    return single_frame(element[12:])
