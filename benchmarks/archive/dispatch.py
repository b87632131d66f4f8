"""Studies to workers, one at a time each, until all have ended; a study whose worker dies is run again once.

How workers are started and reached is the team's. Nothing is printed or written here.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from fourphase.benchmarks.archive.job import Report, Task, Used, failed_report
from fourphase.benchmarks.archive.team import Ended, Ready, Team
from fourphase.runtime.errors import GPU_LOST, EnvironmentFault, error_from_dict

__all__ = ["Turn", "run_tasks"]

#: A study that two workers died of is left alone: a third would, too.
_TRIES = 2
_NOTHING = Used(0.0, 0, None)


@dataclass(frozen=True)
class Turn:
    """All studies run once by one team.

    Attributes:
        start_s: until every worker had loaded the bundle. seconds: from then until the last study had ended.
        reports: in the order of the studies.
        first, last: each worker's use when it was ready and after its last study.
        idle_s: worker -> how long it had nothing to do before the last study ended.
        lost: (study, why) for every worker that died, in that order; study 0: it had none.
        model: backend, precision and the reason for them, as the first worker chose.
    """

    start_s: float
    seconds: float
    reports: tuple[Report, ...]
    first: dict[int, Used] = field(default_factory=dict)
    last: dict[int, Used] = field(default_factory=dict)
    idle_s: dict[int, float] = field(default_factory=dict)
    lost: tuple[tuple[int, str], ...] = ()
    model: Mapping[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        return sum(report.status == "failed" for report in self.reports)

    @property
    def failures(self) -> list[dict[str, Any]]:
        """`{"study", "error"}` of every study that failed, in their order."""
        return [{"study": one.number, "error": dict(one.error)} for one in self.reports if one.error is not None]

    @property
    def cpu_s(self) -> float:
        """Processor time of all workers; what a worker used that died is missing."""
        return sum(used.cpu_s - self.first[worker].cpu_s for worker, used in self.last.items())

    @property
    def peak_bytes(self) -> int:
        """The most memory of each worker, added up; what they share is counted in each."""
        return sum(used.peak_bytes for used in (self.first | self.last).values())

    @property
    def read_bytes(self) -> int | None:
        """Fetched from storage by all workers; None if one cannot tell."""
        total = 0
        for worker, used in self.last.items():
            before = self.first[worker].read_bytes
            if used.read_bytes is None or before is None:
                return None
            total += used.read_bytes - before
        return total


def run_tasks(
    team: Team,
    tasks: Sequence[Task],
    ended: Callable[[Report], None],
    *,
    timed: Callable[[], AbstractContextManager[None]] = nullcontext,
    clock: Callable[[], float] = time.perf_counter,
) -> Turn:
    """Runs every study on the team and tells `ended` of each, in the order in which they end; closes the team.

    Args:
        timed: entered when every worker is ready, left when the last study has ended and all workers still live.

    Raises: what a worker raises that cannot load the bundle; EnvironmentFault (24) if no worker is left;
        GPUUnavailable (22) if the GPU is lost.
    """
    try:
        return _Dispatch(team, tasks, ended, clock).run(timed)
    finally:
        team.close()


class _Dispatch:
    def __init__(
        self, team: Team, tasks: Sequence[Task], ended: Callable[[Report], None], clock: Callable[[], float]
    ) -> None:
        self._team, self._waiting, self._ended, self._clock = team, deque(tasks), ended, clock
        self._total = len(tasks)
        self._flying: dict[int, Task] = {}
        self._alive: set[int] = set()
        self._tries: Counter[int] = Counter()
        self._reports: dict[int, Report] = {}
        self._first: dict[int, Used] = {}
        self._last: dict[int, Used] = {}
        self._freed_at: dict[int, float] = {}
        self._lost: list[tuple[int, str]] = []
        self._model: Mapping[str, str] = {}

    def run(self, timed: Callable[[], AbstractContextManager[None]]) -> Turn:
        began = self._clock()
        for worker in range(self._team.size):
            self._team.start(worker)
            self._alive.add(worker)
        while len(self._first) < len(self._alive):
            self._settle()
        with timed():
            started = self._clock()
            self._feed()
            while len(self._reports) < self._total:
                self._settle()
                self._feed()
            over = self._clock()
        idle_s = {worker: over - self._freed_at.get(worker, started) for worker in sorted(self._alive)}
        reports = tuple(self._reports[number] for number in sorted(self._reports))
        used = self._first, self._last, idle_s
        return Turn(started - began, over - started, reports, *used, tuple(self._lost), self._model)

    def _settle(self) -> None:
        """The next thing that happens, and what follows from it."""
        event = self._team.wait()
        if isinstance(event, Ended):
            self._bury(event)
        elif isinstance(event, Ready):
            self._first[event.worker] = event.used
            self._model = self._model or event.model
        else:
            self._last[event.worker] = event.report.used
            self._freed_at[event.worker] = self._clock()
            self._keep(self._flying.pop(event.worker).number, event.report)

    def _feed(self) -> None:
        """A study for every worker that waits."""
        for worker in sorted(self._first.keys() - self._flying.keys()):
            if self._waiting:
                task = self._waiting.popleft()
                self._flying[worker] = task
                self._team.give(worker, task)

    def _keep(self, number: int, report: Report) -> None:
        self._reports[number] = report
        self._ended(report)
        if report.error is not None and report.error["key"] == GPU_LOST:
            raise error_from_dict(report.error)

    def _bury(self, event: Ended) -> None:
        """The study in flight goes back to the front once. A worker that died of one is replaced if there is work left.

        (One that died without a study is not: whatever ends it while it loads the bundle would do so again.)
        """
        worker, task = event.worker, self._flying.pop(event.worker, None)
        self._lost.append((task.number if task else 0, event.why))
        self._first.pop(worker, None)
        self._last.pop(worker, None)
        self._alive.discard(worker)
        if task is not None:
            self._retry(task, event.why)
            self._feed()
            if self._waiting:
                self._team.start(worker)
                self._alive.add(worker)
        if not self._alive and len(self._reports) < self._total:
            raise _no_worker(event.why)

    def _retry(self, task: Task, why: str) -> None:
        self._tries[task.number] += 1
        if self._tries[task.number] < _TRIES:
            self._waiting.appendleft(task)
        else:
            self._keep(task.number, failed_report(task, _deadly(why), _NOTHING))


def _deadly(why: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"two worker processes died of this study; the last {why}",
        "run it alone with fp-run, and look whether memory suffices; fewer --workers need less",
        key="worker_died",
    )


def _no_worker(why: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"no worker is left: the last {why}",
        "look whether memory suffices, or use fewer --workers; --resume goes on where this stopped",
        key="no_worker_left",
    )
