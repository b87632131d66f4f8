"""A report on disk: JSON, CSV, Markdown and one HTML page of the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourphase.benchmarks.report.document import json_bytes
from fourphase.benchmarks.report.figures import report_csv
from fourphase.benchmarks.report.markdown import report_markdown
from fourphase.benchmarks.report.page import report_page
from fourphase.runtime.atomic import write_file

__all__ = ["RENDERED", "render_report", "write_report"]

#: What is made from report.json.
RENDERED = ("report.csv", "report.md", "report.html")


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """report.json and what is rendered of it; each file is complete or as it was. Raises: OutputNotWritable (30)."""
    write_file(folder / "report.json", json_bytes(report))
    render_report(folder, report)


def render_report(folder: Path, report: Mapping[str, Any]) -> None:
    """CSV, Markdown and HTML. Raises: OutputNotWritable (30)."""
    texts = dict(zip(RENDERED, (report_csv(report), report_markdown(report), report_page(report)), strict=True))
    for name, text in texts.items():
        write_file(folder / name, text.encode())
