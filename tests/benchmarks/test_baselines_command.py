"""`fp-bench baselines --quick` as a user calls it, its JSON, and the step of the report."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fourphase.benchmarks.accuracy import baselines_bench, baselines_command, judgement
from fourphase.benchmarks.accuracy.baselines_command import baselines, baselines_step
from fourphase.benchmarks.networks import NETWORKS, TINY
from fourphase.calibration import metrics
from fourphase.runtime.errors import OutputNotWritable, UsageError

APP = typer.Typer()
APP.command()(baselines)
TWO = ["--network", "resnet3d-18-medicalnet", "--network", "four-phase"]
SMALL = ["--quick", "--count", "8", "--workers", "1"]
#: An export per fold takes seconds.
FP32 = [*SMALL, "--no-int8"]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are for other tests."""
    for module in (metrics, judgement):
        monkeypatch.setattr(module, "bootstrap", partial(metrics.bootstrap, resamples=20))


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(APP, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_table_a_warning_and_one_line_of_json(tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    *lines, last = invoke(*TWO, *SMALL, "--seed", "2", "--plot", plot).splitlines()
    text, body = "\n".join(lines), json.loads(last)
    assert (body["schema"], body["quick"], body["folds"]) == ("fourphase.baselines/2", True, 2)
    assert "SYNTHETIC PHANTOMS, SMALL NETWORKS" in text
    assert "REHEARSAL (--quick)" in text
    assert "AUC 89.73, ACC 85.50, F1 85.44, NPV 86.35 %. Not comparable" in text
    assert [row["network"] for row in body["rows"]] == ["resnet3d-18-medicalnet", "four-phase"]
    assert [row["kind"] for row in body["rows"]] == ["baseline", "ours"]
    assert (body["phantoms"]["count"], body["phantoms"]["seed"], body["phantoms"]["positive"]) == (8, 2, "ICC")
    assert body["settings"]["scale"] == {"width": 4, "gru_hidden": 8, "size": [8, 32, 32], "depth": 2}
    assert "SYNTHETIC" in body["warning"]
    assert any("INT8 is each fold's network" in note for note in body["notes"])
    for row in body["rows"]:
        assert row["network"] in text
        assert f"{100 * row['auc']['value']:.1f}" in text
        _check_row(row)
    assert body["machine"]["packages"]["torch"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def _check_row(row: dict[str, Any]) -> None:
    module, _ = NETWORKS[row["network"]](TINY, 1)
    assert row["parameters"] == sum(parameter.numel() for parameter in module.parameters())
    assert (row["status"], row["reason"]) == ("ok", "")
    assert np.trapezoid(row["roc"]["tpr"], row["roc"]["fpr"]) == pytest.approx(row["auc"]["value"], abs=1e-5)
    assert sum(row["calibration_curve"]["count"]) == 8
    assert len(row["auc_of_folds"]) == 2
    losses = {entry["rate"]: entry["cross_entropy"] for entry in row["tuning_losses"]}
    assert losses[row["rate"]] == min(losses.values())
    assert (row["auc_against_four_phase"] is None) == (row["network"] == "four-phase")
    int8 = row["int8"]
    assert row["int8_reason"] == ""
    assert np.trapezoid(int8["roc"]["tpr"], int8["roc"]["fpr"]) == pytest.approx(int8["auc"]["value"], abs=1e-5)
    change = int8["auc"]["value"] - row["auc"]["value"]
    assert int8["auc_against_fp32"]["value"] == pytest.approx(change)
    assert 0 <= int8["flipped"] <= 8


def test_the_difference_is_that_of_the_aucs() -> None:
    body = json.loads(invoke(*TWO, *FP32, "--json", "--quiet"))
    assert body["settings"]["int8"] is None
    assert not any("INT8" in note for note in body["notes"])
    assert {(row["int8"], row["int8_reason"]) for row in body["rows"]} == {(None, "")}
    baseline, ours = body["rows"]
    difference = baseline["auc_against_four_phase"]
    assert difference["value"] == pytest.approx(baseline["auc"]["value"] - ours["auc"]["value"])
    assert difference["low"] <= difference["value"] <= difference["high"]


def test_without_four_phase_there_is_nothing_to_compare_with() -> None:
    body = json.loads(invoke("--network", "transmed", *FP32, "--epochs", "2", "--json"))
    assert body["rows"][0]["auc_against_four_phase"] is None
    assert body["settings"]["epochs"] == 2


def test_the_step_saves_after_each_network_and_gives_the_commands_object() -> None:
    saved: list[Any] = []
    asked = ["transmed", "four-phase"]
    outcome = baselines_step(saved.append, quick=True, network=asked, workers=1, count=8, calibration=0)
    assert outcome.status == "ok"
    assert [[row["network"] for row in one["rows"]] for one in saved] == [asked[:1], asked]
    assert saved[0]["rows"][0]["auc_against_four_phase"] is None, "four-phase was not through"
    assert saved[1]["rows"] == outcome.result["rows"]
    assert outcome.result["rows"][0]["auc_against_four_phase"] is not None
    printed = json.loads(invoke("--network", "transmed", *FP32, "--json"))
    for key in ("phantoms", "settings", "folds", "schema"):
        assert printed[key] == outcome.result[key]
    assert printed["rows"][0]["auc"] == outcome.result["rows"][0]["auc"]


def test_a_full_disk_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    result = SimpleNamespace(to_dict=lambda: {"schema": "fourphase.baselines/2"})
    monkeypatch.setattr(baselines_command, "_measured", lambda *_, **__: result)
    monkeypatch.setattr(baselines_command, "set_up", lambda *_: None)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(OutputNotWritable, match="no space left"):
            baselines(json_output=True)


def test_by_default_every_network_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def refuse(names: list[str], *_: object) -> None:
        asked.append(names)
        raise UsageError("enough", "", key="enough")

    monkeypatch.setattr(baselines_bench, "cross_validate", refuse)
    for names in ((), ("tdn", "tdn")):
        with pytest.raises(UsageError, match="enough"):
            baselines_step(lambda _: None, quick=True, network=names)
    assert asked == [list(NETWORKS), ["tdn"]]


def test_what_cannot_be_done_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no network 'resnet'") as caught:
        invoke("--network", "resnet", *SMALL)
    assert caught.value.key == "network_unknown"
    with pytest.raises(UsageError) as few:
        invoke("--quick", "--count", "8", "--folds", "5")
    assert few.value.key == "phantoms_too_few"
    with pytest.raises(UsageError, match=r"is not a \.png file"):
        invoke("--plot", tmp_path / "plot.jpg")
