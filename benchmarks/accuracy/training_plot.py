"""Draws how a training on phantoms went: loss curve and ROC curve, one PNG. Needs matplotlib (extra [report])."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from fourphase.benchmarks.accuracy.training import TrainingResult
from fourphase.calibration.roc import roc_curve
from fourphase.runtime.atomic import write_file

__all__ = ["plot_training"]

#: Steps averaged into the drawn line.
_SMOOTHED = 10


def plot_training(result: TrainingResult, path: Path) -> None:
    """Writes `path` as a PNG.

    Raises: ModuleNotFoundError without matplotlib (the command names the extra), OutputNotWritable.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    loss_axes, roc_axes = figure.subplots(1, 2)
    losses = np.array(result.losses)
    loss_axes.plot(losses, color="0.8", linewidth=0.8)
    width = min(_SMOOTHED, len(losses))
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    loss_axes.plot(np.arange(len(smooth)) + width - 1, smooth, color="C0")
    loss_axes.set(xlabel="step", ylabel="loss", title="training", ylim=(0, None))
    false_rate, true_rate = roc_curve(result.scores, result.is_icc)
    roc_axes.plot([0, 1], [0, 1], color="0.8", linewidth=0.8)
    roc_axes.plot(false_rate, true_rate, color="C0")
    count = len(result.scores)
    roc_axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    roc_axes.set_title(f"AUC {result.auc:.3f}, {count} unseen phantoms")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(path, buffer.getvalue())
