"""Networks trained and judged on the same phantoms in folds: every phantom is scored by a network that never saw it.

The same effort for all: optimizer, schedule, augmented studies and their order; the learning rate is each network's
best of the same few, chosen on phantoms of their own. What the scores are worth is for `baselines_bench`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fourphase.benchmarks.accuracy.cross_plan import CrossPlan, Studies, rendered
from fourphase.benchmarks.accuracy.fold_training import Job, Trained, run_jobs
from fourphase.benchmarks.networks import NETWORKS
from fourphase.runtime.console import progress
from fourphase.runtime.errors import UsageError

__all__ = ["NetworkRun", "choose_rates", "cross_validate", "folds_of", "held_out_jobs", "out_of_fold"]

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class NetworkRun:
    """A network over all folds.

    Attributes:
        rate: that was chosen; None if no rate led to a network.
        rates: rate -> cross-entropy on the tuning phantoms that it was not trained on, None where training diverged.
        logits: out of fold, float32 (N, K); None unless every fold came to its end.
        fold: of every study, (N,).
        status, reason: of the first fold that did not, see `Trained`.
        seconds_choosing, seconds_training: of all trainings, one thread each, added up.
        int8: out of fold like `logits`, by every fold's INT8 model; None if one of them is lacking.
        int8_reason: of the first fold that lacks it; "" where nobody asked.
    """

    network: str
    parameters: int
    rate: float | None
    rates: Mapping[float, float | None]
    logits: Floats | None
    fold: Indices
    status: str
    reason: str
    seconds_choosing: float
    seconds_training: float
    int8: Floats | None = None
    int8_reason: str = ""


def cross_validate(
    names: Sequence[str],
    plan: CrossPlan,
    workers: int,
    ended: Callable[[NetworkRun, Studies], None] | None = None,
) -> tuple[Studies, tuple[NetworkRun, ...]]:
    """Renders the phantoms once, chooses every network's rate, and scores every phantom out of fold.

    Args:
        names: of `NETWORKS`.
        workers: trainings at once, each in a process of its own; 1 trains in this process.
        ended: told of each network as soon as its last fold is through.

    Raises: UsageError (2, network_unknown); EnvironmentFault (24, worker_died) if a training's process was killed.
    """
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        raise UsageError(
            f"there is no network {unknown[0]!r}", f"networks are {', '.join(NETWORKS)}", key="network_unknown"
        )
    with progress("rendering phantoms", plan.count + plan.tuning) as advance:
        tuning, studies = (rendered(plan.phantoms(purpose), advance) for purpose in ("tuning", "folds"))
    chosen = choose_rates(names, tuning, plan, workers)
    told = None if ended is None else partial(_told, ended, studies)
    return studies, out_of_fold(chosen, studies, plan, workers, told)


def _told(ended: Callable[[NetworkRun, Studies], None], studies: Studies, run: NetworkRun) -> None:
    ended(run, studies)


def folds_of(truth: NDArray[np.bool_], folds: int, seed: int) -> Indices:
    """The fold of every study (N,): both kinds dealt out in turns, in random order."""
    generator = np.random.default_rng([seed, folds])
    found = np.empty(len(truth), dtype=np.intp)
    for kind in (False, True):
        members = generator.permutation(np.flatnonzero(truth == kind))
        found[members] = np.arange(len(members)) % folds
    return found


def choose_rates(names: Sequence[str], tuning: Studies, plan: CrossPlan, workers: int) -> list[NetworkRun]:
    """Trains every network with every rate on two thirds of the tuning studies; the lowest loss on the rest wins.

    Returns: runs that have a rate but no logits yet.
    """
    third = folds_of(tuning.truth, 3, plan.seed)
    train, score = np.flatnonzero(third != 0), np.flatnonzero(third == 0)
    jobs = [Job(name, rate, tuning, train, score, -1, plan) for name in names for rate in plan.rates]
    done = run_jobs(jobs, workers, "choosing learning rates")
    runs = []
    for first, name in zip(range(0, len(jobs), len(plan.rates)), names, strict=True):
        tried = done[first : first + len(plan.rates)]
        losses = [None if t.logits is None else _cross_entropy(t.logits, tuning.truth[score]) for t in tried]
        rates = dict(zip(plan.rates, losses, strict=True))
        finite = [(loss, rate) for rate, loss in rates.items() if loss is not None]
        status, reason = ("ok", "") if finite else (tried[-1].status, tried[-1].reason)
        seconds = sum(t.seconds for t in tried)
        rate = min(finite)[1] if finite else None
        no_fold = np.empty(0, dtype=np.intp)
        runs.append(NetworkRun(name, tried[0].parameters, rate, rates, None, no_fold, status, reason, seconds, 0.0))
    return runs


def out_of_fold(
    runs: Sequence[NetworkRun],
    studies: Studies,
    plan: CrossPlan,
    workers: int,
    ended: Callable[[NetworkRun], None] | None = None,
) -> tuple[NetworkRun, ...]:
    """The runs with every study's logits, each by the network of the fold that was not trained on it.

    Args:
        ended: told of each run as soon as its last fold is through; those without a rate come first.

    Raises: EnvironmentFault (24, worker_died) if a training's process was killed.
    """
    fold = folds_of(studies.truth, plan.folds, plan.seed)
    finished: dict[str, NetworkRun] = {}
    by_name = {run.network: run for run in runs}

    def through(name: str, parts: Sequence[Trained]) -> None:
        finished[name] = _pooled(by_name[name], parts, fold)
        if ended is not None:
            ended(finished[name])

    jobs = []
    for run in runs:
        if run.rate is None:
            through(run.network, [])
        else:
            jobs += held_out_jobs(run.network, run.rate, studies, fold, plan)
    run_jobs(jobs, workers, f"training in {plan.folds} folds", through)
    return tuple(finished[run.network] for run in runs)


def held_out_jobs(name: str, rate: float, studies: Studies, fold: Indices, plan: CrossPlan) -> list[Job]:
    """One job per fold: trained on all other folds, scores its own."""
    held_out = [fold == number for number in range(plan.folds)]
    return [
        Job(name, rate, studies, np.flatnonzero(~own), np.flatnonzero(own), number, plan, int8=True)
        for number, own in enumerate(held_out)
    ]


def _pooled(run: NetworkRun, parts: Sequence[Trained], fold: Indices) -> NetworkRun:
    seconds = sum(part.seconds for part in parts)
    for number, part in enumerate(parts):
        if part.logits is None:
            reason = f"fold {number + 1}: {part.reason}"
            return replace(run, fold=fold, status=part.status, reason=reason, seconds_training=seconds)
    found = [part.logits for part in parts if part.logits is not None]
    if not found:
        return replace(run, fold=fold)
    int8 = [part.int8 for part in parts if part.int8 is not None]
    reasons = [f"fold {number}: {part.int8_reason}" for number, part in enumerate(parts, 1) if part.int8_reason]
    return replace(
        run,
        fold=fold,
        logits=_placed(found, fold),
        seconds_training=seconds,
        int8=_placed(int8, fold) if len(int8) == len(parts) else None,
        int8_reason=reasons[0] if reasons else "",
    )


def _placed(parts: Sequence[Floats], fold: Indices) -> Floats:
    """Every fold's logits (n, K) at the places of its studies: (N, K)."""
    logits = np.empty((len(fold), parts[0].shape[1]), dtype=np.float32)
    for number, values in enumerate(parts):
        logits[fold == number] = values
    return logits


def _cross_entropy(logits: Floats, truth: NDArray[np.bool_]) -> float:
    return float(nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(truth.astype(np.int64))))
