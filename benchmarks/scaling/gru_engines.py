"""The GRU's two forms as TensorRT engines, by the product's builder; run on torch's tensors where there is a GPU.

Without a GPU, TensorRT for RTX still builds: seconds, bytes and layers are then real, and there is no latency.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.latency.statistics import Sample
from fourphase.benchmarks.latency.worker import why_failed
from fourphase.benchmarks.scaling.gru_graphs import INPUT, OUTPUT, GruGraphs, why_wrong
from fourphase.benchmarks.scaling.gru_table import GruRow
from fourphase.engine.build import build_engine
from fourphase.engine.options import BuildOptions, EngineSource
from fourphase.engine.parse import parse_onnx
from fourphase.runtime.errors import EngineBuildFailed, EnvironmentFault, GPUUnavailable
from fourphase.runtime.flavour import Flavour, load_flavour
from fourphase.runtime.trt_logger import logger_of

__all__ = ["ENGINE_RUNTIMES", "EngineBudget", "gru_engine"]

Floats = NDArray[np.float32]

ENGINE_RUNTIMES = ("tensorrt", "tensorrt-rtx")


@dataclass
class EngineBudget:
    """Seconds that may be spent on building: an unrolled GRU of 256 steps alone takes half a minute."""

    allowed_s: float
    spent_s: float = 0.0

    def why_spent(self) -> str:
        """Why no further engine is built, "" if one may be."""
        if self.spent_s < self.allowed_s:
            return ""
        return f"not built: {self.spent_s:.0f} s went into engines, {self.allowed_s:g} s were allowed"


def gru_engine(row: GruRow, graphs: GruGraphs, budget: EngineBudget) -> tuple[GruRow, Callable[[], Sample] | None]:
    """Builds the engine of a row's form, and runs it where there is a GPU.

    Returns: the row as it stands now, and what runs the engine once; None without a GPU, or if it gave a wrong state.
    """
    try:
        flavour = load_flavour(row.runtime)
    except (EnvironmentFault, GPUUnavailable) as fault:
        return replace(row, status="missing", reason=fault.message), None
    spent = budget.why_spent()
    if spent:
        return replace(row, status="not measured", reason=spent), None
    model = graphs.models[row.form].SerializeToString()
    started = time.monotonic()
    try:
        built = build_engine(EngineSource(model, "fp32"), row.runtime, BuildOptions(batch=(1, 1, 1)))
    except EngineBuildFailed as fault:
        return replace(row, status="failed", reason=fault.message), None
    finally:
        # Also of a build that failed: its time is gone, too.
        budget.spent_s += time.monotonic() - started
    seconds = float(built.meta["build_seconds"])
    row = replace(row, prepare_s=seconds, plan_bytes=len(built.plan), layers=parsed_layers(flavour, model))
    if flavour.gpu.device is None:
        return replace(row, status="not measured", reason=f"built, not run: {flavour.gpu.reason}"), None
    return _on_gpu(row, flavour, built.plan, graphs)


def parsed_layers(flavour: Flavour, model: bytes) -> int:
    """Layers that TensorRT's parser makes of the graph, before the builder fuses them. Raises: EngineBuildFailed."""
    trt = flavour.trt
    builder = trt.Builder(logger_of(flavour))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger_of(flavour))
    parse_onnx(parser, model, flavour, {})
    return int(network.num_layers)


def _on_gpu(
    row: GruRow, flavour: Flavour, plan: bytes, graphs: GruGraphs
) -> tuple[GruRow, Callable[[], Sample] | None]:
    from fourphase.benchmarks.gpu.engine_on_tensors import EngineOnTensors

    inputs = {INPUT: graphs.sequence}
    try:
        engine = EngineOnTensors(flavour, plan)
        found, wrong = why_wrong(engine.infer(inputs)[OUTPUT], graphs.reference)
        row = replace(row, difference=found)
        if wrong:
            return replace(row, status="failed", reason=wrong), None
        return row, engine.candidate(inputs)
    except RuntimeError as error:
        return replace(row, status="failed", reason=why_failed(error)["reason"]), None
