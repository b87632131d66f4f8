"""Times one inference whose buffers are torch tensors: by CUDA events on a GPU, by the host's clock on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fourphase.benchmarks.latency.statistics import Sample

__all__ = ["Inference", "Transfers", "own_stream", "timed", "use_strict_fp32"]


@dataclass(frozen=True, eq=False)
class Inference:
    """trtexec's three parts of an inference; on a GPU each only enqueues work on the current stream."""

    upload: Callable[[], None]
    compute: Callable[[], None]
    download: Callable[[], None]

    def __call__(self) -> None:
        self.upload()
        self.compute()
        self.download()


class Transfers:
    """Pinned host memory on both ends of an inference, and the copies between it and the device's buffers.

    On the CPU there is nothing to copy to: the input is used where it lies, and `outputs` are the results themselves.
    """

    def __init__(self, study: Tensor, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.host = study.contiguous().pin_memory() if self.on_gpu else study
        self.input = torch.empty_like(study, device=device) if self.on_gpu else study
        self.outputs: list[Tensor] = []

    def upload(self) -> None:
        if self.on_gpu:
            self.input.copy_(self.host, non_blocking=True)

    def download(self, results: Sequence[Tensor]) -> None:
        if not self.on_gpu:
            self.outputs = list(results)
            return
        if not self.outputs:
            self.outputs = [torch.empty_like(result, device="cpu").pin_memory() for result in results]
        for host, result in zip(self.outputs, results, strict=True):
            host.copy_(result, non_blocking=True)


def own_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A new stream (the default one costs extra synchronisation); None on the CPU."""
    if device.type == "cpu":
        return None
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


def timed(inference: Inference, stream: torch.cuda.Stream | None) -> Callable[[], Sample]:
    """A function that runs the inference once, to its end, and returns its times; `stream` is None on the CPU."""
    return _timed_on_cpu(inference) if stream is None else _timed_on_gpu(inference, stream)


def use_strict_fp32() -> None:
    """FP32 means FP32: no TF32 in convolutions, GRU or matrix products. Fixed shapes, so cuDNN may choose by trial."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def _timed_on_cpu(inference: Inference) -> Callable[[], Sample]:
    def once() -> Sample:
        inference.upload()
        started = time.perf_counter()
        inference.compute()
        ended = time.perf_counter()
        inference.download()
        return Sample(1e3 * (ended - started))

    return once


def _timed_on_gpu(inference: Inference, stream: torch.cuda.Stream) -> Callable[[], Sample]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]  # type: ignore[no-untyped-call]
    start, uploaded, computed, downloaded = events

    def once() -> Sample:
        with torch.cuda.stream(stream):
            start.record(stream)
            inference.upload()
            uploaded.record(stream)
            enqueue_started = time.perf_counter()
            inference.compute()
            enqueued = time.perf_counter()
            computed.record(stream)
            inference.download()
            downloaded.record(stream)
        downloaded.synchronize()
        return Sample(
            compute_ms=uploaded.elapsed_time(computed),
            h2d_ms=start.elapsed_time(uploaded),
            d2h_ms=computed.elapsed_time(downloaded),
            enqueue_ms=1e3 * (enqueued - enqueue_started),
        )

    return once
