"""What the plots of a benchmark report are drawn with: logarithmic axes, frames, marks by shape and colour, labels.

The page carries colours and style (`page_style`). Which numbers are drawn is for the `plots_` modules.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fourphase.export.report_markup import Markup, element
from fourphase.export.report_svg import line, make_axis, text

__all__ = [
    "CHARACTER",
    "LogAxis",
    "Placed",
    "dot",
    "key",
    "legend",
    "linear_axis",
    "log_axis",
    "plot",
    "spread_out",
    "text_width",
    "x_frame",
    "y_frame",
]

#: Width of an average character of a label, in the plots' units.
CHARACTER = 7.2
_SHAPES = {
    "square": "M-4-4H4V4H-4Z",
    "circle": "M0-4.5A4.5 4.5 0 1 1 0 4.5A4.5 4.5 0 1 1 0-4.5Z",
    "diamond": "M0-5.8L5.8 0L0 5.8L-5.8 0Z",
    "triangle": "M0-5.2L5 4.2L-5 4.2Z",
    "ring": "M0-9A9 9 0 1 1 0 9A9 9 0 1 1 0-9Z",
}
#: Round numbers for ticks, from many to few: the first set whose labels have room is taken.
_MANTISSAS: Sequence[Sequence[float]] = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
_FEWEST_TICKS = 3
#: Between labels that lie side by side, and over each other.
_ROOM, _ROW = 10.0, 20.0


class Placed(Protocol):
    """An axis: positions of values, and its ticks."""

    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    @property
    def ticks(self) -> list[tuple[float, str]]: ...
    def at(self, value: float) -> float: ...


@dataclass(frozen=True)
class LogAxis:
    """Values above 0 to positions: `low` lies at `start`, `high` at `end`; ticks are round numbers between them.

    Attributes:
        marks: values to have ticks at instead.
    """

    low: float
    high: float
    start: float
    end: float
    label: Callable[[float], str]
    marks: tuple[float, ...] = ()

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        even = [value for value, _ in make_axis((self.low, self.high), 0, 1).ticks if self.low <= value <= self.high]
        rounds = [self._round_numbers(mantissas) for mantissas in _MANTISSAS]
        fine = [list(self.marks), list(self.marks[::2])] if self.marks else []
        sets = [*fine, *(found for found in rounds if len(found) >= _FEWEST_TICKS), even]
        fitting = [found for found in sets if self._has_room(found)]
        chosen = fitting[0] if fitting else sets[-1][:: max(len(sets[-1]) - 1, 1)]
        return [(value, self.label(value)) for value in chosen]

    def _has_room(self, values: Sequence[float]) -> bool:
        """Whether no two labels touch: side by side on a lying axis, over each other on an upright one."""
        places = sorted((abs(self.at(value) - self.start), text_width([self.label(value)])) for value in values)
        upright = self.end < self.start
        return all(
            after[0] - before[0] >= (_ROW if upright else (before[1] + after[1]) / 2 + _ROOM)
            for before, after in itertools.pairwise(places)
        )

    def _round_numbers(self, mantissas: Sequence[float]) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        numbers = (float(f"{mantissa}e{decade}") for decade in decades for mantissa in mantissas)
        return [number for number in numbers if self.low <= number <= self.high]


def _plain(value: float) -> str:
    return f"{value:,.10g}"


def log_axis(
    values: Iterable[float],
    start: float,
    end: float,
    label: Callable[[float], str] = _plain,
    room: float = 1.12,
    marks: Iterable[float] = (),
) -> LogAxis:
    """An axis that holds all values above 0, with a little room at both ends."""
    placed = [value for value in values if 0 < value < math.inf] or [1.0]
    return LogAxis(min(placed) / room, max(placed) * room, start, end, label, tuple(sorted(set(marks))))


def linear_axis(values: Iterable[float], start: float, end: float) -> Placed:
    """The smallest axis with round ends that holds all values."""
    return make_axis(values, start, end)


def x_frame(axis: Placed, top: float, bottom: float, label: str) -> list[Markup]:
    """A line and a number per tick, and what is measured in which unit."""
    parts = []
    for value, name in axis.ticks:
        x = axis.at(value)
        parts += [line(x, top, x, bottom + 4), text(x, bottom + 17, name, "soft", "middle")]
    return [*parts, text((axis.start + axis.end) / 2, bottom + 35, label, "soft", "middle")]


def y_frame(axis: Placed, left: float, right: float, label: str) -> list[Markup]:
    """As `x_frame`, for an upright axis; the label stands above it."""
    parts = []
    for value, name in axis.ticks:
        y = axis.at(value)
        parts += [line(left, y, right, y), text(left - 6, y + 4, name, "soft", "end")]
    return [*parts, text(2, axis.end - 10, label, "soft")]


def dot(shape: str, colour: str, x: float, y: float, title: str = "") -> Markup:
    inside = [element("title", title)] if title else []
    return element("path", *inside, d=_SHAPES[shape], transform=f"translate({x:.1f} {y:.1f})",
                   class_=f"{shape} c-{colour}")  # fmt: skip


def key(shape: str, colour: str) -> Markup:
    """A mark by itself, for a legend in text."""
    return element("svg", dot(shape, colour, 8, 8), viewBox="0 0 16 16", class_="key", aria_hidden="true")


def legend(entries: Iterable[tuple[str, str, str]]) -> Markup:
    """(shape, colour, words), in one line that may wrap."""
    return element("p", *(element("span", key(shape, colour), words) for shape, colour, words in entries),
                   class_="legend")  # fmt: skip


def plot(title: str, description: str, width: float, height: float, parts: Iterable[Markup]) -> Markup:
    """A whole plot, with its title and description for who cannot see it."""
    kind = "wide-plot" if width > 600 else "half-plot"
    drawn = element(
        "svg", element("desc", description), *parts, viewBox=f"0 0 {width:g} {height:g}", role="img",
        aria_label=f"{title}. {description}", class_=f"plot {kind}",
    )  # fmt: skip
    return element("div", drawn, class_="scroll")


def text_width(words: Iterable[str]) -> float:
    """Of the longest of them, generously."""
    return CHARACTER * max(map(len, words), default=0)


def spread_out(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places moved apart by at least `gap`, within low and high, in the same order."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = list(places)
    previous = low - gap
    for index in order:
        moved[index] = max(moved[index], previous + gap)
        previous = moved[index]
    following = high + gap
    for index in reversed(order):
        moved[index] = min(moved[index], following - gap)
        following = moved[index]
    return moved
