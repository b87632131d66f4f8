"""The model as engines on the GPU: whole, or split into a trunk over chunks of slices and a tail.

It enqueues one run; how many are in flight, and who may start one, is the backend's to say. Called within
`Gpu.current()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.cuda_buffers import DeviceMemory, Outgoing, Staging, poison
from fourphase.runtime.cuda_context import Gpu, Resources
from fourphase.runtime.cuda_graph import Repeated
from fourphase.runtime.trt_session import TrtSession

__all__ = ["DEPTH", "Machine", "Model", "Split", "Whole"]

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


class Whole:
    """One engine from the studies to the outputs."""

    def __init__(self, machine: Machine, session: TrtSession) -> None:
        self._machine, self._session = machine, session
        self._staged: list[Staging] = []

    def start(self, studies: Floats, index: int) -> Outgoing:
        machine = self._machine
        while len(self._staged) <= index:
            self._staged.append(machine.staging((machine.max_batch, *studies.shape[1:])))
        staged = self._staged[index]
        staged.put(studies)
        outgoing = machine.finish(self._session, len(studies), index, staged.buffer.pointer)
        staged.release()
        return outgoing


class Split:
    """The trunk over chunks of slices, the tail over the features of all of them."""

    def __init__(self, machine: Machine, trunk: TrtSession, tail: TrtSession) -> None:
        self._machine, self._trunk, self._tail = machine, trunk, tail
        study, features = trunk.inputs["study"], tail.inputs["features"]
        self._phases, self._slices = study.sizes[:2]
        self._chunks = features.sizes[1] // self._slices
        # Contiguous in the chunk and, per phase, in the whole.
        self._run_bytes = self._slices * features.sizes[2] * features.dtype.itemsize
        self._study_bytes = self._phases * self._chunks * self._run_bytes
        self._staged = [machine.staging((1, *study.sizes)) for _ in range(DEPTH)]
        self._chunk = machine.held.add(DeviceMemory(machine.gpu, self._phases * self._run_bytes))
        self._features = machine.held.add(DeviceMemory(machine.gpu, machine.max_batch * self._study_bytes))

    def start(self, studies: Floats, index: int) -> Outgoing:
        machine = self._machine
        poison(machine.gpu, self._features.pointer, self._features.nbytes, machine.computing)
        for number in range(len(studies) * self._chunks):
            study, chunk = divmod(number, self._chunks)
            first = chunk * self._slices
            self._run_trunk(studies[study : study + 1, :, first : first + self._slices], number % DEPTH)
            self._collect(self._features.pointer + study * self._study_bytes + chunk * self._run_bytes)
        return machine.finish(self._tail, len(studies), index, self._features.pointer)

    def _run_trunk(self, values: Floats, index: int) -> None:
        staged = self._staged[index]
        staged.put(values)
        poison(self._machine.gpu, self._chunk.pointer, self._chunk.nbytes, self._machine.computing)
        addresses = {"study": staged.buffer.pointer, "features": self._chunk.pointer}
        self._machine.run(("trunk", index), self._trunk, 1, addresses)
        staged.release()

    def _collect(self, target: int) -> None:
        """Copies a chunk's features (P, S, F) to its slices of (P, T, F).

        One plain copy per phase: CUDA lets a copy with pitches between device addresses fail unless it allocated them.
        """
        for phase in range(self._phases):
            self._machine.gpu.driver.memcpy_dtod_async(
                target + phase * self._chunks * self._run_bytes,
                self._chunk.pointer + phase * self._run_bytes,
                self._run_bytes,
                self._machine.computing,
            )
