"""Draws what `fp-bench accuracy` and `calibration` measured, one PNG each. Needs matplotlib (extra [report])."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourphase.benchmarks.accuracy.accuracy_bench import AccuracyResult
from fourphase.calibration.metrics import scores_of
from fourphase.calibration.roc import roc_curve
from fourphase.runtime.atomic import write_file

if TYPE_CHECKING:
    from fourphase.benchmarks.accuracy.calibration_bench import CalibrationResult

__all__ = ["plot_accuracy", "plot_calibration"]

#: One per row, with colour: curves lie on each other where a precision loses nothing.
_LINES, _MARKERS = ("-", "--", "-.", ":"), ("o", "x", "+", "1")


def plot_accuracy(result: AccuracyResult, path: Path) -> None:
    """ROC curves of all rows, and every lowered row's scores over FP32's; writes `path` as a PNG.

    Raises: ModuleNotFoundError without matplotlib (the command names the extra), OutputNotWritable.
    """
    figure = _figure(10, 4.8)
    curves, scatter = figure.subplots(1, 2)
    _draw_curves(curves, result)
    _draw_scores(scatter, result)
    count, difficulty = len(result.phantoms), result.phantoms.difficulty
    figure.suptitle(
        f"{count} synthetic phantoms of difficulty {difficulty:g}; says nothing about patients", fontsize=10
    )
    _write(figure, path)


def plot_calibration(result: CalibrationResult, path: Path) -> None:
    """SQNR of every trial, grouped by algorithm, one bar per number of phantoms; writes `path` as a PNG.

    Raises: as `plot_accuracy`.
    """
    figure = _figure(7, 4)
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
    _write(figure, path)


def _draw_curves(axes: Any, result: AccuracyResult) -> None:
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=0.8)
    for index, (row, line) in enumerate(zip(result.rows, _LINES, strict=False)):
        false_rate, true_rate = roc_curve(scores_of(result.logits[row.name]), result.positives)
        label = f"{row.name}, AUC {row.figures['auc'].value:.4f}"
        axes.plot(false_rate, true_rate, line, color=f"C{index}", label=label)
    kinds: Sequence[str] = result.bundle.classes
    axes.set(xlabel=f"false {kinds[1]} rate", ylabel=f"true {kinds[1]} rate", aspect="equal", title="ROC curves")
    axes.legend(loc="lower right", fontsize=8)


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


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _write(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(path, buffer.getvalue())
