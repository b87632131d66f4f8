"""Both forms of the GRU, the operator and the unrolled one, against PyTorch, ONNX's own cases and ONNX Runtime."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fourphase.export.network import FourPhaseNet
from fourphase.export.pass_unroll_gru import unroll_gru
from fourphase.runtime.errors import ExportRefused

Array = NDArray[np.float32]


def gru_model(
    *, steps: int | str = 5, inputs: int = 3, hidden: int = 2, attributes: str = "", more: str = ", b", seed: int = 0
) -> onnx.ModelProto:
    """x (T, B, I) -> y, y_h, with random weights; `more` are the inputs after R, `attributes` those of the GRU."""
    two = 2 if "bidirectional" in attributes else 1
    batch_first = "layout = 1" in attributes
    x = f"batch, {steps}, {inputs}" if batch_first else f"{steps}, batch, {inputs}"
    h0 = f"batch, {two}, {hidden}" if batch_first else f"{two}, batch, {hidden}"
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    gru (float[{x}] x, float[{h0}] h0, int32[batch] lengths) => (float y, float y_h)
    {{ y, y_h = GRU<hidden_size = {hidden}{attributes}>(x, w, r{more}) }}
    """
    model = onnx.parser.parse_model(text)
    for value, rank in zip(model.graph.output, (4, 3), strict=True):
        for index in range(rank):
            value.type.tensor_type.shape.dim.add().dim_param = f"{value.name}_{index}"
    rng = np.random.default_rng(seed)
    for name, shape in {
        "w": (two, 3 * hidden, inputs),
        "r": (two, 3 * hidden, hidden),
        "b": (two, 6 * hidden),
    }.items():
        array = rng.normal(0, 0.7, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def unrolled(model: onnx.ModelProto) -> onnx.ModelProto:
    result, modified = unroll_gru(ir.serde.deserialize_model(model))
    assert modified
    after = ir.serde.serialize_model(result)
    onnx.checker.check_model(after, full_check=True)
    return after


def run(model: onnx.ModelProto, **feeds: NDArray[Any]) -> list[Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()}))


def feeds_of(model: onnx.ModelProto, batch: int, seed: int = 1) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    shapes = {
        value.name: tuple(dim.dim_value or batch for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.input
    }
    lengths = np.full(batch, 1, np.int32)
    return {
        name: lengths if name == "lengths" else rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


@functools.cache
def onnx_cases() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        # Cases of other operators overflow on purpose while they are collected.
        warnings.simplefilter("ignore")
        return [case for case in collect_testcases("GRU") if case.name.startswith("test_gru")]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in onnx_cases()])
def test_onnx_own_cases(case: Any) -> None:
    """Defaults, initial bias, several steps, batchwise, reverse, bidirectional; outputs from ONNX's authors."""
    values, expected = case.data_sets[0]
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    feeds = dict(zip([value.name for value in model.graph.input], values, strict=True))
    for value in list(model.graph.input):
        if value.name != "X":
            model.graph.input.remove(value)
            model.graph.initializer.append(onnx.numpy_helper.from_array(feeds[value.name], value.name))
    for wanted, got in zip(expected, run(unrolled(model), X=feeds["X"]), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-7)


def test_all_of_onnx_own_cases_are_there() -> None:
    names = {case.name.removeprefix("test_gru_") for case in onnx_cases()}
    assert {"defaults", "with_initial_bias", "seq_length", "batchwise", "reverse", "bidirectional"} <= names


@settings(max_examples=40)
@given(
    steps=st.integers(1, 6),
    batch=st.integers(1, 3),
    inputs=st.integers(1, 4),
    hidden=st.integers(1, 4),
    direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
    before=st.booleans(),
    more=st.sampled_from(["", ", b", ", b, , h0", ", , , h0"]),
    batch_first=st.booleans(),
)
def test_every_supported_form_computes_what_the_operator_does(
    steps: int, batch: int, inputs: int, hidden: int, direction: str, before: bool, more: str, batch_first: bool
) -> None:
    attributes = f', direction = "{direction}", linear_before_reset = {int(before)}'
    sizes: dict[str, Any] = {"steps": steps, "inputs": inputs, "hidden": hidden, "more": more}
    reference = gru_model(**sizes, attributes=attributes)
    feeds = feeds_of(reference, batch)
    y, y_h = run(reference, **feeds)
    after = unrolled(gru_model(**sizes, attributes=attributes + (", layout = 1" if batch_first else "")))
    if batch_first:
        # ONNX Runtime has no layout 1: the reference is its layout 0, transposed as the standard says.
        feeds = {name: value.swapaxes(0, 1) if value.ndim == 3 else value for name, value in feeds.items()}
        y, y_h = y.transpose(2, 0, 1, 3), y_h.transpose(1, 0, 2)
    assert not any(node.op_type == "GRU" for node in after.graph.node)
    for wanted, got in zip((y, y_h), run(after, **feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_both_forms_against_pytorch(bidirectional: bool) -> None:
    torch.manual_seed(3)
    layer = torch.nn.GRU(4, 3, bidirectional=bidirectional)
    direction = ', direction = "bidirectional"' if bidirectional else ""
    model = gru_model(steps=7, inputs=4, hidden=3, attributes=f", linear_before_reset = 1{direction}")
    del model.graph.initializer[:]
    suffixes = ("", "_reverse") if bidirectional else ("",)
    for name, parts in {"w": ("weight_ih",), "r": ("weight_hh",), "b": ("bias_ih", "bias_hh")}.items():
        arrays = [np.concatenate([_onnx_order(getattr(layer, f"{p}_l0{s}")) for p in parts]) for s in suffixes]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.stack(arrays), name))
    x = torch.randn(7, 2, 4)
    with torch.no_grad():
        states, last = (value.numpy() for value in layer(x))
    feeds = {**feeds_of(model, 2), "x": x.numpy()}
    for form in (model, unrolled(model)):
        y, y_h = run(form, **feeds)
        np.testing.assert_allclose(y.transpose(0, 2, 1, 3).reshape(states.shape), states, rtol=0, atol=3e-7)
        np.testing.assert_allclose(y_h, last, rtol=0, atol=3e-7)


def _onnx_order(parameter: torch.Tensor) -> Array:
    """PyTorch's gates are r, z, n; ONNX's are z, r, h."""
    r, z, n = np.split(parameter.detach().numpy(), 3)
    return np.concatenate([z, r, n])


def test_the_exported_loop_and_its_unrolled_form_against_the_network(
    model: onnx.ModelProto, network: FourPhaseNet
) -> None:
    """The GRU as `onnx_export` leaves it, cut out of the whole graph, against the network's own layer."""
    loop = onnx.utils.Extractor(model).extract_model(["conv1d"], ["gru"])
    assert [node.op_type for node in loop.graph.node].count("GRU") == 1
    assert network.spm is not None
    sequence = torch.randn(3, network.spm.gru.input_size, 8)
    with torch.no_grad():
        wanted = network.spm.gru(sequence.transpose(1, 2))[0].numpy()
    for form in (loop, unrolled(loop)):
        np.testing.assert_allclose(run(form, conv1d=sequence.numpy())[0], wanted, rtol=0, atol=3e-7)


def test_the_whole_network_keeps_its_outputs_and_its_blocks(model: onnx.ModelProto) -> None:
    after = unrolled(model)
    study = np.random.default_rng(0).normal(size=(2, 4, 8, 3, 32, 32)).astype(np.float32)
    for wanted, got in zip(run(model, study=study), run(after, study=study), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)
    fresh = {node.name for node in after.graph.node} - {node.name for node in model.graph.node}
    assert fresh
    metadata = {node.name: {entry.key: entry.value for entry in node.metadata_props} for node in after.graph.node}
    assert all(metadata[name] == {"fourphase.block": "gru"} for name in fresh)
    assert after.metadata_props == model.metadata_props
    assert len(metadata) == len(after.graph.node)


def test_sixty_four_steps_are_twelve_nodes_each_and_all_values_are_typed() -> None:
    model = gru_model(steps=64, attributes=", linear_before_reset = 1")
    after = unrolled(model)
    assert len(after.graph.node) < 64 * 12 + 8
    assert not {node.op_type for node in after.graph.node} & {"Shape", "Slice", "Gather", "Loop", "Expand"}
    known = {value.name: value.type for value in after.graph.value_info}
    inner = {name for node in after.graph.node for name in node.output} - {"y", "y_h"}
    assert inner <= set(known)
    stripped = onnx.ModelProto()
    stripped.CopyFrom(after)
    del stripped.graph.value_info[:]
    for value in onnx.shape_inference.infer_shapes(stripped, strict_mode=True, data_prop=True).graph.value_info:
        assert value.type == known[value.name]


def test_only_what_is_used_is_built() -> None:
    model = gru_model()
    del model.graph.output[0]
    after = unrolled(model)
    used = {name for node in after.graph.node for name in node.input}
    assert {tensor.name for tensor in after.graph.initializer} <= used
    assert not any(node.op_type == "Unsqueeze" for node in after.graph.node)


def test_two_nameless_gru_keep_their_own_weights() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    two (float[3, batch, 2] x) => (float[1, batch, 2] a, float[1, batch, 2] b)
    { , a = GRU<hidden_size = 2>(x, w0, r0) \n , b = GRU<hidden_size = 2>(x, w1, r1) }
    """
    model = onnx.parser.parse_model(text)
    for index, name in enumerate(("w0", "r0", "w1", "r1")):
        array = np.random.default_rng(index).normal(size=(1, 6, 2)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    x = np.random.default_rng(9).normal(size=(3, 2, 2)).astype(np.float32)
    for wanted, got in zip(run(model, x=x), run(unrolled(model), x=x), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-7)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attributes": ", clip = 1.0"}, "clip"),
        ({"attributes": ', activations = ["Sigmoid", "Relu"]'}, "activations"),
        ({"more": ", b, lengths"}, "sequence_lens"),
        ({"steps": "T"}, "number of steps"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    model = ir.serde.deserialize_model(gru_model(**changes))
    with pytest.raises(ExportRefused, match=named) as caught:
        unroll_gru(model)
    assert caught.value.key == "gru_not_unrollable"
    assert "--gru loop" in caught.value.hint
    assert [node.op_type for node in model.graph] == ["GRU"]


def test_a_shape_that_was_lost_is_inferred() -> None:
    """The second layer of a network: what an earlier pass put in front of it has no shape."""
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    layer (float[4, batch, 2] x) => (float[1, batch, 2] y)
    { moved = Identity(x)  states, y = GRU<hidden_size = 2>(moved, w, r) }
    """
    model = onnx.parser.parse_model(text)
    for index, name in enumerate("wr"):
        array = np.random.default_rng(index).normal(size=(1, 6, 2)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    assert not model.graph.value_info
    x = np.random.default_rng(9).normal(size=(4, 2, 2)).astype(np.float32)
    np.testing.assert_allclose(run(unrolled(model), x=x)[0], run(model, x=x)[0], rtol=0, atol=3e-7)


@pytest.mark.parametrize(("name", "letter"), [("w", "W"), ("r", "R"), ("b", "B")])
def test_weights_that_are_not_constant_are_refused_by_name(name: str, letter: str) -> None:
    model = gru_model()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    model.graph.initializer.remove(tensor)
    model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, tensor.dims))
    with pytest.raises(ExportRefused, match=f"input {letter} is not constant"):
        unroll_gru(ir.serde.deserialize_model(model))


def test_an_old_opset_is_refused() -> None:
    model = gru_model()
    model.opset_import[0].version = 14
    with pytest.raises(ExportRefused, match="opset"):
        unroll_gru(ir.serde.deserialize_model(model))


def test_the_default_activations_may_be_spelled_out() -> None:
    model = gru_model(attributes=', activations = ["Sigmoid", "Tanh"]')
    feeds = feeds_of(model, 2)
    for wanted, got in zip(run(model, **feeds), run(unrolled(model), **feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-7)


def test_a_graph_without_a_gru_is_left_alone() -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    assert unroll_gru(ir.serde.deserialize_model(onnx.parser.parse_model(text)))[1] is False
