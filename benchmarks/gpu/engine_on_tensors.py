"""An engine whose buffers are torch tensors: needs no pycuda, and shows that nothing hangs on the product's run time.

Every status of TensorRT is checked, and what its logger said is in the error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fourphase.benchmarks.latency.statistics import Sample
from fourphase.benchmarks.latency.torch_timer import Inference, Transfers, own_stream, timed
from fourphase.runtime.flavour import Flavour
from fourphase.runtime.trt_logger import BuildLog, logger_of

__all__ = ["EngineOnTensors"]

Floats = NDArray[np.float32]


class EngineOnTensors:
    """A deserialized engine that reads and writes torch tensors on its own stream."""

    def __init__(self, flavour: Flavour, plan: bytes, device: str = "cuda") -> None:
        """Raises: RuntimeError if the plan is refused on this machine."""
        self.trt = trt = flavour.trt
        self.log: BuildLog = logger_of(flavour)
        self.device = torch.device(device)
        self.stream = own_stream(self.device)
        self.runtime = runtime = trt.Runtime(self.log)
        self.engine = engine = self._checked(runtime.deserialize_cuda_engine(plan), "the plan was not deserialized")
        self.context = self._checked(engine.create_execution_context(), "no execution context was created")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]
        for name in names:
            self._checked(engine.get_tensor_dtype(name) == trt.DataType.FLOAT, f"{name} is not float32")

    def infer(self, inputs: Mapping[str, Floats]) -> dict[str, Floats]:
        """Runs once: host arrays in, new host arrays out."""
        on_device = {name: torch.from_numpy(value).to(self.device) for name, value in inputs.items()}
        outputs = self._bind(on_device)
        self._synchronize()  # the inputs were copied on another stream
        self._enqueue()
        self._synchronize()
        return {name: value.cpu().numpy() for name, value in outputs.items()}

    def candidate(self, inputs: Mapping[str, Floats]) -> Callable[[], Sample]:
        """A function that runs once, copies from and to the host included, and returns its times."""
        (name,) = self.inputs
        transfers = Transfers(torch.from_numpy(inputs[name]), self.device)
        outputs = self._bind({name: transfers.input})
        self._synchronize()
        results = [outputs[name] for name in self.outputs]
        return timed(Inference(transfers.upload, self._enqueue, lambda: transfers.download(results)), self.stream)

    def _bind(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sets shapes and addresses; the caller keeps the tensors alive while the engine runs."""
        context = self.context
        for name in self.inputs:
            self._checked(context.set_input_shape(name, tuple(inputs[name].shape)), f"{name} refuses its shape")
            self._checked(context.set_tensor_address(name, inputs[name].data_ptr()), f"{name} refuses its address")
        missing = context.infer_shapes()
        self._checked(not missing, f"shapes are unknown for {missing}")
        outputs = {}
        for name in self.outputs:
            # NaN, so that what the engine leaves unwritten is seen.
            output = torch.full(tuple(context.get_tensor_shape(name)), torch.nan, device=self.device)
            self._checked(context.set_tensor_address(name, output.data_ptr()), f"{name} refuses its address")
            outputs[name] = output
        return outputs

    def _enqueue(self) -> None:
        context = self.context
        handle = self.stream.cuda_stream if self.stream else 0
        self._checked(context.execute_async_v3(handle), "execute_async_v3 returned False")

    def _synchronize(self) -> None:
        if self.stream:
            torch.cuda.synchronize()

    def _checked(self, value: Any, problem: str) -> Any:
        """The value, or an error with every line TensorRT logged if it is None or False."""
        if value is None or value is False:
            said = "; ".join(self.log.texts("error")) or "TensorRT gave no reason"
            raise RuntimeError(f"{problem}: {said}")
        return value
