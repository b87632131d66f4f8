"""fp-doctor as a step: its report is kept, also of a machine with a problem."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

from fourphase.benchmarks.doctor_check import run_doctor


def test_the_real_report_is_kept() -> None:
    outcome = run_doctor(lambda _: None)
    assert outcome.status == "ok"
    assert outcome.result["exit_code"] in (0, 24)
    assert outcome.result["report"]["schema"] == "fourphase.doctor/1"


@pytest.mark.parametrize(
    ("code", "printed", "status", "reason"),
    [
        (24, "{}", "ok", ""),
        (1, "{}", "failed", "fp-doctor ended with exit code 1"),
        (-11, "half a li", "failed", "fp-doctor ended with exit code -11 and no JSON"),
    ],
)
def test_how_it_ended_is_told(
    code: int, printed: str, status: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = SimpleNamespace(returncode=code, stdout=printed, stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    outcome = run_doctor(lambda _: None)
    assert (outcome.status, outcome.reason) == (status, reason)
