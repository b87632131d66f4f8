"""The rounding evaluation against numpy's float16 and ONNX's reference; ONNX Runtime alone does not round."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from fourphase.calibration.blocks import Policy, block_names, node_blocks, with_outputs
from fourphase.calibration.rounding import rounded_model, rounding_session
from fourphase.calibration.typed import fp16_policy, typed_model
from fourphase.export.pass_unroll_gru import unroll_gru
from tests.support.block_graphs import block_graph, two_blocks
from tests.support.networks import random_study

Array = NDArray[np.float32]
ALL_FP16 = Policy.of({"*": "fp16"})
#: (x + 1024) - 1024 keeps of x what FP16 holds at 1024: whole numbers.
ADD_AND_SUBTRACT = "(float[n] x) => (float[n] y) <float big = {1024.0}> { a = Add(x, big)  y = Sub(a, big) }"


def fp16(text: str, **weights: NDArray[Any]) -> onnx.ModelProto:
    return typed_model(block_graph(text, {}, weights), ALL_FP16)


def plain(model: onnx.ModelProto, x: Array, level: str = "ORT_ENABLE_ALL") -> Array:
    """ONNX Runtime as everybody uses it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0], dtype=np.float32)


def rounded(model: onnx.ModelProto, x: Array) -> Array:
    return next(iter(rounding_session(model)(x).values()))


def reference(model: onnx.ModelProto, x: Array) -> list[Array]:
    with warnings.catch_warnings():
        # Its sigmoid computes both branches and overflows in the one that it does not take.
        warnings.simplefilter("ignore", RuntimeWarning)
        return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x})]


def test_it_rounds_where_onnx_runtime_does_not() -> None:
    model, x = fp16(ADD_AND_SUBTRACT), np.array([0.1, 1.0001, 3.3333, 70000.0], np.float32)
    np.testing.assert_array_equal(rounded(model, x), np.array([0, 1, 3, np.inf], np.float32))
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        # The test of the test: the same graph, no error, no rounding, and no overflow.
        np.testing.assert_allclose(plain(model, x, level), x, rtol=1e-3)


@settings(max_examples=50)
@given(
    values=st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=20),
    other=st.floats(-300, 300, width=32),
    op_type=st.sampled_from(["Add", "Sub", "Mul", "Div"]),
)
def test_arithmetic_is_numpys_float16(values: list[float], other: float, op_type: str) -> None:
    text = f"(float[n] x) => (float[n] y) {{ a = {op_type}(x, c)  b = {op_type}(a, c)  y = {op_type}(b, a) }}"
    c, x = np.float32(other), np.array(values, np.float32)
    apply = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[op_type]
    with np.errstate(all="ignore"):
        a = apply(x.astype(np.float16), np.float16(c))
        expected = apply(apply(a, np.float16(c)), a)
    np.testing.assert_array_equal(rounded(fp16(text, c=np.array(c)), x), expected.astype(np.float32))


@pytest.mark.parametrize(
    "expression",
    [
        "Exp(a)",
        "Tanh(a)",
        "Sigmoid(a)",
        "Relu(a)",
        "MatMul(a, w)",
        "Gemm<transB = 1>(a, w, b)",
        "ReduceMean<keepdims = 0>(a, axis)",
        "ReduceMax<keepdims = 0>(a, axis)",
        "Softmax(a)",
    ],
)
def test_operators_are_the_references_to_one_unit_in_the_last_place(expression: str) -> None:
    rng = np.random.default_rng(4)
    weights = {
        "w": rng.normal(size=(8, 8)).astype(np.float32),
        "b": rng.normal(size=8).astype(np.float32),
        "axis": np.array([1]),
    }
    shape = "16" if "Reduce" in expression else "16, 8"
    model = fp16(f"(float[16, 8] x) => (float[{shape}] y) {{ a = Mul(x, x)  y = {expression} }}", **weights)
    x = rng.normal(size=(16, 8)).astype(np.float32)
    (wanted,) = reference(model, x)
    got = rounded(model, x)
    np.testing.assert_array_equal(got, got.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(got, wanted, rtol=2.0**-9, atol=1e-3)


def test_convolution_sums_in_fp32_and_rounds_once() -> None:
    """4608 equal products: an FP16 sum would stop growing at 2048 times the product."""
    kernel = np.full((1, 512, 3, 3), 1.0, np.float32)
    model = fp16("(float[1, 512, 3, 3] x) => (float[1, 1, 1, 1] y) { y = Conv(x, k) }", k=kernel)
    assert rounded(model, np.ones((1, 512, 3, 3), np.float32)).item() == 4608


def test_quantized_values_are_the_references() -> None:
    text = """(float[1, 2] x) => (float[1, 3] y) <int8 zero = {0}, int8[3] zeros = {0, 0, 0}>
    { q = QuantizeLinear(x, sx, zero)  d = DequantizeLinear(q, sx, zero)
      w = DequantizeLinear<axis = 1>(codes, sw, zeros)  y = MatMul(d, w) }"""
    model = fp16(
        text,
        sx=np.array(0.01, np.float32),
        sw=np.array([0.3, 0.5, 0.007], np.float32),
        codes=np.array([[1, -2, 3], [127, -127, 0]], np.int8),
    )
    x = np.array([[0.3, -5.0]], np.float32)
    np.testing.assert_array_equal(rounded(model, x), reference(model, x)[0])


def test_a_graph_in_fp32_is_left_as_it_is() -> None:
    model, x = two_blocks(), np.random.default_rng(0).normal(size=(2, 2, 6, 6)).astype(np.float32)
    assert [node.op_type for node in rounded_model(model).graph.node] == [node.op_type for node in model.graph.node]
    np.testing.assert_array_equal(rounded(model, x), plain(model, x, "ORT_DISABLE_ALL"))


def test_only_the_fp16_blocks_are_rounded() -> None:
    model = typed_model(two_blocks(), Policy.of({"stem": "fp16"}))
    values = rounding_session(model, blocks=True)(np.random.default_rng(0).normal(size=(2, 2, 6, 6)).astype(np.float32))
    assert on_the_grid(values["stem"])
    assert not on_the_grid(values["head"])
    assert not on_the_grid(values["logits"])


def on_the_grid(value: Array) -> bool:
    return bool(np.array_equal(value, value.astype(np.float16).astype(np.float32)))


def test_every_fp16_value_of_the_network_is_on_the_grid(model: onnx.ModelProto) -> None:
    unrolled = ir.serde.serialize_model(unroll_gru(ir.serde.deserialize_model(model))[0])
    for form in (model, unrolled):
        typed = typed_model(form, ALL_FP16)
        halves = [value.name for value in typed.graph.value_info if value.type.tensor_type.elem_type == 10]
        produced = {name for node in typed.graph.node for name in node.output}
        values = outputs_of(rounded_model(typed), [name for name in halves if name in produced], random_study())
        assert len(values) > 500
        assert [name for name, value in values.items() if not on_the_grid(value)] == []


def outputs_of(model: onnx.ModelProto, names: list[str], study: Array) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(with_outputs(model, names).SerializeToString(), options)
    return dict(zip(names, session.run(names, {"study": study}), strict=True))


def test_the_networks_error_is_as_large_as_the_references(model: onnx.ModelProto) -> None:
    """Two roundings that differ in the order of sums: not equal, but equally far from FP32."""
    study = random_study()
    wanted = plain(model, study)
    typed = typed_model(model, fp16_policy(sorted(set(node_blocks(model).values()))))
    ours, theirs = (np.abs(got - wanted).max() for got in (rounded(typed, study), reference(typed, study)[0]))
    naive = np.abs(plain(typed, study) - wanted).max()
    assert theirs / 5 < ours < theirs * 5
    assert naive > 0
    assert ours < 0.01


def test_blocks_come_back_under_their_names(model: onnx.ModelProto) -> None:
    typed = typed_model(model, ALL_FP16)
    values = rounding_session(typed, blocks=True)(random_study(batch=2))
    assert list(values) == ["logits", "phase_logits", *block_names(model)]
    assert {value.dtype for value in values.values()} == {np.dtype(np.float32)}
    assert values["logits"].shape == (2, 2)
    assert list(rounding_session(typed)(random_study())) == ["logits", "phase_logits"]
