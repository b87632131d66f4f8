"""What `fp-bench baselines` trains every network on and how long, and the phantoms for it, rendered once for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.networks import TINY, Scale
from fourphase.benchmarks.phantoms.phantom import KINDS
from fourphase.benchmarks.phantoms.phantom_set import PhantomSet
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import UsageError

__all__ = ["FULL", "QUICK", "SMALL", "CrossPlan", "Studies", "rendered"]

#: What five trainings of fifteen networks fit into minutes at.
SMALL = Scale(width=8, gru_hidden=32, size=(16, 32, 32))


@dataclass(frozen=True)
class CrossPlan:
    """What every network is trained on, and how long.

    Attributes:
        count: phantoms, half of each kind, in as many `folds`.
        tuning: other phantoms to choose the learning rate on: two thirds to train on, a third to judge.
        rates: peaks of the one-cycle learning rate to choose from.
        epochs: passes over the training phantoms.
        batch: phantoms per step, at least.
        difficulty: of all phantoms; chosen so that no network's AUC is 1.
        scale: of networks and inputs.
        calibration: phantoms, others again, that the scales of every fold's INT8 model are of; 0: no INT8 models.
        seed: of phantoms, folds, order and augmentation; initial weights are those of `NETWORKS`.
    """

    count: int = 240
    folds: int = 5
    tuning: int = 180
    rates: tuple[float, ...] = (1e-3, 4e-3)
    epochs: int = 6
    batch: int = 8
    difficulty: float = 0.85
    scale: Scale = SMALL
    calibration: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2 or self.count < 2 * self.folds:
            raise UsageError(
                f"{self.count} phantoms are too few for {self.folds} folds with both kinds in each",
                "take at least two folds, and twice as many phantoms as folds",
                key="phantoms_too_few",
            )

    @property
    def preprocessing(self) -> PreprocessingConfig:
        return replace(PreprocessingConfig(), size=self.scale.size)

    def phantoms(self, purpose: str) -> PhantomSet:
        """The phantoms for "folds", "tuning" or "calibration"."""
        count = {"folds": self.count, "tuning": self.tuning, "calibration": self.calibration}[purpose]
        return PhantomSet(count, self.seed, self.difficulty, self.preprocessing, purpose=purpose)


FULL = CrossPlan()
#: A rehearsal: every network and every step, no result.
QUICK = replace(FULL, count=12, folds=2, tuning=12, epochs=1, batch=4, scale=TINY, calibration=2)


@dataclass(frozen=True, eq=False)
class Studies:
    """Rendered studies and their truth.

    Attributes:
        hu: float16 (N, P, T, H, W): steps of 0.125 HU below 256 HU, 0.5 HU at 1000.
        truth: whether of the second kind, bool (N,).
    """

    hu: NDArray[np.float16]
    truth: NDArray[np.bool_]


def rendered(phantoms: PhantomSet, advance: Callable[[int], object]) -> Studies:
    """All phantoms of a set as a deployed model would see them, before windows and normalisation."""
    volumes = []
    for index in range(len(phantoms)):
        volumes.append(phantoms.hu(index).astype(np.float16))
        advance(1)
    return Studies(np.stack(volumes), np.array(phantoms.labels) == KINDS[1])
