"""Runs the tests marked `gpu` of a checkout and counts what came of them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fourphase.benchmarks.guarded_steps import Outcome, Save
from fourphase.runtime.cuda import probe

__all__ = ["run_gpu_tests", "run_marked_tests"]

#: The tests beside this room; an installed wheel has none.
_TESTS = Path(__file__).resolve().parents[2] / "tests"


def run_gpu_tests(save: Save, *, device: str) -> Outcome:
    """Runs `pytest -m gpu` where pytest and the tests are there."""
    if device == "cpu":
        return Outcome("skipped", f"the tests marked gpu need a CUDA device: {probe().reason}")
    if importlib.util.find_spec("pytest") is None:
        return Outcome("skipped", "pytest is not installed")
    if not _TESTS.is_dir():
        return Outcome("skipped", "there are no tests beside the package: run from a checkout")
    return run_marked_tests(_TESTS, "gpu")


def run_marked_tests(folder: Path, marker: str) -> Outcome:
    """Runs the tests of a folder with a marker, collecting only the files that speak of it: what others import may be
    missing here.

    Result: `files`, `compilers` (whether nvcc and g++ are there), `passed`, `failed`, `skipped`, `errors` (counts;
        errors are those of fixtures and of modules that cannot be imported) and `problems` (test and full text of
        every failure and error).
    """
    files = [path for path in sorted(folder.rglob("test_*.py")) if f"mark.{marker}" in path.read_text()]
    if not files:
        return Outcome("skipped", f"no test is marked {marker}")
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.xml")
        options = ["-q", "-m", marker, "--continue-on-collection-errors", "-p", "no:cacheprovider", "--tb=short"]
        command = [sys.executable, "-m", "pytest", *map(str, files), *options, f"--junitxml={report}"]
        finished = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False)
        print(finished.stdout, finished.stderr)
        if not report.exists():
            return Outcome("failed", f"pytest ended with exit code {finished.returncode} and no report")
        cases = list(ElementTree.parse(report).iter("testcase"))
    compilers = {name: shutil.which(name) is not None for name in ("nvcc", "g++")}
    result = {"files": len(files), "compilers": compilers, **_counted(cases)}
    reason = ", ".join(f"{result[name]} {name}" for name in ("passed", "failed", "errors", "skipped"))
    if result["failed"] or result["errors"]:
        return Outcome("failed", reason, result)
    return Outcome("ok" if result["passed"] else "skipped", reason, result)


def _counted(cases: list[ElementTree.Element]) -> dict[str, Any]:
    result: dict[str, Any] = {"passed": 0, "failed": 0, "errors": 0, "skipped": 0, "problems": []}
    kinds = {"failure": "failed", "error": "errors", "skipped": "skipped"}
    for case in cases:
        found = [child for child in case if child.tag in kinds]
        result[kinds[found[0].tag] if found else "passed"] += 1
        for child in found:
            if child.tag != "skipped":
                name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
                result["problems"].append({"test": name, "text": child.text or child.get("message") or ""})
    return result
