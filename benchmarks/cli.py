"""`fp-bench`: phantom studies, a small trained network, and benchmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fourphase.benchmarks.accuracy import baselines_command, checkpoint_command
from fourphase.benchmarks.accuracy import cli as accuracy_commands
from fourphase.benchmarks.archive import command as archive_command
from fourphase.benchmarks.end_to_end import command as end_to_end_command
from fourphase.benchmarks.gpu import gpu_check
from fourphase.benchmarks.hazards import cli as hazards
from fourphase.benchmarks.latency import command as latency_command
from fourphase.benchmarks.mutants import cli as mutants
from fourphase.benchmarks.report import cli as report_commands
from fourphase.benchmarks.scaling import command as scaling_commands
from fourphase.runtime.console import be_quiet, progress, run_app, say_errors_as_json, stdout_checked
from fourphase.runtime.errors import UsageError

if TYPE_CHECKING:
    from fourphase.benchmarks.phantoms.phantom_dicom import WrittenStudy
    from fourphase.benchmarks.preprocess_bench import Comparison

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)
app.add_typer(gpu_check.app, name="gpu-check", help="Everything that needs a GPU, checked and measured by one command.")
app.command("phantom-checkpoint")(checkpoint_command.phantom_checkpoint)
app.command("accuracy")(accuracy_commands.accuracy)
app.command("calibration")(accuracy_commands.calibration)
app.command("baselines")(baselines_command.baselines)
app.command("latency")(latency_command.latency)
app.command("end-to-end")(end_to_end_command.end_to_end)
app.command("gru")(scaling_commands.gru)
app.command("scaling")(scaling_commands.scaling)
app.command("archive")(archive_command.archive)
app.command("report")(report_commands.report)
app.command("render")(report_commands.render)
app.command("compare")(report_commands.compare)
app.command("hazards")(hazards.hazards)
app.command("mutants")(mutants.mutants)

JsonOption = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")]


@app.command()
def phantom(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the studies, one subfolder each.")],
    kind: Annotated[str | None, typer.Option(help="HCC or ICC; default: both in turn.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first study; the next ones count up.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many studies.")] = 1,
    difficulty: Annotated[float, typer.Option(min=0, max=1, help="0: plain to see; 1: hardly to be told apart.")] = 0.3,
    matrix: Annotated[
        int | None, typer.Option(help="Rows and columns; default: as the phantom's protocol has it.")
    ] = None,
    slices: Annotated[int | None, typer.Option(help="Slices per phase; default: as the lesion needs.")] = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write synthetic four-phase liver studies as DICOM, each with lesion box, mask and truth.

    Example: fp-bench phantom -o studies --kind HCC --seed 1 --count 3
    """
    _set_up(json_output, quiet)
    from fourphase.benchmarks.phantoms.phantom import BOX_PHASE, KINDS, PHASES, make_phantom
    from fourphase.benchmarks.phantoms.phantom_dicom import check_new, write_study
    from fourphase.benchmarks.phantoms.scan import make_scans

    kinds = KINDS if kind is None else (kind,)
    wanted = [make_phantom(kinds[i % len(kinds)], seed + i, difficulty) for i in range(count)]
    folders = [output / f"{made.kind.lower()}-{made.seed:04d}" for made in wanted]
    for folder in folders:
        check_new(folder)
    files = sum(len(PHASES) * make_scans(made, matrix, slices)[BOX_PHASE].shape[0] for made in wanted)
    with progress(f"writing {count} phantom {'study' if count == 1 else 'studies'}", files) as advance:
        written = [
            write_study(folder, made, matrix, slices, advance) for folder, made in zip(folders, wanted, strict=True)
        ]
    with stdout_checked():
        _print_phantoms(written, json_output)


def _print_phantoms(written: Sequence[WrittenStudy], json_output: bool) -> None:
    from fourphase.benchmarks.phantoms.phantom import PHASES

    if json_output:
        rows = [{"folder": str(study.folder), "kind": study.kind, "seed": study.seed} for study in written]
        print(json.dumps({"schema": "fourphase.phantoms/1", "studies": rows}, indent=1))
        return
    for study in written:
        depth, rows_, columns = study.shape
        spacing = " x ".join(f"{value:.2f}" for value in study.spacing_mm)
        size = (
            f"{len(PHASES)} x {depth} slices of {rows_} x {columns}, {spacing} mm, {study.bytes_written / 1e6:.0f} MB"
        )
        print(f"{study.folder}: {study.kind}, {size}; series {', '.join(study.descriptions)}")


@app.command()
def preprocess(
    study: Annotated[Path | None, typer.Argument(help="A study folder; default: a phantom of 4 x 250 slices.")] = None,
    box: Annotated[Path | None, typer.Option(help="The study's lesion box, JSON.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Counted runs of each pipeline; a ratio needs 5.")] = 9,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure scan, read and preprocess beside a whole-volume SimpleITK pipeline, in turns, in one run.

    Example: fp-bench preprocess
    """
    _set_up(json_output, quiet)
    if (study is None) != (box is None):
        raise UsageError(
            "a study and its box belong together", "give both STUDY and --box, or neither", key="box_missing"
        )
    from fourphase.benchmarks.end_to_end.study import given_study, phantom_study
    from fourphase.benchmarks.preprocess_bench import compare_pipelines, require_simpleitk, result_of

    require_simpleitk()
    subject = phantom_study(None, quick=False) if study is None or box is None else nullcontext(given_study(study, box))
    with subject as files:
        comparison = compare_pipelines(files.folder, files.box, repeats)
    result = result_of(comparison, files.what, quick=False)
    with stdout_checked():
        if not json_output:
            _print_comparison(comparison)
        print(json.dumps(result, allow_nan=False))


def main() -> None:
    """Entry point of `fp-bench`."""
    run_app(app, "fp-bench")


def _set_up(json_output: bool, quiet: bool) -> None:
    be_quiet(quiet)
    say_errors_as_json(json_output)


def _print_comparison(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    from fourphase.benchmarks.report.words import paired_text

    table = Table("pipeline", "seconds", "fastest - slowest", "peak MB", "scan", "read", "preprocess")
    for name, seconds in comparison.seconds.items():
        fastest, slowest = comparison.spread[name]
        shares = [f"{share:.0%}" for share in comparison.shares[name].values()]
        table.add_row(
            name, f"{seconds:.2f}", f"{fastest:.2f} - {slowest:.2f}", f"{comparison.peak_mb[name]:.0f}", *shares
        )
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"{paired_text(comparison.paired.to_dict())}.")
    console.print(
        f"{comparison.slices} slices, {comparison.repeats} runs each in turns, files in the page cache, imports "
        f"({', '.join(f'{seconds:.1f} s' for seconds in comparison.import_seconds.values())}) not counted; "
        f"inputs differ by at most {comparison.max_difference:.1e}"
    )


if __name__ == "__main__":
    main()
