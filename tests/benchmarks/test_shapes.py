import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourphase.benchmarks.phantoms.shapes import (
    Column,
    Cut,
    Ellipsoid,
    Grid,
    Intersection,
    Outside,
    Ribs,
    Shape,
    Slabs,
    Tube,
    Union,
    extent_of,
    overlap,
    paint,
    window_of,
)

BALL = Ellipsoid((3, -4, 5), (20, 20, 20))
SHAPES: list[Shape] = [
    BALL,
    Column((0, 5), (18, 12), 2.5),
    Tube((-10, 0, -20), (15, 10, 12), (6, 2)),
    Ribs(Column((0, 0), (25, 20)), 6, 8, 15, 0.5),
    Intersection((BALL, Cut((0, 0, 0), (0, 0.6, 0.8))), rounding=4, inset=1),
    Union((BALL, Tube((0, 0, 0), (0, 0, 38), (5, 5))), rounding=3, outset=1),
    Intersection((BALL, Outside(Ellipsoid((3, -4, 5), (9, 9, 9))))),
    Intersection((BALL, Slabs(12, 4, 1))),
]


def open_grid(reach: float = 40, count: int = 81) -> Grid:
    axis = np.linspace(-reach, reach, count, dtype=np.float32)
    return axis[None, None, :], axis[None, :, None], axis[:, None, None]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: type(shape).__name__)
def test_paint_leaves_nothing_out_of_its_window(shape: Shape) -> None:
    grid = open_grid()
    canvas = np.full((81, 81, 81), -1000, dtype=np.float32)
    paint(canvas, grid, shape, 50, 2)
    cover = np.clip(0.5 - np.broadcast_to(shape.distance(grid), canvas.shape) / 2, 0, 1)
    np.testing.assert_allclose(canvas, -1000 + cover * 1050, atol=1e-3)
    assert 0 < (canvas > 0).mean() < 0.5


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: type(shape).__name__)
def test_an_open_grid_equals_a_list_of_points(shape: Shape) -> None:
    grid = open_grid(count=21)
    x, y, z = (np.ascontiguousarray(part).ravel() for part in np.broadcast_arrays(*grid))
    canvas, points = np.zeros((21, 21, 21), dtype=np.float32), np.zeros(21**3, dtype=np.float32)
    paint(canvas, grid, shape, 100, 3)
    paint(points, (x, y, z), shape, 100, 3)
    np.testing.assert_allclose(points, canvas.ravel(), atol=1e-3)


@given(
    st.tuples(*[st.floats(-9, 9)] * 3), st.tuples(*[st.floats(8, 25)] * 3), st.floats(0, 2 * np.pi), st.floats(-1, 1)
)
def test_an_ellipsoids_distance_is_zero_on_its_surface(
    centre: tuple[float, float, float], radii: tuple[float, float, float], turn: float, w: float
) -> None:
    ring = np.sqrt(1 - w * w)
    unit = np.array([ring * np.cos(turn), ring * np.sin(turn), w])
    point = (np.array(centre) + unit * radii).astype(np.float32)
    x, y, z = (point[axis : axis + 1] for axis in range(3))
    assert abs(Ellipsoid(centre, radii).distance((x, y, z)).item()) < 1e-3


def test_volumes_are_those_of_the_formulas() -> None:
    grid = open_grid(count=161)
    for shape, expected in (
        (Ellipsoid((0, 0, 0), (30, 20, 10)), 4 / 3 * np.pi * 30 * 20 * 10),
        (Tube((0, 0, -15), (0, 0, 15), (8.2, 8.2)), np.pi * 8.2**2 * 30 + 4 / 3 * np.pi * 8.2**3),
    ):
        volume = (np.broadcast_to(shape.distance(grid), (161, 161, 161)) < 0).sum() * 0.5**3
        assert volume == pytest.approx(expected, rel=0.01)


def test_ribs_come_down_towards_the_front() -> None:
    ribs = Ribs(Column((0, 0), (100, 100)), thickness=8, height=10, period=30, fall=0.5)
    level = np.arange(-15, 15, 0.25, dtype=np.float32)
    one, right, back = np.ones(1, dtype=np.float32), 100 * np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.float32)
    at_side = level[np.argmin(ribs.distance((right, back, level)))]
    towards_front = level[np.argmin(ribs.distance((right * np.cos(0.1), -100 * np.sin(0.1) * one, level)))]
    fall = (at_side - towards_front) % 30
    assert fall == pytest.approx(0.5 * 100 * np.sin(0.1), abs=0.5)


def test_overlap_and_window_agree_on_what_is_out_of_view() -> None:
    grid = open_grid(reach=10, count=21)
    for centre, seen in (((0, 0, 0), True), ((0, 0, 14.5), True), ((0, 0, 17), False), ((-40, 0, 0), False)):
        ball = Ellipsoid(centre, (5, 5, 5))
        assert overlap(ball.bounds, extent_of(grid), 1) is seen
        assert (window_of(grid, ball.bounds, 1, (21, 21, 21)) is not None) is seen
