"""ONNX Runtime on the CPU, set up the same way wherever this room runs a graph."""

from __future__ import annotations

from typing import Any

__all__ = ["cpu_session"]

#: Messages below errors would repeat what nobody can act on.
_ERRORS_ONLY = 3


def cpu_session(model: bytes, *, optimize: bool = True) -> Any:
    """An `onnxruntime.InferenceSession`.

    Args:
        optimize: False keeps every node, so that no cast is folded away and every value can be seen.

    It has as many threads as PyTorch may use here. They sleep while they wait: on a machine with other work, spinning
    threads slow each other down many times over.
    """
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.use_deterministic_compute = True
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
