"""Draws the steps of warm pipelines as stacked bars, one PNG. Needs matplotlib (extra [report])."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fourphase.benchmarks.end_to_end.table import STEPS
from fourphase.runtime.atomic import write_file

__all__ = ["plot_steps"]

#: A share of the longest bar below which a step's number would not fit into it.
_LEGIBLE = 0.06


def plot_steps(result: Mapping[str, Any], path: Path) -> None:
    """One bar per pipeline that was measured, in seconds; writes `path` as a PNG.

    Args:
        result: of `fourphase.end-to-end/1`.

    Raises: OutputNotWritable (30).
    """
    from matplotlib.figure import Figure

    rows = {name: row for name, row in result["pipelines"].items() if row["warm"]}
    figure = Figure(figsize=(10, 1.6 + 0.5 * max(len(rows), 1)), layout="constrained")
    axes = figure.subplots()
    _draw(axes, [row["warm"] for row in rows.values()])
    _label(axes, rows)
    rehearsal = "REHEARSAL, no measurement: " if result["quick"] else ""
    figure.suptitle(
        f"{rehearsal}DICOM to result, warm, {result['study']['what']}; {result['machine']['cpu']['name']}, "
        f"{result['settings']['threads']} threads",
        fontsize=10,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(path, buffer.getvalue())


def _draw(axes: Any, warm: Sequence[Mapping[str, Any]]) -> None:
    """The steps' medians as bars; the text behind them is the median of the totals, which need not be their sum."""
    places = range(len(warm))
    ends = [0.0] * len(warm)
    longest = max((one["total_ms"]["p50"] / 1e3 for one in warm), default=1.0)
    for index, step in enumerate(STEPS):
        widths = [max(one["steps_ms"].get(step, 0.0), 0.0) / 1e3 for one in warm]
        bars = axes.barh(places, widths, left=ends, height=0.7, label=step, color=f"C{index}")
        texts = [f"{width:.2f}" if width > _LEGIBLE * longest else "" for width in widths]
        axes.bar_label(bars, texts, label_type="center", fontsize=8, color="white")
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    for place, (end, one) in enumerate(zip(ends, warm, strict=True)):
        axes.text(end, place, f" {one['total_ms']['p50'] / 1e3:.2f} s", va="center", fontsize=8)


def _label(axes: Any, rows: Mapping[str, Mapping[str, Any]]) -> None:
    # A failed pipeline was measured, but computes something else.
    names = [name if row["status"] == "ok" else f"{name} ({row['status']})" for name, row in rows.items()]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set(xlabel="seconds per study, medians of the steps")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
