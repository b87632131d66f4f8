"""The result of one study, as JSON for programs and as text for people; files are complete or absent.

Model output, not a diagnosis: both forms say so. No patient data goes in, only UIDs of series and a salted case hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.atomic import write_file
from fourphase.runtime.errors import Notice

__all__ = ["NOTICE", "SALT_VARIABLE", "PhaseRecord", "StudyResult", "case_hash", "softmax", "write_result"]

SCHEMA = "fourphase.result/1"
NOTICE = "model output, not a diagnosis"
#: Set it to a secret of the site, and case hashes cannot be computed from study UIDs by anyone else.
SALT_VARIABLE = "FOURPHASE_SALT"
#: Digits kept of a float32 logit or probability: beyond these it is noise of the machine.
_DIGITS = 6


@dataclass(frozen=True)
class PhaseRecord:
    """The series taken for one phase, and why."""

    series_instance_uid: str
    series_number: int | None
    slices: int
    evidence: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class StudyResult:
    """What is known of one study after its run; `to_dict` is the contract's `fourphase.result/1`.

    Attributes:
        case: salted hash of the study's UID.
        logits: float32 (K,), in the order of `classes`.
        phases: phase -> series, in the network's order.
        box: the contract's box section (space, min, max, margin_mm, clipped_mm, source).
        breathing: reference phase, shift_mm of every phase (None: not to be told), why not.
        preprocessing: hash of the bundle's section, device ("cpu", "gpu") and why that one.
        model: bundle name, sha256, precision. backend: name, reason, self-check.
        timings_ms: scan, read, preprocess, breathing, inference, total; the only part that differs from run to run.
    """

    case: str
    classes: tuple[str, ...]
    logits: NDArray[np.float32]
    phases: Mapping[str, PhaseRecord]
    box: Mapping[str, Any]
    breathing: Mapping[str, Any]
    preprocessing: Mapping[str, str]
    model: Mapping[str, str]
    backend: Mapping[str, Any]
    timings_ms: Mapping[str, float]
    warnings: tuple[Notice, ...]

    @property
    def label(self) -> str:
        """The class with the largest logit."""
        return self.classes[int(np.argmax(self.logits))]

    @property
    def probabilities(self) -> dict[str, float]:
        """Softmax of the logits, for display."""
        values = softmax(self.logits)
        return {name: round(float(value), _DIGITS) for name, value in zip(self.classes, values, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "case": self.case,
            "notice": NOTICE,
            "prediction": {
                "label": self.label,
                "probabilities": self.probabilities,
                "logits": [round(float(value), _DIGITS) for value in self.logits],
            },
            "phases": {
                phase: {
                    "series_instance_uid": record.series_instance_uid,
                    "series_number": record.series_number,
                    "slices": record.slices,
                    "evidence": list(record.evidence),
                }
                for phase, record in self.phases.items()
            },
            "box": dict(self.box),
            "breathing": dict(self.breathing),
            "preprocessing": dict(self.preprocessing),
            "model": dict(self.model),
            "backend": dict(self.backend),
            "timings_ms": {step: round(value, 1) for step, value in self.timings_ms.items()},
            "warnings": [{"key": notice.key, "message": notice.message} for notice in self.warnings],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=True, allow_nan=False)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of logits (..., K), float64, stable for large values."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def case_hash(identity: str, bundle_sha256: str) -> str:
    """16 hex digits that stand for a case in every output: sha256 of a salt and what identifies it.

    A result's identity is the study's UID and the lesion box: two lesions of one study are two cases.

    The salt is the environment variable FOURPHASE_SALT, or, where that is not set, the bundle's hash.
    """
    salt = os.environ.get(SALT_VARIABLE) or bundle_sha256
    return hashlib.sha256(f"{salt}\0{identity}".encode()).hexdigest()[:16]


def write_result(result: StudyResult, output: Path) -> Path:
    """Writes `output/<case>/result.json`, complete or not at all, and returns its path.

    Raises: OutputNotWritable (30).
    """
    path = output / result.case / "result.json"
    write_file(path, result.to_json().encode("ascii") + b"\n")
    return path
