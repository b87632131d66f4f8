"""One network trained on some phantoms and asked about others, then its INT8 model; and many of these at once.

Every training runs on one thread and comes out the same however many there are. Which phantoms, and what the answers
are worth, is not known here.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fourphase.benchmarks.accuracy.cross_plan import CrossPlan, Studies
from fourphase.benchmarks.accuracy.int8_scores import int8_logits, int8_model
from fourphase.benchmarks.accuracy.trainer import Updater, fit, logits_of, reproducible
from fourphase.benchmarks.latency.worker import why_failed
from fourphase.benchmarks.networks import NETWORKS
from fourphase.benchmarks.phantoms.phantom import PHASES
from fourphase.benchmarks.phantoms.rendering import augmented, to_input
from fourphase.export.network import FourPhaseNet
from fourphase.runtime.console import be_quiet, note, progress
from fourphase.runtime.errors import EnvironmentFault, SelfCheckFailed

__all__ = ["Job", "Trained", "run_jobs", "train_one"]

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Job:
    """One training of one network, and whom to score with it.

    Attributes:
        train, score: disjoint indices into `studies`.
        fold: tells its order and augmentation from other folds'; the same for all networks.
        int8: also score with its INT8 model, if the plan has phantoms for its scales.
    """

    network: str
    rate: float
    studies: Studies
    train: Indices
    score: Indices
    fold: int
    plan: CrossPlan
    int8: bool = False


@dataclass(frozen=True, eq=False)
class Trained:
    """How a job ended.

    Attributes:
        logits: of the scored studies, float32 (n, K), finite; None if there are none.
        status: "ok", "diverged", or "failed" where torch refused.
        reason: one sentence, "" for ok.
        parameters: of the network.
        seconds: of one core, for building, training and scoring; what INT8 took is not in it.
        int8: logits of the same studies by the network's INT8 model; None if there are none.
        int8_reason: why there are none, one sentence; "" where nobody asked.
    """

    logits: Floats | None
    status: str
    reason: str
    parameters: int
    seconds: float
    int8: Floats | None = None
    int8_reason: str = ""


def train_one(job: Job) -> Trained:
    """Trains and scores; the same job gives the same logits on the same machine."""
    # The core's own time: other trainings run beside this one, and INT8 models of other folds.
    started, parameters = time.process_time(), 0
    logits, status, reason = None, "ok", ""
    lowered: tuple[Floats | None, str] = None, ""
    with reproducible(job.plan.seed):
        try:
            network, _ = NETWORKS[job.network](job.plan.scale, 1)
            parameters = sum(parameter.numel() for parameter in network.parameters())
            _forget_statistics(network)
            torch.manual_seed(job.plan.seed)
            steps = job.plan.epochs * _batches_per_epoch(job)
            for _ in fit(network, _batches(job, _phases_of(network)), job.rate, steps):
                pass
            logits = _scored(network, job)
        except SelfCheckFailed as error:
            status, reason = "diverged", error.message
        except RuntimeError as error:
            status, reason = "failed", str(error).splitlines()[0]
        seconds = time.process_time() - started
        if job.int8 and job.plan.calibration:
            lowered = (None, f"no network: {reason}") if logits is None else _scored_in_int8(network, job)
    return Trained(logits, status, reason, parameters, seconds, *lowered)


def run_jobs(
    jobs: Sequence[Job], workers: int, description: str, through: Callable[[str, list[Trained]], None] | None = None
) -> list[Trained]:
    """All jobs, in order; a line for each network that is through.

    Args:
        through: told of each network that is through, and of its jobs' ends in their order.

    Raises: EnvironmentFault (24, worker_died) if a process was killed.
    """
    done: list[Trained] = []
    own: dict[str, list[Trained]] = defaultdict(list)
    left = Counter(job.network for job in jobs)
    with progress(description, len(jobs)) as advance:
        for job, trained in zip(jobs, _results(jobs, min(workers, len(jobs))), strict=True):
            done.append(trained)
            own[job.network].append(trained)
            left[job.network] -= 1
            if not left[job.network]:
                seconds = sum(one.seconds for one in own[job.network])
                note(f"{description}: {job.network} done, {seconds:.0f} s of one core")
                if through is not None:
                    through(job.network, own[job.network])
            advance(1)
    return done


def _results(jobs: Sequence[Job], workers: int) -> Iterator[Trained]:
    if workers < 2:
        _warm_up()
        yield from map(train_one, jobs)
        return
    # Spawned: a fork of a process that has run torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
        try:
            yield from pool.map(train_one, jobs)
        except BrokenProcessPool as error:
            raise EnvironmentFault(
                "a training's process was killed",
                "look whether memory suffices, or use fewer --workers",
                key="worker_died",
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin_worker() -> None:
    be_quiet(True)  # the bar of the process that asked stands for the whole
    _warm_up()


def _warm_up() -> None:
    """The first step of an optimizer imports parts of torch for seconds, which belong to no network's time."""
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(1, 1)
        Updater(list(layer.parameters()), 1e-3, 1)(layer(torch.zeros(1, 1)).sum())


def _forget_statistics(network: nn.Module) -> None:
    """Batch norm as it is before any training: the builders have settled it on random studies."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = 0.1


def _phases_of(network: nn.Module) -> list[int]:
    """Which phases of a study it takes: ours may take three, a baseline takes all."""
    phases = network.config.phases if isinstance(network, FourPhaseNet) else PHASES
    return [PHASES.index(phase) for phase in phases]


def _batches_per_epoch(job: Job) -> int:
    return max(1, len(job.train) // job.plan.batch)


def _batches(job: Job, phases: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented studies in random order, the same for every network."""
    generator = np.random.default_rng([job.plan.seed, job.fold + 1])
    config = job.plan.preprocessing
    for _ in range(job.plan.epochs):
        for chosen in np.array_split(generator.permutation(job.train), _batches_per_epoch(job)):
            volumes = [augmented(job.studies.hu[index].astype(np.float32), generator) for index in chosen]
            inputs = np.stack([to_input(hu[phases], config) for hu in volumes])
            yield torch.from_numpy(inputs), torch.from_numpy(job.studies.truth[chosen].astype(np.int64))


@torch.no_grad()
def _scored(network: nn.Module, job: Job) -> Floats:
    """Logits of the studies to score, one at a time. Raises: SelfCheckFailed (23) unless they are finite."""
    network.eval()
    inputs = _inputs_to_score(network, job)
    found: Floats = torch.cat([logits_of(network(torch.from_numpy(study)[None])) for study in inputs]).numpy()
    if not np.isfinite(found).all():
        raise SelfCheckFailed("the trained network's logits are not finite", "take a lower rate", key="not_finite")
    return found


def _scored_in_int8(network: nn.Module, job: Job) -> tuple[Floats | None, str]:
    """Logits of the same studies by the network's INT8 model, or None and why there are none."""
    phases = tuple(PHASES[place] for place in _phases_of(network))
    calibration = replace(job.plan.phantoms("calibration"), phases=phases)
    try:
        return int8_logits(int8_model(network, calibration), _inputs_to_score(network, job)), ""
    except Exception as error:  # onnxruntime's share no base class; hours of trainings are not lost for one model
        return None, why_failed(error)["reason"]


def _inputs_to_score(network: nn.Module, job: Job) -> Iterator[Floats]:
    phases = _phases_of(network)
    for index in job.score:
        yield to_input(job.studies.hu[index].astype(np.float32)[phases], job.plan.preprocessing)
