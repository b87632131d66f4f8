"""A sampling plan of `preprocess` packed as the preprocessing kernel reads it: a header, then its tables.

The layout is that of FourphasePlan in sampling_kernel.h. It reads no voxels and needs no GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import GeometryRefused
from fourphase.runtime.preprocess import ObliquePlan, SamplingPlan, SeparablePlan, VoxelWindow

__all__ = ["BLOCK", "HEADER", "KernelPlan"]

#: Threads along x, y, z. A warp writes 32 neighbours of a row.
BLOCK = (32, 8, 1)
#: The layout of FourphasePlan in sampling_kernel.h.
HEADER = np.dtype(
    [
        ("size", "<i4", 3), ("channels", "<i4"), ("window", "<i4", 3), ("stride", "<i4", 3), ("taps", "<i4", 3),
        ("index_at", "<i4", 3), ("weight_at", "<i4", 3), ("channel_at", "<i4"), ("background_hu", "<f4"),
        ("first", "<i4", 3), ("count", "<i4", 3), ("part_at", "<i4", 3), ("slice_at", "<i4"), ("gap_at", "<i4"),
        ("edge_at", "<i4"),
    ]
)  # fmt: skip
#: Fixed-point steps per voxel or millimetre, and where a sum of four positions stays far below 64 bits.
_ONE, _FARTHEST = 2.0**32, 2.0**20


@dataclass(frozen=True, eq=False)
class KernelPlan:
    """One phase's sampling as the kernel reads it.

    Attributes:
        window: the voxels to read and upload.
        size: outputs along z, y, x. channels: of each output.
        general: True for the path of oblique and tilted series.
        data: uint8 (bytes,): HEADER, then the tables it points to, each at a multiple of 8 bytes.
    """

    window: VoxelWindow
    size: tuple[int, int, int]
    channels: int
    general: bool
    data: NDArray[np.uint8]

    @classmethod
    def of(cls, plan: SamplingPlan, config: PreprocessingConfig) -> KernelPlan:
        """Packs what `plan_sampling` planned for the same `config`.

        Raises: GeometryRefused if series and box are more than a kilometre apart.
        """
        taps = [_taps(matrix) for matrix in plan.matrices]
        depth, rows, columns = (matrix.shape[0] for matrix in plan.matrices)
        fields: dict[str, Any] = {
            "size": (depth, rows, columns),
            "channels": config.channels,
            "window": plan.window.shape,
            "taps": [index.shape[1] for index, _ in taps],
            "background_hu": plan.background_hu,
        }
        tables: dict[str, list[NDArray[Any]]] = {
            "index_at": [index for index, _ in taps],
            "weight_at": [weight for _, weight in taps],
            "channel_at": [_channels(config)],
        }
        if isinstance(plan, SeparablePlan):
            _, window_rows, window_columns = plan.window.shape
            strides = (window_rows * window_columns, window_columns, 1)
            fields["stride"] = [strides[axis] for axis in plan.axes]
        elif isinstance(plan, ObliquePlan):
            window, series = plan.window, plan.geometry
            fields["first"] = [part.start for part in (window.slices, window.rows, window.columns)]
            fields["count"] = (series.slices, series.rows, series.columns)
            tables |= _positions(plan)
        data = _packed(fields, tables)
        return cls(plan.window, (depth, rows, columns), config.channels, isinstance(plan, ObliquePlan), data)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks along x, y, z."""
        depth, rows, columns = self.size
        return -(-columns // BLOCK[0]), -(-rows // BLOCK[1]), depth

    def output_bytes(self, *, half: bool) -> int:
        """Bytes of one phase's (T, C, H, W)."""
        depth, rows, columns = self.size
        return depth * self.channels * rows * columns * (2 if half else 4)


def _taps(matrix: sparse.csr_array) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(index, weight) of the entries of every row, (rows, longest row); shorter rows end in weights of zero."""
    counts = np.diff(matrix.indptr)
    shape = (matrix.shape[0], int(counts.max(initial=0)))
    index, weight = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    row = np.repeat(np.arange(shape[0]), counts)
    place = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], counts)
    index[row, place], weight[row, place] = matrix.indices, matrix.data
    return index, weight


def _channels(config: PreprocessingConfig) -> NDArray[np.float32]:
    """(low, high, factor, summand) per channel, as `normalized` computes them."""
    rows = []
    for (low, high), mean, std in zip(config.windows_hu, config.mean, config.std, strict=True):
        factor = 1 / ((high - low) * std)
        rows.append((low, high, factor, -low * factor - mean / std))
    return np.array(rows, dtype=np.float32)


def _positions(plan: ObliquePlan) -> dict[str, list[NDArray[Any]]]:
    """Depth (mm), row and column of samples and slices: linear in z, y, x, so a sum of one table row per axis."""
    series = plan.geometry
    dy, dx = series.pixel_spacing
    directions = np.stack([series.normal, series.column_direction / dy, series.row_direction / dx], axis=1)
    parts = [_fixed(centres[:, None] * directions[axis]) for centres, axis in zip(plan.centres, (2, 1, 0), strict=True)]
    slices = _fixed(series.positions @ directions)
    gaps = np.zeros(series.slices, np.float32)
    gaps[:-1] = 1 / np.maximum(np.diff(slices[:, 0]), 1)
    half = series.slice_spacing / 2
    edge = _fixed(np.array([series.depths[0] - half, series.depths[-1] + half]))
    return {"part_at": list(parts), "slice_at": [slices], "gap_at": [gaps], "edge_at": [edge]}


def _fixed(values: NDArray[np.float64]) -> NDArray[np.int64]:
    if not np.abs(values).max() < _FARTHEST:  # also where one is not a number
        raise GeometryRefused(
            "the series and the lesion box lie more than a kilometre from the origin",
            "export the series again from the archive; its positions cannot be trusted",
            key="position_invalid",
        )
    return np.rint(values * _ONE).astype(np.int64)


def _packed(fields: dict[str, Any], tables: dict[str, list[NDArray[Any]]]) -> NDArray[np.uint8]:
    header = np.zeros((), HEADER)
    end = -(-HEADER.itemsize // 8) * 8
    placed = []
    for name, arrays in tables.items():
        places = []
        for array in arrays:
            places.append(end)
            placed.append((end, array))
            end += -(-array.nbytes // 8) * 8
        fields[name] = places if HEADER[name].shape else places[0]
    for name, value in fields.items():
        header[name] = value
    data = np.zeros(end // 8, np.int64).view(np.uint8)
    for start, array in [(0, header), *placed]:
        data[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
    return data
