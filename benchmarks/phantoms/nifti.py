"""Writes a label mask as NIfTI-1 (.nii.gz), as ITK-SNAP would save it. Nothing else of the format.

Layout: https://nifti.nimh.nih.gov/nifti-1 (nifti1.h). The same mask gives the same bytes.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.atomic import write_file

__all__ = ["write_label_mask"]

_HEADER_BYTES, _DATA_OFFSET = 348, 352
_UINT8, _SCANNER_ANATOMICAL, _MILLIMETRES = 2, 1, 2


def write_label_mask(
    path: Path, mask: NDArray[np.uint8], origin: tuple[float, float, float], spacing: tuple[float, float, float]
) -> None:
    """Writes a mask on an axial grid.

    Args:
        mask: uint8 (slices, rows, columns); slices ascend to the head, rows to the back, columns to the left.
        origin: centre of voxel (0, 0, 0), LPS mm.
        spacing: (x, y, z) in mm.

    NIfTI's world is RAS: x and y change sign against DICOM's LPS, so both axes of the affine run backwards.
    """
    (x, y, z), (dx, dy, dz) = origin, spacing
    affine = ((-dx, 0.0, 0.0, -x), (0.0, -dy, 0.0, -y), (0.0, 0.0, dz, z))
    header = bytearray(_DATA_OFFSET)
    slices, rows, columns = mask.shape
    struct.pack_into("<i", header, 0, _HEADER_BYTES)
    struct.pack_into("<8h", header, 40, 3, columns, rows, slices, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, _UINT8, 8)
    # pixdim[0] is qfac: with x and y both turned round the quaternion (0, 0, 0, 1) is a rotation, so it is 1.
    struct.pack_into("<8f", header, 76, 1.0, dx, dy, dz, 0.0, 0.0, 0.0, 0.0)
    struct.pack_into("<3f", header, 108, float(_DATA_OFFSET), 1.0, 0.0)
    header[123] = _MILLIMETRES
    struct.pack_into("<2h", header, 252, _SCANNER_ANATOMICAL, _SCANNER_ANATOMICAL)
    struct.pack_into("<6f", header, 256, 0.0, 0.0, 1.0, -x, -y, z)
    struct.pack_into("<12f", header, 280, *(value for row in affine for value in row))
    header[344:348] = b"n+1\0"
    write_file(path, gzip.compress(bytes(header) + np.ascontiguousarray(mask).tobytes(), mtime=0))
