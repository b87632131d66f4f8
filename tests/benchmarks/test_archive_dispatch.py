"""Which worker gets which study, and what becomes of a study whose worker dies: on a team without processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from fourphase.benchmarks.archive.dispatch import Turn, run_tasks
from fourphase.benchmarks.archive.job import Report, Task, Used, failed_report
from fourphase.benchmarks.archive.team import Ended, Event, Ready, Reported
from fourphase.runtime.errors import GPU_LOST, EnvironmentFault, GPUUnavailable

MODEL = {"backend": "none"}


class Script:
    """Workers that need one tick per study; `deadly`: study -> how many workers die of it; `unborn`: never ready."""

    def __init__(self, size: int, deadly: dict[int, int] | None = None, unborn: tuple[int, ...] = ()) -> None:
        self.size, self.deadly, self.unborn = size, dict(deadly or {}), unborn
        self.now, self.closed = 0.0, False
        self.given: list[tuple[int, int]] = []
        self.started: list[int] = []
        self._events: deque[Event] = deque()
        self._cpu = dict.fromkeys(range(size), 1.0)

    def start(self, worker: int) -> None:
        self.started.append(worker)
        self._cpu[worker] = 1.0
        gone = worker in self.unborn
        self._events.append(Ended(worker, "broke") if gone else Ready(worker, Used(1.0, 10, 100), MODEL))

    def give(self, worker: int, task: Task) -> None:
        self.given.append((worker, task.number))
        if self.deadly.get(task.number, 0) > 0:
            self.deadly[task.number] -= 1
            self._events.append(Ended(worker, "was ended by SIGKILL"))
            return
        self._cpu[worker] += 2.0
        used = Used(self._cpu[worker], 20, 130)
        report = Report(task.number, "done", "case", None, None, (), None, 1.0, {}, f"digest {task.number}", used)
        self._events.append(Reported(worker, report))

    def wait(self) -> Event:
        self.now += 1.0
        return self._events.popleft()

    def close(self) -> None:
        self.closed = True


def tasks(count: int) -> list[Task]:
    return [Task(number, f"study {number}", "box") for number in range(1, count + 1)]


def run(team: Script, count: int, ended: Callable[[Report], None] = lambda _: None) -> Turn:
    return run_tasks(team, tasks(count), ended, clock=lambda: team.now)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_study_is_run_once_and_kept_in_order(size: int) -> None:
    team = Script(size)
    told: list[int] = []
    turn = run(team, 4, lambda report: told.append(report.number))
    assert [report.number for report in turn.reports] == [1, 2, 3, 4]
    assert [report.digest for report in turn.reports] == [f"digest {number}" for number in (1, 2, 3, 4)]
    assert sorted(number for _, number in team.given) == sorted(told) == [1, 2, 3, 4]
    assert (turn.lost, turn.failed, turn.model, team.closed) == ((), 0, MODEL, True)


def test_time_memory_and_reading_are_those_between_ready_and_the_end() -> None:
    """Two workers: ready after ticks 1 and 2, then three studies in three ticks; one worker has none at the end."""
    turn = run(Script(2), 3)
    assert (turn.start_s, turn.seconds) == (2.0, 3.0)
    assert turn.cpu_s == 6.0, "2 per study, and not what was used before"
    assert (turn.peak_bytes, turn.read_bytes) == (40, 60)
    assert turn.idle_s == {0: 0.0, 1: 1.0}


def test_reading_is_unknown_if_one_worker_cannot_tell() -> None:
    turn = run(Script(1), 1)
    assert turn.read_bytes == 30
    assert replace(turn, last={0: Used(1.0, 1, None)}).read_bytes is None


def test_what_is_timed_begins_with_the_last_worker_and_ends_before_they_are_closed() -> None:
    team, seen = Script(2), list[tuple[int, int, bool]]()

    @contextmanager
    def timed() -> Iterator[None]:
        seen.append((len(team.started), len(team.given), team.closed))
        yield
        seen.append((len(team.started), len(team.given), team.closed))

    run_tasks(team, tasks(3), lambda _: None, timed=timed)
    assert seen == [(2, 0, False), (2, 3, False)]


def test_a_study_whose_worker_dies_is_run_again_once_by_another() -> None:
    team = Script(2, deadly={2: 1})
    turn = run(team, 5)
    assert [report.status for report in turn.reports] == ["done"] * 5
    assert turn.lost == ((2, "was ended by SIGKILL"),)
    assert [number for _, number in team.given].count(2) == 2
    assert sorted(number for _, number in team.given) == [1, 2, 2, 3, 4, 5]
    assert team.started == [0, 1, 1], "the dead one is replaced"


def test_a_study_that_two_workers_die_of_fails_alone() -> None:
    team = Script(2, deadly={1: 9})
    turn = run(team, 4)
    assert [report.status for report in turn.reports] == ["failed", "done", "done", "done"]
    error = turn.reports[0].error
    assert error is not None
    assert (error["code"], error["key"]) == (24, "worker_died")
    assert [number for _, number in team.given].count(1) == 2


def test_the_last_study_is_given_to_a_worker_that_waits() -> None:
    """Nothing is left for a new worker, so none is started, and nobody waits for one."""
    team = Script(2, deadly={2: 1})
    turn = run(team, 2)
    assert team.started == [0, 1]
    assert [report.status for report in turn.reports] == ["done", "done"]
    assert team.given == [(0, 1), (1, 2), (0, 2)]


def test_the_only_worker_is_replaced_for_the_last_study() -> None:
    team = Script(1, deadly={1: 1})
    assert [report.status for report in run(team, 1).reports] == ["done"]
    assert team.started == [0, 0]


def test_a_worker_that_never_comes_up_is_done_without() -> None:
    team = Script(3, unborn=(1,))
    turn = run(team, 4)
    assert {worker for worker, _ in team.given} == {0, 2}
    assert turn.lost == ((0, "broke"),)
    assert len(turn.reports) == 4


def test_without_any_worker_it_ends() -> None:
    team = Script(2, unborn=(0, 1))
    with pytest.raises(EnvironmentFault, match="no worker is left") as caught:
        run(team, 2)
    assert caught.value.key == "no_worker_left"
    assert team.closed


def test_a_lost_gpu_ends_it() -> None:
    class Lost(Script):
        def wait(self) -> Event:
            event = super().wait()
            if isinstance(event, Reported):
                lost = GPUUnavailable("the GPU is lost", "start again", key=GPU_LOST)
                return Reported(event.worker, failed_report(Task(event.report.number, "", ""), lost, Used(0, 0, None)))
            return event

    team, told = Lost(1), list[Report]()
    with pytest.raises(GPUUnavailable) as caught:
        run(team, 3, told.append)
    assert caught.value.key == GPU_LOST
    assert [report.status for report in told] == ["failed"]
    assert team.closed
