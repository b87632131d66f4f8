"""The interface of a backend: a loaded model that turns studies into logits. `backends` chooses one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["LOGITS_ALONE", "OUTPUTS", "Backend", "Outputs"]

Floats = NDArray[np.float32]

#: What a network gives: for the whole study and for every phase, as ours does, or, as a 3D CNN, for the study alone.
OUTPUTS = ("logits", "phase_logits")
LOGITS_ALONE = ("logits",)


@dataclass(frozen=True, eq=False)
class Outputs:
    """What the network says of B studies; the arrays are copies that nobody else writes to.

    Attributes:
        logits: float32 (B, K).
        phase_logits: float32 (B, P, K); None for a network that has none.
    """

    logits: Floats
    phase_logits: Floats | None


class Backend(Protocol):
    """A loaded model: numpy in, numpy out."""

    @property
    def name(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def max_batch(self) -> int | None:
        """Studies in one run at most, for which the code may be another one; None: one code for any number."""
        ...

    def close(self) -> None:
        """Gives back what it holds; it cannot be used afterwards."""
        ...

    def infer(self, study: Floats) -> Outputs:
        """float32 (B, P, T, C, H, W), normalised -> logits. Raises SelfCheckFailed for a non-finite output."""
        ...
