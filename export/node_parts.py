"""Parts of a foreign network's blocks that deserve a precision of their own: `layers.0/norm`, `head/logits`.

Our network's blocks are named so that a policy can speak of what rounding hurts (`gru`, `gate.channel`, `head`). Blocks
of any module tree are not: one transformer layer holds large products and a softmax. So the nodes that default policies
treat apart (see `fourphase.calibration.blocks.PARTS`) get the part's name behind their block's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir

from fourphase.calibration.blocks import BLOCK_KEY, part_block

__all__ = ["name_parts"]

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "GRU", "LSTM", "RNN")
_FLOAT = ir.DataType.FLOAT
_PART_OF = {
    **dict.fromkeys(("GRU", "LSTM", "RNN"), "recurrence"),
    **dict.fromkeys(("Softmax", "LogSoftmax"), "softmax"),
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization"), "norm"
    ),
}  # fmt: skip


def name_parts(model: ir.Model) -> tuple[ir.Model, bool]:
    """Returns (model, True); the blocks of the nodes are renamed in place.

    `input` are the weighted layers that see the study before any other does, `logits` the weighted layers that no other
    follows, with all behind them.
    """
    graph = model.graph
    first = {node for node in _reached(graph.inputs, _readers) if node.op_type in _WEIGHTED}
    last = _reached(graph.outputs, _maker)
    for node in graph:
        part = "logits" if node in last else _PART_OF.get(node.op_type) or ("input" if node in first else None)
        if part is not None:
            node.metadata_props[BLOCK_KEY] = part_block(node.metadata_props[BLOCK_KEY], part)
    return model, True


def _reached(values: Iterable[ir.Value], step: Callable[[ir.Value], Iterable[ir.Node]]) -> set[ir.Node]:
    """The nodes on the way from `values` up to and with the first weighted layer on each way."""
    found: set[ir.Node] = set()
    waiting = list(values)
    forward = step is _readers
    while waiting:
        for node in step(waiting.pop()):
            if node in found:
                continue
            found.add(node)
            if node.op_type not in _WEIGHTED:
                # Only floats count: what is expanded to the batch reads the study's shape, not the study.
                following = node.outputs if forward else node.inputs
                waiting += [value for value in following if value is not None and value.dtype == _FLOAT]
    return found


def _readers(value: ir.Value) -> Iterable[ir.Node]:
    return [use.node for use in value.uses()]


def _maker(value: ir.Value) -> Iterable[ir.Node]:
    producer = value.producer()
    return [] if producer is None else [producer]
