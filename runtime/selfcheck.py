"""The start-up check: the loaded backend must reproduce the bundle's golden outputs on this machine.

It says whether this installation computes what was exported, not whether the model is right. Each precision has outputs
of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.backends import Backend
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.errors import SelfCheckFailed
from fourphase.runtime.golden import Golden

__all__ = ["SelfCheck", "self_check"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SelfCheck:
    """A passed check.

    Attributes:
        inputs: golden inputs that were run.
        max_abs_difference: largest |output - golden| over all logits.
        atol, rtol: the bundle's tolerance, |output - golden| <= atol + rtol * |golden|.
    """

    inputs: int
    max_abs_difference: float
    atol: float
    rtol: float


def self_check(backend: Backend, bundle: Bundle, *, all_inputs: bool = False) -> SelfCheck:
    """Runs golden input 0 (all of them with `all_inputs`), one at a time, and compares every logit.

    Raises: SelfCheckFailed with the measured difference and the tolerance; IntegrityError, ModelIncompatible as
        reading the golden file does.
    """
    golden = bundle.golden(backend.precision)
    count = len(golden) if all_inputs else 1
    worst = max(_compare(backend, golden, index) for index in range(count))
    return SelfCheck(count, worst, golden.atol, golden.rtol)


def _compare(backend: Backend, golden: Golden, index: int) -> float:
    """The largest difference of one golden input, all within the tolerance."""
    outputs = backend.infer(golden.study(index))
    pairs = (
        ("logits", outputs.logits, golden.logits[index : index + 1]),
        ("phase_logits", outputs.phase_logits, golden.phase_logits[index : index + 1]),
    )
    return max(_difference(name, output, wanted, backend, golden) for name, output, wanted in pairs)


def _difference(name: str, output: Floats, wanted: Floats, backend: Backend, golden: Golden) -> float:
    if output.shape != wanted.shape:
        raise _failed(f"{name} has shape {output.shape}, not {wanted.shape}", backend)
    difference = np.abs(output.astype(np.float64) - wanted)
    # Written so that a NaN on either side fails.
    if not (difference <= golden.atol + golden.rtol * np.abs(wanted, dtype=np.float64)).all():
        raise _failed(
            f"{name} is off its golden value by {difference.max():.3g}"
            f" (allowed {golden.atol:g} + {golden.rtol:g} of the value)",
            backend,
        )
    return float(difference.max())


def _failed(cause: str, backend: Backend) -> SelfCheckFailed:
    return SelfCheckFailed(
        f"self-check of {backend.name} {backend.precision} failed: {cause}",
        "do not use results of this machine; update or reinstall its packages, or build the bundle again",
    )
