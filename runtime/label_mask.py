"""A NIfTI-1 label mask -> the extent of each label in patient space. Its own small reader: nibabel stays a test tool.

Read plane by plane with bounded inflation, so a mask of any claimed size costs no memory. Matching with the series
happens in patient space only; the mask's own voxel order means nothing.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.errors import BoxInvalid
from fourphase.runtime.geometry import Region

__all__ = ["LabelMask", "read_label_mask"]

Float = NDArray[np.float64]

HEADER_BYTES = 348
#: NIfTI-1 datatype code -> numpy type.
DATA_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
BYTE_ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")
LARGEST_SIDE = 4096
#: 1024 x 1024 x 2048 voxels; a CT study's grid is far smaller.
LARGEST_MASK = 2**31
#: A claimed label beyond this is no label; ITK-SNAP has 16 bits.
LARGEST_LABEL = 65535
MOST_LABELS = 1000
#: sform and qform may differ by this much, in voxels, before it is unclear which one is meant.
TRANSFORM_TOLERANCE = 0.5

#: Single precision cannot tell a half turn (a = 0) from less than this in 1 - b*b - c*c - d*d.
HALF_TURN = 3 * float(np.finfo(np.float32).eps)

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class LabelMask:
    """What a mask says.

    Attributes:
        labels: label -> the region of its voxels, half a voxel beyond their centres, LPS mm.
        bounds: the region of the whole grid, likewise.
    """

    labels: dict[int, Region]
    bounds: Region


@dataclass(frozen=True, eq=False)
class _Header:
    """size: voxels along i, j, k; affine: (i, j, k, 1) -> LPS mm, float64 (4, 4); offset: bytes before the data."""

    size: tuple[int, int, int]
    data_type: np.dtype[Any]
    affine: Float
    offset: int
    slope: float
    intercept: float


def read_label_mask(file: IO[bytes]) -> LabelMask:
    """Reads a .nii or .nii.gz label mask.

    Raises:
        BoxInvalid: not a single-file NIfTI-1 mask of whole numbers with a known orientation, damaged, or over limits.
    """
    start = file.read(2)
    file.seek(0)
    stream: Any = gzip.GzipFile(fileobj=file) if start == b"\x1f\x8b" else file
    try:
        with np.errstate(all="ignore"):  # impossible numbers are refused by name
            header = _read_header(stream)
            extents = _extents(stream, header)
    except (EOFError, OSError, zlib.error):
        raise _invalid("is damaged or truncated", "mask_damaged") from None
    half = np.abs(header.affine[:3, :3]).sum(axis=1) / 2
    labels = {label: Region.of(low - half, high + half) for label, (low, high) in sorted(extents.items())}
    corners = np.array([[i >> axis & 1 for axis in range(3)] for i in range(8)]) * (np.array(header.size) - 1)
    centres = _to_patient(corners.astype(np.float64), header.affine)
    return LabelMask(labels, Region.of(centres.min(axis=0) - half, centres.max(axis=0) + half))


def _invalid(what: str, key: str) -> BoxInvalid:
    hint = "save the mask again as .nii.gz, drawn on one of the study's series"
    return BoxInvalid(f"the lesion mask {what}", hint, key=key)


def _to_patient(index: Float, affine: Float) -> Float:
    return np.asarray(index @ affine[:3, :3].T + affine[:3, 3])


# ---- header


def _read_header(stream: IO[bytes]) -> _Header:
    raw = stream.read(HEADER_BYTES)
    if len(raw) < HEADER_BYTES:
        raise EOFError
    order = next((order for order in BYTE_ORDERS if struct.unpack_from(f"{order}i", raw)[0] == HEADER_BYTES), None)
    if order is None or raw[344:348] != b"n+1\0":
        raise _invalid("is no single-file NIfTI-1 image (.nii or .nii.gz)", "mask_format")
    dims = struct.unpack_from(f"{order}8h", raw, 40)
    code, bits = struct.unpack_from(f"{order}2h", raw, 70)
    offset, slope, intercept = struct.unpack_from(f"{order}3f", raw, 108)
    if code not in DATA_TYPES or np.dtype(DATA_TYPES[code]).itemsize * 8 != bits:
        raise _invalid("has no whole-number voxels", "mask_format")
    if not 3 <= dims[0] <= 7 or min(dims[1:4]) < 1 or any(size not in (0, 1) for size in dims[4 : dims[0] + 1]):
        raise _invalid("is not three-dimensional", "mask_format")
    if max(dims[1:4]) > LARGEST_SIDE or math.prod(dims[1:4]) > LARGEST_MASK:
        raise _invalid("is larger than any CT study", "mask_limits")
    if not HEADER_BYTES <= offset <= 2**20:
        raise _invalid("is damaged or truncated", "mask_damaged")
    scaled = math.isfinite(slope) and slope != 0 and math.isfinite(intercept)
    return _Header(
        size=(dims[1], dims[2], dims[3]),
        data_type=np.dtype(DATA_TYPES[code]).newbyteorder(order),
        affine=RAS_TO_LPS @ _affine(raw, order),
        offset=int(offset),
        slope=slope if scaled else 1.0,
        intercept=intercept if scaled else 0.0,
    )


def _affine(raw: bytes, order: str) -> Float:
    """Voxel index -> RAS mm, from sform (preferred) or qform; both present must agree.

    https://nifti.nimh.nih.gov/nifti-1/documentation/nifti1fields, "METHOD 2" and "METHOD 3"; method 1 has no
    orientation and is refused.
    """
    if raw[123] & 0x07 not in (0, 2):
        raise _invalid("is not measured in millimetres", "mask_format")
    qform_code, sform_code = struct.unpack_from(f"{order}2h", raw, 252)
    found = [
        matrix for code, matrix in ((sform_code, _sform(raw, order)), (qform_code, _qform(raw, order))) if code > 0
    ]
    if not found:
        raise _invalid("has no orientation (neither sform nor qform)", "mask_orientation")
    if not all(np.isfinite(matrix).all() and abs(np.linalg.det(matrix)) > 1e-9 for matrix in found):
        raise _invalid("has an impossible orientation", "mask_orientation")
    if len(found) == 2:
        size = np.array(struct.unpack_from(f"{order}3h", raw, 42), dtype=np.float64)
        apart = np.linalg.inv(found[0]) @ found[1] - np.eye(4)
        if (np.abs(apart[:3, :3]) @ size + np.abs(apart[:3, 3])).max() > TRANSFORM_TOLERANCE:
            raise _invalid("has two orientations that differ (sform and qform)", "mask_orientation")
    return found[0]


def _sform(raw: bytes, order: str) -> Float:
    rows = np.array(struct.unpack_from(f"{order}12f", raw, 280), dtype=np.float64).reshape(3, 4)
    return np.vstack([rows, [0, 0, 0, 1]])


def _qform(raw: bytes, order: str) -> Float:
    flip, *spacing = struct.unpack_from(f"{order}4f", raw, 76)
    b, c, d, *shift = (float(value) for value in struct.unpack_from(f"{order}6f", raw, 256))
    squared = b * b + c * c + d * d
    if not squared <= 1 + 1e-5:
        return np.full((4, 4), math.nan)
    if 1 - squared < HALF_TURN:
        a, (b, c, d) = 0.0, (value / math.sqrt(squared) for value in (b, c, d))
    else:
        a = math.sqrt(1 - squared)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array(spacing, dtype=np.float64) * [1, 1, -1 if flip < 0 else 1]
    affine[:3, 3] = shift
    return affine


# ---- voxels


def _extents(stream: IO[bytes], header: _Header) -> dict[int, tuple[Float, Float]]:
    """Label -> lowest and highest voxel centre in LPS mm; background 0 is left out."""
    extents: dict[int, tuple[Float, Float]] = {}
    for k, plane in enumerate(_planes(stream, header)):
        labels = np.unique(plane[plane != 0])
        if len(labels) > MOST_LABELS:
            raise _invalid("has too many labels", "mask_limits")
        for label in labels:
            j, i = np.nonzero(plane == label)
            centres = _to_patient(np.stack([i, j, np.full_like(i, k)], axis=1).astype(np.float64), header.affine)
            low, high = centres.min(axis=0), centres.max(axis=0)
            before = extents.get(int(label), (low, high))
            extents[int(label)] = (np.minimum(low, before[0]), np.maximum(high, before[1]))
    return extents


def _planes(stream: IO[bytes], header: _Header) -> Iterator[NDArray[np.int64]]:
    """One k plane of labels after the other, (j, i)."""
    _read_exactly(stream, header.offset - HEADER_BYTES)
    columns, rows, planes = header.size
    for _ in range(planes):
        data = _read_exactly(stream, columns * rows * header.data_type.itemsize)
        plane = np.frombuffer(data, dtype=header.data_type).reshape(rows, columns)
        if not plane.any() and header.intercept == 0:
            yield np.zeros((1, 1), dtype=np.int64)
            continue
        values = plane * header.slope + header.intercept
        if not (np.isfinite(values).all() and (values == np.rint(values)).all() and values.min() >= 0):
            raise _invalid("has voxels that are no labels (0, 1, 2 ...)", "mask_format")
        if values.max() > LARGEST_LABEL:
            raise _invalid("has voxels that are no labels (0, 1, 2 ...)", "mask_format")
        yield values.astype(np.int64)


def _read_exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError
    return data
