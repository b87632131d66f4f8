"""The pass on ONNX written as text, held against ONNX Runtime before and after on random input."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fourphase.export import onnx_export
from fourphase.export.network import FourPhaseNet
from fourphase.export.pass_merge_gate_gemms import merge_gate_gemms
from tests.support.networks import SMALL

Array = NDArray[np.float32]

GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
gate (float[batch, {c}] mean, float[batch, {c}] maximum) => (float[batch, {c}] y{output})
{{
    a1 = Gemm{one}(mean, w1, b1)
    a2 = Relu(a1)
    a3 = Gemm{two}(a2, w2, b2)
    m1 = Gemm{one}({source}, {weight}, b1)
    m2 = Relu(m1)
    m3 = Gemm{two}(m2, w2, b2)
    both = Add(a3, m3)
    y = Sigmoid(both)
}}
"""


def gate(
    channels: int = 6,
    hidden: int = 2,
    *,
    one: str = "<transB = 1>",
    two: str = "<transB = 1>",
    source: str = "maximum",
    weight: str = "w1",
    output: str = "",
    bias_rank: int = 1,
) -> onnx.ModelProto:
    """The channel gate after its two reductions; the keywords change one thing of the pattern."""
    text = GRAPH.format(c=channels, one=one, two=two, source=source, weight=weight, output=output)
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
        node.metadata_props.add(key="fourphase.block", value="gate1.channel/NC")
    rng = np.random.default_rng(0)
    w1 = (hidden, channels) if "transB" in one else (channels, hidden)
    w2 = (channels, hidden) if "transB" in two else (hidden, channels)
    shapes = {"w1": w1, "other": w1, "w2": w2, "b1": (hidden,), "b2": (1,) * (bias_rank - 1) + (channels,)}
    for name, shape in shapes.items():
        array = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return onnx.shape_inference.infer_shapes(model)


def changed(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    result, modified = merge_gate_gemms(ir.serde.deserialize_model(model))
    after = ir.serde.serialize_model(result)
    onnx.checker.check_model(after, full_check=True)
    return after, modified


def run(model: onnx.ModelProto, **feeds: Array) -> list[Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()}))


def random_feeds(model: onnx.ModelProto, batch: int) -> dict[str, Array]:
    rng = np.random.default_rng(batch)
    channels = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    return {name: rng.normal(size=(batch, channels)).astype(np.float32) for name in ("mean", "maximum")}


@settings(max_examples=30)
@given(
    channels=st.integers(1, 40),
    hidden=st.integers(1, 9),
    batch=st.integers(1, 3),
    one=st.sampled_from(["", "<transB = 1>"]),
    two=st.sampled_from(["", "<transB = 1>"]),
)
def test_four_products_become_two_and_nothing_changes(
    channels: int, hidden: int, batch: int, one: str, two: str
) -> None:
    before = gate(channels, hidden, one=one, two=two)
    after, modified = changed(before)
    assert modified
    assert [node.op_type for node in after.graph.node] == ["Concat", "Gemm", "Relu", "Gemm", "Sigmoid"]
    feeds = random_feeds(before, batch)
    np.testing.assert_allclose(run(after, **feeds)[0], run(before, **feeds)[0], rtol=0, atol=1e-6)


def test_the_new_nodes_are_of_the_block_and_no_constant_is_left_over() -> None:
    after, _ = changed(gate())
    assert all(node.metadata_props[0].value == "gate1.channel/NC" for node in after.graph.node)
    assert len({node.name for node in after.graph.node}) == len(after.graph.node)
    used = {name for node in after.graph.node for name in node.input}
    assert {tensor.name for tensor in after.graph.initializer} <= used
    typed = {value.name for value in after.graph.value_info}
    assert {name for node in after.graph.node for name in node.output} - {"y"} <= typed


@pytest.mark.parametrize(
    "change",
    [
        {"weight": "other"},
        {"source": "mean"},
        {"one": "<alpha = 0.5, transB = 1>"},
        {"two": "<beta = 2.0, transB = 1>"},
        {"bias_rank": 2},
        {"output": ", float[batch, 6] a3"},
        {"output": ", float[batch, 2] m1"},
    ],
)
def test_anything_else_is_left_alone(change: dict[str, str]) -> None:
    before = gate(**change)  # type: ignore[arg-type]
    after, modified = changed(before)
    assert not modified
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]


def test_the_networks_sixteen_gates_lose_three_nodes_each(
    network: FourPhaseNet, exported: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On what the exporter writes before the pass; the export runs it, so the shipped graph is the pass's result."""
    monkeypatch.setattr(onnx_export, "merge_gate_gemms", lambda graph: (graph, False))
    model = onnx_export.onnx_from_network(network, SMALL)
    after, modified = changed(model)
    shipped = onnx.load_model_from_string(exported)
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in shipped.graph.node]
    assert modified
    assert len(after.graph.node) == len(model.graph.node) - 16 * 3
    study = np.random.default_rng(0).normal(size=(2, 4, 8, 3, 32, 32)).astype(np.float32)
    for wanted, got in zip(run(model, study=study), run(after, study=study), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)
    assert changed(after)[1] is False
