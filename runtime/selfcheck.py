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
from fourphase.runtime.golden import Golden, Tolerance

__all__ = ["SelfCheck", "self_check"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SelfCheck:
    """A passed check.

    Attributes:
        inputs: golden inputs that were run.
        max_abs_difference: largest |output - golden| over all logits.
        tolerance: the bundle's, for this precision.
    """

    inputs: int
    max_abs_difference: float
    tolerance: Tolerance


def self_check(backend: Backend, bundle: Bundle, *, all_inputs: bool = False) -> SelfCheck:
    """Runs golden input 0 (all of them with `all_inputs`), one at a time, and compares every logit.

    Raises: SelfCheckFailed with the measured difference and the tolerance; IntegrityError, ModelIncompatible as
        reading the golden file does.
    """
    golden = bundle.golden(backend.precision)
    count = len(golden) if all_inputs else 1
    worst = max(_compare(backend, golden, index) for index in range(count))
    return SelfCheck(count, worst, golden.tolerance)


def _compare(backend: Backend, golden: Golden, index: int) -> float:
    """The largest difference of one golden input, all within the tolerance."""
    outputs, tolerance = backend.infer(golden.study(index)), golden.tolerance
    pairs = (
        ("logits", outputs.logits, golden.logits[index : index + 1], tolerance.atol),
        ("phase_logits", outputs.phase_logits, golden.phase_logits[index : index + 1], tolerance.phase_atol),
    )
    return max(_difference(*pair, tolerance.rtol, backend) for pair in pairs)


def _difference(name: str, output: Floats, wanted: Floats, atol: float, rtol: float, backend: Backend) -> float:
    if output.shape != wanted.shape:
        raise _failed(f"{name} has shape {output.shape}, not {wanted.shape}", backend)
    difference = np.abs(output.astype(np.float64) - wanted)
    # Written so that a NaN on either side fails.
    if not (difference <= atol + rtol * np.abs(wanted, dtype=np.float64)).all():
        raise _failed(
            f"{name} is off its golden value by {difference.max():.3g} (allowed {atol:g} + {rtol:g} of the value)",
            backend,
        )
    return float(difference.max())


def _failed(cause: str, backend: Backend) -> SelfCheckFailed:
    return SelfCheckFailed(
        f"self-check of {backend.name} {backend.precision} failed: {cause}",
        "do not use results of this machine; update or reinstall its packages, or build the bundle again",
    )
