"""One decoder per compressed transfer syntax: a frame's bytes -> its cells, unsigned, nothing interpreted.

What is not in `DECODERS` is refused by its UID: 12-bit JPEG Extended (.51) and the retired JPEG processes (.53, .55)
have no decoder here that can be trusted. The packages are imported at first use; none of them releases the GIL, so
slices are decoded one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.codestream import JPEG2000_FRAME, JPEG_LS_FRAME, LOSSLESS_FRAME
from fourphase.runtime.errors import EnvironmentFault

if TYPE_CHECKING:
    from fourphase.runtime.headers import SliceHeader

__all__ = ["DECODERS", "RLE", "Decoder", "DecoderFailed", "decode"]

Unsigned: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]

RLE = "1.2.840.10008.1.2.5"


class Decoder(NamedTuple):
    """The package to install, the frame marker its codestreams must have (None: RLE has none), and what to call."""

    package: str
    marker: int | None
    run: Callable[[bytes, SliceHeader, int], Unsigned]


class DecoderFailed(Exception):
    """The decoder gave up; what it said is not repeated, because it may quote the data."""


def decode(frame: bytes, header: SliceHeader, precision: int) -> Unsigned:
    """Decodes one frame whose claims were checked before: uint8 or uint16 (rows, columns).

    Args:
        precision: bits per sample as the codestream says; for RLE, BitsAllocated.

    Raises:
        DecoderFailed: the decoder raised, panicked or returned another number of pixels.
        EnvironmentFault: the decoder's package is not installed.
    """
    decoder = DECODERS[header.pixels.transfer_syntax]
    try:
        cells = decoder.run(frame, header, precision)
        return cells.reshape(header.rows, header.columns)
    except ImportError:
        raise EnvironmentFault(
            f"the study is compressed and the decoder {decoder.package} is not installed",
            f"pip install {decoder.package}",
            key="decoder_missing",
        ) from None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a Rust panic (pyo3's PanicException) is no Exception
        raise DecoderFailed from None


def _jpeg_ls(frame: bytes, header: SliceHeader, precision: int) -> Unsigned:
    import jpeg_ls  # type: ignore[import-untyped]

    buffer, _ = jpeg_ls.decode_pixel_data(frame)
    return _cells(buffer, precision)


def _jpeg_2000(frame: bytes, header: SliceHeader, precision: int) -> Unsigned:
    from openjpeg.utils import decode_pixel_data

    return _cells(bytes(decode_pixel_data(frame, version=2)), precision)


def _jpeg_lossless(frame: bytes, header: SliceHeader, precision: int) -> Unsigned:
    import gdcm  # type: ignore[import-untyped]

    gdcm.Trace.WarningOff()
    return _through_pydicom(frame, header, "gdcm")


def _rle(frame: bytes, header: SliceHeader, precision: int) -> Unsigned:
    return _through_pydicom(frame, header, "pydicom")


def _cells(buffer: bytes | bytearray, precision: int) -> Unsigned:
    """Decoders return the smallest cells that hold the precision, in the machine's byte order."""
    if precision <= 8:
        return np.frombuffer(buffer, dtype=np.uint8)
    return np.frombuffer(buffer, dtype=np.uint16)


def _through_pydicom(frame: bytes, header: SliceHeader, plugin: str) -> Unsigned:
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    pixels = header.pixels
    options: dict[str, Any] = {
        "rows": header.rows,
        "columns": header.columns,
        "samples_per_pixel": 1,
        "photometric_interpretation": pixels.photometric,
        "bits_allocated": pixels.bits_allocated,
        "bits_stored": pixels.bits_stored,
        "pixel_representation": 0,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
    value = encapsulate([frame], has_bot=False)
    decoder = get_decoder(pixels.transfer_syntax)
    cells, _ = decoder.as_array(value, index=0, raw=True, decoding_plugin=plugin, **options)
    return _cells(cells.tobytes(), 8 * cells.itemsize)


_LOSSLESS = Decoder("python-gdcm", LOSSLESS_FRAME, _jpeg_lossless)
_LS = Decoder("pyjpegls", JPEG_LS_FRAME, _jpeg_ls)
_2000 = Decoder("pylibjpeg-openjpeg", JPEG2000_FRAME, _jpeg_2000)

DECODERS = {
    RLE: Decoder("pydicom", None, _rle),
    "1.2.840.10008.1.2.4.57": _LOSSLESS,  # JPEG Lossless, process 14
    "1.2.840.10008.1.2.4.70": _LOSSLESS,  # JPEG Lossless SV1, the usual CT archive
    "1.2.840.10008.1.2.4.80": _LS,  # JPEG-LS Lossless
    "1.2.840.10008.1.2.4.81": _LS,  # JPEG-LS Near-lossless
    "1.2.840.10008.1.2.4.90": _2000,  # JPEG 2000 Lossless
    "1.2.840.10008.1.2.4.91": _2000,  # JPEG 2000
    "1.2.840.10008.1.2.4.201": _2000,  # HTJ2K Lossless
    "1.2.840.10008.1.2.4.202": _2000,  # HTJ2K Lossless RPCL
    "1.2.840.10008.1.2.4.203": _2000,  # HTJ2K
}
