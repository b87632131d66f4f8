"""One export of a module, and from it the graph of other sizes: a graph of convolutions and GRU does not know its size.

PyTorch's exporter walks through every step of a GRU, so exporting at 256 slices takes minutes. Instead a module is
exported once, at sizes that stand for nothing else in the graph, and those numbers are replaced where a shape is
written down: in the input's type and in the constant shapes of Reshape. That this is right is not taken for granted:
whoever times a resized graph compares its outputs with the module's at that size first.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from torch import Tensor, nn

from fourphase.export.onnx_export import OPSET
from fourphase.export.pass_static_gru import make_gru_static
from fourphase.export.pass_unroll_gru import unroll_gru

__all__ = ["exported", "resized", "unrolled"]

#: Weights are folded whatever their size.
_NO_LIMIT = 1 << 40


def exported(module: nn.Module, example: Tensor, input_name: str, output_name: str) -> onnx.ModelProto:
    """A module of one input and one output, its first axis dynamic, cleaned as the product's export cleans a network.

    Args:
        example: with 2 or more on its first axis (1 would be baked in).
    """
    from onnxscript import optimizer

    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            input_names=[input_name],
            output_names=[output_name],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model = program.model
    optimizer.fold_constants(model, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT)
    make_gru_static(model)
    common.RemoveUnusedNodesPass()(model)
    return ir.serde.serialize_model(model)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter's notes concern its authors, not our users."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def resized(model: onnx.ModelProto, sizes: Mapping[int, int]) -> onnx.ModelProto:
    """The graph for other sizes.

    Args:
        sizes: size it was exported at -> size wanted. Each of the former stands for one thing only in the graph.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in result.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value"):
                dim.dim_value = sizes.get(dim.dim_value, dim.dim_value)
    shapes = {node.input[1] for node in result.graph.node if node.op_type == "Reshape"}
    for initializer in result.graph.initializer:
        if initializer.name in shapes:
            wanted = [sizes.get(int(size), int(size)) for size in onnx.numpy_helper.to_array(initializer)]
            initializer.CopyFrom(onnx.numpy_helper.from_array(np.array(wanted, dtype=np.int64), initializer.name))
    # What was inferred for the old sizes.
    del result.graph.value_info[:]
    return result


def unrolled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its GRU unrolled by the product's pass; the graph given is left as it is.

    Raises: ExportRefused (25) for a GRU that the pass does not unroll.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    changed, _ = unroll_gru(ir.serde.deserialize_model(inferred))
    return ir.serde.serialize_model(changed)
