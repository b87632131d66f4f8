"""Modes measured in turns, each once per round on the same studies, and what is reported of each.

The reference is one process on one core. What a mode gains over it, divided by its cores, is its parallel efficiency;
what was lost is told by the processor time that was used, and by when nobody had a study. A round's time begins when
every worker has loaded the bundle. What these figures mean is put into words by `findings`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from fourphase.benchmarks.archive.dispatch import Turn, run_tasks
from fourphase.benchmarks.archive.job import Job, Report, Task
from fourphase.benchmarks.archive.modes import Mode, team_of, usable_cores
from fourphase.benchmarks.archive.proof import proved
from fourphase.benchmarks.archive.ray_team import LOCAL
from fourphase.benchmarks.archive.team import Team
from fourphase.benchmarks.latency.ratio import Ratio, paired_ratio
from fourphase.benchmarks.latency.sensors import Watched, watch
from fourphase.runtime.errors import GPU_LOST, EnvironmentFault, GPUUnavailable

__all__ = ["Make", "Measured", "measure_modes", "steps_ms", "storage_wait_s"]

#: Makes the team of a mode: (mode, job, cores).
Make = Callable[[Mode, Job, Sequence[int]], Team]


@dataclass(eq=False)
class Measured:
    """What the rounds of one mode gave; `reason`: why there are none, or fewer."""

    mode: Mode
    turns: list[Turn] = field(default_factory=list)
    watched: list[Watched] = field(default_factory=list)
    reading: list[float | None] = field(default_factory=list)
    reason: str = ""

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Watches the machine while a round's time runs."""
        before = storage_wait_s()
        with watch(gpu=False) as watcher:
            yield
        after, watched = storage_wait_s(), watcher.result()
        self.watched.append(watched)
        self.reading.append(None if before is None or after is None else min((after - before) / watched.seconds, 1.0))

    @property
    def seconds(self) -> float:
        """Median of the rounds."""
        return median(turn.seconds for turn in self.turns)

    @property
    def busy(self) -> float:
        """Share of its cores' time in which they worked, 0 to 1; median of the rounds."""
        return median(turn.cpu_s / (turn.seconds * self.mode.cores) for turn in self.turns)

    @property
    def cpu_s_per_study(self) -> float:
        return median(turn.cpu_s / len(turn.reports) for turn in self.turns)

    @property
    def idle(self) -> float:
        """Share of its cores' time lost at the end, when some workers have no study left; median of the rounds."""
        shares = [
            sum(turn.idle_s.values()) * self.mode.threads / (turn.seconds * self.mode.cores) for turn in self.turns
        ]
        return median(shares)

    @property
    def waiting(self) -> float | None:
        """Share of the time in which something on the machine waited for storage; None where that is not counted."""
        told = [share for share in self.reading if share is not None]
        return median(told) if told else None

    @property
    def worst(self) -> Turn:
        """The round in which the most studies failed."""
        return max(self.turns, key=lambda turn: turn.failed)

    @property
    def done(self) -> int:
        """Studies that were run to their end, in the round with the fewest."""
        return min(len(turn.reports) - turn.failed for turn in self.turns)

    @property
    def studies_per_hour(self) -> float | None:
        """Of studies that were run to their end: one that fails takes no time, and counts for nothing."""
        return 3600 * self.done / self.seconds if self.done else None

    def agrees(self, reference: Measured) -> bool:
        """Whether the results of every round are those of the reference's first."""
        return all(digests(turn) == digests(reference.turns[0]) for turn in self.turns)

    def speedup(self, reference: Measured) -> Ratio:
        """Over the reference, round by round: above 1, this mode is faster. Refused where the work was not the same."""
        # One that dropped out has fewer rounds: the first ones are those that both took part in.
        rounds = min(len(reference.turns), len(self.turns))
        refused = self._refused(reference)
        if refused:
            return Ratio(None, None, None, rounds, refused)
        theirs, own = ([turn.seconds for turn in one.turns[:rounds]] for one in (reference, self))
        return paired_ratio(theirs, own)

    def _refused(self, reference: Measured) -> str:
        """Why there is no speedup, "" if nothing but noise can be against it."""
        if not reference.turns:
            return "one core alone was not measured"
        if not (self.done and reference.done):
            return "no study was run to its end"
        if not reference.agrees(reference):
            return "one core's results differ from round to round"
        return "" if self.agrees(reference) else "its results differ from one core's"

    def row(self, reference: Measured) -> dict[str, Any]:
        """The row of the JSON; null stands for what was not measured."""
        mode = self.mode
        known = {"mode": mode.name, "workers": mode.workers, "threads_each": mode.threads, **self._status()}
        if not self.turns or self.reason:
            nothing = dict.fromkeys(("seconds", "studies_per_hour", "speedup", "efficiency"))
            return {**known, **nothing, "failed": self.worst.failed if self.turns else None}
        speedup = self.speedup(reference)
        return {
            **known,
            "seconds": self.seconds,
            "studies_per_hour": self.studies_per_hour,
            "failed": self.worst.failed,
            "failures": self.worst.failures,
            "speedup": speedup.to_dict(),
            "efficiency": None if speedup.value is None else speedup.value / mode.cores,
            "rounds_s": [turn.seconds for turn in self.turns],
            "start_s": median(turn.start_s for turn in self.turns),
            **self._spent(),
            "backend": dict(self.turns[-1].model),
            "same_results": self.agrees(reference) if reference.turns else None,
        }

    def _spent(self) -> dict[str, Any]:
        return {
            "busy": self.busy,
            "cpu_s_per_study": self.cpu_s_per_study,
            "idle_at_the_end": self.idle,
            "waiting_for_storage": self.waiting,
            "busy_elsewhere": [one.busy_elsewhere for one in self.watched],
            "read_bytes": self.turns[-1].read_bytes,
            "peak_bytes": max(turn.peak_bytes for turn in self.turns),
            "steps_ms": steps_ms(self.turns),
            "lost_workers": sum(len(turn.lost) for turn in self.turns),
        }

    def _status(self) -> dict[str, str]:
        if self.mode.missing:
            return {"status": "missing", "reason": self.mode.missing}
        reason = self.reason or ("" if not self.turns or self.done else _all_failed(self.worst))
        return {"status": "failed" if reason else "ok", "reason": reason}


def _all_failed(turn: Turn) -> str:
    why = turn.failures[0]["error"]["message"] if turn.failures else "no study"
    return f"no study was run to its end; the first: {why}"


def digests(turn: Turn) -> list[str]:
    """What the results are, timings aside, study by study."""
    return [report.digest for report in turn.reports]


def steps_ms(turns: Sequence[Turn]) -> dict[str, float]:
    """Median of each step of a study, over all studies that were run to their end, in ms."""
    done = [report.timings_ms for turn in turns for report in turn.reports if report.status == "done"]
    return {step: median(one[step] for one in done) for step in (done[0] if done else {})}


def measure_modes(
    modes: Sequence[Mode],
    job: Job,
    tasks: Sequence[Task],
    rounds: int,
    ended: Callable[[Report], None],
    make: Make = team_of,
) -> list[Measured]:
    """Every mode once per round, on all studies, into an output folder of its own that is deleted afterwards.

    A mode that does not come up is out, with its reason; the others go on. A lost GPU ends them all.

    Args:
        job: its output folder is used only to find a place that a cluster shares.
        ended: told of every study of every round.
    """
    found = [Measured(mode) for mode in modes]
    for _ in range(rounds):
        for measured in found:
            if not (measured.mode.missing or measured.reason):
                _measure_once(measured, job, tasks, ended, make)
    return found


def _measure_once(
    measured: Measured, job: Job, tasks: Sequence[Task], ended: Callable[[Report], None], make: Make
) -> None:
    mode = measured.mode
    shared = job.output if mode.address not in ("", LOCAL) else None
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fourphase-archive-", dir=shared))
        own = replace(job, output=folder, done=None)
        if mode.address:
            own = stack.enter_context(proved(own, tasks))
        try:
            turn = run_tasks(make(mode, own, usable_cores()), tasks, ended, timed=measured.timed)
        except (EnvironmentFault, GPUUnavailable) as fault:
            if fault.key == GPU_LOST:
                raise
            measured.reason = fault.message
        else:
            measured.turns.append(turn)


def storage_wait_s(path: Path = Path("/proc/pressure/io")) -> float | None:
    """Seconds since the start in which some task waited for storage (PSI); None where the kernel does not count it."""
    try:
        some = path.read_text(encoding="ascii").split("\n")[0]
        return int(some.rpartition("total=")[2]) / 1e6
    except (OSError, ValueError):
        return None
