"""The ladder and the parity of a report, as tables for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["precisions_text", "print_ladder", "print_parity"]


def print_parity(parity: Mapping[str, Any]) -> None:
    """One line per kind of block: the worst of its phases and stages, so that a person can take it in."""
    from rich.console import Console
    from rich.table import Table

    kinds: dict[str, Mapping[str, Any]] = {}
    for row in parity["rows"]:
        kind = row["block"].partition("/")[0]
        if kind not in kinds or row["relative"] > kinds[kind]["relative"]:
            kinds[kind] = row
    whose = "PyTorch FP32" if parity["baseline"] == "torch fp32" else parity["baseline"]
    table = Table("block", "max abs", "relative", "allowed", title=f"ONNX against {whose}, worst case")
    for kind, row in kinds.items():
        table.add_row(kind, f"{row['max_abs']:.2e}", f"{row['relative']:.2e}", f"{row['allowed']:.0e}")
    Console().print(table)


def print_ladder(report: Mapping[str, Any]) -> None:
    """One line per precision, all against the same FP32 baseline, and on what they were judged."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    judged, console = report["judged_on"], Console(highlight=False, soft_wrap=True)
    columns = ["precision", "MB", "SQNR", "max abs", "flips", *(["AUC", "AUC change"] if judged["labels"] else [])]
    title = f"against FP32, {judged['studies']} studies ({judged['source']})"
    # Without frames: eight columns fit into 80 characters.
    table = Table(*columns, "gates", title=title, box=SIMPLE_HEAD)
    for rung in report["ladder"]:
        table.add_row(*_cells(rung, judged))
    console.print(table)
    for rung in report["ladder"][1:]:
        console.print(_explained(rung), markup=False)
    if judged["note"]:
        console.print(f"note: {judged['note']}", markup=False)


def _cells(rung: Mapping[str, Any], judged: Mapping[str, Any]) -> list[str]:
    verdict = rung["verdict"]
    cells = [
        rung["precision"],
        f"{rung['bytes'] / 1e6:.3g}",
        _decibel(verdict["sqnr_db"]),
        _number(verdict["max_abs"], 2),
        f"{verdict['flips']} of {verdict['studies']}",
    ]
    if judged["labels"]:
        cells += [_number(verdict["auc"]), _change(verdict["auc_change"])]
    return [*cells, "failed: " + ", ".join(verdict["failed"]) if verdict["failed"] else "passed"]


def _explained(rung: Mapping[str, Any]) -> str:
    """Where the precision hurts most, and what it was held to."""
    gates, studies = rung["gates"], rung["verdict"]["studies"]
    allowed = "any number of flips" if gates["max_flips"] >= studies else f"flips <= {gates['max_flips']}"
    worst = min(rung["blocks"], key=lambda row: float("inf") if row["sqnr_db"] is None else row["sqnr_db"])
    return (
        f"{rung['precision']}: furthest off in {worst['block']} ({_decibel(worst['sqnr_db'])}); gates: SQNR >= "
        f"{gates['min_sqnr_db']:g} dB, {allowed}, AUC drop <= {gates['max_auc_drop']:g}"
    )


def precisions_text(blocks: Mapping[str, str]) -> str:
    """Block -> precision, grouped: "int8: stage1, stage2; fp16: stem; fp32: gru"."""
    groups: dict[str, dict[str, None]] = {}
    for block, precision in blocks.items():
        groups.setdefault(precision, {})[block.partition("/")[0]] = None
    return "; ".join(f"{precision}: {', '.join(names)}" for precision, names in sorted(groups.items(), reverse=True))


def _decibel(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _change(change: list[float] | None) -> str:
    """Its interval is in the report."""
    return "-" if change is None else f"{change[0]:+.4f}"
