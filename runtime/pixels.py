"""The needed voxels of a series, in HU: decoded slice by slice, cropped, scaled, checked, clipped.

Only the slices and rows of the window are read (of compressed slices, the whole slice, several at once in processes of
their own). Whatever is wrong with pixel data ends in PixelDataError: a guess about a patient's voxels would be worse
than no result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.decode_pool import close_shared_pool, shared_pool
from fourphase.runtime.decoders import DECODERS, DecoderLost
from fourphase.runtime.dicom_file import quiet_pydicom
from fourphase.runtime.errors import PixelDataError
from fourphase.runtime.headers import SliceHeader
from fourphase.runtime.pixel_checks import first_implausible
from fourphase.runtime.preprocess import VoxelWindow
from fourphase.runtime.series import Series, scalings
from fourphase.runtime.stored_values import NATIVE, PixelFault, stored_values

__all__ = ["read_hu"]

#: HU outside this range do not occur, but for a few voxels of metal or noise ...
PLAUSIBLE_HU = (-1100.0, 4000.0)
#: ... so a slice with a larger share of them was decoded or scaled wrongly.
IMPLAUSIBLE_SHARE = 0.005
HU_RANGE = (-1024, 3071)

LARGEST_SIDE = 4096
#: With a smaller slope, 16 bits do not reach from fat to muscle.
SMALLEST_SLOPE, LARGEST_SLOPE, LARGEST_INTERCEPT = 1e-3, 1e3, 1e5
#: Denser than nearly all bone: of a window in a body, most voxels never are.
DENSE_HU, DENSE_SHARE = 1000, 0.5
#: One series' window at once, as int16: 2 GiB.
LARGEST_WINDOW = 2**30

Hounsfield: TypeAlias = NDArray[np.int16] | NDArray[np.float32]


def read_hu(series: Series, window: VoxelWindow) -> Hounsfield:
    """HU of the window's voxels, (slices, rows, columns), clipped to [-1024, 3071]; padding is -1024.

    int16 when slope and intercept of every slice are whole numbers, else float32.

    Raises:
        PixelDataError: truncated, undecodable, implausible or over limits; of several faulty slices the first.
        EnvironmentFault: a decoder's package is missing, or its process cannot be started.
    """
    headers = series.slices[window.slices]
    if math.prod(window.shape) > LARGEST_WINDOW:
        raise _error(series.name, PixelFault("pixel_limits", "asks for more voxels than fit in memory"))
    whole = all(header.slope.is_integer() and header.intercept.is_integer() for header in headers)
    hu: Hounsfield = np.empty(window.shape, np.int16) if whole else np.empty(window.shape, np.float32)

    def read(index: int) -> None:
        try:
            hu[index] = _slice_hu(headers[index], window)
        except PixelFault as fault:
            raise _error(_place(series, window, index), fault) from None

    compressed = any(header.pixels.transfer_syntax not in NATIVE for header in headers)
    with quiet_pydicom():
        if compressed:
            _read_at_once(read, len(headers))
        else:
            for index in range(len(headers)):
                read(index)
    # Other scaling moves all of a slice, as a codec may; bytes that are damaged stay where they are.
    if compressed or len(scalings(headers)) > 1:
        _check_continuity(series, window, hu)
    if np.count_nonzero(hu > DENSE_HU) > DENSE_SHARE * hu.size:
        raise _error(series.name, PixelFault("hu_implausible", "is denser than bone around the lesion"))
    return hu


def _read_at_once(read: Callable[[int], None], count: int) -> None:
    """As many slices at once as there are decoders; what the first faulty slice raises is raised."""
    with _threads(min(shared_pool().children, count)) as threads:
        for _ in threads.map(read, range(count)):
            pass


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are never waited for longer than a frame may take, and not at all when the process is to end."""
    threads = ThreadPoolExecutor(max(count, 1), thread_name_prefix="read-hu")
    try:
        yield threads
    except (KeyboardInterrupt, SystemExit):
        close_shared_pool()  # a decoder that hangs would hold up the end of the process
        raise
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _slice_hu(header: SliceHeader, window: VoxelWindow) -> NDArray[np.int32] | NDArray[np.float64]:
    """Raises: PixelFault, whatever is wrong with the slice."""
    _check_format(header)
    try:
        stored = stored_values(header, window)
    except DecoderLost as lost:
        raise PixelFault("pixel_data_undecodable", str(lost)) from None
    return _hounsfield(stored, header)


def _check_continuity(series: Series, window: VoxelWindow, hu: Hounsfield) -> None:
    """Raises: PixelDataError for a slice whose pixels a codec made up, or that is scaled wrongly."""
    index = first_implausible(hu)
    if index is not None:
        fault = PixelFault("slice_implausible", "has pixels that do not continue its neighbours'")
        raise _error(_place(series, window, index), fault)


def _place(series: Series, window: VoxelWindow, index: int) -> str:
    return f"{series.name}, slice {window.slices.start + index + 1} of {len(series.slices)},"


def _error(place: str, fault: PixelFault) -> PixelDataError:
    hints = {
        "transfer_syntax_unsupported": "have the archive send it uncompressed, or as JPEG-LS or JPEG 2000",
        "pixel_limits": "check that this is an ordinary CT series",
        "hu_implausible": "copy the series again from the archive; these values cannot be HU",
    }
    hint = hints.get(fault.key, "copy the series again from the archive; this slice is damaged")
    return PixelDataError(f"{place} {fault}", hint, key=fault.key)


def _check_format(header: SliceHeader) -> None:
    """Everything the header must say before pixels are touched."""
    pixels = header.pixels
    syntax = pixels.transfer_syntax
    if syntax not in NATIVE and syntax not in DECODERS:
        shown = syntax if syntax.replace(".", "").isdigit() else "unreadable"
        raise PixelFault("transfer_syntax_unsupported", f"has a transfer syntax that is not supported: {shown}")
    if max(header.rows, header.columns) > LARGEST_SIDE:
        raise PixelFault("pixel_limits", f"is larger than {LARGEST_SIDE} rows or columns")
    if pixels.bits_allocated not in (8, 16) or not 1 <= pixels.bits_stored <= pixels.bits_allocated:
        raise PixelFault("pixel_format", "has an impossible number of bits per pixel")
    if not pixels.bits_stored - 1 <= pixels.high_bit < pixels.bits_allocated:
        raise PixelFault("pixel_format", "has an impossible high bit")
    if not (np.isfinite([header.slope, header.intercept]).all() and header.slope != 0):
        raise PixelFault("rescale_invalid", "has no finite rescale slope and intercept, or a slope of zero")
    if not SMALLEST_SLOPE <= abs(header.slope) <= LARGEST_SLOPE or abs(header.intercept) > LARGEST_INTERCEPT:
        raise PixelFault("rescale_invalid", "has an impossible rescale slope or intercept")


def _hounsfield(stored: NDArray[np.int32], header: SliceHeader) -> NDArray[np.int32] | NDArray[np.float64]:
    """Stored values -> HU, clipped; padding -> -1024.

    Raises:
        PixelFault: more voxels are implausible than metal explains.
    """
    slope, intercept = header.slope, header.intercept
    hu: NDArray[np.int32] | NDArray[np.float64]
    if slope.is_integer() and intercept.is_integer():
        hu = stored * np.int32(slope) + np.int32(intercept)
    else:
        hu = stored.astype(np.float64) * slope + intercept
    if header.pixels.padding is not None:
        low, high = header.pixels.padding
        hu[(stored >= low) & (stored <= high)] = HU_RANGE[0]
    if hu.size and (hu.min() < PLAUSIBLE_HU[0] or hu.max() > PLAUSIBLE_HU[1]):
        outside = np.count_nonzero((hu < PLAUSIBLE_HU[0]) | (hu > PLAUSIBLE_HU[1]))
        if outside > IMPLAUSIBLE_SHARE * hu.size:
            share = f"{100 * outside / hu.size:.1f} %"
            raise PixelFault("hu_implausible", f"has {share} of its voxels outside any plausible HU")
    return np.clip(hu, *HU_RANGE, out=hu)
