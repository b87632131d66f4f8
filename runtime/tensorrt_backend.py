"""The network on an NVIDIA GPU by TensorRT or TensorRT for RTX: verified plan bytes in, logits out.

Two runs are in flight: the host prepares and uploads the next while the GPU computes. Or one study at a time is written
on the GPU (`device_study`) and never held by the host. Which plan is loaded, and what happens without one, is not
decided here.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.backend import Outputs
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.cuda_buffers import Outgoing
from fourphase.runtime.cuda_context import REQUIREMENTS, Closable, Gpu, Resources, is_available, open_gpu
from fourphase.runtime.engine_model import DEPTH, DeviceStudy, Machine, Model, Split, Whole
from fourphase.runtime.errors import ModelIncompatible
from fourphase.runtime.flavour import Flavour, load_flavour
from fourphase.runtime.inference_checks import check_input, checked_outputs
from fourphase.runtime.trt_session import EngineTensor, TrtSession, load_session

__all__ = ["REQUIREMENTS", "EngineParts", "TensorRTBackend", "is_available", "load_engine_backend"]

Floats = NDArray[np.float32]
Held = TypeVar("Held", bound=Closable)

_HALF_TOO = ("float32", "float16")


@dataclass(frozen=True, eq=False)
class EngineParts:
    """Verified plan bytes.

    Attributes:
        plans: {"whole": plan} or {"trunk": plan, "tail": plan}.
        slices: how many slices one run of the trunk takes; None for a whole engine.
        flavour: "tensorrt" or "tensorrt-rtx". precision: "fp32", "fp16" or "int8".
        max_batch: the studies one run of the engine (of the tail) takes at most.
        host_code: the plans may run host code of their own (they are version-compatible, and the user allowed it).
        dla_core: the accelerator that the trunk runs on; None for the GPU alone.
    """

    plans: Mapping[str, bytes]
    slices: int | None
    flavour: str
    precision: str
    max_batch: int
    host_code: bool = False
    dla_core: int | None = None


class TensorRTBackend:
    """Loaded engines; for one caller at a time, from any thread. A context manager that closes itself.

    Attributes:
        name: the flavour, "tensorrt" or "tensorrt-rtx". precision: of the plan.
        input_shape: (P, T, C, H, W) of one study. max_batch: above it, studies are run in several runs.
    """

    def __init__(self, parts: EngineParts, input_shape: tuple[int, ...], machine: Machine, model: Model) -> None:
        self.name, self.precision, self.max_batch = parts.flavour, parts.precision, parts.max_batch
        self.input_shape = input_shape
        self._machine, self._model = machine, model
        self._in_use = threading.Lock()
        self._closed = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how this backend runs; a later batch size may add to it."""
        reasons = dict.fromkeys(work.reason for work in self._machine.works.values() if work.reason)
        shared = ("the GPU reads the host's memory, nothing is copied to it",) if self._machine.gpu.zero_copy else ()
        return (*shared, *(f"CUDA graph not used: {reason}" for reason in reasons))

    def infer(self, study: Floats) -> Outputs:
        """Runs B studies, float32 (B, P, T, C, H, W); the outputs are copies.

        Raises: ModelIncompatible for another type or shape, or with TensorRT's words if it refuses to run;
            PixelDataError for a non-finite input; SelfCheckFailed for a non-finite output; GPUUnavailable (22), key
            out_of_memory or gpu_lost, the latter also at every later call.
        """
        (outputs,) = self.infer_many([study])
        return outputs

    def infer_many(self, studies: Iterable[Floats]) -> Iterator[Outputs]:
        """Runs each (B, P, T, C, H, W) of `studies`, one ahead of the one whose outputs are given; order is kept.

        Raises: as `infer`, and RuntimeError if another `infer` is not through. What was computed but not yet given
            out is then lost. An interrupt closes the backend.
        """
        gathered: list[Outputs] = []
        with closing(self._pipeline(self._pieces(studies))) as results:
            for outputs, is_last in results:
                gathered.append(outputs)
                if is_last:
                    yield _joined(gathered)
                    gathered = []

    @contextmanager
    def device_study(self) -> Iterator[DeviceStudy]:
        """One study whose input is written on the GPU; nobody else can run anything until the block ends.

        Raises: RuntimeError if an `infer` is not through; GPUUnavailable, also out_of_memory: a split model needs
            memory for a whole study here. An interrupt closes the backend.
        """
        with self._occupied():
            study = DeviceStudy(self._machine, self._model, self.input_shape)
            try:
                yield study
                self._drain()
            finally:
                study.close()

    @property
    def gpu(self) -> Gpu:
        return self._machine.gpu

    def hold(self, held: Held) -> Held:
        """Closes `held`, which has memory of this GPU, with the backend, before all that the backend has already."""
        return self._machine.held.add(held)

    def close(self) -> None:
        """Waits for the GPU and frees everything, also after an error; twice is once."""
        self._closed = True
        self._machine.held.close()

    def __enter__(self) -> TensorRTBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pieces(self, studies: Iterable[Floats]) -> Iterator[tuple[Floats, bool]]:
        """Checked studies in runs of at most `max_batch`, and whether a run is the last of its array."""
        for study in studies:
            check_input(study, self.input_shape)
            for start in range(0, len(study), self.max_batch):
                yield study[start : start + self.max_batch], start + self.max_batch >= len(study)

    @contextmanager
    def _occupied(self) -> Iterator[None]:
        """This caller alone; if the block ends early, nothing on the GPU uses a buffer any more. Interrupts close."""
        if self._closed or not self._in_use.acquire(blocking=False):
            raise RuntimeError(f"the {self.name} backend is {'closed' if self._closed else 'already running'}")
        landed = False
        try:
            yield
            landed = True
        except (KeyboardInterrupt, SystemExit):
            self.close()
            raise
        finally:
            try:
                if not landed:
                    self._drain()
            finally:
                self._in_use.release()

    def _pipeline(self, pieces: Iterator[tuple[Floats, bool]]) -> Generator[tuple[Outputs, bool], None, None]:
        flying: deque[tuple[Outgoing, int, bool]] = deque()
        with self._occupied():
            for number, (studies, is_last) in enumerate(pieces):
                if len(flying) == DEPTH:
                    yield self._land(*flying.popleft())
                flying.append((self._start(studies, number % DEPTH), len(studies), is_last))
            while flying:
                yield self._land(*flying.popleft())

    def _start(self, studies: Floats, index: int) -> Outgoing:
        with self._machine.gpu.current():
            return self._model.start(studies, index)

    def _land(self, outgoing: Outgoing, count: int, is_last: bool) -> tuple[Outputs, bool]:
        with self._machine.gpu.current():
            arrived = outgoing.wait(count)
        return checked_outputs(arrived["logits"], arrived.get("phase_logits")), is_last

    def _drain(self) -> None:
        """Nothing may still be reading a buffer when the next run fills it."""
        if not self._closed and self._machine.gpu.lost is None:
            with self._machine.gpu.current():
                self._machine.gpu.driver.Context.synchronize()


def _joined(parts: list[Outputs]) -> Outputs:
    if len(parts) == 1:
        return parts[0]
    phases = [part.phase_logits for part in parts if part.phase_logits is not None]
    return Outputs(np.concatenate([part.logits for part in parts]), np.concatenate(phases) if phases else None)


def load_engine_backend(parts: EngineParts, bundle: Bundle, *, use_graph: bool = True) -> TensorRTBackend:
    """Loads verified plans for the bundle's model and runs it once; nothing is left on the GPU if that fails.

    Raises: GPUUnavailable without a GPU or with too little memory; EnvironmentFault if pycuda or TensorRT is missing;
        ModelIncompatible with TensorRT's words if it refuses a plan, or if the engines are not this bundle's.
    """
    _check_parts(parts, bundle)
    gpu = open_gpu()
    flavour = load_flavour(parts.flavour)
    held = Resources(gpu)
    try:
        with gpu.current():
            machine = Machine(gpu, held, parts.max_batch, use_graph)
            model = _load_model(machine, flavour, parts, bundle)
            _warm_up(model, bundle.input_shape)
    except BaseException:
        held.close()
        raise
    return TensorRTBackend(parts, bundle.input_shape, machine, model)


def _check_parts(parts: EngineParts, bundle: Bundle) -> None:
    slices = bundle.input_shape[1]
    roles = {"whole"} if parts.slices is None else {"trunk", "tail"}
    even = parts.slices is None or (parts.slices > 0 and slices % parts.slices == 0)
    if set(parts.plans) != roles or parts.max_batch < 1 or not even:
        raise ModelIncompatible(
            f"engines {', '.join(parts.plans)} for {parts.slices or slices} of {slices} slices do not make the model",
            "build the bundle's engines again with fp-export build-engine",
            key="engine_interface",
        )


def _warm_up(model: Model, input_shape: tuple[int, ...]) -> None:
    """One study of noise, its outputs unused: kernels are loaded, and whether a graph can be had is known."""
    noise = np.random.default_rng(0).standard_normal(4093, np.float32)  # a prime: no two rows are the same
    model.start(np.resize(noise, (1, *input_shape)), 0).wait(1)


def _load_model(machine: Machine, flavour: Flavour, parts: EngineParts, bundle: Bundle) -> Model:
    phases, slices, *pixels = bundle.input_shape
    classes = len(bundle.classes)
    shapes = {"logits": (classes,), "phase_logits": (phases, classes)}
    outputs = tuple(EngineTensor(name, shapes[name], _HALF_TOO) for name in bundle.outputs)

    def load(role: str, source: EngineTensor, targets: Sequence[EngineTensor], max_batch: int) -> TrtSession:
        plan = parts.plans[role]
        session = load_session(
            machine.gpu,
            flavour,
            plan,
            inputs=(source,),
            outputs=targets,
            max_batch=max_batch,
            host_code=parts.host_code,
            dla_core=parts.dla_core if role == "trunk" else None,
        )
        return machine.held.add(session)

    if parts.slices is None:
        return Whole(machine, load("whole", EngineTensor("study", bundle.input_shape), outputs, parts.max_batch))
    chunk = (phases, parts.slices)
    features = EngineTensor("features", (*chunk, None), _HALF_TOO)
    trunk = load("trunk", EngineTensor("study", (*chunk, *pixels)), (features,), 1)
    found = trunk.outputs["features"]
    taken = EngineTensor("features", (phases, slices, found.sizes[2]), found.types)
    return Split(machine, trunk, load("tail", taken, outputs, parts.max_batch))
