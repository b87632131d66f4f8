"""The report of a GPU check: one JSON file, complete after every step, free of paths of the machine.

Where peaks were measured, every latency gets its limit and how many times the limit it is. What engines say of
themselves is too long for it: that is in a zip beside it, one member per engine. Reports of several calls make one.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fourphase.benchmarks.gpu.kit import read_manifest
from fourphase.benchmarks.latency.limits import Cost, limit_of
from fourphase.benchmarks.machine import gpu_state
from fourphase.benchmarks.places import machine_places, readable
from fourphase.runtime.atomic import write_file
from fourphase.runtime.errors import InputMissing, ModelIncompatible, UsageError

__all__ = ["SCHEMA", "Report", "merge_reports", "recordings_file", "with_limits"]

SCHEMA = "fourphase.gpu-check/2"
#: What reports must have in common to be put together; a call without a kit has none.
_SAME = ("device", "quick", "gpu", "kit")
_KIT_KEYS = ("width", "size", "batch", "tools")


class Report:
    """Collects the records of steps and writes them all after each, so that nothing is lost if the run is ended."""

    def __init__(self, output: Path, kit: Path, header: Mapping[str, Any], recordings: Path | None = None) -> None:
        """`recordings`: the folder where steps leave what engines say."""
        self.output, self.kit, self.header, self.recordings = output, kit, dict(header), recordings
        if recordings is not None:
            recordings.mkdir(parents=True, exist_ok=True)
        self.records: dict[str, Mapping[str, Any]] = {}

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        """Raises: OutputNotWritable."""
        self.records[name] = {**record, "gpu_after": gpu_state()}
        write_file(self.output, _json(self.to_dict()))
        recorded = sorted(self.recordings.glob("*.json")) if self.recordings else []
        if recorded:
            write_file(recordings_file(self.output), _zipped({path.name: path.read_bytes() for path in recorded}))

    def to_dict(self) -> dict[str, Any]:
        body = {"schema": SCHEMA, **self.header, "kit": self._kit(), "steps": with_limits(self.records)}
        cleaned: dict[str, Any] = readable(body, {str(self.kit): "<kit>", **machine_places()})
        return cleaned

    def _kit(self) -> dict[str, Any] | None:
        try:
            manifest = read_manifest(self.kit)
        except ModelIncompatible:
            return None
        return {name: manifest[name] for name in _KIT_KEYS}


def recordings_file(report: Path) -> Path:
    """The zip that belongs to a report."""
    return report.with_name(f"{report.stem}.inspector.zip")


def merge_reports(parts: Sequence[Path], output: Path) -> dict[str, Any]:
    """One report of several calls on the same machine, and one zip of their recordings.

    A step that ran in more than one is the last one's; one that was skipped gives way to one that ran.

    Returns: the merged report, as written.

    Raises: InputMissing (10) for a file that is no such report; UsageError (2) if they are not of one machine and kit;
        OutputNotWritable (30).
    """
    reports = [_read_report(path) for path in parts]
    for key in _SAME:
        if len({json.dumps(report[key], sort_keys=True) for report in reports if report[key] is not None}) > 1:
            raise UsageError(
                f"the reports differ in {key!r}", "merge the calls of one machine and one kit", key="reports_differ"
            )
    steps: dict[str, Any] = {}
    for report in reports:
        for name, record in report["steps"].items():
            if name not in steps or record["status"] != "skipped" or steps[name]["status"] == "skipped":
                steps[name] = record
    merged = {
        "schema": SCHEMA,
        **{key: next((report[key] for report in reports if report[key] is not None), None) for key in _SAME},
        "calls": [{key: report[key] for key in ("call", "started", "wheels")} for report in reports],
        "steps": with_limits(steps),
    }
    write_file(output, _json(readable(merged, {})))
    members: dict[str, bytes] = {}
    for path in filter(Path.exists, map(recordings_file, parts)):
        with zipfile.ZipFile(path) as archive:
            members |= {name: archive.read(name) for name in archive.namelist()}
    if members:
        write_file(recordings_file(output), _zipped(members))
    return merged


def _read_report(path: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputMissing(f"{path.name} is no report that can be read", "give reports of gpu-check run") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA or "call" not in report:
        raise InputMissing(f"{path.name} is no report of one gpu-check run", "give reports of gpu-check run")
    return report


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _zipped(members: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


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
