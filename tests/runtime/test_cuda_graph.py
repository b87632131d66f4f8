"""Graphs by the names of cuda-python's bindings, on a stand-in: used only if equal, every status checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fourphase.runtime.cuda_buffers import DeviceMemory
from fourphase.runtime.cuda_context import Gpu, open_gpu
from fourphase.runtime.cuda_graph import GraphUnavailable, Repeated, capture
from fourphase.runtime.errors import GPUUnavailable
from tests.support.fake_cuda import FakeCuda, FakeStream

OOM, INVALIDATED = "CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    yield FakeCuda().install(monkeypatch)
    open_gpu.cache_clear()


@pytest.fixture
def gpu(cuda: FakeCuda) -> Iterator[Gpu]:
    with open_gpu().releasing():  # as current(), and silent at the end of a test that lost the GPU
        yield open_gpu()


class Doubler:
    """Work: output = 2 * input, or what `broken` makes of it under capture."""

    def __init__(self, cuda: FakeCuda, gpu: Gpu, *, broken: str | None = None) -> None:
        self.cuda, self.broken = cuda, broken
        self.source, self.target = DeviceMemory(gpu, 4), DeviceMemory(gpu, 4)
        self.outputs = [(self.target.pointer, 4)]
        self.plain = 0

    def at(self, memory: DeviceMemory) -> Any:
        return self.cuda.bytes_at(memory.pointer, 4).view(np.float32)

    def enqueue(self, stream: FakeStream) -> None:
        self.plain += 1
        assert self.execute(stream)

    def execute(self, stream: FakeStream) -> bool:
        capturing = stream.captured is not None
        if capturing and self.broken == "False":
            return False
        if capturing and self.broken == "raises":
            raise RuntimeError("no capture here")
        if capturing and self.broken == "interrupted":
            raise KeyboardInterrupt
        if capturing and self.broken == "empty":
            return True
        factor = 3 if capturing and self.broken == "wrong" else 2
        stream.add(lambda: np.copyto(self.at(self.target), self.at(self.source) * factor))
        return True


def result(work: Doubler, repeated: Repeated, stream: FakeStream, value: float) -> float:
    work.at(work.source)[...] = value
    repeated.run()
    stream.synchronize()
    return float(work.at(work.target)[0])


def test_a_graph_gives_what_the_plain_enqueue_gives(cuda: FakeCuda, gpu: Gpu) -> None:
    stream, work = gpu.new_stream(), Doubler(cuda, gpu)
    repeated = Repeated(gpu, stream, work, work.outputs)
    assert [result(work, repeated, stream, value) for value in (1, 2, 5)] == [2, 4, 10]
    assert repeated.reason is None
    assert work.plain == 1
    assert cuda.calls("cuStreamBeginCapture", "cuGraphLaunch") == ["cuStreamBeginCapture", *["cuGraphLaunch"] * 3]
    assert cuda.graphs_live == 1
    repeated.close()
    repeated.close()
    assert cuda.graphs_live == 0


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("wrong", "differs from that of the plain enqueue"),
        ("empty", "differs from that of the plain enqueue"),
        ("False", "TensorRT cannot be captured here"),
        ("raises", "no capture here"),
    ],
)
def test_a_graph_that_fails_or_differs_is_not_used_and_says_why(
    cuda: FakeCuda, gpu: Gpu, broken: str, reason: str
) -> None:
    stream, work = gpu.new_stream(), Doubler(cuda, gpu, broken=broken)
    repeated = Repeated(gpu, stream, work, work.outputs)
    assert [result(work, repeated, stream, value) for value in (1, 2, 5)] == [2, 4, 10]
    assert reason in str(repeated.reason)
    assert len(cuda.calls("cuStreamBeginCapture")) == 1
    assert stream.captured is None
    assert cuda.graphs_live == 0


@pytest.mark.parametrize("call", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_every_status_of_a_capture_is_a_reason(cuda: FakeCuda, gpu: Gpu, call: str) -> None:
    cuda.statuses[call] = OOM
    stream, work = gpu.new_stream(), Doubler(cuda, gpu)
    repeated = Repeated(gpu, stream, work, work.outputs)
    assert result(work, repeated, stream, 4) == 8
    assert repeated.reason == f"{call} answers {OOM}"
    assert cuda.graphs_live == 0


def test_a_graph_that_cannot_be_launched_ends_the_gpu(cuda: FakeCuda, gpu: Gpu) -> None:
    stream, work = gpu.new_stream(), Doubler(cuda, gpu)
    repeated = Repeated(gpu, stream, work, work.outputs)
    repeated.run()
    cuda.statuses["cuGraphLaunch"] = OOM
    with pytest.raises(GPUUnavailable, match=f"cuGraphLaunch answers {OOM}") as caught:
        repeated.run()
    assert caught.value.key == "gpu_lost"
    assert gpu.lost is not None


def test_a_launch_that_fails_in_the_comparison_leaves_no_graph(cuda: FakeCuda, gpu: Gpu) -> None:
    work = Doubler(cuda, gpu)
    cuda.statuses["cuGraphLaunch"] = OOM
    with pytest.raises(GPUUnavailable):
        Repeated(gpu, gpu.new_stream(), work, work.outputs).run()
    assert cuda.graphs_live == 0


def test_a_capture_that_broke_the_context_is_no_fallback(cuda: FakeCuda, gpu: Gpu) -> None:
    cuda.statuses["cuStreamEndCapture"] = INVALIDATED
    stream = gpu.new_stream()

    def work() -> bool:
        cuda.lost = "an illegal memory access was encountered"
        return True

    with pytest.raises(GPUUnavailable) as caught:
        capture(gpu, stream, work)
    assert caught.value.key == "gpu_lost"


def test_a_synchronisation_while_capturing_invalidates_the_capture(cuda: FakeCuda, gpu: Gpu) -> None:
    """The stand-in is as strict as CUDA: a wait inside the capture is noticed, and the stream can be used again."""
    stream = gpu.new_stream()

    def work() -> bool:
        with pytest.raises(Exception, match="capturing"):
            stream.synchronize()
        return True

    with pytest.raises(GraphUnavailable, match=INVALIDATED):
        capture(gpu, stream, work)
    stream.synchronize()


def test_an_interrupt_while_capturing_leaves_the_stream_usable(cuda: FakeCuda, gpu: Gpu) -> None:
    stream, work = gpu.new_stream(), Doubler(cuda, gpu, broken="interrupted")
    with pytest.raises(KeyboardInterrupt):
        Repeated(gpu, stream, work, work.outputs).run()
    assert stream.captured is None
    assert cuda.graphs_live == 0


def test_without_cuda_python_the_work_is_enqueued_and_the_cure_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda().install(monkeypatch, graphs=False)
    gpu = open_gpu()
    with gpu.current():
        stream, work = gpu.new_stream(), Doubler(cuda, gpu)
        repeated = Repeated(gpu, stream, work, work.outputs)
        assert [result(work, repeated, stream, value) for value in (1, 2)] == [2, 4]
    assert "pip install 'cuda-bindings" in str(repeated.reason)
    open_gpu.cache_clear()


def test_a_graph_not_asked_for_is_not_tried(cuda: FakeCuda, gpu: Gpu) -> None:
    stream, work = gpu.new_stream(), Doubler(cuda, gpu)
    repeated = Repeated(gpu, stream, work, work.outputs, "not asked for")
    assert [result(work, repeated, stream, value) for value in (1, 2)] == [2, 4]
    assert cuda.calls("cuStreamBeginCapture", "Stream.synchronize") == ["Stream.synchronize"] * 2
