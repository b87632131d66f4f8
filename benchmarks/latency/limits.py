"""The floor beside a latency: what the arithmetic and the traffic of a network cost at this machine's measured peaks.

Peaks are measured by a large matrix product and a large copy, never taken from a data sheet. The floor is that of the
usual way to run a network (direct convolutions, one pass per layer with everything elementwise fused into it): a
library that uses Winograd convolutions or fuses layers may come below 1 x.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from fourphase.benchmarks.guarded_steps import Outcome, Save
from fourphase.benchmarks.latency.statistics import QUICK, Protocol, measure_interleaved, statistics
from fourphase.benchmarks.latency.torch_timer import Inference, own_stream, timed, use_strict_fp32

__all__ = ["Cost", "limit_of", "measure_peaks", "network_cost"]

_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
#: Bytes of a value.
_SIZES = {"fp32": 4, "fp16": 2, "int8": 1}
#: Layers whose output goes to memory; normalisation and activations are taken as fused into the layer before.
_WRITING = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d, nn.GRU,
)  # fmt: skip
#: Functions likewise: attention keeps its scores to itself and writes what it mixes, a resize writes its result.
_WRITING_FUNCTIONS = (functional.scaled_dot_product_attention, functional.interpolate)
#: Edges of the square matrix products, and bytes of the copied buffer: far beyond every cache.
_EDGES, _COPY_BYTES = (4096, 8192), 1 << 30
_CPU_EDGES, _CPU_COPY_BYTES = (2048,), 1 << 28
_QUICK_EDGES, _QUICK_COPY_BYTES = (256,), 1 << 22


@dataclass(frozen=True)
class Cost:
    """What one study costs, whatever the precision.

    Attributes:
        gmac: multiply-accumulates of convolutions and matrix products, in 1e9.
        parameters: values of weights, each read once per inference.
        activations: values written by convolutions, poolings, linear and recurrent layers, attention and resizing, each
            read again once.
        inputs_outputs: values of the input and the outputs.
    """

    gmac: float
    parameters: int
    activations: int
    inputs_outputs: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _FunctionsWriting(TorchFunctionMode):
    """Counts the values that `_WRITING_FUNCTIONS` return."""

    written = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _WRITING_FUNCTIONS:
            self.written += result.numel()
        return result


def network_cost(module: nn.Module, example: Tensor) -> Cost:
    """Counts one study's cost without computing anything; `example` has the study on its first axis.

    Multiply-accumulates of a GRU and of attention are in it, too: on the meta device PyTorch takes them apart into
    matrix products. `nn.MultiheadAttention` is counted as arithmetic; what it writes is not.
    """
    shadow = copy.deepcopy(module).to("meta").eval()
    study = torch.empty_like(example[:1], device="meta")
    written = 0

    def count(layer: nn.Module, arguments: Any, output: Any) -> None:
        nonlocal written
        written += (output if isinstance(output, Tensor) else output[0]).numel()

    for layer in shadow.modules():
        if isinstance(layer, _WRITING):
            layer.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter, _FunctionsWriting() as functions, torch.no_grad():
        outputs = shadow(study)
    results = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return Cost(
        gmac=counter.get_total_flops() / 2e9,
        parameters=sum(parameter.numel() for parameter in shadow.parameters()),
        activations=written + functions.written,
        inputs_outputs=study.numel() + sum(result.numel() for result in results),
    )


def limit_of(cost: Cost, peaks: Mapping[str, Any], precision: str, batch: int) -> dict[str, Any] | None:
    """The shortest time for `batch` studies in ms and what sets it; None if the peak of this precision is unknown."""
    flops_per_s = peaks.get(f"matmul_{precision}_flops_per_s")
    bytes_per_s = peaks.get("copy_bytes_per_s")
    if not flops_per_s or not bytes_per_s:
        return None
    moved = cost.parameters + batch * (cost.inputs_outputs + 2 * cost.activations)
    arithmetic_ms = 1e3 * batch * cost.gmac * 2e9 / flops_per_s
    memory_ms = 1e3 * moved * _SIZES[precision] / bytes_per_s
    return {
        "arithmetic_ms": arithmetic_ms,
        "memory_ms": memory_ms,
        "limit_ms": max(arithmetic_ms, memory_ms),
        "bound_by": "arithmetic" if arithmetic_ms >= memory_ms else "memory",
    }


def measure_peaks(save: Save, *, device: str, quick: bool, threads: int | None = None) -> Outcome:
    """The largest matrix-product rate per precision (FP32 without TF32) and the copy rate, bytes read plus written.

    On a CPU also int8's, by OpenVINO, where its products are right; on a GPU PyTorch has no int8 product to measure.
    `threads`: how many of the usable cores to keep to, for the rest of this process; None: as they are.

    The best iteration counts: a limit is no average.
    """
    use_strict_fp32()
    if threads is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        torch.set_num_threads(threads)
    where = torch.device(device)
    precisions = [name for name in _PRECISIONS if name == "fp32" or where.type == "cuda"]
    edges, copied = _sizes(where, quick)
    result: dict[str, Any] = {"device": where.type, "tf32": False, "details": {}}
    for precision in precisions:
        for edge in edges:
            product = _product(edge, _PRECISIONS[precision], where)
            best_ms = _best_ms(product, where, quick, result, f"{precision} {edge}")
            name = f"matmul_{precision}_flops_per_s"
            result[name] = max(2 * edge**3 / best_ms * 1e3, result.get(name, 0.0))
            save(result)
    best_ms = _best_ms(_copy(copied, where), where, quick, result, f"copy {copied}")
    result["copy_bytes_per_s"] = 2 * copied / best_ms * 1e3
    save(result)
    if where.type == "cpu":
        _measure_int8(result, edges, quick)
    return Outcome("ok", result=result)


def _measure_int8(result: dict[str, Any], edges: Sequence[int], quick: bool) -> None:
    """Adds the int8 rate of this CPU, or under `int8_reason` why there is none."""
    from fourphase.benchmarks.latency.int8_product import int8_product, why_no_int8

    reason = why_no_int8()
    if reason is not None:
        result["int8_reason"] = reason
        return
    for edge in edges:
        best_ms = _best_ms(int8_product(edge), torch.device("cpu"), quick, result, f"int8 {edge}")
        rate = 2 * edge**3 / best_ms * 1e3
        result["matmul_int8_flops_per_s"] = max(rate, result.get("matmul_int8_flops_per_s", 0.0))


def _sizes(device: torch.device, quick: bool) -> tuple[tuple[int, ...], int]:
    if quick:
        return _QUICK_EDGES, _QUICK_COPY_BYTES
    if device.type == "cpu":
        return _CPU_EDGES, _CPU_COPY_BYTES
    # A small device shares its memory with the host: two buffers must fit beside everything else.
    free, _ = torch.cuda.mem_get_info()
    return _EDGES, min(_COPY_BYTES, free // 8)


def _product(edge: int, dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    # Random values: some devices multiply zeros faster.
    a, b = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    c = torch.empty_like(a)

    def multiply() -> None:
        torch.mm(a, b, out=c)

    return multiply


def _copy(size: int, device: torch.device) -> Callable[[], None]:
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy_all() -> None:
        target.copy_(source)

    return copy_all


def _best_ms(work: Callable[[], None], device: torch.device, quick: bool, result: dict[str, Any], name: str) -> float:
    """Measures one piece of work, notes its statistics under `details`, returns its best time."""
    stream = own_stream(device)
    if stream is not None:
        torch.cuda.synchronize()  # the buffers were filled on another stream
    candidate = timed(Inference(_nothing, work, _nothing), stream)
    protocol = QUICK if quick else Protocol(seconds=1.0)
    measurement = measure_interleaved({name: candidate}, protocol)[name]
    if measurement.error:
        raise measurement.error
    details = statistics(measurement, batch=1)["compute_ms"]
    result["details"][name] = details
    best: float = details["min"]
    return best


def _nothing() -> None:
    """Nothing crosses the bus."""
