"""docs/benchmarks.md is what was measured: its numbers are the committed report's, and its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from fourphase.benchmarks.cli import app
from fourphase.benchmarks.report.document import machine_name, read_report
from fourphase.benchmarks.report.figures import report_csv
from fourphase.benchmarks.report.markdown import report_markdown
from fourphase.benchmarks.report.page import report_page

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
REPORTS = sorted(RESULTS.glob("*/report.json"))
RENDERED = {"report.csv": report_csv, "report.md": report_markdown, "report.html": report_page}


def test_the_page_holds_the_committed_report() -> None:
    (folder,) = re.findall(r"<!-- benchmarks/results/(\S+)/report\.json -->", PAGE)
    body = report_markdown(read_report(RESULTS / folder / "report.json")).partition("\n")[2]
    assert PAGE.partition("-->\n")[2] == body


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_a_committed_report_is_a_measurement_and_named_for_its_machine(path: Path) -> None:
    report = read_report(path)
    assert report["quick"] is False
    assert path.parent.name == machine_name(report["machine"])
    for name, write in RENDERED.items():
        assert (path.parent / name).read_text(encoding="utf-8") == write(report), name
    # No path of the machine that it was measured on.
    assert not re.search(r"/(home|root|tmp|work|usr)/", path.read_text(encoding="utf-8"))


def test_every_fp_bench_command_on_the_page_parses() -> None:
    lines = [
        line
        for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
        for line in block.splitlines()
        if line.startswith("fp-bench ")
    ]
    assert lines
    group: Any = typer.main.get_command(app)
    for line in lines:
        name, *arguments = shlex.split(line, comments=True)[1:]
        command = group.commands[name]
        command.make_context(name, arguments, resilient_parsing=False)
