"""A result printed for a person: the answer first, then what it rests on."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fourphase.runtime.result import NOTICE, StudyResult

__all__ = ["print_result"]


def print_result(result: StudyResult) -> None:
    """Prints one study's result on stdout: prediction, phases with their evidence, box, backend, times, warnings."""
    console = Console(highlight=False, soft_wrap=True)
    percent = ", ".join(f"{name} {value:.1%}" for name, value in result.probabilities.items())
    console.print(f"\n[bold]{result.label}[/bold]  ({percent})  {NOTICE}")
    for notice in result.warnings:
        console.print(f"warning  {notice.message}", markup=False)
    console.print(f"case {result.case}")
    console.print(_phase_table(result))
    low, high = (", ".join(f"{value:.1f}" for value in result.box[end]) for end in ("min", "max"))
    console.print(
        f"box      {low}  to  {high}  mm (LPS), margin {result.box['margin_mm']:g} mm, {result.box['source']}"
    )
    backend, model = result.backend, result.model
    console.print(f"model    {model['bundle']} {model['precision']}, sha256 {model['sha256'][:12]}", markup=False)
    if result.preprocessing["device"] != "cpu":
        made = result.preprocessing
        console.print(f"input    made on the {made['device']}: {made['reason']}", markup=False)
    console.print(f"backend  {backend['name']}: {backend['reason']}; self-check {backend['self_check']}", markup=False)
    times = ", ".join(f"{step} {value:.0f} ms" for step, value in result.timings_ms.items())
    console.print(f"time     {times}")


def _phase_table(result: StudyResult) -> Table:
    table = Table("phase", "series", "slices", "evidence")
    for phase, record in result.phases.items():
        number = "-" if record.series_number is None else str(record.series_number)
        table.add_row(phase, number, str(record.slices), ", ".join(record.evidence))
    return table
