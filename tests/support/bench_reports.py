"""Benchmark reports as the sections write them, from numbers that are made up: with gaps, refusals and failures.

Times follow from arithmetic over a made-up speed with a little noise, so that plots look as they would. Statistics and
ratios are made by the code that makes them in a measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np

from fourphase.benchmarks.latency.ratio import paired_ratio
from fourphase.benchmarks.latency.statistics import Measurement, Sample, statistics, summary

__all__ = ["MACHINE", "PROTOCOL", "bench_report", "latency_section"]

Json = dict[str, Any]

ROUNDS = 8
MACHINE: Json = {
    "gpu": None,
    "gpu_reason": "no CUDA device (no NVIDIA driver)",
    "gpu_state": None,
    "cpu": {"name": "Intel(R) Xeon(R) Processor", "cores": 2, "usable_cores": 2},
    "memory_bytes": 25276510208,
    "os": "Linux 6.18 x86_64",
    "python": "3.11.7",
    "packages": {"fourphase": "0.1.0", "torch": "2.13.0+cpu", "onnxruntime": "1.32.0", "triton": None},
    "torch": {"version": "2.13.0+cpu", "cuda": None, "cudnn": None, "sees_gpu": False},
}
#: name -> (parameters, GMAC)
NETWORKS = {
    "four-phase": (52_000_000, 152.1), "four-phase-shared": (18_400_000, 152.1),
    "four-phase-backbone": (44_700_000, 151.6), "four-phase-spm": (51_600_000, 151.8),
    "four-phase-miff": (45_100_000, 151.8), "four-phase-nc-art-pv": (39_100_000, 114.0),
    "four-phase-nc-art-dl": (39_100_000, 114.0), "resnet3d-18-s122": (33_200_000, 215.1),
    "resnet3d-18-s222": (33_200_000, 107.5), "resnet3d-18-medicalnet": (33_200_000, 24.3),
    "densenet3d-121": (11_300_000, 30.1), "stic": (17_900_000, 61.4), "mexpale": (33_200_000, 24.3),
    "transmed": (16_600_000, 50.2), "tdn": (26_100_000, 71.3),
}  # fmt: skip
#: (runtime, precision) -> made-up GMAC per second
SPEEDS = {
    ("torch-eager", "fp32"): 52.0, ("torch-compile", "fp32"): 61.0, ("onnxruntime", "fp32"): 66.0,
    ("onnxruntime", "int8"): 95.0, ("openvino", "fp32"): 71.0, ("openvino", "int8"): 171.0,
}  # fmt: skip
#: How well a network's layers suit a processor: 3D and depthwise convolutions less.
_SUIT = {"resnet3d-18-s122": 0.62, "resnet3d-18-s222": 0.6, "resnet3d-18-medicalnet": 0.5, "densenet3d-121": 0.3,
         "mexpale": 0.5, "tdn": 0.45}  # fmt: skip
_ABSENT = {
    ("tensorrt", "fp16"): "TensorRT is not installed",
    ("tensorrt-rtx", "fp16"): "no CUDA device (no NVIDIA driver)",
    ("cuda-graph", "fp32"): "no CUDA device (no NVIDIA driver)",
}
PROTOCOL: Json = {"protocol": {"rounds": ROUNDS, "seconds": 8.0, "warmup_s": 0.2}, "threads": 2}


def bench_report(*, quick: bool = False, seed: int = 0, slower: float = 1.0) -> Json:
    """A whole report, to be changed at will; `slower` multiplies every latency."""
    return deepcopy(_report(quick, seed, slower))


def latency_section(*, seed: int = 0) -> Json:
    """The latency section alone, to be changed at will."""
    return dict(bench_report(seed=seed)["sections"]["latency"])


@cache
def _report(quick: bool, seed: int, slower: float) -> Json:
    return {
        "schema": "fourphase.bench-report/1",
        "created": "2026-11-26",
        "quick": quick,
        "machine": MACHINE,
        "settings": {"sections": ["latency", "end-to-end", "gru"], "budget_minutes": 60.0},
        "seconds": {"latency": 1810.2, "end-to-end": 402.0, "gru": 120.5},
        "sections": {
            "latency": _latency(quick, seed, slower),
            "end-to-end": _end_to_end(quick, seed, slower),
            "gru": _gru(quick, seed, slower),
            "scaling": _scaling(quick, seed, slower),
            "archive": _archive(quick, slower),
            "baselines": _baselines(quick),
            "preprocess": _preprocess(quick, slower),
        },
    }


def _latency(quick: bool, seed: int, slower: float) -> Json:
    random = np.random.default_rng(seed)
    medians: dict[tuple[str, str, str], list[float]] = {}
    rows = []
    for network, (parameters, gmac) in NETWORKS.items():
        for (runtime, precision), speed in SPEEDS.items():
            row = _candidate(network, runtime, precision)
            if (network, runtime) == ("tdn", "torch-compile"):
                rows.append({**row, **_empty("failed", "ended by SIGKILL: out of memory <8 GiB>")})
                continue
            if (network, precision) == ("transmed", "int8"):
                rows.append({**row, **_empty("missing", "attention has no INT8 form here")})
                continue
            noise = 0.3 if (network, runtime) == ("stic", "torch-eager") else 0.01
            ms = slower * 1e3 * gmac / speed / _SUIT.get(network, 1.0)
            found = _statistics(ms, noise, random)
            medians[network, runtime, precision] = found["round_medians_ms"]
            rows.append({**row, **_measured(found, parameters, gmac, precision)})
        for (runtime, precision), reason in _ABSENT.items():
            rows.append({**_candidate(network, runtime, precision), **_empty("missing", reason)})
    return {
        "schema": "fourphase.latency/1", "machine": MACHINE, "quick": quick, "settings": PROTOCOL,
        "peaks": {"device": "cpu", "tf32": False, "matmul_fp32_flops_per_s": 2.4e11, "copy_bytes_per_s": 1.6e10,
                  "details": {}},
        "networks": {
            name: {"parameters": parameters, "gmac": gmac, "input": [4, 64, 3, 128, 128],
                   "cost": {"gmac": gmac, "parameters": parameters, "activations": 10**9, "inputs_outputs": 12582914}}
            for name, (parameters, gmac) in NETWORKS.items()
        },
        "rows": rows,
        "pairs": _pairs(medians),
    }  # fmt: skip


def _candidate(network: str, runtime: str, precision: str, batch: int = 1) -> Json:
    return {"network": network, "runtime": runtime, "precision": precision, "batch": batch}


def _empty(status: str, reason: str) -> Json:
    nothing = ("statistics", "limit", "difference", "memory", "load_s", "energy", "watched")
    return {"status": status, "reason": reason, **dict.fromkeys(nothing)}


def _statistics(ms: float, noise: float, random: np.random.Generator) -> Json:
    rounds = [[Sample(ms * float(np.exp(noise * random.normal()))) for _ in range(3)] for _ in range(ROUNDS)]
    return statistics(Measurement(rounds, wall_s=3 * ROUNDS * ms / 1e3), 1)


def _measured(found: Json, parameters: int, gmac: float, precision: str) -> Json:
    limit_ms = 1e3 * 2 * gmac * 1e9 / 2.4e11
    host = int(4.2 * parameters + gmac * 6e6)
    times = found["latency_ms"]["p50"] / limit_ms
    return {
        "status": "ok", "reason": "", "statistics": found,
        "limit": {"limit_ms": limit_ms, "bound_by": "arithmetic", "times": times} if precision == "fp32" else None,
        "difference": {"max_abs": 0.031 if precision == "int8" else 2.1e-6, "relative": 0.012, "finite": True,
                       "shapes_equal": True},
        "memory": {"host_peak_bytes": host, "device_peak_bytes": None}, "load_s": 1.25, "energy": None,
        "watched": {"seconds": 12.0, "energy_j": {}, "temperature_c": {}, "clock_mhz": {"cpu": [2100.0, 2100.0]},
                    "throttled": {}, "busy_elsewhere": 0.012, "notes": ["RAPL energy: not on this machine"]},
    }  # fmt: skip


def _pairs(medians: dict[tuple[str, str, str], list[float]]) -> list[Json]:
    pairs = []
    for (network, runtime, precision), values in medians.items():
        a = _candidate(network, runtime, precision)
        if network != "four-phase":
            other = medians.get(("four-phase", runtime, precision))
            if other:
                b = _candidate("four-phase", runtime, precision)
                pairs.append({"a": a, "b": b, "kind": "networks", "ratio": paired_ratio(values, other).to_dict()})
        eager = medians[network, "torch-eager", "fp32"]
        if eager is not values:
            b = _candidate(network, "torch-eager", "fp32")
            pairs.append({"a": b, "b": a, "kind": "runtimes", "ratio": paired_ratio(eager, values).to_dict()})
        if (runtime, precision) == ("openvino", "int8"):
            b = _candidate(network, "onnxruntime", "fp32")
            ratio = paired_ratio(medians[network, "onnxruntime", "fp32"], values)
            pairs.append({"a": b, "b": a, "kind": "runtimes", "ratio": ratio.to_dict()})
    return pairs


def _rounds(ms: float, random: np.random.Generator, noise: float = 0.01) -> list[float]:
    return [ms * float(np.exp(noise * random.normal())) for _ in range(ROUNDS)]


def _end_to_end(quick: bool, seed: int, slower: float) -> Json:
    random = np.random.default_rng(seed + 1)
    steps = {
        "ours-openvino-int8": {"scan": 80, "read": 310, "preprocess": 95, "breathing": 60, "inference": 900},
        "ours-onnxruntime-fp32": {"scan": 80, "read": 312, "preprocess": 96, "breathing": 60, "inference": 2310},
        "plain-torch": {"scan": 420, "read": 2900, "preprocess": 2350, "inference": 2950},
        "plain-onnxruntime": {"scan": 420, "read": 2890, "preprocess": 2360, "inference": 2330},
    }
    pipelines: Json = {}
    rounds: dict[str, list[float]] = {}
    for name, parts in steps.items():
        warm = {step: slower * ms for step, ms in parts.items()}
        totals = _rounds(sum(warm.values()), random)
        rounds[name] = totals
        cold = {"import": 900.0, "load": 1200.0, **{step: 1.1 * ms for step, ms in warm.items()}}
        pipelines[name] = {
            "status": "ok", "reason": "",
            "cold_ms": {**cold, "total": sum(cold.values())},
            "warm": {"steps_ms": warm, "total_ms": summary(totals), "round_medians_ms": totals},
            "peak_bytes": 900_000_000 if "ours" in name else 2_400_000_000, "logits": [[0.25, -0.25]],
        }  # fmt: skip
    pipelines["plain-torch-compile"] = {
        "status": "missing", "reason": "no C++ compiler for torch.compile", "cold_ms": None, "warm": None,
        "peak_bytes": None, "logits": None,
    }  # fmt: skip
    ratios = [
        {"a": a, "b": b, "ratio": paired_ratio(rounds[a], rounds[b]).to_dict()}
        for a in rounds if "plain" in a for b in rounds if "ours" in b
    ]  # fmt: skip
    return {
        "schema": "fourphase.end-to-end/1", "machine": MACHINE, "quick": quick, "settings": PROTOCOL,
        "study": {"slices_per_phase": 250, "files": 1000, "bytes": 526_000_000}, "pipelines": pipelines,
        "ratios": ratios,
        "agreement": {
            name: {"input_max_abs": 2.4e-4, "logits_max_abs": 0.0031, "refused": ""}
            for name in rounds if name != "plain-torch"
        },
    }  # fmt: skip


def _gru(quick: bool, seed: int, slower: float) -> Json:
    random = np.random.default_rng(seed + 2)
    rows: list[Json] = []
    ratios: list[Json] = []
    for runtime, gain in (("onnxruntime", 1.35), ("openvino", 0.85)):
        for hidden in (128, 256, 512):
            for slices in (16, 32, 64, 128, 256):
                base = slower * slices * hidden * (512 + hidden) * 6 / 4e9
                loop, unrolled = (_rounds(base * factor, random) for factor in (1.0, gain * (1 + slices / 800)))
                for form, values, nodes in (("loop", loop, 9), ("unrolled", unrolled, 14 * slices)):
                    rows.append({"runtime": runtime, "form": form, "slices": slices, "hidden": hidden, "status": "ok",
                                 "reason": "", "latency_ms": summary(values), "prepare_s": 0.02 * nodes / 9,
                                 "nodes": nodes, "difference": {"relative": 3.0e-7},
                                 "round_medians_ms": values})  # fmt: skip
                ratio = paired_ratio(loop, unrolled)
                ratios.append({"runtime": runtime, "slices": slices, "hidden": hidden, "ratio": ratio.to_dict()})
    torch_ratios = [
        {
            "runtime": "openvino",
            "form": "loop",
            "slices": 64,
            "hidden": 256,
            "ratio": paired_ratio(loop, loop).to_dict(),
        }
    ]
    for form in ("loop", "unrolled"):
        rows.append({"runtime": "tensorrt", "form": form, "slices": 64, "hidden": 256, "status": "missing",
                     "reason": "TensorRT is not installed", "latency_ms": None, "prepare_s": None, "nodes": None,
                     "difference": None})  # fmt: skip
    refused = paired_ratio([1.0, 2.0], [1.0, 1.0]).to_dict()
    ratios.append({"runtime": "torch-eager", "slices": 16, "hidden": 128, "ratio": refused})
    return {"schema": "fourphase.gru/1", "machine": MACHINE, "quick": quick, "settings": PROTOCOL, "rows": rows,
            "ratios": ratios, "torch_ratios": torch_ratios}  # fmt: skip


def _scaling(quick: bool, seed: int, slower: float) -> Json:
    random = np.random.default_rng(seed + 3)
    sweeps = []
    for network, speed in (("four-phase", 66.0), ("resnet3d-18-medicalnet", 33.0)):
        for what, xs, exponent, gmac in (
            ("slices", (16, 32, 64, 128, 256), 1.0, 2.38), ("crop", (64, 96, 128, 160, 192), 2.0, 0.00928),
            ("batch", (1, 2, 4, 8), 1.0, 152.0), ("width", (16, 32, 64), 1.8, 0.0853),
        ):  # fmt: skip
            points: list[Json] = [_point(x, gmac * x**exponent, slower / speed, random) for x in xs]
            if what == "batch":
                points[-1] = {"x": 8, "status": "failed", "reason": "out of memory", "latency_ms": None, "gmac": None,
                              "peak_bytes": None}  # fmt: skip
            statement = "latency grows as the arithmetic does"
            fit: Json | None = {"exponent": exponent + 0.01, "low": exponent - 0.03, "high": exponent + 0.05,
                                "r_squared": 0.9991}  # fmt: skip
            reason = ""
            if what == "width" and network != "four-phase":
                fit, statement, reason = None, "", "noisy: the interval of the exponent is wider than 0.5"
            sweeps.append({"what": what, "network": network, "runtime": "onnxruntime", "precision": "fp32",
                           "points": points, "fit": fit, "reason": reason,
                           "statement": statement})  # fmt: skip
    return {"schema": "fourphase.scaling/1", "machine": MACHINE, "quick": quick, "settings": PROTOCOL,
            "sweeps": sweeps}  # fmt: skip


def _point(x: int, gmac: float, second: float, random: np.random.Generator) -> Json:
    rounds = _rounds(1e3 * gmac * second, random)
    return {"x": x, "status": "ok", "reason": "", "latency_ms": summary(rounds), "round_medians_ms": rounds,
            "gmac": gmac, "peak_bytes": int(2e8 + gmac * 6e6)}  # fmt: skip


def _archive(quick: bool, slower: float) -> Json:
    rows: list[Json] = []
    for mode, workers, threads, seconds in (
        ("one process", 1, 2, 28.0), ("processes", 1, 1, 44.0), ("processes", 2, 1, 24.1), ("ray", 1, 1, 45.5),
        ("ray", 2, 1, 25.3),
    ):  # fmt: skip
        seconds *= slower
        rounds = 4 if mode == "ray" else 5
        speedup = paired_ratio([28.0 * slower] * rounds, [seconds] * rounds)
        rows.append({"mode": mode, "workers": workers, "threads_each": threads, "status": "ok", "reason": "",
                     "seconds": seconds, "studies_per_hour": 16 * 3600 / seconds, "failed": 0,
                     "speedup": speedup.to_dict(), "rounds_s": [seconds] * rounds, "same_results": True,
                     "efficiency": None if speedup.value is None else speedup.value / workers})  # fmt: skip
    rows.append({"mode": "processes", "workers": 4, "threads_each": 1, "status": "not measured",
                 "reason": "only 2 cores are usable", "seconds": None, "studies_per_hour": None, "failed": None,
                 "speedup": None, "efficiency": None})  # fmt: skip
    return {"schema": "fourphase.archive/1", "machine": MACHINE, "quick": quick, "settings": PROTOCOL, "studies": 16,
            "rows": rows,
            "explanation": ["The processor is busy 97 % of the time: more workers gain nothing."]}  # fmt: skip


def _baselines(quick: bool) -> Json:
    random = np.random.default_rng(4)
    rows: list[Json] = []
    for index, (network, (parameters, _)) in enumerate(NETWORKS.items()):
        if network == "tdn":
            rows.append({"network": network, "status": "failed", "reason": "training diverged in fold 3"})
            continue
        labels = np.arange(200) % 2
        scores = labels * (1.9 - 0.07 * index) + random.normal(size=200)
        order = np.argsort(-scores)
        tpr = np.concatenate([[0.0], np.cumsum(labels[order]) / 100])
        fpr = np.concatenate([[0.0], np.cumsum(1 - labels[order]) / 100])
        auc = float((scores[labels == 1][:, None] > scores[labels == 0]).mean())
        figures = {name: _interval(auc - less) for name, less in _LESS.items()}
        predicted = np.linspace(0.05, 0.95, 10)
        rows.append({
            "network": network, "status": "ok", "reason": "", "parameters": parameters // 64,
            "seconds_training": 41.5 + index, **figures, "roc": {"fpr": fpr.tolist(), "tpr": tpr.tolist()},
            "calibration_curve": {"predicted": predicted.tolist(), "observed": (predicted**1.2).tolist(),
                                  "count": [20] * 10},
            "brier": _interval(0.14 + 0.002 * index), "ece": _interval(0.05 + 0.001 * index),
            "auc_against_four_phase": None if index == 0 else _interval(-0.02 * index + 0.03),
            **_int8(network, index, auc),
        })  # fmt: skip
    paper = {"accuracy": 0.855, "auc": 0.8973, "f1": 0.8544, "npv": 0.8635, "of": "398 patients, Qiao et al. 2024"}
    return {"schema": "fourphase.baselines/2", "machine": MACHINE, "quick": quick,
            "settings": {**PROTOCOL, "int8": {"count": 16, "seed": 0}},
            "notes": ["intervals are over the phantoms"],
            "phantoms": {"count": 200, "seed": 0, "difficulty": 0.9}, "folds": 5, "rows": rows, "paper": paper,
            "warning": "SYNTHETIC PHANTOMS: this says nothing about patients."}  # fmt: skip


def _int8(network: str, index: int, auc: float) -> Json:
    """One that could not be lowered, one that loses, and others."""
    if network == "stic":
        return {"int8": None, "int8_reason": "fold 2: logits differ from PyTorch's"}
    change = -0.09 if network == "mexpale" else 0.002 * index - 0.01
    figures = {name: _interval(auc + change - less) for name, less in _LESS.items()}
    return {"int8_reason": "", "int8": {**figures, "brier": _interval(0.15), "ece": _interval(0.06),
                                        "auc_against_fp32": _interval(change), "flipped": index}}  # fmt: skip


_LESS = {"auc": 0.0, "accuracy": 0.08, "f1": 0.09, "npv": 0.1}


def _interval(value: float) -> Json:
    return {"value": value, "low": value - 0.031, "high": value + 0.027}


def _preprocess(quick: bool, slower: float) -> Json:
    ours, theirs = "fourphase", "SimpleITK whole volume"
    steps = {ours: (0.17, 0.63, 0.2), theirs: (0.07, 0.51, 0.42)}
    seconds = {ours: 0.49 * slower, theirs: 5.67 * slower}
    runs = {name: [factor * value for factor in (1.0, 0.97, 1.04, 0.99, 1.01)] for name, value in seconds.items()}
    return {
        "schema": "fourphase.preprocess-bench/1", "machine": MACHINE, "quick": quick, "settings": PROTOCOL,
        "repeats": 5, "slices": 1000, "seconds": seconds, "runs": runs,
        "spread": {name: [0.97 * value, 1.04 * value] for name, value in seconds.items()},
        "import_seconds": {ours: 0.61, theirs: 0.72}, "peak_mb": {ours: 210.5, theirs: 1422.0},
        "shares": {name: dict(zip(("scan", "read", "preprocess"), parts, strict=True))
                   for name, parts in steps.items()},
        "paired_ratio": paired_ratio([*reversed(runs[theirs])], runs[ours]).to_dict(), "max_difference": 2.4e-4,
    }  # fmt: skip


def without(report: Json, names: Sequence[str]) -> Json:
    """The report without these sections."""
    kept = {name: section for name, section in report["sections"].items() if name not in names}
    return {**report, "sections": kept}
