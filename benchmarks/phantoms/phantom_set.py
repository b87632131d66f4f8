"""Phantoms as studies to run graphs on: a number gives a phantom, rendered when it is asked for and not kept.

It says which seeds a purpose has, so that what a network is judged on was neither trained nor calibrated on. It runs
no graph and writes no file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.phantoms.phantom import KINDS, PHASES, make_phantom
from fourphase.benchmarks.phantoms.rendering import render_hu, to_input
from fourphase.runtime.config import PreprocessingConfig, canonical_json
from fourphase.runtime.errors import ModelIncompatible

__all__ = ["PURPOSES", "PhantomSet", "check_fits", "first_seed"]

Floats = NDArray[np.float32]

#: What phantoms are made for; the first three are `training`'s, the last three `cross_validation`'s.
PURPOSES = ("training", "tail", "validation", "evaluation", "calibration", "folds", "tuning")
#: More phantoms than anybody renders for one purpose and seed.
_SEEDS_PER_PURPOSE = 1_000_000
#: Purposes there may ever be; changing it changes every trained network.
_ROOM = 10


def first_seed(purpose: str, seed: int) -> int:
    """Of the phantoms for one of PURPOSES: two purposes never share a phantom, whatever their seeds."""
    return _SEEDS_PER_PURPOSE * (_ROOM * (seed + 1) + PURPOSES.index(purpose))


def check_fits(classes: tuple[str, ...], phases: tuple[str, ...]) -> None:
    """Raises: ModelIncompatible (20) unless phantoms have the model's classes and phases."""
    if sorted(classes) != sorted(KINDS) or not set(phases) <= set(PHASES):
        raise ModelIncompatible(
            f"the model tells {' from '.join(classes)} in the phases {', '.join(phases)}; phantoms are "
            f"{' and '.join(KINDS)} in {', '.join(PHASES)}",
            "give a model of those classes and phases",
            key="phantoms_do_not_fit",
        )


@dataclass(frozen=True)
class PhantomSet:
    """Unseen phantoms as a deployed model would see them, HCC and ICC in turn.

    Attributes:
        difficulty: of all of them, see `make_phantom`.
        config, phases: of the model.
        purpose: one of PURPOSES.
    """

    count: int
    seed: int
    difficulty: float
    config: PreprocessingConfig
    phases: tuple[str, ...] = PHASES
    purpose: str = "evaluation"

    def __len__(self) -> int:
        return self.count

    def study(self, index: int) -> Floats:
        """Phantom `index` (it need not be below `count`), float32 (1, P, T, C, H, W), normalised."""
        return to_input(self.hu(index), self.config)[None]

    def hu(self, index: int) -> Floats:
        """Phantom `index` before windows and normalisation: HU, float32 (P, T, H, W)."""
        seed = first_seed(self.purpose, self.seed) + index
        hu = render_hu(make_phantom(KINDS[index % 2], seed, self.difficulty), self.config)
        return hu[[PHASES.index(phase) for phase in self.phases]]

    @property
    def labels(self) -> tuple[str, ...]:
        """The kind of every phantom."""
        return tuple(KINDS[index % 2] for index in range(self.count))

    def studies(self) -> Iterator[Floats]:
        """The phantoms one after the other, as `study` gives them."""
        return (self.study(index) for index in range(self.count))

    @property
    def hash(self) -> str:
        """sha256 of what the phantoms are made from, this package's version included; not of their pixels."""
        made_from = {**asdict(self), "config": self.config.hash, "fourphase": version("fourphase")}
        return hashlib.sha256(canonical_json(made_from).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """What a report says of the set; JSON types only."""
        return {"count": self.count, "seed": self.seed, "difficulty": self.difficulty, "hash": self.hash}
