"""How a section's JSON is read: what a section that was ended early lacks is None or nothing, never an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Row", "candidate_text", "dig", "merged_order", "rows_of", "section_of", "status_of"]

Row = Mapping[str, Any]


def section_of(report: Row, name: str) -> Row:
    """The section, {} if it was not measured."""
    found: Row = report.get("sections", {}).get(name) or {}
    return found


def rows_of(section: Row, name: str = "rows") -> list[Row]:
    return [row for row in section.get(name) or () if isinstance(row, Mapping)]


def dig(row: Row | None, *names: str) -> Any:
    """row[a][b][c], None where something on the way is not there."""
    found: Any = row
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def status_of(row: Row) -> str:
    return str(row.get("status") or "ok")


def candidate_text(row: Row) -> str:
    """`four-phase, openvino int8`, with the batch where it is not 1."""
    batch = row.get("batch")
    more = f", batch {batch}" if batch not in (None, 1) else ""
    return f"{row.get('network')}, {row.get('runtime')} {row.get('precision')}{more}"


def merged_order(lists: Iterable[Iterable[str]]) -> list[str]:
    """All names once: one that an earlier list lacks stands behind the name that precedes it in its own list."""
    order: list[str] = []
    for names in lists:
        place = 0
        for name in names:
            if name not in order:
                order.insert(place, name)
            place = order.index(name) + 1
    return order
