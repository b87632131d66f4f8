"""Measuring a report: one section after the other, whole on disk after each, gone on with after a kill; the command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fourphase.benchmarks.guarded_steps import Outcome, Save, Step
from fourphase.benchmarks.latency.options import LatencyOptions, chosen_networks
from fourphase.benchmarks.networks import NETWORKS
from fourphase.benchmarks.report import cli, sections
from fourphase.benchmarks.report.collect import Plan, failed_sections, measure_report
from fourphase.benchmarks.report.document import SCHEMA, cleaned, machine_name, machine_text, read_report
from fourphase.benchmarks.report.sections import SECTIONS, chosen_sections
from fourphase.runtime.errors import InputMissing, OutputNotWritable, UsageError
from tests.support.bench_reports import MACHINE, bench_report

Json = dict[str, Any]

app = typer.Typer(pretty_exceptions_enable=False)
app.command("report")(cli.report)
app.command("render")(cli.render)


def good_step(save: Save, *, quick: bool) -> Outcome:
    """In a process of its own: the scaling section of the fixture."""
    return Outcome("ok", result=bench_report(quick=quick)["sections"]["scaling"])


def bad_step(save: Save, *, quick: bool) -> Outcome:
    """In a process of its own: has something by the time that it fails."""
    save({"schema": "fourphase.gru/1", "rows": []})
    raise ValueError("no GRU here")


@cache
def sections_of(quick: bool) -> Json:
    return dict(bench_report(quick=quick)["sections"])


class Runner:
    """Stands in for `run_step`: answers with the fixture's sections, or as it is told to."""

    def __init__(self, answers: Mapping[str, Json | BaseException] | None = None) -> None:
        self.answers = dict(answers or {})
        self.asked: list[tuple[str, Mapping[str, Any], float]] = []
        self.machine = MACHINE

    def __call__(self, step: Step, budget_s: float) -> Json:
        if step.name == "machine":
            return record("ok", self.machine)
        self.asked.append((step.name, step.arguments, budget_s))
        answer = self.answers.get(step.name)
        if isinstance(answer, BaseException):
            raise answer
        quick = bool(step.arguments["quick"])
        return answer or record("ok", sections_of(quick)[step.name])

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.asked]


def record(status: str, result: Mapping[str, Any], reason: str = "", **more: Any) -> Json:
    return {"status": status, "reason": reason, "seconds": 1.5, "result": dict(result), "error": None,
            "output_tail": "", **more}  # fmt: skip


def plan(folder: Path, *only: str, **more: Any) -> Plan:
    return Plan(folder, chosen_sections(only, ()), **more)


def on_disk(folder: Path) -> Json:
    return read_report(folder / "report.json")


def test_every_section_is_measured_in_order_within_its_budget(tmp_path: Path) -> None:
    runner = Runner()
    report = measure_report(plan(tmp_path, budget_minutes=2.5), runner)
    assert runner.names == list(SECTIONS)
    assert {(arguments["quick"], budget) for _, arguments, budget in runner.asked} == {(False, 150.0)}
    assert on_disk(tmp_path) == report
    assert report["sections"] == cleaned(bench_report()["sections"])
    assert report["schema"] == SCHEMA
    assert report["machine"] == MACHINE
    assert report["seconds"] == dict.fromkeys(SECTIONS, 1.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "report.csv", "report.html", "report.json", "report.md",
    ]  # fmt: skip
    assert failed_sections(report) == {}


def test_a_failed_section_keeps_what_it_had_and_the_others_go_on(tmp_path: Path) -> None:
    error = {"type": "ValueError", "message": "bad", "traceback": f'File "{tmp_path}/x.py", line 3'}
    runner = Runner({
        "gru": record("failed", {"rows": []}, "bad", error=error, output_tail="it said"),
        "archive": record("timeout", {}, "stopped after 3 s"),
        "scaling": record("ok", {"schema": "fourphase.gru/1"}),
    })  # fmt: skip
    report = measure_report(plan(tmp_path), runner)
    assert runner.names == list(SECTIONS)
    assert report["sections"]["gru"] == {
        "rows": [], "status": "failed", "reason": "bad", "error": {"type": "ValueError", "message": "bad"},
    }  # fmt: skip
    assert failed_sections(report) == {
        "gru": "bad",
        "archive": "stopped after 3 s",
        "scaling": "its result says that it is fourphase.gru/1, not fourphase.scaling",
    }
    kept = (tmp_path / "failed-gru.txt").read_text()
    assert "line 3" in kept
    assert "it said" in kept
    assert "This section did not come to its end (timeout): stopped after 3 s" in (tmp_path / "report.html").read_text()


def test_a_killed_run_keeps_what_it_had_and_goes_on_from_there(tmp_path: Path) -> None:
    killed = Runner({"gru": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        measure_report(plan(tmp_path), killed)
    assert list(on_disk(tmp_path)["sections"]) == ["latency", "end-to-end"]
    assert (tmp_path / "report.html").exists()
    resumed = Runner()
    report = measure_report(plan(tmp_path, resume=True), resumed)
    assert resumed.names == ["gru", "scaling", "archive", "baselines", "preprocess"]
    assert list(report["sections"]) == list(SECTIONS)


def test_what_failed_is_measured_again_when_resumed(tmp_path: Path) -> None:
    measure_report(plan(tmp_path, "gru", "scaling"), Runner({"gru": record("crashed", {}, "SIGKILL")}))
    assert (tmp_path / "failed-gru.txt").exists()
    resumed = Runner()
    report = measure_report(plan(tmp_path, "gru", "scaling", resume=True), resumed)
    assert resumed.names == ["gru"]
    assert failed_sections(report) == {}
    assert not (tmp_path / "failed-gru.txt").exists()


def test_a_report_is_not_overwritten_nor_mixed(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match=r"no report\.json to go on with"):
        measure_report(plan(tmp_path, resume=True), Runner())
    measure_report(plan(tmp_path, "gru"), Runner())
    with pytest.raises(UsageError, match="is there already"):
        measure_report(plan(tmp_path, "gru"), Runner())
    with pytest.raises(UsageError, match="rehearsal"):
        measure_report(plan(tmp_path, "gru", resume=True, quick=True), Runner())
    other = Runner()
    other.machine = {**MACHINE, "cpu": {**MACHINE["cpu"], "usable_cores": 4}}
    with pytest.raises(UsageError, match="another machine"):
        measure_report(plan(tmp_path, "gru", resume=True), other)
    assert list(on_disk(tmp_path)["sections"]) == ["gru"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"python": "3.12.1"}, "Python"),
        ({"packages": {**MACHINE["packages"], "torch": "2.14.0"}}, "torch"),
        ({"packages": {**MACHINE["packages"], "openvino": "2026.4.1"}}, "openvino"),
        ({"packages": {"fourphase": "0.1.0"}}, "torch, onnxruntime"),
    ],
)
def test_a_report_is_not_gone_on_with_by_other_versions(tmp_path: Path, change: Json, named: str) -> None:
    measure_report(plan(tmp_path, "gru"), Runner())
    other = Runner()
    other.machine = {**MACHINE, **change}
    with pytest.raises(UsageError, match=f"begun with other versions of {named}$") as caught:
        measure_report(plan(tmp_path, "scaling", resume=True), other)
    assert caught.value.key == "versions_differ"
    assert other.asked == []


def test_a_resumed_report_lists_the_sections_of_all_calls(tmp_path: Path) -> None:
    measure_report(plan(tmp_path, "scaling", "latency"), Runner())
    resumed = measure_report(plan(tmp_path, "gru", resume=True, budget_minutes=5.0), Runner())
    assert resumed["settings"] == {"sections": ["latency", "gru", "scaling"], "budget_minutes": 5.0}
    assert on_disk(tmp_path)["settings"] == resumed["settings"]


def test_a_skipped_section_is_no_failure(tmp_path: Path) -> None:
    report = measure_report(plan(tmp_path, "gru", "preprocess"), Runner({"gru": record("skipped", {}, "no GRU")}))
    assert report["sections"]["gru"] == {"status": "skipped", "reason": "no GRU"}
    assert failed_sections(report) == {}
    assert not (tmp_path / "failed-gru.txt").exists()
    assert "This section was skipped: no GRU" in (tmp_path / "report.html").read_text()


def test_sections_are_chosen_by_name() -> None:
    assert [one.name for one in chosen_sections(["gru", "latency"], [])] == ["latency", "gru"]
    assert [one.name for one in chosen_sections([], ["latency"])] == list(SECTIONS)[1:]
    with pytest.raises(UsageError, match=r"'grue' is no section") as caught:
        chosen_sections([], ["grue"])
    assert "end-to-end" in caught.value.hint
    with pytest.raises(UsageError, match="leave no section"):
        chosen_sections(["gru"], ["gru"])


def test_a_report_measures_all_networks() -> None:
    (latency,) = chosen_sections(["latency"], [])
    assert latency.step(quick=True).arguments == {"quick": True, "networks": ["all"]}
    assert chosen_networks(LatencyOptions(networks=["all"])) == tuple(NETWORKS)


@pytest.fixture
def two_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command measures two sections, by the steps above."""
    functions = {"gru": f"{__name__}:bad_step", "scaling": f"{__name__}:good_step"}
    made = {name: replace(SECTIONS[name], function=function) for name, function in functions.items()}
    monkeypatch.setattr(sections, "SECTIONS", MappingProxyType(made))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def test_the_command_exits_with_40_and_writes_a_page(tmp_path: Path, two_sections: None) -> None:
    result = CliRunner().invoke(app, ["report", "-o", str(tmp_path / "out"), "--quick", "--json"])
    assert result.exit_code == 40, result.stderr
    report = json.loads(result.stdout)
    assert report == on_disk(tmp_path / "out")
    assert report["quick"] is True
    assert report["sections"]["gru"]["status"] == "failed"
    assert report["sections"]["gru"]["reason"] == "no GRU here"
    assert report["sections"]["gru"]["schema"] == "fourphase.gru/1"
    assert report["sections"]["scaling"] == cleaned(bench_report(quick=True)["sections"]["scaling"])
    assert report["machine"]["cpu"]["usable_cores"] > 0
    assert "error: 1 of 2 sections failed: gru (no GRU here)" in result.stderr
    assert "measuring gru (1 of 2; then scaling)" in result.stderr
    assert "bad_step" in (tmp_path / "out" / "failed-gru.txt").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no GRU here" in page
    assert "REHEARSAL" in page
    for path in (tmp_path / "out").iterdir():
        assert str(Path(__file__).parents[2]) not in path.read_text()


def test_the_command_succeeds_and_its_last_line_is_the_report(tmp_path: Path, two_sections: None) -> None:
    result = CliRunner().invoke(app, ["report", "-o", str(tmp_path / "out"), "--only", "scaling", "--quiet"])
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    *shown, last = result.stdout.splitlines()
    assert json.loads(last) == on_disk(tmp_path / "out")
    assert any("grows with slices to the power of 1.01" in line for line in shown)


@pytest.mark.usefixtures("two_sections")
def test_a_full_disk_is_no_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(OutputNotWritable):
            cli.report(tmp_path / "out", only=["scaling"])


def test_render_writes_the_same_files_again(tmp_path: Path) -> None:
    measure_report(plan(tmp_path / "one"), Runner())
    result = CliRunner().invoke(app, ["render", str(tmp_path / "one/report.json"), "-o", str(tmp_path / "two")])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["name"] == "xeon-2-cores"
    for name in ("report.csv", "report.md", "report.html"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.parametrize("text", ["", "[1]", '{"schema": "fourphase.report/1"}', '{"schema": "fourphase.gru/1"}'])
def test_what_is_no_report_is_not_rendered(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputMissing):
        read_report(tmp_path / "report.json")


def test_a_report_of_unknown_or_swapped_sections_is_not_rendered(tmp_path: Path) -> None:
    report = bench_report()
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**report, "sections": {"weather": {}}}))
    with pytest.raises(UsageError, match="unknown section 'weather'"):
        read_report(path)
    path.write_text(json.dumps({**report, "sections": {"gru": report["sections"]["scaling"]}}))
    with pytest.raises(InputMissing, match=r"section gru is a fourphase.scaling"):
        read_report(path)


@pytest.mark.parametrize(
    ("cpu", "gpu", "name"),
    [
        ("Intel(R) Xeon(R) Processor", None, "xeon-2-cores"),
        ("Intel(R) Core(TM) i7-1165G7 CPU @ 2.80GHz", None, "core-i7-1165g7-2-cores"),
        ("AMD EPYC 7763 64-Core Processor", None, "epyc-7763-2-cores"),
        (None, None, "unknown-2-cores"),
        ("Intel(R) Xeon(R) Processor", "NVIDIA H100 80GB HBM3", "h100-80gb-hbm3"),
        (None, "NVIDIA GeForce RTX 4090", "rtx-4090"),
    ],
)
def test_machines_are_named_by_what_they_are(cpu: str | None, gpu: str | None, name: str) -> None:
    machine = {**MACHINE, "cpu": {"name": cpu, "usable_cores": 2}, "gpu": gpu and {"name": gpu}}
    assert machine_name(machine) == name
    assert "(R)" not in machine_text(machine)


def test_paths_of_this_machine_and_long_floats_are_cleaned() -> None:
    found = cleaned({"a": [1.23456789, str(Path.home() / "x")], "b": None})
    assert found == {"a": [1.23457, "<home>/x"], "b": None}
