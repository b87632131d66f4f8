"""The search on a made-up network whose harm per group is known, so that the right answer can be found by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fourphase.calibration.blocks import Policy
from fourphase.calibration.cost import BlockCost, policy_cost
from fourphase.calibration.gates import Acceptance
from fourphase.calibration.search import PolicyCache, groups_of, search

COSTS = {
    "stem/NC": BlockCost(100, 1),
    "stage1/NC": BlockCost(400, 1),
    "stage1/ART": BlockCost(400, 1),
    "gate1.channel/NC": BlockCost(1, 1),
    "gru": BlockCost(50, 1),
}
#: Noise amplitude in logits by group and precision; the GRU in FP16 is not finite.
NOISE = {"stem": (1e-4, 1e-2), "stage1": (1e-4, 3e-2), "gate.channel": (1e-4, 2.0), "gru": (np.inf, np.inf)}
LOGITS = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
PATTERNS = {name: np.random.default_rng(i + 1).normal(size=(30, 2)) for i, name in enumerate(NOISE)}


def evaluate(policy: Policy) -> NDArray[np.float32]:
    logits = LOGITS.astype(np.float64)
    for name, levels in NOISE.items():
        block = {"stage1": "stage1/NC", "gate.channel": "gate1.channel/NC", "stem": "stem/NC"}.get(name, name)
        precision = policy.precision_of(block)
        if precision != "fp32":
            logits = logits + levels[("fp16", "int8").index(precision)] * PATTERNS[name]
    return logits.astype(np.float32)


def test_groups_join_phases_and_gates() -> None:
    assert groups_of(list(COSTS)) == ("stem", "stage1", "gate.channel", "gru")


def test_everything_harmless_is_lowered_and_the_harmful_is_not() -> None:
    result = search(evaluate, COSTS, Acceptance(25.0, max_flips=30))
    assert dict(result.policy.rules) == {"stem": "int8", "stage1": "int8", "gate.channel": "fp16"}
    assert result.cost == pytest.approx(policy_cost(COSTS, result.policy))
    assert result.cost < 0.5
    assert result.verdict.failed == ()
    refused = {(step.group, step.precision) for step in result.steps if not step.kept}
    assert ("gru", "fp16") in refused
    assert ("gate.channel", "int8") in refused


def test_a_tight_budget_keeps_more_in_fp16() -> None:
    result = search(evaluate, COSTS, Acceptance(60.0, max_flips=0))
    assert set(dict(result.policy.rules).values()) == {"fp16"}
    assert "gru" not in dict(result.policy.rules)
    assert result.cost == pytest.approx(policy_cost(COSTS, Policy.of({"*": "fp16", "gru": "fp32"})))


def test_sensitivity_is_one_group_at_a_time() -> None:
    rows = {(row.group, row.precision): row for row in search(evaluate, COSTS, Acceptance(25.0)).sensitivities}
    assert len(rows) == 8
    expected = 10 * np.log10(np.square(LOGITS).sum() / np.square(3e-2 * PATTERNS["stage1"]).sum())
    assert rows["stage1", "int8"].sqnr_db == pytest.approx(expected, abs=0.01)
    assert rows["stage1", "int8"].cost_saved > rows["stem", "int8"].cost_saved


def test_the_result_is_json_and_the_same_every_time() -> None:
    import json

    first, second = (search(evaluate, COSTS, Acceptance(25.0)).to_dict() for _ in range(2))
    assert json.dumps(first, allow_nan=False) == json.dumps(second, allow_nan=False)


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    calls: list[Policy] = []

    def counted(policy: Policy) -> NDArray[np.float32]:
        calls.append(policy)
        return evaluate(policy)

    first = search(PolicyCache(tmp_path, "onnx+data", counted), COSTS, Acceptance(25.0))
    spent = len(calls)
    again = search(PolicyCache(tmp_path, "onnx+data", counted), COSTS, Acceptance(25.0))
    assert len(calls) == spent
    assert again.to_dict() == first.to_dict()
    search(PolicyCache(tmp_path, "other data", counted), COSTS, Acceptance(25.0))
    assert len(calls) == 2 * spent
