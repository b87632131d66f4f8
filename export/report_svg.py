"""What the plots of the report are drawn with: axes, marks that differ in shape and colour, dots per kind of block.

A plot carries its style, for light, dark and paper, so that it is also whole as a file of its own. Which numbers are
drawn is for `report_plots`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fourphase.export.report_markup import Markup, element

__all__ = [
    "BEYOND",
    "LEFT",
    "PALETTE",
    "RIGHT",
    "TOP",
    "WIDTH",
    "Axis",
    "Spread",
    "dot_plot",
    "frame",
    "key_svg",
    "line",
    "make_axis",
    "mark",
    "svg",
    "text",
]

WIDTH, LEFT, RIGHT = 440.0, 116.0, 368.0


_ROW, TOP = 17.0, 22.0


#: How far beyond the axis lies what has no place on it: equal, not finite, zero on a logarithmic axis.
BEYOND = 30.0


_SHAPES = {
    "fp32": "M-3.5-3.5H3.5V3.5H-3.5Z",
    "fp16": "M0-4A4 4 0 1 1 0 4A4 4 0 1 1 0-4Z",
    "int8": "M0-5L5 0L0 5L-5 0Z",
    "failed": "M-4-4L4 4M4-4L-4 4",
    "chosen": "M0-8A8 8 0 1 1 0 8A8 8 0 1 1 0-8Z",
}


#: Colours by name, for plots and page; paper is always light.
PALETTE = """
:root{color-scheme:light dark;--ink:#1b2430;--soft:#55606d;--line:#d8dde3;--fp32:#5d6875;--fp16:#0067b1;--int8:#b34700;
--failed:#c01622;--good:#18703a}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e4e9ee;--soft:#a0acb8;--line:#2c353e;--fp32:#b3bdc7;
--fp16:#62b4f4;--int8:#ff9d52;--failed:#ff7b78;--good:#63cc82}}
"""


_STYLE = """
.plot text{font:11px system-ui,sans-serif;fill:var(--ink)}.plot .soft{fill:var(--soft)}.plot path{stroke-width:1.6}
.plot line{stroke:var(--line)}.plot .limit{stroke:var(--ink);stroke-width:1.5}.plot polyline{fill:none;stroke-width:1.2}
.plot .range{stroke-width:3;stroke-opacity:.4}.plot .chosen{fill:none;stroke:var(--ink)}
.fp32{fill:var(--fp32);stroke:var(--fp32)}.fp16{fill:var(--fp16);stroke:var(--fp16)}
.int8{fill:var(--int8);stroke:var(--int8)}.failed{stroke:var(--failed)}
.plot line.fp32{stroke:var(--fp32)}.plot line.fp16{stroke:var(--fp16)}.plot line.int8{stroke:var(--int8)}
"""


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """Values to positions: `low` lies at `start`, `high` at `end`; a tick every `step` units, or decades if `log`."""

    low: float
    high: float
    start: float
    end: float
    step: float
    log: bool = False

    def at(self, value: float) -> float:
        beyond = math.copysign(BEYOND, self.end - self.start)
        if value == math.inf:
            return self.end + beyond
        if value == -math.inf or (self.log and value <= 0):
            return self.start - beyond
        low, high, place = (math.log10(number) if self.log else number for number in (self.low, self.high, value))
        return self.start + (place - low) / (high - low) * (self.end - self.start)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(value, label) from low to high."""
        if self.log:
            decades = range(round(math.log10(self.low)), round(math.log10(self.high)) + 1, round(self.step))
            return [(10.0**decade, "10" + str(decade).translate(_SUPERSCRIPT)) for decade in decades]
        values = [self.low + self.step * index for index in range(round((self.high - self.low) / self.step) + 1)]
        return [(value, f"{value:g}") for value in values]


@dataclass(frozen=True)
class Spread:
    """A kind of block over its phases: the worst value and the best, the block with the worst, whether one failed."""

    worst: float
    best: float
    where: str
    failed: bool


def make_axis(values: Iterable[float], start: float, end: float, *, log: bool = False) -> Axis:
    """The smallest axis with round ends that holds all values that have a place on it."""
    placed = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
    low, high = min(placed), max(placed)
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        last = max(last, first + 1)
        return Axis(10.0**first, 10.0**last, start, end, step=1 + (last - first) // 8, log=True)
    rough = max((high - low) / 7, 1e-9) if high > low else 1.0
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(size * unit for size in (1, 2, 5, 10) if size * unit >= rough * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    return Axis(first * step, max(last, first + 1) * step, start, end, step)


def key_svg(name: str) -> Markup:
    """A mark by itself, for a legend in text."""
    return element("svg", mark(name, 8, 8), viewBox="0 0 16 16", class_="key", aria_hidden="true")


def dot_plot(
    title: str,
    label: str,
    series: Mapping[str, Mapping[str, Spread]],
    *,
    log: bool = False,
    beyond: tuple[str, str] = ("0", "not finite"),
    limits: Mapping[str, float] = MappingProxyType({}),
    limit_name: str = "",
    notes: Mapping[str, str] = MappingProxyType({}),
) -> Markup:
    """One row per kind of block, one mark per series in it; `beyond` names what lies before and after the axis."""
    kinds = list(dict.fromkeys(kind for spreads in series.values() for kind in spreads))
    found = [
        value for spreads in series.values() for spread in spreads.values() for value in (spread.worst, spread.best)
    ]
    axis = make_axis([*found, *limits.values()], LEFT, RIGHT, log=log)
    bottom = TOP + _ROW * len(kinds)
    parts = frame(axis, bottom, label)
    for name, edge in zip(beyond, (-math.inf, math.inf), strict=True):
        if axis.at(edge) in {axis.at(value) for value in found}:
            parts.append(line(axis.at(edge), bottom, axis.at(edge), bottom + 20))
            parts.append(text(axis.at(edge), bottom + 32, name, "soft", "middle"))
    if limits:
        parts.append(text(axis.at(next(iter(limits.values()))), 14, limit_name, anchor="middle"))
    for index, kind in enumerate(kinds):
        y = TOP + _ROW * (index + 0.5)
        parts += [text(LEFT - BEYOND - 8, y + 4, kind, anchor="end"), line(LEFT, y, RIGHT, y)]
        if kind in limits:
            parts.append(line(axis.at(limits[kind]), y - _ROW / 2, axis.at(limits[kind]), y + _ROW / 2, "limit"))
        if kind in notes:
            parts.append(text(WIDTH - 2, y + 4, notes[kind], "soft", "end"))
        for place, (name, spreads) in enumerate(series.items()):
            if kind in spreads:
                parts += _spread(axis, y + (place - (len(series) - 1) / 2) * 4, name, kind, spreads[kind])
    return svg(title, bottom + 38, parts)


def _spread(axis: Axis, y: float, name: str, kind: str, spread: Spread) -> list[Markup]:
    worst, best = axis.at(spread.worst), axis.at(spread.best)
    shape = "failed" if spread.failed else name
    title = f"{kind}, {name}: worst {spread.worst:.4g} ({spread.where}), best {spread.best:.4g}"
    return [line(worst, y, best, y, f"range {name}"), mark(shape, worst, y, title)]


def frame(axis: Axis, bottom: float, label: str) -> list[Markup]:
    """A horizontal axis: a line and a number per tick, and what is measured in which unit."""
    parts = [text((axis.start + axis.end) / 2, bottom + 32, label, "soft", "middle")]
    for value, name in axis.ticks:
        x = axis.at(value)
        parts += [line(x, TOP - 2, x, bottom + 3), text(x, bottom + 15, name, "soft", "middle")]
    return parts


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> Markup:
    return element("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=kind)


def text(x: float, y: float, content: str, kind: str = "ink", anchor: str = "start") -> Markup:
    return element("text", content, x=f"{x:.1f}", y=f"{y:.1f}", class_=kind, text_anchor=anchor)


def mark(name: str, x: float, y: float, title: str = "") -> Markup:
    inside = [element("title", title)] if title else []
    return element("path", *inside, d=_SHAPES[name], transform=f"translate({x:.1f} {y:.1f})", class_=name)


def svg(title: str, height: float, parts: Iterable[Markup]) -> Markup:
    return element(
        "svg", element("style", Markup(PALETTE + _STYLE)), *parts, xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label=title, class_="plot",
    )  # fmt: skip
