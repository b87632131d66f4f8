"""Plots of two axes: points with ranges and lines, each named where it ends or beside its point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fourphase.benchmarks.report.svg_base import CHARACTER, Placed, dot, plot, spread_out, x_frame, y_frame
from fourphase.export.report_markup import Markup, element
from fourphase.export.report_svg import line, text

__all__ = ["Point", "Series", "scatter", "xy_plot"]

_LINE = 14.0


@dataclass(frozen=True)
class Point:
    """Attributes:
    y: None if it was refused; then its range is drawn, dashed.
    low, high: of y.
    """

    x: float
    y: float | None
    title: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points of one colour, joined by a line.

    Attributes:
        line: what the line goes through instead of the points, such as a fit.
        shape: "" for no marks.
        strong: drawn heavier.
        label: at the last point; "" for none.
    """

    points: Sequence[Point]
    colour: str
    label: str = ""
    shape: str = "circle"
    line: Sequence[tuple[float, float]] | None = None
    strong: bool = False


def xy_plot(
    title: str,
    description: str,
    x: tuple[Placed, str],
    y: tuple[Placed, str],
    series: Sequence[Series],
    size: tuple[float, float],
    references: Sequence[tuple[tuple[float, float], tuple[float, float]]] = (),
) -> Markup:
    """Series over each other, the strong ones on top, with their labels at the right, moved apart.

    Args:
        x, y: axis with positions in the plot (y.start is the bottom), and label with unit.
        size: width and height of the plot.
        references: lines from (x, y) to (x, y), such as the diagonal.
    """
    parts = [*x_frame(x[0], y[0].end, y[0].start, x[1]), *y_frame(y[0], x[0].start, x[0].end, y[1])]
    for (x1, y1), (x2, y2) in references:
        parts.append(line(x[0].at(x1), y[0].at(y1), x[0].at(x2), y[0].at(y2), "limit"))
    for one in sorted(series, key=lambda one: one.strong):
        parts += _drawn(x[0], y[0], one)
    return plot(title, description, *size, [*parts, *_end_labels(x[0], y[0], series)])


def _drawn(x: Placed, y: Placed, one: Series) -> list[Markup]:
    path = one.line if one.line is not None else [(point.x, point.y) for point in one.points if point.y is not None]
    places = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in path)
    parts = [element("polyline", points=places, class_=f"c-{one.colour}{' heavy' if one.strong else ''}")]
    for point in one.points:
        if point.low is not None and point.high is not None:
            kind = f"range c-{one.colour}{' dashed' if point.y is None else ''}"
            parts.append(line(x.at(point.x), y.at(point.low), x.at(point.x), y.at(point.high), kind))
        if point.y is not None and one.shape:
            parts.append(dot(one.shape, one.colour, x.at(point.x), y.at(point.y), point.title))
    return parts


def _end_labels(x: Placed, y: Placed, series: Sequence[Series]) -> list[Markup]:
    named = [(one, ends[-1]) for one in series if one.label and (ends := [p for p in one.points if p.y is not None])]
    places = spread_out([y.at(end.y or 0.0) for _, end in named], _LINE, y.end, y.start)
    parts = []
    for (one, end), place in zip(named, places, strict=True):
        start = x.at(end.x)
        parts.append(line(start + 6, y.at(end.y or 0.0), x.end + 8, place, "leader"))
        parts.append(text(x.end + 12, place + 4, one.label, f"label{' strong' if one.strong else ''}"))
    return parts


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: _Box) -> float:
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return across * down if across > 0 and down > 0 else 0.0


def scatter(
    title: str,
    description: str,
    x: tuple[Placed, str],
    y: tuple[Placed, str],
    points: Sequence[tuple[Point, str, str, str]],
    size: tuple[float, float],
) -> Markup:
    """Points (point, shape, colour, name), each name where it covers least: beside, above or below its point."""
    parts = [*x_frame(x[0], y[0].end, y[0].start, x[1]), *y_frame(y[0], x[0].start, x[0].end, y[1])]
    places = [(x[0].at(point.x), y[0].at(point.y or 0.0)) for point, *_ in points]
    taken = [_Box(px - 6, py - 6, px + 6, py + 6) for px, py in places]
    edge = _Box(x[0].start, y[0].end - 8, size[0], y[0].start)
    dots: list[Markup] = []
    for (px, py), (point, shape, colour, name) in zip(places, points, strict=True):
        width = CHARACTER * len(name)
        choices = [_Box(left, py + down - 7, left + width, py + down + 7)
                   for down in (0, -13, 13, -24, 24, -36, 36) for left in (px + 10, px - 10 - width, px - width / 2)
                   if down or left != px - width / 2]  # fmt: skip
        box = min(choices, key=lambda box: _covered(box, taken, edge))
        taken.append(box)
        middle = (box.top + box.bottom) / 2
        if abs(middle - py) > 14:
            near = min(max(px, box.left), box.right)
            parts.append(line(px, py, near, middle, "leader"))
        parts.append(text(box.left, middle + 4, name, "label"))
        dots.append(dot(shape, colour, px, py, point.title))
    # The first on top.
    return plot(title, description, *size, [*parts, *reversed(dots)])


def _covered(box: _Box, taken: Sequence[_Box], edge: _Box) -> float:
    area = (box.right - box.left) * (box.bottom - box.top)
    return sum(map(box.overlap, taken)) + 3 * (area - box.overlap(edge))
