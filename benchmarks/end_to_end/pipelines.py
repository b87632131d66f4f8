"""The pipelines that are compared, by name, and which of them this machine and bundle can run. Nothing is run here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fourphase.runtime.bundle import Bundle
from fourphase.runtime.errors import UsageError

__all__ = ["LEFT_OUT_OF_QUICK", "PIPELINES", "REFERENCE", "Job", "Pipeline", "chosen_pipelines", "why_missing"]

#: Its input and logits are what the others' are compared with.
REFERENCE = "plain-torch"
#: Of a rehearsal, unless asked for: compiling takes minutes also for a tiny network.
LEFT_OUT_OF_QUICK = ("plain-torch-compile",)
_NEEDS_GPU = ("tensorrt", "tensorrt-rtx")
_PACKAGES = {"torch": "torch", "torch-compile": "torch", "onnxruntime": "onnxruntime", "openvino": "openvino"}


@dataclass(frozen=True)
class Pipeline:
    """One way from a study to a result.

    Attributes:
        ours: `fp-run`'s; else the plain one, SimpleITK in front of `runtime`.
        runtime: what computes the network.
    """

    name: str
    ours: bool
    runtime: str
    precision: str
    what: str


@dataclass(frozen=True)
class Job:
    """What a pipeline's process needs to know; paths as text.

    Attributes:
        module: the network's weights as torch.save wrote the module.
        threads: how many the plain pipelines are told to use; ours find that out themselves.
    """

    name: str
    study: str
    box: str
    bundle: str
    module: str
    threads: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _ours(runtime: str, precision: str) -> Pipeline:
    return Pipeline(f"ours-{runtime}-{precision}", True, runtime, precision, f"fp-run, {runtime} {precision}")


def _plain(name: str, runtime: str, what: str) -> Pipeline:
    return Pipeline(name, False, runtime, "fp32", what)


PIPELINES: Mapping[str, Pipeline] = MappingProxyType(
    {
        pipeline.name: pipeline
        for pipeline in (
            _plain("plain-torch", "torch", "SimpleITK, torch eager FP32"),
            _plain("plain-torch-compile", "torch-compile", "SimpleITK, torch.compile FP32"),
            _plain("plain-onnxruntime", "onnxruntime", "SimpleITK, ONNX Runtime FP32"),
            _ours("onnxruntime", "fp32"),
            _ours("openvino", "fp32"),
            _ours("openvino", "int8"),
            _ours("tensorrt", "fp16"),
            _ours("tensorrt-rtx", "fp16"),
        )
    }
)


def chosen_pipelines(names: Sequence[str] | None) -> tuple[Pipeline, ...]:
    """The pipelines of these names, all of them for None.

    Raises: UsageError (2) for an unknown name, or if the reference is not among them.
    """
    if names is None:
        return tuple(PIPELINES.values())
    for name in names:
        if name not in PIPELINES:
            raise UsageError(
                f"unknown pipeline {name!r}", f"choose out of {', '.join(PIPELINES)}", key="pipeline_unknown"
            )
    if REFERENCE not in names:
        raise UsageError(
            f"{REFERENCE} is not among the pipelines", f"add {REFERENCE}: the others are compared with it",
            key="reference_missing",
        )  # fmt: skip
    return tuple(PIPELINES[name] for name in dict.fromkeys(names))


def why_missing(pipeline: Pipeline, bundle: Bundle, lacking: Mapping[str, str]) -> str:
    """Why a pipeline cannot run here, one sentence; "" if it can.

    Args:
        lacking: precision -> why the bundle was made without it, where that is known.
    """
    reason = _why_no_runtime(pipeline)
    if reason or pipeline.precision in bundle.models:
        return reason
    known = lacking.get(pipeline.precision, "it was built without")
    return f"the bundle has no {pipeline.precision} model: {known}"


def _why_no_runtime(pipeline: Pipeline) -> str:
    # Imported here: every pipeline's process imports this module, and that is part of its cold start.
    if pipeline.runtime in _NEEDS_GPU:
        from fourphase.benchmarks.latency.engines import engine_why_not

        reason = engine_why_not(pipeline.runtime)
        return f"{pipeline.runtime} needs its package and a GPU: {reason}" if reason else ""
    if find_spec(_PACKAGES[pipeline.runtime]) is None:
        return f"{_PACKAGES[pipeline.runtime]} is not installed"
    if pipeline.runtime == "openvino":
        from fourphase.runtime import openvino_backend

        return openvino_backend.why_not(pipeline.precision) or ""
    return ""


def checked_path(path: Path) -> str:
    """As text that does not depend on where a process runs."""
    return str(path.resolve())
