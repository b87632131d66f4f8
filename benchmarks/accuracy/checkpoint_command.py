"""`fp-bench phantom-checkpoint`: a checkpoint to try everything with, trained on phantoms or not trained at all."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fourphase.runtime.atomic import check_file_target
from fourphase.runtime.console import be_quiet, note, say_errors_as_json, stdout_checked
from fourphase.runtime.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from fourphase.benchmarks.accuracy.training import TrainingPlan, TrainingResult
    from fourphase.benchmarks.networks import Untrained

__all__ = ["phantom_checkpoint"]

#: The paper's size, for --untrained.
_WIDTH, _GRU_HIDDEN = 64, 256


def phantom_checkpoint(
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors to write.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same file on the same machine.")] = 0,
    studies: Annotated[int | None, typer.Option(min=8, help="Phantoms to train on; default: 2400.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Channels of the stem; default: 8, untrained 64.")] = None,
    gru_hidden: Annotated[int | None, typer.Option(min=1, help="Of the GRU; default: 32, untrained 256.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer phantoms: two minutes on two cores.")] = False,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="No training: random weights that fit phantoms in size only.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw loss and ROC curve into FILE.png (extra [report]).")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Train a small network on phantoms in a few CPU minutes, so that everything can be tried.

    It has seen nothing but formulas and says nothing about patients.

    With --untrained: the paper's size with random weights, its batch-norm statistics settled on a few phantoms.

    Example: fp-bench phantom-checkpoint -o model.safetensors
    """
    be_quiet(quiet)
    say_errors_as_json(json_output)
    if output.suffix != ".safetensors":
        raise UsageError(f"{output.name} is not a .safetensors file", "name it MODEL.safetensors", key="suffix")
    if untrained and (quick or studies is not None or plot is not None):
        raise UsageError(
            "--untrained goes with none of --quick, --studies and --plot, which are about training",
            "leave them out, or leave --untrained out",
            key="options_exclude_each_other",
        )
    check_file_target(output)
    if untrained:
        _write_untrained(output, width or _WIDTH, gru_hidden or _GRU_HIDDEN, seed, json_output)
        return
    from fourphase.benchmarks.accuracy.training import FULL, QUICK

    plan = QUICK if quick else FULL
    changes = {"studies": studies, "width": width, "gru_hidden": gru_hidden}
    plan = replace(plan, **{name: value for name, value in changes.items() if value is not None})
    result = _train(plan, seed, quiet)
    _write_trained(output, result, plot, json_output)


def _write_trained(output: Path, result: TrainingResult, plot: Path | None, json_output: bool) -> None:
    from fourphase.benchmarks.accuracy.training import write_checkpoint

    write_checkpoint(output, result)
    if plot is not None:
        from fourphase.benchmarks.accuracy.training_plot import plot_training

        plot_training(result, plot)
    with stdout_checked():
        _print_trained(output, result, json_output)


def _print_trained(output: Path, result: TrainingResult, json_output: bool) -> None:
    count, seed = len(result.scores), result.seed
    if json_output:
        body = {"auc": result.auc, "right": result.right, "count": count, "seconds": result.seconds, "seed": seed}
        print(json.dumps({"schema": "fourphase.phantom-checkpoint/1", "trained": True, **body}))
        return
    print(f"AUC {result.auc:.3f} on {count} unseen phantoms, {result.right} of them right; {result.seconds:.0f} s")
    print(f"wrote {output} (width {result.plan.width}, seed {seed}; trained on synthetic phantoms only)")


def _train(plan: TrainingPlan, seed: int, quiet: bool) -> TrainingResult:
    """Trains with one progress bar per stage, the loss beside it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from fourphase.benchmarks.accuracy.training import train

    hidden = quiet or not sys.stderr.isatty()
    if hidden:
        note(f"training on {plan.studies} phantoms, then measuring on {plan.validation} others; this takes minutes")
    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    loss_column = TextColumn("{task.fields[loss]}")
    with Progress(*columns, loss_column, TimeElapsedColumn(), console=Console(stderr=True), disable=hidden) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, step: int, steps: int, loss: float | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=steps, loss="")
            bars.update(tasks[stage], completed=step, loss="" if loss is None else f"loss {loss:.2f}")

        return train(plan, seed, report)


def _write_untrained(output: Path, width: int, gru_hidden: int, seed: int, json_output: bool) -> None:
    from fourphase.benchmarks.networks import untrained, write_untrained

    made = untrained(width, gru_hidden, seed)
    write_untrained(output, made)
    with stdout_checked():
        _print_untrained(made, f"wrote {output} (width {width}, GRU {gru_hidden}, seed {seed})", json_output)


def _print_untrained(made: Untrained, wrote: str, json_output: bool) -> None:
    body = made.to_dict()
    if json_output:
        print(json.dumps({"schema": "fourphase.phantom-checkpoint/1", **body}))
        return
    spread = ", ".join(f"{name} {value:.4f}" for name, value in body["logits_spread"].items())
    print(f"NOT TRAINED: random weights, {body['parameters'] / 1e6:.1f} M parameters; its decisions mean nothing")
    print(
        f"batch-norm statistics of {body['settled_on']} phantoms; logits of {body['count']} others range over {spread}"
    )
    print(wrote)
