"""Trunk over chunks of slices plus tail against the whole graph, against PyTorch, and in NVIDIA's builder."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from fourphase.calibration.blocks import Policy, block_names, node_blocks, with_outputs
from fourphase.calibration.cpu_session import cpu_session
from fourphase.calibration.evaluation import literal_session
from fourphase.calibration.lowering import blocks_of, lowered_model
from fourphase.calibration.qdq import int8_policy, quantizable_values
from fourphase.calibration.scales import Scales, collect_histograms, scales_from
from fourphase.calibration.typed import fp16_policy
from fourphase.engine.build import build_engine
from fourphase.engine.options import BuildOptions, EngineSource
from fourphase.export import split
from fourphase.export.network import FourPhaseNet
from fourphase.export.onnx_export import GRU_FORMS
from fourphase.export.parity import FP32_RTOL
from fourphase.export.pass_unroll_gru import unroll_gru
from fourphase.export.split import SplitModel, split_model
from fourphase.export.split_parity import require_equal, run_split, split_memory
from fourphase.runtime.errors import ExportRefused, FourphaseError, ParityFailed, UsageError
from tests.support.networks import SMALL, exported_once, random_study, small_network

Array = NDArray[np.float32]

#: (P, T, F) of the small network, and of the two-phase ones.
PHASES, SLICES, FEATURES = 4, 8, 32
PAIR = ("ART", "PV")
#: Precision -> its policy; "trunk int8" leaves all that comes after the features in FP32.
TAIL = ("conv1d", "gru", "head", "phase_head", "features")
POLICIES = ("fp32", "fp16", "all fp16", "int8", "all int8", "trunk int8")


@pytest.fixture(scope="module", autouse=True)
def _exports() -> Iterator[None]:
    """Every chunk is exported once for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split, "onnx_from_network", exported_once)
        yield


class TwoStudies:
    """Calibration data."""

    hash = "two"

    def __init__(self, phases: int) -> None:
        self.phases = phases

    def __len__(self) -> int:
        return 2

    def studies(self) -> Iterator[Array]:
        return (random_study(1, self.phases, seed) for seed in (11, 12))


def policy_of(name: str, model: onnx.ModelProto) -> Policy:
    blocks = blocks_of(model)
    tail = {block: "fp32" for block in TAIL if block in {name.partition("/")[0] for name in blocks}}
    return {
        "fp32": Policy(()),
        "fp16": fp16_policy(blocks),
        "all fp16": Policy.of({"*": "fp16"}),
        "int8": int8_policy(blocks),
        "all int8": Policy.of({"*": "int8"}),
        "trunk int8": Policy.of({"*": "int8", "body": "fp32", **tail}),
    }[name]


_scales: dict[bytes, Scales] = {}


def scales_of(model: onnx.ModelProto, phases: int) -> Scales:
    """Measured, once for each graph."""
    data = model.SerializeToString()
    if data not in _scales:
        found = collect_histograms(data, quantizable_values(model), TwoStudies(phases))
        _scales[data] = scales_from(found, "minmax")
    return _scales[data]


def whole_graph(network: FourPhaseNet, policy: str, gru: str = "loop") -> onnx.ModelProto:
    """The exported network, unrolled if asked for, in a policy's precisions."""
    model = exported_once(network, SMALL)
    if gru == "unrolled":
        unrolled, _ = unroll_gru(ir.serde.deserialize_model(model))
        model = ir.serde.serialize_model(unrolled)
    scales = scales_of(model, network.config.count) if "int8" in policy else None
    return lowered_model(model, policy_of(policy, model), scales)


def as_shipped(model: onnx.ModelProto, value: NDArray[Any]) -> list[NDArray[Any]]:
    """ONNX Runtime on the file itself, nothing rewritten."""
    session = cpu_session(model.SerializeToString())
    return list(session.run(None, {session.get_inputs()[0].name: value}))


def element_types(model: onnx.ModelProto) -> set[int]:
    found = {tensor.data_type for tensor in model.graph.initializer}
    return found | {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.value_info)}


def interface(values: Any) -> dict[str, tuple[int, list[int | str]]]:
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


@pytest.mark.parametrize("slices", [1, 2, 4, 8])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.slow
def test_chunks_and_tail_equal_the_whole(network: FourPhaseNet, policy: str, slices: int) -> None:
    whole, studies = whole_graph(network, policy), random_study(2, seed=5)
    parts = split_model(network, SMALL, whole, slices)
    parity = require_equal(parts, whole, studies)
    assert [row.block for row in parity.rows] == ["independence", "features", "logits", "phase_logits"]
    assert parity.rows[0].allowed == parity.rows[0].max_abs == 0.0
    assert parity.method == ("onnxruntime" if policy == "fp32" else "literal")
    # The same by other means: the literal evaluation of the whole, and the split form once more.
    outputs, run = run_split(parts, studies), literal_session(whole)
    assert outputs["features"].shape == (2, PHASES, SLICES, FEATURES)
    for name in ("logits", "phase_logits"):
        reference = np.concatenate([run(studies[index : index + 1])[name] for index in range(2)])
        assert np.abs(outputs[name] - reference).max() <= 2e-6 * np.abs(reference).max()
    assert {row.max_abs for row in parity.rows} == {0.0} or slices == 1


def test_features_and_outputs_are_pytorchs(network: FourPhaseNet) -> None:
    studies = random_study(3, seed=6)
    outputs = run_split(split_model(network, SMALL, whole_graph(network, "fp32"), 2), studies)
    with torch.no_grad():
        features = network.features(torch.from_numpy(studies)).numpy()
        logits, phase_logits = (value.numpy() for value in network(torch.from_numpy(studies)))
    for name, reference in (("features", features), ("logits", logits), ("phase_logits", phase_logits)):
        assert np.abs(outputs[name] - reference).max() <= FP32_RTOL * np.abs(reference).max()


@pytest.mark.parametrize(
    ("keys", "slices"),
    [
        ({"share_backbone": True}, (2,)),
        ({"phases": PAIR, "share_backbone": True, "ipm_stages": (2, 4), "ipm_norm": "mean"}, (1, 4)),
        ({"phases": PAIR, "spm": False, "ipm_stages": (3,)}, (1, 4)),
        ({"phases": PAIR, "ipm_stages": (), "bidirectional": True, "gru_layers": 2}, (2,)),
    ],
)
@pytest.mark.slow
def test_every_kind_of_network_is_split(keys: dict[str, Any], slices: tuple[int, ...]) -> None:
    network = small_network(seed=2, **keys)
    studies = random_study(2, len(network.config.phases), seed=7)
    forms = GRU_FORMS if network.config.spm else ("loop",)
    for size, gru, policy in itertools.product(slices, forms, ("fp32", "fp16", "all int8")):
        whole = whole_graph(network, policy, gru)
        parts = split_model(network, SMALL, whole, size)
        require_equal(parts, whole, studies)
        assert ("GRU" in {node.op_type for node in parts.tail.graph.node}) == (network.config.spm and gru == "loop")
        if policy == "fp32":
            with torch.no_grad():
                features = network.features(torch.from_numpy(studies)).numpy()
            found = run_split(parts, studies)["features"]
            assert np.abs(found - features).max() <= FP32_RTOL * np.abs(features).max()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_files_run_as_they_are_at_any_batch(network: FourPhaseNet, policy: str) -> None:
    whole, studies = whole_graph(network, policy), random_study(2, seed=8)
    parts = split_model(network, SMALL, whole, 4)
    (first,), (second,) = (as_shipped(parts.trunk, studies[:, :, start : start + 4]) for start in (0, 4))
    assert first.dtype == np.dtype(parts.dtype)
    found, reference = as_shipped(parts.tail, np.concatenate([first, second], axis=2)), as_shipped(whole, studies)
    for value, wanted in zip(found, reference, strict=True):
        assert value.dtype == np.float32
        # Here ONNX Runtime keeps FP16 in FP32 where it can, but not across the cut.
        assert np.abs(value - wanted).max() <= (1e-6 if policy == "fp32" else 1e-2) * np.abs(wanted).max()


@pytest.mark.parametrize("policy", POLICIES)
def test_both_parts_are_the_wholes_own_nodes_weights_and_blocks(network: FourPhaseNet, policy: str) -> None:
    whole = whole_graph(network, policy)
    parts = split_model(network, SMALL, whole, 2)
    blocks = [node_blocks(model) for model in (whole, parts.trunk, parts.tail)]
    assert blocks[0] == {**blocks[1], **blocks[2]}
    assert not set(blocks[1]) & set(blocks[2])
    assert {"conv1d", "gru", "head"} <= set(blocks[2].values())
    assert {name.partition("/")[0] for name in blocks[1].values()} >= {"stem", "stage4", "gate4.spatial", "mix4"}
    assert block_names(parts.trunk) + block_names(parts.tail) == block_names(whole)
    weights = {tensor.name: tensor.SerializeToString() for tensor in whole.graph.initializer}
    new = []
    for tensor in (*parts.trunk.graph.initializer, *parts.tail.graph.initializer):
        if weights.get(tensor.name) != tensor.SerializeToString():
            new.append(onnx.numpy_helper.to_array(tensor).tolist())
    assert new == [[-1, 2, FEATURES]] * PHASES


def test_the_interfaces_are_those_documented(network: FourPhaseNet) -> None:
    for policy, kind in (("int8", onnx.TensorProto.FLOAT), ("all fp16", onnx.TensorProto.FLOAT16)):
        whole = whole_graph(network, policy)
        parts = split_model(network, SMALL, whole, 2)
        batch = interface(whole.graph.input)["study"][1][0]
        assert isinstance(batch, str)
        full = onnx.TensorProto.FLOAT
        assert interface(parts.trunk.graph.input) == {"study": (full, [batch, PHASES, 2, 3, 32, 32])}
        assert interface(parts.trunk.graph.output) == {"features": (kind, [batch, PHASES, 2, FEATURES])}
        assert interface(parts.tail.graph.input) == {"features": (kind, [batch, PHASES, SLICES, FEATURES])}
        assert interface(parts.tail.graph.output) == interface(whole.graph.output)
        assert (parts.slices, parts.dtype) == (2, "float16" if policy == "all fp16" else "float32")
        for part in (parts.trunk, parts.tail):
            named = {name for node in part.graph.node for name in node.output}
            named |= {tensor.name for tensor in part.graph.initializer}
            assert {value.name for value in part.graph.value_info} <= named, "noted for a value that is not there"


def test_the_tail_stays_fp32_behind_an_int8_trunk(network: FourPhaseNet) -> None:
    half, code = onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8
    for policy, of_tail in (("trunk int8", set()), ("int8", {half}), ("all int8", {half, code})):
        parts = split_model(network, SMALL, whole_graph(network, policy), 4)
        assert {half, code} <= element_types(parts.trunk)
        assert element_types(parts.tail) & {half, code} == of_tail


def test_the_form_of_the_gru_is_the_tails_affair(network: FourPhaseNet) -> None:
    loop, unrolled = (split_model(network, SMALL, whole_graph(network, "fp16", gru), 4) for gru in GRU_FORMS)
    assert [node.SerializeToString() for node in loop.trunk.graph.node] == [
        node.SerializeToString() for node in unrolled.trunk.graph.node
    ]
    assert {"GRU"} == {node.op_type for node in loop.tail.graph.node} - {
        node.op_type for node in unrolled.tail.graph.node
    }


@pytest.mark.parametrize("slices", [-2, 0, 3, 5, 16])
def test_chunks_that_do_not_fill_a_study_are_refused(network: FourPhaseNet, slices: int) -> None:
    with pytest.raises(UsageError, match=rf"8 slices .* chunks of {slices}$") as caught:
        split_model(network, SMALL, whole_graph(network, "fp32"), slices)
    assert (caught.value.code, caught.value.key, caught.value.hint) == (2, "split_slices", "choose one of 1, 2, 4, 8")


def _first(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    node: onnx.NodeProto = next(node for node in model.graph.node if node.op_type == op_type)
    return node


def _other_weight(model: onnx.ModelProto) -> None:
    tensor = next(entry for entry in model.graph.initializer if entry.name.endswith("stages.3.0.conv1.weight"))
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.flat[0] += 1e-3
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _other_operator(model: onnx.ModelProto) -> None:
    _first(model, "Sigmoid").op_type = "Tanh"


def _other_attribute(model: onnx.ModelProto) -> None:
    next(entry for entry in _first(model, "MaxPool").attribute if entry.name == "pads").ints[:] = [0, 0, 2, 2]


def _other_source(model: onnx.ModelProto) -> None:
    """Mean and maximum of a gate are swapped."""
    node = _first(model, "Concat")
    node.input[0], node.input[1] = node.input[1], node.input[0]


def _other_block(model: onnx.ModelProto) -> None:
    _first(model, "MaxPool").metadata_props[0].value = "stem/PV"


@pytest.mark.parametrize(
    ("doctor", "how"),
    [
        (_other_weight, "of block stage3/NC, its input 1 has another weight"),
        (_other_operator, "it is Tanh here and Sigmoid there"),
        (_other_attribute, "of block stem/NC, MaxPool differs"),
        (_other_source, "its input 0 comes from elsewhere"),
        (_other_block, "MaxPool differs"),
    ],
)
def test_a_graph_that_is_not_this_networks_is_refused(network: FourPhaseNet, doctor: Any, how: str) -> None:
    whole = whole_graph(network, "fp32")
    doctor(whole)
    with pytest.raises(ParityFailed, match=f"another graph: at node .*{how}") as caught:
        split_model(network, SMALL, whole, 4)
    assert (caught.value.code, caught.value.key) == (27, "split_nodes")


@pytest.mark.parametrize(("mean_of", "largest_of", "cut"), [("full", "full", "full"), ("full", "joined", "joined")])
def test_the_cut_is_the_last_value_that_holds_all_features(mean_of: str, largest_of: str, cut: str) -> None:
    """FP16 features that are read as FP32 only leave the trunk as FP32; read as both, they leave it as FP16."""
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
parts (float[B, 2, 4, 3] study) => (float[B, 2, 3] logits)
<int64[1] slices = {{2}}>
{{
  half = Cast<to = 10>(study)
  joined = Relu(half)
  full = Cast<to = 1>(joined)
  mean = ReduceMean<keepdims = 0>({mean_of}, slices)
  largest = ReduceMax<keepdims = 0>({largest_of}, slices)
  again = Cast<to = 1>(largest)
  logits = Add(mean, again)
}}"""
    model = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True)
    assert split._cut(ir.serde.deserialize_model(model).graph, (2, 4, 3)).name == cut


def test_a_graph_whose_images_go_past_the_features_is_refused(network: FourPhaseNet) -> None:
    whole = with_outputs(whole_graph(network, "fp32"), ["stage4/NC"])
    with pytest.raises(ExportRefused, match=r"\(batch, 4, 8, 32\)") as caught:
        split_model(network, SMALL, whole, 4)
    assert (caught.value.code, caught.value.key) == (25, "split_no_cut")


class BatchCentred(torch.nn.Module):
    """A little of the other slices in every slice, as batch norm in training mode has it."""

    def __init__(self, inner: torch.nn.Module, share: float) -> None:
        super().__init__()
        self.inner, self.share = inner, share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x)
        return y - self.share * y.mean(dim=0, keepdim=True)


@pytest.mark.parametrize("policy", ["fp32", "int8"])
def test_a_trunk_that_mixes_slices_is_found_in_any_precision(policy: str) -> None:
    network = small_network(seed=3, phases=PAIR, ipm_stages=())
    trunk = network.trunks["PV"]
    assert isinstance(trunk.stages, torch.nn.ModuleDict)
    trunk.stages["2"] = BatchCentred(trunk.stages["2"], 0.02)
    whole, studies = whole_graph(network, policy), random_study(1, 2, seed=9)
    require_equal(split_model(network, SMALL, whole, SLICES), whole, studies)
    with pytest.raises(ParityFailed, match=r"chunks of 4 slices .* looks from one chunk to another") as caught:
        require_equal(split_model(network, SMALL, whole, 4), whole, studies)
    assert (caught.value.code, caught.value.key) == (27, "split_differs")
    found = {row["block"] for row in caught.value.table}
    # So little is less than a step of int8 in the features and logits; independence has no tolerance.
    assert found == ({"independence", "features", "logits", "phase_logits"} if policy == "fp32" else {"independence"})


def test_a_wrong_tail_and_a_wrong_trunk_are_found(network: FourPhaseNet) -> None:
    whole, studies = whole_graph(network, "fp32"), random_study(1, seed=10)
    parts = split_model(network, SMALL, whole, 4)
    for part, name, match in (
        ("tail", "network.spm.head.bias", r"logits is off by 0\.007"),
        ("trunk", "network.trunks.DL.stem.0.weight_bias", "features is off by"),
    ):
        doctored = onnx.ModelProto()
        doctored.CopyFrom(parts.tail if part == "tail" else parts.trunk)
        bias = next(entry for entry in doctored.graph.initializer if entry.name == name)
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.01), name))
        with pytest.raises(ParityFailed, match=match):
            require_equal(replace(parts, **{part: doctored}), whole, studies)


def test_what_was_measured_is_json(network: FourPhaseNet) -> None:
    whole = whole_graph(network, "fp32")
    found = require_equal(split_model(network, SMALL, whole, 4), whole, random_study()).to_dict()
    assert json.loads(json.dumps(found)) == {**found, "rows": [dict(row) for row in found["rows"]]}
    assert (found["slices"], found["studies"], found["rows"][2]["allowed"]) == (4, 1, FP32_RTOL)


def test_memory_is_bounded_by_the_chunk(network: FourPhaseNet) -> None:
    whole = whole_graph(network, "fp32")
    found = {slices: split_memory(split_model(network, SMALL, whole, slices), whole) for slices in (1, 2, 4, 8)}
    features = PHASES * SLICES * FEATURES * 4
    for slices, entry in found.items():
        assert json.loads(json.dumps(entry)) == entry
        assert entry["trunk"]["input_bytes"] == PHASES * slices * 3 * 32 * 32 * 4
        assert entry["features_bytes"] == features == entry["tail"]["input_bytes"]
        assert entry["trunk"]["peak_bytes"] == slices * found[1]["trunk"]["peak_bytes"]
        assert entry["split_peak_bytes"] == max(entry["trunk"]["peak_bytes"] + features, entry["tail"]["peak_bytes"])
        assert entry["ratio"] == round(entry["split_peak_bytes"] / entry["whole"]["peak_bytes"], 4)
    assert found[8]["trunk"]["peak_bytes"] == found[8]["whole"]["peak_bytes"]
    whole = whole_graph(network, "all fp16")
    half = split_memory(split_model(network, SMALL, whole, 4), whole)
    assert half["features_bytes"] == features // 2


CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")


def built(model: onnx.ModelProto, part: str, capabilities: tuple[str, ...]) -> int:
    """The size of the plan in bytes."""
    source = EngineSource(model.SerializeToString(), "mixed", part, blocks=node_blocks(model))
    options = BuildOptions(batch=(1, 1, 1), compute_capabilities=capabilities, timing_cache=False)
    return len(build_engine(source, "tensorrt-rtx", options).plan)


def parts_of(network: FourPhaseNet, policy: str, gru: str = "loop") -> SplitModel:
    return split_model(network, SMALL, whole_graph(network, policy, gru), 2)


@pytest.mark.rtx
@pytest.mark.parametrize("policy", ["fp32", "fp16", "int8", "trunk int8"])
def test_nvidias_builder_takes_trunk_and_tail(network: FourPhaseNet, policy: str) -> None:
    assert built(parts_of(network, policy).trunk, "trunk", CAPABILITIES) > 100_000
    for gru in GRU_FORMS:
        assert built(parts_of(network, policy, gru).tail, "tail", CAPABILITIES) > 10_000


@pytest.mark.rtx
@pytest.mark.parametrize("policy", ["all fp16", "all int8"])
def test_turing_takes_the_parts_of_a_network_without_products_in_fp32(network: FourPhaseNet, policy: str) -> None:
    for gru in GRU_FORMS:
        assert built(parts_of(network, policy, gru).tail, "tail", ("7.5",)) > 10_000
    assert built(parts_of(network, policy).trunk, "trunk", ("7.5",)) > 100_000


@pytest.mark.rtx
def test_turing_refuses_the_fp32_tail_only(network: FourPhaseNet) -> None:
    """So a split build for Turing fails on the tail, with the reason."""
    with pytest.raises(FourphaseError, match="Turing"):
        built(parts_of(network, "trunk int8").tail, "tail", ("7.5",))
