"""`fp-bench accuracy`: every model of a bundle on the same unseen phantoms, each held against FP32.

FP32 runs in ONNX Runtime. What FP16 and int8 do is computed literally, value by value (`rounding`), because no CPU
runtime does it; int8 also by OpenVINO, the program that really runs it, where it runs it rightly. One study is in
memory at a time. Phantoms say whether a precision loses something, nothing about patients.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fourphase.benchmarks.accuracy.judgement import ECE_NOTE, PAPER, Judgement, judgement_of
from fourphase.benchmarks.machine import describe_machine
from fourphase.benchmarks.phantoms.phantom_set import PhantomSet, check_fits
from fourphase.calibration.evaluation import Run, evaluate, fp32_session, literal_session, positives_of
from fourphase.calibration.gates import DEFAULTS, Verdict, judge
from fourphase.runtime import openvino_backend
from fourphase.runtime.backends import choose_backend
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.console import progress
from fourphase.runtime.errors import ModelIncompatible, SelfCheckFailed, UsageError

__all__ = [
    "SYNTHETIC",
    "AccuracyResult",
    "Row",
    "measure_accuracy",
    "positives_among",
    "require_finite",
]

Floats = NDArray[np.float32]

SYNTHETIC = "SYNTHETIC PHANTOMS: this compares precisions with each other and says nothing about patients."
_LOWERED = ("fp16", "int8")
_OPENVINO = "int8 OpenVINO"
_WITHOUT_OPENVINO = "the row of OpenVINO, the program that really runs int8, is missing"


@dataclass(frozen=True)
class Row:
    """One model as one program computes it.

    Attributes:
        name: of the row: the precision, and the program where there are two.
        judgement: its figures and curves.
        against_fp32: what changed, and which of the default gates fail; None for FP32 itself.
    """

    name: str
    precision: str
    program: str
    judgement: Judgement
    against_fp32: Verdict | None

    def to_dict(self) -> dict[str, Any]:
        verdict = self.against_fp32
        return {
            "name": self.name,
            "precision": self.precision,
            "program": self.program,
            **self.judgement.to_dict(),
            "against_fp32": None if verdict is None else verdict.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class AccuracyResult:
    """What was measured.

    Attributes:
        rows: FP32 first.
        logits: name of a row -> float32 (N, K).
        positives: which phantoms are of the second class, bool (N,).
        notes: how to read it; what is missing, and why.
    """

    bundle: Bundle
    phantoms: PhantomSet
    rows: tuple[Row, ...]
    logits: Mapping[str, Floats]
    positives: NDArray[np.bool_]
    notes: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        models = {name: self.bundle.files[model.file].sha256 for name, model in self.bundle.models.items()}
        return {
            "schema": "fourphase.accuracy/2",
            "bundle": {"sha256": self.bundle.sha256, "models": models},
            "phantoms": self.phantoms.to_dict(),
            "positive": self.bundle.classes[1],
            "rows": [row.to_dict() for row in self.rows],
            "warning": SYNTHETIC,
            "notes": list(self.notes),
            "paper": {**PAPER, "of": "398 patients, Qiao et al. 2024; not comparable"},
            "seconds": round(self.seconds, 1),
            "machine": dict(describe_machine(lambda _: None).result),
        }


def measure_accuracy(bundle: Bundle, phantoms: PhantomSet) -> AccuracyResult:
    """Runs and judges every model of the bundle.

    Raises: ModelIncompatible (20) for a bundle without FP32 or of other classes or phases than phantoms have;
        UsageError (2) for fewer than two phantoms; SelfCheckFailed (23) for a model whose logits are not finite;
        IntegrityError (21); what OpenVINO's backend raises.
    """
    started = time.perf_counter()
    check_fits(bundle.classes, bundle.phases)
    positives = positives_among(phantoms, bundle.classes)
    programs = _programs(bundle)
    runs = {name: run for name, (_, _, run) in programs.items()}
    logits = evaluate(runs, phantoms, "running on phantoms")
    require_finite(logits)
    rows = []
    with progress("judging", len(programs)) as advance:
        for name, (precision, program, _) in programs.items():
            verdict = None
            if name != "fp32":
                verdict = judge(precision, logits["fp32"], logits[name], DEFAULTS[precision], positives)
            rows.append(Row(name, precision, program, judgement_of(logits[name], positives), verdict))
            advance(1)
    missing = _why_no_openvino() if "int8" in bundle.models else None
    notes = (ECE_NOTE, *(() if missing is None else (f"{_WITHOUT_OPENVINO}: {missing}",)))
    seconds = time.perf_counter() - started
    return AccuracyResult(bundle, phantoms, tuple(rows), logits, positives, notes, seconds)


def positives_among(phantoms: PhantomSet, classes: tuple[str, ...]) -> NDArray[np.bool_]:
    """Which phantoms are of the second class, bool (N,). Raises: UsageError (2) unless both kinds are there."""
    positives = positives_of(phantoms, classes)
    if positives is None:
        raise UsageError(
            "one phantom is of one class only, which has no AUC", "take at least two", key="phantoms_too_few"
        )
    return positives


def require_finite(logits: Mapping[str, Floats]) -> None:
    """Raises: SelfCheckFailed (23) naming the first row with logits that are not finite, which have no AUC."""
    for name, values in logits.items():
        lost = int((~np.isfinite(values).all(axis=1)).sum())
        if lost:
            raise SelfCheckFailed(
                f"{name} computes logits that are not finite on {lost} of {len(values)} phantoms",
                "keep the blocks that overflow in a higher precision (fp-export search finds which)",
                key="output_not_finite",
            )


def _programs(bundle: Bundle) -> dict[str, tuple[str, str, Run]]:
    """Name of a row -> (precision, program, run)."""
    import onnxruntime

    if "fp32" not in bundle.models:
        raise ModelIncompatible(
            "the bundle has no fp32 model to hold the others against",
            "build the bundle again with fp-export build-engine",
            key="precision_missing",
        )
    found = {"fp32": ("fp32", f"ONNX Runtime {onnxruntime.__version__}", fp32_session(_model(bundle, "fp32")))}
    for precision in _LOWERED:
        if precision in bundle.models:
            model = onnx.load_model_from_string(_model(bundle, precision))
            found[precision] = precision, "literal evaluation", literal_session(model)
    if "int8" in bundle.models and _why_no_openvino() is None:
        found[_OPENVINO] = "int8", *_openvino(bundle)
    return found


def _why_no_openvino() -> str | None:
    if not openvino_backend.is_available():
        return "openvino is not installed (extra [openvino])"
    return openvino_backend.why_not("int8")


def _model(bundle: Bundle, precision: str) -> bytes:
    return bundle.read(bundle.models[precision].file)


def _openvino(bundle: Bundle) -> tuple[str, Run]:
    from importlib.metadata import version

    backend = choose_backend(bundle, "openvino", precision="int8").backend
    return f"OpenVINO {version('openvino')}", lambda study: {"logits": backend.infer(study).logits}
