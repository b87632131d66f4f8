"""Voxel grids and an independent whole-volume resampling (SimpleITK, then torch), to hold the preprocessing against."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.geometry import Region, SeriesGeometry

__all__ = ["ORIENTATIONS", "grid", "noise_volume", "resampled", "resized", "sitk_image", "turned"]

Float: TypeAlias = NDArray[np.float64]
Direction: TypeAlias = Sequence[float] | Float


def _sitk() -> Any:
    """SimpleITK, which only the independent resampling needs; its annotations are partial."""
    return importlib.import_module("SimpleITK")


def _orientations() -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Every (row, column) direction along patient axes: all axis permutations and flips that DICOM can say.

    24, not 48: the slice direction is the cross product of the two, so a grid is never mirrored.
    """
    axes = [tuple(sign * float(i == axis) for i in range(3)) for axis in range(3) for sign in (1, -1)]
    return [(row, column) for row, column in itertools.product(axes, axes) if np.dot(row, column) == 0]


ORIENTATIONS = _orientations()


def grid(
    shape: tuple[int, int, int],
    *,
    row: Direction = (1, 0, 0),
    column: Direction = (0, 1, 0),
    spacing: tuple[float, float, float] = (2.5, 1.5, 1.0),
    origin: Sequence[float] = (0, 0, 0),
    shear: Sequence[float] = (0, 0),
) -> SeriesGeometry:
    """A regular grid of (slices, rows, columns) with spacing (slice, dy, dx).

    Args:
        shear: how far each slice moves along (row, column) direction relative to the one before, mm: gantry tilt.
    """
    row_direction, column_direction = np.array(row, dtype=float), np.array(column, dtype=float)
    step = np.cross(row_direction, column_direction) * spacing[0]
    step = step + shear[0] * row_direction + shear[1] * column_direction
    positions = np.array(origin) + np.arange(shape[0])[:, None] * step
    return SeriesGeometry(row_direction, column_direction, positions, (spacing[1], spacing[2]), shape[1], shape[2])


def turned(x: float, y: float, z: float) -> tuple[Float, Float]:
    """(row, column) directions of a grid turned by three angles in radians."""
    (cx, sx), (cy, sy), (cz, sz) = ((np.cos(angle), np.sin(angle)) for angle in (x, y, z))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    rotation = about_x @ about_y @ about_z
    return rotation[:, 0], rotation[:, 1]


def noise_volume(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.float32]:
    """White noise over the whole HU range: the hardest thing to interpolate equally."""
    return np.random.default_rng(seed).uniform(-1024, 3071, shape).astype(np.float32)


def sitk_image(volume: NDArray[Any], geometry: SeriesGeometry) -> Any:
    dy, dx = geometry.pixel_spacing
    sitk = _sitk()
    image = sitk.GetImageFromArray(volume.astype(np.float64))
    image.SetOrigin(geometry.positions[0].tolist())
    image.SetSpacing((dx, dy, geometry.slice_spacing))
    axes = np.stack([geometry.row_direction, geometry.column_direction, geometry.normal], axis=1)
    image.SetDirection(axes.ravel().tolist())
    return image


def resampled(volume: NDArray[Any], geometry: SeriesGeometry, region: Region, config: PreprocessingConfig) -> Float:
    """Step 2 of the contract by SimpleITK, on the whole volume: float64 (z, y, x) at `spacing_mm`."""
    counts = [max(1, int(np.floor(extent / config.spacing_mm + 0.5))) for extent in region.extent_mm]
    sitk = _sitk()
    resample = sitk.ResampleImageFilter()
    resample.SetSize(counts)
    resample.SetOutputSpacing([config.spacing_mm] * 3)
    resample.SetOutputOrigin([low + config.spacing_mm / 2 for low in region.min])
    resample.SetOutputDirection(np.eye(3).ravel().tolist())
    resample.SetInterpolator(sitk.sitkLinear)
    resample.SetDefaultPixelValue(config.background_hu)
    return np.asarray(sitk.GetArrayFromImage(resample.Execute(sitk_image(volume, geometry))), dtype=np.float64)


def resized(volume: Float, size: tuple[int, int, int]) -> Float:
    """Step 3 of the contract by torch: linear, half-pixel centres, clamped, no antialiasing."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(volume))[None, None]
    return np.asarray(torch.nn.functional.interpolate(tensor, size=size, mode="trilinear", align_corners=False)[0, 0])
