"""The pass on ONNX as text: what is quantized, exact numbers, onnxruntime's quantizer, NVIDIA's builder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from fourphase.calibration.blocks import BLOCK_KEY, Policy, block_names, node_blocks, with_outputs
from fourphase.calibration.calibration_set import CalibrationSet
from fourphase.calibration.qdq import default_int8_policy, int8_policy, quantizable_values, quantized_model
from fourphase.calibration.scales import Scales, collect_histograms, scales_from
from fourphase.calibration.typed import typed_model
from fourphase.runtime.errors import ModelIncompatible, UsageError
from tests.support.networks import exported_small, random_study
from tests.support.quantizable import quantizable_model, studies, with_weights, write_set

Array = NDArray[Any]

#: Of the small network: every convolution of the stages, both of their adds, and nothing else.
STAGES = Policy.of({"stage": "int8"})
QUANTIZED_CONVS = {"s1_a", "s1_b", "s2_a", "s2_b", "s2_skip"}
QUANTIZED_VALUES = ("stem", "s1_r", "s1_b", "stage1", "s2_r", "s2_skip", "s2_b")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CalibrationSet:
    return write_set(tmp_path_factory.mktemp("calibration") / "set", studies(4))


@pytest.fixture(scope="module")
def scales(data: CalibrationSet) -> Scales:
    model = quantizable_model()
    return scales_from(collect_histograms(model.SerializeToString(), quantizable_values(model), data), "minmax")


@pytest.fixture
def model() -> onnx.ModelProto:
    return quantizable_model()


@pytest.fixture
def quantized(model: onnx.ModelProto, scales: Scales) -> onnx.ModelProto:
    return quantized_model(model, STAGES, scales)


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def run(model: onnx.ModelProto, names: list[str], study: Array, *, literal: bool = True) -> dict[str, Array]:
    """Values of a graph; `literal`: node by node as written, without ONNX Runtime's fusions."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if literal:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    known = {value.name for value in model.graph.output}
    marked = with_outputs(model, [name for name in names if name not in known])
    session = onnxruntime.InferenceSession(marked.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, map(np.asarray, session.run(names, {"study": study})), strict=True))


def test_layers_and_residual_adds_of_the_int8_blocks_are_quantized(quantized: onnx.ModelProto) -> None:
    onnx.checker.check_model(quantized, full_check=True)
    made_by = producers(quantized)
    for node in quantized.graph.node:
        kinds = [made_by[name].op_type if name in made_by else None for name in node.input[:2]]
        expected = node.output[0] in QUANTIZED_CONVS or node.output[0] in ("s1_sum", "s2_sum")
        if node.op_type in ("Conv", "Gemm", "MatMul", "Add"):
            assert (kinds == ["DequantizeLinear"] * 2) is expected, node.output[0]
            assert "DequantizeLinear" not in kinds or expected


def test_every_value_has_one_pair_of_int8_with_zero_point_0(quantized: onnx.ModelProto) -> None:
    values = constants(quantized)
    pairs = [node for node in quantized.graph.node if node.op_type == "QuantizeLinear"]
    assert tuple(node.input[0] for node in pairs) == QUANTIZED_VALUES
    for node in quantized.graph.node:
        if node.op_type.endswith("quantizeLinear") or node.op_type == "QuantizeLinear":
            scale, zero = values[node.input[1]], values[node.input[2]]
            assert zero.dtype == np.int8
            assert zero.shape == scale.shape
            assert not zero.any()
            assert scale.dtype == np.float32


def test_weights_are_int8_per_output_channel_and_biases_are_left(quantized: onnx.ModelProto) -> None:
    values, made_by = constants(quantized), producers(quantized)
    for output in QUANTIZED_CONVS:
        conv = made_by[output]
        dequantize = made_by[conv.input[1]]
        assert values[dequantize.input[0]].dtype == np.int8
        assert values[dequantize.input[1]].shape == values[dequantize.input[0]].shape[:1]
        assert [(attribute.name, attribute.i) for attribute in dequantize.attribute] == [("axis", 0)]
    assert made_by["s1_a"].input[2] == "s1_b1"
    assert values["s1_b1"].dtype == np.float32
    assert not {"s1_w1", "s1_w2", "s2_w1", "s2_w2", "s2_ws"} & set(values)


def test_blocks_keep_their_names_and_every_node_its_block(model: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    assert block_names(quantized) == block_names(model)
    assert set(block_names(quantized)) <= set(producers(quantized))
    assert [value.name for value in quantized.graph.output] == ["logits", "phase_logits"]
    blocks = node_blocks(quantized)
    assert len(blocks) == len(quantized.graph.node)
    before = node_blocks(model)
    assert {name: blocks[name] for name in before} == before
    assert {blocks[name] for name in set(blocks) - set(before)} == {"stage1", "stage2"}


def test_codes_and_values_are_exactly_numpys(quantized: onnx.ModelProto, scales: Scales) -> None:
    names = [name for value in QUANTIZED_VALUES for name in (value, f"{value}.dequantized")]
    found = run(quantized, names, studies(1, seed=8)[0][None])
    for value in QUANTIZED_VALUES:
        step = np.float32(scales.values[value])
        codes = np.clip(np.round(found[value] / step), -128, 127)
        np.testing.assert_array_equal(found[f"{value}.dequantized"], codes * step)


def test_weights_and_outputs_are_exactly_numpys(model: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    """Every quantized convolution equals a plain one on dequantized numbers."""
    weights, made_by = constants(model), producers(model)
    inputs = [f"{made_by[name].input[0]}.dequantized" for name in QUANTIZED_CONVS]
    found = run(quantized, sorted({*inputs, *QUANTIZED_CONVS}), studies(1, seed=8)[0][None])
    for name in QUANTIZED_CONVS:
        weight = weights[made_by[name].input[1]]
        largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / np.float32(127)
        step = largest.astype(np.float16)
        step = np.where(step < largest, np.nextafter(step, np.float16(1)), step).astype(np.float32)
        codes = np.clip(np.round(weight / step), -128, 127)
        plain = onnx.ModelProto()
        plain.CopyFrom(model)
        del plain.graph.node[:]
        conv = plain.graph.node.add()
        conv.CopyFrom(made_by[name])
        conv.input[0], conv.input[1] = "x", "w"
        del plain.graph.input[:], plain.graph.output[:]
        plain.graph.input.append(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None))
        plain.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        plain.graph.initializer.append(onnx.numpy_helper.from_array(codes * step, "w"))
        session = onnxruntime.InferenceSession(plain.SerializeToString(), providers=["CPUExecutionProvider"])
        (expected,) = session.run(None, {"x": found[f"{made_by[name].input[0]}.dequantized"]})
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, data: CalibrationSet) -> None:
        self.studies = data.studies()

    def get_next(self) -> Any:
        study = next(self.studies, None)
        return None if study is None else {"study": study}


def test_it_agrees_with_onnxruntimes_quantizer(
    model: onnx.ModelProto, quantized: onnx.ModelProto, data: CalibrationSet, tmp_path: Path
) -> None:
    """Same data, same algorithm, same nodes: steps equal to FP16's rounding, logits equal to a fraction of the harm."""
    source, target = tmp_path / "model.onnx", tmp_path / "theirs.onnx"
    onnx.save(model, source)
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            source,
            target,
            Reader(data),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=[f"node_{name}" for name in sorted(QUANTIZED_CONVS | {"s1_sum", "s2_sum"})],
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
    finally:
        logging.disable(logging.NOTSET)
    theirs, ours = onnx.load(target), constants(quantized)
    steps = constants(theirs)
    for name in ("s1_r", "stage1", "s2_r"):
        np.testing.assert_allclose(ours[f"{name}.scale"], steps[f"{name}_scale"], rtol=1.1e-3)
    for name in ("s1_w1", "s2_w2", "s2_ws"):
        np.testing.assert_allclose(ours[f"{name}.scale"], steps[f"{name}_scale"], rtol=1.1e-3)
    study = np.stack(studies(4, seed=3))
    exact, mine, other = (run(graph, ["stage2"], study)["stage2"] for graph in (model, quantized, theirs))
    assert 0 < np.square(mine - other).mean() < np.square(mine - exact).mean()
    assert np.square(mine - exact).mean() < 1.5 * np.square(other - exact).mean()


def test_what_does_not_pay_stays_whatever_the_policy(model: onnx.ModelProto, scales: Scales) -> None:
    """Three input channels, a handful of multiply-accumulates; what pays is quantized, in its own layout."""
    everything = quantized_model(model, Policy.of({"*": "int8"}), scales)
    made_by, values = producers(everything), constants(everything)
    assert made_by["stem_c"].input[1] == "stem_w"
    assert made_by["g_a"].input[1] == "g_w1"
    assert made_by["g_b"].input[1] == "g_w2"
    assert made_by["logits"].input[1] == "head_w"
    transposed, plain = (made_by[made_by[name].input[1]] for name in ("mlp_a", "mlp"))
    assert transposed.attribute[0].i == 0
    assert values[transposed.input[1]].shape == (32,)
    assert plain.attribute[0].i == 1
    assert values[plain.input[1]].shape == (8,)


def test_a_weight_used_at_every_step_of_a_recurrence_stays() -> None:
    text = """
<ir_version: 10, opset_import: ["" : 20]>
steps (float[B, 8] x) => (float[B, 8] h3)
{ h1 = Gemm(x, r)  h2 = Gemm(h1, r)  h3 = Gemm(h2, w) }"""
    model = with_weights(onnx.parser.parse_model(text), {"r": (8, 8), "w": (8, 8)})
    assert quantizable_values(model) == ("h2",)


def test_a_layer_of_next_to_no_work_stays() -> None:
    text = """
<ir_version: 10, opset_import: ["" : 20]>
pooled (float[B, 8, 32, 32] x) => (float[B, 4] y)
<int64[2] hw = {2, 3}>
{ c = Conv<pads = [1, 1, 1, 1]>(x, w)  means = ReduceMean<keepdims = 0>(c, hw)  y = MatMul(means, v) }"""
    model = with_weights(onnx.parser.parse_model(text), {"w": (8, 8, 3, 3), "v": (8, 4)})
    assert quantizable_values(model) == ("x",)


def test_an_add_of_a_constant_or_of_two_plain_values_is_no_residual() -> None:
    text = """
<ir_version: 10, opset_import: ["" : 20]>
adds (float[B, 8, 4, 4] x) => (float[B, 8, 4, 4] y)
{ c = Conv(x, w)  shifted = Add(c, bias)  a = Relu(shifted)  b = Relu(x)  y = Add(a, b) }"""
    model = with_weights(onnx.parser.parse_model(text), {"w": (8, 8, 1, 1), "bias": (8, 1, 1)})
    assert quantizable_values(model) == ("x",)


def test_the_pair_stands_before_its_first_reader() -> None:
    """An add may come before the convolution that shares its input."""
    text = """
<ir_version: 10, opset_import: ["" : 20]>
early (float[B, 8, 4, 4] x) => (float[B, 8, 4, 4] y)
{ c = Conv(x, w)  r = Relu(x)  sum = Add(c, r)  d = Conv(r, v)  y = Add(sum, d) }"""
    model = with_weights(onnx.parser.parse_model(text), {"w": (8, 8, 1, 1), "v": (8, 8, 1, 1)})
    scales = Scales(dict.fromkeys(quantizable_values(model), 0.01), "minmax", "", "", {})
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
        node.metadata_props.append(onnx.StringStringEntryProto(key=BLOCK_KEY, value="stage1"))
    onnx.checker.check_model(quantized_model(model, STAGES, scales), full_check=True)


def test_an_fp16_policy_and_a_second_run_change_nothing(
    model: onnx.ModelProto, quantized: onnx.ModelProto, scales: Scales
) -> None:
    assert quantizable_values(model, Policy.of({"*": "fp16"})) == ()
    untouched = quantized_model(model, Policy.of({"*": "fp16"}), scales)
    assert [node.op_type for node in untouched.graph.node] == [node.op_type for node in model.graph.node]
    again = quantized_model(quantized, STAGES, scales)
    assert [node.op_type for node in again.graph.node] == [node.op_type for node in quantized.graph.node]


def test_the_model_given_is_left_as_it_was(model: onnx.ModelProto, scales: Scales) -> None:
    before = model.SerializeToString()
    quantized_model(model, STAGES, scales)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("doctor", "key"),
    [
        (lambda model: model.opset_import[0].__setattr__("version", 18), "opset_too_old"),
        (lambda model: model.graph.node[2].output.__setitem__(0, "renamed"), "scale_missing"),
    ],
)
def test_another_model_or_opset_is_refused(
    model: onnx.ModelProto, scales: Scales, doctor: Callable[[onnx.ModelProto], Any], key: str
) -> None:
    doctor(model)
    if key == "scale_missing":
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                if name == "stem":
                    node.input[index] = "renamed"
    with pytest.raises(ModelIncompatible) as caught:
        quantized_model(model, STAGES, scales)
    assert caught.value.key == key


def test_an_unknown_block_is_refused(model: onnx.ModelProto, scales: Scales) -> None:
    with pytest.raises(UsageError, match="unknown block 'stage7'"):
        quantized_model(model, Policy.of({"stage7": "int8"}), scales)


def exported_scales(model: onnx.ModelProto) -> Scales:
    """For the exported network: twice the largest magnitude on one random study."""
    names = list(quantizable_values(model))
    found = run(model, names, random_study(1), literal=False)
    return Scales({name: float(2 * np.abs(found[name]).max() / 127) for name in names}, "minmax", "", "", {})


def test_the_default_policy_quantizes_the_exported_networks_stages() -> None:
    model = onnx.load_from_string(exported_small())
    blocks = node_blocks(model)
    policy = int8_policy(set(blocks.values()))
    assert [policy.precision_of(name) for name in ("stage1/NC", "stem/NC", "gate1.channel/NC", "gru", "head")] == [
        "int8", "fp16", "fp32", "fp32", "fp32",
    ]  # fmt: skip
    quantized = quantized_model(model, policy, exported_scales(model))
    convs = [node for node in quantized.graph.node if node.op_type == "Conv"]
    lowered = [node for node in convs if node.input[1].endswith(".dequantized")]
    # Per phase: two convolutions per basic block, two blocks per stage, four stages, and three convolved skips.
    assert len(lowered) == 4 * (2 * 2 * 4 + 3)
    assert {blocks[node.name].partition("/")[0] for node in lowered} == {"stage1", "stage2", "stage3", "stage4"}
    made_by = producers(quantized)
    residual = [node for node in quantized.graph.node if node.op_type == "Add" and "stage" in blocks[node.name]]
    assert len(residual) == 4 * 2 * 4
    for node in residual:
        assert [made_by[name].op_type for name in node.input] == ["DequantizeLinear"] * 2
    assert set(block_names(model)) <= set(made_by)
    study = random_study(2, seed=5)
    exact, lowered_logits = (run(graph, ["logits"], study)["logits"] for graph in (model, quantized))
    assert 0 < np.abs(exact - lowered_logits).max() < 0.2 * np.abs(exact).max()


@pytest.mark.rtx
@pytest.mark.parametrize("everything", [False, True], ids=["default policy", "all int8 but the gru"])
def test_nvidias_builder_takes_it_with_fp16_around(everything: bool) -> None:
    from fourphase.engine.build import build_engine
    from fourphase.engine.options import BuildOptions, EngineSource

    model = onnx.load_from_string(exported_small())
    default = int8_policy(set(node_blocks(model).values()))
    policy = Policy.of({"*": "int8", "gru": "fp32"}) if everything else default
    quantized = typed_model(quantized_model(model, policy, exported_scales(model)), policy)
    options = BuildOptions(compute_capabilities=("8.9",))
    built = build_engine(EngineSource(quantized.SerializeToString(), "int8"), "tensorrt-rtx", options)
    assert len(built.plan) > 10_000


def test_the_default_policy_of_a_graph_is_that_of_its_blocks() -> None:
    model = onnx.load_model_from_string(exported_small())
    assert default_int8_policy(model) == int8_policy(set(node_blocks(model).values()))
    # Called as a foreign network's, it may name only blocks with a layer that is worth quantizing.
    for node in model.graph.node:
        (entry,) = (entry for entry in node.metadata_props if entry.key == BLOCK_KEY)
        entry.value = "head/logits" if entry.value == "head" else entry.value.replace("/", ".")
    named = {name for name, precision in default_int8_policy(model).rules if precision == "int8"}
    blocks = node_blocks(model)
    weighted = {blocks[node.name] for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")}
    assert {"stage2.PV", "stage4.NC"} <= named <= weighted
    assert weighted < set(blocks.values())
