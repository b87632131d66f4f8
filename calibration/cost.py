"""What a block costs by a stated model: multiply-accumulates and bytes, read off the ONNX graph. No timing.

    cost = sum over blocks of MACs / rate(precision) + bytes / bandwidth

with rates relative to FP32 of 1, 2 and 4 for FP32, FP16 and INT8 (what tensor cores and AVX-VNNI offer at best), bytes
per element of 4, 2 and 1, and a balance of 64 FP32 MACs per byte moved. It ranks policies; it predicts no latency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx

from fourphase.calibration.blocks import Policy, node_blocks
from fourphase.calibration.macs import macs_of, shapes_at_batch_one

__all__ = ["BYTES_PER_ELEMENT", "MACS_PER_BYTE", "RELATIVE_RATE", "BlockCost", "block_costs", "policy_cost"]

RELATIVE_RATE = {"fp32": 1.0, "fp16": 2.0, "int8": 4.0}
BYTES_PER_ELEMENT = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}
MACS_PER_BYTE = 64.0


@dataclass(frozen=True)
class BlockCost:
    """One block at batch 1: multiply-accumulates, and elements written (activations) or held (weights)."""

    macs: int
    elements: int


def block_costs(model: onnx.ModelProto) -> dict[str, BlockCost]:
    """Block -> its cost at batch 1; the blocks in the order of the graph."""
    shapes = shapes_at_batch_one(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    blocks = node_blocks(model)
    costs: dict[str, BlockCost] = {}
    for node in model.graph.node:
        block = blocks.get(node.name, "body")
        before = costs.get(block, BlockCost(0, 0))
        moved = [*node.output, *(name for name in node.input if name in weights)]
        elements = sum(prod(shapes[name]) for name in moved if name in shapes)
        costs[block] = BlockCost(before.macs + macs_of(node, shapes), before.elements + elements)
    return costs


def policy_cost(costs: Mapping[str, BlockCost], policy: Policy) -> float:
    """The cost of a policy relative to everything in FP32 (1.0)."""

    def total(precisions: Mapping[str, str]) -> float:
        return sum(
            cost.macs / RELATIVE_RATE[precisions[block]]
            + MACS_PER_BYTE * cost.elements * BYTES_PER_ELEMENT[precisions[block]]
            for block, cost in costs.items()
        )

    return total({block: policy.precision_of(block) for block in costs}) / total(dict.fromkeys(costs, "fp32"))
