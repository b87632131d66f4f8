"""Whether two pipelines compute the same: a fast wrong answer is no win, so without agreement no ratio is quoted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["INPUT_LIMIT", "LOGITS_LIMIT", "Agreement", "Answer", "agreement", "read_answer"]

Floats = NDArray[np.float32]

#: What the network's input may differ by, in normalised units.
INPUT_LIMIT = 2e-3
#: What FP32 logits may differ by, relative to the reference's largest.
LOGITS_LIMIT = 1e-2


@dataclass(frozen=True, eq=False)
class Answer:
    """What a pipeline made of the study: the network's input (P, T, C, H, W) and the logits (K,)."""

    input: Floats
    logits: Floats


@dataclass(frozen=True)
class Agreement:
    """Against the reference pipeline.

    Attributes:
        input_max_abs: in normalised units; None if the shapes differ or a value is not finite.
        logits_max_abs, logits_relative: the latter over the reference's largest logit; likewise.
        refused: why no ratio may be quoted; "" if one may.
    """

    input_max_abs: float | None
    logits_max_abs: float | None
    logits_relative: float | None
    refused: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def agreement(reference: Answer, other: Answer, *, exact: bool) -> Agreement:
    """Compares two answers.

    Args:
        exact: the other's network is FP32, so that its logits are held to LOGITS_LIMIT; of a lowered one they are
            only told, for what it may lose is a question of accuracy.
    """
    inputs, logits = _max_abs(other.input, reference.input), _max_abs(other.logits, reference.logits)
    relative = None if logits is None else logits / (float(np.abs(reference.logits).max()) or 1.0)
    return Agreement(inputs, logits, relative, _refused(inputs, relative, exact))


def read_answer(path: Path) -> Answer:
    """What a pipeline's process saved."""
    with np.load(path) as found:
        return Answer(found["input"], found["logits"])


def _max_abs(one: Floats, two: Floats) -> float | None:
    if one.shape != two.shape:
        return None
    # Slice by slice: full-size inputs are large, and a float64 copy of both would be kept twice.
    # numpy's max, which a NaN does not get past.
    found = float(np.max([np.abs(a - b).max() for a, b in zip(one, two, strict=True)]))
    return found if np.isfinite(found) else None


def _refused(inputs: float | None, relative: float | None, exact: bool) -> str:
    if inputs is None or relative is None:
        return "its input or logits have another shape than the reference's, or are not finite"
    if inputs > INPUT_LIMIT:
        return f"its input differs from the reference's by {inputs:.1e}, more than {INPUT_LIMIT:g}"
    if exact and relative > LOGITS_LIMIT:
        return f"its logits differ from the reference's by {relative:.1e} of the largest, more than {LOGITS_LIMIT:g}"
    return ""
