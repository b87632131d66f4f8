"""Mixed precision: how much each group of blocks suffers when only it is lowered, then the cheapest policy that passes.

Sensitivity lowers one group at a time. The search starts from all FP32 and applies the lowerings in the order of harm
per cost saved, keeping each one only if the whole policy still passes its limits: deterministic, one evaluation per
step, and every step kept or refused is in the result. Costs are those of the stated model in `cost`, not latencies.

What evaluates a policy is handed in, so that this file knows neither ONNX Runtime nor Q/DQ.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.calibration.blocks import PRECISIONS, Policy, selectors_of
from fourphase.calibration.cost import BlockCost, policy_cost
from fourphase.calibration.gates import Acceptance, Verdict, judge
from fourphase.runtime.atomic import write_file
from fourphase.runtime.config import canonical_json
from fourphase.runtime.console import progress

__all__ = ["Evaluate", "PolicyCache", "SearchResult", "Sensitivity", "Step", "groups_of", "search"]

Floats = NDArray[np.float32]
#: Policy -> logits (N, K) of the judged studies.
Evaluate = Callable[[Policy], Floats]


@dataclass(frozen=True)
class Sensitivity:
    """One group lowered alone: its share of the cost saved, and the harm; `finite` is false if a logit is not."""

    group: str
    precision: str
    cost_saved: float
    sqnr_db: float
    flips: int
    auc_change: float | None
    finite: bool


@dataclass(frozen=True)
class Step:
    """One step of the search: the policy tried, its cost relative to FP32, what it did, and whether it was kept."""

    group: str
    precision: str
    cost: float
    sqnr_db: float
    flips: int
    auc_change: float | None
    finite: bool
    kept: bool


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The chosen policy, the two tables it came from, and its verdict; `held` are the blocks kept in FP32 by name."""

    policy: Policy
    held: tuple[str, ...]
    cost: float
    sensitivities: tuple[Sensitivity, ...]
    steps: tuple[Step, ...]
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": "fourphase.search/1",
            "policy": dict(self.policy.rules),
            "held": list(self.held),
            "cost_relative_to_fp32": self.cost,
            "sensitivities": [_finite(asdict(row)) for row in self.sensitivities],
            "steps": [_finite(asdict(row)) for row in self.steps],
            "verdict": self.verdict.to_dict(),
        }


class PolicyCache:
    """Logits of policies already evaluated, on disk: an interrupted search goes on where it stopped.

    `key` must hold everything the logits depend on besides the policy (hashes of the ONNX, the data, the scales).
    """

    def __init__(self, folder: Path | None, key: str, evaluate: Evaluate) -> None:
        self.folder, self.key, self.evaluate = folder, key, evaluate
        self.known: dict[Policy, Floats] = {}

    def __call__(self, policy: Policy) -> Floats:
        if policy not in self.known:
            self.known[policy] = self._read(policy) if self._path(policy) else self.evaluate(policy)
        return self.known[policy]

    def _read(self, policy: Policy) -> Floats:
        path = self._path(policy)
        assert path is not None
        if path.exists():
            return np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
        logits = self.evaluate(policy)
        buffer = io.BytesIO()
        np.save(buffer, logits, allow_pickle=False)
        write_file(path, buffer.getvalue())
        return logits

    def _path(self, policy: Policy) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.sha256(f"{self.key}\0{canonical_json(dict(policy.rules))}".encode()).hexdigest()[:24]
        return self.folder / f"{digest}.npy"


def groups_of(blocks: Sequence[str]) -> tuple[str, ...]:
    """What the search lowers as one: a block in all phases (`stage1`), gates by kind (`gate.channel`); graph order."""
    names = []
    for block in blocks:
        chain = selectors_of(block)
        names.append(
            next((name for name in chain if name in ("gate.channel", "gate.spatial", "mix")), block.partition("/")[0])
        )
    return tuple(dict.fromkeys(names))


def search(
    evaluate: Evaluate,
    costs: Mapping[str, BlockCost],
    limits: Acceptance,
    *,
    positives: NDArray[np.bool_] | None = None,
    lowerings: Mapping[str, Sequence[str]] | None = None,
    held: Sequence[str] = (),
) -> SearchResult:
    """Finds the cheapest policy within `limits`.

    Args:
        evaluate: policy -> logits of the same studies, the empty policy being the FP32 baseline.
        costs: block -> cost; the blocks to choose for.
        positives: truth (N,), where there are labels.
        lowerings: group -> what it may be lowered to; None: every group to FP16 and to INT8.
        held: blocks that stay in FP32 whatever becomes of their group.
    """
    if lowerings is None:
        lowerings = dict.fromkeys(groups_of(list(costs)), ("fp16", "int8"))
    task = _Task(evaluate, costs, limits, positives, evaluate(Policy(())), dict.fromkeys(held, "fp32"))
    tries = [(group, precision) for group, precisions in lowerings.items() for precision in precisions]
    sensitivities = []
    with progress("sensitivity", len(tries)) as advance:
        for group, precision in tries:
            sensitivities.append(task.sensitivity(group, precision))
            advance(1)
    with progress("search", len(tries)) as advance:
        return task.descend(sorted(sensitivities, key=_harm_per_saving), tuple(sensitivities), advance)


@dataclass(frozen=True, eq=False)
class _Task:
    """What every step needs: the arguments of `search`, the baseline's logits, and the rules that always hold."""

    evaluate: Evaluate
    costs: Mapping[str, BlockCost]
    limits: Acceptance
    positives: NDArray[np.bool_] | None
    baseline: Floats
    held: Mapping[str, str]

    def judge(self, policy: Policy) -> Verdict:
        name = min((rule[1] for rule in policy.rules), key=PRECISIONS.index, default="fp32")
        return judge(name, self.baseline, self.evaluate(policy), self.limits, self.positives)

    def sensitivity(self, group: str, precision: str) -> Sensitivity:
        policy = Policy.of({**self.held, group: precision})
        verdict = self.judge(policy)
        saved = 1 - policy_cost(self.costs, policy)
        harm = verdict.sqnr_db, verdict.flips, _auc_change(verdict), _is_finite(verdict)
        return Sensitivity(group, precision, saved, *harm)

    def descend(
        self, ordered: Sequence[Sensitivity], sensitivities: tuple[Sensitivity, ...], advance: Callable[[int], None]
    ) -> SearchResult:
        """Lowers group after group; a lowering that breaks the limits is taken back."""
        rules, steps, verdict = dict(self.held), [], None
        for row in ordered:
            advance(1)
            if row.cost_saved <= 0 or _rank(row.precision) >= _rank(rules.get(row.group, "fp32")):
                continue
            policy = Policy.of({**rules, row.group: row.precision})
            tried = self.judge(policy)
            steps.append(_step(row, policy_cost(self.costs, policy), tried))
            if not tried.failed:
                rules, verdict = dict(policy.rules), tried
        chosen = Policy.of(rules)
        cost = policy_cost(self.costs, chosen)
        return SearchResult(chosen, tuple(self.held), cost, sensitivities, tuple(steps), verdict or self.judge(chosen))


def _auc_change(verdict: Verdict) -> float | None:
    return verdict.auc_change[0] if verdict.auc_change else None


def _step(row: Sensitivity, cost: float, verdict: Verdict) -> Step:
    harm = verdict.sqnr_db, verdict.flips, _auc_change(verdict), _is_finite(verdict)
    return Step(row.group, row.precision, cost, *harm, kept=not verdict.failed)


def _is_finite(verdict: Verdict) -> bool:
    return "finite" not in verdict.failed


def _harm_per_saving(row: Sensitivity) -> tuple[float, float, str, str]:
    """Noise power per share of the cost saved, smallest first; a group whose logits are not finite comes last."""
    noise = 10 ** (-row.sqnr_db / 10) if np.isfinite(row.sqnr_db) else (0.0 if row.sqnr_db > 0 else np.inf)
    noise = np.inf if np.isnan(row.sqnr_db) else noise
    return float(noise / max(row.cost_saved, 1e-9)), -row.cost_saved, row.group, row.precision


def _rank(precision: str) -> int:
    return PRECISIONS.index(precision)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: the SQNR is null for equal logits and for such that are not finite; `finite` tells."""
    return {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in row.items()}
