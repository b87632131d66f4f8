"""Each guard is shown a graph that breaks it, made from a real export."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from fourphase.export.guards import check_any_graph, check_graph, require_clean
from fourphase.export.interface import interface_from_config
from fourphase.export.network import FourPhaseNet
from fourphase.export.pass_unroll_gru import unroll_gru
from fourphase.runtime.errors import ParityFailed
from tests.support.networks import SMALL

NodeOf = Callable[[str], onnx.NodeProto]


def guards(model: onnx.ModelProto, network: FourPhaseNet) -> dict[str, str]:
    """Guard -> block of every finding."""
    return {finding.guard: finding.block for finding in check_graph(model, network.config, SMALL)}


def test_a_fresh_export_is_clean(model: onnx.ModelProto, network: FourPhaseNet) -> None:
    assert check_graph(model, network.config, SMALL) == []


def test_gru_with_linear_before_reset_0_names_node_and_block(
    model: onnx.ModelProto, network: FourPhaseNet, node_of: NodeOf
) -> None:
    gru = node_of("GRU")
    next(attribute for attribute in gru.attribute if attribute.name == "linear_before_reset").i = 0
    with pytest.raises(ParityFailed) as caught:
        require_clean(check_graph(model, network.config, SMALL))
    assert caught.value.code == 27
    assert gru.name in caught.value.message
    assert "block gru" in caught.value.message
    assert caught.value.key == "guard_gru_linear_before_reset"


def test_gru_with_an_initial_state(model: onnx.ModelProto, network: FourPhaseNet, node_of: NodeOf) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 8), np.float32), "h0"))
    node_of("GRU").input.extend(["", "h0"])
    assert guards(model, network) == {"gru_initial_state": "gru"}


@pytest.mark.parametrize("op_type", ["Loop", "If", "Scan"])
def test_control_flow(model: onnx.ModelProto, network: FourPhaseNet, node_of: NodeOf, op_type: str) -> None:
    node_of("Sigmoid").op_type = op_type
    assert guards(model, network) == {"control_flow": "gate1.channel/NC"}


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "AveragePool", "GlobalMaxPool"])
def test_pools_over_the_whole_map(model: onnx.ModelProto, network: FourPhaseNet, node_of: NodeOf, op_type: str) -> None:
    node_of("ReduceMax").op_type = op_type
    assert guards(model, network) == {"kernel_sized_pool": "gate1.channel/NC"}


def test_a_max_pool_with_a_large_kernel(model: onnx.ModelProto, network: FourPhaseNet, node_of: NodeOf) -> None:
    pool = node_of("MaxPool")
    kernel = next(attribute for attribute in pool.attribute if attribute.name == "kernel_shape")
    kernel.ints[:] = [8, 8]
    assert guards(model, network) == {"kernel_sized_pool": "stem/NC"}


def test_a_shape_computed_at_run_time(model: onnx.ModelProto, network: FourPhaseNet) -> None:
    model.graph.node.append(helper.make_node("Shape", ["study"], ["shape"], name="stray"))
    findings = check_graph(model, network.config, SMALL)
    assert [(finding.guard, finding.node) for finding in findings] == [("run_time_shape", "stray")]


def test_an_operator_of_another_domain(model: onnx.ModelProto, network: FourPhaseNet, node_of: NodeOf) -> None:
    node_of("Relu").domain = "com.microsoft"
    assert set(guards(model, network)) == {"custom_domain"}


def test_a_missing_recurrent_layer(model: onnx.ModelProto, network: FourPhaseNet, node_of: NodeOf) -> None:
    node_of("GRU").op_type = "LSTM"
    assert guards(model, network) == {"gru_count": "gru"}


def test_stray_inputs_and_outputs(model: onnx.ModelProto, network: FourPhaseNet) -> None:
    model.graph.input.append(helper.make_tensor_value_info("lambda", onnx.TensorProto.FLOAT, []))
    model.graph.output.append(helper.make_tensor_value_info("gru", onnx.TensorProto.FLOAT, None))
    findings = check_graph(model, network.config, SMALL)
    assert [finding.block for finding in findings] == ["input", "output"]
    assert "study, lambda instead of study" in findings[0].message


def test_a_weight_that_is_also_an_input(model: onnx.ModelProto, network: FourPhaseNet) -> None:
    weight = model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
    assert any("weight is also an input" in finding.message for finding in check_graph(model, network.config, SMALL))


def test_a_batch_baked_in(model: onnx.ModelProto, network: FourPhaseNet) -> None:
    first = model.graph.input[0].type.tensor_type.shape.dim[0]
    first.ClearField("dim_param")
    first.dim_value = 1
    assert guards(model, network) == {"interface": "input"}


def test_another_networks_graph(model: onnx.ModelProto, network: FourPhaseNet) -> None:
    from fourphase.runtime.config import PreprocessingConfig

    assert {finding.guard for finding in check_graph(model, network.config, PreprocessingConfig())} == {"interface"}


def test_an_old_opset_and_external_data(model: onnx.ModelProto, network: FourPhaseNet) -> None:
    model.opset_import[0].version = 18
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    assert set(guards(model, network)) == {"opset", "external_data"}


@pytest.mark.parametrize("op_type", ["BatchNormalization", "Identity", "Dropout"])
def test_what_the_exporter_should_have_folded(
    model: onnx.ModelProto, network: FourPhaseNet, node_of: NodeOf, op_type: str
) -> None:
    node_of("Sigmoid").op_type = op_type
    assert guards(model, network) == {"leftover": "gate1.channel/NC"}


def test_the_unrolled_gru_is_counted_by_its_steps(model: onnx.ModelProto, network: FourPhaseNet) -> None:
    graph, _ = unroll_gru(ir.serde.deserialize_model(model))
    unrolled = ir.serde.serialize_model(graph)
    assert guards(unrolled, network) == {}
    step = next(node for node in unrolled.graph.node if node.op_type == "Tanh")
    step.op_type = "Relu"
    assert guards(unrolled, network) == {"gru_count": "gru"}


def test_the_gates_products_are_merged(model: onnx.ModelProto, network: FourPhaseNet) -> None:
    """Two products per gate and one per head instead of four: the pass ran as part of the export."""
    gates = len(network.config.ipm_stages) * network.config.count
    assert sum(node.op_type == "Gemm" for node in model.graph.node) == 2 * gates + network.config.count + 1


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("Cast", {"to": onnx.TensorProto.FLOAT16}),
        ("Cast", {"to": onnx.TensorProto.BFLOAT16}),
        *((name, {}) for name in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv")),
        *((name, {}) for name in ("QLinearMatMul", "ConvInteger", "MatMulInteger")),
    ],
)
def test_what_was_lowered_before_is_no_fp32_graph(
    model: onnx.ModelProto, network: FourPhaseNet, op_type: str, attributes: dict[str, int]
) -> None:
    model.graph.node.append(helper.make_node(op_type, ["study"], ["stray"], name="stray"))
    model.graph.node[-1].attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    assert set(guards(model, network)) == {"not_fp32"}
    interface = interface_from_config(network.config)
    for of_module in (True, False):
        found = check_any_graph(model, interface, SMALL, of_module=of_module)
        assert [(finding.guard, finding.node) for finding in found] == [("not_fp32", "stray")]


def test_other_casts_are_fp32s_own(model: onnx.ModelProto, network: FourPhaseNet) -> None:
    model.graph.node.append(helper.make_node("Cast", ["study"], ["stray"], name="stray", to=onnx.TensorProto.INT64))
    assert guards(model, network) == {}
