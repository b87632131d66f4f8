"""`fp-bench accuracy` and `fp-bench calibration`: options in, a table and one JSON line out. They measure nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fourphase.runtime.console import be_quiet, say_errors_as_json, stdout_checked
from fourphase.runtime.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fourphase.benchmarks.accuracy.accuracy_bench import AccuracyResult, Row
    from fourphase.benchmarks.accuracy.calibration_bench import CalibrationResult, Winner
    from fourphase.calibration.gates import Verdict

__all__ = ["accuracy", "calibration", "print_table", "set_up"]

#: Each is one number of a seed's million, see `phantom_set`.
_MOST_PHANTOMS = 100_000
#: Where `fp-bench phantom-checkpoint` in full has an AUC of 0.944 in FP32 on 200 phantoms: a loss would be seen. At 0.8
#: it is 0.981, at 0.85 0.963, at 0.7 0.998.
_DIFFICULTY = 0.9
#: Columns that a table takes even where the terminal has fewer.
_NARROWEST = 120
#: What is said of a model's softmax.
_RELIABILITY = ("Brier x 100", "ECE %")
#: What is said of a model against FP32.
_CHANGES = ("SQNR dB", "flips", "AUC change", "MLPerf", "gates")
_BARS = {"mlperf_99": "99 %", "mlperf_99_9": "99.9 %"}

SeedOption = Annotated[int, typer.Option(min=0, help="Another seed, other phantoms.")]
DifficultyOption = Annotated[
    float, typer.Option(min=0, max=1, help="Of the phantoms; at the default, FP32 has room to lose.")
]
PlotOption = Annotated[Path | None, typer.Option(help="Draw it into FILE.png (extra [report]).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")]


def accuracy(
    bundle: Annotated[Path, typer.Argument(help="A bundle with the models to compare.")],
    count: Annotated[int, typer.Option(min=2, max=_MOST_PHANTOMS, help="Unseen phantoms.")] = 200,
    seed: SeedOption = 0,
    difficulty: DifficultyOption = _DIFFICULTY,
    plot: PlotOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare a bundle's precisions on unseen phantoms: AUC, ACC, F1, NPV, Brier, ECE, decisions changed; intervals.

    With ROC and calibration curves in the JSON and the plot.

    Phantoms are synthetic: this shows what a precision loses, and says nothing about patients.

    Example: fp-bench accuracy liver.bundle --plot accuracy.png
    """
    set_up(json_output, quiet, plot)
    from fourphase.benchmarks.accuracy.accuracy_bench import measure_accuracy
    from fourphase.benchmarks.phantoms.phantom_set import PhantomSet
    from fourphase.runtime.bundle import load_bundle

    found = load_bundle(bundle)
    result = measure_accuracy(found, PhantomSet(count, seed, difficulty, found.preprocessing, found.phases))
    if plot is not None:
        from fourphase.benchmarks.accuracy.plot import plot_accuracy

        plot_accuracy(result, plot)
    with stdout_checked():
        if not json_output:
            _print_accuracy(result)
        print(json.dumps(result.to_dict(), allow_nan=False))


def calibration(
    model: Annotated[Path, typer.Argument(help="A bundle, or an FP32 MODEL.onnx written by fp-export onnx.")],
    counts: Annotated[str, typer.Option(help="Numbers of phantoms to calibrate on, with commas.")] = "8,64",
    evaluate: Annotated[int, typer.Option(min=2, max=_MOST_PHANTOMS, help="Other phantoms to judge on.")] = 100,
    seed: SeedOption = 0,
    difficulty: DifficultyOption = _DIFFICULTY,
    plot: PlotOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare the calibration algorithms, and few with many calibration studies, on phantoms.

    Example: fp-bench calibration liver.bundle --counts 8,64
    """
    numbers = _numbers(counts)
    set_up(json_output, quiet, plot)
    from fourphase.benchmarks.accuracy.calibration_bench import measure_calibration, read_subject

    subject = read_subject(model)
    known = subject.phantoms(numbers[-1], seed, difficulty, "calibration")
    unseen = subject.phantoms(evaluate, seed, difficulty, "evaluation")
    result = measure_calibration(subject, known, unseen, numbers)
    if plot is not None:
        from fourphase.benchmarks.accuracy.plot import plot_calibration

        plot_calibration(result, plot)
    with stdout_checked():
        if not json_output:
            _print_calibration(result)
        print(json.dumps(result.to_dict(), allow_nan=False))


def set_up(json_output: bool, quiet: bool, plot: Path | None) -> None:
    """Before any work: how to speak, and whether the plot can be drawn.

    Raises: UsageError (2) unless it is a .png; OutputNotWritable (30); ModuleNotFoundError without matplotlib.
    """
    be_quiet(quiet)
    say_errors_as_json(json_output)
    if plot is None:
        return
    from fourphase.runtime.atomic import check_file_target

    if plot.suffix != ".png":
        raise UsageError(f"{plot.name} is not a .png file", "name it FILE.png", key="suffix")
    check_file_target(plot)
    # Missing, it should be missed now and not after minutes of work.
    import matplotlib  # noqa: F401


def _numbers(text: str) -> tuple[int, ...]:
    """ "64,8" -> (8, 64)."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= _MOST_PHANTOMS for part in parts):
        raise UsageError(
            f"--counts {text!r} is not a list of numbers from 1 to {_MOST_PHANTOMS}",
            "give numbers of phantoms with commas, such as 8,64",
            key="counts_invalid",
        )
    return tuple(sorted({int(part) for part in parts}))


def _print_accuracy(result: AccuracyResult) -> None:
    from fourphase.benchmarks.accuracy.accuracy_bench import SYNTHETIC
    from fourphase.benchmarks.accuracy.judgement import FIGURES, paper_text

    # Models are columns: that fits into a terminal.
    columns = [_accuracy_cells(row) for row in result.rows]
    names = [*(f"{name} %" for name in FIGURES.values()), *_RELIABILITY, *_CHANGES]
    print_table(
        ["", *(f"{row.precision}\n{row.program}" for row in result.rows)], list(zip(names, *columns, strict=True))
    )
    phantoms = result.phantoms
    print(
        f"{len(phantoms)} phantoms of difficulty {phantoms.difficulty:g}, seed {phantoms.seed}; "
        f"95 % bootstrap intervals, paired for the AUC change, in points; {result.bundle.classes[1]} is positive; "
        f"{result.seconds:.0f} s"
    )
    for text in result.notes:
        print(f"note: {text}")
    print(SYNTHETIC)
    print(paper_text())


def _accuracy_cells(row: Row) -> list[str]:
    from fourphase.benchmarks.accuracy.judgement import FIGURES, intervals_text

    judged = row.judgement
    figures = [intervals_text(judged.figures[name]) for name in FIGURES]
    ece = f"{intervals_text(judged.ece)}\nby chance {100 * judged.ece_by_chance:.2f}"
    changes = _change_cells(row.against_fp32) if row.against_fp32 else ["baseline", "", "", "", ""]
    return [*figures, intervals_text(judged.brier), ece, *changes]


def _change_cells(verdict: Verdict) -> list[str]:
    """In the order of _CHANGES."""
    from fourphase.benchmarks.accuracy.judgement import intervals_text
    from fourphase.calibration.metrics import Interval

    change = "" if verdict.auc_change is None else intervals_text(Interval(*verdict.auc_change), "+")
    bars = "\n".join(f"{_BARS[name]} {'met' if met else 'MISSED'}" for name, met in verdict.bars.items())
    return [
        f"{verdict.sqnr_db:.1f}",
        str(verdict.flips),
        change,
        bars,
        "\n".join(f"{gate} FAILED" for gate in verdict.failed) or "pass",
    ]


def _print_calibration(result: CalibrationResult) -> None:
    from fourphase.benchmarks.accuracy.accuracy_bench import SYNTHETIC

    rows = []
    for trial in result.trials:
        auc = "" if trial.verdict.auc is None else f"{100 * trial.verdict.auc:.2f}"
        sqnr, *changes = _change_cells(trial.verdict)
        rows.append([f"{trial.count}", trial.algorithm, sqnr, auc, *changes])
    sqnr_heading, *headings = _CHANGES
    print_table(["phantoms", "algorithm", sqnr_heading, "AUC %", *headings], rows)
    unseen = result.evaluation
    print(
        f"{result.values} scales; judged on {len(unseen)} other phantoms of difficulty {unseen.difficulty:g}, seed "
        f"{unseen.seed}, against FP32's AUC of {100 * result.fp32_auc.value:.2f} %; {result.seconds:.0f} s"
    )
    for winner in result.winners:
        print(_winner_text(winner))
    if result.subject.bundle is None:
        print("note: an ONNX carries no preprocessing; the contract's was taken")
    print(SYNTHETIC)


def _winner_text(winner: Winner) -> str:
    ahead = winner.ahead_db
    return (
        f"on {winner.count}: {winner.algorithm} wins with {winner.sqnr_db:.1f} dB, {ahead.value:.1f} dB "
        f"({ahead.low:.1f} to {ahead.high:.1f}) ahead of {winner.runner_up}"
    )


def print_table(headings: Sequence[str], rows: Sequence[Sequence[RenderableType]]) -> None:
    """A table on stdout, whole also where the terminal is narrow."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*headings, show_lines=True)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, _NARROWEST)
    console.print(table)
