"""One TensorRT engine on the GPU: plan bytes in, bound work out, every answer of TensorRT checked.

The bytes must have been verified by the caller: deserializing a plan runs native code. `engine_host_code_allowed` stays
False unless the user allowed it. Every bound work has an execution context of its own with fixed shapes and addresses,
as a CUDA graph demands; the contexts share their scratch memory, so they run on one stream. Called within
`Gpu.current()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fourphase.runtime.cuda_buffers import DeviceMemory
from fourphase.runtime.cuda_context import Gpu, out_of_memory
from fourphase.runtime.errors import FourphaseError, ModelIncompatible
from fourphase.runtime.flavour import Flavour
from fourphase.runtime.inference_checks import first_line
from fourphase.runtime.trt_logger import logger_of

__all__ = ["BoundWork", "EngineTensor", "TrtSession", "load_session"]

_REBUILD = "build the bundle's engines again on this machine with fp-export build-engine"
#: TensorRT's way to say that memory did not suffice, in its log (lower case).
_MEMORY = ("out of memory", "outofmemory", "memory allocation failed")


@dataclass(frozen=True)
class EngineTensor:
    """An input or output: what the caller expects, and as found.

    Attributes:
        shape: without the batch, axis 0; None where the engine decides.
        types: the NumPy types that are allowed; one, as found.
    """

    name: str
    shape: tuple[int | None, ...]
    types: tuple[str, ...] = ("float32",)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of a tensor as found, where no size is open."""
        return tuple(size for size in self.shape if size is not None)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.types[0])


class TrtSession:
    """A deserialized engine; `inputs` and `outputs` are as found, name -> tensor."""

    def __init__(
        self,
        gpu: Gpu,
        flavour: Flavour,
        runtime_and_engine: tuple[Any, Any],
        inputs: Mapping[str, EngineTensor],
        outputs: Mapping[str, EngineTensor],
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._gpu, self._flavour = gpu, flavour
        self._runtime, self._engine = runtime_and_engine
        self._scratch: list[DeviceMemory] = []
        self._bound: list[BoundWork] = []

    def bind(self, batch: int, addresses: Mapping[str, int]) -> BoundWork:
        """Work on `batch` studies with these device addresses, one for each input and output.

        Raises: ModelIncompatible with what TensorRT says; GPUUnavailable.
        """
        logger_of(self._flavour).lines.clear()
        context = _new_context(self._flavour, self._engine)
        if context is None:
            raise self._refused("makes no execution context")
        for name, known in self.inputs.items():
            if not context.set_input_shape(name, (batch, *known.sizes)):
                raise self._refused(f"does not take {name} of shape {(batch, *known.sizes)}")
        self._check_shapes(context, batch)
        context.device_memory = self._scratch_for(context.update_device_memory_size_for_shapes())
        for name in (*self.inputs, *self.outputs):
            if not context.set_tensor_address(name, addresses[name]):
                raise self._refused(f"does not take an address for {name}")
        if logger_of(self._flavour).texts("error"):
            raise self._refused("cannot bind its tensors")
        self._bound.append(BoundWork(self._gpu, self._flavour, context))
        return self._bound[-1]

    def close(self) -> None:
        """Contexts first, then the engine, then the runtime that made it, then the memory they worked in."""
        for work in self._bound:
            work.close()
        self._engine = None
        self._runtime = None
        for memory in self._scratch:
            memory.close()

    def _check_shapes(self, context: Any, batch: int) -> None:
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise self._refused(f"cannot infer its shapes ({first_line(error)})") from error
        if missing:
            raise self._refused(f"does not know the shape of {', '.join(missing)}")
        for name, known in self.outputs.items():
            if tuple(context.get_tensor_shape(name)) != (batch, *known.sizes):
                raise self._refused(f"gives {name} the shape {tuple(context.get_tensor_shape(name))}")

    def _scratch_for(self, nbytes: int) -> int:
        """The address of at least `nbytes`, shared by all contexts: they run one after the other."""
        for memory in self._scratch:
            if memory.nbytes >= nbytes:
                return memory.pointer
        self._scratch.append(DeviceMemory(self._gpu, max(nbytes, 1)))
        return self._scratch[-1].pointer

    def _refused(self, what: str) -> FourphaseError:
        return _refused(self._gpu, self._flavour, what)


class BoundWork:
    """An execution context whose shapes and addresses are set for good."""

    def __init__(self, gpu: Gpu, flavour: Flavour, context: Any) -> None:
        self._gpu, self._flavour, self._context = gpu, flavour, context

    def enqueue(self, stream: Any) -> None:
        """Enqueues one inference.

        Raises: GPUUnavailable or ModelIncompatible with TensorRT's words if it says False, or logs an error.
        """
        logger = logger_of(self._flavour)
        logger.lines.clear()
        if not self.execute(stream) or logger.texts("error"):
            raise _refused(self._gpu, self._flavour, "could not run the network", key="model_not_runnable")

    def execute(self, stream: Any) -> bool:
        """TensorRT's own answer, nothing else called: for a stream that is being captured."""
        context = self._context
        return bool(context.execute_async_v3(stream.handle))

    def close(self) -> None:
        self._context = None


def load_session(
    gpu: Gpu,
    flavour: Flavour,
    plan: bytes,
    *,
    inputs: Sequence[EngineTensor],
    outputs: Sequence[EngineTensor],
    max_batch: int,
    host_code: bool = False,
    dla_core: int | None = None,
) -> TrtSession:
    """Deserializes verified plan bytes and checks names, modes, types, shapes and the batch sizes 1 to `max_batch`.

    Args:
        host_code: let the plan run host code of its own, as a version-compatible one must; never by default.
        dla_core: the deep learning accelerator that the engine was built for.

    Raises: ModelIncompatible with what TensorRT says if it refuses the plan, or if the engine is not the expected one;
        GPUUnavailable (out_of_memory, gpu_lost).
    """
    trt, logger = flavour.trt, logger_of(flavour)
    logger.lines.clear()
    try:
        runtime = trt.Runtime(logger)
    except (TypeError, RuntimeError) as error:  # what the bindings make of a null pointer
        raise _refused(gpu, flavour, f"makes no runtime ({first_line(error)})") from error
    if host_code:
        runtime.engine_host_code_allowed = True
    if dla_core is not None:
        runtime.DLA_core = dla_core
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise _refused(gpu, flavour, "does not load the engine", key="engine_not_loadable")
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    if sorted(names) != sorted(wanted.name for wanted in (*inputs, *outputs)):
        raise _interface(f"the engine's tensors are {', '.join(names)}")
    found = [
        {wanted.name: _found(flavour, engine, wanted, mode, max_batch) for wanted in group}
        for group, mode in ((inputs, trt.TensorIOMode.INPUT), (outputs, trt.TensorIOMode.OUTPUT))
    ]
    return TrtSession(gpu, flavour, (runtime, engine), *found)


def _found(flavour: Flavour, engine: Any, wanted: EngineTensor, mode: Any, max_batch: int) -> EngineTensor:
    """The tensor as the engine has it."""
    trt, name = flavour.trt, wanted.name
    if engine.get_tensor_mode(name) != mode:
        raise _interface(f"the engine's {name} is no {mode.name.lower()}")
    if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
        raise _interface(f"the engine's {name} is not in the device's memory")
    types = {trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16"}
    kind = engine.get_tensor_dtype(name)
    dtype = types.get(kind, kind.name.lower())
    batch, *sizes = tuple(engine.get_tensor_shape(name))
    fits = len(sizes) == len(wanted.shape) and all(b in (None, a) for a, b in zip(sizes, wanted.shape, strict=True))
    if dtype not in wanted.types or not fits or -1 in sizes:
        raise _interface(
            f"the engine's {name} is {dtype} {(batch, *sizes)}, not {wanted.types[0]} {('batch', *wanted.shape)}"
        )
    if mode == trt.TensorIOMode.INPUT:
        _check_batch(engine, name, batch, max_batch)
    return EngineTensor(name, tuple(sizes), (dtype,))


def _check_batch(engine: Any, name: str, batch: int, max_batch: int) -> None:
    smallest, largest = batch, batch
    if batch == -1:
        lowest, _, highest = engine.get_tensor_profile_shape(name, 0)
        smallest, largest = lowest[0], highest[0]
    if not (smallest <= 1 and max_batch <= largest):
        raise _interface(f"the engine takes {smallest} to {largest} studies at once, not 1 to {max_batch}")


def _new_context(flavour: Flavour, engine: Any) -> Any:
    """An execution context without scratch memory, or None."""
    trt = flavour.trt
    if flavour.is_rtx:
        return _rtx_context(flavour, engine)
    return engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)


def _rtx_context(flavour: Flavour, engine: Any) -> Any:
    """RTX would at first run a fallback kernel and change to a better one later: same input, other bytes."""
    trt = flavour.trt
    runtime_config = engine.create_runtime_config()
    runtime_config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    runtime_config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(runtime_config)


def _interface(cause: str) -> ModelIncompatible:
    return ModelIncompatible(cause, _REBUILD, key="engine_interface")


def _refused(gpu: Gpu, flavour: Flavour, what: str, *, key: str = "engine_refused") -> FourphaseError:
    """What TensorRT's refusal means: a dead GPU, a lack of memory, or an engine that does not fit."""
    said = logger_of(flavour).texts("error")
    cause = f"{flavour.name} {flavour.version} {what}: {said[0] if said else 'no reason given'}"
    if not gpu.is_alive():
        return gpu.lose(cause)
    if any(word in line.lower() for word in _MEMORY for line in said):
        return out_of_memory(cause)
    return ModelIncompatible(cause, _REBUILD, key=key, table=[{"TensorRT says": line} for line in said])
