"""The gates a lowered precision must pass, always against one FP32 baseline on the same studies.

`accept.toml` sets the thresholds per precision; what it leaves out has the defaults below. Parity gates (27) ask if the
typed graph still computes the same numbers, accuracy gates (28) if it still decides the same.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.calibration.metrics import auc_difference, classification, flips, sqnr_db
from fourphase.runtime.errors import AccuracyGateFailed, InputMissing, ParityFailed, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DEFAULTS", "Acceptance", "Verdict", "judge", "read_acceptance", "require"]

Floats = NDArray[np.float32]

#: MLPerf Inference: a lowered precision is reported as meeting 99 % or 99.9 % of the FP32 metric.
_MLPERF_BARS = (("mlperf_99", 0.99), ("mlperf_99_9", 0.999))


@dataclass(frozen=True)
class Acceptance:
    """Thresholds for one precision.

    Attributes:
        min_sqnr_db: of the logits over all judged studies.
        max_flips: studies whose decision may change.
        max_auc_drop: FP32 AUC minus this precision's, where labels are given.
    """

    min_sqnr_db: float
    max_flips: int = 0
    max_auc_drop: float = 0.005


#: FP16 keeps 11 bits, INT8 8: on logits of a trained network that is about 60 and 35 dB and leaves room above noise.
#: No decision may change: on many studies INT8 will tip one that lies at the boundary, and a person should see that.
DEFAULTS: Mapping[str, Acceptance] = MappingProxyType(
    {"fp32": Acceptance(80.0), "fp16": Acceptance(40.0), "int8": Acceptance(15.0)}
)


@dataclass(frozen=True)
class Verdict:
    """What was measured, and which gates failed (empty: all passed).

    `auc`, `auc_change` and its interval are None without labels.
    """

    precision: str
    studies: int
    max_abs: float
    sqnr_db: float
    flips: int
    auc: float | None
    auc_change: tuple[float, float, float] | None
    bars: Mapping[str, bool]
    failed: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: equal outputs have an sqnr_db of null, infinite ones a max_abs of null."""
        body = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("sqnr_db", "max_abs"):
            body[name] = body[name] if np.isfinite(body[name]) else None
        return {**body, "bars": dict(self.bars)}


def read_acceptance(path: Path | None) -> Mapping[str, Acceptance]:
    """Precision -> thresholds, from TOML tables [fp16] and [int8]; None gives the defaults.

    Raises: InputMissing (10), UsageError (2) naming the unknown table or key.
    """
    if path is None:
        return DEFAULTS
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputMissing(f"{path.name} cannot be read: {error.strerror}", "check the path") from error
    except ValueError as error:
        raise _invalid(f"{path.name} is not valid TOML: {error}") from error
    return {**DEFAULTS, **{precision: _thresholds(precision, table) for precision, table in tables.items()}}


def judge(
    precision: str,
    reference: Floats,
    value: Floats,
    thresholds: Acceptance,
    positives: NDArray[np.bool_] | None = None,
) -> Verdict:
    """Measures logits (N, K) of a lowered precision against the FP32 baseline's, with labels (N,) if there are any."""
    change, measured, bars = None, None, {}
    if positives is not None:
        difference = auc_difference(reference, value, positives)
        change = (difference.value, difference.low, difference.high)
        baseline, measured = classification(reference, positives).auc, classification(value, positives).auc
        bars = {name: measured >= share * baseline for name, share in _MLPERF_BARS}
    noise, changed = sqnr_db(reference, value), flips(reference, value)
    finite = bool(np.isfinite(value).all())
    gates = {
        "finite": finite,
        "min_sqnr_db": finite and noise >= thresholds.min_sqnr_db,
        "max_flips": changed <= thresholds.max_flips,
        "max_auc_drop": change is None or -change[0] <= thresholds.max_auc_drop,
    }
    failed = tuple(name for name, passed in gates.items() if not passed)
    worst = float(np.abs(reference - value).max()) if finite else float("inf")
    return Verdict(precision, len(reference), worst, noise, changed, measured, change, bars, failed)


def require(verdict: Verdict, thresholds: Acceptance, table: Sequence[dict[str, str]] = ()) -> None:
    """Raises: ParityFailed (27) or AccuracyGateFailed (28) naming the first gate that failed and what was measured.

    Args:
        table: of the error: what a person needs to find the cause.
    """
    if not verdict.failed:
        return
    gate = verdict.failed[0]
    measured = {
        "finite": "the logits are not finite",
        "min_sqnr_db": f"{verdict.sqnr_db:.1f} dB, {thresholds.min_sqnr_db:g} asked for",
        "max_flips": f"{verdict.flips} of {verdict.studies} decisions changed, {thresholds.max_flips} allowed",
        "max_auc_drop": f"AUC changed by {verdict.auc_change[0] if verdict.auc_change else 0:+.4f}, "
        f"a drop of {thresholds.max_auc_drop:g} allowed",
    }[gate]
    kind = ParityFailed if gate in ("finite", "min_sqnr_db") else AccuracyGateFailed
    raise kind(
        f"{verdict.precision} fails the gate {gate}: {measured}",
        "keep more blocks in a higher precision (fp-export search finds which), or relax accept.toml knowingly",
        key=f"gate_{gate}",
        table=table,
    )


def _thresholds(precision: str, table: Any) -> Acceptance:
    if precision not in DEFAULTS or not isinstance(table, dict):
        raise _invalid(f"the acceptance table [{precision}] is unknown", f"the tables are {', '.join(DEFAULTS)}")
    names = {field.name for field in dataclasses.fields(Acceptance)}
    for name, value in table.items():
        if name not in names:
            raise _invalid(f"[{precision}] has the unknown key {name}", f"the keys are {', '.join(sorted(names))}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _invalid(f"[{precision}] {name} is not a number")
    return dataclasses.replace(DEFAULTS[precision], **table)


def _invalid(cause: str, cure: str = "correct the file") -> UsageError:
    return UsageError(cause, cure, key="accept_invalid")
