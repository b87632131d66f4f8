"""Counting what came of marked tests, on a folder of tests made for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourphase.benchmarks.gpu.gpu_tests import run_gpu_tests, run_marked_tests

PASSING = """
import pytest
pytestmark = pytest.mark.gpu
def test_good(): pass
def test_not_here(): pytest.skip("other GPU")
"""
FAILING = """
import pytest
@pytest.mark.gpu
def test_bad(): assert 1 == 2, "off by one"
def test_of_no_concern(): assert False
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tests"
    folder.mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs one\n")
    (folder / "test_passing.py").write_text(PASSING)
    return folder


def test_outcomes_are_counted(folder: Path) -> None:
    outcome = run_marked_tests(folder, "gpu")
    assert outcome.status == "ok"
    result = dict(outcome.result)
    assert set(result.pop("compilers")) == {"nvcc", "g++"}
    assert result == {"files": 1, "passed": 1, "failed": 0, "errors": 0, "skipped": 1, "problems": []}


def test_failures_and_modules_that_cannot_be_imported_are_told_in_full(folder: Path) -> None:
    (folder / "test_failing.py").write_text(FAILING)
    (folder / "test_broken.py").write_text("import a_package_that_is_not_there  # pytest.mark.gpu\n")
    (folder / "test_of_others.py").write_text("import another_package_that_is_not_there\n")  # not looked at
    outcome = run_marked_tests(folder, "gpu")
    assert (outcome.status, outcome.reason) == ("failed", "1 passed, 1 failed, 1 errors, 1 skipped")
    texts = {entry["test"]: entry["text"] for entry in outcome.result["problems"]}
    assert any("test_bad" in name and "off by one" in text for name, text in texts.items())
    assert any("test_broken" in name and "a_package_that_is_not_there" in text for name, text in texts.items())


def test_no_test_ran(folder: Path) -> None:
    assert run_marked_tests(folder, "slow").status == "skipped"


def test_on_the_cpu_they_are_skipped_with_the_reason() -> None:
    outcome = run_gpu_tests(lambda result: None, device="cpu")
    assert outcome.status == "skipped"
    assert "need a CUDA device" in outcome.reason
