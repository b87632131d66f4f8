"""Builds one model of a kit with TensorRT or TensorRT for RTX, runs it on this GPU and compares it with PyTorch FP32.

The engine that is timed is the one that was compared: nothing marked, at one study and at the profile's maximum. Its
buffers are torch CUDA tensors; the product's own GPU runtime is not involved.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fourphase.benchmarks.differences import FP32_RTOL, difference
from fourphase.benchmarks.gpu_kit import BATCH, KitModel, load_kit_model
from fourphase.benchmarks.guarded_steps import Outcome, Save
from fourphase.benchmarks.latency_stats import QUICK, Protocol, Sample, measure_interleaved, statistics
from fourphase.benchmarks.torch_timer import Inference, Transfers, own_stream, timed
from fourphase.engine.build import EnginePlan, build_engine
from fourphase.engine.options import BuildOptions, EngineSource
from fourphase.runtime.cuda import probe
from fourphase.runtime.flavour import FLAVOURS, Flavour, load_flavour
from fourphase.runtime.trt_logger import BuildLog, logger_of

__all__ = ["EngineOnTensors", "check_model"]

Floats = NDArray[np.float32]


def check_model(
    save: Save, *, kit: str, model: str, target: str, capability: str | None, device: str, quick: bool
) -> Outcome:
    """Builds, runs, compares and times one model.

    Args:
        model: one of gpu_kit.MODELS.
        target: "tensorrt" or "tensorrt-rtx".
        capability: the compute capability to build for; None for the GPU at hand.

    Result: `version`, `build`, `comparisons` (one per batch size), `rows` (one per batch size, as in torch_latency)
        and `cost`. Without a GPU only the build of TensorRT for RTX is rehearsed.
    """
    if importlib.util.find_spec(FLAVOURS[target]) is None:
        return Outcome("skipped", f"the Python module {FLAVOURS[target]} is not installed")
    gpu = probe()
    if device == "cpu" and target == "tensorrt":
        return Outcome("skipped", "TensorRT is used on a CUDA device only")
    flavour, content = load_flavour(target), load_kit_model(Path(kit), model)
    result: dict[str, Any] = {"flavour": target, "version": flavour.version, "model": model, "cost": content.cost}
    save(result)
    options = BuildOptions(batch=content.profile, compute_capabilities=(capability,) if capability else ())
    built = build_engine(EngineSource(content.onnx, "fp32"), target, options)
    result["build"] = _build_record(built)
    save(result)
    if device == "cpu":
        return Outcome("skipped", f"built, not run: {gpu.reason}", result)
    engine = EngineOnTensors(flavour, built.plan)
    result |= {"comparisons": [], "rows": []}
    for batch in (1, BATCH):
        result["comparisons"].append({"batch": batch, **_compared(engine, content, batch)})
        save(result)
    wrong = [entry["batch"] for entry in result["comparisons"] if not entry["passed"]]
    if wrong:
        return Outcome("failed", f"off PyTorch FP32 at batch {', '.join(map(str, wrong))}", result)
    result["rows"] = _timed_rows(engine, content, target, quick)
    return Outcome("ok", result=result)


def _build_record(built: EnginePlan) -> dict[str, Any]:
    kept = ("compute_capabilities", "profile", "flags", "build_seconds", "warnings")
    return {"plan_bytes": len(built.plan), **{name: built.meta[name] for name in kept}}


def _compared(engine: EngineOnTensors, content: KitModel, batch: int) -> dict[str, Any]:
    """One inference against the reference; TensorRT for RTX compiles kernels in the first one of a shape."""
    inputs, reference = content.studies(batch)
    started = time.perf_counter()
    outputs = engine.infer(inputs)
    seconds = time.perf_counter() - started
    found = difference(outputs, reference)
    passed = found["relative"] is not None and found["relative"] <= FP32_RTOL
    return {**found, "allowed": FP32_RTOL, "passed": passed, "first_run_s": round(seconds, 3)}


def _timed_rows(engine: EngineOnTensors, content: KitModel, target: str, quick: bool) -> list[dict[str, Any]]:
    protocol = QUICK if quick else Protocol()
    rows = []
    for batch in (1, BATCH):
        candidate = engine.candidate(content.studies(batch)[0])
        measurement = measure_interleaved({target: candidate}, protocol)[target]
        if measurement.error:
            raise measurement.error
        row = {"variant": f"{target} fp32", "precision": "fp32", "batch": batch, "status": "ok"}
        rows.append({**row, "statistics": statistics(measurement, batch)})
    return rows


class EngineOnTensors:
    """A deserialized engine that reads and writes torch tensors on its own stream.

    Every status of TensorRT is checked, and what its logger said is in the error.
    """

    def __init__(self, flavour: Flavour, plan: bytes, device: str = "cuda") -> None:
        """Raises: RuntimeError if the plan is refused on this machine."""
        self.trt = trt = flavour.trt
        self.log: BuildLog = logger_of(flavour)
        self.device = torch.device(device)
        self.stream = own_stream(self.device)
        self.runtime = runtime = trt.Runtime(self.log)
        self.engine = engine = self._checked(runtime.deserialize_cuda_engine(plan), "the plan was not deserialized")
        self.context = self._checked(engine.create_execution_context(), "no execution context was created")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]
        for name in names:
            self._checked(engine.get_tensor_dtype(name) == trt.DataType.FLOAT, f"{name} is not float32")

    def infer(self, inputs: Mapping[str, Floats]) -> dict[str, Floats]:
        """Runs once: host arrays in, new host arrays out."""
        on_device = {name: torch.from_numpy(value).to(self.device) for name, value in inputs.items()}
        outputs = self._bind(on_device)
        self._synchronize()  # the inputs were copied on another stream
        self._enqueue()
        self._synchronize()
        return {name: value.cpu().numpy() for name, value in outputs.items()}

    def candidate(self, inputs: Mapping[str, Floats]) -> Callable[[], Sample]:
        """A function that runs once, copies from and to the host included, and returns its times."""
        (name,) = self.inputs
        transfers = Transfers(torch.from_numpy(inputs[name]), self.device)
        outputs = self._bind({name: transfers.input})
        self._synchronize()
        results = [outputs[name] for name in self.outputs]
        return timed(Inference(transfers.upload, self._enqueue, lambda: transfers.download(results)), self.stream)

    def _bind(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sets shapes and addresses; the caller keeps the tensors alive while the engine runs."""
        context = self.context
        for name in self.inputs:
            self._checked(context.set_input_shape(name, tuple(inputs[name].shape)), f"{name} refuses its shape")
            self._checked(context.set_tensor_address(name, inputs[name].data_ptr()), f"{name} refuses its address")
        missing = context.infer_shapes()
        self._checked(not missing, f"shapes are unknown for {missing}")
        outputs = {}
        for name in self.outputs:
            # NaN, so that what the engine leaves unwritten is seen.
            output = torch.full(tuple(context.get_tensor_shape(name)), torch.nan, device=self.device)
            self._checked(context.set_tensor_address(name, output.data_ptr()), f"{name} refuses its address")
            outputs[name] = output
        return outputs

    def _enqueue(self) -> None:
        context = self.context
        handle = self.stream.cuda_stream if self.stream else 0
        self._checked(context.execute_async_v3(handle), "execute_async_v3 returned False")

    def _synchronize(self) -> None:
        if self.stream:
            torch.cuda.synchronize()

    def _checked(self, value: Any, problem: str) -> Any:
        """The value, or an error with every line TensorRT logged if it is None or False."""
        if value is None or value is False:
            said = "; ".join(self.log.texts("error")) or "TensorRT gave no reason"
            raise RuntimeError(f"{problem}: {said}")
        return value
