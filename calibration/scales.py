"""Calibration set -> one int8 scale per activation, bound to the model, the data and the tools that gave it.

One pass over the studies fills a histogram per activation (memory does not grow with the number of studies); each
algorithm then takes its thresholds from the histograms. Which values are needed is `qdq`'s question; weights need none
of this.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from fourphase.calibration.blocks import with_outputs
from fourphase.calibration.cpu_session import cpu_session
from fourphase.calibration.histograms import Histogram
from fourphase.calibration.int8 import scale_of
from fourphase.calibration.thresholds import ALGORITHMS, threshold_of
from fourphase.runtime.atomic import write_file
from fourphase.runtime.config import canonical_json
from fourphase.runtime.console import progress
from fourphase.runtime.errors import IntegrityError, ModelIncompatible, UsageError

__all__ = [
    "ActivationHistograms",
    "CalibrationData",
    "Scales",
    "collect_histograms",
    "growing_histograms",
    "read_scales",
    "scales_from",
    "write_scales",
]

SCHEMA = "fourphase.scales/1"
Floats = NDArray[np.float32]


class CalibrationData(Protocol):
    """Studies to take scales from, read or made one by one: a calibration set, phantoms."""

    def __len__(self) -> int: ...

    def studies(self) -> Iterator[Floats]:
        """float32 (1, P, T, C, H, W) each, preprocessed."""
        ...

    @property
    def hash(self) -> str:
        """Of everything that scales depend on."""
        ...


@dataclass(frozen=True, eq=False)
class ActivationHistograms:
    """What a model's activations looked like on a calibration set: value name -> histogram."""

    histograms: Mapping[str, Histogram]
    onnx_sha256: str
    data_hash: str


@dataclass(frozen=True)
class Scales:
    """Int8 scales of a model's activations, float = code * scale.

    Attributes:
        values: value name -> scale, a number that FP16 holds.
        algorithm: one of `thresholds.ALGORITHMS`.
        onnx_sha256: of the FP32 model's bytes.
        data_hash: of the calibration set.
        tools: package -> version of what computed them.
    """

    values: Mapping[str, float]
    algorithm: str
    onnx_sha256: str
    data_hash: str
    tools: Mapping[str, str]

    def to_json(self) -> bytes:
        """The file's content, with a digest of its own."""
        content = asdict(self)
        return (
            json.dumps({"schema": SCHEMA, "sha256": _digest(content), **content}, indent=1, allow_nan=False) + "\n"
        ).encode()


def collect_histograms(model: bytes, names: Sequence[str], data: CalibrationData) -> ActivationHistograms:
    """Runs every study of the set through the FP32 model and counts the values of the activations `names`.

    Raises: ModelIncompatible (20) if the model has no such value, does not take the set's studies, or computes a
        value that is not finite; IntegrityError (21) if a file of the set is damaged.
    """
    (found,) = growing_histograms(model, names, data, [len(data)])
    return found


def growing_histograms(
    model: bytes, names: Sequence[str], data: CalibrationData, counts: Sequence[int]
) -> tuple[ActivationHistograms, ...]:
    """The histograms of the first `counts[0]` studies, of the first `counts[1]`, ..., in one pass over the set.

    Args:
        counts: ascending, the last one at most `len(data)`.

    Raises: as `collect_histograms`.
    """
    histograms = {name: Histogram() for name in names}
    digest, found = hashlib.sha256(model).hexdigest(), []
    run = _runner(model, names)
    with progress("calibrating", counts[-1]) as advance:
        for number, study in enumerate(itertools.islice(data.studies(), counts[-1]), start=1):
            for name, values in zip(names, run(study), strict=True):
                _require_finite(name, values)
                histograms[name].add(values)
            advance(1)
            if number in counts:
                data_hash = data.hash if number == len(data) else _hash_of_first(number, data)
                found.append(ActivationHistograms(copy.deepcopy(histograms), digest, data_hash))
    return tuple(found)


def scales_from(activations: ActivationHistograms, algorithm: str) -> Scales:
    """The scales that `algorithm` ("minmax", "entropy", "percentile", "mse") takes from the histograms.

    Raises: UsageError (2) for an unknown algorithm.
    """
    if algorithm not in ALGORITHMS:
        raise UsageError(
            f"unknown calibration algorithm {algorithm!r}",
            f"choose one of {', '.join(ALGORITHMS)}",
            key="algorithm_unknown",
        )
    with progress("choosing thresholds", len(activations.histograms)) as advance:
        values = {}
        for name, histogram in activations.histograms.items():
            values[name] = float(scale_of(threshold_of(histogram, algorithm)))
            advance(1)
    return Scales(values, algorithm, activations.onnx_sha256, activations.data_hash, _tools())


def write_scales(path: Path, scales: Scales) -> None:
    """Writes the scales as JSON, complete or not at all. Raises: OutputNotWritable (30)."""
    write_file(path, scales.to_json())


def scales_from_json(data: bytes) -> Scales:
    """The scales that `Scales.to_json` wrote.

    Raises: ModelIncompatible (20) for another schema; IntegrityError (21) if they were altered.
    """
    try:
        document = json.loads(data)
    except ValueError as error:
        raise _altered() from error
    if not isinstance(document, dict) or document.pop("schema", None) != SCHEMA:
        raise ModelIncompatible(
            f"the file is not a {SCHEMA} file", "delete it and calibrate again", key="scales_unknown"
        )
    try:
        digest, scales = document.pop("sha256"), Scales(**document)
    except (KeyError, TypeError) as error:
        raise _altered() from error
    if digest != _digest(asdict(scales)):
        raise _altered()
    return scales


def read_scales(path: Path, *, onnx_sha256: str, data_hash: str, algorithm: str) -> Scales:
    """Reads scales and refuses those of anything else than what is asked for.

    Raises: ModelIncompatible (20) if the file is missing or its scales come from another model, other data, another
        algorithm or other tools; IntegrityError (21) if it was altered.
    """
    scales = _parse(path)
    wanted = {"onnx_sha256": onnx_sha256, "data_hash": data_hash, "algorithm": algorithm, "tools": _tools()}
    kinds = {"onnx_sha256": "model", "data_hash": "calibration set", "algorithm": "algorithm", "tools": "tool version"}
    for name, value in wanted.items():
        if getattr(scales, name) != value:
            raise ModelIncompatible(
                f"the cached scales were computed with another {kinds[name]}",
                "delete the file and calibrate again",
                key="scales_stale",
            )
    return scales


def _parse(path: Path) -> Scales:
    try:
        return scales_from_json(path.read_bytes())
    except OSError as error:
        raise ModelIncompatible(
            f"the scales cannot be read: {(error.strerror or 'error').lower()}", "calibrate first", key="scales_missing"
        ) from error


def _altered() -> IntegrityError:
    return IntegrityError(
        "the scales differ from what was written", "delete the file and calibrate again", key="scales_altered"
    )


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _tools() -> dict[str, str]:
    return {name: version(name) for name in ("fourphase", "numpy", "onnxruntime")}


def _hash_of_first(count: int, data: CalibrationData) -> str:
    return hashlib.sha256(canonical_json([count, data.hash]).encode()).hexdigest()


def _require_finite(name: str, values: Floats) -> None:
    if not np.isfinite(values).all():
        raise ModelIncompatible(
            f"the model computes a value that is not finite in {name!r} on a calibration study",
            "check the model: its FP32 activations overflow",
            key="activation_not_finite",
        )


def _runner(model: bytes, names: Sequence[str]) -> Callable[[Floats], list[Floats]]:
    """A function from a study, float32 (1, P, T, C, H, W), to the activations `names`, float32 arrays."""
    marked = with_outputs(onnx.load_model_from_string(model), names).SerializeToString()
    try:
        session = cpu_session(marked)
    except Exception as error:  # the package's exceptions share no base class
        raise ModelIncompatible(
            f"ONNX Runtime cannot load the model with its activations as outputs: {str(error).splitlines()[0]}",
            "give the FP32 model that the policy was made for",
            key="model_not_loadable",
        ) from error

    def run(study: Floats) -> list[Floats]:
        try:
            return list(session.run(list(names), {"study": study}))
        except Exception as error:
            raise ModelIncompatible(
                f"ONNX Runtime cannot run the model on the calibration set: {str(error).splitlines()[0]}",
                "give the calibration set and the model of the same phases and preprocessing",
                key="model_not_runnable",
            ) from error

    return run
