"""An audit printed for a person, in 80 columns: shares per precision, then what every block computes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fourphase.engine.audit_record import Audit

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_audit", "summary"]


def summary(audit: Audit) -> str:
    """One line: "42 layers, of their bytes fp16 93%, fp32 7%", and loudly what the engine does not tell."""
    parts = [
        f"{precision} {share['share_of_bytes']:.0%}"
        for precision, share in audit.by_precision.items()
        if share["bytes"]
    ]
    line = f"{len(audit.layers)} layers, of their bytes {', '.join(parts) or 'nothing is told'}"
    loud = [
        f"{len(audit.unknown)} TYPES UNKNOWN" if audit.unknown else "",
        f"{len(audit.unseen)} WEIGHTED NODES IN NO WEIGHTED LAYER" if audit.unseen else "",
    ]
    return "; ".join(part for part in (line, *loud) if part)


def print_audit(audit: Audit, wanted: Mapping[str, str] | None = None, console: Console | None = None) -> None:
    """Prints both tables and the summary.

    Args:
        wanted: block -> precision asked for, shown beside what was found; None leaves that column out.
        console: None for stdout.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = console or Console(highlight=False)
    shares = Table("precision", "layers", "share", "MB out", "share", box=SIMPLE_HEAD, title="the engine's layers")
    for precision, share in audit.by_precision.items():
        cells = (f"{share['layers']:.0f}", f"{share['share_of_layers']:.1%}", f"{share['bytes'] / 1e6:.3g}")
        shares.add_row(precision, *cells, f"{share['share_of_bytes']:.1%}")
    console.print(shares)
    blocks = Table("block", *(["asked"] if wanted else []), "layers by precision", box=SIMPLE_HEAD)
    for block, counts in _without_phases(audit.by_block).items():
        asked = [_asked(block, wanted)] if wanted else []
        blocks.add_row(block, *asked, ", ".join(f"{precision} {count}" for precision, count in counts.items()))
    console.print(blocks)
    console.print(summary(audit), markup=False)


def _without_phases(by_block: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """ "stage1/NC", "stage1/ART" -> "stage1": the phases have one precision each, the same."""
    merged: dict[str, dict[str, int]] = {}
    for block, counts in by_block.items():
        row = merged.setdefault(block.partition("/")[0], {})
        for precision, count in counts.items():
            row[precision] = row.get(precision, 0) + count
    return merged


def _asked(kind: str, wanted: Mapping[str, str]) -> str:
    found = dict.fromkeys(precision for block, precision in wanted.items() if block.partition("/")[0] == kind)
    return ", ".join(found) or "-"
