"""The report of a GPU check: one JSON file, complete after every step, free of paths of the machine.

Where peaks were measured, every latency gets its limit and how many times the limit it is.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourphase.benchmarks.gpu_kit import read_manifest
from fourphase.benchmarks.limits import Cost, limit_of
from fourphase.benchmarks.machine import gpu_state
from fourphase.runtime.atomic import write_file
from fourphase.runtime.errors import ModelIncompatible

__all__ = ["SCHEMA", "Report", "readable", "with_limits"]

SCHEMA = "fourphase.gpu-check/1"
_KIT_KEYS = ("width", "size", "batch", "tools")


class Report:
    """Collects the records of steps and writes them all after each, so that nothing is lost if the run is ended."""

    def __init__(self, output: Path, kit: Path, header: Mapping[str, Any]) -> None:
        self.output, self.kit, self.header = output, kit, dict(header)
        self.records: dict[str, Mapping[str, Any]] = {}

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        """Raises: OutputNotWritable."""
        self.records[name] = {**record, "gpu_after": gpu_state()}
        write_file(self.output, (json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n").encode())

    def to_dict(self) -> dict[str, Any]:
        body = {"schema": SCHEMA, **self.header, "kit": self._kit(), "steps": with_limits(self.records)}
        cleaned: dict[str, Any] = readable(body, {str(self.kit): "<kit>", **_places()})
        return cleaned

    def _kit(self) -> dict[str, Any] | None:
        try:
            manifest = read_manifest(self.kit)
        except ModelIncompatible:
            return None
        return {name: manifest[name] for name in _KIT_KEYS}


def with_limits(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The records with `limit` in every measured row of a network whose cost is known.

    `times_limit` is the median compute time over the limit; copies from and to the host are left out of both.
    """
    peaks = records.get("peaks", {}).get("result", {})
    completed: dict[str, Any] = {}
    for name, record in records.items():
        result = dict(record.get("result", {}))
        if result.get("cost") and result.get("rows"):
            cost = Cost(**result["cost"])
            result["rows"] = [_with_limit(row, cost, peaks) for row in result["rows"]]
        completed[name] = {**record, "result": result}
    return completed


def _with_limit(row: Mapping[str, Any], cost: Cost, peaks: Mapping[str, Any]) -> dict[str, Any]:
    limit = limit_of(cost, peaks, row["precision"], row["batch"]) if row["status"] == "ok" else None
    if limit:
        limit["times_limit"] = row["statistics"]["compute_ms"]["p50"] / limit["limit_ms"]
    return {**row, "limit": limit}


def readable(value: Any, places: Mapping[str, str]) -> Any:
    """JSON types with six digits of every float, and every place (a path) in a string replaced by its name."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, str):
        for path in sorted(places, key=len, reverse=True):
            value = value.replace(path, places[path])
        return value
    if isinstance(value, Mapping):
        return {name: readable(part, places) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [readable(part, places) for part in value]
    return value


def _places() -> dict[str, str]:
    """The directories of this machine that error texts speak of."""
    places = {
        os.getcwd(): "<cwd>",
        str(Path(__file__).resolve().parents[1]): "<project>",
        str(Path.home()): "<home>",
        tempfile.gettempdir(): "<tmp>",
        sys.prefix: "<python>",
        sys.base_prefix: "<python>",
    }
    return {path: name for path, name in places.items() if len(path) > 1}
