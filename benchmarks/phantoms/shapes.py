"""Soft-edged shapes in patient space and a painter that fills them into an image: what the phantom is drawn with.

A shape answers one question: how many mm a point lies outside its surface (negative inside, approximate far away). No
anatomy, no enhancement and no lesions here.

Points come as a `Grid`: three arrays that broadcast against each other, so that an open grid (one axis each) costs one
plane for a column that does not change along z, and a plain list of points works as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Bounds",
    "Column",
    "Cut",
    "Ellipsoid",
    "Field",
    "Grid",
    "Intersection",
    "Outside",
    "Point",
    "Ribs",
    "Shape",
    "Slabs",
    "Tube",
    "Union",
    "coverage",
    "crop",
    "extent_of",
    "overlap",
    "paint",
    "window_of",
]

Field = NDArray[np.float32]
#: x, y, z in mm.
Point = tuple[float, float, float]
#: x, y, z of every point in mm, float32, broadcastable.
Grid = tuple[Field, Field, Field]
#: Lowest and highest point of what a shape can fill.
Bounds = tuple[Point, Point]

EVERYWHERE: Bounds = ((-math.inf,) * 3, (math.inf,) * 3)


class Shape(Protocol):
    """Anything with a signed distance in mm and a box outside of which it is empty."""

    @property
    def bounds(self) -> Bounds: ...

    def distance(self, grid: Grid) -> Field:
        """Approximate mm outside the surface, negative inside; may broadcast (be constant along an axis)."""
        ...


@dataclass(frozen=True)
class Ellipsoid:
    """An axis-aligned ellipsoid; exact at the surface, scaled by the mean radius elsewhere."""

    centre: Point
    radii: Point

    @property
    def bounds(self) -> Bounds:
        return _box(self.centre, self.radii)

    def distance(self, grid: Grid) -> Field:
        squares = [((axis - c) / r) ** 2 for axis, c, r in zip(grid, self.centre, self.radii, strict=True)]
        mean = np.float32(sum(self.radii) / 3)
        distance: Field = (np.sqrt(squares[0] + squares[1] + squares[2]) - 1) * mean
        return distance


@dataclass(frozen=True)
class Column:
    """A superelliptic cylinder along z, without end: |x / rx|^n + |y / ry|^n = 1."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    power: float = 2.0

    @property
    def bounds(self) -> Bounds:
        return _box((*self.centre, 0.0), (*self.radii, math.inf))

    def distance(self, grid: Grid) -> Field:
        (cx, cy), (rx, ry), power = self.centre, self.radii, np.float32(self.power)
        total = np.abs((grid[0] - cx) / rx) ** power + np.abs((grid[1] - cy) / ry) ** power
        norm: Field = total ** (1 / power)
        return (norm - 1) * np.float32((rx + ry) / 2)


@dataclass(frozen=True)
class Tube:
    """A vessel: a capsule from one point to another, its radius changing evenly."""

    start: Point
    end: Point
    radii: tuple[float, float]

    @property
    def bounds(self) -> Bounds:
        reach = max(self.radii)
        pairs = list(zip(self.start, self.end, strict=True))
        low, high = [min(pair) - reach for pair in pairs], [max(pair) + reach for pair in pairs]
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])

    def distance(self, grid: Grid) -> Field:
        line = [b - a for a, b in zip(self.start, self.end, strict=True)]
        offsets = [axis - np.float32(a) for axis, a in zip(grid, self.start, strict=True)]
        length2 = np.float32(sum(step**2 for step in line))
        along = sum((offset * np.float32(step) for offset, step in zip(offsets, line, strict=True)), np.float32(0))
        share = np.clip(along / length2, 0, 1)
        squares = [(offset - share * np.float32(step)) ** 2 for offset, step in zip(offsets, line, strict=True)]
        first, last = self.radii
        distance: Field = np.sqrt(squares[0] + squares[1] + squares[2]) - (first + share * np.float32(last - first))
        return distance


@dataclass(frozen=True)
class Cut:
    """The half-space on the side of `through` that `normal` (a unit vector) points away from."""

    through: Point
    normal: Point

    @property
    def bounds(self) -> Bounds:
        return EVERYWHERE

    def distance(self, grid: Grid) -> Field:
        parts = [(a - np.float32(t)) * np.float32(n) for a, t, n in zip(grid, self.through, self.normal, strict=True)]
        distance: Field = parts[0] + parts[1] + parts[2]
        return distance


@dataclass(frozen=True)
class Outside:
    """Everything that a shape is not."""

    shape: Shape

    @property
    def bounds(self) -> Bounds:
        return EVERYWHERE

    def distance(self, grid: Grid) -> Field:
        return -self.shape.distance(grid)


@dataclass(frozen=True)
class Slabs:
    """Horizontal slabs of `thickness`, one every `period` along z: discs between vertebrae."""

    period: float
    thickness: float
    first: float

    @property
    def bounds(self) -> Bounds:
        return EVERYWHERE

    def distance(self, grid: Grid) -> Field:
        period = np.float32(self.period)
        within = np.abs((grid[2] - np.float32(self.first) + period / 2) % period - period / 2)
        distance: Field = within - np.float32(self.thickness / 2)
        return distance


@dataclass(frozen=True)
class Ribs:
    """Rods around a column that fall from back to front: on an axial slice, a row of short ovals in the chest wall.

    Attributes:
        wall: the column whose surface is the ribs' middle.
        thickness, height: of a rib, mm.
        period: distance between ribs along z, mm.
        fall: mm a rib comes down per mm towards the front.
    """

    wall: Column
    thickness: float
    height: float
    period: float
    fall: float

    @property
    def bounds(self) -> Bounds:
        (cx, cy), (rx, ry) = self.wall.centre, self.wall.radii
        return _box((cx, cy, 0.0), (rx + self.thickness, ry + self.thickness, math.inf))

    def distance(self, grid: Grid) -> Field:
        radial = self.wall.distance(grid) / np.float32(self.thickness / 2)
        rise = (grid[2] - np.float32(self.fall) * grid[1]) % np.float32(self.period) - np.float32(self.period / 2)
        vertical = rise / np.float32(self.height / 2)
        return (np.sqrt(radial**2 + vertical**2) - 1) * np.float32(self.thickness / 2)


@dataclass(frozen=True)
class Intersection:
    """Where all parts overlap, with edges rounded over `rounding` mm; `inset` shrinks the result."""

    parts: tuple[Shape, ...]
    rounding: float = 0.0
    inset: float = 0.0

    @property
    def bounds(self) -> Bounds:
        lows, highs = zip(*(part.bounds for part in self.parts), strict=True)
        low, high = [max(axis) for axis in zip(*lows, strict=True)], [min(axis) for axis in zip(*highs, strict=True)]
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])

    def distance(self, grid: Grid) -> Field:
        total = self.parts[0].distance(grid)
        for part in self.parts[1:]:
            total = _smooth_max(total, part.distance(grid), self.rounding)
        return total + np.float32(self.inset)


@dataclass(frozen=True)
class Union:
    """Where any part is, joined over `rounding` mm; `outset` grows the result."""

    parts: tuple[Shape, ...]
    rounding: float = 0.0
    outset: float = 0.0

    @property
    def bounds(self) -> Bounds:
        lows, highs = zip(*(part.bounds for part in self.parts), strict=True)
        reach = self.rounding + self.outset
        low, high = (
            [min(axis) - reach for axis in zip(*lows, strict=True)],
            [max(a) + reach for a in zip(*highs, strict=True)],
        )
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])

    def distance(self, grid: Grid) -> Field:
        total = self.parts[0].distance(grid)
        for part in self.parts[1:]:
            total = -_smooth_max(-total, -part.distance(grid), self.rounding)
        return total - np.float32(self.outset)


def paint(canvas: Field, grid: Grid, shape: Shape, hu: float, edge_mm: float) -> None:
    """Fills `shape` into `canvas` in place; over `edge_mm` across its surface old and new values mix, as in a scan."""
    window = window_of(grid, shape.bounds, edge_mm, canvas.shape)
    if window is None:
        return
    inner = tuple(crop(axis, window) for axis in grid)
    cover = coverage(shape.distance((inner[0], inner[1], inner[2])), edge_mm)
    # Assigned by index, because of a single point canvas[window] is a copy.
    canvas[window] += cover * (np.float32(hu) - canvas[window])


def coverage(distance: Field, edge_mm: float) -> Field:
    """Signed distance in mm -> share of the shape at a point, 0 to 1, falling evenly over `edge_mm`."""
    share: Field = np.clip(np.float32(0.5) - distance / np.float32(edge_mm), 0, 1)
    return share


def extent_of(grid: Grid) -> Bounds:
    """The lowest and highest coordinates of a grid."""
    x, y, z = ((float(axis.min()), float(axis.max())) for axis in grid)
    return (x[0], y[0], z[0]), (x[1], y[1], z[1])


def overlap(first: Bounds, second: Bounds, reach_mm: float) -> bool:
    """Whether two boxes come closer than `reach_mm`; asked before `paint`, because most organs are out of view."""
    return all(
        low <= other_high + reach_mm and other_low <= high + reach_mm
        for low, high, other_low, other_high in zip(*first, *second, strict=True)
    )


def window_of(grid: Grid, bounds: Bounds, reach_mm: float, shape: tuple[int, ...]) -> tuple[slice, ...] | None:
    """The part of an image of `shape` that can hold points within `bounds` grown by `reach_mm`; None if none can."""
    windows = [slice(0, size) for size in shape]
    for axis, low, high in zip(grid, *bounds, strict=True):
        hit = (axis >= low - reach_mm) & (axis <= high + reach_mm)
        if not hit.any():
            return None
        for dimension in (d for d in range(-axis.ndim, 0) if axis.shape[d] > 1):
            others = tuple(d for d in range(-axis.ndim, 0) if d != dimension)
            found, old = np.flatnonzero(hit.any(axis=others)), windows[dimension]
            windows[dimension] = slice(max(old.start, int(found[0])), min(old.stop, int(found[-1]) + 1))
    return None if any(part.start >= part.stop for part in windows) else tuple(windows)


def crop(axis: Field, window: tuple[slice, ...]) -> Field:
    """The part of a broadcastable array that a window of the broadcast image needs."""
    own = window[len(window) - axis.ndim :]
    return axis[tuple(part if size > 1 else slice(None) for part, size in zip(own, axis.shape, strict=True))]


def _smooth_max(a: Field, b: Field, rounding: float) -> Field:
    """The larger of two distances; where they differ by less than `rounding` mm the corner is rounded off."""
    if rounding <= 0:
        return np.maximum(a, b)
    near = np.maximum(np.float32(rounding) - np.abs(a - b), 0)
    rounded: Field = np.maximum(a, b) + near * near / np.float32(4 * rounding)
    return rounded


def _box(centre: Point, reach: Point) -> Bounds:
    (cx, cy, cz), (rx, ry, rz) = centre, reach
    return (cx - rx, cy - ry, cz - rz), (cx + rx, cy + ry, cz + rz)
