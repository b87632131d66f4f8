"""Scales and codes, held against onnxruntime's QuantizeLinear and the definition of FP16."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fourphase.calibration.int8 import quantize, scale_of, weight_scales

FP32 = st.floats(2**-100, 127 * 65504.0, width=32)


@given(FP32)
def test_a_scale_is_exact_in_fp16_covers_its_threshold_and_is_the_next_one_up(threshold: float) -> None:
    scale = scale_of(threshold)
    assert scale.astype(np.float16).astype(np.float32) == scale
    exact = np.float32(threshold) / np.float32(127)
    assert scale >= exact
    below = np.nextafter(scale.astype(np.float16), np.float16(0))
    assert below.astype(np.float32) < exact


def test_nothing_but_zeros_has_a_scale_that_divides() -> None:
    assert scale_of(0.0) == 1


def test_a_scale_that_fp16_cannot_hold_stays_exact() -> None:
    thresholds = np.array([1.0, 127 * 65520.0], dtype=np.float32)
    assert scale_of(thresholds)[1] == thresholds[1] / np.float32(127)


def onnx_codes(values: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
    """QuantizeLinear in onnxruntime, per channel."""
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> g (float[{",".join(map(str, values.shape))}] x,'
        f" float[{len(scales)}] s) => (int8[{','.join(map(str, values.shape))}] y)"
        f" <int8[{len(scales)}] z = {{{','.join('0' for _ in scales)}}}>"
        f" {{ y = QuantizeLinear<axis = {axis}>(x, s, z) }}"
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": values, "s": scales})[0])


@pytest.mark.parametrize("axis", [0, 1])
def test_codes_are_those_of_onnx(axis: int) -> None:
    rng = np.random.default_rng(axis)
    values = rng.normal(0, 3, (4, 5, 6)).astype(np.float32)
    scales = scale_of(rng.uniform(0.5, 8, [values.shape[axis]]).astype(np.float32))
    values[0, 0] = np.float32(0.5) * scales[0]  # a tie
    np.testing.assert_array_equal(quantize(values, scales, axis), onnx_codes(values, scales, axis))


@given(arrays.arrays(np.float32, (3, 4, 2), elements=st.floats(-100, 100, width=32)))
def test_a_weight_is_off_by_half_a_step_of_its_channel_at_most(weight: np.ndarray) -> None:
    scales = weight_scales(weight, 1)
    assert scales.shape == (4,)
    codes = quantize(weight, scales, 1)
    assert np.abs(codes.astype(np.int16)).max() <= 127
    error = np.abs(codes * scales[None, :, None] - weight)
    assert (error <= scales[None, :, None] * 0.5001).all()
