"""What an engine's layer computes in, told by the types of its operands: the rules of the precision audit.

Weighted is what multiplies by weights: convolutions, matrix products, the loop of a GRU. Its precision is that of its
operands, the activation and the weights; the residual that a convolution adds and its bias have no say. TensorRT 11
calls a convolution "correlation", and both 10 and 11 generate small matrix products as kernels ("kgen") whose names
tell the operations: `__myl_MulSum_myl0_8` with a constant matrix is one.

A tactic's name can accuse, never acquit: "tf32" in it makes an FP32 layer "tf32" (the types cannot tell), but no name
makes a layer FP16. Accumulators are no operands: `gemvx_f16f16_f32_f32` is FP16.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from fourphase.engine.inspector import InspectedLayer

__all__ = ["NUMERIC", "holds_weights", "is_moving", "is_opaque", "is_weighted", "may_cast", "precision_of", "types_of"]

#: The types that a network's values have. The others index, count and mask, and say nothing about precision.
NUMERIC = frozenset({"fp32", "fp16", "bf16", "fp8", "fp4", "int8", "int4", "unknown"})
_FLOATS = frozenset({"fp32", "fp16", "bf16"})
_CONVOLUTION = re.compile(r"conv(?!ert)|correlation", re.I)
_WEIGHTED = re.compile(r"conv(?!ert)|correlation|gemm|matmul|matrixmultiply|fullyconnected|rnn|lstm|gru|mha", re.I)
#: LayerTypes that only copy, cast, choose or wait.
_MOVING = re.compile(
    r"reformat|noop|shuffle|constant|copy|slice|concat|transpose|reshape|gather|memset|shape|wait|signal|cjmp|identity"
    r"|^cast$|quantize|maxpool",
    re.I,
)
#: Kernels made of several operations, which their names tell.
_GENERATED = re.compile(r"^(kgen|fusion)$", re.I)
_PRODUCT_TACTIC = re.compile(r"gemm|fprop|cutlass|cublas", re.I)
_OPERATIONS = re.compile(r"__myl_([A-Za-z]+?)(?:_|$)")
_PRODUCTS = frozenset({"Fc", "Gemm", "Conv", "Dot", "Matmul"})
_MOVES = frozenset({"Move", "Resh", "Tran", "Conc", "Slic", "Cast", "Repl", "Gath", "Spli", "Pad", "Copy"})
#: Ends a list of operations that was cut; a short list may end within a word ("MulSumAddCas").
_CUT = "Etc"
#: Node names that speak of weights; of a path the last part decides ("/gru/Sigmoid" does not).
_NODE_WITH_WEIGHTS = re.compile(r"conv(?!ert)|gemm|matmul|linear|gru|lstm|rnn", re.I)
_CAST_NODE = re.compile(r"(?<!broad)cast|\.to_fp\d+$", re.I)
#: Our own Q/DQ, casts and barriers carry the names of the values they stand at; exporters' carry the operator's.
_NODE_WITHOUT = re.compile(r"quantizelinear|\.(int8|dequantized|held|to_fp\d+)$", re.I)


def holds_weights(node: str) -> bool:
    """Whether an ONNX node multiplies by weights, as far as its name tells.

    >>> [holds_weights(name) for name in ("node_Conv_1961", "node_gru__1.0/MatMul_12", "node_gru__1.0/Sigmoid_3")]
    [True, True, False]
    """
    return bool(_NODE_WITH_WEIGHTS.search(node.rpartition("/")[2])) and not _NODE_WITHOUT.search(node)


def is_opaque(layer: InspectedLayer) -> bool:
    """Whether the layer is a whole region of the graph that tells only its ends: Myelin's ForeignNode."""
    return layer.name.startswith("{ForeignNode[") or layer.kind.lower() == "myelin"


def is_weighted(layer: InspectedLayer) -> bool:
    if is_opaque(layer):
        return False
    if not _GENERATED.search(layer.kind):
        return bool(_WEIGHTED.search(layer.kind))
    if _PRODUCT_TACTIC.search(layer.tactic):
        return True
    operations = _operations(layer)
    multiplies = bool(_PRODUCTS & set(operations)) or ("Mul", "Sum") in itertools.pairwise(operations)
    matrix = any(constant.is_matrix for constant in layer.constants)
    return (multiplies or _CUT in operations) and (matrix or any(map(holds_weights, layer.nodes)))


def is_moving(layer: InspectedLayer) -> bool:
    """Whether the layer rounds nothing but by a cast: copies, reformats, casts, Q/DQ, and maxima."""
    if _GENERATED.search(layer.kind):
        operations = _operations(layer)
        return bool(operations) and set(operations) <= _MOVES
    return bool(_MOVING.search(layer.kind)) or layer.pooling == "MAX"


def may_cast(layer: InspectedLayer) -> bool:
    """Whether a layer casts inside, by its operations or nodes, so that its ends do not tell what it computes in."""
    inside = (name == _CUT or name.startswith("Cas") for name in _operations(layer))
    return any(inside) or any(map(_CAST_NODE.search, layer.nodes))


def types_of(layer: InspectedLayer) -> frozenset[str]:
    """The numeric types of the operands, or of all inputs and outputs of what is not weighted."""
    if is_weighted(layer):
        return _activations(layer) | _weights(layer)
    return frozenset(value.precision for value in (*layer.inputs, *layer.outputs)) & NUMERIC


def precision_of(layer: InspectedLayer) -> str:
    """A key of `inspector.BITS`, or "tf32", "mixed", "none" (no values at all) or "other" (integers of several types).

    "mixed" means that the types do not tell: an FP16 value in, an FP32 value out, or operands that differ.
    """
    if is_weighted(layer):
        precision = _weighted_precision(layer)
        return "tf32" if precision == "fp32" and "tf32" in layer.tactic.lower() else precision
    types = types_of(layer)
    if types:
        return _one(types)
    others = {value.precision for value in (*layer.inputs, *layer.outputs)}
    return "none" if not others else others.pop() if len(others) == 1 else "other"


def _weighted_precision(layer: InspectedLayer) -> str:
    activations, weights = _activations(layer), _weights(layer)
    if "unknown" in activations | weights or not activations | weights:
        return "unknown"
    if len(weights) != 1:
        return _one(activations | weights)
    (weight,) = weights
    # A second operand of another type is a residual; the weights' own type among them is what is multiplied.
    if weight in activations or not activations:
        return weight
    # A strongly typed product has operands of one type: floats of another type are cast to it inside the kernel.
    inside = may_cast(layer) and weight in _FLOATS and activations <= _FLOATS
    return weight if inside else "mixed"


def _activations(layer: InspectedLayer) -> frozenset[str]:
    """A convolution's first input is what it convolves; of other products all inputs count.

    But for single values: a gemm has its factors alpha and beta among its inputs, FP32 also where the gemm is not.
    """
    inputs = layer.inputs[:1] if _CONVOLUTION.search(layer.kind) and not layer.kind.islower() else layer.inputs
    large = [value for value in inputs if value.elements > 1] or inputs
    return frozenset(value.precision for value in large) & NUMERIC


def _weights(layer: InspectedLayer) -> frozenset[str]:
    if layer.weights is not None:
        return frozenset({layer.weights[0]})
    return frozenset(constant.precision for constant in layer.constants if constant.is_matrix) & NUMERIC


def _operations(layer: InspectedLayer) -> list[str]:
    """`__myl_MulSumAddCas_myl0_0` -> Mul, Sum, Add, Cas; the tactic's name where the layer's tells none."""
    for name in (layer.name, layer.tactic):
        if found := _OPERATIONS.match(name):
            return re.findall(r"[A-Z][a-z0-9]*", found[1])
    return []


def _one(types: Iterable[str]) -> str:
    found = set(types)
    return "unknown" if "unknown" in found else found.pop() if len(found) == 1 else "mixed"
