"""Measures the sections one after the other and keeps the report whole on disk after each. It draws nothing itself.

Each section runs in a process of its own within its budget, so that one that fails takes none of the others with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fourphase.benchmarks.guarded_steps import Step, run_step
from fourphase.benchmarks.report.document import SCHEMA, cleaned, is_complete, read_report
from fourphase.benchmarks.report.reading import dig
from fourphase.benchmarks.report.sections import SECTIONS, Section
from fourphase.benchmarks.report.write import write_report
from fourphase.runtime.atomic import write_file
from fourphase.runtime.console import note, progress
from fourphase.runtime.errors import InputMissing, UsageError

__all__ = ["Plan", "failed_sections", "measure_report"]

Json = dict[str, Any]
Run = Callable[[Step, float], dict[str, Any]]
#: What a section says that could not do its work; "skipped" is a gap and no failure.
_WENT_WRONG = ("failed", "crashed", "timeout")
_MACHINE = Step("machine", "fourphase.benchmarks.machine:describe_machine")
_MACHINE_S = 120.0


@dataclass(frozen=True)
class Plan:
    """What to measure and where to.

    Attributes:
        folder: gets report.json, report.csv, report.md, report.html, and failed-<section>.txt of what failed.
        budget_minutes: of each section.
        resume: go on from the folder's report.json; sections that came to their end are not measured again.
    """

    folder: Path
    sections: Sequence[Section]
    quick: bool = False
    budget_minutes: float = 90.0
    resume: bool = False


def measure_report(plan: Plan, run: Run = run_step) -> Json:
    """Measures and writes; `run` runs one step in a process of its own.

    Returns: the report, as written.

    Raises: UsageError (2) to resume on another machine, with other versions or from a rehearsal, and vice versa;
        OutputNotWritable (30).
    """
    report = _begun(plan, run)
    left = [section for section in plan.sections if not _is_done(report, section)]
    write_report(plan.folder, report)
    for index, section in enumerate(left):
        following = ", ".join(one.name for one in left[index + 1 :])
        words = f"{section.name} ({index + 1} of {len(left)}{f'; then {following}' if following else ''})"
        note(f"measuring {words}")
        with progress(words, None):
            record = run(section.step(plan.quick), 60 * plan.budget_minutes)
        report["sections"][section.name] = _entry(section, record)
        report["seconds"][section.name] = record["seconds"]
        report["sections"] = {name: report["sections"][name] for name in SECTIONS if name in report["sections"]}
        _keep_failure(plan.folder, section.name, record)
        write_report(plan.folder, report)
        status = report["sections"][section.name].get("status", "ok")
        note(f"{section.name}: {status} ({record['seconds']:.0f} s) {record['reason']}".rstrip())
    return report


def failed_sections(report: Mapping[str, Any]) -> dict[str, str]:
    """Section -> why it did not come to its end."""
    return {
        name: str(section["reason"])
        for name, section in report["sections"].items()
        if section.get("status") in _WENT_WRONG
    }


def _begun(plan: Plan, run: Run) -> Json:
    """A report without sections, or the one to go on with."""
    machine = cleaned(run(_MACHINE, _MACHINE_S)["result"])
    settings = {"sections": [section.name for section in plan.sections], "budget_minutes": plan.budget_minutes}
    path = plan.folder / "report.json"
    if not plan.resume:
        if path.exists():
            raise UsageError(
                f"{path.name} is there already", "give --resume to go on with it, or another folder", key="report_there"
            )
        created = datetime.now(timezone.utc).date().isoformat()
        return {"schema": SCHEMA, "created": created, "quick": plan.quick, "machine": machine, "settings": settings,
                "seconds": {}, "sections": {}}  # fmt: skip
    if not path.exists():
        raise InputMissing("there is no report.json to go on with", "leave out --resume", key="report_missing")
    report = read_report(path)
    if bool(report["quick"]) != plan.quick:
        raise UsageError("a rehearsal and a measurement make no report", "resume it as it began", key="quick_differs")
    if _identity(report["machine"]) != _identity(machine):
        raise UsageError("the report is of another machine", "measure this machine in a new folder", key="machine")
    before, now = _versions(report["machine"]), _versions(machine)
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        raise UsageError(
            f"the report was begun with other versions of {', '.join(changed)}",
            "go on with the versions that it began with, or measure in a new folder",
            key="versions_differ",
        )
    asked = [*(dig(report, "settings", "sections") or ()), *(section.name for section in plan.sections)]
    return {**report, "settings": {**settings, "sections": [name for name in SECTIONS if name in asked]}}


def _identity(machine: Mapping[str, Any]) -> tuple[Any, ...]:
    return machine.get("cpu"), (machine.get("gpu") or {}).get("name")


def _versions(machine: Mapping[str, Any]) -> dict[str, Any]:
    return {"Python": machine.get("python"), **(machine.get("packages") or {})}


def _is_done(report: Mapping[str, Any], section: Section) -> bool:
    found = report["sections"].get(section.name)
    return found is not None and is_complete(found)


def _entry(section: Section, record: Mapping[str, Any]) -> Json:
    """What the report holds of a step: its result, with status and reason unless all went well."""
    result, status, reason = dict(record["result"]), record["status"], record["reason"]
    schema = str(result.get("schema", ""))
    if status == "ok" and schema.partition("/")[0] != section.schema:
        status, reason = "failed", f"its result says that it is {schema or 'nothing'}, not {section.schema}"
    if status == "ok":
        return dict(cleaned(result))
    error = record.get("error") or {}
    kept = {name: error[name] for name in ("type", "key", "message", "hint") if error.get(name)}
    return dict(cleaned({**result, "status": status, "reason": reason, **({"error": kept} if kept else {})}))


def _keep_failure(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """The full text of what went wrong, for who looks for the cause; gone when the section is measured well."""
    path = folder / f"failed-{name}.txt"
    if record["status"] not in _WENT_WRONG:
        path.unlink(missing_ok=True)
        return
    trace = (record.get("error") or {}).get("traceback", "")
    write_file(path, cleaned("\n".join([record["reason"], trace, record.get("output_tail", "")])).encode())
