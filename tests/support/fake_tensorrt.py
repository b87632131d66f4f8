"""TensorRT's runtime on `FakeCuda`: engines are Python functions, and every name is in every supported TensorRT.

What NVIDIA's runtime demands is demanded here: shapes before scratch memory, scratch memory and addresses before the
enqueue, no change of a context after its capture. Names that only RTX has exist only in that flavour.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from fourphase.runtime import tensorrt_backend
from fourphase.runtime.cuda import Device, Probe
from fourphase.runtime.flavour import Flavour
from tests.support.fake_cuda import FakeCuda, FakeStream

__all__ = ["FakePlan", "FakeTensorRT", "features_of", "outputs_of", "tail_plan", "trunk_plan", "whole_plan"]

Floats = NDArray[np.floating]
Arrays = Mapping[str, NDArray[np.floating]]

COMMON = frozenset(json.loads((Path(__file__).parents[1] / "engine" / "data" / "trt_api_common.json").read_text()))
RTX_ONLY = {
    "ICudaEngine.create_runtime_config",
    "IRuntimeConfig.set_execution_context_allocation_strategy",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
}
#: Scratch memory that the stand-in asks for, per study.
SCRATCH = 100


@dataclass(frozen=True)
class FakePlan:
    """An engine. Shapes are without the batch; `batch` is the profile's smallest and largest."""

    inputs: Mapping[str, tuple[tuple[int, ...], str]]
    outputs: Mapping[str, tuple[tuple[int, ...], str]]
    compute: Callable[[Arrays], Arrays]
    batch: tuple[int, int] = (1, 2)
    dynamic: bool = True

    def changed(self, **changes: Any) -> FakePlan:
        return replace(self, **changes)


class _Named:
    """An object of TensorRT's class `owner`: no attribute beyond the API that all versions share."""

    owner: ClassVar[str]

    def __init_subclass__(cls) -> None:
        public = {f"{cls.owner}.{name}" for name in vars(cls) if name[0] != "_" and name != "owner"}
        assert public <= COMMON | RTX_ONLY, public - COMMON

    def __setattr__(self, name: str, value: Any) -> None:
        assert name[0] == "_" or f"{self.owner}.{name}" in COMMON | RTX_ONLY, f"{self.owner}.{name}"
        object.__setattr__(self, name, value)


class _Runtime(_Named):
    owner = "Runtime"

    def __init__(self, fake: FakeTensorRT, logger: Any) -> None:
        self._fake, self._logger = fake, logger
        self.engine_host_code_allowed = False
        fake.runtimes.append(self)

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        self._fake.cuda.log.append(("deserialize", plan))
        if plan not in self._fake.plans:
            self._fake.say("Error Code 1: Serialization (the plan is of  another version)")
            return None
        return _Engine(self._fake, self._fake.plans[plan])


class _Engine(_Named):
    owner = "ICudaEngine"

    def __init__(self, fake: FakeTensorRT, plan: FakePlan) -> None:
        self._fake, self._plan = fake, plan
        self._tensors = {**plan.inputs, **plan.outputs}
        self.num_io_tensors = len(self._tensors)
        if fake.flavour == "tensorrt-rtx":
            self.create_runtime_config = lambda: _RuntimeConfig(fake)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        mode = self._fake.trt.TensorIOMode
        return mode.INPUT if name in self._plan.inputs else mode.OUTPUT

    def get_tensor_location(self, name: str) -> Any:
        return self._fake.trt.TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> Any:
        kinds = {"float32": "FLOAT", "float16": "HALF", "int32": "INT32"}
        return vars(self._fake.trt.DataType)[kinds[self._tensors[name][1]]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1 if self._plan.dynamic else self._plan.batch[1], *self._tensors[name][0])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        assert name in self._plan.inputs
        low, high = self._plan.batch
        return [(batch, *self._tensors[name][0]) for batch in (low, high, high)]

    def create_execution_context(self, strategy: Any) -> Any:
        """By an allocation strategy, or by RTX's runtime configuration."""
        if self._fake.flavour == "tensorrt-rtx":
            chosen = vars(strategy)
            kernels = chosen["dynamic_shapes_kernel_specialization_strategy"]
            assert kernels.name == "EAGER", "kernels that change later give other bytes"
            strategy = chosen["_allocation"]
        assert strategy.name == "USER_MANAGED"
        if self._fake.refuse == "create_execution_context":
            self._fake.say("Error Code 2: OutOfMemory (Requested size was 99 bytes.)")
            return None
        return _Context(self._fake, self._plan)


class _RuntimeConfig(_Named):
    owner = "IRuntimeConfig"

    def __init__(self, fake: FakeTensorRT) -> None:
        self._allocation: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._allocation = strategy


class _Context(_Named):
    owner = "IExecutionContext"

    def __init__(self, fake: FakeTensorRT, plan: FakePlan) -> None:
        self._fake, self._plan = fake, plan
        self._batch: int | None = None
        self._addresses: dict[str, int] = {}
        self._scratch: int | None = None
        self._captured = False
        fake.contexts_made += 1
        fake.contexts_live += 1

    def __del__(self) -> None:
        self._fake.contexts_live -= 1

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "device_memory":
            self._changed()
            assert value % 256 == 0
            self._scratch = value

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._changed()
        low, high = self._plan.batch
        if shape[1:] != self._plan.inputs[name][0] or not low <= shape[0] <= high:
            self._fake.say(f"Error Code 3: {name} has shape {shape}")
            return False
        self._batch = shape[0]
        return self._fake.refuse != "set_input_shape"

    def infer_shapes(self) -> list[str]:
        return ["study"] if self._fake.refuse == "infer_shapes" or self._batch is None else []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self._batch is not None
        return (self._batch, *self._plan.outputs[name][0])

    def update_device_memory_size_for_shapes(self) -> int:
        assert self._batch is not None, "shapes first"
        return SCRATCH * self._batch

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._changed()
        self._fake.cuda.log.append(("set_tensor_address", name, memory))
        self._addresses[name] = memory
        return self._fake.refuse != "set_tensor_address"

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda, stream = self._fake.cuda, self._fake.cuda.streams[stream_handle]
        cuda.log.append(("execute_async_v3", stream_handle, dict(self._addresses)))
        assert set(self._addresses) == {*self._plan.inputs, *self._plan.outputs}, "addresses first"
        if self._fake.refuse == "execute_async_v3" or (stream.captured is not None and self._fake.uncapturable):
            self._fake.say("Error Code 1: Myelin (something  went wrong)")
            return False
        if self._fake.refuse == "execute_async_v3 in silence":
            return False
        if self._fake.log_while_running:
            self._fake.say("Error Code 1: an error in spite of True")
        self._captured = self._captured or stream.captured is not None
        self._enqueue(stream)
        return True

    def _enqueue(self, stream: FakeStream) -> None:
        cuda, plan, batch, addresses, scratch = (
            self._fake.cuda, self._plan, self._batch, dict(self._addresses), self._scratch
        )  # fmt: skip
        assert batch is not None
        assert scratch is not None, "scratch memory first"
        capturing = stream.captured is not None

        def work() -> None:
            cuda.bytes_at(scratch, SCRATCH * batch).fill(0)
            read = {
                name: _array(cuda, addresses[name], (batch, *shape), dtype)
                for name, (shape, dtype) in plan.inputs.items()
            }
            given = plan.compute(read)
            for name, (shape, dtype) in plan.outputs.items():
                if name in given:
                    value = given[name] + (self._fake.graph_error if capturing else 0)
                    _array(cuda, addresses[name], (batch, *shape), dtype)[...] = value

        stream.add(work)

    def _changed(self) -> None:
        assert not self._captured, "a captured context must not be changed"


def _array(cuda: FakeCuda, address: int, shape: tuple[int, ...], dtype: str) -> Floats:
    kind = np.dtype(dtype)
    flat: Floats = cuda.bytes_at(address, int(np.prod(shape)) * kind.itemsize).view(kind)
    return flat.reshape(shape)


@dataclass(eq=False)
class FakeTensorRT:
    """The module, its engines and what is to go wrong.

    Attributes:
        plans: plan bytes -> engine.
        refuse: the call that answers False (None, a missing shape). uncapturable: False while a stream is captured.
        graph_error: added to what a captured enqueue computes.
    """

    cuda: FakeCuda
    plans: dict[bytes, FakePlan]
    flavour: str = "tensorrt"
    refuse: str | None = None
    uncapturable: bool = False
    log_while_running: bool = False
    graph_error: float = 0.0
    contexts_made: int = 0
    contexts_live: int = 0
    runtimes: list[Any] = field(default_factory=list)
    logger: Any = None

    def __post_init__(self) -> None:
        class ILogger:
            INTERNAL_ERROR, ERROR, WARNING, INFO = "INTERNAL_ERROR", "ERROR", "WARNING", "INFO"

        members = {
            "TensorIOMode": ("INPUT", "OUTPUT"),
            "TensorLocation": ("DEVICE", "HOST"),
            "DataType": ("FLOAT", "HALF", "INT32"),
            "ExecutionContextAllocationStrategy": ("STATIC", "USER_MANAGED"),
        }
        if self.flavour == "tensorrt-rtx":
            members["DynamicShapesKernelSpecializationStrategy"] = ("EAGER",)
        for owner, names in members.items():
            assert {f"{owner}.{name}" for name in names} <= COMMON | RTX_ONLY
        enums = {owner: SimpleNamespace(**{it: _Member(it) for it in names}) for owner, names in members.items()}
        self.trt = SimpleNamespace(ILogger=ILogger, Runtime=self._runtime, **enums)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
        """Makes this the flavour that a backend loads."""
        monkeypatch.setattr(tensorrt_backend, "load_flavour", lambda name: self.loaded())
        return self

    def loaded(self) -> Flavour:
        gpu = Probe(Device("Fake", "8.9", "13.0", None), "CUDA device Fake")
        return Flavour(self.flavour, self.trt, "10.3.0.26", gpu)

    def say(self, message: str) -> None:
        self.logger.log("ERROR", message)

    def _runtime(self, logger: Any) -> _Runtime:
        self.logger = logger
        return _Runtime(self, logger)


@dataclass(frozen=True)
class _Member:
    """An enum's member."""

    name: str


# A network small enough to be known in closed form; which slice and phase a value came from shows in the result.


def features_of(study: Floats) -> Floats:
    """(B, P, T, C, H, W) -> (B, P, T, C): the mean over the pixels."""
    return np.asarray(study.mean(axis=(4, 5)), study.dtype)


def outputs_of(features: Floats) -> dict[str, Floats]:
    """(B, P, T, C) -> logits (B, 2), phase_logits (B, P, 2): weighted by slice, then by phase."""
    slices, phases = np.arange(1, features.shape[2] + 1), np.arange(1, features.shape[1] + 1)
    phase_logits = np.einsum("bptc,t->bpc", features[..., :2], slices).astype(features.dtype)
    return {"logits": np.einsum("bpc,p->bc", phase_logits, phases), "phase_logits": phase_logits}


def whole_plan(shape: tuple[int, ...], *, outputs: str = "float32", max_batch: int = 2) -> FakePlan:
    return FakePlan(
        {"study": (shape, "float32")},
        {"logits": ((2,), outputs), "phase_logits": ((shape[0], 2), outputs)},
        lambda given: outputs_of(features_of(given["study"])),
        (1, max_batch),
    )


def trunk_plan(shape: tuple[int, ...], slices: int, *, features: str = "float32") -> FakePlan:
    phases, _, channels, *pixels = shape
    return FakePlan(
        {"study": ((phases, slices, channels, *pixels), "float32")},
        {"features": ((phases, slices, channels), features)},
        lambda given: {"features": features_of(given["study"])},
        (1, 1),
    )


def tail_plan(shape: tuple[int, ...], *, features: str = "float32", max_batch: int = 2) -> FakePlan:
    phases, slices, channels, *_ = shape
    return FakePlan(
        {"features": ((phases, slices, channels), features)},
        {"logits": ((2,), "float32"), "phase_logits": ((phases, 2), "float32")},
        lambda given: outputs_of(given["features"].astype(np.float32)),
        (1, max_batch),
    )
