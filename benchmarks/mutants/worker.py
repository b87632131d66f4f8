"""The process that runs mutants: a number comes in, a verdict goes out. It may die of one; `mutant_pool` replaces it.

python -m fourphase.benchmarks.mutants.worker SEED
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from pathlib import Path

from fourphase.benchmarks.mutants.check import Bench
from fourphase.benchmarks.mutants.kinds import make_mutant
from fourphase.benchmarks.mutants.study import BaseStudies

__all__ = ["main"]

#: Address space: an ordinary run takes less than a third of it.
MEMORY = 4 * 2**30


def main(seed: int) -> None:
    """Serves numbers from stdin until it ends; descriptors 1 and 2 lead nowhere from here on."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    bases = BaseStudies()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), bases)
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            verdict = bench.check(make_mutant(bases, seed, int(line)))
            print(json.dumps(verdict.to_dict()), file=answers, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
