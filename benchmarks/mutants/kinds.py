"""Seed and number -> the one mutant they stand for: variant and kind are drawn, then what the kind does.

The kinds themselves are in `mutant_headers` and `mutant_files`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from fourphase.benchmarks.mutants import files as mutant_files
from fourphase.benchmarks.mutants import headers as mutant_headers
from fourphase.benchmarks.mutants.mutant import Mutant
from fourphase.benchmarks.mutants.study import BaseStudy

__all__ = ["KINDS", "make_mutant"]

#: Name -> weight and what it does.
KINDS = {**mutant_headers.KINDS, **mutant_files.KINDS}


def make_mutant(bases: Mapping[str, BaseStudy], seed: int, number: int) -> Mutant:
    """Mutant `number` of a seed, the same whenever it is made.

    Args:
        bases: sound studies by variant.
    """
    rng = random.Random(f"{seed}:{number}")
    base = bases[rng.choice(list(bases))]
    weights = [weight for weight, _ in KINDS.values()]
    while True:
        (name,) = rng.choices(list(KINDS), weights)
        change = KINDS[name][1](rng, base)
        if change is not None:
            return Mutant(number, base.variant.name, name, change)
