"""What a mutant is: a sound study with one thing changed.

What can be changed is in `mutant_headers` (elements) and `mutant_files` (bytes, files, the zip around them); what a
reader makes of it is judged by `mutant_oracle`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from fourphase.benchmarks.mutants.study import BaseStudy

__all__ = ["Change", "Content", "Kind", "Mutant", "phase_files"]

#: Of a file: its bytes, something else that takes its place, or None: it is gone.
Content: TypeAlias = bytes | Literal["link", "fifo", "folder"] | None


@dataclass(frozen=True)
class Change:
    """What is done to a study.

    Attributes:
        what: a sentence for a person, without file names.
        files: name -> new content; what is not named stays.
        archive: the study as one zip instead.
    """

    what: str
    files: Mapping[str, Content] = field(default_factory=dict, repr=False)
    archive: bytes | None = field(default=None, repr=False)


#: Makes a change to a study; None where this study has nothing of the kind.
Kind: TypeAlias = Callable[[random.Random, BaseStudy], Change | None]


@dataclass(frozen=True)
class Mutant:
    number: int
    variant: str
    kind: str
    change: Change


def phase_files(base: BaseStudy, phase: str) -> list[str]:
    """The files of a phase in the order of its slices."""
    of_phase = [(index or 0, name) for name, (one, index) in base.places.items() if one == phase]
    return [name for _, name in sorted(of_phase)]
