"""Counted by hand: lifetimes, element types, batches, weights apart."""

from __future__ import annotations

import json

import onnx
import pytest

from fourphase.calibration.activation_memory import peak_activations
from fourphase.calibration.blocks import BLOCK_KEY
from fourphase.runtime.errors import ModelIncompatible
from tests.support.quantizable import quantizable_model, with_weights

HEADER = '<ir_version: 10, opset_import: ["" : 20]>\n'


def parsed(text: str) -> onnx.ModelProto:
    """Node k is called node_k and belongs to the block block_k."""
    model = onnx.parser.parse_model(HEADER + text)
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{number}"
        node.metadata_props.append(onnx.StringStringEntryProto(key=BLOCK_KEY, value=f"block_{number}"))
    return model


#: Bytes for B studies: x 16 B, a 16 B, b 16 B, c 4 B, y 16 B.
CHAIN = """chain (float[B, 4] x) => (float[B, 4] y)
<int64[1] axis = {1}>
{
  a = Relu(x)
  b = Exp(a)
  c = ReduceSum<keepdims = 1>(b, axis)
  d = Neg(a)
  y = Mul(d, c)
}"""


def test_a_value_lives_from_its_node_to_its_last_reader() -> None:
    # node_0: x a = 32; node_1: a b = 32; node_2: a b c = 36; node_3: a c d = 36; node_4: c d y = 36. The first counts.
    found = peak_activations(parsed(CHAIN))
    assert (found.peak_bytes, found.node, found.block) == (36, "node_2", "block_2")
    assert found.total_bytes == 16 + 16 + 16 + 4 + 16 + 16
    assert (found.input_bytes, found.output_bytes, found.weight_bytes) == (16, 16, 8)


def test_the_batch_multiplies_activations_and_not_weights() -> None:
    found = peak_activations(parsed(CHAIN), batch=3)
    assert (found.peak_bytes, found.input_bytes, found.output_bytes, found.weight_bytes) == (108, 48, 48, 8)
    assert found.total_bytes == 3 * 84


def test_sizes_that_the_file_notes_for_another_batch_do_not_count() -> None:
    model = parsed(CHAIN)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [1, 4]))
    assert peak_activations(model, batch=3).peak_bytes == 108


def test_a_longer_life_raises_the_peak() -> None:
    kept = parsed(CHAIN)
    kept.graph.output.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, ["B", 4]))
    # b lives to the end: node_3: a b c d = 52, node_4: b c d y = 52.
    assert (peak_activations(kept).peak_bytes, peak_activations(kept).node) == (52, "node_3")
    late = parsed(CHAIN.replace("d = Neg(a)", "d = Add(x, a)"))
    # x lives up to node_3: x a b c = 52, then x a c d = 52.
    assert (peak_activations(late).peak_bytes, peak_activations(late).node) == (52, "node_2")


def test_an_output_that_nobody_reads_counts_while_its_node_runs() -> None:
    model = parsed("""parts (float[2, 6] x) => (float[2, 3] y)
{
  left, right = Split<axis = 1, num_outputs = 2>(x)
  y = Relu(left)
}""")
    found = peak_activations(model)
    # node_0: x 48, left 24, right 24; node_1: left 24, y 24.
    assert (found.peak_bytes, found.node) == (96, "node_0")


def test_int8_counts_one_byte_and_float16_two() -> None:
    model = parsed("""typed (float[B, 1000] x) => (float[B, 1000] y)
<int8 zero = {0}>
{
  half = Cast<to = 10>(x)
  codes = QuantizeLinear(half, scale, zero)
  back = DequantizeLinear(codes, scale, zero)
  y = Cast<to = 1>(back)
}""")
    model.graph.initializer.append(onnx.helper.make_tensor("scale", onnx.TensorProto.FLOAT16, [], [0.5]))
    found = peak_activations(model)
    # x 4000 + half 2000; half + codes 3000; codes + back 3000; back 2000 + y 4000.
    assert (found.peak_bytes, found.node) == (6000, "node_0")
    assert found.total_bytes == 4000 + 2000 + 1000 + 2000 + 4000
    assert found.weight_bytes == 2 + 1


def test_what_is_computed_of_weights_alone_is_no_activation() -> None:
    model = parsed("""folded (float[B, 4] x) => (float[B, 2] y)
<float scale = {0.5}, int8 zero = {0}>
{
  w = DequantizeLinear(codes, scale, zero)
  y = MatMul(x, w)
}""")
    model.graph.initializer.append(onnx.helper.make_tensor("codes", onnx.TensorProto.INT8, [4, 2], range(8)))
    found = peak_activations(model)
    assert (found.peak_bytes, found.total_bytes, found.weight_bytes) == (16 + 8, 16 + 8, 8 + 4 + 1)


def test_a_network_with_shapes_noted_for_a_symbolic_batch() -> None:
    """8 slices of 8 channels, 8 x 8: the second convolution's output beside the skip and what it reads."""
    model = onnx.shape_inference.infer_shapes(quantizable_model())
    before = model.SerializeToString()
    found = peak_activations(model, batch=2)
    image, stem, stage2 = (2 * 8 * channels * size * size * 4 for channels, size in ((3, 8), (8, 8), (16, 4)))
    assert found.input_bytes == image
    # s1_b: s1_r, stem and its own output, all of the stem's size (as s1_sum: s1_b, stem, s1_sum).
    assert found.peak_bytes == 3 * stem > 2 * stem + stage2
    assert found.block == "stage1"
    assert model.SerializeToString() == before, "the model is left as it was"
    assert json.loads(json.dumps(found.to_dict()))["peak_bytes"] == found.peak_bytes


def test_a_size_that_cannot_be_known_is_refused_by_name() -> None:
    model = onnx.parser.parse_model(HEADER + "free (float[B, N, 4] x) => (float[B, N, 2] y) { y = MatMul(x, w) }")
    with_weights(model, {"w": (4, 2)})
    with pytest.raises(ModelIncompatible, match="'x'") as caught:
        peak_activations(model)
    assert (caught.value.code, caught.value.key) == (20, "size_unknown")
