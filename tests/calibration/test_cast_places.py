"""Two places where a Cast may not stand, on graphs written out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from fourphase.calibration.cast_places import cast_before_transposing, hold_casts_before_gru

TEXT = """
<ir_version: 10, opset_import: ["": 20]>
g (float16[2, 3, 4] x) => (float[2, 4, 5] y)
<float[3, 5] w = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}>
{
  moved = Transpose <perm = [0, 2, 1]> (x)
  wide = Cast <to = 1> (moved)
  y = MatMul (wide, w)
}
"""


def test_the_cast_comes_first_and_no_value_changes() -> None:
    before = onnx.parser.parse_model(TEXT)
    graph = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(before))
    cast_before_transposing(graph.graph)
    after = ir.serde.serialize_model(graph)
    onnx.checker.check_model(after, full_check=True)
    assert [node.op_type for node in after.graph.node] == ["Cast", "Transpose", "MatMul"]
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float16)
    found = [
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
        for model in (before, after)
    ]
    weight = np.arange(15, dtype=np.float32).reshape(3, 5)
    for (y,) in found:
        np.testing.assert_allclose(y, x.astype(np.float32).transpose(0, 2, 1) @ weight, rtol=1e-5)


def test_a_transpose_that_others_read_stays() -> None:
    text = TEXT.replace("(float[2, 4, 5] y)", "(float[2, 4, 5] y, float16[2, 4, 3] z)").replace(
        "  y = MatMul", "  z = Relu (moved)\n  y = MatMul"
    )
    graph = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    cast_before_transposing(graph.graph)
    assert [node.op_type for node in graph.graph] == ["Transpose", "Cast", "Relu", "MatMul"]


GRUS = """
<ir_version: 10, opset_import: ["": 20]>
g (float[3, 2, 4] x) => (float16[3, 1, 2, 5] a, float16[3, 1, 2, 5] b)
{
  half = Cast <to = 10> (x)
  a = GRU <hidden_size = 5> (half, w, r)
  b = GRU <hidden_size = 5, direction = "reverse"> (half, w, r)
}
"""


def test_two_grus_on_the_same_features_share_one_product() -> None:
    model = onnx.parser.parse_model(GRUS)
    rng = np.random.default_rng(1)
    for name, shape in (("w", (1, 15, 4)), ("r", (1, 15, 5))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float16), name))
    graph = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model))
    hold_casts_before_gru(graph.graph)
    after = ir.serde.serialize_model(graph)
    onnx.checker.check_model(after, full_check=True)
    assert [node.op_type for node in after.graph.node] == ["Cast", "Mul", "GRU", "GRU"]
    assert [node.input[0] for node in after.graph.node[2:]] == ["half.held.output"] * 2
