"""A report as Markdown for a repository: answers, the tables of every section, gaps, settings."""

from __future__ import annotations

import json

from fourphase.benchmarks.report.answers import answers_of
from fourphase.benchmarks.report.document import ending_text, is_complete, machine_text
from fourphase.benchmarks.report.gaps import gap_table
from fourphase.benchmarks.report.reading import Row, section_of
from fourphase.benchmarks.report.sections import SECTIONS
from fourphase.benchmarks.report.tables import tables_of
from fourphase.benchmarks.report.text_table import escaped

__all__ = ["NOTICE", "QUICK", "report_markdown"]

QUICK = "REHEARSAL (--quick): tiny networks. This shows that the code runs; no number in it is a measurement."
NOTICE = "Research use only. Latencies are of networks with untrained weights, on synthetic studies."


def report_markdown(report: Row) -> str:
    """The numbers of the page as tables, under one heading."""
    lines = ["# Benchmarks", "", f"Machine: {escaped(machine_text(report['machine']))}. {escaped(_when(report))}"]
    lines += ["", f"**{QUICK}**"] if report.get("quick") else []
    lines += ["", NOTICE, "", "## Answers", ""]
    lines += [f"- {escaped(answer.text)}" for answer in answers_of(report)] or ["Nothing was measured."]
    for name, tables in tables_of(report).items():
        section = section_of(report, name)
        if not tables and is_complete(section):
            continue
        lines += ["", f"## {SECTIONS[name].title}", ""]
        if not is_complete(section):
            lines += [f"**{escaped(ending_text(section))}**", ""]
        if name == "baselines" and section.get("warning"):
            lines += [f"**{escaped(str(section['warning']))}**", ""]
        lines += ["\n".join(table.markdown() for table in tables).rstrip("\n")]
    gaps = gap_table(report)
    if gaps:
        lines += ["", "## What is not here", "", gaps.markdown().split("\n\n", 1)[1].rstrip("\n")]
    return "\n".join([*lines, "", "## Settings and versions", "", *_settings(report)]) + "\n"


def _when(report: Row) -> str:
    created = report.get("created")
    return f"Measured on {created} with fourphase {_packages(report).get('fourphase') or '?'}." if created else ""


def _packages(report: Row) -> Row:
    found: Row = report["machine"].get("packages") or {}
    return found


def _settings(report: Row) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in _packages(report).items() if version)
    lines = [f"- Python {report['machine'].get('python')}; {versions}"]
    for name, section in SECTIONS.items():
        settings = section_of(report, name).get("settings")
        if settings:
            lines.append(f"- {section.title}: `{json.dumps(settings, ensure_ascii=False)}`")
    return lines
