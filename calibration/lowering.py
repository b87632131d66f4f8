"""FP32 graph + policy (+ int8 scales) -> the graph that ships: Q/DQ first, then types. One place for the order.

It measures nothing and decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import onnx
import onnx_ir as ir

from fourphase.calibration.blocks import PRECISIONS, Policy, node_blocks
from fourphase.calibration.macs import macs_by_output
from fourphase.calibration.qdq import insert_qdq
from fourphase.calibration.scales import Scales
from fourphase.calibration.typed import type_graph
from fourphase.runtime.errors import UsageError

__all__ = ["Lowering", "blocks_of", "lowered_model", "lowest_precision"]


def blocks_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """The blocks that a policy speaks of, in the order of the graph."""
    return tuple(dict.fromkeys(node_blocks(model).values()))


def lowest_precision(policy: Policy, blocks: Iterable[str]) -> str:
    """What a model with this policy is called: "int8" if any block is, else "fp16" if any is, else "fp32"."""
    return min((policy.precision_of(block) for block in blocks), key=PRECISIONS.index, default="fp32")


def lowered_model(model: onnx.ModelProto, policy: Policy, scales: Scales | None = None) -> onnx.ModelProto:
    """A copy of the FP32 graph in the policy's precisions; inputs and outputs stay float32. Raises: as `Lowering`."""
    return ir.serde.serialize_model(Lowering(model, scales).graph(policy))


class Lowering:
    """Lowers one FP32 graph by many policies; what does not depend on the policy is computed once.

    Args:
        scales: of the activations; needed as soon as a policy has an int8 block.
    """

    def __init__(self, model: onnx.ModelProto, scales: Scales | None = None) -> None:
        self.model, self.scales, self.blocks = model, scales, blocks_of(model)

    @cached_property
    def _macs(self) -> Mapping[str, int]:
        return macs_by_output(self.model)

    def graph(self, policy: Policy) -> ir.Model:
        """A new graph.

        Raises: UsageError (2) for a policy naming an unknown block, or with an int8 block and no scales; ExportRefused
            (25) naming what FP16 cannot hold; ModelIncompatible (20) for scales of another model.
        """
        policy.check(self.blocks)
        graph = ir.serde.deserialize_model(self.model)
        if lowest_precision(policy, self.blocks) == "int8":
            if self.scales is None:
                raise UsageError(
                    "an int8 model needs scales, and scales need studies",
                    "give a calibration set: --calibration DIR, made with fp-export calibrate",
                    key="calibration_needed",
                )
            insert_qdq(graph, policy, self.scales.values, self._macs)
        type_graph(graph, policy)
        return graph
