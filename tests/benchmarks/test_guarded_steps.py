"""Steps in processes of their own: what happens inside one is recorded and touches no other."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from fourphase.benchmarks import guarded_steps
from fourphase.benchmarks.guarded_steps import Step, run_step, run_steps

STEPS = """
import os, signal, subprocess, sys, time
from fourphase.benchmarks.guarded_steps import Outcome
from fourphase.runtime.errors import EngineBuildFailed

def fine(save, value):
    return Outcome("ok", result={"value": value + 1})

def unwell(save):
    save({"half": 1})
    raise EngineBuildFailed("the builder refused\\nsecond line", "use another", table=[{"says": "no kernel"}])

def crashing(save):
    save({"half": 1})
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)

def endless(save, marker):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    save({"child": child.pid})
    time.sleep(600)

def nested(save):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        save({"child": child.pid})
        time.sleep(600)
    finally:
        child.kill()
        child.wait()

def stubborn(save):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    save({"half": 1})
    time.sleep(600)

def silent(save):
    sys.exit(3)

def not_a_number(save):
    return Outcome("ok", result={"value": float("nan")})
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_steps.py").write_text(STEPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def step(name: str, **arguments: Any) -> Step:
    return Step(name, f"some_steps:{name}", arguments)


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie nobody has collected yet does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_step_that_goes_well() -> None:
    record = run_step(step("fine", value=41), 60)
    assert record["status"] == "ok"
    assert record["result"] == {"value": 42}
    assert record["error"] is None
    assert record["seconds"] > 0


def test_a_step_that_raises_leaves_the_whole_error_and_what_it_had() -> None:
    record = run_step(step("unwell"), 60)
    assert (record["status"], record["reason"]) == ("failed", "the builder refused")
    assert record["result"] == {"half": 1}
    error = record["error"]
    assert error["type"] == "EngineBuildFailed"
    assert error["message"] == "the builder refused\nsecond line"
    assert (error["code"], error["hint"], error["table"]) == (26, "use another", [{"says": "no kernel"}])
    assert "in unwell" in error["traceback"]


def test_a_step_that_crashes_leaves_its_last_words() -> None:
    record = run_step(step("crashing"), 60)
    assert (record["status"], record["reason"]) == ("crashed", "ended by SIGSEGV")
    assert record["result"] == {"half": 1}
    assert "last words" in record["output_tail"]
    assert "Segmentation fault" in record["output_tail"]


def test_a_step_out_of_time_is_ended_with_its_children() -> None:
    started = time.monotonic()
    record = run_step(step("endless", marker=1), 3)
    assert time.monotonic() - started < 20
    assert (record["status"], record["reason"][:15]) == ("timeout", "stopped after 3")
    child = record["result"]["child"]
    for _ in range(50):
        if not is_alive(child):
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        pytest.fail("the step's child is still there")


def test_a_step_without_a_record_and_one_with_a_record_that_is_no_json() -> None:
    assert run_step(step("silent"), 60)["reason"] == "ended with exit code 3 and no record"
    record = run_step(step("not_a_number"), 60)
    assert record["status"] == "failed"
    assert "JSON" in record["reason"]
    assert run_step(Step("x", "some_steps:absent"), 60)["error"]["type"] == "AttributeError"


def test_steps_wait_for_what_they_need_and_stand_in_for_what_failed() -> None:
    records: dict[str, dict[str, Any]] = {}
    steps = [
        step("unwell"),
        step("fine", value=1),
        Step("spare", "some_steps:fine", {"value": 2}, instead_of="unwell"),
        Step("needless", "some_steps:fine", {"value": 3}, instead_of="fine"),
        Step("impossible", "some_steps:fine", {"value": 4}, needs="unwell"),
        Step("possible", "some_steps:fine", {"value": 5}, needs="fine"),
        Step("alone", "some_steps:fine", {"value": 6}, needs="not among these", instead_of="nor this"),
    ]
    run_steps(steps, 60, records.__setitem__)
    assert list(records) == ["unwell", "fine", "spare", "needless", "impossible", "possible", "alone"]
    assert {name: record["status"] for name, record in records.items()} == {
        "unwell": "failed",
        "fine": "ok",
        "spare": "ok",
        "needless": "skipped",
        "impossible": "skipped",
        "possible": "ok",
        "alone": "ok",
    }
    assert records["needless"]["reason"] == "not needed: fine is ok"
    assert records["impossible"]["reason"] == "not possible: unwell is failed"
    assert {frozenset(record) for record in records.values()} == {frozenset(records["fine"])}


def test_when_the_time_of_all_is_over_no_step_is_begun() -> None:
    """The clock is read at the start and before every step: 0, 0, 70 and 95 s of 100."""
    times = iter([0.0, 0.0, 70.0, 95.0])
    records: dict[str, dict[str, Any]] = {}
    steps = [Step(name, "some_steps:fine", {"value": 1}) for name in ("a", "b", "c")]
    run_steps(steps, 60, records.__setitem__, 100, clock=times.__next__)
    assert [record["status"] for record in records.values()] == ["ok", "ok", "skipped"]
    assert records["c"]["reason"] == "the 100 s of the call are over"


def test_the_last_step_gets_only_what_is_left(tmp_path: Path) -> None:
    times = iter([0.0, 87.0])
    records: dict[str, dict[str, Any]] = {}
    step = Step("last", "some_steps:endless", {"marker": str(tmp_path)})
    started = time.monotonic()
    run_steps([step], 600, records.__setitem__, 100, clock=times.__next__)
    assert records["last"]["status"] == "timeout"
    assert records["last"]["reason"].startswith("stopped after 13 s")
    assert time.monotonic() - started < 60


def test_a_step_out_of_time_ends_what_is_a_group_of_its_own() -> None:
    """Its child leads a session, as benchmarks' workers do: only the step itself can end it."""
    record = run_step(step("nested"), 3)
    assert record["status"] == "timeout"
    child = record["result"]["child"]
    if is_alive(child):
        os.kill(child, 9)
        pytest.fail("the step's child is still there")


def test_a_step_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_steps, "_FAREWELL_S", 0.5)
    started = time.monotonic()
    record = run_step(step("stubborn"), 3)
    assert (record["status"], record["result"]) == ("timeout", {"half": 1})
    assert time.monotonic() - started < 12
