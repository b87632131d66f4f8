"""The report: limits beside latencies, no path of the machine, complete after every step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fourphase.benchmarks.gpu_report import SCHEMA, Report, readable, with_limits

COST = {"gmac": 50.0, "parameters": 10, "activations": 20, "inputs_outputs": 30}
PEAKS = {"matmul_fp32_flops_per_s": 1e13, "copy_bytes_per_s": 1e12}


def row(precision: str, batch: int, median_ms: float) -> dict[str, Any]:
    statistics = {"compute_ms": {"p50": median_ms}, "latency_ms": {"p50": 10 * median_ms}}
    return {"precision": precision, "batch": batch, "status": "ok", "statistics": statistics}


def records(peaks: dict[str, float]) -> dict[str, Any]:
    rows = [row("fp32", 1, 25.0), row("fp16", 1, 5.0), {"precision": "fp32", "batch": 1, "status": "failed"}]
    torch_step = {"status": "ok", "result": {"cost": COST, "rows": rows}}
    gates = {"status": "ok", "result": {"cost": None, "rows": [row("fp32", 4, 1.0)]}}
    return {"torch/a": torch_step, "tensorrt/gates": gates, "peaks": {"status": "ok", "result": peaks}}


def test_a_latency_is_so_many_times_the_limit() -> None:
    measured, unknown, failed = with_limits(records(PEAKS))["torch/a"]["result"]["rows"]
    assert measured["limit"]["limit_ms"] == pytest.approx(10)  # 100 GFLOP at 10 TFLOP/s
    assert measured["limit"]["times_limit"] == pytest.approx(2.5)  # compute, not copies
    assert unknown["limit"] is None  # the FP16 peak was not measured
    assert failed["limit"] is None


def test_without_a_cost_or_peaks_there_is_no_limit() -> None:
    assert "limit" not in with_limits(records(PEAKS))["tensorrt/gates"]["result"]["rows"][0]
    assert with_limits(records({}))["torch/a"]["result"]["rows"][0]["limit"] is None


def test_paths_are_named_and_floats_are_short() -> None:
    value = {"text": ["in /home/me/kit/a.onnx and /home/me/b"], "ms": 1.23456789, "bytes": 123456789, "none": None}
    assert readable(value, {"/home/me": "<home>", "/home/me/kit": "<kit>"}) == {
        "text": ["in <kit>/a.onnx and <home>/b"],
        "ms": 1.23457,
        "bytes": 123456789,
        "none": None,
    }


def test_the_file_is_complete_after_every_step(tmp_path: Path) -> None:
    report = Report(tmp_path / "out" / "r.json", tmp_path / "no kit", {"device": "cpu"})
    for count, (name, record) in enumerate(records(PEAKS).items(), start=1):
        report.add(name, {**record, "reason": f"{tmp_path}/no kit is not there, nor is {Path(__file__)}"})
        content = json.loads((tmp_path / "out" / "r.json").read_text())
        assert (content["schema"], content["device"], content["kit"]) == (SCHEMA, "cpu", None)
        assert len(content["steps"]) == count
    assert content["steps"]["torch/a"]["reason"] == (
        "<kit> is not there, nor is <project>/tests/benchmarks/test_gpu_report.py"
    )
    assert content["steps"]["torch/a"]["result"]["rows"][0]["limit"]["times_limit"] == 2.5
