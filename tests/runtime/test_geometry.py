from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourphase.runtime.errors import GeometryRefused
from fourphase.runtime.geometry import Region, SeriesGeometry, slice_gaps
from tests.support.volumes import ORIENTATIONS, grid, sitk_image, turned

#: Radians; not denormal, which makes SimpleITK's SVD return NaN.
ANGLES = st.integers(-3100, 3100).map(lambda thousandths: thousandths / 1000)


def test_region() -> None:
    region = Region((1, 2, 3), (4, 6, 8))
    assert region.grown(10) == Region((-9, -8, -7), (14, 16, 18))
    assert region.extent_mm == (3, 4, 5)
    assert {tuple(corner) for corner in region.corners()} == {(x, y, z) for x in (1, 4) for y in (2, 6) for z in (3, 8)}
    assert Region.of(np.array([1, 2, 3]), np.array([4, 6, 8])) == region


@given(st.tuples(ANGLES, ANGLES, ANGLES), st.integers(0, 4), st.integers(0, 5), st.integers(0, 6))
def test_index_of_is_the_inverse_of_the_standards_equation(
    angles: tuple[float, float, float], index: int, row: int, column: int
) -> None:
    """PS3.3 equation C.7.6.2.1-1, voxel by voxel."""
    directions = turned(*angles)
    geometry = grid((5, 6, 7), row=directions[0], column=directions[1], origin=(10, -20, 30), spacing=(2.5, 1.5, 0.75))
    point = geometry.positions[index] + row * 1.5 * directions[1] + column * 0.75 * directions[0]
    np.testing.assert_allclose(geometry.index_of(point), [index, row, column], atol=1e-9)


@given(st.tuples(ANGLES, ANGLES, ANGLES), st.tuples(*[st.floats(-50, 50)] * 3))
def test_index_of_agrees_with_simpleitk(angles: tuple[float, float, float], point: tuple[float, float, float]) -> None:
    row, column = turned(*angles)
    geometry = grid((5, 6, 7), row=row, column=column, origin=(3, -7, 11))
    expected = sitk_image(np.zeros((5, 6, 7)), geometry).TransformPhysicalPointToContinuousIndex(point)
    np.testing.assert_allclose(geometry.index_of(np.array(point))[::-1], expected, atol=1e-7)


def test_index_of_with_uneven_slices() -> None:
    geometry = SeriesGeometry(
        np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([[0, 0, z] for z in (0.0, 2.0, 6.0, 8.0)]), (1, 1), 4, 4
    )
    depths = np.array([[0, 0, z] for z in (-1.0, 0.0, 1.0, 4.0, 7.0, 8.0, 9.0)])
    np.testing.assert_allclose(geometry.index_of(depths)[:, 0], [-0.5, 0, 0.5, 1.5, 2.5, 3, 3.5])


def test_index_of_follows_the_tilt() -> None:
    geometry = grid((5, 6, 7), shear=(0.4, -0.3))
    between = (geometry.positions[2] + geometry.positions[3]) / 2
    np.testing.assert_allclose(geometry.index_of(between), [2.5, 0, 0], atol=1e-9)


@pytest.mark.parametrize(("row", "column"), ORIENTATIONS)
def test_bounds_are_half_a_voxel_beyond_the_centres(row: Any, column: Any) -> None:
    geometry = grid((3, 4, 5), row=row, column=column, origin=(1, 2, 3))
    image = sitk_image(np.zeros((3, 4, 5)), geometry)
    corners = [[(-0.5, 4.5)[i & 1], (-0.5, 3.5)[i >> 1 & 1], (-0.5, 2.5)[i >> 2]] for i in range(8)]
    points = np.array([image.TransformContinuousIndexToPhysicalPoint(corner) for corner in corners])
    bounds = geometry.bounds()
    np.testing.assert_allclose(bounds.min, points.min(axis=0), atol=1e-9)
    np.testing.assert_allclose(bounds.max, points.max(axis=0), atol=1e-9)


def test_there_are_24_orientations_and_all_are_axis_aligned() -> None:
    assert len({(tuple(row), tuple(column)) for row, column in ORIENTATIONS}) == 24
    assert all(grid((3, 4, 5), row=row, column=column).is_axis_aligned for row, column in ORIENTATIONS)


def test_slightly_turned_or_tilted_is_not_axis_aligned() -> None:
    row, column = turned(0, 0, 1e-3)
    assert not grid((3, 4, 5), row=row, column=column).is_axis_aligned
    assert not grid((3, 4, 5), shear=(0, 0.01)).is_axis_aligned
    assert grid((3, 4, 5), shear=(0, 1e-5)).is_axis_aligned


@pytest.mark.parametrize("degrees", [0.0, 0.4, 12.0, 30.0])
def test_tilt(degrees: float) -> None:
    geometry = grid((6, 4, 5), shear=(0, 2.5 * np.tan(np.radians(degrees))))
    assert geometry.tilt_degrees == pytest.approx(degrees, abs=1e-6)


def test_slices_at_one_place_have_no_tilt() -> None:
    geometry = grid((1, 4, 5))
    assert geometry.tilt_degrees == 0.0


@pytest.mark.parametrize(
    ("steps", "gaps"),
    [
        ([2.5] * 5, 0),
        ([2.5, 2.5, 5.0, 2.5, 2.5], 1),
        ([2.5, 2.5, 2.59, 2.5, 2.5], 0),  # 0.1 mm
        ([2.5, 2.5, 2.61, 2.5, 2.5], 1),
        ([2.5, 2.5, 2.39, 2.5, 2.5], 1),
        ([10.0, 10.0, 10.19, 10.0], 0),  # 2 %
        ([10.0, 10.0, 10.21, 10.0], 1),
        ([2.5, 7.5, 2.5, 5.0, 2.5], 2),
    ],
)
def test_slice_gaps(steps: list[float], gaps: int) -> None:
    depths = np.concatenate([[0.0], np.cumsum(steps)])
    assert len(slice_gaps(depths)) == gaps


def test_slice_gaps_say_where() -> None:
    assert slice_gaps(np.array([0.0, 1, 2, 5, 6, 7])) == [(2.0, 5.0)]


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("orientation_invalid", {"row_direction": np.array([1.0, 0.1, 0])}),
        ("orientation_invalid", {"row_direction": np.array([2.0, 0, 0])}),
        ("orientation_invalid", {"row_direction": np.array([np.nan, 0, 0])}),
        ("pixel_spacing_invalid", {"pixel_spacing": (0.0, 1.0)}),
        ("pixel_spacing_invalid", {"pixel_spacing": (1.0, -1.0)}),
        ("pixel_spacing_invalid", {"pixel_spacing": (np.inf, 1.0)}),
        ("position_invalid", {"positions": np.array([[0.0, 0, 0], [0, 0, np.nan]])}),
    ],
)
def test_impossible_grids_are_refused(key: str, change: dict[str, Any]) -> None:
    sound = grid((2, 3, 4))
    fields = {name: getattr(sound, name) for name in SeriesGeometry.__dataclass_fields__}
    with pytest.raises(GeometryRefused) as caught:
        SeriesGeometry(**{**fields, **change})
    assert caught.value.key == key
