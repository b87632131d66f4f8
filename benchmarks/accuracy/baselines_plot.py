"""Draws what `fp-bench baselines` measured, one PNG: ROC curves, calibration curves. Needs matplotlib ([report])."""

from __future__ import annotations

from pathlib import Path

from fourphase.benchmarks.accuracy.baselines_bench import BaselinesResult
from fourphase.benchmarks.accuracy.judgement import Judgement
from fourphase.benchmarks.accuracy.plot import draw_reliability, draw_roc, new_figure, write_figure
from fourphase.benchmarks.phantoms.phantom import KINDS

__all__ = ["plot_baselines"]


def plot_baselines(result: BaselinesResult, path: Path) -> None:
    """Both panels for all networks with scores; writes `path` as a PNG.

    Raises: ModuleNotFoundError without matplotlib (the command names the extra), OutputNotWritable (30).
    """
    figure = new_figure(15, 6.4)
    left, right = figure.subplots(1, 2)
    named = {_name(row.run.network, row.judgement): row.judgement for row in result.rows if row.judgement is not None}
    draw_roc(left, named, KINDS[1])
    draw_reliability(right, named, KINDS[1])
    if named:
        # Beside the panels: fifteen names would cover the curves.
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=9, frameon=False)
    plan, rehearsal = result.plan, "REHEARSAL, no measurement: " if result.quick else ""
    figure.suptitle(
        f"{rehearsal}small networks, {plan.folds} folds of {plan.count} synthetic phantoms of difficulty "
        f"{plan.difficulty:g}; says nothing about patients",
        fontsize=10,
    )
    write_figure(figure, path)


def _name(network: str, judged: Judgement) -> str:
    return f"{network}\n  AUC {judged.figures['auc'].value:.3f}, ECE {100 * judged.ece.value:.1f} %"
