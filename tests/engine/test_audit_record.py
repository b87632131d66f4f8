"""What the recorded engines compute in: roles, precisions, bytes and shares, all by hand."""

from __future__ import annotations

import pytest

from fourphase.engine.audit import findings, require_precision
from fourphase.runtime.errors import EngineBuildFailed
from tests.support.inspector_answers import BLOCKS, MIXED, MIXED_WANTED, audit_of


def test_tensorrt_10_fp16_by_hand() -> None:
    audit = audit_of("10_fp16")
    seen = [(layer.role, layer.precision, layer.output_bytes, layer.weight_bytes) for layer in audit.layers]
    assert seen == [
        ("moving", "mixed", 28 * 28 * 2, None),
        ("weighted", "fp16", 32 * 28 * 28 * 2, 800 * 2),
        ("moving", "fp16", 32 * 28 * 28 * 2, None),
        ("moving", "fp16", 32 * 14 * 14 * 2, None),  # a maximum rounds nothing
        ("weighted", "fp16", 64 * 14 * 14 * 2, 51200 * 2),
        ("moving", "none", 0, None),
        ("moving", "fp16", 12544 * 2, None),
        ("weighted", "fp16", 1024 * 2, None),
        ("weighted", "fp16", 10 * 2, None),  # f16f16_f16f32_f32: FP32 accumulates, FP16 is multiplied
        ("other", "fp16", (1 + 10) * 2, None),
        ("moving", "mixed", 10 * 4, None),
    ]
    total = 1568 + 50176 + 50176 + 12544 + 25088 + 25088 + 2048 + 20 + 22 + 40
    assert audit.by_precision == {
        "fp16": {"layers": 8, "share_of_layers": 8 / 11, "bytes": total - 1608, "share_of_bytes": 1 - 1608 / total},
        "mixed": {"layers": 2, "share_of_layers": 2 / 11, "bytes": 1608, "share_of_bytes": 1608 / total},
        "none": {"layers": 1, "share_of_layers": 1 / 11, "bytes": 0, "share_of_bytes": 0.0},
    }
    assert audit.by_block == {
        # The input's reformat names the convolution it stands before.
        "stem/NC": {"fp16": 2, "mixed": 1},
        "stage1/NC": {"fp16": 1},
        "head": {"fp16": 1},
    }
    assert (audit.unknown, audit.unseen, audit.open_layers) == ((), (), 10)
    require_precision(audit, {"stem/NC": "fp16", "stage1/NC": "fp16", "head": "fp16"})


def test_tensorrt_10_int8_by_hand() -> None:
    blocks = {**BLOCKS, "node_Conv_1977": "stage1/NC", "node_Conv_2214": "conv1d"}
    audit = audit_of("10_int8", blocks)
    assert [(layer.role, layer.precision, layer.output_bytes, layer.weight_bytes) for layer in audit.layers] == [
        ("moving", "mixed", 3 * 224 * 224, None),
        ("weighted", "int8", 64 * 56 * 56, 9408),
        ("weighted", "int8", 64 * 56 * 56, 36864),
        ("weighted", "int8", 64 * 56 * 56 * 2, 36864),  # its residual and its output are FP16
        ("weighted", "fp32", 64 * 28 * 28 * 4, 4096 * 4),
        ("weighted", "fp16", 1000 * 2, (4096 * 1000 + 1000) * 2),  # its alpha and beta are FP32
    ]
    require_precision(audit, {"stem/NC": "int8", "stage1/NC": "int8", "conv1d": "fp32", "head": "fp16"})


def test_tensorrt_10_qdq_by_hand() -> None:
    """A recorded engine that should be INT8: the second product is FP32, and TF32 at that."""
    audit = audit_of("10_qdq_fp32", {"/fc1/Gemm": "stage1/NC", "/fc2/Gemm": "stage2/NC"})
    assert [(layer.role, layer.precision, layer.output_bytes) for layer in audit.layers] == [
        ("moving", "none", 0),
        ("casting", "mixed", 16),
        ("weighted", "int8", 64),
        ("casting", "mixed", 64 * 4),
        ("weighted", "tf32", 32 * 4),
        ("casting", "fp32", 32 * 4),
    ]
    with pytest.raises(EngineBuildFailed, match=r"stage2 \(int8 asked, tf32 found\)") as caught:
        require_precision(audit, {"stage1/NC": "int8", "stage2/NC": "int8"})
    assert (caught.value.code, caught.value.key) == (26, "precision_not_held")
    assert caught.value.table == (
        {"block": "stage2/NC", "asked": "int8", "found": "tf32", "layer": "/fc2/Gemm_myl0_4"},
    )
    assert "stage1" not in caught.value.message


def test_tensorrt_11_by_hand() -> None:
    audit = audit_of("11_tf32")
    assert [(layer.role, layer.precision, layer.output_bytes, layer.weight_bytes) for layer in audit.layers] == [
        ("other", "other", 0, None),
        ("moving", "fp32", 28 * 28 * 4, None),
        ("weighted", "tf32", 32 * 28 * 28 * 4, (32 * 25 + 1 + 1 + 32) * 4),
        ("moving", "fp32", 32 * 14 * 14 * 4, None),
        ("weighted", "tf32", 64 * 14 * 14 * 4, (64 * 32 * 25 + 1 + 1 + 64) * 4),
        ("moving", "fp32", 3136 * 4, None),
        ("weighted", "fp32", 1024 * 4, (3136 * 1024 + 1 + 1 + 1024) * 4),
        ("weighted", "fp32", 10 * 4, 1024 * 10 * 4),  # a generated kernel: Mul, Sum, a constant matrix
        ("other", "fp32", (10 + 1 + 10) * 4, 10 * 4),  # adds that product's bias
        ("moving", "other", 8, None),
    ]
    assert (audit.unknown, audit.unseen, audit.open_layers) == ((), (), 0)
    require_precision(audit, {"head": "fp32"})
    with pytest.raises(EngineBuildFailed, match=r"stem \(fp32 asked, tf32 found\), stage1 \(fp32 asked, tf32 found\)"):
        require_precision(audit, dict.fromkeys(("stem/NC", "stage1/NC", "head"), "fp32"))


def test_tensorrt_11_with_every_precision_holds_what_was_asked() -> None:
    audit = audit_of("11_mixed", MIXED)
    assert [(layer.role, layer.precision) for layer in audit.layers] == [
        ("moving", "mixed"),
        ("weighted", "fp16"),
        ("weighted", "int8"),  # an INT8 operand, INT8 weights, an FP16 residual
        ("casting", "mixed"),
        ("weighted", "fp32"),
        ("weighted", "fp32"),  # casts its result to FP16
        ("other", "fp16"),
        ("weighted", "fp32"),  # casts its FP16 operand to the type of its weights
    ]
    assert findings(audit, MIXED_WANTED) == ()
    require_precision(audit, MIXED_WANTED)


@pytest.mark.parametrize("block", sorted(MIXED_WANTED))
def test_every_block_of_it_fails_if_another_precision_was_asked(block: str) -> None:
    other = {"fp32": "fp16", "fp16": "fp32", "int8": "fp16"}[MIXED_WANTED[block]]
    with pytest.raises(EngineBuildFailed) as caught:
        require_precision(audit_of("11_mixed", MIXED), {**MIXED_WANTED, block: other})
    assert caught.value.key == "precision_not_held"
    assert {row["block"] for row in caught.value.table} == {block}
    assert f"{block.partition('/')[0]} ({other} asked" in caught.value.message
