"""What a layer is and computes in: one line of the table per form that was seen in recorded answers."""

from __future__ import annotations

from typing import Any

import pytest

from fourphase.engine.audit_rules import holds_weights
from tests.support.inspector_answers import CONV, engine_of, layer, value

MATRIX = [value("Float", (64, 8), "w_constantFloat")]
ALPHA = value("Float", (1,), "__mye574node_linear_68_alpha")
CODES = [value("Int8", (64, 8), "w_constantInt8")]


@pytest.mark.parametrize(
    ("entry", "role", "precision"),
    [
        (layer("CaskConvolution", "Half", "Half", **CONV), "weighted", "fp16"),
        (layer("CaskConvolution", "Half", "Float", **CONV), "weighted", "fp16"),
        (layer("CaskConvolution", "Float", "Half", Weights={"Type": "Float", "Count": 8}), "weighted", "fp32"),
        (layer("CaskConvolution", "Int8 Half", "Half", Weights={"Type": "Int8", "Count": 8}), "weighted", "int8"),
        (layer("CaskConvolution", "Half", "Half", Weights={"Type": "Int8", "Count": 8}), "weighted", "mixed"),
        (layer("CaskConvolution", "Half Half", "Half", Weights={"Type": "Float", "Count": 0}), "weighted", "fp16"),
        (layer("CaskConvolution", "N/A", "N/A", **CONV), "weighted", "unknown"),
        (layer("CaskDeconvolutionV2", "Half", "Half", **CONV), "weighted", "fp16"),
        (layer("CudnnConvolution", "Float", "Float", TacticName="x_tf32_y"), "weighted", "tf32"),
        (layer("CudnnConvolution", "Half", "Half", TacticName="x_tf32_y"), "weighted", "fp16"),
        (layer("CudnnConvolution", "Int8 Half", "Half"), "weighted", "int8"),
        (layer("correlation", "Half", "Half"), "weighted", "fp16"),
        (layer("gemm", "Half", "Float"), "weighted", "fp16"),
        (layer("gemm", "Half Float", "Half"), "weighted", "mixed"),
        (layer("gemm", "", "Half", Inputs=[value("Half"), ALPHA]), "weighted", "fp16"),
        (layer("gemm", "", "Half", Inputs=[value("Half"), *CODES]), "weighted", "mixed"),  # INT8 weights only
        (layer("MatrixMultiply", "Float Float", "Float"), "weighted", "fp32"),
        (layer("fusion", "Int8", "Half", TacticName="sm80_xmma_gemm_i8f32_i8i32_f32"), "weighted", "int8"),
        (layer("fusion", "Half", "Half", TacticName="pointwise"), "other", "fp16"),
        (layer("kgen", "Half", "Half", "n", Name="__myl_MulSum_myl0_0", Constants=MATRIX), "weighted", "mixed"),
        (layer("kgen", "Half", "Half", "n", Name="__myl_CastMulSum_myl0_0", Constants=MATRIX), "weighted", "fp32"),
        (layer("kgen", "Half", "Half", "n", Name="__myl_MulSumAddCas_myl0_0", Constants=MATRIX), "weighted", "fp32"),
        (layer("kgen", "Half", "Half", "n", Name="__myl_CastMulSum_myl0_0", Constants=CODES), "weighted", "mixed"),
        (layer("kgen", "Half", "Half", Name="__myl_MulSum_myl0_0"), "weighted", "fp16"),  # its node is a Conv
        (layer("kgen", "Half", "Half", "node_mul", Name="__myl_MulSum_myl0_0"), "other", "fp16"),
        (layer("kgen", "Half", "Half", "node_mul", Name="__myl_MulAdd_myl0_0"), "other", "fp16"),
        (layer("kgen", "Half", "Half", "node_mul", Name="__myl_MulCast_myl0_0"), "casting", "fp16"),
        (layer("kgen", "Half", "Half", "node_view", Name="__myl_ReshTran_myl0_0"), "moving", "fp16"),
        (layer("kgen", "Half", "Float", "node_view", Name="__myl_Cast_myl0_0"), "moving", "mixed"),
        (layer("Reformat", "Float", "Half", "node_mul", Origin="REFORMAT"), "moving", "mixed"),
        (layer("CaskPooling", "Half", "Half", "node_max", PoolingType="MAX"), "moving", "fp16"),
        (layer("CaskPooling", "Half", "Half", "node_mean", PoolingType="AVERAGE"), "other", "fp16"),
        (layer("PointWiseV2", "Half", "Half", "node_mul"), "other", "fp16"),
        (layer("PointWiseV2", "Half", "Half", "stage1/NC.to_fp32"), "casting", "fp16"),
        (layer("PointWiseV2", "Half", "Half", "node_broadcast"), "other", "fp16"),
        (layer("Reduce", "Half Bool", "Half", "node_mean"), "other", "fp16"),  # a mask is no operand
        (layer("Reduce", "Half Quux", "Half", "node_mean"), "other", "unknown"),
        (layer("Myelin", "Half", "Half"), "opaque", "fp16"),
        (layer("Myelin", "Half", "Float"), "opaque", "mixed"),
        (layer("shape_call", "", ""), "moving", "none"),
    ],
)
def test_what_a_layer_is_and_computes_in(entry: dict[str, Any], role: str, precision: str) -> None:
    found = engine_of(entry).layers[0]
    assert (found.role, found.precision) == (role, precision)


@pytest.mark.parametrize(
    ("node", "holds"),
    [
        ("node_Conv_1961", True),
        ("node_linear_64", True),
        ("node_add_2846/Gemm_1", True),
        ("node_gru__1", True),
        ("node_gru__1.0/MatMul_12", True),
        ("/layer1/conv1/Conv", True),
        ("node_gru__1.0/Sigmoid_3", False),
        ("/layer1/conv1/Relu", False),
        ("network.trunks.NC.stages.1.0.conv1.weight.dequantized", False),
        ("conv1d.to_fp32", False),
        ("conv1d.held", False),
        ("/conv1/QuantizeLinear", False),
        ("node_Convert_3", False),
        ("node_mul_354", False),
    ],
)
def test_a_nodes_name_tells_whether_it_holds_weights(node: str, holds: bool) -> None:
    assert holds_weights(node) is holds
