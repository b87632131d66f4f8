from __future__ import annotations

import pytest

from fourphase.calibration.blocks import Policy, is_foreign, selectors_of
from fourphase.calibration.qdq import int8_policy
from fourphase.calibration.typed import fp16_policy
from fourphase.runtime.errors import UsageError

BLOCKS = ("stem/NC", "stage1/NC", "gate1.channel/NC", "gate1.spatial/NC", "mix1/NC", "gru", "phase_head/NC")


@pytest.mark.parametrize(
    ("block", "selectors"),
    [
        ("gate1.channel/NC", ("gate1.channel/NC", "gate1.channel", "gate.channel", "gate", "*")),
        ("stage3/PV", ("stage3/PV", "stage3", "stage", "*")),
        ("conv1d", ("conv1d", "*")),
        ("stage2", ("stage2", "stage", "*")),
        ("layers.0/norm", ("layers.0/norm", "*/norm", "layers.0", "layers", "*")),
        ("head/logits", ("head/logits", "*/logits", "head", "*")),
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


FOREIGN = ("outside", "stem/input", "stem", "layers.0/norm", "layers.0", "gru/recurrence", "gru", "head/logits")


def test_a_foreign_networks_policies_speak_of_the_parts() -> None:
    """A block `gru` or `head` of another network is no exception by its name: its recurrence and last layer are."""
    assert is_foreign(FOREIGN)
    assert not is_foreign(BLOCKS)
    half, quantized = fp16_policy(FOREIGN), int8_policy(FOREIGN, {"stem", "stem/input", "layers.0", "layers.0/norm"})
    assert [half.precision_of(block) for block in FOREIGN] == [
        "fp16", "fp16", "fp16", "fp32", "fp16", "fp32", "fp16", "fp32",
    ]  # fmt: skip
    assert [quantized.precision_of(block) for block in FOREIGN] == [
        "fp16", "fp16", "int8", "fp32", "int8", "fp32", "fp16", "fp32",
    ]  # fmt: skip
    everywhere = int8_policy(FOREIGN)
    assert [everywhere.precision_of(block) for block in ("stem", "stem/input", "gru/recurrence", "outside")] == [
        "int8", "fp16", "fp32", "int8",
    ]  # fmt: skip
    for policy in (half, quantized, everywhere):
        policy.check(FOREIGN)


def test_our_policies_are_what_they_were() -> None:
    assert dict(fp16_policy(BLOCKS).rules) == {"*": "fp16", "gate.channel": "fp32", "gru": "fp32", "phase_head": "fp32"}
    assert int8_policy(BLOCKS).precision_of("stage1/NC") == "int8"
