"""`fp-bench latency` as a person runs it: the JSON's schema, what is missing, names that are none, the picture."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fourphase.benchmarks.latency import bench, command, subjects
from fourphase.benchmarks.latency.bench import LatencyBench
from fourphase.benchmarks.latency.command import latency, latency_step
from fourphase.benchmarks.latency.options import LatencyOptions, chosen_networks, rounds_of
from fourphase.benchmarks.latency.runtimes import runtime_module
from fourphase.benchmarks.latency.turns import Rounds
from fourphase.benchmarks.latency.turns import play as really_play
from fourphase.benchmarks.networks import BASELINES, NETWORKS, OURS
from fourphase.export.checkpoint import save_checkpoint
from fourphase.export.config import NetworkConfig
from fourphase.export.network import FourPhaseNet
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import (
    EnvironmentFault,
    FourphaseError,
    GPUUnavailable,
    ModelIncompatible,
    OutputNotWritable,
    SelfCheckFailed,
    UsageError,
)
from fourphase.runtime.golden import Tolerance
from tests.support.lowered_bundle import write_lowered
from tests.support.tiny_bundle import write_tiny

ROW = {
    "network", "runtime", "precision", "batch", "device", "status", "reason", "statistics", "limit", "difference",
    "memory", "load_s", "energy", "watched", "idle_cpu", "drift", "note",
}  # fmt: skip

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command("latency")(latency)


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def checked(result: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The rows by network, runtime and precision; every row has every key."""
    assert result["schema"] == "fourphase.latency/1"
    assert set(result) == {"schema", "quick", "machine", "settings", "peaks", "networks", "rows", "pairs"}
    for row in result["rows"]:
        assert set(row) == ROW
        assert row["status"] in ("ok", "missing", "failed", "not measured")
        assert (row["statistics"] is None) == (row["status"] == "missing")
        assert bool(row["reason"]) == (row["status"] != "ok")
    for pair in result["pairs"]:
        assert set(pair) == {"a", "b", "kind", "ratio"}
        assert set(pair["ratio"]) == {"value", "low", "high", "rounds", "refused"}
    return {(row["network"], row["runtime"], row["precision"]): row for row in result["rows"]}


@pytest.fixture(scope="module")
def own_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "mine"
    write_lowered(folder, Tolerance(10.0, 0.0, 10.0))
    return folder


def test_a_users_bundle_in_one_runtime_and_what_is_missing(own_bundle: Path, tmp_path: Path) -> None:
    options = ["--quick", "--runtime", "onnxruntime", "--runtime", "tensorrt", "--runtime", "torch-eager"]
    plot = tmp_path / "plot.png"
    text = invoke(own_bundle, *options, "--batch", "2", "--plot", plot)
    result = json.loads(text.splitlines()[-1])
    rows = checked(result)
    fp32 = rows["bundle:mine", "onnxruntime", "fp32"]
    assert fp32["status"] == "ok"
    assert (fp32["batch"], fp32["statistics"]["iterations"], fp32["statistics"]["batch"]) == (2, 5, 2)
    # The golden outputs are ONNX Runtime's own here, of the same input twice.
    assert fp32["difference"]["max_abs"] < 1e-5
    assert rows["bundle:mine", "onnxruntime", "int8"]["difference"]["max_abs"] > 1e-3
    assert "a CPU computes no FP16" in rows["bundle:mine", "onnxruntime", "fp16"]["reason"]
    assert "--checkpoint" in rows["bundle:mine", "torch-eager", "fp32"]["reason"]
    assert rows["bundle:mine", "tensorrt", "fp32"]["status"] == "missing"
    (pair,) = result["pairs"]
    assert (pair["kind"], pair["a"]["precision"], pair["b"]["precision"]) == ("precisions", "fp32", "int8")
    assert (result["quick"], result["settings"]["threads"]) == (True, 1)
    assert str(tmp_path) not in text.splitlines()[-1]
    assert "REHEARSAL" in text
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_two_tiny_networks_from_the_command_to_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOURPHASE_CACHE", str(tmp_path))
    names = ("resnet3d-18-medicalnet", "stic")
    wanted = [part for name in names for part in ("--network", name)]
    runtimes = [part for name in ("torch-eager", "onnxruntime", "openvino") for part in ("--runtime", name)]
    text = invoke("--quick", "--json", "--quiet", *wanted, *runtimes, "--precision", "fp32")
    result = json.loads(text)
    rows = checked(result)
    assert len(rows) == 6
    for (name, *_), row in rows.items():
        assert (row["status"], row["network"]) == ("ok", name)
        assert row["difference"]["relative"] < 1e-3
        assert row["limit"]["times"] == pytest.approx(
            row["statistics"]["latency_ms"]["p50"] / row["limit"]["limit_ms"], rel=1e-4
        )
        # Once among the ways of its network, once among the networks of its way.
        assert len(row["statistics"]["round_medians_ms"]) == 10
    kinds = [pair["kind"] for pair in result["pairs"]]
    assert (kinds.count("runtimes"), kinds.count("networks")) == (4, 3)
    assert all(pair["ratio"]["rounds"] == 5 for pair in result["pairs"])
    assert list(result["networks"]) == list(names)


def options(**keys: Any) -> LatencyOptions:
    return LatencyOptions(**keys)


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"runtimes": ["tvm"]}, "runtime_unknown"),
        ({"precisions": ["fp8"]}, "precision_unknown"),
        ({"batches": [0]}, "number_too_small"),
        ({"rounds": 0}, "number_too_small"),
        ({"seconds": -1.0}, "number_too_small"),
        ({"checkpoint": "c"}, "checkpoint_alone"),
        ({"bundles": ["a", "b"], "checkpoint": "c"}, "checkpoint_alone"),
    ],
)
def test_wrong_options(keys: dict[str, Any], key: str) -> None:
    with pytest.raises(UsageError) as raised:
        options(**keys)
    assert raised.value.key == key


def test_an_unknown_network_names_the_choices() -> None:
    with pytest.raises(UsageError) as raised:
        chosen_networks(options(networks=["vgg"]))
    assert all(name in raised.value.hint for name in NETWORKS)


def test_networks_by_word_in_the_order_of_the_registry() -> None:
    assert chosen_networks(options()) == ("four-phase", *BASELINES)
    assert chosen_networks(options(bundles=["mine"])) == ()
    assert chosen_networks(options(networks=["stic", "ours"])) == (*OURS, "stic")
    assert chosen_networks(options(networks=["all"])) == tuple(NETWORKS)


def test_how_long_is_measured() -> None:
    assert rounds_of(options(), quick=False) == Rounds(6, 3.0, 1, 0.2)
    assert rounds_of(options(), quick=True) == Rounds(5, 0.0, 1, 0.0)
    assert rounds_of(options(rounds=2, seconds=1.0), quick=True) == Rounds(2, 1.0, 1, 0.0)


@pytest.mark.parametrize(
    ("runtime", "reason", "error"),
    [
        ("tensorrt", "no CUDA device (no NVIDIA driver)", GPUUnavailable),
        ("tensorrt", "the Python module tensorrt is not installed; no CUDA device", EnvironmentFault),
        ("onnxruntime", "the package onnxruntime is not installed", EnvironmentFault),
    ],
)
def test_a_required_runtime_that_is_missing_is_an_error(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, reason: str, error: type[FourphaseError]
) -> None:
    monkeypatch.setattr(runtime_module(runtime), "why_not", lambda precision, device: reason)
    keys: dict[str, Any] = {"bundles": [str(own_bundle)], "runtimes": [runtime]}
    result = LatencyBench(options(**keys), lambda record: None, quick=True).run()
    assert {row["reason"] for row in result["rows"]} == {reason}
    assert result["peaks"] == {}  # nothing to set beside them
    with pytest.raises(error, match=f"{runtime} is required"):
        LatencyBench(options(**keys, require=True), lambda record: None, quick=True).run()


def test_what_is_no_bundle_and_what_cannot_be_drawn(own_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelIncompatible):
        invoke("--quick", tmp_path)
    with pytest.raises(UsageError):
        invoke("--quick", own_bundle, "--plot", tmp_path / "plot.pdf")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputNotWritable):
        invoke("--quick", own_bundle, "--plot", tmp_path / "folder.png")


def test_a_network_that_cannot_be_prepared_is_failed_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"status": "timeout", "reason": "stopped after 1 s", "result": {}}
    monkeypatch.setattr("fourphase.benchmarks.latency.subjects.run_step", lambda step, budget_s: failed)
    monkeypatch.setattr("fourphase.benchmarks.latency.prepare.prepared_before", lambda name, **keys: None)
    outcome = latency_step(lambda record: None, quick=True, networks=["stic"], runtimes=["onnxruntime"])
    rows = {row["precision"]: row for row in outcome.result["rows"]}
    assert (rows["fp32"]["status"], rows["fp16"]["status"]) == ("failed", "missing")
    assert rows["fp32"]["reason"] == "it could not be prepared: stopped after 1 s"


def test_a_group_too_large_for_the_memory_is_said(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no memory at all, each candidate is measured beside the anchor alone."""
    played = []

    def play(tasks: Any, rounds: Any, **keys: Any) -> Any:
        played.append([candidate.precision for candidate in tasks])
        return really_play(tasks, replace(rounds, rounds=1), **keys)

    monkeypatch.setattr(bench, "play", play)
    monkeypatch.setattr(bench, "available_bytes", lambda: 0)
    keys: dict[str, Any] = {"bundles": [str(own_bundle)], "runtimes": ["onnxruntime"]}
    wanted = options(**keys, precisions=["fp32", "fp16", "int8"])
    result = LatencyBench(wanted, lambda record: None, quick=True).run()
    assert played == [["fp32", "fp16"], ["fp32", "int8"]]
    assert result["settings"]["notes"] == ["bundle:mine: too large for the memory, measured in 2 parts"]
    rows = checked(result)
    assert rows["bundle:mine", "onnxruntime", "fp32"]["statistics"]["iterations"] == 2
    half = rows["bundle:mine", "onnxruntime", "fp16"]
    assert (half["status"], half["device"]) == ("ok", "cpu")  # asked for by name
    assert half["note"].startswith("computed in FP32")


def test_a_wrong_candidate_plays_no_further_and_is_in_no_pair(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bundles, so that there are groups of networks: FP32 is wrong in both and has none."""
    shutil.copytree(own_bundle, tmp_path / "other")
    played = []

    def play(tasks: Any, rounds: Any, **keys: Any) -> Any:
        played.append([(candidate.network, candidate.precision) for candidate in tasks])
        result = really_play(tasks, replace(rounds, rounds=1), **keys)
        for candidate, game in result.played.items():
            if candidate.precision == "fp32":
                assert game.started is not None
                outputs = {name: (np.asarray(values) + 1).tolist() for name, values in game.started.outputs.items()}
                game.started = replace(game.started, outputs=outputs)
        return result

    monkeypatch.setattr(bench, "play", play)
    keys: dict[str, Any] = {"bundles": [str(own_bundle), str(tmp_path / "other")], "runtimes": ["onnxruntime"]}
    result = LatencyBench(options(**keys, precisions=["fp32", "int8"]), lambda record: None, quick=True).run()
    rows = checked(result)
    assert "off torch FP32" in rows["bundle:mine", "onnxruntime", "fp32"]["reason"]
    assert rows["bundle:mine", "onnxruntime", "int8"]["status"] == "ok"
    assert played[2:] == [[("bundle:mine", "int8"), ("bundle:other", "int8")]]
    assert [(pair["kind"], pair["a"]["precision"]) for pair in result["pairs"]] == [("networks", "int8")]


def stub(monkeypatch: pytest.MonkeyPatch, *statuses: str) -> None:
    rows = [{"status": status, "reason": f"{status} for a reason"} for status in statuses]
    monkeypatch.setattr(command, "_measured", lambda options, save, quick: {"rows": rows})


def test_a_run_in_which_everything_failed_is_an_error_after_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, "missing", "failed")
    result = CliRunner().invoke(app, ["--json"])
    assert isinstance(result.exception, SelfCheckFailed)
    assert "failed for a reason" in result.exception.message
    assert len(json.loads(result.stdout)["rows"]) == 2
    for statuses in (["ok", "failed"], ["missing"], []):
        stub(monkeypatch, *statuses)
        invoke("--json")


def test_a_picture_that_fails_does_not_take_the_measurement_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(result: Any, path: Path) -> None:
        raise OutputNotWritable("the disk is full", "make room")

    stub(monkeypatch, "ok")
    monkeypatch.setattr("fourphase.benchmarks.latency.plot.plot_latency", full)
    result = CliRunner().invoke(app, ["--json", "--plot", str(tmp_path / "plot.png")])
    assert isinstance(result.exception, OutputNotWritable)
    assert json.loads(result.stdout)["rows"][0]["status"] == "ok"


OURS_OF_TEST = NetworkConfig(width=4, gru_hidden=4)


@pytest.mark.parametrize(
    ("config", "size", "what"),
    [
        (OURS_OF_TEST, (2, 4, 5), ""),
        (replace(OURS_OF_TEST, phases=("NC", "PV")), (2, 4, 5), "phases"),
        (replace(OURS_OF_TEST, classes=("a", "b", "c")), (2, 4, 5), "classes"),
        (OURS_OF_TEST, (2, 4, 6), "input"),
        (replace(OURS_OF_TEST, width=8), (2, 4, 5), "network"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(
    config: NetworkConfig, size: tuple[int, int, int], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(tmp_path / "bundle", network=OURS_OF_TEST.to_dict())
    saved = tmp_path / "net.safetensors"
    save_checkpoint(saved, FourPhaseNet(config), PreprocessingConfig(size=size))
    monkeypatch.setattr(subjects, "network_cost", lambda network, study: f"counted {network.config.width}")
    if not what:
        assert str(subjects.bundle_subject(tmp_path / "bundle", str(saved)).cost) == "counted 4"
        return
    with pytest.raises(UsageError, match=f"different networks: {what} ") as raised:
        subjects.bundle_subject(tmp_path / "bundle", str(saved))
    assert raised.value.key == "checkpoint_of_another"
