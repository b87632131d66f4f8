"""Draws what `fp-bench latency` measured: a panel per network, a bar per way, the limit as a mark."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourphase.benchmarks.latency.tables import REHEARSAL, Devices, fastest_by_batch, other_devices, way_of
from fourphase.runtime.atomic import check_file_target, write_file
from fourphase.runtime.errors import UsageError

__all__ = ["plot_latency", "require_plot"]

_INCHES_PER_BAR, _INCHES_PER_PANEL = 0.24, 0.75


def require_plot(path: Path) -> None:
    """Before minutes are spent, for every benchmark that draws: that it is a .png, can be written, and be drawn.

    Raises: UsageError (2), OutputNotWritable (30); ModuleNotFoundError without matplotlib (the extra is named).
    """
    import matplotlib  # noqa: F401

    if path.suffix.lower() != ".png":
        raise UsageError(f"{path.name} is not a name of a PNG", "give --plot FILE.png", key="suffix")
    check_file_target(path)


def plot_latency(result: Mapping[str, Any], path: Path) -> None:
    """Writes `path` as a PNG.

    Raises: ModuleNotFoundError without matplotlib (the command names the extra), OutputNotWritable.
    """
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if row["statistics"]]
    names = [name for name in result["networks"] if any(row["network"] == name for row in rows)]
    counts = [sum(row["network"] == name for row in rows) for name in names] or [1]
    height = 1.2 + sum(_INCHES_PER_PANEL + _INCHES_PER_BAR * count for count in counts)
    figure = Figure(figsize=(9, height), layout="constrained")
    panels = figure.subplots(len(counts), 1, sharex=True, squeeze=False, height_ratios=[count + 1 for count in counts])
    for axes, name in zip(panels[:, 0], names, strict=False):
        _draw(axes, name, [row for row in rows if row["network"] == name], other_devices(result))
    panels[-1, 0].set_xlabel("median latency in ms; line: fastest to 90 %; red mark: the limit of this machine")
    title = f"{result['machine']['cpu']['name']}, {result['settings']['threads']} threads"
    figure.suptitle(f"{title}\n{REHEARSAL}" if result["quick"] else title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(path, buffer.getvalue())


def _draw(axes: Any, name: str, rows: list[Mapping[str, Any]], devices: Devices) -> None:
    latencies = [row["statistics"]["latency_ms"] for row in rows]
    medians = [one["p50"] for one in latencies]
    fastest = fastest_by_batch(rows)
    best = [row["status"] == "ok" and one == fastest[row["batch"]] for row, one in zip(rows, medians, strict=True)]
    axes.barh(range(len(rows)), medians, color=["C0" if one else "0.75" for one in best], height=0.7)
    for place, (row, one) in enumerate(zip(rows, latencies, strict=True)):
        axes.plot([one["min"], one["p90"]], [place, place], color="0.3", linewidth=1)
        if row["limit"]:
            axes.plot([row["limit"]["limit_ms"]], [place], marker="|", markersize=10, color="C3")
        axes.annotate(f" {one['p50']:.4g}", (one["p90"], place), va="center", fontsize=8)
    labels = [way_of(row, devices) + ("" if row["status"] == "ok" else f" ({row['status']})") for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set_title(name, loc="left", fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
