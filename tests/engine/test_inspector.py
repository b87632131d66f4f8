"""The inspector's JSON, both dialects, recorded and broken: what is read, and what is refused with a clear sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fourphase.engine.audit_record import read_inspector
from fourphase.engine.inspector import parse_inspection, precision_named
from fourphase.runtime.errors import EngineBuildFailed
from tests.support.inspector_answers import BLOCKS, FIXTURES, audit_of, engine_of, layer, text_of


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("Int8", "int8"),
        ("BFloat16", "bf16"),
        ("FP8", "fp8"),
        ("Float8", "fp8"),
        ("Bool", "bool"),
        ("Int32", "int32"),
        ("Int64", "int64"),
        ("UInt8", "uint8"),
        ("Row major linear FP32", "fp32"),
        ("Row major linear FP16 format", "fp16"),
        ("Row major Int8 format", "int8"),
        ("Two wide channel vectorized row major FP16 format", "fp16"),
        ("Four wide channel vectorized row major Int8 format", "int8"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Channel major FP32 format where channel % 4 == 0", "fp32"),
        ("N/A due to dynamic shapes", "unknown"),
        ("(NHWC) Channel major format", "unknown"),
        ("Half or Float", "unknown"),
        ("FloatingIsland", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_type_is_read_from_nvidias_words(words: str, precision: str) -> None:
    assert precision_named(words) == precision


@pytest.mark.parametrize(
    ("name", "dialect"), [("10_fp16", "10"), ("10_int8", "10"), ("10_qdq_fp32", "10"), ("11_tf32", "11")]
)
def test_the_dialect_is_told_by_its_list_of_inputs_and_outputs(name: str, dialect: str) -> None:
    assert parse_inspection(text_of(name)).dialect == dialect
    assert audit_of(name).dialect == dialect


def test_a_fused_layer_names_all_its_nodes_whatever_separates_them() -> None:
    recorded = {layer.name: layer.nodes for name in FIXTURES for layer in parse_inspection(text_of(name)).layers}
    assert recorded["node_Conv_1975 + node_relu_1"] == ("node_Conv_1975", "node_relu_1")  # U+001E
    assert recorded["node_Conv_1961_myl0_2"] == ("node_Conv_1961", "node_relu")  # U+001F
    bare = layer("gemm", "Half", "Half", Metadata="[ONNX Layer: a[0]][ONNX Layer: b]")  # as text prints them
    assert engine_of(bare).layers[0].nodes == ("a[0]", "b")


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("node_linear_68_2_myl6_3", ("node_linear_68_2",)),
        ("node_Conv_1961 [profile 1]_myl1_2", ("node_Conv_1961",)),
        ("a + b", ("a", "b")),
        ("a || b", ("a", "b")),
        ("{ForeignNode[first...last]}", ("first", "last")),
    ],
)
def test_without_metadata_the_layers_name_tells_its_nodes(name: str, nodes: tuple[str, ...]) -> None:
    assert engine_of(layer("gemm", "Half", "Half", Name=name, Metadata="")).layers[0].nodes == nodes


def test_layer_names_alone_are_refused_with_the_reason() -> None:
    for text in (text_of("10_names_only"), '{"Layers": [], "Bindings": []}'):
        with pytest.raises(EngineBuildFailed, match="not built with detailed profiling verbosity") as caught:
            read_inspector(text, BLOCKS)
        assert (caught.value.code, caught.value.key) == (26, "audit_not_detailed")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda body: body.pop("Layers"), 'no list "Layers"'),
        (lambda body: body.pop("Bindings"), 'neither "Bindings" nor "I/O Tensors"'),
        (lambda body: body.update({"I/O Tensors": []}), 'neither "Bindings" nor "I/O Tensors" alone'),
        (lambda body: body["Layers"][1].pop("LayerType"), 'no "LayerType" in layer 1'),
        (lambda body: body["Layers"][1].pop("Inputs"), 'layer 1 of .* has no list "Inputs"'),
        (lambda body: body["Layers"][1]["Outputs"][0].pop("Name"), 'no "Name" in Outputs of layer 1'),
        (
            lambda body: body["Layers"][1]["Outputs"][0].pop("Dimensions"),
            "without dimensions in the Outputs of layer 1",
        ),
        (lambda body: body["Layers"][1]["Outputs"][0].update(Dimensions=[-2]), "without dimensions"),
        (lambda body: body["Layers"][1]["Outputs"][0].update(Dimensions=[True]), "without dimensions"),
        (lambda body: body["Layers"][1].update(Weights={"Type": "Half"}), '"Weights" without "Count"'),
        (lambda body: body["Layers"].append(7), 'no "Name" in layer 11'),
    ],
)
def test_what_is_missing_is_named(change: Any, said: str) -> None:
    body = json.loads(text_of("10_fp16"))
    change(body)
    with pytest.raises(EngineBuildFailed, match=said) as caught:
        read_inspector(json.dumps(body), BLOCKS)
    assert (caught.value.code, caught.value.key) == (26, "audit_unreadable")


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "7", "[" * 100_000, '{"Layers": "x", "Bindings": []}'])
def test_what_is_no_answer_of_the_inspector_is_refused(text: str) -> None:
    with pytest.raises(EngineBuildFailed) as caught:
        read_inspector(text, BLOCKS)
    assert caught.value.key == "audit_unreadable"
