"""Plays a group: every candidate loads in a worker of its own, then they take turns, round by round.

Loading is one after the other and nobody is measured meanwhile. A worker that fails is out with its reason; the others
play on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from fourphase.benchmarks.latency.candidate import Candidate, Task
from fourphase.benchmarks.latency.sensors import watch
from fourphase.benchmarks.latency.workers import Patience, Started, Turn, Worker, WorkerFailed

__all__ = ["LONG_S", "Played", "PlayedGroup", "Rounds", "busiest", "play"]


#: Seconds of an inference that needs no warm-up before every turn.
LONG_S = 0.5


@dataclass(frozen=True)
class Rounds:
    """How long is measured.

    Attributes:
        rounds: turns of each candidate. seconds: at least this long, all its turns together.
        iterations: at least so many per turn.
        warmup_s: unmeasured time before every turn; above 0 it is at least one inference. After a turn whose median
            is longer than LONG_S there is none: what a waiting process loses (caches, clocks) is back in milliseconds.
    """

    rounds: int = 6
    seconds: float = 3.0
    iterations: int = 1
    warmup_s: float = 0.2


@dataclass(eq=False)
class Played:
    """What became of one candidate in one group."""

    started: Started | None = None
    turns: list[Turn] = field(default_factory=list)
    failed: WorkerFailed | None = None

    @property
    def medians_ms(self) -> list[float]:
        """Of each turn: host to device, compute, device to host."""
        return [median(sample.latency_ms for sample in turn.samples) for turn in self.turns]

    @property
    def is_whole(self) -> bool:
        return self.failed is None and bool(self.turns)


@dataclass(frozen=True, eq=False)
class PlayedGroup:
    """All candidates of a group or of a part of it.

    Attributes:
        busy_elsewhere: share of the cores' time that others took during the rounds, see `busiest`; None: unknown.
    """

    played: Mapping[Candidate, Played]
    busy_elsewhere: float | None


def play(
    tasks: Mapping[Candidate, Task],
    rounds: Rounds,
    *,
    patience: Patience | None = None,
    advance: Callable[[int], None] = lambda steps: None,
) -> PlayedGroup:
    """Measures the candidates in turns (A B C, A B C, ...). `advance` is called for every turn that is through.

    Without `patience` a turn may take what it is asked for twice over, and ten minutes more.
    """
    patience = patience or Patience(turn_s=Patience.turn_s + 2 * rounds.seconds / rounds.rounds)
    played = {candidate: Played() for candidate in tasks}
    with ExitStack() as stack:
        workers: dict[Candidate, Worker] = {}
        for candidate, task in tasks.items():
            worker = stack.enter_context(Worker(task, patience))
            try:
                played[candidate].started = worker.started()
                workers[candidate] = worker
            except WorkerFailed as failed:
                played[candidate].failed = failed
                advance(rounds.rounds)
        with watch(gpu=False) as watcher:
            for _ in range(rounds.rounds):
                for candidate, worker in list(workers.items()):
                    if not _turn(worker, played[candidate], rounds):
                        del workers[candidate]
                    advance(1)
        busy = busiest(played.values(), watcher.result().busy_elsewhere)
    return PlayedGroup(played, busy)


def busiest(games: Iterable[Played], whole: float | None) -> float | None:
    """The share of the cores that others took: `whole`, of all usable cores, or the median of the turns, if larger.

    A worker watches the cores it may use: with few of them, a neighbour on one is a small share of the machine.
    """
    shares = [turn.watched["busy_elsewhere"] for game in games for turn in game.turns]
    known = [share for share in shares if share is not None]
    found = [*([median(known)] if known else []), *([] if whole is None else [whole])]
    return max(found, default=None)


def _turn(worker: Worker, played: Played, rounds: Rounds) -> bool:
    """One turn; False if it was the worker's last."""
    try:
        long = bool(played.turns) and played.medians_ms[-1] > 1e3 * LONG_S
        played.turns.append(
            worker.turn(0.0 if long else rounds.warmup_s, rounds.seconds / rounds.rounds, rounds.iterations)
        )
    except WorkerFailed as failed:
        played.failed = failed
    return played.failed is None
