"""Every precision in both forms of the GRU, parsed and built by NVIDIA's own parser and builder (TensorRT for RTX)."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from fourphase.calibration.blocks import Policy, node_blocks
from fourphase.calibration.lowering import blocks_of, lowered_model
from fourphase.calibration.qdq import int8_policy, quantizable_values
from fourphase.calibration.scales import Scales
from fourphase.calibration.typed import fp16_policy
from fourphase.engine.build import build_engine
from fourphase.engine.options import BuildOptions, EngineSource
from fourphase.export.config import NetworkConfig
from fourphase.export.network import FourPhaseNet
from fourphase.export.onnx_export import GRU_FORMS
from fourphase.export.pass_unroll_gru import unroll_gru
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import EngineBuildFailed
from tests.support.networks import exported_once, exported_small

PRECISIONS = ("fp32", "fp16", "int8")
#: Ampere, Ada and Blackwell in one plan; Turing has a test of its own.
OPTIONS = BuildOptions(compute_capabilities=("8.0", "8.6", "8.9", "12.0"))

pytestmark = pytest.mark.rtx


def in_form(loop: onnx.ModelProto, gru: str) -> onnx.ModelProto:
    """As `onnx_from_network(..., gru)`, from one export."""
    if gru == "loop":
        return loop
    unrolled, changed = unroll_gru(ir.serde.deserialize_model(loop))
    assert changed
    return ir.serde.serialize_model(unrolled)


def lowered(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """By the default policy; the builder does not care whether a scale is a good one."""
    blocks = blocks_of(model)
    policy = {"fp32": Policy(()), "fp16": fp16_policy(blocks), "int8": int8_policy(blocks)}[precision]
    scales = Scales(dict.fromkeys(quantizable_values(model), 0.0625), "minmax", "", "", {})
    return lowered_model(model, policy, scales)


def built(model: onnx.ModelProto, precision: str) -> int:
    """The size of the plan in bytes."""
    plan = build_engine(
        EngineSource(model.SerializeToString(), precision, blocks=node_blocks(model)), "tensorrt-rtx", OPTIONS
    )
    return len(plan.plan)


@pytest.mark.parametrize(("gru", "precision"), list(itertools.product(GRU_FORMS, PRECISIONS)))
def test_the_small_network_is_built(gru: str, precision: str) -> None:
    loop = onnx.load_model_from_string(exported_small())
    assert built(lowered(in_form(loop, gru), precision), precision) > 100_000


def test_turing_takes_a_network_without_products_in_fp32_and_no_other() -> None:
    loop = onnx.load_model_from_string(exported_small())
    turing = replace(OPTIONS, compute_capabilities=("7.5",))
    scales = Scales(dict.fromkeys(quantizable_values(loop), 0.0625), "minmax", "", "", {})
    for gru, rules in itertools.product(GRU_FORMS, ({"*": "fp16"}, {"*": "fp16", "stage": "int8"})):
        model = lowered_model(in_form(loop, gru), Policy.of(rules), scales)
        plan = build_engine(EngineSource(model.SerializeToString(), "fp16"), "tensorrt-rtx", turing)
        assert len(plan.plan) > 100_000
    with pytest.raises(EngineBuildFailed, match="Turing"):
        build_engine(EngineSource(lowered(loop, "fp16").SerializeToString(), "fp16"), "tensorrt-rtx", turing)


@pytest.mark.slow
def test_the_full_size_network_is_built_and_shrinks_with_its_precision(tmp_path: Path) -> None:
    loop = exported_once(FourPhaseNet(NetworkConfig()).eval(), PreprocessingConfig())
    for gru in GRU_FORMS:
        model = in_form(loop, gru)
        sizes = {precision: built(lowered(model, precision), precision) for precision in PRECISIONS}
        assert 190e6 < sizes["fp32"] < 260e6
        assert sizes["fp16"] < 0.6 * sizes["fp32"]
        assert sizes["int8"] < 0.75 * sizes["fp16"]
