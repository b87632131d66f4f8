"""What this machine can measure: where a runtime runs, and why a precision of it is not measured here."""

from __future__ import annotations

from collections.abc import Sequence

from fourphase.benchmarks.latency.runtimes import RUNTIMES, TORCH, runtime_module
from fourphase.benchmarks.latency.subjects import Subject
from fourphase.runtime.console import note
from fourphase.runtime.errors import EnvironmentFault, GPUUnavailable

__all__ = ["Availability"]

_ENGINES = ("tensorrt", "tensorrt-rtx")
_GPU_ONLY = (*_ENGINES, "cuda-graph")
_COMPILED = "torch-compile"
_NO_COMPILING = "a rehearsal compiles nothing: minutes for a tiny network (--runtime torch-compile does all the same)"
_NO_FP16 = "a CPU computes no FP16: the model would run in FP32 (--precision fp16 measures it all the same)"
_SLOW_FP16 = "FP16 is slow on a CPU (--precision fp16 measures it all the same)"


class Availability:
    """Reasons, by runtime and precision.

    Args:
        named, runtimes: precisions and runtimes that were asked for by name.
        quick: a rehearsal, in which nothing is compiled for minutes unless it was asked for.
    """

    def __init__(self, named: Sequence[str], runtimes: Sequence[str] = (), *, quick: bool = False) -> None:
        import torch

        self.main_device = "cuda" if torch.cuda.is_available() else "cpu"
        self._named = tuple(named)
        self._compiles = not quick or _COMPILED in runtimes

    def device(self, runtime: str) -> str:
        """Where it runs: PyTorch and engines on the GPU if there is one, the others on the CPU."""
        return self.main_device if runtime in (*TORCH, *_ENGINES) else "cpu"

    def why_not(self, runtime: str, precision: str) -> str | None:
        """Why this machine does not measure it; None if it does."""
        if runtime == _COMPILED and not self._compiles:
            return _NO_COMPILING
        device = self.device(runtime)
        reason = runtime_module(runtime).why_not(precision, device)
        if reason is None and precision == "fp16" and device == "cpu" and "fp16" not in self._named:
            return _SLOW_FP16 if runtime in TORCH else _NO_FP16
        return reason

    def why_not_of(self, subject: Subject, runtime: str, precision: str) -> str | None:
        """The same for a network: what its bundle lacks, and what speaks against the engines that it carries."""
        reason = self.why_not(runtime, precision) or subject.why_not(runtime, precision)
        if reason is None or subject.bundle is None or subject.registry or runtime not in _ENGINES:
            return reason
        from fourphase.benchmarks.latency.engines import plan_reasons

        return "; ".join(filter(None, (reason, plan_reasons(subject.bundle, runtime))))

    def models_needed(self, runtimes: Sequence[str], precisions: Sequence[str]) -> list[str]:
        """Precisions whose ONNX model some runtime here can run."""
        ours = [name for name in runtimes if name not in TORCH]
        return [one for one in precisions if any(self.why_not(runtime, one) is None for runtime in ours)]

    def check_named(self, runtimes: Sequence[str], precisions: Sequence[str], *, require: bool) -> None:
        """Says which runtimes that were asked for by name cannot be measured here at all; an error if they must.

        Raises: GPUUnavailable (22), EnvironmentFault (24) with `require`.
        """
        for runtime in (name for name in RUNTIMES if name in runtimes):
            reasons = [self.why_not(runtime, precision) for precision in precisions]
            if None in reasons:
                continue
            if not require:
                note(f"{runtime} cannot be measured here: {reasons[0]}")
                continue
            lacks_gpu = self.main_device == "cpu" and runtime in _GPU_ONLY and "not installed" not in str(reasons[0])
            kind = GPUUnavailable if lacks_gpu else EnvironmentFault
            raise kind(
                f"{runtime} is required and cannot be measured here: {reasons[0]}",
                "run where it works, or leave --require out",
                key="required_runtime_missing",
            )
