"""The pass on ONNX written as text, held against ONNX Runtime before and after on random input."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from fourphase.export.pass_static_gru import make_gru_static

T, INPUTS, HIDDEN = 5, 3, 2

GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
gru (float[5, batch, 3] x{extra_input}) => (float[5, batch, 2] y)
<float[1, 6, 3] w, float[1, 6, 2] r, float[1, 12] b,
 float zero = {{{value}}}, int64[1] one = {{1}}, int64[1] two = {{2}}>
{{
    batch_size = Shape<start = 1, end = 2>(x)
    state_shape = Concat<axis = 0>(one, batch_size, two)
    expanded = Expand(zero, state_shape)
    states = GRU<hidden_size = 2, linear_before_reset = 1>(x, w, r, b, , {state})
    moved = Transpose<perm = [0, 2, 1, 3]>(states)
    shape = Shape<start = 0, end = 2>(moved)
    target = Concat<axis = 0>(shape, two)
    y = Reshape(moved, target)
}}
"""


def parse(state: str = "expanded", value: float = 0.0, extra_input: str = "") -> onnx.ModelProto:
    model = onnx.parser.parse_model(GRAPH.format(state=state, value=value, extra_input=extra_input))
    generator = np.random.default_rng(0)
    for name, shape in (("w", (1, 6, 3)), ("r", (1, 6, 2)), ("b", (1, 12))):
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name)
        )
    names = {"w", "r", "b"}
    kept = [value for value in model.graph.initializer if value.name not in names or value.raw_data]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def changed(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    result, modified = make_gru_static(ir.serde.deserialize_model(model))
    return ir.serde.serialize_model(result), modified


def run(model: onnx.ModelProto, **inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0], dtype=np.float32)


def test_zero_state_and_computed_shape_go_and_nothing_changes() -> None:
    before = parse()
    after, modified = changed(before)
    assert modified
    gru = next(node for node in after.graph.node if node.op_type == "GRU")
    assert len(gru.input) < 6 or not gru.input[5]
    reshape = next(node for node in after.graph.node if node.op_type == "Reshape")
    target = next(tensor for tensor in after.graph.initializer if tensor.name == reshape.input[1])
    assert onnx.numpy_helper.to_array(target).tolist() == [0, 0, -1]
    for batch in (1, 4):
        x = np.random.default_rng(batch).normal(size=(T, batch, INPUTS)).astype(np.float32)
        np.testing.assert_array_equal(run(before, x=x), run(after, x=x))


def test_a_second_run_changes_nothing() -> None:
    once, _ = changed(parse())
    assert changed(once)[1] is False


def test_a_state_that_is_not_zero_stays() -> None:
    after, _ = changed(parse(value=0.5))
    gru = next(node for node in after.graph.node if node.op_type == "GRU")
    assert gru.input[5] == "expanded"


def test_a_state_from_outside_stays() -> None:
    after, _ = changed(parse(state="h0", extra_input=", float[1, batch, 2] h0"))
    gru = next(node for node in after.graph.node if node.op_type == "GRU")
    assert gru.input[5] == "h0"
