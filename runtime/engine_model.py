"""The model as engines on the GPU: whole, or split into a trunk over chunks of slices and a tail.

A run takes studies from the host, or one that was written on the GPU. How many runs are in flight, and who may start
one, is the backend's to say. Everything but `DeviceStudy` is called within `Gpu.current()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.backend import Outputs
from fourphase.runtime.cuda_buffers import DeviceMemory, Outgoing, Staging, poison
from fourphase.runtime.cuda_context import Gpu, Resources
from fourphase.runtime.cuda_graph import Repeated
from fourphase.runtime.inference_checks import checked_outputs
from fourphase.runtime.trt_session import TrtSession

__all__ = ["DEPTH", "DeviceStudy", "Machine", "Model", "Split", "Whole"]

Floats = NDArray[np.float32]

#: Runs in flight.
DEPTH = 2


class Machine:
    """What both forms of the model share: streams, the outputs of the runs in flight, and the work that was bound."""

    def __init__(self, gpu: Gpu, held: Resources, max_batch: int, use_graph: bool) -> None:
        self.gpu, self.held, self.max_batch = gpu, held, max_batch
        self.computing, self.copies = gpu.new_stream(), gpu.new_stream()
        self.works: dict[tuple[object, ...], Repeated] = {}
        self._outgoing: list[Outgoing] = []
        self._no_graph = None if use_graph else "not asked for"

    def staging(self, shape: tuple[int, ...]) -> Staging:
        return self.held.add(Staging(self.gpu, shape, self.copies, self.computing))

    def run(self, key: tuple[object, ...], session: TrtSession, batch: int, addresses: Mapping[str, int]) -> None:
        """Enqueues the engine on these addresses, which must be the same for the same key."""
        if key not in self.works:
            work = session.bind(batch, addresses)
            sizes = {name: batch * math.prod(it.sizes) * it.dtype.itemsize for name, it in session.outputs.items()}
            outputs = [(addresses[name], nbytes) for name, nbytes in sizes.items()]
            self.works[key] = self.held.add(Repeated(self.gpu, self.computing, work, outputs, self._no_graph))
        self.works[key].run()

    def finish(self, session: TrtSession, batch: int, index: int, source: int) -> Outgoing:
        """Enqueues the engine that gives the outputs, and their way home. `source`: the address of its input."""
        while len(self._outgoing) <= index:
            tensors = {name: ((self.max_batch, *it.sizes), it.dtype) for name, it in session.outputs.items()}
            self._outgoing.append(self.held.add(Outgoing(self.gpu, tensors, self.computing)))
        outgoing, (name,) = self._outgoing[index], session.inputs
        outgoing.clear()
        self.run(("last", batch, index), session, batch, {name: source, **outgoing.addresses})
        outgoing.send(batch)
        return outgoing


class Model(Protocol):
    def start(self, studies: Floats, index: int) -> Outgoing:
        """Enqueues everything for (n, P, T, C, H, W) studies; `index`: which of the runs in flight this is."""
        ...

    def study_address(self) -> int:
        """Where on the device `start_written` finds one study, float32 (P, T, C, H, W); run 0 uses the same memory."""
        ...

    def start_written(self) -> Outgoing:
        """As `start` for run 0, on what the work enqueued on `Machine.computing` wrote to `study_address`."""
        ...


class Whole:
    """One engine from the studies to the outputs."""

    def __init__(self, machine: Machine, session: TrtSession) -> None:
        self._machine, self._session = machine, session
        self._staged: list[Staging] = []

    def start(self, studies: Floats, index: int) -> Outgoing:
        staged = self._staging(index)
        staged.put(studies)
        return self._run(staged, len(studies), index)

    def study_address(self) -> int:
        """The engine's own input: nothing is copied on the device."""
        return self._staging(0).buffer.pointer

    def start_written(self) -> Outgoing:
        return self._run(self._staging(0), 1, 0)

    def _staging(self, index: int) -> Staging:
        (study,) = self._session.inputs.values()
        while len(self._staged) <= index:
            self._staged.append(self._machine.staging((self._machine.max_batch, *study.sizes)))
        return self._staged[index]

    def _run(self, staged: Staging, batch: int, index: int) -> Outgoing:
        outgoing = self._machine.finish(self._session, batch, index, staged.buffer.pointer)
        staged.release()
        return outgoing


class Split:
    """The trunk over chunks of slices, the tail over the features of all of them.

    A study written on the GPU is there as a whole (50 MB at 4 x 64 x 3 x 128 x 128), from the first time on that one
    is; its chunks are copied on the device. Studies from the host are there in chunks only.
    """

    def __init__(self, machine: Machine, trunk: TrtSession, tail: TrtSession) -> None:
        self._machine, self._trunk, self._tail = machine, trunk, tail
        study, features = trunk.inputs["study"], tail.inputs["features"]
        self._phases, self._slices, *pixels = study.sizes
        self._chunks = features.sizes[1] // self._slices
        # Contiguous in the chunk and, per phase, in the whole: of the input and of the features.
        self._input_bytes = self._slices * math.prod(pixels) * study.dtype.itemsize
        self._run_bytes = self._slices * features.sizes[2] * features.dtype.itemsize
        self._study_bytes = self._phases * self._chunks * self._run_bytes
        self._staged = [machine.staging((1, *study.sizes)) for _ in range(DEPTH)]
        self._chunk = machine.held.add(DeviceMemory(machine.gpu, self._phases * self._run_bytes))
        self._features = machine.held.add(DeviceMemory(machine.gpu, machine.max_batch * self._study_bytes))
        self._written: DeviceMemory | None = None

    def start(self, studies: Floats, index: int) -> Outgoing:
        def put(staged: Staging, study: int, chunk: int) -> None:
            first = chunk * self._slices
            staged.put(studies[study : study + 1, :, first : first + self._slices])

        return self._run(len(studies), index, put)

    def study_address(self) -> int:
        if self._written is None:
            size = self._phases * self._chunks * self._input_bytes
            self._written = self._machine.held.add(DeviceMemory(self._machine.gpu, size))
        return self._written.pointer

    def start_written(self) -> Outgoing:
        source, step = self.study_address(), self._input_bytes

        def put(staged: Staging, study: int, chunk: int) -> None:
            self._copy(staged.buffer.pointer, step, source + chunk * step, self._chunks * step, step)

        return self._run(1, 0, put)

    def _run(self, studies: int, index: int, put: Callable[[Staging, int, int], None]) -> Outgoing:
        """`put` fills the trunk's input with a chunk of a study: called with (input, study, chunk)."""
        machine, step = self._machine, self._run_bytes
        poison(machine.gpu, self._features.pointer, self._features.nbytes, machine.computing)
        for number in range(studies * self._chunks):
            study, chunk = divmod(number, self._chunks)
            staged = self._staged[number % DEPTH]
            put(staged, study, chunk)
            self._run_trunk(staged, number % DEPTH)
            target = self._features.pointer + study * self._study_bytes + chunk * step
            self._copy(target, self._chunks * step, self._chunk.pointer, step, step)
        return machine.finish(self._tail, studies, index, self._features.pointer)

    def _run_trunk(self, staged: Staging, index: int) -> None:
        poison(self._machine.gpu, self._chunk.pointer, self._chunk.nbytes, self._machine.computing)
        addresses = {"study": staged.buffer.pointer, "features": self._chunk.pointer}
        self._machine.run(("trunk", index), self._trunk, 1, addresses)
        staged.release()

    def _copy(self, target: int, target_step: int, source: int, source_step: int, nbytes: int) -> None:
        """Copies `nbytes` of every phase on the device; the steps are from one phase to the next.

        One plain copy per phase: CUDA lets a copy with pitches between device addresses fail unless it allocated them.
        """
        for phase in range(self._phases):
            self._machine.gpu.driver.memcpy_dtod_async(
                target + phase * target_step, source + phase * source_step, nbytes, self._machine.computing
            )


class DeviceStudy:
    """The input of one study, float32 (P, T, C, H, W), in the engine's memory: written on the GPU, then run.

    It starts as NaN, and it is not run before every phase was written. The work of `write` and of `run` is on one
    stream, so the engine sees all of it. Use within `TensorRTBackend.device_study`.

    Raises: GPUUnavailable, keys out_of_memory and gpu_lost, as does every method; RuntimeError once it is over.
    """

    def __init__(self, machine: Machine, model: Model, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._machine, self._model, self._over = machine, model, False
        self._missing, self._nbytes = set(range(shape[0])), math.prod(shape) * np.dtype(np.float32).itemsize
        with machine.gpu.current():
            self._address = model.study_address()
            poison(machine.gpu, self._address, self._nbytes, machine.computing)

    def write(self, phase: int, enqueue: Callable[[int, Any], None]) -> None:
        """Calls `enqueue` with the input's device address and the stream: it must enqueue what writes this phase."""
        with self._in_use() as stream:
            enqueue(self._address, stream)
        self._missing.discard(phase)

    def run(self) -> Outputs:
        """Runs the engine and waits.

        Raises: as `TensorRTBackend.infer`; RuntimeError if a phase is missing.
        """
        if self._missing:
            raise RuntimeError(f"phases {sorted(self._missing)} were not written")
        with self._in_use():
            arrived = self._model.start_written().wait(1)
        return checked_outputs(arrived["logits"], arrived.get("phase_logits"))

    def download(self) -> Floats:
        """Waits for what was enqueued; a copy of the input as the engine reads it."""
        copy = np.empty(self._nbytes, np.uint8)
        with self._in_use() as stream:
            stream.synchronize()
            self._machine.gpu.driver.memcpy_dtoh(copy, self._address)
        return copy.view(np.float32).reshape(self.shape)

    def close(self) -> None:
        """From now on the memory may be another study's."""
        self._over = True

    @contextmanager
    def _in_use(self) -> Iterator[Any]:
        if self._over:
            raise RuntimeError("this study's input is no longer on the GPU")
        with self._machine.gpu.current():
            yield self._machine.computing
