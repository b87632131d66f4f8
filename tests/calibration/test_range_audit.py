"""Ranges against numpy on small graphs, the estimate of FP16 sums against FP16 sums, and a poisoned network."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from fourphase.calibration.blocks import Policy, node_blocks
from fourphase.calibration.range_audit import (
    BlockRange,
    RangeReport,
    audit_ranges,
    fp16_sum_error,
    overflowing_blocks,
)
from fourphase.calibration.rounding import rounding_session
from fourphase.calibration.typed import typed_model
from fourphase.runtime.errors import InputMissing
from tests.support.block_graphs import block_graph, block_of, two_blocks
from tests.support.networks import random_study

Array = NDArray[np.float32]
STEM = "(float[1, 2, 4, 4] x) => (float[1, 2] y)"


def block(report: RangeReport, name: str) -> BlockRange:
    return next(entry for entry in report.blocks if entry.block == name)


def test_peaks_and_lost_values_are_numpys() -> None:
    text = "(float[n] x) => (float[n] y) <float tiny = {0.0001}> { a = Mul(x, tiny)  b = Relu(a)  y = Exp(b) }"
    model = block_graph(text, {"a": "stem", "b": "stem", "y": "head"})
    x = np.array([-3e4, -0.5, 0, 0.25, 0.7, 2], np.float32)
    report = audit_ranges(model, [x])
    assert [entry.block for entry in report.blocks] == ["stem", "head"]
    values = {value.name: value for value in block(report, "stem").values}
    assert set(values) == {"x", "a", "b"}
    assert values["x"].peak == 3e4
    assert values["x"].operator == "Input"
    assert values["a"].peak == pytest.approx(3, rel=1e-6)
    # Of five values that are not zero, 5e-5 and 2.5e-5 are below 2^-14; of b's three, two.
    assert values["a"].lost == pytest.approx(2 / 5)
    assert values["b"].lost == pytest.approx(1 / 3)
    assert block(report, "stem").worst == values["x"]
    assert block(report, "stem").worst.headroom == pytest.approx(65504 / 3e4)
    assert {value.name for value in block(report, "head").values} == {"b", "y"}


def test_extremes_are_carried_over_all_studies_one_at_a_time() -> None:
    model = block_graph("(float[2] x) => (float[2] y) { y = Abs(x) }", {"y": "stem"})
    alive = 0

    def studies() -> Iterator[Array]:
        nonlocal alive
        for value in (1.0, -70000.0, 3.0):
            alive += 1
            yield np.array([value, 1e-5], np.float32)

    report = audit_ranges(model, studies())
    assert report.studies == alive == 3
    assert block(report, "stem").worst.peak == 70000
    assert block(report, "stem").values[0].lost == pytest.approx(0.5)
    assert overflowing_blocks(report) == {"stem"}


def test_sums_and_weights_are_numpys() -> None:
    text = f"""{STEM} <int64[2] axes = {{2, 3}}>
    {{ c = Conv(x, kernel)  m = ReduceMean<keepdims = 0>(c, axes)  g = Gemm<transB = 1>(m, w)  y = MatMul(g, v) }}"""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 2, 3, 3), "w": (5, 3), "v": (5, 2)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights["v"][0] = 1e-6
    model = block_graph(text, dict.fromkeys(("c", "m", "g", "y"), "stem"), weights)
    x = rng.normal(size=(1, 2, 4, 4)).astype(np.float32)
    values = rounding_session(model, blocks=True)(x)
    found = block(audit_ranges(model, [x]), "stem")
    sums = {entry.operator: entry for entry in found.sums}
    assert {name: entry.terms for name, entry in sums.items()} == {"Conv": 18, "ReduceMean": 4, "Gemm": 3, "MatMul": 5}
    expected = {
        "Conv": np.abs(x).max() * np.abs(weights["kernel"]).sum(axis=(1, 2, 3)).max(),
        "ReduceMean": np.abs(values["c"]).sum(axis=(2, 3)).max(),
        "Gemm": np.abs(values["m"]).max() * np.abs(weights["w"]).sum(axis=1).max(),
        "MatMul": np.abs(values["g"]).max() * np.abs(weights["v"]).sum(axis=0).max(),
    }
    assert {name: entry.magnitude for name, entry in sums.items()} == pytest.approx(expected, rel=1e-5)
    assert found.sums[0].magnitude == max(expected.values())
    kept = {entry.name: entry for entry in found.weights}
    assert {name: entry.peak for name, entry in kept.items()} == {
        name: np.abs(array).max() for name, array in weights.items()
    }
    assert kept["v"].lost == pytest.approx(2 / 10)
    assert kept["w"].lost == 0


@pytest.mark.parametrize("terms", [16, 256, 1024, 4096, 16384])
@pytest.mark.parametrize("same_sign", [True, False])
def test_the_error_of_fp16_sums_is_that_of_other_terms_too(terms: int, same_sign: bool) -> None:
    rng = np.random.default_rng(terms)
    errors = []
    for _ in range(10):
        values = (rng.exponential(size=terms) if same_sign else rng.uniform(-1, 1, terms)).astype(np.float16)
        summed = np.float16(0)
        for value in values:
            summed += value
        errors.append(abs(float(summed) - values.sum(dtype=float)) / np.abs(values).sum(dtype=float))
    assert max(errors) / 4 < fp16_sum_error(terms, same_sign=same_sign) < max(errors) * 4


def test_long_fp16_sums_stop_growing() -> None:
    assert fp16_sum_error(1, same_sign=True) == 0
    assert fp16_sum_error(64, same_sign=True) < 0.005
    assert 0.5 < fp16_sum_error(16384, same_sign=True) < 1
    assert fp16_sum_error(16384, same_sign=False) < 0.01


def test_what_only_moves_belongs_to_nobody() -> None:
    text = "(float[2, 2] x) => (float[2, 2] y) { a = Transpose(x)  y = Exp(a) }"
    report = audit_ranges(block_graph(text, {"a": "features", "y": "head"}), [np.ones((2, 2), np.float32)])
    assert [entry.block for entry in report.blocks] == ["head"]


def test_a_block_that_is_given_too_much_overflows_too() -> None:
    text = """(float[n] x) => (float[n] y) <float big = {1000.0}>
    { a = Mul(x, big)  b = Neg(a)  c = Div(b, big)  y = Neg(c) }"""
    model = block_graph(text, {"a": "stem", "b": "stage1", "c": "stage2", "y": "head"})
    report = audit_ranges(model, [np.array([-70.0], np.float32)])
    assert overflowing_blocks(report) == {"stem", "stage1", "stage2"}


def test_a_weight_beyond_fp16_is_an_overflow() -> None:
    report = audit_ranges(two_blocks(scale=1e6), [np.zeros((1, 2, 6, 6), np.float32)])
    assert "stem" in overflowing_blocks(report)
    assert block(report, "stem").worst.name == "kernel"


def test_infinity_overflows_and_the_report_stays_json() -> None:
    text = "(float[n] x) => (float[1] y) { a = Exp(x)  y = ReduceSum(a) }"
    model = block_graph(text, {"a": "stem", "y": "stem"})
    report = audit_ranges(model, [np.array([100.0], np.float32)])
    assert overflowing_blocks(report) == {"stem"}
    body = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert body["overflowing"] == ["stem"]
    assert body["blocks"][0]["peak"] is None
    assert body["blocks"][0]["headroom"] == 0
    assert body["blocks"][0]["largest_sum"]["magnitude"] is None
    silent = audit_ranges(model, [np.array([-np.inf], np.float32)])
    assert json.dumps(silent.to_dict(), allow_nan=False)


def test_no_study_is_an_error() -> None:
    with pytest.raises(InputMissing):
        audit_ranges(two_blocks(), [])


def poisoned(model: onnx.ModelProto, name: str, factor: float) -> None:
    """The block's first convolution times `factor`, its second divided by it: the same function."""
    first, second = [node for node in model.graph.node if node.op_type == "Conv" and block_of(node) == name][:2]
    for tensor in model.graph.initializer:
        scale = factor if tensor.name in first.input[1:] else 1 / factor if tensor.name == second.input[1] else None
        if scale is not None:
            array = onnx.numpy_helper.to_array(tensor) * np.float32(scale)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def test_a_poisoned_block_is_found_named_and_cured_by_fp32(model: onnx.ModelProto) -> None:
    study = random_study()
    clean = rounding_session(model)(study)["logits"]
    assert overflowing_blocks(audit_ranges(model, [study])) == set()
    poisoned(model, "stage2/NC", 2.0**15)
    np.testing.assert_allclose(rounding_session(model)(study)["logits"], clean, rtol=1e-4)

    report = audit_ranges(model, [study])
    assert overflowing_blocks(report) == {"stage2/NC"}
    worst = block(report, "stage2/NC").worst
    assert node_blocks(model)[worst.node] == "stage2/NC"
    assert worst.operator == "Conv"
    assert worst.headroom < 1

    everywhere = typed_model(model, Policy.of({"*": "fp16"}))
    assert not np.isfinite(rounding_session(everywhere)(study)["logits"]).all()
    policy = Policy.of({"*": "fp16", **dict.fromkeys(overflowing_blocks(report), "fp32")})
    np.testing.assert_allclose(rounding_session(typed_model(model, policy))(study)["logits"], clean, atol=0.01)


def test_a_product_with_a_vector_is_one_sum() -> None:
    weights = {"v": np.array([1, -2, 3], np.float32)}
    model = block_graph("(float[2, 3] x) => (float[2] y) { y = MatMul(x, v) }", {"y": "head"}, weights)
    (entry,) = block(audit_ranges(model, [np.array([[0.5, 4, 1], [1, 1, -1]], np.float32)]), "head").sums
    assert (entry.operator, entry.terms) == ("MatMul", 3)
    assert entry.magnitude == pytest.approx(4 * (1 + 2 + 3))


def test_a_block_that_only_counts_with_integers_holds_nothing_that_could_overflow() -> None:
    text = """(float[n] x) => (float[n] y) <int64[1] one = {1}>
    { s = Shape(x)  k = Mul(s, one)  r = Reshape(x, k)  y = Exp(r) }"""
    model = block_graph(text, {"s": "head", "k": "sizes", "r": "head", "y": "head"})
    report = audit_ranges(model, [np.ones(2, np.float32)])
    assert block(report, "sizes").values == ()
    assert overflowing_blocks(report) == set()
    rows = {row["block"]: row for row in json.loads(json.dumps(report.to_dict(), allow_nan=False))["blocks"]}
    row = rows["sizes"]
    assert (row["overflows"], row["peak"], row["headroom"], row["lost"]) == (False, 0, None, 0)
