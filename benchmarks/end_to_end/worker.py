"""The process of one pipeline: starts cold, then runs a study whenever it is told to. Talks JSON, one line each way.

It is started as `python -m fourphase.benchmarks.end_to_end.worker SPAWNED_NS JOB`; the first line that it says is its
cold start. Then a line "run" is answered by the steps of one study, "save PATH" by writing what the last run made, and
"peak" by its largest resident memory. Whatever libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from fourphase.benchmarks.end_to_end.pipelines import PIPELINES, Job
from fourphase.benchmarks.with_parent import end_with_parent
from fourphase.runtime.errors import FourphaseError

__all__ = ["REST", "TOTAL", "peak_bytes", "said_of", "serve"]

#: What lies between the named steps: that the study did not change, the result's text, ...
REST, TOTAL = "rest", "total"
_PATHS = re.compile(r"(?<![\w.])(?:/[^\s:;,'\"()]+)+")


class Runnable(Protocol):
    def imports(self) -> None: ...

    def load(self) -> None: ...

    def run(self) -> dict[str, float]: ...

    def save(self, path: Path) -> dict[str, Any]: ...


def serve(job: Job, spawned_s: float, answers: Any, orders: Any) -> None:
    """Starts, answers orders until there are no more; an error is an answer and the end.

    Args:
        spawned_s: `time.monotonic()` of the parent when it started this process.
        answers, orders: text streams.
    """

    def answer(body: dict[str, Any]) -> None:
        answers.write(json.dumps(body, allow_nan=False) + "\n")
        answers.flush()

    try:
        pipeline, cold = _started(job, spawned_s)
        answer(cold)
        for line in orders:
            order, _, argument = line.strip().partition(" ")
            if order == "run":
                answer(_measured(pipeline))
            elif order == "save":
                answer(pipeline.save(Path(argument)))
            else:
                answer({"peak_bytes": peak_bytes()})
    except Exception as error:
        answer({"error": said_of(error)})


def _started(job: Job, spawned_s: float) -> tuple[Runnable, dict[str, float]]:
    """The pipeline after its first study, and what that took, in ms."""
    marks = [spawned_s, time.monotonic()]
    pipeline = _pipeline(job)
    pipeline.imports()
    marks.append(time.monotonic())
    pipeline.load()
    marks.append(time.monotonic())
    first = _measured(pipeline)
    start, imports, load = (1e3 * (after - before) for before, after in pairwise(marks))
    total = 1e3 * (time.monotonic() - spawned_s)
    return pipeline, {"start": start, "import": imports, "load": load, **first, TOTAL: total}


def _pipeline(job: Job) -> Runnable:
    # Each imports only what it needs: that is part of its cold start.
    if PIPELINES[job.name].ours:
        from fourphase.benchmarks.end_to_end.ours import OurPipeline

        return OurPipeline(job)
    from fourphase.benchmarks.end_to_end.plain import PlainPipeline

    return PlainPipeline(job)


def _measured(pipeline: Runnable) -> dict[str, float]:
    """Milliseconds of one study: its steps, the rest, and the total by the wall clock."""
    started = time.perf_counter()
    steps = pipeline.run()
    total = 1e3 * (time.perf_counter() - started)
    return {**steps, REST: total - sum(steps.values()), TOTAL: total}


def peak_bytes() -> int | None:
    """Largest resident memory of this process so far; its children's is not in it. None where it is not told."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024


def said_of(error: BaseException) -> str:
    """One sentence on an error, without paths."""
    if isinstance(error, FourphaseError):
        return error.message
    lines = str(error).strip().splitlines() or [""]
    return _PATHS.sub("<path>", f"{type(error).__name__}: {lines[0]}".rstrip(": "))


def _main(spawned_ns: str, job: str) -> None:
    end_with_parent(1)
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(Job(**json.loads(job)), int(spawned_ns) / 1e9, answers, sys.stdin)


if __name__ == "__main__":
    _main(*sys.argv[1:])
