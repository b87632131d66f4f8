"""ONNX bytes -> TensorRT network, by NVIDIA's own parser, whose errors are told in the words of our blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fourphase.runtime.errors import EngineBuildFailed
from fourphase.runtime.flavour import Flavour

__all__ = ["build_error", "parse_onnx"]


def parse_onnx(parser: Any, onnx: bytes, flavour: Flavour, blocks: Mapping[str, str]) -> None:
    """Feeds the parser; whatever it objects to is an error, also where it returns True.

    Raises: EngineBuildFailed (26) naming the node and its block.
    """
    if parser.parse(onnx) and parser.num_errors == 0:
        return
    rows = [_parser_error(parser.get_error(index), blocks) for index in range(parser.num_errors)]
    if not rows:
        raise build_error(f"the ONNX parser of {flavour.name} {flavour.version} refused the model without a reason")
    first = rows[0]
    where = f" at node {first['node']} ({first['operator']})" if first["operator"] else ""
    where += f" of block {first['block']}" if first["block"] else ""
    raise build_error(
        f"the ONNX parser of {flavour.name} {flavour.version} refused the model{where}: {first['reason']}",
        "change the named operator in the model, or use another --target; --target none keeps the ONNX only",
        key="parser_refused",
        table=rows,
    )


def build_error(
    cause: str,
    cure: str = "use another --target; --target none keeps the ONNX only",
    *,
    key: str | None = None,
    table: Sequence[dict[str, str]] = (),
) -> EngineBuildFailed:
    """The error of a failed build, with the cure that always remains."""
    return EngineBuildFailed(cause, cure, key=key, table=table)


def _parser_error(error: Any, blocks: Mapping[str, str]) -> dict[str, str]:
    node = error.node_name()
    return {
        "node": node or (f"number {error.node()}" if error.node() >= 0 else "none"),
        "operator": error.node_operator(),
        "block": blocks.get(node, ""),
        "reason": f"{error.code().name}: {' '.join(error.desc().split())}",
    }
