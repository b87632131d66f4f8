"""The GPU check's step of a network in PyTorch: eager, torch.compile and CUDA graph, each FP32 and FP16, in turns.

All variants share one process and one copy of the weights, for minutes on a lent machine count; `fp-bench latency`
gives each a process of its own. Every variant is also compared with FP32 eager on the same input: a fast wrong answer
is shown as such.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fourphase.benchmarks.differences import difference
from fourphase.benchmarks.guarded_steps import Outcome, Save, error_record
from fourphase.benchmarks.latency.limits import network_cost
from fourphase.benchmarks.latency.statistics import QUICK, Protocol, measure_interleaved, statistics
from fourphase.benchmarks.latency.torch_inference import inference_of, run_once
from fourphase.benchmarks.latency.torch_timer import Inference, Transfers, own_stream, timed, use_strict_fp32
from fourphase.benchmarks.networks import NETWORKS, TINY, Scale

__all__ = ["measure_network"]

_CUDA_ONLY = "measured on a CUDA device only"


@dataclass(frozen=True)
class Variant:
    """One way to run the network: "eager", "compile" or "cuda-graph"; "fp32" or "fp16"."""

    way: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.way} {self.precision}"


_WAYS = ("eager", "compile", "cuda-graph")
VARIANTS = tuple(Variant(way, precision) for precision in ("fp32", "fp16") for way in _WAYS)
#: What the others are compared with.
BASELINE = VARIANTS[0]


def measure_network(save: Save, *, network: str, batch: int, device: str, quick: bool) -> Outcome:
    """Measures one network of the registry at one batch size.

    Result: `cost`, `settings`, and `rows`, one per variant: status, statistics, difference to FP32 eager.
    """
    use_strict_fp32()
    where = torch.device(device)
    module, study = NETWORKS[network](TINY if quick else Scale(), batch)
    result: dict[str, Any] = {
        "network": network,
        "input": list(study.shape[1:]),
        "cost": network_cost(module, study).to_dict(),
        "settings": {"tf32": False, "cudnn_benchmark": True, "in_flight": 1, "threads": torch.get_num_threads()},
        "rows": [],
    }
    save(result)
    stream = own_stream(where)
    rows, ready = _prepare_all(module.to(where), study, where, stream)
    result["rows"] = list(rows.values())
    save(result)
    candidates = {name: timed(inference, stream) for name, inference in ready.items()}
    for name, measurement in measure_interleaved(candidates, QUICK if quick else Protocol()).items():
        if measurement.error:
            rows[name] |= {"status": "failed", "error": error_record(measurement.error)}
        else:
            rows[name] |= {"status": "ok", "statistics": statistics(measurement, batch)}
    failed = ", ".join(name for name, row in rows.items() if row["status"] == "failed")
    return Outcome("failed" if failed else "ok", f"failed: {failed}" if failed else "", result)


def _prepare_all(
    module: nn.Module, study: Tensor, device: torch.device, stream: torch.cuda.Stream | None
) -> tuple[dict[str, dict[str, Any]], dict[str, Inference]]:
    """Runs every variant once: a row for each, and the inferences of those that came up."""
    rows: dict[str, dict[str, Any]] = {}
    ready: dict[str, Inference] = {}
    reference: dict[str, Any] | None = None
    for variant in VARIANTS:
        row: dict[str, Any] = {"variant": variant.name, "precision": variant.precision, "batch": len(study)}
        rows[variant.name] = row
        if not _can_run(variant, device):
            row |= {"status": "skipped", "reason": _CUDA_ONLY}
            continue
        try:
            inference, outputs = _prepared(module, study, variant, device, stream)
            reference = outputs if variant is BASELINE else reference
            row["difference"] = reference and difference(outputs, reference)
            row["status"] = "not measured"
            ready[variant.name] = inference
        except Exception as error:
            row |= {"status": "failed", "error": error_record(error)}
    return rows, ready


def _can_run(variant: Variant, device: torch.device) -> bool:
    return device.type == "cuda" or variant is BASELINE


def _prepared(
    module: nn.Module, study: Tensor, variant: Variant, device: torch.device, stream: torch.cuda.Stream | None
) -> tuple[Inference, dict[str, Any]]:
    """One variant, run once: its inference and its outputs, float32 on the host."""
    if variant.precision == "fp16":
        module, study = copy.deepcopy(module).half(), study.half()
    transfers = Transfers(study, device)
    if stream is not None:
        torch.cuda.synchronize()  # weights and buffers were made on another stream
    inference = inference_of(module, transfers, variant.way, stream)
    outputs = run_once(inference, transfers, stream)
    return inference, {str(index): output for index, output in enumerate(outputs)}
