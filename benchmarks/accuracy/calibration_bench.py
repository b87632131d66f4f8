"""`fp-bench calibration`: how many studies int8 scales need, and which algorithm takes the best ones from them.

Calibrates on phantoms (other ones than it judges on), quantizes by the default policy, and computes the int8 graph
literally. One pass over the calibration phantoms serves all counts: the smaller sets are the beginning of the largest.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from fourphase.benchmarks.accuracy.accuracy_bench import SYNTHETIC, positives_among, require_finite
from fourphase.benchmarks.accuracy.judgement import figures_of
from fourphase.benchmarks.machine import describe_machine
from fourphase.benchmarks.phantoms.phantom import KINDS, PHASES
from fourphase.benchmarks.phantoms.phantom_set import PhantomSet, check_fits
from fourphase.calibration.blocks import Policy
from fourphase.calibration.evaluation import Run, evaluate, fp32_session, literal_session
from fourphase.calibration.gates import DEFAULTS, Verdict, judge
from fourphase.calibration.lowering import blocks_of, lowered_model
from fourphase.calibration.metrics import Interval, bootstrap, sqnr_db
from fourphase.calibration.qdq import default_int8_policy, quantizable_values
from fourphase.calibration.scales import ActivationHistograms, growing_histograms, scales_from
from fourphase.calibration.thresholds import ALGORITHMS
from fourphase.runtime.bundle import load_bundle
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import InputMissing, ModelIncompatible

__all__ = ["CalibrationResult", "Subject", "Trial", "Winner", "measure_calibration", "read_subject", "winner_of"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Subject:
    """An FP32 model to quantize, and what its input must look like.

    Attributes:
        bundle: sha256 of the bundle it is from; None for a bare ONNX, which is taken to have the contract's
            preprocessing, classes and phases.
    """

    onnx: bytes
    classes: tuple[str, ...]
    phases: tuple[str, ...]
    preprocessing: PreprocessingConfig
    bundle: str | None

    def phantoms(self, count: int, seed: int, difficulty: float, purpose: str) -> PhantomSet:
        """Phantoms as this model takes them."""
        return PhantomSet(count, seed, difficulty, self.preprocessing, self.phases, purpose)


@dataclass(frozen=True)
class Trial:
    """One int8 model: how many phantoms its scales are from, by which algorithm, and what it does to FP32's logits."""

    count: int
    algorithm: str
    verdict: Verdict


@dataclass(frozen=True)
class Winner:
    """The algorithm with the highest SQNR for one number of phantoms.

    Attributes:
        ahead_db: how far it is ahead of the runner-up, dB, with a paired bootstrap interval over the phantoms.
    """

    count: int
    algorithm: str
    sqnr_db: float
    runner_up: str
    ahead_db: Interval


@dataclass(frozen=True, eq=False)
class CalibrationResult:
    """What was measured.

    Attributes:
        fp32_auc: of the baseline on the evaluation phantoms.
        values: activations that have a scale.
        trials: by count, then in the order of ALGORITHMS.
        winners: one per count.
    """

    subject: Subject
    calibration: PhantomSet
    evaluation: PhantomSet
    policy: Policy
    values: int
    fp32_auc: Interval
    trials: tuple[Trial, ...]
    winners: tuple[Winner, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "schema": "fourphase.calibration-bench/1",
            "model": {"sha256": hashlib.sha256(self.subject.onnx).hexdigest(), "bundle_sha256": self.subject.bundle},
            "policy": dict(self.policy.rules),
            "values": self.values,
            "calibration": self.calibration.to_dict(),
            "evaluation": self.evaluation.to_dict(),
            "fp32_auc": asdict(self.fp32_auc),
            "trials": [
                {"count": trial.count, "algorithm": trial.algorithm, **trial.verdict.to_dict()} for trial in self.trials
            ],
            "winners": [asdict(winner) for winner in self.winners],
            "warning": SYNTHETIC,
            "seconds": round(self.seconds, 1),
            "machine": dict(describe_machine(lambda _: None).result),
        }


def read_subject(path: Path) -> Subject:
    """The FP32 model of a bundle (a directory), or a bare FP32 ONNX.

    Raises: InputMissing (10), ModelIncompatible (20), IntegrityError (21).
    """
    if path.suffix == ".onnx" and not path.is_dir():
        return _bare(path)
    bundle = load_bundle(path)
    if "fp32" not in bundle.models:
        raise ModelIncompatible(
            "the bundle has no fp32 model to quantize", "build it again with fp-export build-engine",
            key="precision_missing",
        )  # fmt: skip
    check_fits(bundle.classes, bundle.phases)
    model = bundle.read(bundle.models["fp32"].file)
    return Subject(model, bundle.classes, bundle.phases, bundle.preprocessing, bundle.sha256)


def measure_calibration(
    subject: Subject, calibration: PhantomSet, evaluation: PhantomSet, counts: Sequence[int]
) -> CalibrationResult:
    """Quantizes and judges the subject once per count and algorithm.

    Args:
        counts: ascending; the last one is `len(calibration)`.

    Raises: UsageError (2) for fewer than two evaluation phantoms or a model without our named blocks;
        SelfCheckFailed (23) for logits that are not finite; ModelIncompatible (20).
    """
    started = time.perf_counter()
    positives = positives_among(evaluation, subject.classes)
    model = onnx.load_model_from_string(subject.onnx)
    policy = default_int8_policy(model)
    policy.check(blocks_of(model))
    names = quantizable_values(model, policy)
    histograms = growing_histograms(subject.onnx, names, calibration, counts)
    reference = evaluate({"fp32": fp32_session(subject.onnx)}, evaluation, "running in FP32")
    require_finite(reference)
    trials: list[Trial] = []
    winners: list[Winner] = []
    for count, found in zip(counts, histograms, strict=True):
        # The phantoms are rendered again for every count, which is cheap; all graphs at once would not fit into memory.
        logits = evaluate(_int8_runs(model, policy, found), evaluation, f"running int8 from {count}")
        require_finite(logits)
        for algorithm, values in logits.items():
            verdict = judge("int8", reference["fp32"], values, DEFAULTS["int8"], positives)
            trials.append(Trial(count, algorithm, verdict))
        winners.append(winner_of(count, reference["fp32"], logits, positives))
    fp32_auc = figures_of(reference["fp32"], positives)["auc"]
    seconds = time.perf_counter() - started
    return CalibrationResult(
        subject, calibration, evaluation, policy, len(names), fp32_auc, tuple(trials), tuple(winners), seconds
    )


def winner_of(count: int, reference: Floats, logits: Mapping[str, Floats], positives: NDArray[np.bool_]) -> Winner:
    """The algorithm whose logits (N, K) have the highest SQNR against the reference's, and its lead."""

    def sqnr(algorithm: str, chosen: NDArray[np.intp] | slice = slice(None)) -> float:
        return sqnr_db(reference[chosen], logits[algorithm][chosen])

    best, second, *_ = sorted(logits, key=sqnr, reverse=True)
    ahead = bootstrap(lambda chosen: sqnr(best, chosen) - sqnr(second, chosen), positives)
    return Winner(count, best, sqnr(best), second, ahead)


def _int8_runs(model: onnx.ModelProto, policy: Policy, found: ActivationHistograms) -> dict[str, Run]:
    """Algorithm -> the int8 graph with its scales."""
    return {name: literal_session(lowered_model(model, policy, scales_from(found, name))) for name in ALGORITHMS}


def _bare(path: Path) -> Subject:
    try:
        data = path.read_bytes()
        shape = _input_shape(onnx.load_model_from_string(data))
    except OSError as error:
        raise InputMissing(
            f"{path.name} cannot be read: {(error.strerror or 'error').lower()}", "check the path"
        ) from error
    except DecodeError as error:
        raise ModelIncompatible(
            f"{path.name} is not a valid ONNX", "export it again: fp-export onnx", key="model_not_loadable"
        ) from error
    config = PreprocessingConfig()
    if len(shape) != 6 or (shape[1], shape[3]) != (len(PHASES), config.channels) or min(shape[2:]) < 1:
        raise ModelIncompatible(
            f"the input of {path.name} is {shape}, not (studies, {len(PHASES)}, slices, {config.channels}, rows, "
            "columns)",
            "give a bundle, which says what its model takes",
            key="input_shape",
        )
    sized = replace(config, size=(shape[2], shape[4], shape[5]))
    return Subject(data, KINDS, PHASES, sized, None)


def _input_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    """Of the one input; 0 where a size is open."""
    if len(model.graph.input) != 1:
        return ()
    return tuple(size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim)
