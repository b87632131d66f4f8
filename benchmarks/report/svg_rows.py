"""Plots with one row per name: dots with ranges, ratios with intervals, and stacked bars. All lie on their side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fourphase.benchmarks.report.svg_base import Placed, dot, linear_axis, log_axis, plot, text_width, x_frame
from fourphase.export.report_markup import Markup, element
from fourphase.export.report_svg import line, text

__all__ = ["HALF", "WIDE", "Bar", "Dot", "Estimate", "bar_rows", "dot_rows", "forest"]

WIDE, HALF = 900.0, 440.0
_TOP = 14.0
#: Characters of a row's name; what is longer is cut, the table has it in full.
_LONGEST = 40


@dataclass(frozen=True)
class Dot:
    """One value in a row.

    Attributes:
        low, high: ends of its range.
        tick: a limit to be seen beside it.
        ring: it is the best of its row.
    """

    row: str
    value: float
    colour: str
    shape: str
    title: str
    low: float | None = None
    high: float | None = None
    tick: float | None = None
    ring: bool = False


@dataclass(frozen=True)
class Estimate:
    """A ratio with its interval. `text` stands at the right; without `value` it is refused, and the text says so."""

    row: str
    value: float | None
    low: float | None
    high: float | None
    text: str
    colour: str
    title: str


@dataclass(frozen=True)
class Bar:
    """One part of a row's bar."""

    row: str
    part: str
    value: float
    colour: str
    title: str


def dot_rows(
    title: str,
    description: str,
    label: str,
    dots: Sequence[Dot],
    *,
    strong: str = "",
    notes: Mapping[str, str] = MappingProxyType({}),
    tick_label: Callable[[float], str] = lambda value: f"{value:,.10g}",
) -> Markup:
    """Rows in the order of the dots, on a logarithmic axis; a note at each row's right."""
    rows = list(dict.fromkeys(one.row for one in dots))
    left, right = 20 + text_width(map(_short, rows)), WIDE - 20 - 1.08 * text_width(notes.values())
    found = [value for one in dots for value in (one.value, one.low, one.high, one.tick) if value]
    axis = log_axis(found, left, right, tick_label)
    members = {row: [one for one in dots if one.row == row] for row in rows}
    heights = {row: max(24.0, 6.0 * len(group) + 10) for row, group in members.items()}
    bottom = _TOP + sum(heights.values())
    parts, y = x_frame(axis, _TOP, bottom, label), _TOP
    for index, (row, group) in enumerate(members.items()):
        middle = y + heights[row] / 2
        if index % 2 == 0:
            parts.insert(0, _band(y, heights[row], WIDE))
        parts.append(text(left - 14, middle + 4, _short(row), "strong" if row == strong else "ink", "end"))
        parts.append(text(right + 12, middle + 4, notes.get(row, ""), "strong" if row == strong else "ink"))
        for place, one in enumerate(group):
            height = middle + 6.0 * (place - (len(group) - 1) / 2)
            if one.tick:
                parts.append(line(axis.at(one.tick), height - 4, axis.at(one.tick), height + 4, "limit"))
            if one.low and one.high:
                parts.append(line(axis.at(one.low), height, axis.at(one.high), height, f"range c-{one.colour}"))
            if one.ring:
                parts.append(dot("ring", "none", axis.at(one.value), height))
            parts.append(dot(one.shape, one.colour, axis.at(one.value), height, one.title))
        y += heights[row]
    return plot(title, description, WIDE, bottom + 42, parts)


def forest(
    title: str,
    description: str,
    label: str,
    estimates: Sequence[Estimate],
    *,
    strong: str = "",
    width: float = HALF,
    ratio: bool = True,
    line_at: float | None = None,
) -> Markup:
    """Estimates with intervals; a refused one is a dashed interval without a mark.

    Args:
        ratio: on a logarithmic axis with 1 as a line; else shares or differences on a linear one.
        line_at: a line on the linear axis.
    """
    if ratio:
        line_at = 1.0
    # A wide one has room for long names.
    longest = _LONGEST if width <= HALF else 2 * _LONGEST
    left = 16 + text_width(_short(one.row, longest) for one in estimates)
    right = width - 12 - text_width(one.text for one in estimates)
    ends = [end for one in estimates for end in (one.value, one.low, one.high) if end is not None]
    ends += [] if line_at is None else [line_at]
    axis: Placed = linear_axis(ends, left, right)
    if ratio:
        axis = log_axis(ends, left, right, lambda value: f"{value:g}×", room=1.08)
    step = 20.0
    bottom = _TOP + step * len(estimates)
    parts = [_band(_TOP + step * index, step, width) for index in range(0, len(estimates), 2)]
    parts += x_frame(axis, _TOP, bottom, label)
    parts += [] if line_at is None else [line(axis.at(line_at), _TOP - 6, axis.at(line_at), bottom, "limit")]
    for index, one in enumerate(estimates):
        y = _TOP + step * (index + 0.5)
        refused = one.value is None
        parts.append(text(left - 10, y + 4, _short(one.row, longest), "strong" if one.row == strong else "ink", "end"))
        parts.append(text(width - 4, y + 4, one.text, "soft" if refused else "ink", "end"))
        if one.low is not None and one.high is not None:
            kind = f"range c-{one.colour}" + (" dashed" if refused else "")
            parts.append(line(axis.at(one.low), y, axis.at(one.high), y, kind))
        if one.value is not None:
            parts.append(dot("circle", one.colour, axis.at(one.value), y, one.title))
    return plot(title, description, width, bottom + 42, parts)


def bar_rows(
    title: str, description: str, label: str, bars: Sequence[Bar], totals: Mapping[str, str], strong: str = ""
) -> Markup:
    """Stacked bars from 0; a part says its name and value where there is room, the total stands at the end."""
    rows = list(dict.fromkeys(bar.row for bar in bars))
    sums = {row: sum(bar.value for bar in bars if bar.row == row) for row in rows}
    left, right = 20 + text_width(map(_short, rows)), WIDE - 20 - text_width(totals.values())
    axis = linear_axis([0.0, *sums.values()], left, right)
    step, height = 34.0, 22.0
    bottom = _TOP + step * len(rows)
    parts = x_frame(axis, _TOP, bottom, label)
    for index, row in enumerate(rows):
        y, sofar = _TOP + step * index + (step - height) / 2, 0.0
        parts.append(text(left - 14, y + height / 2 + 4, _short(row), "strong" if row == strong else "ink", "end"))
        for bar in (bar for bar in bars if bar.row == row):
            start, end = axis.at(sofar), axis.at(sofar + bar.value)
            parts.append(_bar(start, end, y, height, bar))
            if text_width([bar.part]) + 8 < end - start:
                parts.append(text((start + end) / 2, y + height / 2 + 4, bar.part, "inside", "middle"))
            sofar += bar.value
        parts.append(text(axis.at(sofar) + 8, y + height / 2 + 4, totals.get(row, ""), "strong"))
    return plot(title, description, WIDE, bottom + 42, parts)


def _bar(start: float, end: float, y: float, height: float, bar: Bar) -> Markup:
    return element(
        "rect", element("title", bar.title), x=f"{start:.1f}", y=f"{y:.1f}", width=f"{max(end - start - 1, 0.5):.1f}",
        height=f"{height:g}", rx=2, class_=f"c-{bar.colour}",
    )  # fmt: skip


def _short(name: str, longest: int = _LONGEST) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _band(y: float, height: float, width: float) -> Markup:
    return element("rect", x=0, y=f"{y:.1f}", width=f"{width:g}", height=f"{height:.1f}", class_="band")
