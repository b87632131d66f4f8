"""Steps that cannot take each other down: each runs in a process of its own, for a limited time.

A step that raises, crashes (a native library, a poisoned CUDA context) or runs out of time leaves a record with the
full text of what happened and whatever it had saved; the next step starts afresh. What the steps do is not known here.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from fourphase.runtime.atomic import write_file
from fourphase.runtime.errors import FourphaseError

__all__ = ["Outcome", "Save", "Step", "error_record", "run_step", "run_steps"]

#: Called by a step with what it has so far: kept if the step does not come to its end.
Save = Callable[[Mapping[str, Any]], None]
#: Characters of a step's stdout and stderr that are kept if it did not go well.
_OUTPUT_KEPT = 6000
#: With less time left a step is not begun: starting Python and importing torch takes as much.
_SHORTEST_S = 10.0
#: Seconds for a step to end what it started when it is told to end.
_FAREWELL_S = 15.0
_WENT_WRONG = ("failed", "crashed", "timeout")


@dataclass(frozen=True)
class Outcome:
    """How a step ended.

    Attributes:
        status: "ok", "failed" or "skipped" by the step itself; "crashed" or "timeout" by its end.
        reason: one sentence, "" for ok.
        result: JSON types only.
    """

    status: str
    reason: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A function to run in a process of its own.

    Attributes:
        function: "package.module:name"; called as name(save=..., **arguments), returns an Outcome.
        arguments: JSON types only.
        needs: name of a step that must have gone well for this one to be possible.
        instead_of: name of a step that must have gone wrong for this one to be of use.
    """

    name: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: str | None = None
    instead_of: str | None = None


def run_steps(
    steps: Iterable[Step],
    budget_s: float,
    ended: Callable[[str, dict[str, Any]], None],
    within_s: float | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Runs steps in order, each for at most `budget_s`, and tells `ended` the name and record of each.

    A `needs` or `instead_of` that names no step of these is not looked at.

    Args:
        within_s: what all steps together may take; the last one gets what is left, the others are skipped.
    """
    statuses: dict[str, str] = {}
    started = clock()
    for step in steps:
        left = math.inf if within_s is None else within_s - (clock() - started)
        reason = _not_run(step, statuses) or ("" if left >= _SHORTEST_S else f"the {within_s:g} s of the call are over")
        record = _skipped(reason) if reason else run_step(step, min(budget_s, left))
        statuses[step.name] = record["status"]
        ended(step.name, record)


def _not_run(step: Step, statuses: Mapping[str, str]) -> str:
    """Why a step is not run, "" if it is."""
    if statuses.get(step.needs or "", "ok") != "ok":
        return f"not possible: {step.needs} is {statuses[step.needs or '']}"
    if statuses.get(step.instead_of or "", "failed") not in _WENT_WRONG:
        return f"not needed: {step.instead_of} is {statuses[step.instead_of or '']}"
    return ""


def _skipped(reason: str) -> dict[str, Any]:
    """The record of a step that was not run."""
    return {"status": "skipped", "reason": reason, "seconds": 0.0, "result": {}, "error": None, "output_tail": ""}


def run_step(step: Step, budget_s: float) -> dict[str, Any]:
    """Runs one step; never raises for what happens inside it.

    Returns: status, reason, seconds, result, error (type, message, traceback or None) and, unless ok or skipped, the
        end of what the step printed.
    """
    with tempfile.TemporaryDirectory(prefix="fourphase-step-") as folder:
        record_path, output_path = Path(folder, "record.json"), Path(folder, "output.txt")
        command = [sys.executable, "-X", "faulthandler", "-m", __name__, str(record_path), step.function]
        started = time.monotonic()
        with output_path.open("wb") as output:
            code = _run_in_group([*command, json.dumps(dict(step.arguments))], output.fileno(), budget_s)
        seconds = time.monotonic() - started
        left = json.loads(record_path.read_bytes()) if record_path.exists() else {"result": {}, "error": None}
        text = output_path.read_bytes().decode(errors="replace")
    if "status" not in left:
        left |= _unfinished(code, budget_s)
    kept = "" if left["status"] in ("ok", "skipped") else text[-_OUTPUT_KEPT:]
    return {
        **{name: left[name] for name in ("status", "reason")},
        "seconds": round(seconds, 2),
        **{name: left[name] for name in ("result", "error")},
        "output_tail": kept,
    }


def _run_in_group(command: list[str], output: int, budget_s: float) -> int | None:
    """Runs a command as the head of a process group, which is ended as a whole; None if it ran out of time."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(timeout=budget_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)  # also when we are interrupted


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks a step to end, so that it ends what it started (workers are heads of groups of their own); then kills."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_FAREWELL_S)
    # Also what it left behind in its own group (compile workers).
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _unfinished(code: int | None, budget_s: float) -> dict[str, str]:
    if code is None:
        return {"status": "timeout", "reason": f"stopped after {budget_s:g} s; the result is what it had by then"}
    if code < 0:
        return {"status": "crashed", "reason": f"ended by {signal.Signals(-code).name}"}
    return {"status": "crashed", "reason": f"ended with exit code {code} and no record"}


def error_record(error: BaseException) -> dict[str, Any]:
    """The full text of an error, with cause and cure where it is one of ours."""
    record: dict[str, Any] = {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    return {**record, **error.to_dict()} if isinstance(error, FourphaseError) else record


def _child(record_path: Path, function: str, arguments: Mapping[str, Any]) -> None:
    """The step's process: calls the function and leaves its record."""

    def save(record: Mapping[str, Any]) -> None:
        write_file(record_path, json.dumps(record, allow_nan=False).encode())

    module, _, name = function.partition(":")
    latest: Mapping[str, Any] = {}

    def save_result(result: Mapping[str, Any]) -> None:
        nonlocal latest
        latest = result
        save({"result": result, "error": None})

    try:
        outcome: Outcome = getattr(importlib.import_module(module), name)(save=save_result, **arguments)
        save({**asdict(outcome), "error": None})
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        save({"status": "failed", "reason": reason, "result": latest, "error": error_record(error)})


def _leave(number: int, frame: FrameType | None) -> None:
    """Told to end: contexts are left one by one, and end the processes that are theirs."""
    signal.signal(number, signal.SIG_IGN)  # once is enough
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    _child(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
