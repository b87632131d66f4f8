"""The start-up check: the loaded backend must reproduce the bundle's golden outputs on this machine.

It says whether this installation computes what was exported, not whether the model is right. Each precision has outputs
of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.backend import Backend
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
        batches: how many studies were run at once: 1, and the most that the backend takes where that is other code.
        max_abs_difference: largest |output - golden| over all logits.
        tolerance: the bundle's, for this precision.
    """

    inputs: int
    batches: tuple[int, ...]
    max_abs_difference: float
    tolerance: Tolerance


def self_check(backend: Backend, bundle: Bundle, *, all_inputs: bool = False) -> SelfCheck:
    """Runs golden input 0 (all of them with `all_inputs`) and compares every logit.

    One at a time; then, where a larger batch is other code (an engine's profile), as many at once as it takes:
    compilers have been wrong at one batch size and right at another.

    Raises: SelfCheckFailed with the measured difference and the tolerance; IntegrityError, ModelIncompatible as
        reading the golden file does.
    """
    golden = bundle.golden(backend.precision)
    count = len(golden) if all_inputs else 1
    runs = [[index] for index in range(count)]
    largest = backend.max_batch or 1
    if largest > 1:
        runs.append([index % len(golden) for index in range(largest)])
    worst = max(_compare(backend, golden, indices) for indices in runs)
    return SelfCheck(count, tuple(sorted({len(indices) for indices in runs})), worst, golden.tolerance)


def _compare(backend: Backend, golden: Golden, indices: list[int]) -> float:
    """The largest difference of these golden inputs in one batch, all within the tolerance."""
    studies = np.concatenate([golden.study(index) for index in indices])
    outputs, tolerance = backend.infer(studies), golden.tolerance
    worst = _difference("logits", outputs.logits, golden.logits[indices], tolerance.atol, tolerance.rtol, backend)
    if (outputs.phase_logits is None) != (golden.phase_logits is None):
        raise _failed(f"it gives {'no' if outputs.phase_logits is None else 'unexpected'} phase_logits", backend)
    if outputs.phase_logits is None or golden.phase_logits is None:
        return worst
    phases = outputs.phase_logits, golden.phase_logits[indices]
    return max(worst, _difference("phase_logits", *phases, tolerance.phase_atol, tolerance.rtol, backend))


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
