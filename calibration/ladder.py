"""The ladder: FP32 ONNX, FP16, INT8, each held against one FP32 baseline on the same studies, and block by block.

The baseline is PyTorch's network where the checkpoint is at hand, else the FP32 ONNX that was verified against it. A
rung never stands on the one below it: errors would hide behind each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fourphase.calibration.blocks import BLOCK_KEY, Policy, block_names, with_outputs
from fourphase.calibration.evaluation import Run, Studies, evaluate, fp32_session, literal_session, positives_of
from fourphase.calibration.gates import Acceptance, Verdict, judge, require
from fourphase.calibration.lowering import blocks_of, lowered_model
from fourphase.calibration.metrics import sqnr_db
from fourphase.calibration.rounding import rounding_session
from fourphase.calibration.scales import Scales
from fourphase.runtime.console import progress

__all__ = [
    "TORCH",
    "Baseline",
    "BlockError",
    "Jury",
    "Rung",
    "Step",
    "block_errors",
    "climb",
    "precisions_of",
    "require_passed",
    "steps_of",
]

#: The name of the usual baseline.
TORCH = "torch fp32"
Floats = NDArray[np.float32]
Blocks = Mapping[str, Floats]


@dataclass(frozen=True, eq=False)
class Jury:
    """The studies a model is judged on.

    Attributes:
        source: "evaluation set", "calibration set" or "golden inputs".
        hash: of the set; None for the golden inputs, which are the same everywhere.
        decisions: whether decisions on these studies mean anything; on golden inputs, random blocks, they do not.
        note: what a person should know about the choice.
    """

    studies: Studies
    source: str
    hash: str | None = None
    decisions: bool = True
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "studies": len(self.studies),
            "labels": self.studies.labels is not None,
            "hash": self.hash,
            "note": self.note,
        }


@dataclass(frozen=True, eq=False)
class Baseline:
    """The one FP32 reference: a study's outputs, and all its blocks' outputs; `name` says whose, for reports."""

    run: Run
    blocks: Callable[[Floats], Blocks]
    name: str = TORCH

    @classmethod
    def of_onnx(cls, model: onnx.ModelProto) -> Baseline:
        """The FP32 ONNX itself."""
        marked = with_outputs(model, block_names(model)).SerializeToString()
        return cls(fp32_session(model.SerializeToString()), lambda study: fp32_session(marked)(study), "onnx fp32")


@dataclass(frozen=True, eq=False)
class Step:
    """A model to be judged: what it is called, its policy and its graph."""

    precision: str
    policy: Policy
    model: onnx.ModelProto


@dataclass(frozen=True)
class BlockError:
    """One block's output on one study.

    Attributes:
        precision: what the policy gives the block.
        sqnr_db: against the baseline's; None if both are equal. max_abs: in the block's own units.
        peak: largest magnitude of the baseline's.
    """

    block: str
    precision: str
    sqnr_db: float | None
    max_abs: float | None
    peak: float


@dataclass(frozen=True, eq=False)
class Rung:
    """A judged model; `thresholds` are the gates it was held to."""

    step: Step
    verdict: Verdict
    thresholds: Acceptance
    blocks: tuple[BlockError, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "precision": self.step.precision,
            "policy": dict(self.step.policy.rules),
            "bytes": self.step.model.ByteSize(),
            "verdict": self.verdict.to_dict(),
            "gates": asdict(self.thresholds),
            "blocks": [asdict(row) for row in self.blocks],
        }


def steps_of(model: onnx.ModelProto, policies: Mapping[str, Policy], scales: Scales | None) -> tuple[Step, ...]:
    """The FP32 graph and one lowered graph per entry of `policies` (precision -> policy).

    Raises: as `lowered_model`.
    """
    lowered = [Step(name, policy, lowered_model(model, policy, scales)) for name, policy in policies.items()]
    return (Step("fp32", Policy(()), model), *lowered)


def climb(
    steps: Sequence[Step], baseline: Baseline, jury: Jury, acceptance: Mapping[str, Acceptance], classes: Sequence[str]
) -> tuple[Rung, ...]:
    """Judges every step on the jury's studies, and every block on the first of them; a failure is no exception here."""
    positives = positives_of(jury.studies, classes) if jury.decisions else None
    runs = {"": baseline.run, **{step.precision: _session(step) for step in steps}}
    logits = evaluate(runs, jury.studies)
    del runs
    rungs = []
    with progress("comparing blocks", len(steps)) as advance:
        study = jury.studies.study(0)
        reference = baseline.blocks(study)
        for step in steps:
            thresholds = acceptance[step.precision]
            if not jury.decisions:
                thresholds = replace(thresholds, max_flips=len(jury.studies))
            verdict = judge(step.precision, logits[""], logits[step.precision], thresholds, positives)
            rungs.append(Rung(step, verdict, thresholds, block_errors(step, reference, study)))
            advance(1)
    return tuple(rungs)


def require_passed(rungs: Sequence[Rung]) -> None:
    """Raises: ParityFailed (27) or AccuracyGateFailed (28) for the first rung that failed a gate, with its blocks."""
    for rung in rungs:
        require(rung.verdict, rung.thresholds, _where_lost(rung.blocks))


def _where_lost(blocks: Sequence[BlockError]) -> list[dict[str, str]]:
    """One line per kind of block, in the order of the graph: the phase that is furthest off."""
    worst: dict[str, BlockError] = {}
    for row in blocks:
        kind = row.block.partition("/")[0]
        if kind not in worst or _decibel(row) < _decibel(worst[kind]):
            worst[kind] = row
    return [{"block": row.block, "precision": row.precision, "SQNR": _text(row)} for row in worst.values()]


def _text(row: BlockError) -> str:
    if row.sqnr_db is not None:
        return f"{row.sqnr_db:.1f} dB"
    return "equal" if row.max_abs == 0 else "not finite"


def _decibel(row: BlockError) -> float:
    """What `sqnr_db` leaves out for JSON: infinite if nothing differs, minus infinite if a value is not finite."""
    if row.sqnr_db is not None:
        return row.sqnr_db
    return float("inf") if row.max_abs == 0 else float("-inf")


def block_errors(step: Step, reference: Blocks, study: Floats) -> tuple[BlockError, ...]:
    """Every block's output of a step against the reference's, in the order of the graph."""
    names = block_names(step.model)
    if step.precision == "fp32":
        found: Blocks = fp32_session(with_outputs(step.model, names).SerializeToString())(study)
    else:
        found = rounding_session(step.model, blocks=True)(study)
    owners = _owners(step.model)
    return tuple(
        _block_error(name, step.policy.precision_of(owners.get(name, name)), reference[name], found[name])
        for name in names
    )


def _block_error(name: str, precision: str, reference: Floats, value: Floats) -> BlockError:
    finite = bool(np.isfinite(value).all())
    worst = float(np.abs(reference - value).max()) if finite else None
    noise = sqnr_db(reference, value)
    return BlockError(name, precision, noise if np.isfinite(noise) else None, worst, float(np.abs(reference).max()))


def _owners(model: onnx.ModelProto) -> dict[str, str]:
    """Value -> the block of the node that makes it (`mix1/NC` is made by the block `mix1`)."""
    made = ((value, entry) for node in model.graph.node for value in node.output for entry in node.metadata_props)
    return {value: entry.value for value, entry in made if entry.key == BLOCK_KEY}


def _session(step: Step) -> Run:
    if step.precision == "fp32":
        return fp32_session(step.model.SerializeToString())
    return literal_session(step.model)


def precisions_of(step: Step) -> dict[str, str]:
    """Block -> precision, for the manifest."""
    return {block: step.policy.precision_of(block) for block in blocks_of(step.model)}
