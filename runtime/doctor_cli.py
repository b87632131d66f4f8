"""`fp-doctor`: what this machine can do, and what would go wrong on it. It needs no GPU, no bundle and no study."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fourphase.runtime.console import be_quiet, progress, run_app, stdout_checked
from fourphase.runtime.doctor_types import SECTIONS, Check, Facts
from fourphase.runtime.errors import EnvironmentFault

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fourphase.runtime.doctor import Verdict

__all__ = ["app", "main", "report_json"]

SCHEMA = "fourphase.doctor/1"
_TITLES = {"gpu": "GPU", "tensorrt": "TensorRT", "backends": "Backends of fp-run"}
_STYLES = {"ok": "green", "note": "blue", "warning": "yellow", "problem": "bold red"}
#: Without a terminal: a log, a mail, a ticket.
_WIDTH = 80

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Print facts, checks and verdict as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only warnings, problems and the verdict.")] = False,
) -> None:
    """Say what this machine can do: GPU, TensorRT, backends, decoders, packages. It changes nothing.

    Ends with 0 if fp-run works here (a GPU is not needed), with 24 if a package is missing or broken, or a version is
    installed that is known to give wrong answers.

    Example: fp-doctor --json > machine.json
    """
    be_quiet(quiet)
    from fourphase.runtime.doctor import checks_of, verdict_of
    from fourphase.runtime.doctor_facts import collect

    with progress("looking at this machine", None):
        facts = collect()
    checks = checks_of(facts)
    verdict = verdict_of(facts, checks)
    with stdout_checked():
        if json_output:
            print(report_json(facts, checks, verdict))
        else:
            _print(checks, verdict, quiet)
    problems = [check for check in checks if check.status == "problem"]
    if problems:
        more = f" (and {len(problems) - 1} more, see above)" if len(problems) > 1 else ""
        raise EnvironmentFault(f"{problems[0].message}{more}", problems[0].hint, key="machine_problem")


def main() -> None:
    """Entry point of `fp-doctor`."""
    run_app(app, "fp-doctor")


def report_json(facts: Facts, checks: tuple[Check, ...], verdict: Verdict) -> str:
    """The report as JSON of schema fourphase.doctor/1; the same machine gives the same order of everything."""
    body = {
        "schema": SCHEMA,
        "facts": asdict(facts),
        "checks": [asdict(check) for check in checks],
        "verdict": asdict(verdict),
    }
    return json.dumps(body, indent=1, allow_nan=False)


def _print(checks: tuple[Check, ...], verdict: Verdict, quiet: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    for section in SECTIONS:
        shown = [
            check
            for check in checks
            if check.section == section and (not quiet or check.status in ("warning", "problem"))
        ]
        if shown:
            console.print(Text(f"\n{_TITLES.get(section, section.capitalize())}", style="bold"))
            console.print(_table(shown))
    counts = {status: sum(check.status == status for check in checks) for status in ("problem", "warning")}
    named = [f"{count} {status}{'s' if count > 1 else ''}" for status, count in counts.items() if count]
    console.print(Text(f"\nVerdict: {', '.join(named) or 'nothing in the way'}", style="bold"))
    for sentence in (verdict.fp_run, verdict.build_engine):
        console.print(Text(f"{sentence}."))


def _table(checks: list[Check]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(width=9)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(Text(f"  {check.status}", style=_STYLES[check.status]), Text(check.message))
        if check.hint:
            cure = check.hint if check.status == "note" else f"fix: {check.hint}"
            table.add_row("", Text(cure, style="italic"))
    return table


if __name__ == "__main__":
    main()
