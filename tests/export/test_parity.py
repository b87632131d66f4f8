"""Parity must pass for what was exported and name the block for what was doctored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fourphase.export.network import FourPhaseNet
from fourphase.export.parity import compare, measure_parity, parity_with, require_parity, torch_baseline
from fourphase.runtime.errors import ParityFailed
from tests.support.networks import random_study

NodeOf = Callable[[str], onnx.NodeProto]


def first_block_off(network: FourPhaseNet, model: onnx.ModelProto) -> str:
    with pytest.raises(ParityFailed) as caught:
        require_parity(measure_parity(network, model, random_study(3)))
    assert caught.value.code == 27
    assert caught.value.table
    return caught.value.message.split("block ")[1].split(" ")[0]


def test_what_was_exported_passes_at_every_batch_size(model: onnx.ModelProto, network: FourPhaseNet) -> None:
    report = measure_parity(network, model, random_study(3))
    require_parity(report)
    assert {row.batch for row in report.rows if row.block == "logits"} == {1, 2, 3}
    assert report.worst.relative < 1e-4
    assert all(row.max_abs > 0 for row in report.rows if row.block.startswith("stage4")), "compared with itself?"


def test_linear_before_reset_0_is_found_in_the_gru(
    model: onnx.ModelProto, network: FourPhaseNet, node_of: NodeOf
) -> None:
    next(a for a in node_of("GRU").attribute if a.name == "linear_before_reset").i = 0
    assert first_block_off(network, model) == "gru"


def test_a_swapped_gate_is_found_where_it_acts(model: onnx.ModelProto, network: FourPhaseNet) -> None:
    for node in model.graph.node:
        if node.op_type == "Add" and "gate2.channel/NC" in node.input:
            node.input[list(node.input).index("gate2.channel/NC")] = "gate2.channel/ART"
    assert first_block_off(network, model).startswith("mix2/")


def test_a_changed_weight_is_found_in_its_stage(model: onnx.ModelProto, network: FourPhaseNet) -> None:
    weight = next(t for t in model.graph.initializer if "trunks.PV.stages.3.1.conv1" in t.name)
    values = numpy_helper.to_array(weight).copy()
    values[0] *= 1.5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    assert first_block_off(network, model) == "stage3/PV"


def test_a_batch_baked_into_a_reshape_is_found(model: onnx.ModelProto, network: FourPhaseNet) -> None:
    """Right at batch 1, wrong beyond: the last state of the first study for everyone."""
    gather = next(node for node in model.graph.node if node.op_type == "Gather" and node.input[0] == "gru")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    doctored = onnx.helper.make_node("Gather", ["gru", "first"], ["gru.first"], name="doctored", axis=0)
    expand = onnx.helper.make_node("Add", ["gru.first", "gru.zero"], ["gru.same"], name="doctored2")
    zero = onnx.helper.make_node("Sub", ["gru", "gru"], ["gru.zero"], name="doctored3")
    index = list(model.graph.node).index(gather)
    gather.input[0] = "gru.same"
    for node in (expand, zero, doctored):
        model.graph.node.insert(index, node)
    report = measure_parity(network, model, random_study(3))
    failed = {row.batch for row in report.rows if not row.passed and row.block == "logits"}
    assert failed == {2, 3}
    with pytest.raises(ParityFailed, match="block logits"):
        require_parity(report)


def test_a_gate_off_by_a_hundredth_of_its_range_is_found(
    model: onnx.ModelProto, network: FourPhaseNet, node_of: NodeOf
) -> None:
    """The sigmoid's own output, 0.01 off: small beside the maps it weighs, and yet ten times what is allowed."""
    sigmoid = next(node for node in model.graph.node if node.output[0] == "gate1.spatial/NC")
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.01, np.float32), "hundredth"))
    sigmoid.output[0] = "gate1.spatial/exact"
    add = onnx.helper.make_node("Add", ["gate1.spatial/exact", "hundredth"], ["gate1.spatial/NC"], name="doctored")
    model.graph.node.insert(list(model.graph.node).index(sigmoid) + 1, add)
    assert first_block_off(network, model) == "gate1.spatial/NC"


def test_nan_and_wrong_shapes_fail() -> None:
    reference = np.ones((2, 3), np.float32)
    assert not compare("x", reference, np.full((2, 3), np.nan, np.float32), 1, 1e-4).passed
    assert not compare("x", reference, np.ones((3, 2), np.float32), 1, 1e-4).passed
    assert not compare("x", reference, reference + 2e-4, 1, 1e-4).passed
    assert compare("x", reference, reference + 5e-5, 1, 1e-4).passed


def test_what_is_left_of_a_closed_gate_is_measured_against_an_open_one() -> None:
    """The full-size untrained network on another CPU: a gate of 1e-6 everywhere, 8.74e-9 apart."""
    reference, value = np.full((1, 1, 4, 4), 1e-6, np.float32), np.full((1, 1, 4, 4), 1.00874e-6, np.float32)
    assert compare("gate4.spatial/ART", reference, value, 1, 1e-3).passed
    assert not compare("gate4.spatial/ART", reference, value + np.float32(2e-6), 1, 1e-3).passed
    assert not compare("stage4/ART", reference, value, 1, 1e-3).passed
    open_gate = np.full((1, 1, 4, 4), 0.5, np.float32)
    assert not compare("gate4.spatial/ART", open_gate, open_gate + np.float32(6e-4), 1, 1e-3).passed


def test_a_block_that_the_network_does_not_have_is_named(model: onnx.ModelProto, network: FourPhaseNet) -> None:
    baseline = torch_baseline(network)
    other = replace(baseline, blocks=lambda study: {k: v for k, v in baseline.blocks(study).items() if k != "conv1d"})
    with pytest.raises(ParityFailed, match="block conv1d that the checkpoint's network does not have") as caught:
        parity_with(other, model, random_study(3))
    assert caught.value.key == "parity_blocks"


def test_what_the_network_prints_is_not_the_commands_output(
    model: onnx.ModelProto, network: FourPhaseNet, capsys: pytest.CaptureFixture[str]
) -> None:
    handle = network.register_forward_pre_hook(lambda module, inputs: print("chatter"))
    try:
        measure_parity(network, model, random_study(3))
    finally:
        handle.remove()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("chatter") == 2  # outputs and blocks
