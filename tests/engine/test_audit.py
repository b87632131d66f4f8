"""The verdict: every kind of violation is found, boundaries are none, and what is not told is not taken as held."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourphase.engine.audit import Audit, audit_engine, findings, read_inspector, require_precision
from fourphase.runtime.errors import EngineBuildFailed, GPUUnavailable
from tests.support.inspector_answers import (
    BLOCKS,
    CONV,
    FIXTURES,
    HELD,
    MIXED,
    MIXED_WANTED,
    audit_of,
    engine_of,
    layer,
    text_of,
    value,
)  # fmt: skip

COMMON = frozenset(json.loads((Path(__file__).parent / "data" / "trt_api_common.json").read_text()))
CONV_FP32: dict[str, Any] = {"Weights": {"Type": "Float", "Count": 64}}


@pytest.mark.parametrize(
    ("asked", "entry", "found"),
    [
        ("fp16", layer("CaskConvolution", "Float", "Float", **CONV_FP32), "fp32"),
        ("fp16", layer("gemm", "Float", "Half"), "fp32"),
        ("fp16", layer("CaskConvolution", "Int8", "Half", Weights={"Type": "Int8", "Count": 8}), "int8"),
        ("fp16", layer("CaskConvolution", "Float", "Float", TacticName="f32f32_tf32f32", **CONV_FP32), "tf32"),
        ("int8", layer("CaskConvolution", "Half", "Int8", **CONV), "fp16"),
        ("int8", layer("correlation", "Float", "Float"), "fp32"),
        ("fp32", layer("CaskConvolution", "Half", "Float", **CONV), "fp16"),
        ("fp32", layer("gemm", "Float", "Float", TacticName="sm80_xmma_gemm_f32f32_tf32f32_f32_nn"), "tf32"),
        ("fp32", layer("gemm", "BFloat16", "Float"), "bf16"),
        ("fp32", layer("gemm", "Int8", "Float"), "int8"),
        ("fp32", layer("Reduce", "Half", "Half"), "fp16"),
        ("fp32", layer("CaskPooling", "Half", "Half", PoolingType="AVERAGE"), "fp16"),
        ("fp32", layer("kgen", "Half", "Half", "node_relu", Name="__myl_MulAdd_myl0_0"), "fp16"),
    ],
)
def test_every_kind_of_violation_is_found(asked: str, entry: dict[str, Any], found: str) -> None:
    with pytest.raises(EngineBuildFailed, match=rf"stem \({asked} asked, {found} found\)") as caught:
        require_precision(engine_of(entry), {"stem/NC": asked})
    assert (caught.value.code, caught.value.key) == (26, "precision_not_held")
    assert len(caught.value.table) == 1


@pytest.mark.parametrize(
    ("asked", "entry"),
    [
        ("fp16", layer("Reformat", "Float", "Half")),
        ("fp16", layer("Reduce", "Float", "Float", "node_relu")),
        ("fp16", layer("kgen", "Half", "Float", "node_relu", Name="__myl_MulCast_myl0_0")),
        ("int8", layer("Reformat", "Half", "Int8", Origin="QDQ")),
        ("int8", layer("PointWiseV2", "Half", "Half", "node_relu")),
        ("fp32", layer("Reformat", "Float", "Half")),
        ("fp32", layer("CaskPooling", "Half", "Half", "node_max_pool2d", PoolingType="MAX")),
        ("fp32", layer("kgen", "Half", "Half", "node_relu", Name="__myl_CastMeanCast_myl0_0")),
        ("fp32", layer("shape_call", "", "")),
    ],
)
def test_boundaries_are_no_violations(asked: str, entry: dict[str, Any]) -> None:
    require_precision(engine_of(HELD[asked], entry), {"stem/NC": asked})


def test_a_layer_of_two_blocks_is_held_to_the_block_of_its_weights() -> None:
    """A convolution of the stem that has taken in the first addition of the next block."""
    metadata = "[ONNX Layer: node_Conv_1961]\x1f[ONNX Layer: node_add]"
    fused = engine_of(layer("CaskConvolution", "Half", "Half", Metadata=metadata, **CONV))
    assert fused.layers[0].blocks == ("stem/NC", "stage1/NC")
    assert findings(fused, {"stem/NC": "fp16", "stage1/NC": "fp32"}) == ()
    assert [finding.block for finding in findings(fused, {"stem/NC": "fp32", "stage1/NC": "fp16"})] == ["stem/NC"]


def test_without_a_name_that_tells_either_block_of_a_layer_may_be_meant() -> None:
    metadata = "[ONNX Layer: node_relu]\x1f[ONNX Layer: node_add]"
    fused = engine_of(layer("CaskConvolution", "Half", "Half", Metadata=metadata, **CONV))
    assert findings(fused, {"stem/NC": "fp16", "stage1/NC": "fp32"}) == ()
    assert len(findings(fused, {"stem/NC": "int8", "stage1/NC": "fp32"})) == 1


def test_layers_that_were_not_quantized_may_be_fp16_if_they_are_named() -> None:
    audit = engine_of(HELD["fp16"])
    require_precision(audit, {"stem/NC": "int8"}, exempt=["node_Conv_1961"])
    with pytest.raises(EngineBuildFailed):
        require_precision(audit, {"stem/NC": "int8"}, exempt=["node_Conv_1975"])
    with pytest.raises(EngineBuildFailed):
        require_precision(engine_of(HELD["fp32"]), {"stem/NC": "int8"}, exempt=["node_Conv_1961"])
    with pytest.raises(EngineBuildFailed):
        require_precision(audit, {"stem/NC": "fp32"}, exempt=["node_Conv_1961"])


# What is not told


def incomplete(audit: Audit, wanted: dict[str, str]) -> EngineBuildFailed:
    with pytest.raises(EngineBuildFailed) as caught:
        require_precision(audit, wanted)
    assert (caught.value.code, caught.value.key) == (26, "audit_incomplete")
    return caught.value


def test_a_weighted_layer_of_unknown_type_is_no_audit_however_small() -> None:
    """As an engine with a dynamic batch answers without a context."""
    blind = layer("CaskConvolution", "N/A", "N/A", **CONV)
    blind["Inputs"][0]["Format/Datatype"] = "N/A due to dynamic shapes"
    large = layer("CaskConvolution", "Half", "Half", "node_Conv_1975", **CONV)
    large["Outputs"][0]["Dimensions"] = [1, 64, 512, 512]
    audit = engine_of(large, blind)
    assert audit.unknown == ("node_Conv_1961: N/A due to dynamic shapes", "node_Conv_1961: N/A")
    assert "2 TYPES UNKNOWN" in audit.summary
    assert "stem (fp16 asked, unknown found)" in incomplete(audit, {"stem/NC": "fp16"}).message
    require_precision(audit, {"stage1/NC": "fp16"})


@pytest.mark.parametrize(("large", "passes"), [(95, True), (94, False)])
def test_more_than_five_percent_of_unknown_bytes_are_no_audit(large: int, passes: bool) -> None:
    known = layer("CaskConvolution", "Half", "Half", **CONV)
    known["Outputs"] = [value("Half", (1, 2 * large))]
    unknown = layer("Reduce", "Quux", "Quux", "node_relu")
    unknown["Outputs"] = [value("Quux", (1, 5))]  # counted as 4 bytes each
    audit = engine_of(known, unknown)
    assert audit.by_precision["unknown"]["bytes"] == 20
    assert audit.by_precision["fp16"]["bytes"] == 4 * large
    if passes:
        require_precision(audit, {"stem/NC": "fp16"})
    else:
        assert "5.1% of the engine's bytes" in incomplete(audit, {"stem/NC": "fp16"}).message


def test_operands_that_differ_are_not_taken_as_held() -> None:
    audit = engine_of(layer("gemm", "Half Float", "Half"))
    assert [finding.told for finding in findings(audit, {"stem/NC": "fp16"})] == [False]
    assert incomplete(audit, {"stem/NC": "fp16"}).table[0]["found"] == "mixed?"
    assert [finding.told for finding in findings(audit, {"stem/NC": "int8"})] == [True]


def test_a_region_that_tells_its_ends_only_is_held_to_them() -> None:
    audit = engine_of(layer("Myelin", "Half", "Half", Name="{ForeignNode[node_Conv_1961...node_relu]}"))
    require_precision(audit, {"stem/NC": "fp16"})
    incomplete(audit, {"stem/NC": "fp32"})


def test_a_block_whose_weights_no_layer_names_is_no_audit() -> None:
    audit = engine_of(HELD["fp16"])
    assert audit.unseen == ("node_Conv_1975", "node_linear_68")
    assert "2 WEIGHTED NODES IN NO WEIGHTED LAYER" in audit.summary
    require_precision(audit, {"stem/NC": "fp16"})
    message = incomplete(audit, {"stem/NC": "fp16", "stage1/NC": "fp16", "head": "fp16"}).message
    assert message.endswith("no weighted layer of the engine names a node of stage1/NC, head")


def test_an_engine_that_names_no_node_at_all_is_no_audit() -> None:
    nameless = engine_of(layer("CaskConvolution", "Half", "Half", Name="conv", Metadata="", **CONV))
    incomplete(nameless, {"stem/NC": "fp16"})
    unmapped = read_inspector(text_of("10_fp16"), {})
    incomplete(unmapped, {"stem/NC": "fp16"})
    require_precision(unmapped, {})


LOOP = layer("gemm", "Float", "Float", Name="(Unnamed Layer* 42) [Matrix Multiply]_myl0_7", Metadata="")


def test_layers_that_name_no_node_are_those_of_the_blocks_not_named() -> None:
    """A GRU's loop: its products are told, but not whose they are."""
    audit = engine_of(HELD["fp16"], LOOP)
    assert audit.layers[1].blocks == ()
    require_precision(audit, {"stem/NC": "fp16", "head": "fp32"})
    require_precision(audit, {"stem/NC": "fp16", "stage1/NC": "fp32", "head": "fp32"})
    with pytest.raises(EngineBuildFailed, match=r"head \(fp16 asked, fp32 found\)") as caught:
        require_precision(audit, {"stem/NC": "fp16", "head": "fp16"})
    assert caught.value.key == "precision_not_held"
    # Whose it is cannot be concluded: two blocks are not named, and were asked for different things.
    incomplete(audit, {"stem/NC": "fp16", "stage1/NC": "fp16", "head": "fp32"})
    # Or no block is named at all.
    incomplete(engine_of(LOOP), {"head": "fp32"})


def test_a_layer_that_names_no_node_must_have_a_precision_that_was_asked_for() -> None:
    audit = engine_of(HELD["fp16"], LOOP)
    with pytest.raises(EngineBuildFailed, match=r"stem \(fp16 asked, fp32 found\)"):
        require_precision(audit, {"stem/NC": "fp16"})
    require_precision(audit, {})
    mixed = engine_of(HELD["fp16"], layer("gemm", "Half Float", "Half", Name="loop", Metadata=""))
    wanted = {"stem/NC": "fp16", "stage1/NC": "int8", "head": "fp32"}
    assert [finding.told for finding in findings(mixed, wanted)] == [False]


def test_a_kind_of_layer_that_is_not_known_does_not_count_as_weighted() -> None:
    """A new name for convolutions must not pass as a layer without weights."""
    audit = engine_of(layer("CaskWinograd", "Float", "Float"))
    assert "node_Conv_1961" in audit.unseen
    incomplete(audit, {"stem/NC": "fp16"})


# The engine


class StandIn:
    """An object of TensorRT with exactly the names that all versions share."""

    def __init__(self, owner: str, calls: list[Any], **answers: Any) -> None:
        self.__dict__.update(_owner=owner, _calls=calls, _answers=answers)

    def __getattr__(self, name: str) -> Any:
        full = f"{self._owner}.{name}" if self._owner else name
        assert full in COMMON, full
        answer = self._answers.get(name, full)
        if not callable(answer):
            return answer

        def call(*arguments: Any) -> Any:
            self._calls.append((full, *arguments))
            return answer(*arguments)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        assert f"{self._owner}.{name}" in COMMON
        self._calls.append((f"{self._owner}.{name}", value))


def stand_in(calls: list[Any], fits: bool = True, memory: bool = True) -> tuple[StandIn, StandIn]:
    """(trt, engine): inputs x and box, output y, and the fixture of TensorRT 10 as its answer."""
    context = StandIn("IExecutionContext", calls, set_input_shape=lambda name, shape: fits)
    inspector = StandIn("EngineInspector", calls, get_engine_information=lambda form: text_of("10_fp16"))
    modes = {"x": "TensorIOMode.INPUT", "y": "TensorIOMode.OUTPUT"}
    engine = StandIn(
        "ICudaEngine",
        calls,
        num_io_tensors=2,
        get_tensor_name=lambda index: list(modes)[index],
        get_tensor_mode=lambda name: modes[name],
        get_tensor_profile_shape=lambda name, profile: [(1, 8), (2, 8), (4, 8)],
        create_execution_context=lambda: context if memory else None,
        create_engine_inspector=lambda: inspector,
    )
    forms, sides = StandIn("LayerInformationFormat", calls), StandIn("TensorIOMode", calls)
    return StandIn("", calls, LayerInformationFormat=forms, TensorIOMode=sides), engine


def test_an_engine_is_inspected_at_its_optimal_shape_through_the_common_api() -> None:
    calls: list[Any] = []
    audit = audit_engine(*stand_in(calls), BLOCKS)
    assert audit == audit_of("10_fp16")
    names = [call[0] for call in calls]
    assert ("IExecutionContext.set_input_shape", "x", (2, 8)) in calls
    assert ("EngineInspector.get_engine_information", "LayerInformationFormat.JSON") in calls
    assert names.count("IExecutionContext.set_input_shape") == 1
    assert names.index("IExecutionContext.set_input_shape") < names.index("EngineInspector.execution_context")
    assert names.index("EngineInspector.execution_context") < names.index("EngineInspector.get_engine_information")


def test_no_memory_and_a_refused_shape_are_said() -> None:
    with pytest.raises(GPUUnavailable, match="execution context"):
        audit_engine(*stand_in([], memory=False), BLOCKS)
    with pytest.raises(EngineBuildFailed, match="refused its own optimal shape for the input x"):
        audit_engine(*stand_in([], fits=False), BLOCKS)


@pytest.mark.parametrize(
    "name",
    [
        "EngineInspector.execution_context",
        "EngineInspector.get_engine_information",
        "ICudaEngine.create_engine_inspector",
        "ICudaEngine.create_execution_context",
        "ICudaEngine.get_tensor_profile_shape",
        "IExecutionContext.set_input_shape",
        "LayerInformationFormat.JSON",
        "TensorIOMode.INPUT",
    ],
)
def test_the_names_are_in_all_supported_versions(name: str) -> None:
    assert name in COMMON


# Whatever the inspector answers


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["Half", "Int8", -1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["Name", "Type", "Count"]), inner),
    max_leaves=5,
)


def places(body: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    keys = list(body) if isinstance(body, dict) else list(range(len(body))) if isinstance(body, list) else []
    return [place for key in keys for place in ((body, key), *places(body[key]))]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_mutated_answer_is_an_audit_or_an_error_of_ours(data: st.DataObject) -> None:
    body = json.loads(text_of(data.draw(st.sampled_from(FIXTURES))))
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(body) or [({"": 0}, "")]))
        if data.draw(st.booleans()):
            container[key] = data.draw(JSON)
        else:
            del container[key]
    text = json.dumps(body)
    text = text[: data.draw(st.none() | st.integers(0, len(text)))]
    try:
        audit = read_inspector(text, MIXED)
    except EngineBuildFailed:
        return
    json.dumps(audit.to_dict())
    assert audit.summary
    with contextlib.suppress(EngineBuildFailed):
        require_precision(audit, MIXED_WANTED)
