"""The named blocks of an exported graph, and policies that say which precision each of them has.

The export writes into the ONNX which block every node belongs to, and gives the blocks' output values the blocks' names
(`stem/NC`, `stage1/NC`, `gate1.channel/NC`, `gate1.spatial/NC`, `mix1/NC`, `conv1d`, `gru`, `head`, `phase_head/NC`;
`features` and `body` are what lies between them). A foreign network's blocks are called as its modules (`layer1.0`),
and nodes that deserve a precision of their own as a part of their block (`layers.0/norm`). Everything here reads that;
no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from fourphase.runtime.errors import UsageError

__all__ = [
    "BLOCKS_KEY",
    "BLOCK_KEY",
    "PARTS",
    "PRECISIONS",
    "Policy",
    "block_names",
    "is_foreign",
    "node_blocks",
    "part_block",
    "selectors_of",
    "with_outputs",
]

#: Metadata: of the model, the names of its blocks' values; of a node, the block it belongs to.
BLOCKS_KEY = "fourphase.blocks"
BLOCK_KEY = "fourphase.block"
#: Ascending cost.
PRECISIONS = ("int8", "fp16", "fp32")
#: Parts of a foreign network's blocks: the layers that read the study, those that make the logits, normalisations with
#: statistics of their own, recurrences, softmax.
PARTS = ("input", "logits", "norm", "recurrence", "softmax")
_STAGE = re.compile(r"(stage|gate|mix)\d")


def block_names(model: onnx.ModelProto) -> tuple[str, ...]:
    """The values that are blocks' outputs, in the order of the graph; empty for a graph that is not ours."""
    for entry in model.metadata_props:
        if entry.key == BLOCKS_KEY:
            return tuple(json.loads(entry.value))
    return ()


def node_blocks(model: onnx.ModelProto) -> dict[str, str]:
    """Node name -> block name."""
    entries = ((node.name, entry) for node in model.graph.node for entry in node.metadata_props)
    return {name: entry.value for name, entry in entries if entry.key == BLOCK_KEY}


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of the graph with further values marked as outputs (float, shape left open)."""
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    marked.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return marked


def part_block(block: str, part: str) -> str:
    """The name of a part of a block."""
    return f"{block}/{part}"


def is_foreign(blocks: Iterable[str]) -> bool:
    """Whether these are the blocks of another network than ours: it has a part that makes the logits."""
    return any(block.endswith("/logits") for block in blocks)


def selectors_of(block: str) -> tuple[str, ...]:
    """What a policy may call a block, most precise first.

    >>> selectors_of("gate1.channel/NC")
    ('gate1.channel/NC', 'gate1.channel', 'gate.channel', 'gate', '*')
    >>> selectors_of("layers.0/norm")
    ('layers.0/norm', '*/norm', 'layers.0', 'layers', '*')
    """
    whole, _, part = block.partition("/")
    names = [block, *([part_block("*", part)] if part in PARTS else []), whole]
    names.append(_STAGE.sub(r"\1", names[-1]))
    names.append(names[-1].partition(".")[0])
    return (*dict.fromkeys(names), "*")


@dataclass(frozen=True)
class Policy:
    """Which precision each block computes in: selector -> "fp32", "fp16" or "int8"; the most precise selector decides.

    A block that no selector names is FP32. "int8" means: convolutions and matrix products of the block are quantized,
    the rest of it computes in FP16.
    """

    rules: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, rules: Mapping[str, str]) -> Policy:
        """Raises: UsageError for an unknown precision."""
        for selector, precision in rules.items():
            if precision not in PRECISIONS:
                raise UsageError(
                    f"the policy gives {selector} the precision {precision!r}",
                    f"choose one of {', '.join(PRECISIONS)}",
                    key="policy_invalid",
                )
        return cls(tuple(sorted(rules.items())))

    def precision_of(self, block: str) -> str:
        rules = dict(self.rules)
        return next((rules[name] for name in selectors_of(block) if name in rules), "fp32")

    def check(self, blocks: Sequence[str]) -> None:
        """Raises: UsageError naming the first selector that fits none of `blocks`."""
        known = {name for block in blocks for name in selectors_of(block)}
        for selector, _ in self.rules:
            if selector not in known:
                raise UsageError(
                    f"the policy names the unknown block {selector!r}",
                    f"the blocks are {', '.join(sorted({block.partition('/')[0] for block in blocks}))}",
                    key="policy_block_unknown",
                )
