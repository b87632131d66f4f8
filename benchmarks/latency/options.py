"""What `fp-bench latency` was asked for: names checked, words for many names resolved. It measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fourphase.benchmarks.latency.candidate import PRECISIONS
from fourphase.benchmarks.latency.runtimes import RUNTIMES
from fourphase.benchmarks.latency.turns import Rounds
from fourphase.runtime.errors import UsageError

__all__ = ["LatencyOptions", "chosen_networks", "rounds_of"]

#: Rounds of a rehearsal: as few as an interval needs. Otherwise: as many as make it narrow.
_QUICK_ROUNDS, _ROUNDS = 5, 6
_SECONDS = 3.0


@dataclass(frozen=True)
class LatencyOptions:
    """The options of the command; JSON types only, so that a step can be given them.

    Attributes:
        bundles: directories of users' own bundles. checkpoint: the one bundle's network in PyTorch.
        networks: names of the registry, or "ours", "baselines", "all"; none: four-phase and the baselines, or, with
            bundles, no network of the registry.
        runtimes, precisions: none: all. A precision that is named is measured also where it does not pay.
        rounds, seconds: None: 6 and 3 (a rehearsal: 5 and 0).
        threads: cores per worker; 0: all that this process may use (a rehearsal: 1).
        require: a named runtime that cannot be measured is an error.
        work: where prepared networks are kept instead of the cache.
    """

    bundles: Sequence[str] = ()
    checkpoint: str | None = None
    networks: Sequence[str] = ()
    runtimes: Sequence[str] = ()
    precisions: Sequence[str] = ()
    batches: Sequence[int] = (1,)
    rounds: int | None = None
    seconds: float | None = None
    threads: int = 0
    require: bool = False
    work: str | None = None

    def __post_init__(self) -> None:
        """Raises: UsageError for a name that is none, and numbers that make no sense."""
        _check_names("runtime", self.runtimes, tuple(RUNTIMES))
        _check_names("precision", self.precisions, PRECISIONS)
        if self.checkpoint and len(self.bundles) != 1:
            raise UsageError("--checkpoint belongs to one bundle", "give one BUNDLE with it", key="checkpoint_alone")
        numbers = (*self.batches, 1 if self.rounds is None else self.rounds, self.threads + 1)
        if min(numbers) < 1 or (self.seconds or 0) < 0:
            raise UsageError("a number is too small", "--batch and --rounds are 1 or more", key="number_too_small")


def chosen_networks(options: LatencyOptions) -> tuple[str, ...]:
    """The networks of the registry, in its order. Raises: UsageError for an unknown name."""
    from fourphase.benchmarks.networks import BASELINES, NETWORKS, OURS

    first = next(iter(OURS))
    words = {"all": tuple(NETWORKS), "ours": tuple(OURS), "baselines": tuple(BASELINES)}
    _check_names("network", options.networks, (*NETWORKS, *words))
    wanted = {name for given in options.networks for name in words.get(given, (given,))}
    if not options.networks and not options.bundles:
        wanted = {first, *BASELINES}
    return tuple(name for name in NETWORKS if name in wanted)


def rounds_of(options: LatencyOptions, quick: bool) -> Rounds:
    """How long is measured. A rehearsal has no warm-up and is over at once."""
    rounds = options.rounds or (_QUICK_ROUNDS if quick else _ROUNDS)
    seconds = options.seconds if options.seconds is not None else (0.0 if quick else _SECONDS)
    return Rounds(rounds, seconds, warmup_s=0.0 if quick else Rounds.warmup_s)


def _check_names(what: str, given: Sequence[str], choices: Sequence[str]) -> None:
    for name in given:
        if name not in choices:
            raise UsageError(f"unknown {what} {name!r}", f"choose one of {', '.join(choices)}", key=f"{what}_unknown")
