"""Structural guards: what must not be in an exported graph, whatever its numbers say today. Each names the node.

They catch what parity can miss: a graph that is right on this machine's runtime but that TensorRT imports as something
slow, or that is right for one batch size only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

from fourphase.calibration.blocks import node_blocks
from fourphase.export.config import NetworkConfig
from fourphase.export.onnx_export import INPUT, OUTPUTS
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import ParityFailed

__all__ = ["Finding", "check_graph", "require_clean"]

_CONTROL_FLOW = ("Loop", "If", "Scan")
#: A pool over the whole map as a kernel is a fusion TensorRT does badly; ours are Reduce nodes. The stem's is 3 wide.
_GLOBAL_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_LARGEST_POOL = 3
_RUN_TIME_SHAPES = ("Shape", "Size", "NonZero", "Expand", "ConstantOfShape", "Range")
#: What the exporter folds away. A batch norm of its own costs a pass over the map, and INT8 would not see through it.
_LEFTOVERS = ("BatchNormalization", "Constant", "Dropout", "Identity")
_OPSET_FLOOR = 19
_LARGEST_BYTES = 1 << 31


@dataclass(frozen=True)
class Finding:
    """One violation: the guard's name, the node (or graph part), its block, and one sentence."""

    guard: str
    node: str
    block: str
    message: str


def check_graph(model: onnx.ModelProto, config: NetworkConfig, preprocessing: PreprocessingConfig) -> list[Finding]:
    """All violations in the graph of a network with this configuration; empty if it is clean."""
    blocks = node_blocks(model)
    findings = [*_check_interface(model, config, preprocessing), *_check_file(model)]
    for node in model.graph.node:
        for guard, message in _check_node(node):
            findings.append(Finding(guard, node.name, blocks.get(node.name, "unknown"), message))
    return [*findings, *_check_recurrence(model, blocks, config, preprocessing.size[0])]


def require_clean(findings: list[Finding]) -> None:
    """Raises: ParityFailed (27) naming the first violation's node and block, with all of them in its table."""
    if not findings:
        return
    first = findings[0]
    rows = [{"guard": f.guard, "node": f.node, "block": f.block, "message": f.message} for f in findings]
    raise ParityFailed(
        f"the graph breaks the guard {first.guard} at node {first.node} in block {first.block}: {first.message}",
        "export the checkpoint again with fp-export; do not edit the graph by hand",
        key=f"guard_{first.guard}",
        table=rows,
    )


def _check_node(node: onnx.NodeProto) -> Iterator[tuple[str, str]]:
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.domain not in ("", "ai.onnx"):
        yield "custom_domain", f"the operator {node.domain}.{node.op_type} is not standard ONNX"
    if node.op_type in _CONTROL_FLOW:
        yield "control_flow", f"{node.op_type} cannot be optimised as one graph"
    if node.op_type in _LEFTOVERS:
        yield "leftover", f"{node.op_type} should have been folded"
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
    model: onnx.ModelProto, config: NetworkConfig, preprocessing: PreprocessingConfig
) -> Iterator[Finding]:
    phases, classes = config.count, config.k
    slices, rows, columns = preprocessing.size
    wanted = {
        INPUT: [phases, slices, preprocessing.channels, rows, columns],
        OUTPUTS[0]: [classes],
        OUTPUTS[1]: [phases, classes],
    }
    initializers = {tensor.name for tensor in model.graph.initializer}
    for kind, values, names in (("input", model.graph.input, (INPUT,)), ("output", model.graph.output, OUTPUTS)):
        found = tuple(value.name for value in values)
        if found != names:
            message = f"the {kind}s are {', '.join(found)} instead of {', '.join(names)}"
            yield Finding("interface", "graph", kind, message)
        for value in values:
            if value.name in initializers:
                yield Finding("interface", value.name, kind, "a weight is also an input, so it could be replaced")
            dims = value.type.tensor_type.shape.dim
            if value.name in wanted and not _is_batch_of(dims, wanted[value.name]):
                shape = [dim.dim_param or dim.dim_value for dim in dims]
                message = f"its shape is {shape} instead of [batch, {', '.join(map(str, wanted[value.name]))}]"
                yield Finding("interface", value.name, kind, message)


def _is_batch_of(dims: object, wanted: list[int]) -> bool:
    first, *rest = list(dims)  # type: ignore[call-overload]
    return bool(first.dim_param) and [dim.dim_value for dim in rest] == wanted


def _check_file(model: onnx.ModelProto) -> Iterator[Finding]:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < _OPSET_FLOOR:
        yield Finding("opset", "graph", "file", f"opset {opset} is below {_OPSET_FLOOR}")
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield Finding("external_data", tensor.name, "file", "a weight lies outside the file")
    if model.ByteSize() >= _LARGEST_BYTES:
        yield Finding("file_size", "graph", "file", "the file would be 2 GB or larger")
