"""The report: limits beside latencies, no path of the machine, complete after every step."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fourphase.benchmarks.gpu.report import SCHEMA, Report, merge_reports, recordings_file, with_limits
from fourphase.runtime.errors import InputMissing, UsageError

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


def test_what_engines_say_is_kept_beside_the_report(tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    report = Report(tmp_path / "r.json", tmp_path / "kit", {}, recordings)
    report.add("machine", {"status": "ok", "result": {}})
    assert not recordings_file(tmp_path / "r.json").exists()
    for name in ("one.json", "two.json"):
        (recordings / name).write_text(f'{{"Layers": ["{name}"]}}')
        report.add(name, {"status": "ok", "result": {}})
    with zipfile.ZipFile(tmp_path / "r.inspector.zip") as archive:
        assert archive.namelist() == ["one.json", "two.json"]
        assert json.loads(archive.read("two.json")) == {"Layers": ["two.json"]}


GPU = {"name": "NVIDIA L4", "compute_capability": "8.9", "driver": "580.1"}


def part(path: Path, steps: dict[str, Any], **header: Any) -> Path:
    common = {"device": "cuda", "quick": False, "gpu": GPU, "kit": None, "call": 1, "started": "now", "wheels": {}}
    path.write_text(json.dumps({"schema": SCHEMA, **common, **header, "steps": steps}))
    return path


def test_calls_are_put_together(tmp_path: Path) -> None:
    """Limits need the peaks of one call and the rows of another; a step that ran wins over one that did not."""
    ran = {"status": "ok", "result": {}, "seconds": 3}
    failed = {"status": "failed", "result": {}, "seconds": 4}
    skipped = {"status": "skipped", "result": {}, "seconds": 0}
    found = records(PEAKS)
    one = part(tmp_path / "1.json", {"peaks": found["peaks"], "a": ran, "b": skipped, "c": ran})
    two = part(
        tmp_path / "2.json", {"torch/a": found["torch/a"], "a": skipped, "b": ran, "c": failed}, kit={"width": 16}
    )
    for report, member in ((one, "x.json"), (two, "y.json")):
        with zipfile.ZipFile(recordings_file(report), "w") as archive:
            archive.writestr(member, member)
    merged = merge_reports([one, two], tmp_path / "all.json")
    assert json.loads((tmp_path / "all.json").read_text()) == merged
    assert (merged["gpu"], merged["kit"]) == (GPU, {"width": 16})
    statuses = {name: step["status"] for name, step in merged["steps"].items()}
    assert statuses == {"peaks": "ok", "a": "ok", "b": "ok", "c": "failed", "torch/a": "ok"}
    assert merged["steps"]["torch/a"]["result"]["rows"][0]["limit"]["times_limit"] == 2.5
    with zipfile.ZipFile(tmp_path / "all.inspector.zip") as archive:
        assert archive.namelist() == ["x.json", "y.json"]


@pytest.mark.parametrize("header", [{"gpu": {**GPU, "name": "NVIDIA H100"}}, {"quick": True}, {"kit": {"width": 64}}])
def test_reports_of_two_machines_or_kits_are_not_put_together(header: dict[str, Any], tmp_path: Path) -> None:
    parts = [part(tmp_path / "1.json", {}, kit={"width": 16}), part(tmp_path / "2.json", {}, **header)]
    with pytest.raises(UsageError, match=next(iter(header))):
        merge_reports(parts, tmp_path / "all.json")
    parts[1].write_text("{}")
    with pytest.raises(InputMissing, match=r"2\.json"):
        merge_reports(parts, tmp_path / "all.json")
    assert not (tmp_path / "all.json").exists()
