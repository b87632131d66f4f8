from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import map_coordinates

from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.geometry import Region, SeriesGeometry
from fourphase.runtime.preprocess import ObliquePlan, SeparablePlan, normalized, plan_sampling, sample_counts
from tests.support.volumes import ORIENTATIONS, grid, noise_volume, resampled, resized, turned

CONFIG = PreprocessingConfig()
SMALL = dataclasses.replace(CONFIG, size=(9, 11, 13))
SHAPE = (9, 12, 14)
#: The contract allows 0.5 HU between the two paths; float32 arithmetic over 4096 HU needs far less.
TOLERANCE_HU = 2e-2
#: Radians; not denormal, which makes SimpleITK's SVD return NaN.
ANGLES = st.integers(-3100, 3100).map(lambda thousandths: thousandths / 1000)


def ours(
    volume: NDArray[Any],
    geometry: SeriesGeometry,
    region: Region,
    config: PreprocessingConfig,
    separable: bool | None = None,
) -> NDArray[np.float32]:
    plan = plan_sampling(geometry, region, config, separable=separable)
    window = plan.window
    return plan.resample(volume[window.slices, window.rows, window.columns])


def reference(
    volume: NDArray[Any], geometry: SeriesGeometry, region: Region, config: PreprocessingConfig
) -> NDArray[np.float64]:
    """The contract's two steps on the whole volume, by other people's code."""
    return resized(resampled(volume, geometry, region, config), config.size)


def centres(region: Region) -> list[NDArray[np.float64]]:
    """Of the 1 mm samples along x, y, z."""
    counts = [int(np.floor(extent + 0.5)) for extent in region.extent_mm]
    return [np.asarray(low + 0.5 + np.arange(max(1, count))) for low, count in zip(region.min, counts, strict=True)]


@st.composite
def regions(draw: st.DrawFn) -> Region:
    """Inside, partly or wholly outside a grid around the origin.

    The odd fraction keeps samples off the exact border of the volume, where rounding decides what a sample is.
    """
    low = [draw(st.integers(-80, 60)) / 4 + 0.0137 for _ in range(3)]
    size = [draw(st.integers(4, 100)) / 4 for _ in range(3)]
    return Region.of(np.array(low), np.array(low) + np.array(size))


@st.composite
def spacings(draw: st.DrawFn) -> tuple[float, float, float]:
    return tuple(draw(st.sampled_from([0.75, 1.0, 1.5, 2.5, 5.0])) for _ in range(3))  # type: ignore[return-value]


def centred(geometry: SeriesGeometry) -> SeriesGeometry:
    """Moved so that the middle of the volume is near the origin, on quarter millimetres."""
    bounds = geometry.bounds()
    middle = (np.array(bounds.min) + np.array(bounds.max)) / 2
    return dataclasses.replace(geometry, positions=geometry.positions - np.round(middle * 4) / 4)


# ---- the separable path


@settings(max_examples=120)
@given(st.sampled_from(ORIENTATIONS), spacings(), regions())
def test_separable_equals_simpleitk_and_torch_in_every_orientation(
    orientation: Any, spacing: tuple[float, float, float], region: Region
) -> None:
    geometry = centred(grid(SHAPE, row=orientation[0], column=orientation[1], spacing=spacing))
    volume = noise_volume(SHAPE)
    assert isinstance(plan_sampling(geometry, region, SMALL), SeparablePlan)
    np.testing.assert_allclose(
        ours(volume, geometry, region, SMALL), reference(volume, geometry, region, SMALL), atol=TOLERANCE_HU
    )


def test_full_size_and_int16() -> None:
    """The network's own grid, from stored int16 as `read_hu` gives it."""
    geometry = grid((20, 60, 70), spacing=(2.5, 0.8, 0.7), origin=(-20, -25, 100))
    volume = np.rint(noise_volume((20, 60, 70))).astype(np.int16)
    region = Region((-10.3, -12.2, 108.1), (12.4, 9.7, 130.6)).grown(CONFIG.margin_mm)
    found = ours(volume, geometry, region, CONFIG)
    assert found.shape == (64, 128, 128)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference(volume, geometry, region, CONFIG), atol=TOLERANCE_HU)


def test_other_sample_distances() -> None:
    config = dataclasses.replace(SMALL, spacing_mm=0.8, background_hu=-2000.0)
    geometry = centred(grid(SHAPE))
    region = Region((-7.1, -20.3, -3.3), (9.2, 4.4, 16.5))
    volume = noise_volume(SHAPE)
    np.testing.assert_allclose(
        ours(volume, geometry, region, config), reference(volume, geometry, region, config), atol=TOLERANCE_HU
    )


def test_axes_ascend_towards_head_back_and_left() -> None:
    """z, y, x of a field that is its own coordinate, whatever the acquisition."""
    region = Region((-6.5, -5.5, -4.5), (6.5, 5.5, 4.5))
    for row, column in ORIENTATIONS:
        geometry = centred(grid((20, 20, 20), row=row, column=column, spacing=(1, 1, 1)))
        k, r, c = np.meshgrid(*[np.arange(20.0)] * 3, indexing="ij")
        points = geometry.positions[0] + k[..., None] * geometry.normal
        points = points + r[..., None] * geometry.column_direction + c[..., None] * geometry.row_direction
        for axis, patient_axis in enumerate((2, 1, 0)):
            found = ours(points[..., patient_axis].astype(np.float32), geometry, region, SMALL)
            line = np.moveaxis(found, axis, 0)[:, 3, 3]
            assert (np.diff(line) > 0).all()
            np.testing.assert_allclose(line, -line[::-1], atol=1e-4)


def test_uneven_slices_are_sampled_where_they_are() -> None:
    """Outside the box a slice may be missing; the samples there still come from true positions."""
    depths = np.array([0.0, 2.5, 5.0, 10.0, 12.5, 15.0])
    positions = np.array([[0, 0, z] for z in depths])
    geometry = SeriesGeometry(np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), positions, (1.0, 1.0), 12, 12)
    volume = noise_volume((6, 12, 12))
    region = Region((2.0, 2.0, 1.0), (10.0, 9.0, 14.0))
    interpolate = RegularGridInterpolator((depths, np.arange(12.0), np.arange(12.0)), volume)
    x, y, z = (
        low + 0.5 + np.arange(count) for low, count in zip(region.min, sample_counts(region, SMALL), strict=True)
    )
    expected = resized(interpolate(np.stack(np.meshgrid(z, y, x, indexing="ij"), axis=-1)), SMALL.size)
    for separable in (True, False):
        np.testing.assert_allclose(ours(volume, geometry, region, SMALL, separable), expected, atol=TOLERANCE_HU)


# ---- the general path


@settings(max_examples=60)
@given(st.tuples(ANGLES, ANGLES, ANGLES), spacings(), regions())
def test_oblique_equals_simpleitk_and_torch(
    angles: tuple[float, float, float], spacing: tuple[float, float, float], region: Region
) -> None:
    row, column = turned(*angles)
    geometry = centred(grid(SHAPE, row=row, column=column, spacing=spacing))
    volume = noise_volume(SHAPE)
    found, expected = ours(volume, geometry, region, SMALL, False), reference(volume, geometry, region, SMALL)
    # A sample within rounding of the volume's surface may fall on either side of it.
    assert (np.abs(found - expected) > TOLERANCE_HU).mean() < 0.002


@settings(max_examples=60)
@given(st.sampled_from(ORIENTATIONS), spacings(), regions())
def test_both_paths_agree(orientation: Any, spacing: tuple[float, float, float], region: Region) -> None:
    geometry = centred(grid(SHAPE, row=orientation[0], column=orientation[1], spacing=spacing))
    volume = noise_volume(SHAPE)
    difference = ours(volume, geometry, region, SMALL, True) - ours(volume, geometry, region, SMALL, False)
    assert np.abs(difference).max() < TOLERANCE_HU


@settings(max_examples=40)
@given(
    st.tuples(*[st.floats(-0.5, 0.5)] * 3), st.tuples(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5)), spacings(), regions()
)
def test_tilted_slices_are_sampled_from_their_true_positions(
    angles: tuple[float, float, float], shear: tuple[float, float], spacing: tuple[float, float, float], region: Region
) -> None:
    """Each sample: bilinear on the two slices around it, at its projection, then linear between them (scipy)."""
    row, column = turned(*angles)
    geometry = centred(grid(SHAPE, row=row, column=column, spacing=spacing, shear=shear))
    volume = noise_volume(SHAPE)
    expected = resized(tilted_reference(volume, geometry, region), SMALL.size)
    found = ours(volume, geometry, region, SMALL, False)
    assert (np.abs(found - expected) > TOLERANCE_HU).mean() < 0.002


def tilted_reference(volume: NDArray[Any], geometry: SeriesGeometry, region: Region) -> NDArray[np.float64]:
    x, y, z = (
        low + 0.5 + np.arange(count) for low, count in zip(region.min, sample_counts(region, SMALL), strict=True)
    )
    zz, yy, xx = np.meshgrid(z, y, x, indexing="ij")
    points = np.stack([xx, yy, zz], axis=-1)
    depth = (points - geometry.positions[0]) @ geometry.normal / geometry.slice_spacing
    below = np.clip(np.floor(depth), 0, geometry.slices - 2).astype(int)
    upper = np.clip(depth - below, 0, 1)
    total = np.zeros(depth.shape)
    for index in range(geometry.slices):
        share = (below == index) * (1 - upper) + (below + 1 == index) * upper
        offset = points - geometry.positions[index]
        r = offset @ geometry.column_direction / geometry.pixel_spacing[0]
        c = offset @ geometry.row_direction / geometry.pixel_spacing[1]
        inside = (r >= -0.5) & (r <= geometry.rows - 0.5) & (c >= -0.5) & (c <= geometry.columns - 0.5)
        plane = map_coordinates(volume[index].astype(float), [r, c], order=1, mode="nearest")
        total += share * np.where(inside, plane, SMALL.background_hu)
    outside = (depth < -0.5) | (depth > geometry.slices - 0.5)
    return np.where(outside, SMALL.background_hu, total)


def test_tilted_series_take_the_general_path() -> None:
    geometry = centred(grid(SHAPE, shear=(0, 0.4)))
    assert isinstance(plan_sampling(geometry, Region((-3, -3, -3), (3, 3, 3)), SMALL), ObliquePlan)


def test_the_general_path_chunks_planes_without_seams() -> None:
    """More planes than one chunk holds."""
    row, column = turned(0.3, -0.2, 0.1)
    geometry = centred(grid((20, 20, 20), row=row, column=column, spacing=(3, 3, 3)))
    volume = noise_volume((20, 20, 20))
    region = Region((-4.2, -4.3, -22.1), (4.1, 3.9, 23.3))
    np.testing.assert_allclose(
        ours(volume, geometry, region, SMALL), reference(volume, geometry, region, SMALL), atol=TOLERANCE_HU
    )


# ---- only the needed voxels


@settings(max_examples=60)
@given(st.tuples(ANGLES, ANGLES, ANGLES) | st.just((0.0, 0.0, 0.0)), spacings(), regions())
def test_voxels_outside_the_window_carry_no_weight(
    angles: tuple[float, float, float], spacing: tuple[float, float, float], region: Region
) -> None:
    """The independent computation does not change when every voxel outside the window does."""
    row, column = turned(*angles)
    geometry = centred(grid(SHAPE, row=row, column=column, spacing=spacing))
    window = plan_sampling(geometry, region, SMALL).window
    volume = noise_volume(SHAPE)
    poisoned = np.full(SHAPE, 1e6, dtype=np.float32)
    part = (window.slices, window.rows, window.columns)
    poisoned[part] = volume[part]
    np.testing.assert_allclose(
        reference(poisoned, geometry, region, SMALL), reference(volume, geometry, region, SMALL), atol=1e-3
    )


def test_the_window_is_tight() -> None:
    geometry = grid((100, 200, 200), spacing=(2.0, 1.0, 1.0))
    window = plan_sampling(geometry, Region((50.0, 60.0, 40.0), (70.0, 90.0, 60.0)), CONFIG).window
    assert window.shape == (11, 31, 21)
    assert (window.slices.start, window.rows.start, window.columns.start) == (20, 60, 50)


@pytest.mark.parametrize("shift", [(1000, 0, 0), (0, -1000, 0), (0, 0, 1000)])
@pytest.mark.parametrize("separable", [True, False])
def test_a_region_outside_is_all_background(shift: tuple[float, float, float], separable: bool) -> None:
    geometry = centred(grid(SHAPE))
    region = Region.of(np.array([-5.0, -5, -5]) + shift, np.array([5.0, 5, 5]) + shift)
    found = ours(noise_volume(SHAPE), geometry, region, SMALL, separable)
    np.testing.assert_allclose(found, CONFIG.background_hu, atol=1e-3)


# ---- counts and channels


@pytest.mark.parametrize(
    ("extent", "count"), [(0.2, 1), (1.0, 1), (1.49, 1), (1.5, 2), (20.0, 20), (20.5, 21), (20.49, 20)]
)
def test_sample_counts(extent: float, count: int) -> None:
    assert sample_counts(Region((0, 0, 0), (extent, 7, 9.6)), CONFIG) == (count, 7, 10)


def test_windows_are_the_contracts() -> None:
    """Closed form: [-1000, 1000], level 40 width 400, level 60 width 150, then mean and standard deviation."""
    hu = np.linspace(-1500, 1500, 2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5)
    found = normalized(hu, CONFIG)
    assert found.shape == (2, 3, 3, 5)
    assert found.dtype == np.float32
    windows = [(-1000, 1000), (40 - 200, 40 + 200), (60 - 75, 60 + 75)]
    for channel, (low, high) in enumerate(windows):
        share = np.clip((hu.astype(np.float64) - low) / (high - low), 0, 1)
        expected = (share - (0.485, 0.456, 0.406)[channel]) / (0.229, 0.224, 0.225)[channel]
        np.testing.assert_allclose(found[:, channel], expected, atol=1e-5)
