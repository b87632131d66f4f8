"""Draws what `fp-bench accuracy` and `calibration` measured, one PNG each. Needs matplotlib (extra [report])."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourphase.benchmarks.accuracy.accuracy_bench import AccuracyResult
from fourphase.benchmarks.accuracy.judgement import Judgement
from fourphase.calibration.metrics import scores_of
from fourphase.runtime.atomic import write_file

if TYPE_CHECKING:
    from fourphase.benchmarks.accuracy.calibration_bench import CalibrationResult

__all__ = ["draw_reliability", "draw_roc", "new_figure", "plot_accuracy", "plot_calibration", "write_figure"]

#: One per row, with colour: curves lie on each other where a precision loses nothing.
_LINES, _MARKERS = ("-", "--", "-.", ":"), ("o", "x", "+", "1")


def plot_accuracy(result: AccuracyResult, path: Path) -> None:
    """ROC and calibration curves of all rows, and every lowered row's scores over FP32's; writes `path` as a PNG.

    Raises: ModuleNotFoundError without matplotlib (the command names the extra), OutputNotWritable.
    """
    figure = new_figure(15, 4.8)
    curves, reliability, scatter = figure.subplots(1, 3)
    names = [f"{row.name}, AUC {row.judgement.figures['auc'].value:.4f}" for row in result.rows]
    judgements = [row.judgement for row in result.rows]
    draw_roc(curves, dict(zip(names, judgements, strict=True)), result.bundle.classes[1])
    named = [f"{row.name}, ECE {100 * row.judgement.ece.value:.1f} %" for row in result.rows]
    draw_reliability(reliability, dict(zip(named, judgements, strict=True)), result.bundle.classes[1])
    curves.legend(loc="lower right", fontsize=8)
    reliability.legend(loc="upper left", fontsize=8)
    _draw_scores(scatter, result)
    count, difficulty = len(result.phantoms), result.phantoms.difficulty
    figure.suptitle(
        f"{count} synthetic phantoms of difficulty {difficulty:g}; says nothing about patients", fontsize=10
    )
    write_figure(figure, path)


def plot_calibration(result: CalibrationResult, path: Path) -> None:
    """SQNR of every trial, grouped by algorithm, one bar per number of phantoms; writes `path` as a PNG.

    Raises: as `plot_accuracy`.
    """
    figure = new_figure(7, 4)
    axes = figure.subplots()
    algorithms = list(dict.fromkeys(trial.algorithm for trial in result.trials))
    counts = list(dict.fromkeys(trial.count for trial in result.trials))
    width = 0.8 / len(counts)
    for place, count in enumerate(counts):
        heights = [trial.verdict.sqnr_db for trial in result.trials if trial.count == count]
        left = np.arange(len(algorithms)) + (place - (len(counts) - 1) / 2) * width
        bars = axes.bar(left, heights, 0.92 * width, label=f"{count} phantoms", color=f"C{place}")
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(algorithms)), algorithms)
    axes.set(ylabel="SQNR of the logits against FP32, dB", title="int8 scales: algorithm and calibration set")
    axes.margins(y=0.12)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    write_figure(figure, path)


def draw_roc(axes: Any, judgements: Mapping[str, Judgement], positive: str) -> None:
    """ROC curves, by their text in a legend, which the caller draws; `positive` is the class they speak of."""
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=0.8)
    for index, (label, judged) in enumerate(judgements.items()):
        axes.plot(*judged.roc, _line(index), color=_colour(index), linewidth=_width(index), label=label)
    axes.set(xlabel=f"false {positive} rate", ylabel=f"true {positive} rate", aspect="equal", title="ROC curves")


def draw_reliability(axes: Any, judgements: Mapping[str, Judgement], positive: str) -> None:
    """Observed share over predicted probability in bins of equal count; on the diagonal, probabilities are right."""
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=0.8)
    for index, (label, judged) in enumerate(judgements.items()):
        curve = judged.curve
        axes.plot(
            curve.predicted, curve.observed, _line(index), color=_colour(index), marker=_MARKERS[index % len(_MARKERS)],
            markersize=3.5, linewidth=_width(index), label=label,
        )  # fmt: skip
    axes.set(
        xlabel=f"predicted probability of {positive}", ylabel=f"observed share of {positive}", aspect="equal",
        title="calibration curves, bins of equal count", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02),
    )  # fmt: skip


def _line(index: int) -> str:
    return _LINES[index % len(_LINES)]


def _colour(index: int) -> str:
    return f"C{index % 10}"


def _width(index: int) -> float:
    """The first is what the others are held against."""
    return 1.0 if index else 2.2


def _draw_scores(axes: Any, result: AccuracyResult) -> None:
    reference = scores_of(result.logits["fp32"])
    ends = [float(reference.min()), float(reference.max())]
    axes.plot(ends, ends, color="0.8", linewidth=0.8)
    for index, (row, marker) in enumerate(zip(result.rows, _MARKERS, strict=False)):
        if row.against_fp32 is not None:
            label = f"{row.name}, {row.against_fp32.flips} decisions changed"
            axes.scatter(reference, scores_of(result.logits[row.name]), s=14, marker=marker, color=f"C{index}",
                         linewidth=0.8, label=label)  # fmt: skip
    # A decision changes where a point lies in the upper left or the lower right of this cross.
    axes.axhline(0, color="0.7", linewidth=0.6)
    axes.axvline(0, color="0.7", linewidth=0.6)
    axes.set(xlabel="FP32 score (difference of logits)", ylabel="lowered score", title="score of every phantom")
    if len(result.rows) > 1:
        axes.legend(loc="upper left", fontsize=8)


def new_figure(width: float, height: float) -> Any:
    """An empty figure, inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: Any, path: Path) -> None:
    """Writes it as a PNG. Raises: OutputNotWritable (30)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(path, buffer.getvalue())
