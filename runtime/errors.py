"""Every error fourphase raises on purpose, in one tree, split by who can act on it.

    FourphaseError
    ├── UsageError                 2   whoever typed the command
    ├── StudyError                     whoever sent the study
    │   ├── InputMissing          10
    │   ├── NoUsableCT            11
    │   ├── PhaseMissing          12
    │   ├── PhaseAmbiguous        13
    │   ├── GeometryRefused       14
    │   ├── PixelDataError        15
    │   ├── BoxInvalid            16
    │   └── MixedStudies          17
    ├── ModelError                     whoever ships the model
    │   ├── ModelIncompatible     20
    │   ├── IntegrityError        21
    │   ├── SelfCheckFailed       23
    │   ├── ExportRefused         25
    │   ├── EngineBuildFailed     26
    │   ├── ParityFailed          27
    │   ├── AccuracyGateFailed    28
    │   └── LatencyGateFailed     29
    └── MachineError                   whoever runs the machine
        ├── GPUUnavailable        22
        ├── EnvironmentFault      24
        ├── OutputNotWritable     30
        ├── LockTimeout           31
        └── SomeStudiesFailed     40

`code` is the exit code, `key` a stable snake_case name, `message` one sentence with the cause, `hint` one with the
cure. Neither ever holds patient data: no path below a study folder, no free text from a DICOM header.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "GPU_LOST",
    "AccuracyGateFailed",
    "BoxInvalid",
    "EngineBuildFailed",
    "EnvironmentFault",
    "ExportRefused",
    "FourphaseError",
    "GPUUnavailable",
    "GeometryRefused",
    "InputMissing",
    "IntegrityError",
    "LatencyGateFailed",
    "LockTimeout",
    "MachineError",
    "MixedStudies",
    "ModelError",
    "ModelIncompatible",
    "NoUsableCT",
    "Notice",
    "OutputNotWritable",
    "ParityFailed",
    "PhaseAmbiguous",
    "PhaseMissing",
    "PixelDataError",
    "SelfCheckFailed",
    "SomeStudiesFailed",
    "StudyError",
    "UsageError",
    "error_from_dict",
]


@dataclass(frozen=True)
class Notice:
    """Something the user should know although the result stands: an entry of the result's `warnings`.

    Attributes:
        key: stable snake_case name.
        message: one sentence, without patient data.
    """

    key: str
    message: str


#: `key` of the GPUUnavailable after which nothing this process asks of the GPU can be trusted: it must end.
GPU_LOST = "gpu_lost"


class FourphaseError(Exception):
    """An error with an exit code, a stable key, its cause and its cure.

    Args:
        message: one sentence with the cause.
        hint: one sentence that says what to do.
        key: a snake_case name more precise than the class's own.
        table: rows a person needs to decide (candidates for a phase, blocks off parity), column name -> text.
    """

    code = 1
    key = "bug"

    def __init__(
        self, message: str, hint: str, *, key: str | None = None, table: Sequence[dict[str, str]] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.key = key or type(self).key
        self.table = tuple(table)

    def to_dict(self) -> dict[str, object]:
        """The error as the `error` object of the JSON output."""
        body: dict[str, object] = {"code": self.code, "key": self.key, "message": self.message, "hint": self.hint}
        if self.table:
            body["table"] = list(self.table)
        return body


class UsageError(FourphaseError):
    code, key = 2, "usage"


class StudyError(FourphaseError):
    pass


class InputMissing(StudyError):
    code, key = 10, "input_missing"


class NoUsableCT(StudyError):
    code, key = 11, "no_usable_ct"


class PhaseMissing(StudyError):
    code, key = 12, "phase_missing"


class PhaseAmbiguous(StudyError):
    code, key = 13, "phase_ambiguous"


class GeometryRefused(StudyError):
    code, key = 14, "geometry_refused"


class PixelDataError(StudyError):
    code, key = 15, "pixel_data"


class BoxInvalid(StudyError):
    code, key = 16, "box_invalid"


class MixedStudies(StudyError):
    code, key = 17, "mixed_studies"


class ModelError(FourphaseError):
    pass


class ModelIncompatible(ModelError):
    code, key = 20, "model_incompatible"


class IntegrityError(ModelError):
    code, key = 21, "integrity"


class SelfCheckFailed(ModelError):
    code, key = 23, "self_check_failed"


class ExportRefused(ModelError):
    code, key = 25, "export_refused"


class EngineBuildFailed(ModelError):
    code, key = 26, "engine_build_failed"


class ParityFailed(ModelError):
    code, key = 27, "parity_failed"


class AccuracyGateFailed(ModelError):
    code, key = 28, "accuracy_gate_failed"


class LatencyGateFailed(ModelError):
    code, key = 29, "latency_gate_failed"


class MachineError(FourphaseError):
    pass


class GPUUnavailable(MachineError):
    code, key = 22, "gpu_unavailable"


class EnvironmentFault(MachineError):
    code, key = 24, "environment"


class OutputNotWritable(MachineError):
    code, key = 30, "output_not_writable"


class LockTimeout(MachineError):
    code, key = 31, "lock_timeout"


class SomeStudiesFailed(MachineError):
    code, key = 40, "some_studies_failed"


def error_from_dict(body: Mapping[str, Any]) -> FourphaseError:
    """The error that `to_dict` described, raised again in another process; of an unknown code it is a bug (1)."""
    kinds = {kind.code: kind for kind in _leaves(FourphaseError)}
    kind = kinds.get(int(body["code"]), FourphaseError)
    return kind(str(body["message"]), str(body["hint"]), key=str(body["key"]), table=body.get("table", ()))


def _leaves(kind: type[FourphaseError]) -> list[type[FourphaseError]]:
    found = [leaf for child in kind.__subclasses__() for leaf in _leaves(child)]
    return found or [kind]
