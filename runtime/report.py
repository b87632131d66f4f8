"""A result printed for a person: the answer first, then what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fourphase.runtime.result import NOTICE, StudyResult

__all__ = ["print_done_before", "print_result"]


def print_result(result: StudyResult, file: TextIO | None = None, *, preview: str | None = None) -> None:
    """Prints one study's result: prediction, phases with their evidence, box, backend, times, warnings.

    Args:
        file: where to; None is stdout.
        preview: path of the picture that shows phases and box.
    """
    console = Console(file=file, highlight=False, soft_wrap=True)
    console.print("\n" + _answer(result.label, result.probabilities))
    for notice in result.warnings:
        console.print(f"warning  {notice.message}", markup=False)
    console.print(f"case {result.case}")
    console.print(_phase_table(result))
    low, high = (", ".join(f"{value:.1f}" for value in result.box[end]) for end in ("min", "max"))
    console.print(
        f"box      {low}  to  {high}  mm (LPS), margin {result.box['margin_mm']:g} mm, {result.box['source']}"
    )
    breathing = result.to_dict().get("breathing")
    if breathing:
        console.print(f"shift    {_shifts(breathing)}", markup=False)
    backend, model = result.backend, result.model
    console.print(f"model    {model['bundle']} {model['precision']}, sha256 {model['sha256'][:12]}", markup=False)
    if result.preprocessing["device"] != "cpu":
        made = result.preprocessing
        console.print(f"input    made on the {made['device']}: {made['reason']}", markup=False)
    console.print(f"backend  {backend['name']}: {backend['reason']}; self-check {backend['self_check']}", markup=False)
    if preview is not None:
        console.print(f"preview  {preview}", markup=False)
    times = ", ".join(f"{step} {value:.0f} ms" for step, value in result.timings_ms.items())
    console.print(f"time     {times}")


def print_done_before(body: Mapping[str, Any], file: TextIO | None = None) -> None:
    """Prints the answer of an earlier run, out of its result.json."""
    console = Console(file=file, highlight=False, soft_wrap=True)
    prediction = body["prediction"]
    console.print("\n" + _answer(str(prediction.get("label")), prediction.get("probabilities", {})))
    console.print(f"case {body['case']}, done before (--force repeats it)", markup=False)


def _answer(label: str, probabilities: Mapping[str, float]) -> str:
    percent = ", ".join(f"{name} {value:.1%}" for name, value in probabilities.items())
    return f"[bold]{escape(label)}[/bold]  ({escape(percent)})  {NOTICE}"


def _shifts(breathing: Mapping[str, Any]) -> str:
    """x, y, z of every phase against the reference, mm; a phase whose shift could not be told says so."""
    shifts = {
        phase: "unknown" if shift is None else ", ".join(f"{value:.1f}" for value in shift)
        for phase, shift in breathing["shift_mm"].items()
        if phase != breathing["reference"]
    }
    listed = "; ".join(f"{phase} {text}" for phase, text in shifts.items())
    return f"{listed}  mm (LPS) against {breathing['reference']}"


def _phase_table(result: StudyResult) -> Table:
    table = Table("phase", "series", "slices", "evidence")
    for phase, record in result.phases.items():
        number = "-" if record.series_number is None else str(record.series_number)
        table.add_row(phase, number, str(record.slices), escape(", ".join(record.evidence)))
    return table
