"""`fp-bench report`, `render` and `compare`: options in, files, a table and one JSON line out. They measure nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourphase.runtime.console import be_quiet, print_error, say_errors_as_json, stdout_checked
from fourphase.runtime.errors import AccuracyGateFailed, LatencyGateFailed, SomeStudiesFailed

if TYPE_CHECKING:
    from fourphase.benchmarks.report.compare import CompareResult, Pair

__all__ = ["compare", "render", "report"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="The folder for the report's files.")]


def report(
    output: OutputOption,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny networks: a rehearsal, no measurement.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Only this section. Repeatable.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Not this section. Repeatable.")] = None,
    budget_minutes: Annotated[float, typer.Option(min=0.1, help="Minutes that each section may take.")] = 90,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the report that is there.")] = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure every section on this machine and write report.json, .csv, .md and .html.

    Sections: latency, end-to-end, gru, scaling, archive, baselines, preprocess. Each runs in a process of its own; the
    report is complete on disk after each. Exits with 40 if one did not come to its end.

    Example: fp-bench report -o report --skip archive --budget-minutes 30
    """
    _set_up(json_output, quiet)
    from fourphase.benchmarks.report.collect import Plan, failed_sections, measure_report
    from fourphase.benchmarks.report.sections import chosen_sections

    plan = Plan(output, chosen_sections(only or [], skip or []), quick, budget_minutes, resume)
    found = measure_report(plan)
    with stdout_checked():
        if not json_output:
            _print_report(found)
        print(json.dumps(found, allow_nan=False))
    failed = failed_sections(found)
    if failed:
        error = SomeStudiesFailed(
            f"{len(failed)} of {len(found['sections'])} sections failed: "
            + "; ".join(f"{name} ({reason})" for name, reason in failed.items()),
            "see failed-<section>.txt beside the report, and go on with --resume",
            key="some_sections_failed",
        )
        _end_with(error)


def render(
    source: Annotated[Path, typer.Argument(metavar="REPORT.json", help="A report.json.")],
    output: OutputOption,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write report.csv, report.md and report.html again from a report.json.

    Example: fp-bench render report/report.json -o report
    """
    _set_up(json_output, quiet)
    from fourphase.benchmarks.report.document import machine_name, read_report
    from fourphase.benchmarks.report.write import RENDERED, render_report

    found = read_report(source)
    render_report(output, found)
    files = {Path(name).suffix[1:]: str(output / name) for name in RENDERED}
    record = {"schema": "fourphase.render/1", "machine": found["machine"], "name": machine_name(found["machine"])}
    with stdout_checked():
        if not json_output:
            print("\n".join(files.values()))
        print(json.dumps({**record, "quick": found.get("quick"), "files": files}, allow_nan=False))


def compare(
    old: Annotated[Path, typer.Argument(help="The earlier run: a report.json, or what a benchmark printed.")],
    new: Annotated[Path, typer.Argument(help="The later run, of the same kind.")],
    tolerance: Annotated[float, typer.Option(min=0, max=1, help="A smaller change is none: 0.05 is 5 %.")] = 0.05,
    other_machine: Annotated[
        bool, typer.Option("--other-machine", help="Compare although the machines differ.")
    ] = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare two runs row by row; exits with 29 if something became slower than noise explains, or was lost.

    Where nothing but AUCs became worse it exits with 28.

    Example: fp-bench compare old.json new.json
    """
    _set_up(json_output, quiet)
    from fourphase.benchmarks.report.compare import compare as compare_runs
    from fourphase.benchmarks.report.document import cleaned, read_run

    found = compare_runs(read_run(old), read_run(new), tolerance=tolerance, other_machine=other_machine)
    with stdout_checked():
        if not json_output:
            _print_compare(found)
        print(json.dumps(cleaned(found.to_dict()), allow_nan=False))
    if found.regressions:
        _end_with(_gate(found))


def _gate(found: CompareResult) -> LatencyGateFailed | AccuracyGateFailed:
    counts = {verdict: sum(pair.verdict == verdict for pair in found.regressions) for verdict in
              dict.fromkeys(pair.verdict for pair in found.regressions)}  # fmt: skip
    words = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    worst = found.regressions[0]
    if counts.keys() == {"less accurate"}:
        return AccuracyGateFailed(f"{words}, such as {worst.row}", "train and measure again, or take OLD's version")
    return LatencyGateFailed(
        f"of {len(found.pairs)} rows, {words}, such as {worst.row} ({worst.section})",
        "measure NEW again on a quiet machine; if it stays, look at what changed",
    )


def _end_with(error: SomeStudiesFailed | LatencyGateFailed | AccuracyGateFailed) -> None:
    """Cause and cure on stderr only: stdout has its one JSON object already."""
    say_errors_as_json(False)
    print_error(error)
    raise typer.Exit(error.code)


def _set_up(json_output: bool, quiet: bool) -> None:
    be_quiet(quiet)
    say_errors_as_json(json_output)


def _print_report(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from fourphase.benchmarks.report.answers import answers_of
    from fourphase.benchmarks.report.document import machine_text
    from fourphase.benchmarks.report.gaps import gaps_of
    from fourphase.benchmarks.report.markdown import QUICK
    from fourphase.benchmarks.report.sections import SECTIONS

    gaps = [gap.section for gap in gaps_of(found)]
    table = Table("section", "status", "minutes", "gaps", "reason")

    for name, section in found["sections"].items():
        minutes = f"{found['seconds'].get(name, 0) / 60:.1f}"
        count = str(gaps.count(SECTIONS[name].title))
        table.add_row(name, section.get("status", "ok"), minutes, count, section.get("reason", ""))
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(table)
    console.print(f"{machine_text(found['machine'])}\n")
    for answer in answers_of(found):
        console.print(f"- {answer.text}")
    if found["quick"]:
        console.print(f"\n{QUICK}")


def _print_compare(found: CompareResult) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("section", "row", "verdict", "old", "new", "new / old", "noise")
    for pair in found.pairs:
        if pair.verdict != "absent":
            table.add_row(pair.section, pair.row, pair.verdict, *_pair_cells(pair))
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(table)
    counts = found.to_dict()["counts"]
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count))
    console.print(f"each row at {100 * found.confidence:.4g} % confidence: 95 % for all of them together")
    for text in found.changed:
        console.print(f"changed: {text}")
    if found.quick:
        console.print("both are rehearsals (--quick): no number here is a measurement")


def _pair_cells(pair: Pair) -> list[str]:
    from fourphase.benchmarks.report.words import significant

    if pair.ratio is None:
        return [significant(pair.old), significant(pair.new), pair.reason, ""]
    if pair.noise_from == "intervals":
        return [f"{pair.old:.3f}", f"{pair.new:.3f}", f"{pair.ratio:+.3f}", pair.noise_from]
    noise = "not known" if pair.noise is None else f"±{100 * pair.noise:.1f} % ({pair.noise_from})"
    return [significant(pair.old), significant(pair.new), f"{pair.ratio:.3f}", noise]
