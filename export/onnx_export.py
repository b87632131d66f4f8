"""Network -> ONNX: one graph with the contract's names, a batch axis that is really dynamic, and named blocks.

The exporter is PyTorch's (`dynamo=True`, onnxscript >= 0.7.1: earlier ones write a silently wrong GRU). The graph is
exported with every block as an extra output, so that the blocks' values keep their names, and shipped without them:
what was compared is what is shipped, node for node. Nothing is verified here; see `guards` and `parity`.
"""

from __future__ import annotations

import ast
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from torch import nn

from fourphase.calibration.blocks import BLOCK_KEY, BLOCKS_KEY
from fourphase.export.blocks import Naming, TappedNetwork, naming_of
from fourphase.export.interface import INPUT, OUTPUTS, Interface, interface_from_config
from fourphase.export.module_blocks import ModuleBlocks
from fourphase.export.module_outputs import require_outputs, run_once
from fourphase.export.network import FourPhaseNet
from fourphase.export.node_parts import name_parts
from fourphase.export.pass_merge_gate_gemms import merge_gate_gemms
from fourphase.export.pass_static_gru import make_gru_static
from fourphase.export.pass_unroll_gru import unroll_gru
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import EnvironmentFault, ExportRefused, UsageError
from fourphase.runtime.inference_checks import first_line

__all__ = [
    "GRU_FORMS",
    "INPUT",
    "OPSET",
    "OUTPUTS",
    "chosen_gru",
    "onnx_from_module",
    "onnx_from_network",
    "without_traces",
]

#: Q/DQ with FP16 scales needs 19; TensorRT 10.3 reads up to 20.
OPSET = 20
#: "loop" is ONNX's GRU operator, "unrolled" the same sums written out step by step (see `pass_unroll_gru`).
GRU_FORMS = ("loop", "unrolled")
_ONNXSCRIPT_FLOOR = (0, 7, 1)
#: A batch of 1 would be baked in as a constant, even with a dynamic axis.
_EXAMPLE_BATCH = 2
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
#: Weights are folded whatever their size.
_NO_LIMIT = 1 << 40


def chosen_gru(wanted: str) -> tuple[str, str]:
    """The form of the GRU and, for a person, why: "auto" takes the operator.

    Raises: UsageError (2) for an unknown form.
    """
    if wanted in GRU_FORMS:
        return wanted, "asked for"
    if wanted != "auto":
        raise UsageError(
            f"unknown form of the GRU {wanted!r}", f"choose auto or one of {', '.join(GRU_FORMS)}", key="gru_unknown"
        )
    return "loop", "auto: the operator has 770 nodes less, and on no GPU has either form been measured to be faster"


def onnx_from_network(network: FourPhaseNet, preprocessing: PreprocessingConfig, gru: str = "loop") -> onnx.ModelProto:
    """Exports our network; as `onnx_from_module`, which takes any."""
    return onnx_from_module(network, interface_from_config(network.config), preprocessing, gru)


def onnx_from_module(
    network: nn.Module, interface: Interface, preprocessing: PreprocessingConfig, gru: str = "loop"
) -> onnx.ModelProto:
    """Exports a network for inputs float32 (B, P, T, C, H, W), with T, C, H, W from `preprocessing`.

    Args:
        interface: P and the outputs; what the network gives is held against it.
        gru: one of GRU_FORMS.

    Raises: ExportRefused (25) if the network does not run, gives other outputs, or PyTorch cannot export it;
        EnvironmentFault (24) for an exporter known to be wrong.
    """
    _require_onnxscript()
    tapped = TappedNetwork(network.eval())
    example = torch.zeros(_EXAMPLE_BATCH, *interface.input_sizes(preprocessing))
    with torch.no_grad(), _quiet_exporter():
        found = run_once(tapped, example)
        require_outputs(found[: tapped.outputs], interface, _EXAMPLE_BATCH)
        try:
            program = torch.onnx.export(
                tapped,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[*interface.outputs, *tapped.names],
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as error:
            raise ExportRefused(
                # The exporter's own first line only says that it failed.
                f"PyTorch could not export the network: {first_line(error.__cause__ or error)}",
                _cure_of(network),
            ) from error
    assert program is not None
    return _shipped(program.model, naming_of(network), tapped.names, interface.outputs, gru)


def _cure_of(network: nn.Module) -> str:
    if isinstance(network, FourPhaseNet):
        return "check the configuration; the smallest input side is 32 and every side must be even"
    return "write it so that torch.export takes it: no branches on values, and a batch of any size"


def _require_onnxscript() -> None:
    installed = version("onnxscript")
    numbers = tuple(int(part) for part in installed.split(".")[:3] if part.isdigit())
    if numbers < _ONNXSCRIPT_FLOOR:
        raise EnvironmentFault(
            f"onnxscript {installed} exports the GRU with linear_before_reset=0, which is silently wrong",
            "pip install 'onnxscript>=0.7.1'",
            key="onnxscript_too_old",
        )


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter's deprecation warnings and notes on packages we do not use concern its authors, not our users.

    What the network prints while it is traced goes to stderr: stdout is the command's.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _shipped(
    model: ir.Model, naming: Naming, blocks: tuple[str, ...], outputs: tuple[str, ...], gru: str
) -> onnx.ModelProto:
    """Cleans the exported graph, writes the block names into it, takes the blocks off its outputs, runs the passes."""
    from onnxscript import optimizer

    optimizer.fold_constants(model, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT)
    make_gru_static(model)
    common.RemoveUnusedNodesPass()(model)
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES_KEY, "[]"))
        block = naming.of_scopes([scope.removeprefix("network.") for scope in scopes])
        node.metadata_props.clear()
        node.metadata_props[BLOCK_KEY] = block
    for value in list(model.graph.outputs):
        if value.name not in outputs:
            model.graph.outputs.remove(value)
    if isinstance(naming, ModuleBlocks):
        name_parts(model)
    merge_gate_gemms(model)
    if gru == "unrolled":
        unroll_gru(model)
    model.metadata_props.clear()
    model.metadata_props[BLOCKS_KEY] = json.dumps(blocks)
    model.graph.name = "fourphase"
    return without_traces(ir.serde.serialize_model(model))


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drops what the exporter notes about its own machine (source paths, stack traces) from values and graph."""
    del model.graph.metadata_props[:]
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer)
    for value in values:
        del value.metadata_props[:]
    for node in model.graph.node:
        node.ClearField("doc_string")
    return model
