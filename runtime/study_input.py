"""Where the network's input is made: on the CPU as an array, or on the GPU in the engine's own memory.

"auto" is the CPU in this version: nothing of the GPU's way has been measured. "gpu" never falls back: only the voxels
of the box cross the bus, the host never holds the input, and where that cannot be it is an error. Which it is, and why,
is part of the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.backend import Backend, Outputs
from fourphase.runtime.backends import Choice
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.cuda import probe
from fourphase.runtime.engine_model import DeviceStudy
from fourphase.runtime.errors import GPUUnavailable, UsageError
from fourphase.runtime.gpu_preprocess import GpuPreprocessor, Hounsfield
from fourphase.runtime.kernel_check import ALLOWED_HU, check_kernel
from fourphase.runtime.kernel_module import compile_module
from fourphase.runtime.kernel_plan import KernelPlan
from fourphase.runtime.preprocess import SamplingPlan, normalized
from fourphase.runtime.tensorrt_backend import TensorRTBackend

__all__ = [
    "PREPROCESS", "CpuPreprocessing", "GpuPreprocessing", "HostInput", "Preprocessing", "StudyInput", "check_wanted",
    "load_preprocessing",
]  # fmt: skip

Floats = NDArray[np.float32]

#: Every name --preprocess takes.
PREPROCESS = ("auto", "cpu", "gpu")
_WHY_CPU = "auto: preprocessing on a GPU has not been measured yet (--preprocess gpu tries it)"
_OF_THE_CPU = ("onnxruntime", "openvino")


class StudyInput(Protocol):
    """One study's input on its way to the network: first every phase, then the run."""

    def put(self, phase: int, plan: SamplingPlan, hu: Hounsfield) -> None:
        """Samples, windows and normalises one phase. `hu`: the plan's window; free again when this returns."""
        ...

    def infer(self) -> Outputs:
        """The outputs for this one study. Raises: as the backend's `infer`."""
        ...

    def array(self) -> Floats:
        """The input as the network gets it, float32 (P, T, C, H, W); from the GPU it is copied now."""
        ...


class Preprocessing(Protocol):
    """Makes inputs; `device` ("cpu", "gpu") and `reason` are for the result."""

    @property
    def device(self) -> str: ...

    @property
    def reason(self) -> str: ...

    def study(self) -> AbstractContextManager[StudyInput]:
        """The input of one study, valid within the block."""
        ...


class HostInput:
    """The input as an array: `values` is float32 (phases, T, C, H, W), undefined where nothing was put."""

    def __init__(self, phases: int, config: PreprocessingConfig) -> None:
        slices, rows, columns = config.size
        self.values: Floats = np.empty((phases, slices, config.channels, rows, columns), dtype=np.float32)
        self._config = config

    def put(self, phase: int, plan: SamplingPlan, hu: Hounsfield) -> None:
        self.values[phase] = normalized(plan.resample(hu), self._config)

    def array(self) -> Floats:
        return self.values


class _HostStudy(HostInput):
    def __init__(self, backend: Backend, phases: int, config: PreprocessingConfig) -> None:
        super().__init__(phases, config)
        self._backend = backend

    def infer(self) -> Outputs:
        return self._backend.infer(self.values[None])


class CpuPreprocessing:
    """For every backend."""

    device = "cpu"

    def __init__(self, backend: Backend, bundle: Bundle, reason: str) -> None:
        self.reason = reason
        self._backend, self._bundle = backend, bundle

    @contextmanager
    def study(self) -> Iterator[StudyInput]:
        yield _HostStudy(self._backend, len(self._bundle.phases), self._bundle.preprocessing)


class _GpuStudy:
    def __init__(self, study: DeviceStudy, preprocessor: GpuPreprocessor, config: PreprocessingConfig) -> None:
        self._study, self._preprocessor, self._config = study, preprocessor, config

    def put(self, phase: int, plan: SamplingPlan, hu: Hounsfield) -> None:
        """Returns before the GPU is done: it samples while the next phase is read."""
        packed = KernelPlan.of(plan, self._config)
        self._study.write(
            phase, lambda address, stream: self._preprocessor.enqueue(packed, hu, address, stream, phase=phase)
        )

    def infer(self) -> Outputs:
        return self._study.run()

    def array(self) -> Floats:
        return self._study.download()


class GpuPreprocessing:
    """For an engine on the GPU, whose input it writes."""

    device = "gpu"

    def __init__(
        self, backend: TensorRTBackend, preprocessor: GpuPreprocessor, config: PreprocessingConfig, reason: str
    ) -> None:
        self.reason = reason
        self._backend, self._preprocessor, self._config = backend, preprocessor, config

    @contextmanager
    def study(self) -> Iterator[StudyInput]:
        with self._backend.device_study() as study:
            yield _GpuStudy(study, self._preprocessor, self._config)


def check_wanted(wanted: str, *backends: str | None) -> None:
    """Refuses what can be seen to be wrong before anything is loaded. `backends`: the names that were asked for.

    Raises: UsageError for an unknown name, or for "gpu" with a backend of the CPU.
    """
    if wanted not in PREPROCESS:
        raise UsageError(
            f"unknown preprocessing {wanted!r}", f"choose one of {', '.join(PREPROCESS)}", key="preprocess_unknown"
        )
    of_the_cpu = [name for name in backends if name in _OF_THE_CPU]
    if wanted == "gpu" and of_the_cpu:
        raise UsageError(
            f"--preprocess gpu writes a TensorRT engine's input, and {of_the_cpu[0]} has none",
            "give --backend tensorrt or tensorrt-rtx, or leave --preprocess out",
            key="preprocess_backend",
        )


def load_preprocessing(wanted: str, choice: Choice, bundle: Bundle) -> Preprocessing:
    """What makes the input for a loaded backend; on the GPU proven first on two synthetic series.

    Args:
        wanted: one of PREPROCESS.

    Raises: for "gpu" GPUUnavailable if the backend is no engine, or if memory does not suffice; EnvironmentFault if the
        kernel cannot be compiled; SelfCheckFailed if it is off the CPU's result. An engine is then closed.
    """
    if wanted != "gpu":
        return CpuPreprocessing(choice.backend, bundle, "asked for" if wanted == "cpu" else _WHY_CPU)
    backend, device = choice.backend, probe().device
    if not isinstance(backend, TensorRTBackend) or device is None:
        raise GPUUnavailable(
            f"--preprocess gpu needs a TensorRT engine, but {backend.name} is used ({choice.reason})",
            "build an engine for this GPU with fp-export build-plan or --rebuild, or leave --preprocess out",
            key="preprocess_needs_engine",
        )
    try:
        return _on_the_gpu(backend, device.compute_capability, bundle.preprocessing)
    except BaseException:
        backend.close()
        raise


def _on_the_gpu(backend: TensorRTBackend, compute_capability: str, config: PreprocessingConfig) -> GpuPreprocessing:
    module = compile_module(compute_capability)
    preprocessor = backend.hold(GpuPreprocessor(backend.gpu, module))
    worst = check_kernel(backend.gpu, preprocessor, config)
    with backend.device_study():
        pass  # a lack of memory for a study is said now, not at the first patient
    reason = f"asked for; kernel by {module.compiler}, off the CPU's result by {worst:.1g} HU (allowed {ALLOWED_HU:g})"
    return GpuPreprocessing(backend, preprocessor, config, reason)
