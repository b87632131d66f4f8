"""The whole archive by one mode: results, records and summary as `fp-run` writes them, whatever happens to workers.

What is done already is skipped. A study that fails stops no other. The summary is brought up to date at most once per
second, and at the end, also after an error: the records beside the results are what a next run goes by.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fourphase.benchmarks.archive.dispatch import Turn, run_tasks
from fourphase.benchmarks.archive.job import Job, Report, Task, output_of
from fourphase.benchmarks.archive.modes import Mode, team_of, usable_cores
from fourphase.benchmarks.archive.proof import proved
from fourphase.benchmarks.archive.trial import Make, steps_ms
from fourphase.runtime.console import note, progress
from fourphase.runtime.run_outputs import done_cases
from fourphase.runtime.summary import Summary, write_summary

__all__ = ["Whole", "run_whole"]

_SUMMARY_EVERY_S = 1.0


class Whole:
    """What is known of the archive's studies so far, and its summary on disk."""

    def __init__(self, studies: int, classes: tuple[str, ...], output: Path, ignored: int = 0) -> None:
        self.summary = Summary(studies, classes, ignored=ignored)
        self._output, self._saved_at = output, -_SUMMARY_EVERY_S

    def keep(self, report: Report) -> None:
        """Puts a study into the summary and says what went wrong with it."""
        entries = sorted([*self.summary.entries, report.entry()], key=lambda entry: entry.number)
        self.summary = replace(self.summary, entries=tuple(entries))
        if report.error is not None:
            # Not as JSON on stdout: there it is part of the one document at the end.
            where = f"study {report.number} of {self.summary.studies}"
            print(f"error: {where}: {report.error['message']}\n  fix: {report.error['hint']}", file=sys.stderr)
        if time.monotonic() - self._saved_at >= _SUMMARY_EVERY_S:
            self.save()

    def save(self) -> None:
        """Raises: OutputNotWritable (30)."""
        write_summary(self.summary, self._output)
        self._saved_at = time.monotonic()


def run_whole(
    mode: Mode, job: Job, tasks: Sequence[Task], classes: tuple[str, ...], ignored: int = 0, make: Make = team_of
) -> dict[str, Any]:
    """Runs every study that is not done yet into the job's output folder.

    Args:
        classes: of the model, for the summary. ignored: what lay beside the studies.

    Returns: the JSON's section "run".

    Raises: as `dispatch.run_tasks`; OutputNotWritable (30).
    """
    output = output_of(job)
    assert output is not None
    whole = Whole(len(tasks), classes, output, ignored)
    whole.save()  # an older run's summary must not stand for this one
    own = replace(job, done=done_cases(output))
    with progress("studies", len(tasks)) as advance:

        def ended(report: Report) -> None:
            whole.keep(report)
            advance(1)

        try:
            if mode.address:
                with proved(own, tasks) as shown:
                    turn = run_tasks(make(mode, shown, usable_cores()), tasks, ended)
            else:
                turn = run_tasks(make(mode, own, usable_cores()), tasks, ended)
        finally:
            whole.save()
    for number, why in turn.lost:
        note(_about_lost(number, why, turn))
    return _section(mode, turn, whole.summary)


def _about_lost(number: int, why: str, turn: Turn) -> str:
    if number == 0:
        return f"a worker without a study {why}; the others went on"
    again = "failed" if turn.reports[number - 1].status == "failed" else "was run again"
    return f"a worker {why} while it ran study {number}, which {again}"


def _section(mode: Mode, turn: Turn, summary: Summary) -> dict[str, Any]:
    done = summary.totals["done"]
    return {
        "mode": mode.name,
        "workers": mode.workers,
        "threads_each": mode.threads,
        "backend": dict(turn.model),
        "totals": summary.totals,
        "seconds": turn.seconds,
        "start_s": turn.start_s,
        "studies_per_hour": 3600 * done / turn.seconds if done else None,
        "cpu_s": turn.cpu_s,
        "peak_bytes": turn.peak_bytes,
        "read_bytes": turn.read_bytes,
        "steps_ms": steps_ms([turn]),
        "lost_workers": [{"study": number or None, "why": why} for number, why in turn.lost],
        "failures": turn.failures,
    }
