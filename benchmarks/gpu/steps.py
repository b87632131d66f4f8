"""The steps of the GPU check in order, and the calls they are grouped in where a machine is lent for minutes at a time.

What comes first is what the rest hangs on: the machine, then parts of the network, then the whole, then the product
around it, then how fast PyTorch is without any of this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fourphase.benchmarks.gpu.kit import BATCH, MODELS, PRECISIONS
from fourphase.benchmarks.guarded_steps import Step
from fourphase.runtime.errors import UsageError

__all__ = ["CALLS", "check_steps", "selected"]

_ROOM = "fourphase.benchmarks"
#: What TensorRT for RTX is built for where it does not work for the GPU at hand: compute capabilities it knows well.
_FALLBACKS = ("8.0", "8.9")
_TARGETS = ("tensorrt-rtx", "tensorrt")
_PAIRS = (("gru", "gru-unrolled"), ("network", "network-unrolled"))
#: Call -> prefixes of its steps: each of about nine minutes at width 16. The first needs no kit, so that a library that
#: fills a transfer can be brought along; the last is what can be left out.
CALLS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        1: ("machine", "doctor", "kernel", "peaks", "torch/four-phase/1"),
        2: ("machine", "tensorrt-rtx/", "tensorrt/", "gru-forms/"),
        3: ("machine", "gpu-tests", "preprocessing", "product/", "leaks/", "rebuilds/"),
        4: ("machine", "torch/"),
    }
)


def check_steps(kit: Path | None, scratch: Path, device: str, quick: bool) -> tuple[Step, ...]:
    """All steps in order.

    Args:
        kit: a kit; without one the first step that needs it is preceded by one that makes it, at `scratch` / "kit".
        scratch: also the folder of the recordings (`scratch` / "recordings").
    """
    where = {"device": device, "quick": quick}
    folder = scratch / "kit"
    prepared = Step("prepare", f"{_ROOM}.gpu.gpu_check:prepare_kit", {"target": str(folder), "quick": quick})
    of_kit = {"kit": str(kit or folder), **where}
    recordings = {"recordings": str(scratch / "recordings")}
    return (
        Step("machine", f"{_ROOM}.machine:describe_machine"),
        Step("doctor", f"{_ROOM}.doctor_check:run_doctor"),
        Step("kernel", f"{_ROOM}.gpu.preprocess_check:check_kernel_compilers", {"device": device}),
        *([] if kit else [prepared]),
        *(step for target in _TARGETS for model in MODELS for step in _model_steps(target, model, of_kit | recordings)),
        *(step for target in _TARGETS for step in _pair_steps(target, of_kit)),
        Step("gpu-tests", f"{_ROOM}.gpu.gpu_tests:run_gpu_tests", {"device": device}),
        Step("preprocessing", f"{_ROOM}.gpu.preprocess_check:check_preprocessing", where),
        *(step for target in _TARGETS for step in _product_steps(target, of_kit)),
        Step("peaks", f"{_ROOM}.latency.limits:measure_peaks", where),
        *_torch_steps(where),
    )


def selected(steps: Sequence[Step], only: Sequence[str]) -> list[Step]:
    """The steps whose name starts with one of these, and those they need; all, if none is given.

    Raises: UsageError if a prefix fits no step.
    """
    for prefix in only:
        if not any(step.name.startswith(prefix) for step in steps):
            names = ", ".join(step.name for step in steps)
            raise UsageError(f"no step starts with {prefix!r}", f"the steps are {names}", key="step_unknown")
    chosen = [step for step in steps if not only or step.name.startswith(tuple(only))]
    needed = {step.needs for step in chosen}
    return [step for step in steps if step in chosen or step.name in needed]


def _model_steps(target: str, model: str, arguments: Mapping[str, Any]) -> list[Step]:
    """TensorRT for RTX for the GPU at hand, if that goes wrong for others; TensorRT has no such choice."""
    function = f"{_ROOM}.gpu.tensorrt_check:check_model"

    def step(name: str, capability: str | None, instead_of: str | None = None) -> Step:
        details = {"model": model, "target": target, "capability": capability}
        return Step(name, function, {**details, **arguments}, needs="prepare", instead_of=instead_of)

    if target == "tensorrt":
        return [step(f"tensorrt/{model}", None)]
    current = f"{target}/{model}/current"
    others = [step(f"{target}/{model}/{other}", other, current) for other in _FALLBACKS]
    return [step(current, None), *others]


def _pair_steps(target: str, arguments: Mapping[str, Any]) -> list[Step]:
    function = f"{_ROOM}.gpu.tensorrt_check:check_pair"
    return [
        Step(f"gru-forms/{target}/{pair[0]}", function, {"models": list(pair), **_built_for(target), **arguments},
             needs="prepare")
        for pair in _PAIRS
    ]  # fmt: skip


def _product_steps(target: str, arguments: Mapping[str, Any]) -> list[Step]:
    capabilities = _built_for(target)
    steps = [
        Step(f"product/{target}/{precision}", f"{_ROOM}.gpu.product_check:check_product",
             {"precision": precision, **capabilities, **arguments}, needs="prepare")
        for precision in PRECISIONS
    ]  # fmt: skip
    endurance = f"{_ROOM}.gpu.product_endurance"
    steps.append(Step(f"leaks/{target}", f"{endurance}:check_leaks", {**capabilities, **arguments}, needs="prepare"))
    steps += [
        Step(f"rebuilds/{target}/{precision}", f"{endurance}:check_rebuilds",
             {"precision": precision, "target": target, **arguments}, needs="prepare")
        for precision in PRECISIONS
    ]  # fmt: skip
    return steps


def _built_for(target: str) -> dict[str, Any]:
    """A flavour, and what to build for until an engine loads."""
    return {"target": target, "capabilities": [None, *(_FALLBACKS if target == "tensorrt-rtx" else ())]}


def _torch_steps(where: Mapping[str, Any]) -> list[Step]:
    """Ours and the baselines, every one at batch 1 before any at the larger one: time may run out. No ablation rows."""
    from fourphase.benchmarks.networks import BASELINES, OURS

    function = f"{_ROOM}.latency.torch_latency:measure_network"
    return [
        Step(f"torch/{name}/{batch}", function, {"network": name, "batch": batch, **where})
        for batch in (1, BATCH)
        for name in (*list(OURS)[:2], *BASELINES)
    ]
