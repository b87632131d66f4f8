"""Trains a narrow network on phantoms in a few CPU minutes, so that everything after training can be tried.

First the whole network on stacks of few slices, then, with the trunks frozen, the part that runs along the slices on
stacks of full depth: the trunks see every slice on its own, so they do not care about the depth, and their features
need to be computed only once. Not a way to train a clinical model: phantoms have no more to teach than their formulas.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fourphase.benchmarks.accuracy.trainer import Updater, fit, made_ahead, multi_task_loss, reproducible
from fourphase.benchmarks.phantoms.phantom import KINDS, make_phantom
from fourphase.benchmarks.phantoms.phantom_set import PhantomSet, first_seed
from fourphase.benchmarks.phantoms.rendering import augmented, render_hu, to_input
from fourphase.calibration.roc import auc
from fourphase.export.checkpoint import save_checkpoint
from fourphase.export.config import NetworkConfig
from fourphase.export.network import FourPhaseNet
from fourphase.runtime.config import PreprocessingConfig

__all__ = ["FULL", "QUICK", "TrainingPlan", "TrainingResult", "reproducible", "train", "write_checkpoint"]

#: (stage, step, steps, loss or None): called after every step.
Report = Callable[[str, int, int, float | None], None]

_TAIL_RATE, _TAIL_BATCH = 3e-3, 16


@dataclass(frozen=True)
class TrainingPlan:
    """How much to train.

    Attributes:
        width, gru_hidden: of the network.
        studies: phantoms for the whole network, each seen once.
        batch: phantoms per step, half of each kind.
        slices: depth of their stacks.
        tail_studies, tail_epochs: phantoms at full depth for the part along the slices, and passes over them.
        validation: unseen phantoms to measure on.
        rate: peak of the one-cycle learning rate.
        hardest: training phantoms have a difficulty from 0 to this.
        difficulty: of the validation phantoms.
    """

    width: int = 8
    gru_hidden: int = 32
    studies: int = 2400
    batch: int = 8
    slices: int = 8
    tail_studies: int = 192
    tail_epochs: int = 45
    validation: int = 120
    rate: float = 3e-3
    hardest: float = 0.6
    difficulty: float = 0.3


FULL = TrainingPlan()
#: For `make demo`.
QUICK = replace(FULL, studies=960, tail_studies=128, validation=40)


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """A trained network (eval mode) and how well it did on phantoms it had not seen.

    Attributes:
        losses: of every step of the whole network's training.
        scores: logit of ICC minus logit of HCC per validation phantom.
        is_icc: their truth.
    """

    network: FourPhaseNet
    preprocessing: PreprocessingConfig
    plan: TrainingPlan
    seed: int
    seconds: float
    losses: tuple[float, ...]
    scores: NDArray[np.float64]
    is_icc: NDArray[np.bool_]

    @property
    def auc(self) -> float:
        return auc(self.scores, self.is_icc)

    @property
    def right(self) -> int:
        """Validation phantoms whose larger logit is the true one."""
        return int(((self.scores > 0) == self.is_icc).sum())


def train(
    plan: TrainingPlan, seed: int, report: Report, preprocessing: PreprocessingConfig | None = None
) -> TrainingResult:
    """Trains and validates; the same arguments give the same network on the same machine.

    Args:
        preprocessing: None is the contract's, which the checkpoint then carries.
    """
    config = preprocessing or PreprocessingConfig()
    started = time.perf_counter()
    with reproducible(seed):
        source = _PhantomSource(seed, plan)
        network = FourPhaseNet(NetworkConfig(classes=KINDS, width=plan.width, gru_hidden=plan.gru_hidden))
        losses = _train_whole(network, source, config, report)
        _train_tail(network, source, config, report)
        scores, is_icc = _validate(network.eval(), source, config, report)
    return TrainingResult(network, config, plan, seed, time.perf_counter() - started, losses, scores, is_icc)


def write_checkpoint(path: Path, result: TrainingResult) -> None:
    """Writes the network with its configuration and where it comes from; no times, so equal runs give equal bytes."""
    training: dict[str, Any] = {
        "data": "synthetic phantoms",
        "seed": result.seed,
        "plan": asdict(result.plan),
        "validation_auc": result.auc,
        "validation_count": len(result.scores),
    }
    save_checkpoint(path, result.network, result.preprocessing, training)


class _PhantomSource:
    """Phantoms by number, rendered when asked for; a number always gives the same phantom."""

    def __init__(self, seed: int, plan: TrainingPlan) -> None:
        self.seed, self.plan = seed, plan

    def batch(self, purpose: str, numbers: Sequence[int], config: PreprocessingConfig) -> tuple[Tensor, Tensor]:
        """Augmented phantoms for training: inputs (B, P, T, C, H, W) and classes (B,), the kinds alternating."""
        inputs = []
        for number in numbers:
            seed = first_seed(purpose, self.seed) + number
            rng = np.random.default_rng(seed)
            phantom = make_phantom(KINDS[number % 2], seed, float(rng.uniform(0, self.plan.hardest)))
            inputs.append(to_input(augmented(render_hu(phantom, config, rng), rng), config))
        return torch.from_numpy(np.stack(inputs)), torch.tensor(numbers) % 2

    def unseen(self, config: PreprocessingConfig) -> PhantomSet:
        """The validation phantoms, as a deployed model would see them."""
        return PhantomSet(self.plan.validation, self.seed, self.plan.difficulty, config, purpose="validation")


def _train_whole(
    network: FourPhaseNet, source: _PhantomSource, config: PreprocessingConfig, report: Report
) -> tuple[float, ...]:
    plan = source.plan
    shallow = replace(config, size=(plan.slices, *config.size[1:]))
    steps = max(1, plan.studies // plan.batch)
    losses = []
    numbers = [range(step * plan.batch, (step + 1) * plan.batch) for step in range(steps)]
    batches = made_ahead(lambda step: source.batch("training", numbers[step], shallow), steps)
    for loss in fit(network, batches, plan.rate, steps):
        losses.append(loss)
        report("training", len(losses), steps, loss)
    return tuple(losses)


def _train_tail(network: FourPhaseNet, source: _PhantomSource, config: PreprocessingConfig, report: Report) -> None:
    """Trains what follows the trunks on their features of full stacks, in both directions along the slices."""
    plan = source.plan
    features, truth = _tail_features(network.eval(), source, config, report)
    parts = [network.heads] if network.spm is None else [network.spm, network.heads]
    batches = max(1, plan.tail_studies // _TAIL_BATCH)
    update = Updater([p for part in parts for p in part.parameters()], _TAIL_RATE, plan.tail_epochs * batches)
    for part in parts:
        part.train()
    for epoch in range(plan.tail_epochs):
        for chosen in torch.randperm(len(truth)).tensor_split(batches):
            stacks = features[chosen].flip(2) if torch.rand(()) < 0.5 else features[chosen]
            loss = update(multi_task_loss(network.predict(stacks), truth[chosen]))
        report("along the slices", epoch + 1, plan.tail_epochs, loss)


@torch.no_grad()
def _tail_features(
    network: FourPhaseNet, source: _PhantomSource, config: PreprocessingConfig, report: Report
) -> tuple[Tensor, Tensor]:
    count, features, truths = source.plan.tail_studies, [], []
    for number, (study, truth) in enumerate(made_ahead(lambda n: source.batch("tail", [n], config), count)):
        features.append(network.features(study))
        truths.append(truth)
        report("full depth", number + 1, count, None)
    return torch.cat(features), torch.cat(truths)


@torch.no_grad()
def _validate(
    network: FourPhaseNet, source: _PhantomSource, config: PreprocessingConfig, report: Report
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    phantoms, scores = source.unseen(config), []
    count = len(phantoms)
    for number, study in enumerate(made_ahead(phantoms.study, count)):
        logits, _ = network(torch.from_numpy(study))
        scores.append(float(logits[0, 1] - logits[0, 0]))
        report("validation", number + 1, count, None)
    return np.array(scores), np.array(phantoms.labels) == KINDS[1]
