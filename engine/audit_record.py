"""What an engine says about itself: every layer with its precision, blocks and bytes, and their shares.

It judges nothing: whether this is what was asked for is `audit`'s to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fourphase.engine.audit_rules import (
    holds_weights,
    is_moving,
    is_opaque,
    is_weighted,
    may_cast,
    precision_of,
    types_of,
)
from fourphase.engine.inspector import BITS, InspectedLayer, parse_inspection

__all__ = ["Audit", "LayerRecord", "read_inspector"]

_ORDER = ("fp32", "tf32", "bf16", "fp16", "fp8", "fp4", "int8", "int4", "mixed", "unknown")


@dataclass(frozen=True)
class LayerRecord:
    """One layer of the engine.

    Attributes:
        kind: NVIDIA's LayerType.
        precision: see `audit_rules.precision_of`.
        types: of the operands, sorted.
        role: "weighted", "opaque", "moving", "casting" (computes and casts inside) or "other".
        nodes: the ONNX nodes it names.
        blocks: theirs, in order.
        weighted_blocks: of those nodes that hold weights.
        output_bytes: of all outputs, without padding; an open axis counts as 1.
        weight_bytes: None where the engine does not tell.
    """

    name: str
    kind: str
    precision: str
    types: tuple[str, ...]
    role: str
    nodes: tuple[str, ...]
    blocks: tuple[str, ...]
    weighted_blocks: tuple[str, ...]
    output_bytes: int
    weight_bytes: int | None
    tactic: str


@dataclass(frozen=True)
class Audit:
    """What the engine says about itself.

    Attributes:
        dialect: "10" or "11", the inspector's.
        unknown: layers whose type was not understood, "name: words".
        unseen: ONNX nodes that by their names hold weights and that no weighted layer names.
        open_layers: how many layers have an open axis, so that their bytes are of one study.
        node_blocks: ONNX node -> block, as it was given.
    """

    dialect: str
    layers: tuple[LayerRecord, ...]
    unknown: tuple[str, ...]
    unseen: tuple[str, ...]
    open_layers: int
    node_blocks: Mapping[str, str]

    @property
    def by_precision(self) -> dict[str, dict[str, float]]:
        """precision -> {"layers", "share_of_layers", "bytes", "share_of_bytes"}; bytes are those of the outputs."""
        total = sum(layer.output_bytes for layer in self.layers)
        return {
            precision: {
                "layers": len(layers),
                "share_of_layers": len(layers) / len(self.layers),
                "bytes": sum(layer.output_bytes for layer in layers),
                "share_of_bytes": sum(layer.output_bytes for layer in layers) / total if total else 0.0,
            }
            for precision, layers in _grouped(self.layers).items()
        }

    @property
    def by_block(self) -> dict[str, dict[str, int]]:
        """block -> precision -> layers. A layer fused from several blocks counts in each."""
        blocks = dict.fromkeys(block for layer in self.layers for block in layer.blocks)
        return {
            block: {
                precision: len(layers)
                for precision, layers in _grouped([layer for layer in self.layers if block in layer.blocks]).items()
            }
            for block in blocks
        }

    @property
    def summary(self) -> str:
        """One line: "42 layers, of their bytes fp16 93%, fp32 7%", and loudly what the engine does not tell."""
        parts = [
            f"{precision} {share['share_of_bytes']:.0%}"
            for precision, share in self.by_precision.items()
            if share["bytes"]
        ]
        line = f"{len(self.layers)} layers, of their bytes {', '.join(parts) or 'nothing is told'}"
        loud = [
            f"{len(self.unknown)} TYPES UNKNOWN" if self.unknown else "",
            f"{len(self.unseen)} WEIGHTED NODES IN NO WEIGHTED LAYER" if self.unseen else "",
        ]
        return "; ".join(part for part in (line, *loud) if part)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "schema": "fourphase.audit/1",
            "dialect": self.dialect,
            "summary": self.summary,
            "by_precision": self.by_precision,
            "by_block": self.by_block,
            "unknown": list(self.unknown),
            "unseen": list(self.unseen),
            "open_layers": self.open_layers,
            "layers": [
                {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(layer).items()}
                for layer in self.layers
            ],
        }


def read_inspector(text: str, blocks: Mapping[str, str]) -> Audit:
    """The audit of one inspector answer.

    Args:
        text: what `get_engine_information` returns as JSON, of TensorRT 10 or 11.
        blocks: ONNX node name -> block.

    Raises: EngineBuildFailed (26) as `inspector.parse_inspection`.
    """
    inspection = parse_inspection(text)
    products = [layer for layer in inspection.layers if is_weighted(layer) or is_opaque(layer)]
    named = {node for layer in products for node in layer.nodes}
    values = [(layer, value) for layer in inspection.layers for value in (*layer.inputs, *layer.outputs)]
    return Audit(
        dialect=inspection.dialect,
        layers=tuple(_record(layer, blocks) for layer in inspection.layers),
        unknown=tuple(
            dict.fromkeys(f"{layer.name}: {value.wording}" for layer, value in values if value.precision == "unknown")
        ),
        unseen=tuple(node for node in blocks if node not in named and holds_weights(node)),
        open_layers=len({layer.name for layer, value in values if -1 in value.dims}),
        node_blocks=dict(blocks),
    )


def _record(layer: InspectedLayer, blocks: Mapping[str, str]) -> LayerRecord:
    weights = sum(value.bytes for value in layer.constants)
    if layer.weights is not None:
        weights += -(-layer.weights[1] * BITS[layer.weights[0]] // 8)
    return LayerRecord(
        name=layer.name,
        kind=layer.kind,
        precision=precision_of(layer),
        types=tuple(sorted(types_of(layer))),
        role=_role(layer),
        nodes=layer.nodes,
        blocks=_blocks_of(layer.nodes, blocks),
        weighted_blocks=_blocks_of([node for node in layer.nodes if holds_weights(node)], blocks),
        output_bytes=sum(value.bytes for value in layer.outputs),
        weight_bytes=weights if layer.constants or layer.weights else None,
        tactic=layer.tactic,
    )


def _blocks_of(nodes: Iterable[str], blocks: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(blocks[node] for node in nodes if node in blocks))


def _role(layer: InspectedLayer) -> str:
    tests = (("opaque", is_opaque), ("weighted", is_weighted), ("moving", is_moving), ("casting", may_cast))
    return next((role for role, test in tests if test(layer)), "other")


def _grouped(layers: Sequence[LayerRecord]) -> dict[str, list[LayerRecord]]:
    """precision -> layers: the floats first, what is no number of the network last."""
    found = dict.fromkeys((*_ORDER, *sorted({layer.precision for layer in layers})))
    groups = {precision: [layer for layer in layers if layer.precision == precision] for precision in found}
    return {precision: group for precision, group in groups.items() if group}
