"""Any ONNX graph in ONNX Runtime or OpenVINO on the CPU, set up as the product's backends are. No torch here.

The backends themselves take a bundle's network only; here a graph has any inputs and outputs. FP32 throughout.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime import onnxruntime_backend, openvino_backend

__all__ = ["CPU_RUNTIMES", "LoadedGraph", "load_graph", "usable_threads", "why_missing"]

Floats = NDArray[np.float32]
Run = Callable[[Mapping[str, Floats]], dict[str, Floats]]

CPU_RUNTIMES = ("onnxruntime", "openvino")
_BACKENDS = MappingProxyType({"onnxruntime": onnxruntime_backend, "openvino": openvino_backend})
#: Messages of severity below 4 (fatal) would repeat on stderr what the exception says.
_FATAL_ONLY = 4


@dataclass(frozen=True, eq=False)
class LoadedGraph:
    """A graph that is ready to run.

    Attributes:
        run: input name -> array in, output name -> new array out.
        prepare_s: from the model's bytes to here; the import of the package is not in it.
        layers: what the runtime made of the nodes, where it tells.
    """

    run: Run
    prepare_s: float
    layers: int | None = None


def usable_threads() -> int:
    """The cores this process may use: as many threads as the product's backends take."""
    return len(os.sched_getaffinity(0))


def why_missing(runtime: str) -> str:
    """Why a runtime of CPU_RUNTIMES cannot be used here, "" if it can."""
    backend = _BACKENDS[runtime]
    return "" if backend.is_available() else f"{' and '.join(backend.REQUIREMENTS)} is not installed"


def load_graph(runtime: str, model: bytes) -> LoadedGraph:
    """Loads the bytes of an ONNX model. Raises: what the runtime raises for a model that it does not take."""
    return _in_onnxruntime(model) if runtime == "onnxruntime" else _in_openvino(model)


def _in_onnxruntime(model: bytes) -> LoadedGraph:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_threads()
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = _FATAL_ONLY
    started = time.perf_counter()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    seconds = time.perf_counter() - started
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Floats]) -> dict[str, Floats]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return LoadedGraph(run, seconds)


def _in_openvino(model: bytes) -> LoadedGraph:
    openvino = openvino_backend.package()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": usable_threads(),
    }
    core = openvino.Core()
    started = time.perf_counter()
    compiled = core.compile_model(core.read_model(model, b""), "CPU", options)
    request = compiled.create_infer_request()
    seconds = time.perf_counter() - started
    names = [output.get_any_name() for output in compiled.outputs]

    def run(inputs: Mapping[str, Floats]) -> dict[str, Floats]:
        found: Any = request.infer(dict(inputs))
        # OpenVINO gives views of buffers that the next inference overwrites.
        return {name: np.array(found[name]) for name in names}

    return LoadedGraph(run, seconds, len(compiled.get_runtime_model().get_ops()))
