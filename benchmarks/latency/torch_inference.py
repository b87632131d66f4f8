"""A PyTorch network as an inference that can be timed: eager, compiled, or captured into a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fourphase.benchmarks.latency.candidate import Task
from fourphase.benchmarks.latency.runtimes import Loaded, no_memory
from fourphase.benchmarks.latency.studies import studies_of
from fourphase.benchmarks.latency.torch_timer import Inference, Transfers, own_stream, timed, use_strict_fp32

__all__ = ["inference_of", "load_torch", "run_once"]

Floats = NDArray[np.float32]

_CAPTURE_WARMUPS = 3
_NAMES = ("logits", "phase_logits")


def load_torch(task: Task, way: str) -> Loaded:
    """The task's network in PyTorch, run once. `way`: "eager", "compile" or "cuda-graph"."""
    use_strict_fp32()
    torch.set_num_threads(task.threads)
    device = torch.device(task.device)
    study = torch.from_numpy(studies_of(Path(task.bundle), task.batch))
    module = task.torch_module().to(device)
    if task.precision == "fp16":
        module, study = module.half(), study.half()
    stream, transfers = own_stream(device), Transfers(study, device)
    if stream is not None:
        torch.cuda.synchronize()  # weights and buffers were made on another stream
    inference = inference_of(module, transfers, way, stream)
    outputs = run_once(inference, transfers, stream)
    named = dict(zip(_NAMES, outputs, strict=False))
    return Loaded(timed(inference, stream), named, _device_peak if stream is not None else no_memory)


def run_once(inference: Inference, transfers: Transfers, stream: torch.cuda.Stream | None) -> list[Floats]:
    """Runs it to its end; the outputs as float32 arrays of the host that nobody else writes to."""
    if stream is None:
        inference()
    else:
        with torch.cuda.stream(stream):
            inference()
        stream.synchronize()
    return [output.float().numpy().copy() for output in transfers.outputs]


def inference_of(module: nn.Module, transfers: Transfers, way: str, stream: torch.cuda.Stream | None) -> Inference:
    """One inference of the module over the transfers' buffers; a CUDA graph needs a stream."""
    forward = torch.compile(module, dynamic=False) if way == "compile" else module
    if way == "cuda-graph":
        assert stream is not None
        return _captured(module, transfers, stream)
    results: list[Tensor] = []

    def compute() -> None:
        with torch.no_grad():
            results[:] = _flat(forward(transfers.input))

    return Inference(transfers.upload, compute, lambda: transfers.download(results))


def _captured(module: nn.Module, transfers: Transfers, stream: torch.cuda.Stream) -> Inference:
    """The forward pass as a CUDA graph over the transfers' input buffer."""
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.stream(stream):
        transfers.upload()
        for _ in range(_CAPTURE_WARMUPS):
            module(transfers.input)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            results = _flat(module(transfers.input))
    replay: Callable[[], None] = graph.replay
    return Inference(transfers.upload, replay, lambda: transfers.download(results))


def _flat(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _device_peak() -> int | None:
    return torch.cuda.max_memory_allocated()
