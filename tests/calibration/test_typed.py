"""Types by policy: on small graphs node by node, and the network in every typing through NVIDIA's own builder."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fourphase.calibration import typed
from fourphase.calibration.blocks import Policy, node_blocks
from fourphase.calibration.typed import FP16_EXCEPT, fp16_policy, typed_model
from fourphase.engine.build import build_engine
from fourphase.engine.options import BuildOptions, EngineSource
from fourphase.export.pass_unroll_gru import unroll_gru
from fourphase.runtime.errors import EngineBuildFailed, ExportRefused, UsageError
from tests.support.block_graphs import block_graph, block_of, node_making, two_blocks, type_of
from tests.support.networks import random_study

Array = NDArray[np.float32]

KINDS = ("stem", "stage", "gate.channel", "gate.spatial", "mix", "features", "conv1d", "gru", "head", "body")


def converted(model: onnx.ModelProto, **rules: str) -> onnx.ModelProto:
    return checked(typed_model(model, Policy.of({name.replace("any", "*"): value for name, value in rules.items()})))


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, after ONNX's strict type inference agreed with every type that it states."""
    onnx.checker.check_model(model, full_check=True)
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, check_type=True)
    stated = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    for value in inferred.graph.value_info:
        assert stated[value.name] == value.type.tensor_type.elem_type, value.name
    return model


def casts(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """(value, type it is cast to) of every Cast."""
    return [
        (node.input[0], onnx.TensorProto.DataType.Name(node.attribute[0].i))
        for node in model.graph.node
        if node.op_type == "Cast"
    ]


def run(model: onnx.ModelProto, **feeds: Array) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def test_a_block_gets_its_type_with_casts_at_its_borders_only() -> None:
    model = converted(two_blocks(), stem="fp16")
    assert casts(model) == [("study", "FLOAT16"), ("moved", "FLOAT")]
    assert [type_of(model, name) for name in ("c", "stem", "moved")] == ["FLOAT16"] * 3
    assert [type_of(model, name) for name in ("head", "logits", "study")] == ["FLOAT"] * 3
    assert block_of(node_making(model, "study.fp16")) == "stem"
    assert block_of(node_making(model, "moved.fp32")) == "head"


def test_inputs_and_outputs_stay_float32_and_keep_their_names() -> None:
    before, after = two_blocks(), converted(two_blocks(), any="fp16")
    assert after.graph.input == before.graph.input
    assert after.graph.output == before.graph.output
    assert after.metadata_props == before.metadata_props
    assert [type_of(after, name) for name in ("c", "stem", "moved", "head", "logits.fp16")] == ["FLOAT16"] * 5
    assert {node.name: block_of(node) for node in before.graph.node}.items() <= {
        node.name: block_of(node) for node in after.graph.node
    }.items()


def test_all_fp32_changes_nothing() -> None:
    before = two_blocks()
    after = converted(before, any="fp32")
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]
    assert {tensor.name for tensor in after.graph.initializer} == {tensor.name for tensor in before.graph.initializer}


def test_a_graph_that_states_no_types_gets_them() -> None:
    model = two_blocks()
    del model.graph.value_info[:]
    after = converted(model, stem="fp16")
    assert casts(after) == [("study", "FLOAT16"), ("moved", "FLOAT")]
    assert type_of(after, "c") == "FLOAT16"


def test_a_constant_node_becomes_a_weight() -> None:
    text = "(float[2] x) => (float[2] y) { c = Constant<value = float[2] {0.5, 3.0}>()  y = Mul(x, c) }"
    after = converted(block_graph(text, {"c": "head", "y": "stem"}), any="fp16")
    assert [node.op_type for node in after.graph.node] == ["Cast", "Mul", "Cast"]
    assert [type_of(after, tensor.name) for tensor in after.graph.initializer] == ["FLOAT16"]


def test_one_cast_for_all_readers_of_a_type() -> None:
    model = block_graph(
        "(float[2] x) => (float[2] y) { a = Relu(x)  b = Exp(a)  c = Tanh(a)  d = Add(b, c)  y = Add(d, a) }",
        {"a": "stem", "b": "head", "c": "tail", "d": "head", "y": "head"},
    )
    after = converted(model, any="fp32", head="fp16", tail="fp16")
    assert casts(after) == [("a", "FLOAT16"), ("y.fp16", "FLOAT")]
    assert block_of(node_making(after, "a.fp16")) == "head"


def test_weights_are_converted_once_and_the_old_ones_go() -> None:
    text = (
        "(float[2, 4] x) => (float[2, 4] y) { a = MatMul(x, w)  b = MatMul(a, w)  c = MatMul(b, w)  y = MatMul(c, v) }"
    )
    weights = {name: np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32) for name in ("w", "v")}
    model = block_graph(text, {"a": "stem", "b": "stem", "c": "head", "y": "head"}, weights)
    both = converted(model, stem="fp16", head="fp32")
    assert sorted(tensor.name for tensor in both.graph.initializer) == ["v", "w", "w.fp16"]
    half = next(tensor for tensor in both.graph.initializer if tensor.name == "w.fp16")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(half), weights["w"].astype(np.float16))
    alone = converted(model, any="fp16")
    assert sorted(tensor.name for tensor in alone.graph.initializer) == ["v.fp16", "w.fp16"]


def test_a_weight_beyond_fp16_is_refused_by_name() -> None:
    model = two_blocks(scale=1e5)
    with pytest.raises(ExportRefused, match=r"stem.*weight kernel reaches \d+") as caught:
        converted(model, stem="fp16")
    assert caught.value.key == "fp16_overflow"
    assert "keep stem in fp32" in caught.value.hint
    converted(model, head="fp16")


def test_infinity_as_a_weight_is_no_overflow() -> None:
    low = np.array([-np.inf, 0], np.float32)
    model = block_graph("(float[2] x) => (float[2] y) { y = Max(x, low) }", {"y": "stem"}, {"low": low})
    assert casts(converted(model, stem="fp16"))


def test_moving_passes_the_type_on_whatever_its_block() -> None:
    text = """(float[2, 4] x) => (float[2, 4] y) <int64[1] first = {0}>
    { a = Exp(x)  b = Unsqueeze(a, first)  c = Transpose<perm = [0, 2, 1]>(b)  d = Concat<axis = 0>(c, c)
      e = Gather<axis = 0>(d, first)  f = Transpose<perm = [0, 2, 1]>(e)  g = Squeeze(f, first)  y = Exp(g) }"""
    model = block_graph(text, {"a": "stem", "y": "head"})
    after = converted(model, any="fp16", body="fp32")
    assert casts(after) == [("x", "FLOAT16"), ("y.fp16", "FLOAT")]


def test_joining_two_types_follows_the_block() -> None:
    text = "(float[2] x) => (float[4] y) { a = Exp(x)  b = Tanh(x)  c = Concat<axis = 0>(a, b)  y = Exp(c) }"
    model = block_graph(text, {"a": "stem", "b": "head", "y": "head"})
    assert casts(converted(model, stem="fp16", body="fp32")) == [("x", "FLOAT16"), ("a", "FLOAT")]
    assert casts(converted(model, stem="fp16", body="fp16"))[1:] == [("b", "FLOAT16"), ("c", "FLOAT")]


def quantized(scale: float, *, opset: int = 20) -> onnx.ModelProto:
    text = """(float[1, 2] x) => (float[1, 3] y) <int8 zero = {0}, int8[3] zeros = {0, 0, 0}>
    { q = QuantizeLinear(x, sx, zero)  d = DequantizeLinear(q, sx, zero)
      w = DequantizeLinear<axis = 1>(codes, sw, zeros)  m = MatMul(d, w)  y = Relu(m) }"""
    weights: dict[str, NDArray[Any]] = {
        "sx": np.array(scale, np.float32),
        "sw": np.array([scale, 0.5, 0.25], np.float32),
        "codes": np.array([[1, -2, 3], [127, -127, 0]], np.int8),
    }
    blocks = dict.fromkeys(("q", "d", "w", "m"), "stem")
    return block_graph(text, {**blocks, "y": "head"}, weights, opset=opset)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_scales_become_fp16_and_codes_stay(precision: str) -> None:
    model = converted(quantized(0.125), stem=precision, head="fp32")
    assert casts(model) == [("x", "FLOAT16"), ("m", "FLOAT")]
    expected = {"sx.fp16": "FLOAT16", "sw.fp16": "FLOAT16", "codes": "INT8", "zero": "INT8", "zeros": "INT8"}
    assert {tensor.name: type_of(model, tensor.name) for tensor in model.graph.initializer} == expected
    assert [type_of(model, name) for name in ("q", "d", "w", "m")] == ["INT8", "FLOAT16", "FLOAT16", "FLOAT16"]
    x = np.array([[0.3, -1.7]], np.float32)
    np.testing.assert_array_equal(run(model, x=x)[0], run(quantized(0.125), x=x)[0])


def test_an_fp32_block_keeps_fp32_scales() -> None:
    model = converted(quantized(1e-7), stem="fp32", head="fp16")
    assert {type_of(model, name) for name in ("sx", "sw", "d", "w", "m")} == {"FLOAT"}


@pytest.mark.parametrize("scale", [1e-8, 7e-8])
def test_a_scale_that_fp16_would_change_is_refused_by_name(scale: float) -> None:
    with pytest.raises(ExportRefused, match=r"scale s[xw] holds") as caught:
        converted(quantized(scale), stem="int8")
    assert caught.value.key == "fp16_scale_underflow"


def test_a_subnormal_scale_that_fp16_holds_is_fine() -> None:
    assert type_of(converted(quantized(2.0**-20), stem="int8"), "sx.fp16") == "FLOAT16"


def test_an_opset_without_fp16_scales_is_refused() -> None:
    with pytest.raises(ExportRefused, match="QuantizeLinear has no FP16 form in opset 18") as caught:
        converted(quantized(0.125, opset=18), stem="int8")
    assert caught.value.key == "fp16_operator"


def test_an_operator_without_fp16_is_refused_by_name() -> None:
    text = "(float[4] x) => (uint8[4] y, float scale, uint8 zero) { y, scale, zero = DynamicQuantizeLinear(x) }"
    with pytest.raises(ExportRefused, match="DynamicQuantizeLinear has no FP16 form"):
        converted(block_graph(text, {"y": "stem"}), stem="fp16")


def test_an_operator_that_onnx_does_not_know_is_refused() -> None:
    nodes = [
        onnx.helper.make_node("Exp", ["x"], ["a"], "one"),
        onnx.helper.make_node("Own", ["a"], ["y"], "two", domain="own"),
    ]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xya"]
    graph = onnx.helper.make_graph(nodes, "graph", values[:1], values[1:2], value_info=values[2:])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("own", 1)]
    with pytest.raises(ExportRefused, match="Own has no FP16 form"):
        typed_model(onnx.helper.make_model(graph, opset_imports=opsets), Policy.of({"*": "fp16"}))


def test_a_cast_in_the_graph_follows_its_block() -> None:
    model = block_graph("(int64[2] x) => (float[2] y) { a = Cast<to = 1>(x)  y = Exp(a) }", {"a": "stem", "y": "stem"})
    assert casts(converted(model, stem="fp16")) == [("x", "FLOAT16"), ("y.fp16", "FLOAT")]


def test_a_graph_is_typed_once() -> None:
    with pytest.raises(ExportRefused, match="already"):
        converted(converted(two_blocks(), stem="fp16"), head="fp16")


def test_an_unknown_block_is_refused() -> None:
    with pytest.raises(UsageError, match="stage9"):
        converted(two_blocks(), stage9="fp16")


def test_the_default_policy_names_only_blocks_that_are_there(model: onnx.ModelProto) -> None:
    assert dict(fp16_policy(["stem", "head"]).rules) == {"*": "fp16", "head": "fp32"}
    blocks = sorted(set(node_blocks(model).values()))
    policy = fp16_policy(blocks)
    assert {block for block in blocks if policy.precision_of(block) == "fp32"} == {
        block for block in blocks if block.startswith(("gru", "head", "phase_head", "body")) or ".channel" in block
    }
    assert set(dict(policy.rules)) == {"*", *FP16_EXCEPT}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rules=st.dictionaries(st.sampled_from(("*", "stage2/NC", *KINDS)), st.sampled_from(("fp32", "fp16", "int8"))))
def test_any_policy_gives_a_valid_graph_that_runs(model: onnx.ModelProto, rules: dict[str, str]) -> None:
    after = checked(typed_model(model, Policy.of(rules)))
    assert after.graph.input == model.graph.input
    assert after.graph.output == model.graph.output
    study = random_study()
    for wanted, got in zip(run(model, study=study), run(after, study=study), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=0.02)


def gru_graph() -> onnx.ModelProto:
    text = """(float[5, batch, 4] x) => (float[1, batch, 3] y)
    { a = Relu(x)  states, y = GRU<hidden_size = 3, linear_before_reset = 1>(a, w, r) }"""
    rng = np.random.default_rng(1)
    weights = {name: rng.normal(size=(1, 9, width)).astype(np.float32) for name, width in (("w", 4), ("r", 3))}
    return block_graph(text, {"a": "stem", "states": "gru"}, weights)


def test_the_product_between_cast_and_gru_is_exact_for_every_value() -> None:
    model = converted(gru_graph(), any="fp32", stem="fp16")
    barrier = next(node for node in model.graph.node if node.op_type == "Mul")
    assert block_of(barrier) == "gru"
    assert node_making(model, barrier.input[0]).op_type == "Cast"
    assert next(node for node in model.graph.node if node.op_type == "GRU").input[0] == barrier.output[0]
    ones = next(tensor for tensor in model.graph.initializer if tensor.name == barrier.input[1])
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(ones), np.ones(4, np.float32))
    x = np.random.default_rng(2).normal(size=(5, 2, 4)).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(run(model, x=x)[0], run(gru_graph(), x=x)[0])
    x[0, 0, 0] = np.nan
    assert np.isnan(run(model, x=x)[0]).any()


def test_without_a_cast_there_is_no_product_before_the_gru() -> None:
    for rules in ({"any": "fp32"}, {"any": "fp16", "gru": "fp16"}):
        model = converted(gru_graph(), **rules)
        assert not any(node.op_type == "Mul" for node in model.graph.node)


def build(model: onnx.ModelProto) -> int:
    """Size of the plan that TensorRT for RTX builds."""
    options = BuildOptions(compute_capabilities=("8.9",))
    return len(build_engine(EngineSource(model.SerializeToString(), "fp16"), "tensorrt-rtx", options).plan)


def unrolled(model: onnx.ModelProto) -> onnx.ModelProto:
    return ir.serde.serialize_model(unroll_gru(ir.serde.deserialize_model(model))[0])


@pytest.mark.rtx
@pytest.mark.parametrize("form", ["loop", "unrolled"])
@pytest.mark.parametrize(
    "rules",
    [{}, {"*": "fp16"}, {"*": "fp16", "gru": "fp32"}, {"*": "fp16", "gate": "fp32"}, None],
    ids=["fp32", "all fp16", "gru fp32", "gates fp32", "default"],
)
def test_nvidias_builder_takes_every_typing(model: onnx.ModelProto, rules: dict[str, str] | None, form: str) -> None:
    if form == "unrolled":
        model = unrolled(model)
    policy = fp16_policy(sorted(set(node_blocks(model).values()))) if rules is None else Policy.of(rules)
    assert build(checked(typed_model(model, policy))) > 1_000_000


@pytest.mark.rtx
def test_without_the_product_the_builder_still_rejects_the_graph(
    model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, NVIDIA has repaired it: the product may go once every supported version is that new."""
    monkeypatch.setattr(typed, "hold_casts_before_gru", lambda graph: None)
    with pytest.raises(EngineBuildFailed, match="reshape"):
        build(typed_model(model, Policy.of({"*": "fp16", "gru": "fp32"})))
