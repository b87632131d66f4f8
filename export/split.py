"""One graph -> two that compute the same: a trunk over a chunk of slices, and a tail over all slices' features.

In front of the features (B, P, T, F) nothing looks from one slice to another, so the trunk may see the slices S at a
time: its activations shrink by S / T, and it may have other types than the tail. Both are parts of the whole, lowered
graph: weights, scales, types, names and blocks are the whole's own. All that a chunk changes are the shapes in which
the exporter wrote T down. They come from a second export of the same network, with S slices, matched node by node:
names differ between two exports, the graphs must not. Where to cut is found in the data flow, not by a name.

It proves nothing by itself: `split_parity` measures, and finds a network that does mix slices. It builds no engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray

from fourphase.calibration.activation_memory import lifetimes
from fourphase.calibration.blocks import BLOCK_KEY, BLOCKS_KEY, block_names
from fourphase.export.network import FourPhaseNet
from fourphase.export.onnx_export import onnx_from_network
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import ExportRefused, ParityFailed, UsageError

__all__ = [
    "FEATURES",
    "SplitModel",
    "check_slices",
    "split_model",
]

Array = NDArray[np.float32]
Session = Callable[[Array], dict[str, Array]]
#: (P, slices, F): the features' sizes behind the batch.
Sizes = tuple[int, int, int]

#: The trunk's output and the tail's input.
FEATURES = "features"
#: What lowering adds to a graph: behind it is the same value, rounded.
_CONVERSIONS = ("Cast", "QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, eq=False)
class SplitModel:
    """The two parts of one graph; every axis but the batch is static.

    Attributes:
        trunk: `study` float32 (B, P, S, C, H, W) -> `features` (B, P, S, F).
        tail: `features` (B, P, T, F) -> `logits` float32 (B, K), `phase_logits` float32 (B, P, K).
        slices: S.
        dtype: of the features, "float32" or "float16": the precision of the block `body`, which pools the maps. It is
            FP32 in the default policies, so that their tail is FP32 but for `conv1d`.
        cut: the features' name in the whole graph.
    """

    trunk: onnx.ModelProto
    tail: onnx.ModelProto
    slices: int
    dtype: str
    cut: str


def split_model(
    network: FourPhaseNet, preprocessing: PreprocessingConfig, whole: onnx.ModelProto, slices: int
) -> SplitModel:
    """Cuts a graph of the network into trunk and tail.

    Args:
        whole: the network's export for `preprocessing`, with either form of the GRU, lowered by any policy or none.
        slices: S, the slices of one chunk.

    Raises: UsageError (2) if S does not divide T; ParityFailed (27) naming the node where `whole` is not the graph that
        the network is exported to for S slices; ExportRefused (25) if no single value holds the features.
    """
    total = preprocessing.size[0]
    check_slices(slices, total)
    phases, width = network.config.count, network.config.stage_channels[-1]
    trunk = _Trunk(whole, (phases, total, width))
    cut, dtype = str(trunk.cut.name), _dtype_name(trunk.cut)
    if slices != total:
        chunk = onnx_from_network(network, replace(preprocessing, size=(slices, *preprocessing.size[1:])))
        trunk.take_shapes(_Trunk(chunk, (phases, slices, width)))
    return SplitModel(trunk.finished(slices), _tail(whole, (phases, total, width)), slices, dtype, cut)


class _Trunk:
    """The part of a graph in front of the features (B, *sizes)."""

    def __init__(self, model: onnx.ModelProto, sizes: Sizes) -> None:
        self.model = ir.serde.deserialize_model(model)
        self.graph = self.model.graph
        self.cut = _cut(self.graph, sizes)
        self.graph.outputs[:] = [self.cut]
        common.RemoveUnusedNodesPass()(self.model)

    def take_shapes(self, chunk: _Trunk) -> None:
        """Gives the nodes the shapes (integer constants) of the chunk's export, where they differ.

        Raises: ParityFailed (27) where the two are not the same graph.
        """
        twins = dict(zip(chunk.graph.inputs, self.graph.inputs, strict=True))
        nodes, others = _plain_nodes(self.graph), _plain_nodes(chunk.graph)
        for node, other in zip(nodes, others, strict=False):
            if _signature(node) != _signature(other):
                raise _another_graph(node, _how(node, other))
            for index, (value, twin) in enumerate(zip(node.inputs, other.inputs, strict=True)):
                self._match(node, index, _source(value), twin, twins)
            twins.update(zip(other.outputs, node.outputs, strict=True))
        if len(nodes) != len(others) or twins.get(chunk.cut) is not _source(self.cut):
            raise _another_graph(nodes[-1], "the features come from elsewhere")

    def _match(
        self, node: ir.Node, index: int, value: ir.Value | None, twin: ir.Value | None, twins: dict[ir.Value, ir.Value]
    ) -> None:
        constant, wanted = (None if one is None else one.const_value for one in (value, twin))
        if constant is None or wanted is None:
            if constant is not wanted or (None if twin is None else twins.get(twin)) is not value:
                raise _another_graph(node, f"its input {index} comes from elsewhere")
        elif wanted.dtype != ir.DataType.INT64:
            if not _same_weight(constant.numpy(), wanted.numpy()):
                raise _another_graph(node, f"its input {index} has another weight")
        elif not np.array_equal(constant.numpy(), wanted.numpy()):
            name = f"{node.name}.{index}.chunk"
            replacement = ir.val(name, const_value=ir.tensor(wanted.numpy(), name=name))
            self.graph.register_initializer(replacement)
            node.replace_input_with(index, replacement)

    def finished(self, slices: int) -> onnx.ModelProto:
        """The file, with the features' name and the chunk's sizes everywhere."""
        (study,), cut = self.graph.inputs, self.cut
        assert study.shape is not None
        assert cut.shape is not None
        features = ir.Shape([study.shape[0], cut.shape[1], slices, cut.shape[3]])
        study.shape = ir.Shape([*study.shape[:2], slices, *study.shape[3:]])
        for node in self.graph:
            for value in node.outputs:
                value.shape = None
        cut.name, cut.shape = FEATURES, features
        common.RemoveUnusedNodesPass()(self.model)
        common.ShapeInferencePass()(self.model)
        return _file(self.model)


def _tail(whole: onnx.ModelProto, sizes: Sizes) -> onnx.ModelProto:
    """The part of a graph behind the features (B, *sizes)."""
    model = ir.serde.deserialize_model(whole)
    (study,), cut = model.graph.inputs, _cut(model.graph, sizes)
    assert study.shape is not None
    features = ir.val(FEATURES, dtype=cut.dtype, shape=ir.Shape([study.shape[0], *sizes]))
    ir.convenience.replace_all_uses_with(cut, features)
    model.graph.inputs[:] = [features]
    common.RemoveUnusedNodesPass()(model)
    return _file(model)


def _file(model: ir.Model) -> onnx.ModelProto:
    """A part as a file that names only the blocks that it holds. Checked with all shapes inferred."""
    part = ir.serde.serialize_model(model)
    held = {str(value.name) for node in model.graph for value in node.outputs}
    blocks = json.dumps([name for name in block_names(part) if name in held])
    onnx.helper.set_model_props(part, {entry.key: entry.value for entry in part.metadata_props} | {BLOCKS_KEY: blocks})
    onnx.checker.check_model(part, full_check=True)
    return part


def _cut(graph: ir.Graph, sizes: Sizes) -> ir.Value:
    """The last value (B, *sizes) through which everything passes from the input to the outputs.

    Raises: ExportRefused (25) if there is none.
    """
    alone = [value for moment in lifetimes(graph) if len(moment.after) == 1 for value in moment.after]
    features = [value for value in alone if value.shape is not None and tuple(value.shape[1:]) == sizes]
    if not features:
        raise ExportRefused(
            f"the graph cannot be split: no value (batch, {', '.join(map(str, sizes))}) is all that its heads read",
            "build the whole graph, without --split",
            key="split_no_cut",
        )
    return features[-1]


def _plain_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The nodes of the FP32 graph: without what lowering added."""
    return [node for node in graph if node.op_type not in _CONVERSIONS]


def _source(value: ir.Value | None) -> ir.Value | None:
    """The value of the FP32 graph behind a chain of conversions."""
    while value is not None and (producer := value.producer()) is not None and producer.op_type in _CONVERSIONS:
        value = producer.inputs[0]
    return value


def _signature(node: ir.Node) -> tuple[Any, ...]:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return node.op_type, node.metadata_props.get(BLOCK_KEY), attributes, len(node.inputs), len(node.outputs)


def _how(node: ir.Node, other: ir.Node) -> str:
    if node.op_type != other.op_type:
        return f"it is {node.op_type} here and {other.op_type} there"
    return f"{node.op_type} differs in its block, its attributes or the number of its inputs"


def _same_weight(lowered: NDArray[Any], exported: NDArray[Any]) -> bool:
    """Int8 codes are compared in size only: their scales are the whole graph's affair."""
    if lowered.dtype == np.int8:
        return lowered.shape == exported.shape
    return np.array_equal(lowered, exported.astype(lowered.dtype))


def _another_graph(node: ir.Node, how: str) -> ParityFailed:
    return ParityFailed(
        f"for a chunk of slices the network is exported to another graph: at node {node.name} of block"
        f" {node.metadata_props.get(BLOCK_KEY, 'unknown')}, {how}",
        "build from the checkpoint that the graph was exported from, or without --split",
        key="split_nodes",
    )


def _dtype_name(value: ir.Value) -> str:
    assert value.dtype is not None
    return str(value.dtype.numpy())


def check_slices(slices: int, total: int) -> None:
    """Raises: UsageError (2) unless chunks of `slices` make up `total` slices."""
    divisors = [size for size in range(1, total + 1) if total % size == 0]
    if slices not in divisors:
        raise UsageError(
            f"a study's {total} slices cannot be cut into chunks of {slices}",
            f"choose one of {', '.join(map(str, divisors))}",
            key="split_slices",
        )
