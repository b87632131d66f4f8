"""The result of `fp-bench end-to-end` for a person: a table, the ratios, and what the numbers do not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["STEPS", "print_result", "ratio_text"]

#: Of the longest pipeline's name.
_NAME_WIDTH = 22
#: In the order in which a study passes them; the plain pipelines look for no breathing.
STEPS = ("scan", "read", "preprocess", "breathing", "inference", "rest")


def print_result(result: Mapping[str, Any]) -> None:
    """Prints a result of `fourphase.end-to-end/1` on stdout."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if result["quick"]:
        console.print("a rehearsal (--quick): these are no measurements")
    for table in (_totals(result), _steps(result)):
        console.print(table)
        console.print()
    for name, row in result["pipelines"].items():
        if row["status"] != "ok":
            console.print(f"{name}: {row['status']}: {row['reason']}")
    for pair in result["ratios"]:
        if all(result["pipelines"][pair[side]]["status"] == "ok" for side in "ab"):
            console.print(ratio_text(pair))
    console.print(_circumstances(result))


def ratio_text(pair: Mapping[str, Any]) -> str:
    """One sentence on a ratio, or on why there is none."""
    ratio, names = pair["ratio"], f"{pair['a']} over {pair['b']}"
    if ratio["value"] is None:
        return f"{names}: no ratio ({ratio['refused']})"
    return f"{names}: {ratio['value']:.2f} x the time ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _totals(result: Mapping[str, Any]) -> Table:
    table = _table("pipeline", "cold s", "warm s", "min-max", "peak MB", "input", "logits")
    for name, row in result["pipelines"].items():
        agreed, total = result["agreement"].get(name), row["warm"] and row["warm"]["total_ms"]
        table.add_row(
            name,
            "" if row["cold_ms"] is None else f"{row['cold_ms']['total'] / 1e3:.2f}",
            f"{total['p50'] / 1e3:.2f}" if total else row["status"].replace("not measured", "left out"),
            f"{total['min'] / 1e3:.2f}-{total['max'] / 1e3:.2f}" if total else "",
            "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}",
            _short(agreed and agreed["input_max_abs"]),
            _short(agreed and agreed["logits_relative"]),
        )
    return table


def _steps(result: Mapping[str, Any]) -> Table:
    """Milliseconds, medians of the warm rounds."""
    table = _table("ms, warm", *STEPS)
    for name, row in result["pipelines"].items():
        if row["warm"]:
            steps = row["warm"]["steps_ms"]
            table.add_row(name, *(f"{steps[step]:.0f}" if step in steps else "-" for step in STEPS))
    return table


def _table(first: str, *others: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(first, no_wrap=True, min_width=_NAME_WIDTH)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def _circumstances(result: Mapping[str, Any]) -> str:
    settings, study = result["settings"], result["study"]
    protocol, watched = settings["protocol"], result["watched"] or {}
    busy = watched.get("busy_elsewhere")
    turns = (
        f"{protocol['rounds']} rounds in turns after {protocol['cold_starts']} cold and {protocol['warmups']} warm-up"
    )
    lines = [
        f"{study['what']}, {study['files']:,} files, {study['bytes'] / 1e6:.0f} MB; {turns}, "
        f"{settings['threads']} threads; input, logits: largest differences from {settings['reference']}, the logits' "
        "relative",
        *result["notes"],
        *settings["warnings"],
    ]
    if busy is not None:
        lines.append(f"other processes took {busy:.0%} of the usable cores meanwhile")
    return "\n".join(lines)
