"""One decoder per compressed transfer syntax: a frame's bytes -> its cells, unsigned, nothing interpreted.

`decode` asks a child process (`decode_pool`), because a broken frame can abort, hang or blow up a decoder; the child
calls `decode_here`. What is not in `DECODERS` is refused by its UID: 12-bit JPEG Extended (.51) and the retired JPEG
processes (.53, .55) have no decoder here that can be trusted. The packages are imported at first use.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.codestream import JPEG2000_FRAME, JPEG_LS_FRAME, LOSSLESS_FRAME
from fourphase.runtime.decode_worker import FrameFormat
from fourphase.runtime.errors import EnvironmentFault

if TYPE_CHECKING:
    from fourphase.runtime.headers import SliceHeader

__all__ = [
    "DECODERS",
    "RLE",
    "Decoder",
    "DecoderFailed",
    "DecoderLost",
    "FrameFormat",
    "decode",
    "decode_here",
    "fits_stored_bits",
]

Unsigned: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]

RLE = "1.2.840.10008.1.2.5"


class Decoder(NamedTuple):
    """The package to install, the frame marker its codestreams must have (None: RLE has none), and what to call."""

    package: str
    marker: int | None
    run: Callable[[bytes, FrameFormat], Unsigned]


class DecoderFailed(Exception):
    """The decoder gave up; what it said is not repeated, because it may quote the data."""


class DecoderLost(Exception):
    """The decoder took its process with it; `str()` is a sentence without its subject that says how."""


def decode(frame: bytes, header: SliceHeader, precision: int) -> Unsigned:
    """Decodes one frame whose claims were checked before, in a child process: uint8 or uint16 (rows, columns).

    Args:
        precision: bits per sample as the codestream says; for RLE, BitsAllocated.

    Raises:
        DecoderFailed: the decoder raised, panicked, found the data damaged, or returned another number of pixels or
            values that BitsStored cannot hold.
        DecoderLost: it crashed, hung, ran out of memory or answered nonsense.
        EnvironmentFault: the decoder's package is not installed (decoder_missing), or no process can be started for
            it (decoder_process).
    """
    from fourphase.runtime.decode_pool import shared_pool

    pixels = header.pixels
    bits = pixels.bits_allocated, pixels.bits_stored, precision
    form = FrameFormat(pixels.transfer_syntax, pixels.photometric, header.rows, header.columns, *bits)
    cells = shared_pool().decode(frame, form)
    if form.transfer_syntax != RLE and not fits_stored_bits(cells, form, signed=pixels.signed):
        raise DecoderFailed
    return cells


def fits_stored_bits(cells: Unsigned, form: FrameFormat, *, signed: bool) -> bool:
    """False if a JPEG frame whose samples are wider than BitsStored holds a value that BitsStored cannot.

    Unused high bits are zero or, of signed values, repeat the sign (PS3.5 8.1.1); a wrong difference in JPEG Lossless
    soon leaves them. Overlays in unused bits, retired in 2004, are refused with it. RLE packs bytes and may hold them.
    """
    if form.precision <= form.bits_stored:
        return True
    high = cells >> form.bits_stored
    if not signed:
        return not high.any()
    ones = (1 << (8 * cells.itemsize - form.bits_stored)) - 1
    shorter = (1 << (form.precision - form.bits_stored)) - 1  # extended to the precision only
    return bool(np.isin(high, (0, ones, shorter)).all())


def decode_here(frame: bytes, form: FrameFormat) -> Unsigned:
    """Decodes one frame in this process, which the frame may kill: uint8 or uint16 (rows, columns).

    Raises:
        DecoderFailed: the decoder raised, panicked or returned another number of pixels.
        EnvironmentFault: the decoder's package is not installed.
        MemoryError: it asked for more than the process may have.
    """
    decoder = DECODERS[form.transfer_syntax]
    try:
        cells = decoder.run(frame, form)
        return cells.reshape(form.rows, form.columns)
    except ImportError:
        raise missing_package(form.transfer_syntax) from None
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:  # a Rust panic (pyo3's PanicException) is no Exception
        raise DecoderFailed from None


def missing_package(transfer_syntax: str) -> EnvironmentFault:
    """The error for a decoder that is not installed."""
    package = DECODERS[transfer_syntax].package
    return EnvironmentFault(
        f"the study is compressed and the decoder {package} is not installed",
        f"pip install {package}",
        key="decoder_missing",
    )


def _jpeg_ls(frame: bytes, form: FrameFormat) -> Unsigned:
    import jpeg_ls  # type: ignore[import-untyped]

    buffer, _ = jpeg_ls.decode_pixel_data(frame)
    return _cells(buffer, form.precision)


def _jpeg_2000(frame: bytes, form: FrameFormat) -> Unsigned:
    from openjpeg.utils import decode_pixel_data

    return _cells(bytes(decode_pixel_data(frame, version=2)), form.precision)


def _jpeg_lossless(frame: bytes, form: FrameFormat) -> Unsigned:
    import gdcm  # type: ignore[import-untyped]

    gdcm.Trace.WarningOff()
    # Told of fewer stored bits, gdcm would cut away what shows that they do not hold the value.
    whole = form._replace(bits_stored=min(max(form.precision, form.bits_stored), form.bits_allocated))
    return _through_pydicom(frame, whole, "gdcm")


def _rle(frame: bytes, form: FrameFormat) -> Unsigned:
    """A segment that holds more bytes than the image was damaged (PS3.5 G.3); pydicom only warns and cuts it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*RLE segment")
        return _through_pydicom(frame, form, "pydicom")


def _cells(buffer: bytes | bytearray, precision: int) -> Unsigned:
    """Decoders return the smallest cells that hold the precision, in the machine's byte order."""
    if precision <= 8:
        return np.frombuffer(buffer, dtype=np.uint8)
    return np.frombuffer(buffer, dtype=np.uint16)


def _through_pydicom(frame: bytes, form: FrameFormat, plugin: str) -> Unsigned:
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    options: dict[str, Any] = {
        "rows": form.rows,
        "columns": form.columns,
        "samples_per_pixel": 1,
        "photometric_interpretation": form.photometric,
        "bits_allocated": form.bits_allocated,
        "bits_stored": form.bits_stored,
        "pixel_representation": 0,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
    value = encapsulate([frame], has_bot=False)
    decoder = get_decoder(form.transfer_syntax)
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
