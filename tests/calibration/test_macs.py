"""Counted by hand, and with the batch left dynamic."""

from __future__ import annotations

import onnx

from fourphase.calibration.macs import macs_by_output, shapes_at_batch_one
from tests.support.quantizable import quantizable_model, with_weights


def test_layers_are_counted_for_one_study() -> None:
    macs = macs_by_output(quantizable_model())
    slices = 4 * 2
    assert macs["stem_c"] == slices * 8 * 8 * 8 * (3 * 3 * 3)
    assert macs["s2_skip"] == slices * 16 * 4 * 4 * 8
    assert macs["g_a"] == slices * 16 * 2
    assert macs["mlp_a"] == 128 * 32
    assert macs["phase_logits"] == 4 * 32 * 2
    assert set(macs) == {
        "stem_c", "s1_a", "s1_b", "s2_a", "s2_b", "s2_skip", "g_a", "g_b", "mlp_a", "mlp", "logits", "phase_logits",
    }  # fmt: skip


def test_a_gru_counts_both_products_of_every_step() -> None:
    model = onnx.parser.parse_model("""
<ir_version: 10, opset_import: ["" : 20]>
gru (float[5, B, 3] x) => (float[5, 1, B, 2] y)
{ y = GRU<hidden_size = 2>(x, w, r) }""")
    with_weights(model, {"w": (1, 6, 3), "r": (1, 6, 2)})
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    assert macs_by_output(model) == {"y": 5 * 4 * (6 * 3 + 6 * 2)}


def test_shapes_that_cannot_be_known_are_left_out() -> None:
    model = onnx.parser.parse_model("""
<ir_version: 10, opset_import: ["" : 20]>
free (float[B, N, 4] x) => (float[B, N, 2] y)
{ y = MatMul(x, w) }""")
    with_weights(model, {"w": (4, 2)})
    assert macs_by_output(model) == {}
    assert "y" not in shapes_at_batch_one(model)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    assert macs_by_output(model) == {"y": 3 * 4 * 2}


def test_the_model_is_left_as_it_was() -> None:
    model = quantizable_model()
    before = model.SerializeToString()
    macs_by_output(model)
    assert model.SerializeToString() == before
