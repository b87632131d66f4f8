"""The plots of a bundle's report: ladder, parity and ranges per block, HU histograms, a search's steps, split memory.

What a plot says in words is in `report_sections`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fourphase.export.report_markup import Markup, Row, element
from fourphase.export.report_svg import (
    BEYOND,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Spread,
    dot_plot,
    frame,
    line,
    make_axis,
    mark,
    svg,
    text,
)
from fourphase.export.report_words import bytes_text, sqnr_of, times

__all__ = [
    "histograms_svg",
    "kind_of",
    "ladder_svg",
    "memory_svg",
    "parity_svg",
    "ranges_svg",
    "search_svg",
]


def ladder_svg(ladder: Sequence[Row]) -> Markup:
    """SQNR per kind of block and precision: the worst phase as a mark, the range over the phases as a bar."""
    series = {step["precision"]: _spreads(step["blocks"], sqnr_of, min) for step in ladder if step.get("blocks")}
    return dot_plot("SQNR per block", "SQNR against FP32, dB", series, beyond=("not finite", "equal"))


def parity_svg(parity: Row) -> Markup:
    """Relative error per kind of block, logarithmic, with what is allowed."""
    rows = parity["rows"]
    spreads = _spreads(rows, lambda row: _or_infinite(row["relative"]), max, lambda row: not row["passed"])
    allowed = {kind_of(row["block"]): float(row["allowed"]) for row in rows}
    label = "error relative to the largest value"
    return dot_plot("FP32 parity per block", label, {"fp32": spreads}, log=True, limits=allowed, limit_name="allowed")


def ranges_svg(ranges: Row) -> Markup:
    """Largest magnitude per kind of block, logarithmic, with FP16's limit; the headroom as a number at the right."""
    spreads = _spreads(
        ranges["blocks"], lambda row: _or_infinite(row["peak"]), max, lambda row: bool(row.get("overflows"))
    )
    limit = float(ranges["fp16_max"])
    headroom = {kind: times(limit / spread.worst) for kind, spread in spreads.items() if 0 < spread.worst < math.inf}
    return dot_plot(
        "Largest magnitude per block", "largest magnitude", {"fp16": spreads}, log=True,
        limits=dict.fromkeys(spreads, limit), limit_name=f"{limit:,.0f}", notes=headroom,
    )  # fmt: skip


def histograms_svg(histograms: Row) -> Markup:
    """One histogram of HU per phase, each to its own height, with its median."""
    phases = {phase: np.asarray(counts, float) for phase, counts in histograms["phases"].items() if any(counts)}
    edges = np.linspace(histograms["low"], histograms["high"], len(next(iter(phases.values()))) + 1)
    shown = np.flatnonzero(np.any([counts >= counts.sum() / 1000 for counts in phases.values()], axis=0))
    first, last = int(shown[0]), int(shown[-1]) + 1
    axis = make_axis((float(edges[first]), float(edges[last])), LEFT - 60, RIGHT - 20)
    height, parts = 52.0, []
    for index, (phase, counts) in enumerate(phases.items()):
        floor = TOP + height * (index + 1) - 8
        steps = "".join(
            f"V{floor - count / counts.max() * (height - 14):.1f}H{axis.at(edge):.1f}"
            for count, edge in zip(counts[first:last], edges[first + 1 : last + 1], strict=True)
        )
        outline = f"M{axis.at(float(edges[first])):.1f} {floor:.1f}{steps}V{floor:.1f}Z"
        median = float(np.interp(counts.sum() / 2, np.concatenate([[0], np.cumsum(counts)]), edges))
        place = axis.at(median)
        parts += [
            element("path", d=outline, class_="fp16", fill_opacity=0.3),
            line(place, floor - height + 14, place, floor, "limit"),
            text(LEFT - 70, floor - 4, phase, anchor="end"),
            text(WIDTH - 2, floor - 4, f"median {median:.0f} HU", anchor="end"),
        ]
    bottom = TOP + height * len(phases) - 8
    return svg("HU histograms per phase", bottom + 38, [*frame(axis, bottom, "HU"), *parts])


def search_svg(search: Row) -> Markup:
    """The search's steps, cost relative to FP32 against SQNR: kept ones as a path of dots, refused ones as crosses."""
    steps, bottom = search["steps"], TOP + 250.0
    values = [sqnr_of(step) for step in steps]
    chosen = sqnr_of(search["verdict"])
    x = Axis(0, 1, LEFT - 56, RIGHT + 32, 0.25)
    y = make_axis([*values, chosen], bottom - BEYOND, TOP + BEYOND)
    points = [(x.at(step["cost"]), y.at(value)) for step, value in zip(steps, values, strict=True)]
    kept = [point for point, step in zip(points, steps, strict=True) if step["kept"]]
    parts = [*frame(x, bottom, "cost relative to FP32"), text(2, 12, "SQNR of the logits, dB", "soft")]
    edges = [
        (edge, name) for edge, name in ((math.inf, "equal"), (-math.inf, "not finite")) if edge in [*values, chosen]
    ]
    for value, label in (*y.ticks, *edges):
        parts += [
            line(x.start, y.at(value), x.end, y.at(value)),
            text(x.start - 6, y.at(value) + 4, label, "soft", "end"),
        ]
    parts.append(element("polyline", points=" ".join(f"{px:.1f},{py:.1f}" for px, py in kept), class_="fp16"))
    for point, step, value in zip(points, steps, values, strict=True):
        title = f"{step['group']} {step['precision']}: cost {step['cost']:.3f}, {value:.1f} dB, {step['flips']} flips"
        parts.append(mark("fp16" if step["kept"] else "failed", *point, title))
    place = x.at(search["cost_relative_to_fp32"]), y.at(chosen)
    parts += [mark("chosen", *place, "the chosen policy"), text(place[0] + 12, place[1] + 4, "chosen")]
    return svg("Cost and SQNR of the search's steps", bottom + 38, parts)


def memory_svg(memory: Row) -> Markup:
    """Peak activations as bars: the whole model, the trunk with the features it leaves behind, the tail."""
    kept = int(memory["features_bytes"])
    bars = {"whole": ("fp32", 0), "trunk": ("fp16", kept), "tail": ("fp16", 0)}
    peaks = {name: int(memory[name]["peak_bytes"]) for name in bars}
    axis = make_axis([0.0, *((peaks[name] + bars[name][1]) / 1e6 for name in bars)], LEFT, RIGHT)
    height, parts = 26.0, []
    for index, (name, (kind, more)) in enumerate(bars.items()):
        y = TOP + height * index + 4
        parts += [
            text(LEFT - 8, y + 13, name, anchor="end"),
            _bar(axis, (0, peaks[name]), y, kind, f"{name}: {bytes_text(peaks[name])}"),
            text(WIDTH - 2, y + 13, bytes_text(peaks[name] + more), anchor="end"),
        ]
        if more:
            ends = (peaks[name], peaks[name] + more)
            parts.append(_bar(axis, ends, y, kind, f"features: {bytes_text(more)}", opacity=0.35))
    bottom = TOP + height * len(bars)
    return svg("Activation memory, whole and split", bottom + 38, [*frame(axis, bottom, "activations, MB"), *parts])


def _bar(axis: Axis, ends: tuple[int, int], y: float, kind: str, title: str, opacity: float = 0.8) -> Markup:
    start, end = (axis.at(value / 1e6) for value in ends)
    return element(
        "rect", element("title", title), x=f"{start:.1f}", y=f"{y:.1f}", width=f"{end - start:.1f}", height=18,
        class_=kind, fill_opacity=opacity,
    )  # fmt: skip


def kind_of(block: str) -> str:
    """`stage1` of `stage1/NC`: a block in all phases."""
    return block.partition("/")[0] or "(no block)"


def _spreads(
    rows: Sequence[Row],
    value_of: Callable[[Row], float],
    worst_of: Callable[..., Row],
    failed: Callable[[Row], bool] = lambda row: False,
) -> dict[str, Spread]:
    """Kind of block -> its spread, in the order of the rows. `worst_of` is min or max."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(kind_of(row["block"]), []).append(row)
    best_of = max if worst_of is min else min
    return {
        kind: Spread(
            value_of(worst := worst_of(members, key=value_of)),
            value_of(best_of(members, key=value_of)),
            worst["block"],
            any(map(failed, members)),
        )
        for kind, members in groups.items()
    }


def _or_infinite(number: float | None) -> float:
    """JSON has no infinity and says null."""
    return math.inf if number is None else float(number)
