"""What a build was asked for, and what follows from it before any work: policies, studies to judge on, thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from fourphase.calibration.blocks import PRECISIONS, Policy
from fourphase.calibration.calibration_set import CalibrationSet, check_overlap, load_calibration_set
from fourphase.calibration.gates import Acceptance, read_acceptance
from fourphase.calibration.ladder import Jury
from fourphase.calibration.lowering import blocks_of, lowest_precision
from fourphase.calibration.policy_file import read_policy
from fourphase.calibration.qdq import default_int8_policy, quantizable_values
from fourphase.calibration.thresholds import ALGORITHMS, DEFAULT_ALGORITHM
from fourphase.calibration.typed import fp16_policy
from fourphase.engine.options import DEFAULT_OPTIONS, BuildOptions
from fourphase.export.golden import GoldenStudies
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import ExportRefused, UsageError

__all__ = ["BuildRequest", "StudySets", "choose_jury", "halved", "load_study_sets", "policies_of"]


@dataclass(frozen=True)
class BuildRequest:
    """The options of `fp-export build-engine`.

    Attributes:
        precision: "fp32", "fp16" or "int8"; None is the policy's if there is one, else "fp16".
        target: "auto", "tensorrt", "tensorrt-rtx" or "none" (ONNX only).
        engine: how the engine is built.
        split: build two engines, a trunk for so many slices at a time and a tail; None for one.
        rebuilds: build the engine so many times and compare the results, where there is a GPU to run them on.
        gru: "auto", "loop" or "unrolled".
        calibration: a calibration set, for int8. evaluation: another one, to judge on.
        algorithm: how int8 thresholds are chosen.
        policy: a file that replaces the default policy. accept: a file with other thresholds.
        config: TOML that overrides what the checkpoint carries.
        model: "package.module:factory" of another network than ours.
    """

    precision: str | None = None
    target: str = "auto"
    engine: BuildOptions = DEFAULT_OPTIONS
    split: int | None = None
    rebuilds: int = 1
    gru: str = "auto"
    calibration: Path | None = None
    evaluation: Path | None = None
    algorithm: str = DEFAULT_ALGORITHM
    policy: Path | None = None
    accept: Path | None = None
    config: Path | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if self.engine.dla_core is not None and self.split is None:
            raise UsageError(
                "the deep learning accelerator cannot run the GRU (no loops there)",
                "give --split SLICES as well: the accelerator then takes the trunk alone",
                key="dla_impossible",
            )
        if self.rebuilds < 1:
            raise UsageError("--rebuilds is below 1", "give 1 or more", key="rebuilds_invalid")
        for name, value, choices in (
            ("precision", self.precision, (None, *PRECISIONS)),
            ("calibration algorithm", self.algorithm, tuple(ALGORITHMS)),
        ):
            if value not in choices:
                raise UsageError(
                    f"unknown {name} {value!r}",
                    f"choose one of {', '.join(choice for choice in choices if choice)}",
                    key=f"{name.split()[-1]}_unknown",
                )

    def given_policy(self) -> Policy | None:
        """What the policy file says. Raises: InputMissing (10), UsageError (2)."""
        return None if self.policy is None else read_policy(self.policy)

    def thresholds(self) -> Mapping[str, Acceptance]:
        return read_acceptance(self.accept)


@dataclass(frozen=True, eq=False)
class StudySets:
    """The sets a build may use; checked against the model's preprocessing and phases, and against each other."""

    calibration: CalibrationSet | None
    evaluation: CalibrationSet | None


def load_study_sets(
    calibration: Path | None, evaluation: Path | None, preprocessing: PreprocessingConfig, phases: Sequence[str]
) -> StudySets:
    """Raises: as `load_calibration_set` (10, 20, 21); UsageError (2) for a study that is in both."""
    found = [
        None if path is None else load_calibration_set(path, preprocessing, phases)
        for path in (calibration, evaluation)
    ]
    sets = StudySets(*found)
    if sets.calibration is not None and sets.evaluation is not None:
        check_overlap(sets.calibration, sets.evaluation)
    return sets


def choose_jury(sets: StudySets, golden: GoldenStudies) -> Jury:
    """The evaluation set, else the calibration set, else the golden inputs; the choice is part of the report."""
    if sets.evaluation is not None:
        return Jury(sets.evaluation, "evaluation set", sets.evaluation.hash)
    if sets.calibration is not None:
        note = "judged on the studies it was calibrated on; give --evaluation DIR to judge it on others"
        return Jury(sets.calibration, "calibration set", sets.calibration.hash, note=note)
    note = "no studies were given, so decisions were not judged; give --evaluation DIR, made with fp-export calibrate"
    return Jury(golden, "golden inputs", decisions=False, note=note)


def policies_of(wanted: str | None, given: Policy | None, model: onnx.ModelProto) -> dict[str, Policy]:
    """Precision -> policy of every lowered model that the bundle will hold: fp16 on the way to int8, nothing for fp32.

    Args:
        wanted: the precision asked for. given: a policy that replaces its default one. model: the FP32 graph.

    Raises: UsageError (2) for a policy that does not fit the precision, or that names an unknown block; ExportRefused
        (25) for int8 that would quantize nothing.
    """
    blocks = blocks_of(model)
    if given is None:
        precision = wanted or "fp16"
        chosen = _default_policy(precision, model)
    else:
        given.check(blocks)
        chosen, precision = given, lowest_precision(given, blocks)
        if wanted not in (None, precision):
            raise UsageError(
                f"the policy's lowest precision is {precision}, --precision is {wanted}",
                "leave --precision out, or give the policy that fits",
                key="policy_precision",
            )
    if precision == "int8" and not quantizable_values(model, chosen):
        raise ExportRefused(
            "int8 would change nothing: no layer has a constant weight that is used once and enough work",
            "run all phases through a shared layer as one batch, or give --precision fp16",
            key="int8_empty",
        )
    return {"fp32": {}, "fp16": {"fp16": chosen}, "int8": {"fp16": halved(chosen), "int8": chosen}}[precision]


def _default_policy(precision: str, model: onnx.ModelProto) -> Policy:
    if precision == "int8":
        return default_int8_policy(model)
    return fp16_policy(blocks_of(model)) if precision == "fp16" else Policy(())


def halved(policy: Policy) -> Policy:
    """The policy with FP16 in place of INT8: the rung between FP32 and INT8."""
    return Policy.of({name: "fp16" if precision == "int8" else precision for name, precision in policy.rules})
