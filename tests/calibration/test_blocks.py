from __future__ import annotations

import pytest

from fourphase.calibration.blocks import Policy, selectors_of
from fourphase.runtime.errors import UsageError

BLOCKS = ("stem/NC", "stage1/NC", "gate1.channel/NC", "gate1.spatial/NC", "mix1/NC", "gru", "phase_head/NC")


@pytest.mark.parametrize(
    ("block", "selectors"),
    [
        ("gate1.channel/NC", ("gate1.channel/NC", "gate1.channel", "gate.channel", "gate", "*")),
        ("stage3/PV", ("stage3/PV", "stage3", "stage", "*")),
        ("conv1d", ("conv1d", "*")),
        ("stage2", ("stage2", "stage", "*")),
    ],
)
def test_selectors_from_precise_to_general(block: str, selectors: tuple[str, ...]) -> None:
    assert selectors_of(block) == selectors


def test_the_most_precise_selector_decides() -> None:
    policy = Policy.of({"*": "fp16", "stage": "int8", "stage1": "fp16", "stage1/NC": "fp32", "gate.channel": "fp32"})
    found = {block: policy.precision_of(block) for block in (*BLOCKS, "stage1/PV", "stage2/PV")}
    assert found["stage1/NC"] == "fp32"
    assert found["stage1/PV"] == "fp16"
    assert found["stage2/PV"] == "int8"
    assert found["gate1.channel/NC"] == "fp32"
    assert found["gate1.spatial/NC"] == "fp16"
    assert Policy(()).precision_of("gru") == "fp32"


def test_unknown_blocks_and_precisions_are_named() -> None:
    with pytest.raises(UsageError, match="'stage9'"):
        Policy.of({"stage9": "fp16"}).check(BLOCKS)
    with pytest.raises(UsageError, match="'fp8'"):
        Policy.of({"gru": "fp8"})
    Policy.of({"stage": "int8", "*": "fp16"}).check(BLOCKS)
