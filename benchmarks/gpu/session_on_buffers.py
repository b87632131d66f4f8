"""Any engine of float32 tensors by the product's own run time: a session on pycuda's buffers, as a backend binds it."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.cuda_buffers import Buffer
from fourphase.runtime.cuda_context import Resources, open_gpu
from fourphase.runtime.flavour import Flavour
from fourphase.runtime.trt_session import EngineTensor, load_session

__all__ = ["SessionOnBuffers"]

Floats = NDArray[np.float32]


class SessionOnBuffers:
    """A loaded engine; a context manager that frees what it holds.

    Args:
        inputs, outputs: name -> an array of the expected shape behind its first axis.
        max_rows: of the first axis.

    Raises: as `load_session` and `open_gpu` do (20, 22, 24).
    """

    def __init__(
        self,
        flavour: Flavour,
        plan: bytes,
        inputs: Mapping[str, Floats],
        outputs: Mapping[str, Floats],
        max_rows: int,
    ) -> None:
        self._gpu = gpu = open_gpu()
        self._held = Resources(gpu)
        sources = [EngineTensor(name, value.shape[1:]) for name, value in inputs.items()]
        targets = [EngineTensor(name, value.shape[1:]) for name, value in outputs.items()]
        with gpu.current():
            self._session = self._held.add(
                load_session(gpu, flavour, plan, inputs=sources, outputs=targets, max_batch=max_rows)
            )
            self._stream = gpu.new_stream()

    def infer(self, inputs: Mapping[str, Floats]) -> dict[str, Floats]:
        """Runs once: host arrays in, new host arrays out; what the engine leaves unwritten is NaN.

        Raises: ModelIncompatible with TensorRT's words; GPUUnavailable.
        """
        rows = len(next(iter(inputs.values())))
        held = Resources(self._gpu)
        try:
            with self._gpu.current():
                buffers = {name: held.add(Buffer(self._gpu, value.shape, np.float32)) for name, value in inputs.items()}
                for name, value in inputs.items():
                    np.copyto(buffers[name].host, value)
                    buffers[name].upload(rows, self._stream)
                for name, tensor in self._session.outputs.items():
                    buffers[name] = held.add(Buffer(self._gpu, (rows, *tensor.sizes), np.float32))
                    buffers[name].poison(self._stream)
                addresses = {name: buffer.pointer for name, buffer in buffers.items()}
                self._session.bind(rows, addresses).enqueue(self._stream)
                for name in self._session.outputs:
                    buffers[name].download(rows, self._stream)
                self._stream.synchronize()
                return {name: buffers[name].host.copy() for name in self._session.outputs}
        finally:
            held.close()

    def close(self) -> None:
        """Waits for the GPU and frees everything; twice is once."""
        self._held.close()

    def __enter__(self) -> SessionOnBuffers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
