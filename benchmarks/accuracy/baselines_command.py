"""`fp-bench baselines`: options in, a table and one JSON line out; and the same as a step of the report.

It measures nothing itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourphase.benchmarks.accuracy.cli import JsonOption, PlotOption, QuietOption, SeedOption, print_table, set_up
from fourphase.benchmarks.guarded_steps import Outcome, Save
from fourphase.runtime.console import stdout_checked

if TYPE_CHECKING:
    from fourphase.benchmarks.accuracy.baselines_bench import BaselineRow, BaselinesResult, Lowered
    from fourphase.benchmarks.accuracy.judgement import Judgement
    from fourphase.calibration.metrics import Interval

__all__ = ["baselines", "baselines_step"]

_HEADINGS = (
    "network", "1000\nparams", "AUC %", "against\nfour-phase", "ACC\n%", "F1\n%", "NPV\n%", "Brier\nx 100",
    "ECE %\n(chance)", "s",
)  # fmt: skip
_INT8_HEADINGS = (
    "in INT8", "AUC %", "against\nFP32", "flipped", "ACC\n%", "F1\n%", "NPV\n%", "Brier\nx 100", "ECE %\n(chance)",
)  # fmt: skip


def baselines(
    network: Annotated[
        list[str] | None, typer.Option(help="A network of the registry; repeatable. Default: all.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=4, max=100_000, help="Phantoms; default: 240.")] = None,
    folds: Annotated[int | None, typer.Option(min=2, max=100, help="Default: 5.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training phantoms; default: 6.")] = None,
    difficulty: Annotated[float | None, typer.Option(min=0, max=1, help="Of the phantoms; default: 0.85.")] = None,
    seed: SeedOption = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trainings at once, one thread each; default: the usable cores.")
    ] = None,
    int8: Annotated[bool, typer.Option(help="Also judge the INT8 model of every fold's network.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="A rehearsal with tiny networks: no result.")] = False,
    plot: PlotOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train every network on the same phantoms in folds; compare AUC, ACC, F1, NPV, Brier, ECE, and INT8 with FP32.

    Phantoms are synthetic and the networks small: this says nothing about patients.

    Example: fp-bench baselines --network four-phase --network resnet3d-18-medicalnet --plot baselines.png
    """
    set_up(json_output, quiet, plot)
    result = _measured(quick, network or (), workers, count=count, folds=folds, epochs=epochs, difficulty=difficulty,
                       seed=seed, calibration=None if int8 else 0)  # fmt: skip
    if plot is not None:
        from fourphase.benchmarks.accuracy.baselines_plot import plot_baselines

        plot_baselines(result, plot)
    body = result.to_dict()
    with stdout_checked():
        if not json_output:
            _print(result)
        print(json.dumps(body, allow_nan=False))


def baselines_step(
    save: Save, *, quick: bool, network: Sequence[str] = (), workers: int | None = None, **changes: int | float | None
) -> Outcome:
    """The command as a step of the report; what is there is saved after each network.

    Args:
        network: names of the registry; () is all.
        changes: `count`, `folds`, `epochs`, `difficulty`, `seed`, `calibration` of the plan; None leaves the default.
    """
    result = _measured(quick, network, workers, lambda so_far: save(so_far.to_dict()), **changes)
    return Outcome("ok", result=result.to_dict())


def _measured(
    quick: bool,
    network: Sequence[str],
    workers: int | None,
    ended: Callable[[BaselinesResult], None] | None = None,
    **changes: int | float | None,
) -> BaselinesResult:
    from fourphase.benchmarks.accuracy.baselines_bench import measure_baselines
    from fourphase.benchmarks.accuracy.cross_plan import FULL, QUICK

    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    plan = replace(QUICK if quick else FULL, **given)
    at_once = workers or len(os.sched_getaffinity(0))
    return measure_baselines(plan, network, workers=at_once, quick=quick, ended=ended)


def _print(result: BaselinesResult) -> None:
    from fourphase.benchmarks.accuracy.baselines_bench import SYNTHETIC
    from fourphase.benchmarks.accuracy.judgement import paper_text
    from fourphase.benchmarks.phantoms.phantom import KINDS

    print_table(_HEADINGS, [_cells(row) for row in result.rows])
    lowered = [[row.run.network, *_int8_cells(row.int8)] for row in result.rows if row.int8 is not None]
    if lowered:
        print_table(_INT8_HEADINGS, lowered)
    plan, scale = result.plan, result.plan.scale
    print(
        f"{plan.count} phantoms of difficulty {plan.difficulty:g}, seed {plan.seed}, in {plan.folds} folds, "
        f"{plan.epochs} epochs; width {scale.width}, inputs {' x '.join(map(str, scale.size))}; {KINDS[1]} is "
        f"positive; 95 % bootstrap intervals, paired for differences of AUCs, in points; {result.seconds:.0f} s"
    )
    for row in result.rows:
        if row.run.status != "ok":
            print(f"{row.run.network} {row.run.status}: {row.run.reason}")
        elif row.run.int8_reason:
            print(f"{row.run.network} has no INT8 model: {row.run.int8_reason}")
    for text in result.notes:
        print(f"note: {text}")
    if result.quick:
        print("REHEARSAL (--quick): tiny networks that have learnt nothing; not a measurement.")
    print(SYNTHETIC)
    print(paper_text())


def _cells(row: BaselineRow) -> list[str]:
    run, judged = row.run, row.judgement
    name, parameters = run.network, f"{run.parameters / 1000:.0f}"
    seconds = f"{run.seconds_choosing + run.seconds_training:.0f}"
    if judged is None:
        return [name, parameters, run.status, *[""] * 6, seconds]
    difference = "" if row.against_four_phase is None else _interval_text(row.against_four_phase, "+")
    return [name, parameters, _interval_text(judged.figures["auc"]), difference, *_figure_cells(judged), seconds]


def _int8_cells(int8: Lowered) -> list[str]:
    judged = int8.judgement
    change, flipped = _interval_text(int8.against_fp32, "+"), str(int8.flipped)
    return [_interval_text(judged.figures["auc"]), change, flipped, *_figure_cells(judged)]


def _figure_cells(judged: Judgement) -> list[str]:
    """ACC, F1, NPV, Brier score, ECE."""
    figures = [f"{100 * judged.figures[figure].value:.1f}" for figure in ("accuracy", "f1", "npv")]
    ece = f"{100 * judged.ece.value:.1f} ({100 * judged.ece_by_chance:.1f})"
    return [*figures, f"{100 * judged.brier.value:.1f}", ece]


def _interval_text(interval: Interval, sign: str = "") -> str:
    """One decimal: a few hundred phantoms tell no more."""
    value, low, high = (f"{100 * number:{sign}.1f}" for number in (interval.value, interval.low, interval.high))
    return f"{value}\n{low} to {high}"
