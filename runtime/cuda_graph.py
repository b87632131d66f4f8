"""The same GPU work again and again: as a CUDA graph where that gives the same bytes, else enqueued each time.

pycuda has no graphs; the driver bindings of cuda-python take pycuda's stream. A graph is used only after its output
was compared with that of the plain enqueue on the same input, bit for bit; why it is not used is kept for the user.
Everything is called within `Gpu.current()`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from fourphase.runtime.cuda_buffers import poison
from fourphase.runtime.cuda_context import Gpu
from fourphase.runtime.inference_checks import first_line

__all__ = ["CudaGraph", "GraphUnavailable", "Repeated", "Work", "capture"]

REQUIREMENTS = ("cuda-bindings>=12.8",)


class GraphUnavailable(Exception):
    """Why there is no graph, for a person; the work can still be enqueued."""


class Work(Protocol):
    """GPU work whose addresses and sizes never change."""

    def enqueue(self, stream: Any) -> None:
        """Enqueues it. Raises: FourphaseError if that fails."""
        ...

    def execute(self, stream: Any) -> bool:
        """Enqueues it and says whether that worked; allowed while the stream is captured."""
        ...


class CudaGraph:
    """A captured and instantiated graph."""

    def __init__(self, gpu: Gpu, bindings: Any, executable: Any, stream: Any) -> None:
        self._gpu, self._bindings, self._executable = gpu, bindings, executable
        self._stream = bindings.CUstream(stream.handle)

    def launch(self) -> None:
        """Enqueues the graph on the stream it was captured on. Raises: GPUUnavailable (gpu_lost)."""
        (status,) = self._bindings.cuGraphLaunch(self._executable, self._stream)
        if status != self._bindings.CUresult.CUDA_SUCCESS:
            raise self._gpu.lose(f"cuGraphLaunch answers {status.name}")

    def close(self) -> None:
        if self._executable is not None:
            (status,) = self._bindings.cuGraphExecDestroy(self._executable)
            self._executable = None
            if status != self._bindings.CUresult.CUDA_SUCCESS:
                self._gpu.lose(f"cuGraphExecDestroy answers {status.name}")


def capture(gpu: Gpu, stream: Any, work: Callable[[], bool]) -> CudaGraph:
    """Captures what `work` enqueues on `stream`; nothing is computed yet.

    Raises: GraphUnavailable with the reason; GPUUnavailable if the GPU failed over it.
    """
    bindings = _bindings()
    try:
        return CudaGraph(gpu, bindings, _instantiated(bindings, _captured(bindings, stream, work)), stream)
    except (GraphUnavailable, RuntimeError) as error:  # the latter: the driver lacks a function
        if not gpu.is_alive():
            raise gpu.lose(first_line(error)) from error
        raise GraphUnavailable(first_line(error)) from error


def _bindings() -> Any:
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise GraphUnavailable(
            f"cuda-python's bindings cannot be imported (pip install '{REQUIREMENTS[0]}')"
        ) from error


def _captured(bindings: Any, stream: Any, work: Callable[[], bool]) -> Any:
    """The graph; the stream has left capture mode, whatever happens."""
    handle = bindings.CUstream(stream.handle)
    # Only this thread is kept from calls that cannot be captured; other threads may go on allocating.
    mode = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    _checked(bindings, "cuStreamBeginCapture", bindings.cuStreamBeginCapture(handle, mode))
    try:
        worked = work()
    except BaseException:
        _discard(bindings, bindings.cuStreamEndCapture(handle))
        raise
    ended = bindings.cuStreamEndCapture(handle)
    if not worked:
        _discard(bindings, ended)
        raise GraphUnavailable("TensorRT cannot be captured here")
    (graph,) = _checked(bindings, "cuStreamEndCapture", ended)
    return graph


def _instantiated(bindings: Any, graph: Any) -> Any:
    """The executable form of a graph; the graph itself is destroyed."""
    made = bindings.cuGraphInstantiate(graph, 0)
    destroyed = bindings.cuGraphDestroy(graph)
    (executable,) = _checked(bindings, "cuGraphInstantiate", made)
    _checked(bindings, "cuGraphDestroy", destroyed)
    return executable


def _checked(bindings: Any, name: str, answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call answers beside its status."""
    status, *values = answer
    if status != bindings.CUresult.CUDA_SUCCESS:
        raise GraphUnavailable(f"{name} answers {status.name}")
    return tuple(values)


def _discard(bindings: Any, ended: tuple[Any, ...]) -> None:
    """Destroys what a broken capture left: no graph at all, as a rule."""
    status, graph = ended
    if status == bindings.CUresult.CUDA_SUCCESS:
        bindings.cuGraphDestroy(graph)


class Repeated:
    """One piece of work on one stream, run again and again.

    Attributes:
        reason: why no graph is used, once that is known; None while one is, or before the first run.
    """

    def __init__(
        self, gpu: Gpu, stream: Any, work: Work, outputs: Sequence[tuple[int, int]], reason: str | None = None
    ) -> None:
        """`outputs`: (device address, bytes) of all that the work writes; `reason`: why no graph shall be tried."""
        self.reason = reason
        self._gpu, self._stream, self._work, self._outputs = gpu, stream, work, outputs
        self._graph: CudaGraph | None = None

    def run(self) -> None:
        """Enqueues the work. The first run waits for it and, where a graph can be had, does it a second time.

        Raises: FourphaseError as the work does; GPUUnavailable.
        """
        if self._graph is not None:
            self._graph.launch()
            return
        self._work.enqueue(self._stream)
        if self.reason is None:
            self._try_graph()

    def close(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _try_graph(self) -> None:
        """After a plain run (TensorRT captures only after one): captures, runs and compares."""
        plain = self._written()
        try:
            graph = capture(self._gpu, self._stream, lambda: self._work.execute(self._stream))
        except GraphUnavailable as error:
            self.reason = str(error)
            return
        try:
            for pointer, nbytes in self._outputs:
                poison(self._gpu, pointer, nbytes, self._stream)
            graph.launch()
            same = self._written() == plain
        except BaseException:
            graph.close()
            raise
        if same:
            self._graph = graph
            return
        graph.close()
        self.reason = "its output differs from that of the plain enqueue"
        self._work.enqueue(self._stream)

    def _written(self) -> list[bytes]:
        """All outputs, once the stream is through."""
        self._stream.synchronize()
        copies = [np.empty(nbytes, np.uint8) for _, nbytes in self._outputs]
        for copy, (pointer, _) in zip(copies, self._outputs, strict=True):
            self._gpu.driver.memcpy_dtoh(copy, pointer)
        return [copy.tobytes() for copy in copies]
