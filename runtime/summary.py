"""summary.json and summary.csv: how every study of a run of several ended, complete after each of them.

Both files hold the same entries. A study is known by its position and its case hash: folders are often called as the
patients are, so their names are left out unless they were asked for. It runs nothing.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourphase.runtime.atomic import write_file
from fourphase.runtime.result import NOTICE

__all__ = ["CSV_NAME", "JSON_NAME", "SCHEMA", "STATES", "Entry", "Summary", "write_summary"]

SCHEMA = "fourphase.summary/1"
JSON_NAME, CSV_NAME = "summary.json", "summary.csv"
#: done: run now. skipped: done before with the same content and options. failed: see `error`.
STATES = ("done", "skipped", "failed")
#: A cell that begins with one of these is a formula to a spreadsheet (the last four are the full-width forms).
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


@dataclass(frozen=True, eq=False)
class Entry:
    """How one study ended.

    Attributes:
        number: position among the studies, from 1.
        status: one of STATES.
        case, prediction: as in its result; None without one. A failed study has them if only a file could not be made.
        request: hash of content and options; None if it was not reached, or without --output.
        warnings: keys. error: as `FourphaseError.to_dict`.
        seconds: wall time, hashing included.
        study: the folder's name, only if it was asked for.
    """

    number: int
    status: str
    case: str | None
    request: str | None
    prediction: Mapping[str, Any] | None
    warnings: tuple[str, ...]
    error: Mapping[str, Any] | None
    seconds: float
    study: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            **({} if self.study is None else {"study": self.study}),
            "case": self.case,
            "request": self.request,
            "status": self.status,
            "prediction": self.prediction,
            "warnings": list(self.warnings),
            "error": self.error,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, eq=False)
class Summary:
    """The studies that have ended, in order.

    Attributes:
        studies: how many there are in all; those without an entry are pending.
        ignored: what lay beside the studies and is neither a folder nor a zip file.
        classes: of the model, in its order.
    """

    studies: int
    classes: tuple[str, ...]
    entries: tuple[Entry, ...] = ()
    ignored: int = 0
    names: bool = False

    @property
    def totals(self) -> dict[str, int]:
        """studies, done, skipped, failed, pending, ignored."""
        states = Counter(entry.status for entry in self.entries)
        counts = {state: states[state] for state in STATES}
        pending = self.studies - len(self.entries)
        return {"studies": self.studies, **counts, "pending": pending, "ignored": self.ignored}

    def to_json(self) -> str:
        body = {
            "schema": SCHEMA,
            "notice": NOTICE,
            "totals": self.totals,
            "studies": [entry.to_dict() for entry in self.entries],
        }
        return json.dumps(body, indent=1, ensure_ascii=True, allow_nan=False)

    def to_csv(self) -> str:
        """One row per study (RFC 4180); text that a spreadsheet would take for a formula begins with an apostrophe."""
        probabilities = [f"probability_{name}" for name in self.classes]
        columns = ["number", *(["study"] if self.names else []), "case", "request", "status", "label", *probabilities]
        columns += ["warnings", "error_code", "error_key", "error_message", "error_hint", "seconds"]
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer)
        writer.writerow([_cell(column) for column in columns])
        for entry in self.entries:
            row = _row(entry)
            writer.writerow([_cell(row.get(column)) for column in columns])
        return buffer.getvalue()


def write_summary(summary: Summary, output: Path) -> None:
    """Writes `output/summary.csv` and `output/summary.json`, each complete or as it was before.

    Raises: OutputNotWritable (30).
    """
    write_file(output / CSV_NAME, summary.to_csv().encode("utf-8", "backslashreplace"))
    write_file(output / JSON_NAME, summary.to_json().encode("ascii") + b"\n")


def _row(entry: Entry) -> dict[str, object]:
    """Column -> value."""
    row: dict[str, object] = entry.to_dict()
    prediction, error = entry.prediction or {}, entry.error or {}
    row |= {"label": prediction.get("label"), "warnings": " ".join(entry.warnings)}
    row |= {f"probability_{name}": value for name, value in prediction.get("probabilities", {}).items()}
    return row | {f"error_{name}": error.get(name) for name in ("code", "key", "message", "hint")}


def _cell(value: object) -> object:
    """Numbers as they are; text never as a formula (also behind blanks, which some programs drop)."""
    if isinstance(value, str) and (value.startswith(_FORMULA) or value.lstrip().startswith(_FORMULA)):
        return f"'{value}"
    return value
