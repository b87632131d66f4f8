"""An archive run for a person: the modes in a table, what the figures mean, and what became of the archive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

__all__ = ["show"]

_COLUMNS = ("mode", "workers", "cores each", "studies/h", "seconds", "speedup (95 %)", "efficiency", "busy", "memory")
#: What the table takes: narrower, its cells are broken.
_WIDTH = 110


def show(result: Mapping[str, Any], file: TextIO | None = None) -> None:
    """Prints the JSON of `fp-bench archive`; `file`: None is stdout."""
    console = Console(file=file, highlight=False, soft_wrap=True)
    console.width = max(console.width, _WIDTH)
    if result["quick"]:
        console.print("REHEARSAL: tiny phantoms, too few rounds; no figure here is a measurement")
    if result["phantoms"]:
        console.print("PHANTOMS: synthetic studies; how fast, nothing of how right")
    table = Table(*_COLUMNS)
    for row in result["rows"]:
        table.add_row(*_cells(row))
    console.print(table)
    for row in result["rows"]:
        if row["status"] != "ok" or row["failed"] or row.get("same_results") is False:
            console.print(f"{row['mode']} ({row['workers']}): {_trouble(row)}", markup=False)
    for failure in _failures(result):
        console.print(f"study {failure['study']}: {failure['error']['message']}", markup=False)
    for sentence in result["explanation"]:
        console.print(sentence, markup=False)
    if result["run"] is not None:
        console.print(_about_run(result["run"]), markup=False)


def _failures(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of the run, or else of the mode with the most: the others have the same studies."""
    worst: Mapping[str, Any] = max(result["rows"], key=lambda row: len(row.get("failures", [])), default={})
    return list((result["run"] or {}).get("failures") or worst.get("failures", []))


def _cells(row: Mapping[str, Any]) -> list[str]:
    known = [row["mode"], str(row["workers"]), str(row["threads_each"])]
    if row["seconds"] is None:
        return [*known, row["status"], *[""] * (len(_COLUMNS) - len(known) - 1)]
    per_hour = "" if row["studies_per_hour"] is None else f"{row['studies_per_hour']:.0f}"
    efficiency = "" if row["efficiency"] is None else f"{row['efficiency']:.0%}"
    busy = f"{row['busy']:.0%}" if "busy" in row else ""
    memory = f"{row['peak_bytes'] / 1e9:.1f} GB" if "peak_bytes" in row else ""
    return [*known, per_hour, f"{row['seconds']:.2f}", _ratio(row["speedup"]), efficiency, busy, memory]


def _ratio(ratio: Mapping[str, Any] | None) -> str:
    if ratio is None:
        return ""
    if ratio["value"] is None:
        return "not quoted"
    return f"{ratio['value']:.2f} ({ratio['low']:.2f} - {ratio['high']:.2f})"


def _trouble(row: Mapping[str, Any]) -> str:
    said = [row["reason"]] if row["reason"] else []
    said += [f"{row['failed']} studies failed"] if row["failed"] else []
    said += ["its results differ from those of one core"] if row.get("same_results") is False else []
    return "; ".join(said)


def _about_run(run: Mapping[str, Any]) -> str:
    totals = ", ".join(f"{count} {name}" for name, count in run["totals"].items() if count or name == "failed")
    backend = run["backend"]
    how = f"{run['mode']}, {run['workers']} x {run['threads_each']} cores"
    model = f"{backend.get('backend')} {backend.get('precision')}"
    return f"the archive: {totals}; {run['seconds']:.1f} s by {how}, {model}"
