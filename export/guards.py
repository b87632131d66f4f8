"""Structural guards: what must not be in an exported graph, whatever its numbers say today. Each names the node.

They catch what parity can miss: a graph that is right on this machine's runtime but that TensorRT imports as something
slow, or that is right for one batch size only.

Some hold for every graph; some only for what this exporter makes of a PyTorch module, where they find its faults; the
rest only for our own network, whose graph is known node for node. Another network may well have a large pool or compute
a shape from its batch: TensorRT takes both.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from fourphase.calibration.blocks import node_blocks
from fourphase.export.config import NetworkConfig
from fourphase.export.interface import INPUT, Interface, four_phase_config, interface_from_config
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import ParityFailed

__all__ = ["Finding", "check_any_graph", "check_graph", "guard_findings", "require_clean"]

_CONTROL_FLOW = ("Loop", "If", "Scan")
#: A pool over the whole map as a kernel is a fusion TensorRT does badly; ours are Reduce nodes. The stem's is 3 wide.
_GLOBAL_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_LARGEST_POOL = 3
_RUN_TIME_SHAPES = ("Shape", "Size", "NonZero", "Expand", "ConstantOfShape", "Range")
#: What the exporter folds away. A batch norm of its own costs a pass over the map, and INT8 would not see through it.
_LEFTOVERS = ("BatchNormalization", "Constant", "Dropout", "Identity")
#: Shapes that depend on values, not on the batch: nothing that is static but for the batch has them.
_VALUE_SHAPES = ("NonZero", "Unique", "Compress", "NonMaxSuppression")
#: What only a graph has that was lowered before: as FP32 it would be judged against itself, and called what it is not.
_QUANTIZED = (
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
    "QuantizeLinear",
)  # fmt: skip
_HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
#: Guards of `_check_node` that hold for every graph, and those that hold for PyTorch's modules too.
_UNIVERSAL = frozenset({"custom_domain", "control_flow", "value_shape", "not_fp32"})
_OF_MODULES = _UNIVERSAL | {"gru_linear_before_reset"}
_OPSET_FLOOR = 19
_LARGEST_BYTES = 1 << 31
_CURE = "export the checkpoint again with fp-export; do not edit the graph by hand"
_FOREIGN_CURE = "write the network so that a batch of any size goes through one static graph, without loops or branches"


@dataclass(frozen=True)
class Finding:
    """One violation: the guard's name, the node (or graph part), its block, and one sentence."""

    guard: str
    node: str
    block: str
    message: str


def check_graph(model: onnx.ModelProto, config: NetworkConfig, preprocessing: PreprocessingConfig) -> list[Finding]:
    """All violations in the graph of our network with this configuration; empty if it is clean."""
    findings = _check_all(model, interface_from_config(config), preprocessing, None)
    return [*findings, *_check_recurrence(model, node_blocks(model), config, preprocessing.size[0])]


def check_any_graph(
    model: onnx.ModelProto, interface: Interface, preprocessing: PreprocessingConfig, *, of_module: bool
) -> list[Finding]:
    """All violations in the graph of another network; `of_module` for one that was exported here."""
    return _check_all(model, interface, preprocessing, _OF_MODULES if of_module else _UNIVERSAL)


def guard_findings(
    model: onnx.ModelProto, section: Mapping[str, Any], interface: Interface, preprocessing: PreprocessingConfig
) -> list[Finding]:
    """All violations in a graph, by what a manifest's `network` section says it is of."""
    config = four_phase_config(section)
    if config is not None:
        return check_graph(model, config, preprocessing)
    return check_any_graph(model, interface, preprocessing, of_module="factory" in section)


def _check_all(
    model: onnx.ModelProto, interface: Interface, preprocessing: PreprocessingConfig, guards: Container[str] | None
) -> list[Finding]:
    """Interface, file, and the nodes by the guards named, or by all."""
    blocks = node_blocks(model)
    findings = [*_check_interface(model, interface, preprocessing), *_check_file(model)]
    for node in model.graph.node:
        for guard, message in _check_node(node):
            if guards is None or guard in guards:
                findings.append(Finding(guard, node.name, blocks.get(node.name, "unknown"), message))
    return findings


def require_clean(findings: list[Finding], section: Mapping[str, Any] | None = None) -> None:
    """Raises: ParityFailed (27) naming the first violation's node and block, with all of them in its table.

    Args:
        section: of the network, as for `guard_findings`; None for ours.
    """
    if not findings:
        return
    first = findings[0]
    rows = [{"guard": f.guard, "node": f.node, "block": f.block, "message": f.message} for f in findings]
    raise ParityFailed(
        f"the graph breaks the guard {first.guard} at node {first.node} in block {first.block}: {first.message}",
        _CURE if section is None or four_phase_config(section) is not None else _FOREIGN_CURE,
        key=f"guard_{first.guard}",
        table=rows,
    )


def _check_node(node: onnx.NodeProto) -> Iterator[tuple[str, str]]:
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.domain not in ("", "ai.onnx"):
        yield "custom_domain", f"the operator {node.domain}.{node.op_type} is not standard ONNX"
    if node.op_type in _CONTROL_FLOW:
        yield "control_flow", f"{node.op_type} cannot be optimised as one graph"
    if node.op_type in _QUANTIZED or (node.op_type == "Cast" and attributes.get("to") in _HALVES):
        yield "not_fp32", f"{node.op_type}: the graph is lowered already, give the FP32 one"
    if node.op_type in _LEFTOVERS:
        yield "leftover", f"{node.op_type} should have been folded"
    if node.op_type in _VALUE_SHAPES:
        yield "value_shape", f"{node.op_type} gives a shape that depends on values"
    if node.op_type in _RUN_TIME_SHAPES:
        yield "run_time_shape", f"{node.op_type} computes a shape at run time"
    if node.op_type == "GRU" and attributes.get("linear_before_reset", 0) != 1:
        yield "gru_linear_before_reset", "linear_before_reset is 0, PyTorch's GRU is 1: the states would be wrong"
    if node.op_type == "GRU" and len(node.input) > 5 and node.input[5]:
        yield "gru_initial_state", "the GRU has an initial state, the network's is zero"
    if node.op_type in _GLOBAL_POOLS:
        yield "kernel_sized_pool", f"{node.op_type} instead of a Reduce node"
    if node.op_type == "MaxPool" and max(attributes["kernel_shape"]) > _LARGEST_POOL:
        yield "kernel_sized_pool", f"MaxPool with kernel {attributes['kernel_shape']}"


def _check_recurrence(
    model: onnx.ModelProto, blocks: Mapping[str, str], config: NetworkConfig, steps: int
) -> Iterator[Finding]:
    """One GRU operator a layer, or none and one Tanh (the new state's candidate) per layer, direction and step."""
    kinds = [node.op_type for node in model.graph.node if blocks.get(node.name) == "gru"]
    layers = config.gru_layers if config.spm else 0
    unrolled = layers * steps * (2 if config.bidirectional else 1)
    if (kinds.count("GRU"), kinds.count("Tanh")) not in ((layers, 0), (0, unrolled)):
        message = (
            f"the block holds {kinds.count('GRU')} GRU nodes and {kinds.count('Tanh')} unrolled steps, the network has "
            f"{layers} layers: {layers} nodes or {unrolled} steps"
        )
        yield Finding("gru_count", "graph", "gru", message)


def _check_interface(
    model: onnx.ModelProto, interface: Interface, preprocessing: PreprocessingConfig
) -> Iterator[Finding]:
    wanted = {INPUT: interface.input_sizes(preprocessing), **interface.output_sizes()}
    initializers = {tensor.name for tensor in model.graph.initializer}
    graph = model.graph
    for kind, values, names in (("input", graph.input, (INPUT,)), ("output", graph.output, interface.outputs)):
        found = tuple(value.name for value in values)
        if found != names:
            message = f"the {kind}s are {', '.join(found)} instead of {', '.join(names)}"
            yield Finding("interface", "graph", kind, message)
        for value in values:
            if value.name in initializers:
                yield Finding("interface", value.name, kind, "a weight is also an input, so it could be replaced")
            if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
                yield Finding("interface", value.name, kind, "its type is not float32")
            dims = value.type.tensor_type.shape.dim
            if value.name in wanted and not _is_batch_of(dims, wanted[value.name]):
                shape = [dim.dim_param or dim.dim_value for dim in dims]
                message = f"its shape is {shape} instead of [batch, {', '.join(map(str, wanted[value.name]))}]"
                yield Finding("interface", value.name, kind, message)


def _is_batch_of(dims: Sequence[onnx.TensorShapeProto.Dimension], wanted: tuple[int, ...]) -> bool:
    return bool(dims) and bool(dims[0].dim_param) and tuple(dim.dim_value for dim in dims[1:]) == wanted


def _check_file(model: onnx.ModelProto) -> Iterator[Finding]:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < _OPSET_FLOOR:
        yield Finding("opset", "graph", "file", f"opset {opset} is below {_OPSET_FLOOR}")
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield Finding("external_data", tensor.name, "file", "a weight lies outside the file")
    if model.ByteSize() >= _LARGEST_BYTES:
        yield Finding("file_size", "graph", "file", "the file would be 2 GB or larger")
