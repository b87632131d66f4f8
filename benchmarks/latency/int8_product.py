"""A large int8 matrix product on the CPU, by OpenVINO: the same kernels that its int8 networks run on.

Its input is quantised from FP32 and its result is FP32, as at the ends of a network: work that grows with the edge
squared beside the product's cube, and part of what is measured, so the rate found is rather too low than too high.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from fourphase.runtime import openvino_backend

__all__ = ["int8_product", "why_no_int8"]

_OPSET = 20


def why_no_int8() -> str | None:
    """Why no int8 rate is measured here; None if one is."""
    if not openvino_backend.is_available():
        return f"the package {openvino_backend.REQUIREMENTS[0]} is not installed"
    return openvino_backend.why_not("int8")


def int8_product(edge: int) -> Callable[[], None]:
    """A function that multiplies two matrices of that edge, symmetric int8, weights per channel."""
    core = openvino_backend.package().Core()
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0))}
    compiled = core.compile_model(core.read_model(_model(edge), b""), "CPU", options)
    request = compiled.create_infer_request()
    values = np.random.default_rng(0).standard_normal((edge, edge), np.float32)

    def multiply() -> None:
        request.infer({"x": values}, share_inputs=True, share_outputs=True)

    return multiply


def _model(edge: int) -> bytes:
    """x -> Q -> DQ -> MatMul with int8 weights -> DQ, as `calibration.qdq` writes it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)
    weights = random.integers(-127, 128, (edge, edge), np.int8)
    constants = {
        "scale": np.float32(4 / 127),
        "zero": np.int8(0),
        "weights": weights,
        "weight_scales": np.full(edge, 1 / 127, np.float32),
        "weight_zeros": np.zeros(edge, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["weights", "weight_scales", "weight_zeros"], ["w"], axis=1),
        helper.make_node("MatMul", ["rounded", "w"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [edge, edge]) for name in ("x", "y")]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "int8_product", ends[:1], ends[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
