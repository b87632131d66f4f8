"""The document of a report: what it holds, how it is read back, what its machine is called. It measures nothing.

A section that did not come to its end has a `status` and a `reason` beside what it had by then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourphase.benchmarks.places import cleaned
from fourphase.benchmarks.report.sections import SECTIONS
from fourphase.runtime.errors import InputMissing, UsageError

__all__ = [
    "SCHEMA",
    "cleaned",
    "ending_text",
    "is_complete",
    "json_bytes",
    "machine_name",
    "machine_text",
    "read_json",
    "read_report",
    "read_run",
]

#: A bundle's report.json is a `fourphase.report/1`; this is another thing.
SCHEMA = "fourphase.bench-report/1"
Json = dict[str, Any]
_MAKERS = re.compile(r"\((r|tm)\)|@.*|\b(intel|amd|nvidia|geforce|cpu|processor|\d+-core)\b", re.IGNORECASE)


def read_json(path: Path) -> Json:
    """A JSON object, also as the last line of what a command printed.

    Raises: InputMissing (10) for a file that holds none.
    """
    try:
        text = path.read_text(encoding="utf-8")
        try:
            found = json.loads(text)
        except ValueError:
            found = json.loads((text.splitlines() or [""])[-1])
    except (OSError, ValueError) as error:
        raise InputMissing(
            f"{path.name} is no JSON file that can be read", "give a file that fp-bench wrote", key="report_unreadable"
        ) from error
    if not isinstance(found, dict):
        raise InputMissing(f"{path.name} holds no JSON object", "give a file that fp-bench wrote", key="no_report")
    return found


def read_report(path: Path) -> Json:
    """A report.json that can be rendered.

    Raises: InputMissing (10) for a file that is none; UsageError (2) for one of a section that is not known here.
    """
    return _checked(read_json(path), path.name)


def read_run(path: Path) -> Json:
    """A report, or the JSON object that one benchmark printed.

    Raises: as `read_json`, and for a report as `read_report`.
    """
    found = read_json(path)
    return _checked(found, path.name) if found.get("schema") == SCHEMA else found


def _checked(report: Json, file: str) -> Json:
    sections = report.get("sections")
    well_formed = isinstance(sections, dict) and all(isinstance(section, dict) for section in sections.values())
    if report.get("schema") != SCHEMA or not well_formed or not isinstance(report.get("machine"), dict):
        raise InputMissing(
            f"{file} is no benchmark report ({SCHEMA})", "give the report.json of fp-bench report", key="no_report"
        )
    for name, section in report["sections"].items():
        if name not in SECTIONS:
            raise UsageError(f"the report has an unknown section {name!r}", "render it with the version that wrote it")
        found = str(section.get("schema", "")).partition("/")[0]
        if is_complete(section) and found != SECTIONS[name].schema:
            raise InputMissing(f"section {name} is a {found or 'nothing'}", "measure it again", key="section_schema")
    return report


def is_complete(section: Mapping[str, Any]) -> bool:
    """Whether a section came to its end."""
    return bool(section.get("status", "ok") == "ok")


def ending_text(section: Mapping[str, Any]) -> str:
    """What a reader is told of a section that did not come to its end; one that was skipped did not fail."""
    reason = str(section.get("reason") or "no reason is given")
    if section["status"] == "skipped":
        return f"This section was skipped: {reason}"
    return f"This section did not come to its end ({section['status']}): {reason}"


def json_bytes(report: Mapping[str, Any]) -> bytes:
    return (json.dumps(report, indent=1, allow_nan=False) + "\n").encode()


def machine_name(machine: Mapping[str, Any]) -> str:
    """A folder's name for a machine, such as `xeon-2-cores` or `h100-80gb-hbm3`. No host name."""
    gpu, cpu = machine.get("gpu"), machine.get("cpu") or {}
    name = _slug(str((gpu or cpu).get("name") or ""))
    if gpu and name:
        return name
    cores = cpu.get("usable_cores")
    return "-".join(filter(None, [name or "unknown", f"{cores}-cores" if cores else ""]))


def machine_text(machine: Mapping[str, Any]) -> str:
    """One line: GPU or CPU, cores, memory, system."""
    gpu, cpu = machine.get("gpu"), machine.get("cpu") or {}
    memory = machine.get("memory_bytes")
    parts = [
        str(gpu["name"]) if gpu else "",
        re.sub(r"\((r|tm)\)", "", str(cpu.get("name") or "unknown CPU"), flags=re.IGNORECASE),
        f"{cpu['usable_cores']} usable cores" if cpu.get("usable_cores") else "",
        f"{memory / 1e9:.0f} GB of memory" if memory else "",
        str(machine.get("os") or ""),
        "" if gpu else "no GPU",
    ]
    return ", ".join(filter(None, parts))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", _MAKERS.sub(" ", text).lower()).strip("-")
