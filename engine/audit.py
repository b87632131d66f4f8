"""Precision audit: does a built engine compute every block in the precision that was asked for?

TensorRT may lower, merge and cast in silence, and a graph typed wrongly builds without a word. The engine's inspector
tells the types of every layer's tensors; `inspector` reads it, `audit_rules` says what a layer computes in, and this
compares. What holds a precision:

- fp16: every weighted layer of the block has FP16 operands. Sums, reductions and activations may be FP32.
- int8: every weighted layer has INT8 operands, but for those named as exempt, which may be FP16.
- fp32: every weighted layer has FP32 operands and no TF32 tactic, and nothing else of the block that rounds works on
  lower types alone. Maxima and copies round nothing; a kernel that casts inside is taken to cast for this.

Casts, reformats and Q/DQ at the boundaries are none of these. A layer fused across blocks is held to the block of its
weighted node. What cannot be told is not taken as held: a weighted layer of unknown type, or a block none of whose
weighted nodes any weighted layer names, fails the audit. So do layers of operands that differ or of unknown type, once
they hold more than 5 % of the output bytes. One conclusion is drawn: weighted layers that name no node (those of a loop
may not) are those of the blocks not named, if all of these were asked for one precision; then they must have it.
It runs nothing: whether the numbers are right is for the self-check.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fourphase.engine.audit_record import Audit, LayerRecord, read_inspector
from fourphase.engine.audit_rules import holds_weights
from fourphase.runtime.errors import EngineBuildFailed, GPUUnavailable

__all__ = ["Audit", "Finding", "LayerRecord", "audit_engine", "findings", "read_inspector", "require_precision"]

#: Of the output bytes: more than this of unknown or untold precision is no audit.
_MOST_UNTOLD = 0.05
_LOWERED = frozenset({"fp16", "bf16", "fp8", "fp4", "int8", "int4"})
_ROWS = 20
_NAME_WIDTH = 36


@dataclass(frozen=True)
class Finding:
    """A layer that does not hold its block's precision (`told`), or that does not tell."""

    layer: LayerRecord
    block: str
    asked: str
    told: bool


def audit_engine(trt: Any, engine: Any, blocks: Mapping[str, str]) -> Audit:
    """Audits a deserialized engine that was built with detailed profiling verbosity.

    The inspector leaves out types and sizes that depend on the input's shape ("N/A due to dynamic shapes") unless it is
    given a context with shapes: those of the profile's optimum.

    Args:
        trt: the TensorRT module the engine is of.
        blocks: ONNX node name -> block.

    Raises: EngineBuildFailed (26) as `read_inspector`; GPUUnavailable (22) if there is no memory for a context.
    """
    context = engine.create_execution_context()
    if context is None:
        raise GPUUnavailable(
            "TensorRT could not create an execution context for the audit",
            "free GPU memory, or build with smaller shapes",
            key="gpu_out_of_memory",
        )
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            shape = engine.get_tensor_profile_shape(name, 0)[1]
            if not context.set_input_shape(name, shape):
                raise EngineBuildFailed(
                    f"the engine refused its own optimal shape for the input {name}",
                    "build the engine again",
                    key="audit_unreadable",
                )
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return read_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON), blocks)


def findings(audit: Audit, wanted: Mapping[str, str], exempt: Collection[str] = ()) -> tuple[Finding, ...]:
    """What does not hold, or does not tell; see the module for the rules. Args: as `require_precision`."""
    missing = _unseen_blocks(audit, wanted)
    nameless = {block: wanted[block] for block in missing or wanted}
    judged = (
        _judge_nameless(layer, nameless) if _is_nameless(layer) else _judge(layer, wanted, exempt)
        for layer in audit.layers
    )
    return tuple(finding for finding in judged if finding is not None)


def require_precision(audit: Audit, wanted: Mapping[str, str], exempt: Collection[str] = ()) -> None:
    """Passes if every block holds the precision asked for.

    Args:
        wanted: block -> "fp32", "fp16" or "int8"; blocks left out are not held to anything.
        exempt: ONNX nodes of int8 blocks that were not quantized (too small to pay) and may compute in FP16.

    Raises: EngineBuildFailed (26), key "precision_not_held" naming the blocks, with a table of the layers; key
        "audit_incomplete" if none is known to break its promise, but too much does not tell.
    """
    found = findings(audit, wanted, exempt)
    broken = [finding for finding in found if finding.told]
    if broken:
        raise _failed(
            "precision_not_held", f"the engine does not hold the precision asked for in {_blocks(broken)}", broken
        )
    missing = _unseen_blocks(audit, wanted)
    if missing and not _held_by_nameless(audit, wanted, missing):
        raise _failed(
            "audit_incomplete", f"no weighted layer of the engine names a node of {', '.join(missing)}", found
        )
    blind = [finding for finding in found if finding.layer.precision == "unknown"]
    if blind:
        raise _failed(
            "audit_incomplete", f"the engine does not tell the types of weighted layers in {_blocks(blind)}", blind
        )
    share = _untold_share(audit, found)
    if share > _MOST_UNTOLD:
        cause = f"{share:.1%} of the engine's bytes are of layers whose precision cannot be told"
        raise _failed("audit_incomplete", f"{cause}, more than {_MOST_UNTOLD:.0%}", found)


def _judge(layer: LayerRecord, wanted: Mapping[str, str], exempt: Collection[str]) -> Finding | None:
    if layer.role == "weighted":
        return _judge_weighted(layer, wanted, exempt)
    asked = [(block, wanted[block]) for block in layer.blocks if block in wanted]
    if layer.role == "opaque":
        # Its ends say what lies inside only where they agree with what was asked for all of it.
        unlike = [(block, precision) for block, precision in asked if layer.types != (precision,)]
        return Finding(layer, *unlike[0], told=False) if unlike else None
    full = bool(asked) and all(precision == "fp32" for _, precision in asked) and len(asked) == len(layer.blocks)
    if layer.role == "other" and full and layer.precision in _LOWERED:
        return Finding(layer, *asked[0], told=True)
    return None


def _judge_weighted(layer: LayerRecord, wanted: Mapping[str, str], exempt: Collection[str]) -> Finding | None:
    """The blocks of its weighted nodes are held to their word; where no name tells which, any of its blocks may be."""
    owners = layer.weighted_blocks
    asked = [(block, wanted[block]) for block in owners or layer.blocks if block in wanted]
    unlike = [pair for pair in asked if not _holds(layer, pair[1], exempt)]
    if not unlike or (not owners and len(unlike) < len(asked)):
        return None
    return Finding(layer, *unlike[0], told=_tells(layer, unlike[0][1]))


def _judge_nameless(layer: LayerRecord, candidates: Mapping[str, str]) -> Finding | None:
    """It may be of any of these blocks."""
    if not candidates or layer.precision in candidates.values():
        return None
    block, precision = next(iter(candidates.items()))
    return Finding(layer, block, precision, told=all(_tells(layer, other) for other in candidates.values()))


def _is_nameless(layer: LayerRecord) -> bool:
    return layer.role == "weighted" and not layer.blocks


def _held_by_nameless(audit: Audit, wanted: Mapping[str, str], missing: Sequence[str]) -> bool:
    """Whether the nameless layers can only be those of the blocks that no layer names, and hold their precision."""
    asked = {wanted[block] for block in missing}
    nameless = [layer for layer in audit.layers if _is_nameless(layer)]
    named = any(block in wanted for layer in audit.layers for block in layer.weighted_blocks)
    return named and len(asked) == 1 and bool(nameless) and all(layer.precision in asked for layer in nameless)


def _tells(layer: LayerRecord, asked: str) -> bool:
    """Whether its types exclude what was asked for."""
    return layer.precision != "unknown" and not (layer.precision == "mixed" and asked in layer.types)


def _holds(layer: LayerRecord, asked: str, exempt: Collection[str]) -> bool:
    if layer.precision == asked:
        return True
    products = [node for node in layer.nodes if holds_weights(node)]
    left_out = bool(products) and all(node in exempt for node in products)
    return asked == "int8" and layer.precision == "fp16" and left_out


def _unseen_blocks(audit: Audit, wanted: Mapping[str, str]) -> list[str]:
    """Blocks that hold weights, by their nodes' names, none of which a weighted layer names; all, if none is named."""
    if wanted and not any(block in wanted for layer in audit.layers for block in layer.blocks):
        return list(wanted)
    unseen = set(audit.unseen)
    weighted: dict[str, list[str]] = {}
    for node, block in audit.node_blocks.items():
        if block in wanted and holds_weights(node):
            weighted.setdefault(block, []).append(node)
    return [block for block, nodes in weighted.items() if unseen.issuperset(nodes)]


def _untold_share(audit: Audit, found: Sequence[Finding]) -> float:
    """The share of output bytes of layers of unknown type, and of those that do not tell."""
    silent = {finding.layer for finding in found if not finding.told}
    total = sum(layer.output_bytes for layer in audit.layers)
    untold = sum(layer.output_bytes for layer in audit.layers if layer in silent or layer.precision == "unknown")
    return untold / total if total else 0.0


def _blocks(found: Sequence[Finding]) -> str:
    """The blocks without their phases, and what they were asked for and are: "stage1 (int8 asked, fp32 found)"."""
    names = dict.fromkeys(
        f"{finding.block.partition('/')[0]} ({finding.asked} asked, {finding.layer.precision} found)"
        for finding in found
    )
    return ", ".join(names)


def _failed(key: str, cause: str, found: Sequence[Finding]) -> EngineBuildFailed:
    cures = {
        "precision_not_held": "ask for the precision found in these blocks, or use another TensorRT or --target",
        "audit_incomplete": "report it with the TensorRT version and the report of the build; the engine is not used",
    }
    return EngineBuildFailed(cause, cures[key], key=key, table=[_row(finding) for finding in found[:_ROWS]])


def _row(finding: Finding) -> dict[str, str]:
    layer = finding.layer
    name = "".join(sign if sign.isprintable() else "?" for sign in layer.name)
    if len(name) > _NAME_WIDTH:
        name = f"{name[: _NAME_WIDTH - 3]}..."
    precision = layer.precision if finding.told else f"{layer.precision}?"
    return {"block": finding.block, "asked": finding.asked, "found": precision, "layer": name}
