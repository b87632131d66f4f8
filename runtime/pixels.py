"""The needed voxels of a series, in HU: decoded slice by slice, cropped, scaled, checked, clipped.

Only the slices and rows of the window are read (of compressed slices, the whole slice). Whatever is wrong with pixel
data ends in PixelDataError: a guess about a patient's voxels would be worse than no result.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.decoders import DECODERS
from fourphase.runtime.dicom_file import quiet_pydicom
from fourphase.runtime.errors import PixelDataError
from fourphase.runtime.headers import SliceHeader
from fourphase.runtime.preprocess import VoxelWindow
from fourphase.runtime.series import Series
from fourphase.runtime.stored_values import NATIVE, PixelFault, stored_values

__all__ = ["read_hu"]

#: HU outside this range do not occur, but for a few voxels of metal or noise ...
PLAUSIBLE_HU = (-1100.0, 4000.0)
#: ... so a slice with a larger share of them was decoded or scaled wrongly.
IMPLAUSIBLE_SHARE = 0.005
HU_RANGE = (-1024, 3071)

LARGEST_SIDE = 4096
LARGEST_SLOPE, LARGEST_INTERCEPT = 1e3, 1e5
#: One series' window at once, as int16: 2 GiB.
LARGEST_WINDOW = 2**30

Hounsfield: TypeAlias = NDArray[np.int16] | NDArray[np.float32]


def read_hu(series: Series, window: VoxelWindow) -> Hounsfield:
    """HU of the window's voxels, (slices, rows, columns), clipped to [-1024, 3071]; padding is -1024.

    int16 when slope and intercept of every slice are whole numbers, else float32.

    Raises:
        PixelDataError: truncated, undecodable, implausible or over limits.
    """
    headers = series.slices[window.slices]
    if math.prod(window.shape) > LARGEST_WINDOW:
        raise _error(series.name, PixelFault("pixel_limits", "asks for more voxels than fit in memory"))
    whole = all(header.slope.is_integer() and header.intercept.is_integer() for header in headers)
    hu: Hounsfield = np.empty(window.shape, np.int16) if whole else np.empty(window.shape, np.float32)
    with quiet_pydicom():
        for index, header in enumerate(headers):
            try:
                _check_format(header)
                stored = stored_values(header, window)
                hu[index] = _hounsfield(stored, header)
            except PixelFault as fault:
                place = f"{series.name}, slice {window.slices.start + index + 1} of {len(series.slices)},"
                raise _error(place, fault) from None
    return hu


def _error(place: str, fault: PixelFault) -> PixelDataError:
    hints = {
        "transfer_syntax_unsupported": "have the archive send it uncompressed, or as JPEG-LS or JPEG 2000",
        "pixel_limits": "check that this is an ordinary CT series",
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
    if abs(header.slope) > LARGEST_SLOPE or abs(header.intercept) > LARGEST_INTERCEPT:
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
