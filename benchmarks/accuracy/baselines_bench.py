"""`fp-bench baselines`: every network trained and judged in folds on the same phantoms, each held against four-phase,
and the INT8 model of each fold against its FP32 network.

The networks are small versions of the published ones, the studies formulas: that all of them learn at all, and how far
they are apart here, is what this shows. It says nothing about patients, and little about networks of full size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.accuracy.cross_plan import CrossPlan, Studies
from fourphase.benchmarks.accuracy.cross_validation import NetworkRun, cross_validate
from fourphase.benchmarks.accuracy.judgement import ECE_NOTE, PAPER, Judgement, judgement_of
from fourphase.benchmarks.machine import describe_machine
from fourphase.benchmarks.networks import NETWORKS, OURS
from fourphase.benchmarks.phantoms.phantom import KINDS
from fourphase.calibration.metrics import Interval, auc_difference, flips, scores_of
from fourphase.calibration.roc import auc

__all__ = [
    "INT8_NOTE",
    "NOTES",
    "REFERENCE",
    "SYNTHETIC",
    "BaselineRow",
    "BaselinesResult",
    "Lowered",
    "judged_rows",
    "measure_baselines",
]

Floats = NDArray[np.float32]

#: The network that all others are held against.
REFERENCE = "four-phase"
SYNTHETIC = (
    "SYNTHETIC PHANTOMS, SMALL NETWORKS: this says nothing about patients and little about networks of full size."
)
NOTES = (
    "intervals are over the phantoms: another seed trains other networks, which they do not tell of",
    "differences from four-phase are not corrected for how many there are",
    "scores are pooled over the folds, whose networks differ in scale; auc_of_folds is free of that",
    ECE_NOTE,
    "mexpale has no clinical values: zeros, as of the average patient",
    "our networks also learn from each phase's own logits (the loss of the paper); the baselines have none",
)
INT8_NOTE = (
    "INT8 is each fold's network lowered by the default policy (FP16 beside it), computed literally: int8 and FP16 "
    "values rounded, sums in FP32; no gate was asked"
)


@dataclass(frozen=True)
class Lowered:
    """A network's INT8 models, one per fold.

    Attributes:
        judgement: of their pooled scores.
        against_fp32: their AUC minus that of the FP32 networks on the same phantoms, with a paired interval.
        flipped: phantoms that they decide otherwise.
    """

    judgement: Judgement
    against_fp32: Interval
    flipped: int

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            **self.judgement.to_dict(),
            "auc_against_fp32": asdict(self.against_fp32),
            "flipped": self.flipped,
        }


@dataclass(frozen=True)
class BaselineRow:
    """One network.

    Attributes:
        judgement: of the pooled scores; None unless every fold came to its end.
        auc_of_folds: AUC within each fold.
        against_four_phase: its AUC minus four-phase's on the same phantoms, with a paired interval; None for
            four-phase itself and where one of the two has no scores.
        int8: None without INT8 models; `run.int8_reason` says why.
    """

    run: NetworkRun
    judgement: Judgement | None
    auc_of_folds: tuple[float, ...]
    against_four_phase: Interval | None
    int8: Lowered | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; figures and curves are null without scores."""
        run, difference = self.run, self.against_four_phase
        nothing = dict.fromkeys(
            ("auc", "accuracy", "f1", "npv", "roc", "calibration_curve", "brier", "ece", "ece_by_chance")
        )
        return {
            "network": run.network,
            "kind": "ours" if run.network in OURS else "baseline",
            "status": run.status,
            "reason": run.reason,
            "parameters": run.parameters,
            "rate": run.rate,
            "tuning_losses": [{"rate": rate, "cross_entropy": loss} for rate, loss in run.rates.items()],
            "seconds_choosing_rate": round(run.seconds_choosing, 1),
            "seconds_training": round(run.seconds_training, 1),
            **(nothing if self.judgement is None else self.judgement.to_dict()),
            "auc_of_folds": list(self.auc_of_folds),
            "auc_against_four_phase": None if difference is None else asdict(difference),
            "int8": None if self.int8 is None else self.int8.to_dict(),
            "int8_reason": run.int8_reason,
        }


@dataclass(frozen=True, eq=False)
class BaselinesResult:
    """What was measured.

    Attributes:
        rows: in the order of the networks asked for.
        positives: which phantoms are of the second kind, bool (N,).
        seconds: of all, on the clock.
    """

    plan: CrossPlan
    quick: bool
    workers: int
    rows: tuple[BaselineRow, ...]
    positives: NDArray[np.bool_]
    seconds: float

    @property
    def notes(self) -> list[str]:
        """How to read it."""
        return [*NOTES, *([INT8_NOTE] if self.plan.calibration else [])]

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "schema": "fourphase.baselines/2",
            "quick": self.quick,
            "warning": SYNTHETIC,
            "notes": self.notes,
            "settings": self._settings(),
            "phantoms": {**self.plan.phantoms("folds").to_dict(), "positive": KINDS[1]},
            "folds": self.plan.folds,
            "rows": [row.to_dict() for row in self.rows],
            "paper": {**PAPER, "of": "398 patients, Qiao et al. 2024, full model, 5-fold; not comparable"},
            "seconds": round(self.seconds, 1),
            "machine": dict(describe_machine(lambda _: None).result),
        }

    def _settings(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "protocol": "stratified folds of phantoms fixed by the seed; out-of-fold scores pooled; AdamW, one cycle, "
            "the same augmented phantoms in the same order for all networks; rate of the lowest cross-entropy on "
            "tuning phantoms of its own",
            "threads": 1,
            "workers": self.workers,
            "epochs": plan.epochs,
            "batch": plan.batch,
            "rates": list(plan.rates),
            "tuning": plan.phantoms("tuning").to_dict(),
            "int8": plan.phantoms("calibration").to_dict() if plan.calibration else None,
            "scale": {**asdict(plan.scale), "size": list(plan.scale.size)},
            "stored": "HU as float16: steps of 0.125 HU below 256 HU, of 0.5 HU at 1000 HU",
        }


def measure_baselines(
    plan: CrossPlan,
    names: Sequence[str] = (),
    *,
    workers: int = 1,
    quick: bool = False,
    ended: Callable[[BaselinesResult], None] | None = None,
) -> BaselinesResult:
    """Trains and judges networks of `NETWORKS`, all if none is named; each once, in that order.

    Args:
        workers: trainings at once, see `cross_validate`.
        quick: marks the result as a rehearsal.
        ended: told after each network of the result so far.

    Raises: UsageError (2, network_unknown); EnvironmentFault (24, worker_died) if a training's process was killed.
    """
    started = time.perf_counter()
    rows = _Rows()

    def result_of(studies: Studies) -> BaselinesResult:
        seconds = time.perf_counter() - started
        return BaselinesResult(plan, quick, workers, rows.of(asked), studies.truth, seconds)

    def keep(run: NetworkRun, studies: Studies) -> None:
        rows.add(run, studies.truth)
        if ended is not None:
            ended(result_of(studies))

    asked = list(dict.fromkeys(names)) or list(NETWORKS)
    studies, _ = cross_validate(asked, plan, workers, keep)
    return result_of(studies)


def judged_rows(runs: Sequence[NetworkRun], studies: Studies) -> tuple[BaselineRow, ...]:
    """A row for every run, also for those without scores."""
    rows = _Rows()
    for run in runs:
        rows.add(run, studies.truth)
    return rows.of([run.network for run in runs])


class _Rows:
    """Rows of the networks that are through; those before four-phase get their difference from it when it is."""

    def __init__(self) -> None:
        self._rows: dict[str, BaselineRow] = {}

    def add(self, run: NetworkRun, truth: NDArray[np.bool_]) -> None:
        self._rows[run.network] = _judged(run, truth)
        reference = self._rows.get(REFERENCE)
        if reference is not None and reference.run.logits is not None:
            self._rows = {name: _against(row, reference.run.logits, truth) for name, row in self._rows.items()}

    def of(self, asked: Sequence[str]) -> tuple[BaselineRow, ...]:
        """In the order of the networks asked for."""
        return tuple(self._rows[name] for name in asked if name in self._rows)


def _judged(run: NetworkRun, truth: NDArray[np.bool_]) -> BaselineRow:
    if run.logits is None:
        return BaselineRow(run, None, (), None)
    scores, folds = scores_of(run.logits), [run.fold == number for number in np.unique(run.fold)]
    of_folds = tuple(auc(scores[own], truth[own]) for own in folds)
    return BaselineRow(run, judgement_of(run.logits, truth), of_folds, None, _lowered(run.logits, run.int8, truth))


def _lowered(fp32: Floats, int8: Floats | None, truth: NDArray[np.bool_]) -> Lowered | None:
    if int8 is None:
        return None
    return Lowered(judgement_of(int8, truth), auc_difference(fp32, int8, truth), flips(fp32, int8))


def _against(row: BaselineRow, reference: Floats, truth: NDArray[np.bool_]) -> BaselineRow:
    """The row with its difference from four-phase, unless it has it, or there is none."""
    if row.run.logits is None or row.run.network == REFERENCE or row.against_four_phase is not None:
        return row
    return replace(row, against_four_phase=auc_difference(reference, row.run.logits, truth))
