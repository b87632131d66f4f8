"""Graphs run on studies: logits out, nothing judged. Every graph sees every study once; one study is in memory.

Two ways to run one. `fp32_session` is ONNX Runtime as `fp-run` uses it, for FP32 graphs. `literal_session` computes
what the types and Q/DQ nodes say, value by value (see `rounding`): the only way to know on a CPU what FP16 does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from fourphase.calibration.cpu_session import cpu_session
from fourphase.calibration.rounding import rounding_session
from fourphase.runtime.console import progress
from fourphase.runtime.errors import UsageError

__all__ = ["Run", "Studies", "evaluate", "fp32_session", "literal_session", "positives_of"]

Floats = NDArray[np.float32]
#: A study, float32 (1, P, T, C, H, W) -> output name -> float32 array.
Run = Callable[[Floats], Mapping[str, Floats]]


class Studies(Protocol):
    """Studies to run graphs on, made or read one by one: a calibration set, phantoms, golden inputs."""

    def __len__(self) -> int: ...

    def study(self, index: int) -> Floats:
        """float32 (1, P, T, C, H, W), preprocessed."""
        ...

    @property
    def labels(self) -> Sequence[str] | None:
        """The true class of every study, or None where it is not known of all."""
        ...


def fp32_session(model: bytes) -> Run:
    """ONNX Runtime on the CPU with its graph optimisations; FP16 would be computed in FP32 here."""
    session = cpu_session(model)
    names = [output.name for output in session.get_outputs()]
    return lambda study: dict(zip(names, session.run(names, {"study": study}), strict=True))


def literal_session(model: onnx.ModelProto) -> Run:
    """Every FP16 value rounded, every int8 value quantized, sums in FP32."""
    return rounding_session(model)


def evaluate(runs: Mapping[str, Run], studies: Studies, description: str = "judging") -> dict[str, Floats]:
    """Name of a run -> its logits, float32 (N, K), in the order of the studies."""
    found: dict[str, list[Floats]] = {name: [] for name in runs}
    with progress(description, len(studies) * len(runs)) as advance:
        for index in range(len(studies)):
            study = studies.study(index)
            for name, run in runs.items():
                found[name].append(run(study)["logits"])
                advance(1)
    return {name: np.concatenate(logits) for name, logits in found.items()}


def positives_of(studies: Studies, classes: Sequence[str]) -> NDArray[np.bool_] | None:
    """Which studies are of the second class, bool (N,); None without labels, with one class only, or more than two.

    AUC, F1 and NPV speak of two classes; the second one is called positive.

    Raises: UsageError (2) for a label that is not one of the classes.
    """
    if studies.labels is None:
        return None
    unknown = sorted(set(studies.labels) - set(classes))
    if unknown:
        raise UsageError(
            f"the studies carry the label {unknown[0]!r}, the model's classes are {', '.join(classes)}",
            "make the set again with the model's class names as labels",
            key="label_unknown",
        )
    if len(classes) != 2:
        return None
    positives = np.array([label == classes[1] for label in studies.labels], dtype=bool)
    return None if positives.all() or not positives.any() else positives
