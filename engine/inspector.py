"""The engine inspector's JSON -> layers with typed tensors, in the dialects of TensorRT 10 and 11.

Only reading: what a layer computes in is `audit_rules`' to say, whether that was asked for `audit`'s. 10 lists
"Bindings", 11 "I/O Tensors"; the rest is read key by key, not by version:

- a tensor's type: "Format/Datatype" (10: "Half", or a sentence, "Thirty-two wide channel vectorized row major Int8
  format"), or "Datatype" beside "Format" (11);
- weights: "Weights": {"Type", "Count"} (convolutions of 10), among the inputs (Myelin's layers of early 10), not at all
  (of late 10), or as "Constants" (11).

Bytes are elements times their size; padding of vectorised formats is left out. An open axis (-1) counts as 1.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fourphase.runtime.errors import EngineBuildFailed

__all__ = ["BITS", "InspectedLayer", "InspectedTensor", "Inspection", "parse_inspection", "precision_named"]

#: Bits of one element. What is not understood counts as the widest float: too many bytes rather than too few.
BITS: Mapping[str, int] = MappingProxyType(
    {
        "fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "fp4": 4, "int8": 8, "int4": 4, "uint8": 8, "bool": 8,
        "int32": 32, "int64": 64, "uint64": 64, "unknown": 32,
    }
)  # fmt: skip
#: Words of NVIDIA's type descriptions, whole words only, so that "Float" is not found in "Float8".
_WORDS = (
    (re.compile(r"\b(bf16|bfloat16|bfloat)\b", re.I), "bf16"),
    (re.compile(r"\b(fp16|half|float16)\b", re.I), "fp16"),
    (re.compile(r"\b(fp32|float|float32)\b", re.I), "fp32"),
    (re.compile(r"\b(fp8|float8|fp8e4m3|e4m3|e5m2)\b", re.I), "fp8"),
    (re.compile(r"\b(fp4|float4|fp4e2m1|e2m1)\b", re.I), "fp4"),
    (re.compile(r"\bint8\b", re.I), "int8"),
    (re.compile(r"\bint4\b", re.I), "int4"),
    (re.compile(r"\bint32\b", re.I), "int32"),
    (re.compile(r"\bint64\b", re.I), "int64"),
    (re.compile(r"\buint8\b", re.I), "uint8"),
    (re.compile(r"\buint64\b", re.I), "uint64"),
    (re.compile(r"\bbool\b", re.I), "bool"),
)
_TYPE_KEYS = ("Datatype", "DataType", "Format/Datatype", "Format/DataType")
#: How Myelin names constants among the inputs: `__mye595_dconst`, `__mye1002dconst_myl0`, `bias_constantHalf`.
_CONSTANT = re.compile(r"(dconst|_const|_constant[A-Z]\w*?)(_myl\d+)?$")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\[ONNX Layer: |$)")
#: What TensorRT puts behind a node's name: the profile, the Myelin region and the number within it.
_SUFFIX = re.compile(r"( \[profile \d+\])?(_myl\d+_\d+)?$")
_LARGEST_DIMENSION = 2**31 - 1


@dataclass(frozen=True)
class InspectedTensor:
    """A tensor of a layer.

    Attributes:
        dims: as told; -1 is an open axis.
        precision: a key of `BITS`.
        wording: NVIDIA's words for its type.
    """

    name: str
    dims: tuple[int, ...]
    precision: str
    wording: str

    @property
    def elements(self) -> int:
        return math.prod(1 if size == -1 else size for size in self.dims)

    @property
    def bytes(self) -> int:
        return -(-self.elements * BITS[self.precision] // 8)

    @property
    def is_matrix(self) -> bool:
        """Whether at least two axes are longer than one: a weight, where a bias or a scale has one."""
        return sum(size > 1 for size in self.dims) >= 2


@dataclass(frozen=True)
class InspectedLayer:
    """One layer of an engine.

    Attributes:
        kind: NVIDIA's LayerType.
        nodes: the ONNX nodes it was made of, as far as it tells.
        inputs: without constants.
        constants: those it tells.
        weights: (precision, count) of a convolution that tells them that way, else None.
        pooling: "MAX", "AVERAGE", or "" for what does not pool.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[InspectedTensor, ...]
    outputs: tuple[InspectedTensor, ...]
    constants: tuple[InspectedTensor, ...]
    weights: tuple[str, int] | None
    pooling: str
    tactic: str


@dataclass(frozen=True)
class Inspection:
    """All layers; `dialect` is "10" or "11"."""

    dialect: str
    layers: tuple[InspectedLayer, ...]


def precision_named(wording: str) -> str:
    """NVIDIA's words for a type -> "fp16" and so on; "unknown" if no type is named, or several are.

    >>> precision_named("Thirty-two wide channel vectorized row major Int8 format")
    'int8'
    >>> precision_named("N/A due to dynamic shapes")
    'unknown'
    """
    named = {precision for pattern, precision in _WORDS if pattern.search(wording)}
    return named.pop() if len(named) == 1 else "unknown"


def parse_inspection(text: str) -> Inspection:
    """Reads what `get_engine_information` returns as JSON.

    Raises: EngineBuildFailed (26), key "audit_not_detailed" for an engine built with layer names only,
        "audit_unreadable" for whatever is neither dialect, naming the layer and the key.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise _unreadable("the engine inspector's answer is not JSON") from None
    if not isinstance(body, dict):
        raise _unreadable("the engine inspector's answer is not a JSON object")
    layers = body.get("Layers")
    if not isinstance(layers, list):
        raise _unreadable('the engine inspector\'s answer has no list "Layers"')
    if not layers or any(isinstance(layer, str) for layer in layers):
        raise EngineBuildFailed(
            "the engine tells at most its layers' names: it was not built with detailed profiling verbosity",
            "build the engine again with this version of fp-export build-engine",
            key="audit_not_detailed",
        )
    return Inspection(_dialect(body), tuple(_layer(layer, f"layer {index}") for index, layer in enumerate(layers)))


def _dialect(body: Mapping[str, Any]) -> str:
    found = [dialect for key, dialect in (("Bindings", "10"), ("I/O Tensors", "11")) if isinstance(body.get(key), list)]
    if len(found) != 1:
        raise _unreadable('the engine inspector\'s answer has neither "Bindings" nor "I/O Tensors" alone')
    return found[0]


def _layer(body: Any, where: str) -> InspectedLayer:
    name, kind = _text(body, "Name", where), _text(body, "LayerType", where)
    inputs, outputs = _tensors(body, "Inputs", where), _tensors(body, "Outputs", where)
    constants = [*(_tensors(body, "Constants", where) if "Constants" in body else ())]
    constants += [value for value in inputs if _CONSTANT.search(value.name)]
    metadata = body.get("Metadata", "")
    return InspectedLayer(
        name=name,
        kind=kind,
        nodes=_nodes(metadata if isinstance(metadata, str) else "", name),
        inputs=tuple(value for value in inputs if not _CONSTANT.search(value.name)),
        outputs=outputs,
        constants=tuple(constants),
        weights=_weights(body, where),
        pooling=str(body.get("PoolingType", "")),
        tactic=str(body.get("TacticName", "")),
    )


def _nodes(metadata: str, name: str) -> tuple[str, ...]:
    """The nodes of the metadata; without any, those the layer's name is made of: "a + b", "{ForeignNode[a...b]}"."""
    pieces = re.split("[\x1e\x1f]", metadata)
    nodes = [node for piece in pieces for node in _NODE.findall(piece.strip())]
    if not nodes:
        foreign = re.fullmatch(r"\{ForeignNode\[(.*)\.\.\.(.*)\]\}", _SUFFIX.sub("", name))
        parts = foreign.groups() if foreign else re.split(r" \+ | \|\| ", name)
        nodes = [_SUFFIX.sub("", part) for part in parts]
    return tuple(dict.fromkeys(nodes))


def _tensors(body: Mapping[str, Any], key: str, where: str) -> tuple[InspectedTensor, ...]:
    values = body.get(key)
    if not isinstance(values, list):
        raise _unreadable(f'{where} of the engine inspector\'s answer has no list "{key}"')
    return tuple(_tensor(value, f"{key} of {where}") for value in values)


def _tensor(body: Any, where: str) -> InspectedTensor:
    name = _text(body, "Name", where)
    wording = next((body[key] for key in _TYPE_KEYS if isinstance(body.get(key), str)), "")
    dims = body.get("Dimensions")
    if not isinstance(dims, list) or not all(type(size) is int and -1 <= size <= _LARGEST_DIMENSION for size in dims):
        raise _unreadable(f"the engine inspector's answer has a tensor without dimensions in the {where}")
    return InspectedTensor(name, tuple(dims), precision_named(wording), wording)


def _weights(body: Mapping[str, Any], where: str) -> tuple[str, int] | None:
    weights = body.get("Weights")
    if weights is None:
        return None
    count = weights.get("Count") if isinstance(weights, dict) else None
    if not isinstance(weights, dict) or type(count) is not int or not count >= 0:
        raise _unreadable(f'{where} of the engine inspector\'s answer has "Weights" without "Count"')
    # A convolution whose filter is an input tells none.
    return (precision_named(str(weights.get("Type", ""))), count) if count else None


def _text(body: Any, key: str, where: str) -> str:
    value = body.get(key) if isinstance(body, dict) else None
    if not isinstance(value, str):
        raise _unreadable(f'the engine inspector\'s answer has no "{key}" in {where}')
    return value


def _unreadable(cause: str) -> EngineBuildFailed:
    return EngineBuildFailed(
        cause,
        "report it with the TensorRT version; this version reads the inspector of TensorRT 10.3 to 11.4",
        key="audit_unreadable",
    )
