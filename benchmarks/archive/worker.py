"""A worker of the archive: pinned to its cores, it loads the bundle once and runs one study after the other.

    python -m fourphase.benchmarks.archive.worker

As a process it takes lines of JSON on stdin (first `{"cpus", "job"}`, then one task each) and answers each with a line
on stdout; it ends with its stdin. Which study is whose is not decided here. What a study writes is `run_outputs`'s.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourphase.benchmarks.archive.job import Job, Report, Task, Used, output_of
from fourphase.benchmarks.latency.sensors import family_ticks
from fourphase.benchmarks.with_parent import end_with_parent
from fourphase.runtime.config import canonical_json
from fourphase.runtime.console import be_quiet, print_bug
from fourphase.runtime.errors import FourphaseError

if TYPE_CHECKING:
    from fourphase.runtime.pipeline import LoadedModel
    from fourphase.runtime.run_outputs import Outcome

__all__ = ["StudyRunner", "digest_of", "main", "pin", "used"]

_PROC = Path("/proc")


class StudyRunner:
    """A loaded bundle that runs studies and writes their results.

    Raises: as `pipeline.load_model`; IntegrityError (21) if the proof is not found here.
    """

    def __init__(self, job: Job) -> None:
        from fourphase.runtime.pipeline import load_model

        if job.proof is not None:
            from fourphase.benchmarks.archive.proof import check_proof

            check_proof(job)
        self._job = job
        self._model: LoadedModel = load_model(Path(job.bundle), backend=job.backend, precision=job.precision)

    @property
    def model(self) -> dict[str, str]:
        """The backend and the precision that were chosen, and why."""
        choice = self._model.choice
        return {"backend": choice.backend.name, "precision": choice.backend.precision, "reason": choice.reason}

    def run(self, task: Task) -> Report:
        """Runs one study; what goes wrong with it is in the report."""
        from fourphase.runtime.pipeline import StudyRequest
        from fourphase.runtime.run_outputs import RunFiles, run_one

        started = time.perf_counter()
        request = StudyRequest(Path(task.folder), Path(task.box))
        outcome = run_one(self._model, request, RunFiles(output_of(self._job)), self._job.done)
        return _report(task, outcome, time.perf_counter() - started)


def _report(task: Task, outcome: Outcome, seconds: float) -> Report:
    from fourphase.runtime.run_outputs import as_error

    errors = [as_error(failure) for failure in outcome.failures]
    for failure, error in zip(outcome.failures, errors, strict=True):
        if failure is not error:
            print_bug(failure)
    body = outcome.body or {}
    return Report(
        number=task.number,
        status="failed" if errors else "skipped" if outcome.skipped else "done",
        case=body.get("case"),
        request=outcome.request,
        prediction=body.get("prediction"),
        warnings=tuple(warning["key"] for warning in body.get("warnings", ())),
        error=errors[0].to_dict() if errors else None,
        seconds=seconds,
        timings_ms=body.get("timings_ms", {}),
        digest=digest_of(body) if body else "",
        used=used(),
    )


def digest_of(result: Mapping[str, Any]) -> str:
    """sha256 of a result without what differs from run to run, its timings."""
    kept = {key: value for key, value in result.items() if key != "timings_ms"}
    return hashlib.sha256(canonical_json(kept).encode()).hexdigest()


def pin(cpus: Iterable[int]) -> None:
    """Keeps this thread, and those that it starts from now on, on these cores: the backends count threads by them."""
    os.sched_setaffinity(0, set(cpus))


def used() -> Used:
    """What this process has used so far; its decoders, which are children, included."""
    ticks = family_ticks(_PROC, os.getpid()) / os.sysconf("SC_CLK_TCK")
    # VmHWM, not getrusage's maximum: that one is inherited from whoever started this process.
    peak_kib = _counter("self/status", "VmHWM:") or 0
    return Used(ticks, peak_kib * 1024, _counter("self/io", "read_bytes:"))


def _counter(name: str, key: str) -> int | None:
    """The number behind a key of a file of proc(5); None where the kernel does not tell."""
    try:
        lines = (_PROC / name).read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(key)), None)


def main() -> None:
    """The process; without its caller there is nobody to tell anything."""
    end_with_parent(1)
    with suppress(BrokenPipeError):
        _serve()


def _serve() -> None:
    """Its own stdout is the caller's alone, whatever a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    be_quiet(True)

    def answer(body: Mapping[str, Any]) -> None:
        answers.write(json.dumps(body, allow_nan=False).encode() + b"\n")

    first = json.loads(sys.stdin.buffer.readline() or b"null")
    if first is None:
        return
    pin(first["cpus"])
    try:
        runner = StudyRunner(Job.from_dict(first["job"]))
    except FourphaseError as error:
        answer({"error": error.to_dict()})
        return
    answer({"ready": vars(used()), "model": runner.model})
    for line in iter(sys.stdin.buffer.readline, b""):
        answer({"report": runner.run(Task(**json.loads(line))).to_dict()})


if __name__ == "__main__":
    main()
