"""The road of engines as its users walk it, with TensorRT for RTX and no GPU: build, inspect, add, damage, refuse."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from fourphase.engine.bundle import contents_of, write_bundle
from fourphase.export.checkpoint import save_checkpoint
from fourphase.export.verify import verify_bundle
from fourphase.runtime.bundle import load_bundle
from fourphase.runtime.errors import ParityFailed
from tests.support.networks import SMALL, small_network

pytestmark = pytest.mark.rtx

Run = subprocess.CompletedProcess[str]


def fp_export(*arguments: str | Path) -> Run:
    line = [sys.executable, "-m", "fourphase.export.cli", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_checkpoint(path, small_network(), SMALL)
    return path


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """An FP16 bundle in two engines, and what the command said."""
    path = tmp_path_factory.mktemp("bundle") / "split.bundle"
    options = ("--target", "tensorrt-rtx", "--compute-capability", "8.6", "--compute-capability", "8.9")
    return path, fp_export(
        "build-engine", checkpoint, "-o", path, "--split", "4", *options, "--optimization-level", "5"
    )


def inspected(path: Path, *arguments: str | Path) -> list[dict[str, Any]]:
    outcome = fp_export("inspect", path, "--json", *arguments)
    assert outcome.returncode == 0, outcome.stderr
    plans: list[dict[str, Any]] = json.loads(outcome.stdout)["this_machine"]["plans"]
    return plans


def test_a_split_network_becomes_two_engines(built: tuple[Path, Run]) -> None:
    path, outcome = built
    assert outcome.returncode == 0, outcome.stderr
    assert "split in chunks of 4 slices: equal to the whole" in outcome.stdout
    assert "fp16 trunk of 4 slices, tensorrt-rtx" in outcome.stdout
    assert "fp16 tail, tensorrt-rtx" in outcome.stdout
    assert "the builder optimisation level is not used" in outcome.stderr
    bundle = load_bundle(path)
    split = bundle.models["fp16"].split
    assert split is not None
    assert split.slices == 4
    trunk, tail = (json.loads(bundle.read(engine.meta)) for engine in bundle.engines)
    assert (trunk["part"], trunk["batch"], tail["part"], tail["batch"]) == ("trunk", [1, 1, 1], "tail", [1, 1, 2])
    assert trunk["profile"]["study"]["max"] == [1, 4, 4, 3, 32, 32]
    assert tail["profile"]["features"]["max"][:3] == [2, 4, 8]
    for meta, name in ((trunk, split.trunk), (tail, split.tail)):
        assert meta["onnx_sha256"] == hashlib.sha256(bundle.read(name)).hexdigest()
    report = json.loads(bundle.read("report.json"))
    assert all(row["passed"] for row in report["split"]["rows"])
    memory = report["split"]["memory"]
    assert memory["split_peak_bytes"] < memory["whole"]["peak_bytes"]
    assert report["on_device"]["state"] == "not run"


def test_inspect_tells_of_every_plan_why_it_does_not_fit(built: tuple[Path, Run]) -> None:
    path, _ = built
    plans = inspected(path)
    assert [(plan["source"], plan["part"]) for plan in plans] == [("bundle", "trunk"), ("bundle", "tail")]
    assert all(plan["reasons"] for plan in plans)
    assert "split in chunks of 4 slices" in fp_export("inspect", path).stdout


def test_a_machine_without_torch_and_onnx_builds_from_the_bundle(built: tuple[Path, Run], tmp_path: Path) -> None:
    path, _ = built
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnx_ir', 'onnxruntime'): sys.modules[name] = None\n"
        "from fourphase.export import cli\n"
        "cli.main()"
    )
    plans = tmp_path / "plans"
    arguments = ["build-plan", str(path), "--target", "tensorrt-rtx", "--whole", "--plans", str(plans), "--json"]
    outcome = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    (made,) = json.loads(outcome.stdout)["plans"]
    assert (made["part"], made["precision"], made["outcome"]) == ("whole", "fp16", "built")
    parts = [(plan["source"], plan["part"]) for plan in inspected(path, "--plans", plans)]
    assert parts == [("bundle", "trunk"), ("bundle", "tail"), ("store", "whole")]
    verified = fp_export("verify", path)
    assert verified.returncode == 0, verified.stderr
    assert "split fp16: chunks of 4 slices, 2 inputs, largest difference" in verified.stdout


def test_verify_finds_a_tail_that_is_not_the_wholes(built: tuple[Path, Run], tmp_path: Path) -> None:
    contents = contents_of(load_bundle(built[0]))
    model = contents.models["fp16"]
    assert model.split is not None
    tail = onnx.load_model_from_string(model.split.tail)
    bias = next(entry for entry in tail.graph.initializer if entry.name == "network.spm.head.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))
    split = replace(model.split, tail=tail.SerializeToString())
    models = {**contents.models, "fp16": replace(model, split=split)}
    doctored = write_bundle(tmp_path / "doctored", replace(contents, models=models))
    with pytest.raises(ParityFailed, match="split fp16 model is off") as caught:
        verify_bundle(doctored.path)
    assert caught.value.key == "split_differs"


def test_errors_of_the_builder_name_our_blocks_without_onnx(checkpoint: Path, tmp_path: Path) -> None:
    """Turing has no FP32 matrix product in TensorRT for RTX; the old bundle stays as it was."""
    path = tmp_path / "b"
    assert fp_export("build-engine", checkpoint, "-o", path, "--precision", "fp32", "--target", "none").returncode == 0
    before = load_bundle(path).sha256
    refused = fp_export(
        "build-engine", checkpoint, "-o", path, "--precision", "fp32", "--target", "tensorrt-rtx",
        "--compute-capability", "7.5",
    )  # fmt: skip
    assert refused.returncode == 26
    assert "Turing" in refused.stderr
    assert load_bundle(path).sha256 == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--split", "3"], 2, "cannot be cut into chunks of 3"),
        (["--dla", "0"], 2, "cannot run the GRU"),
        (["--dla", "0", "--split", "4"], 2, "TensorRT for RTX does not know"),
        (["--hardware-compatibility", "ampere-plus"], 2, "--compute-capability instead"),
        (["--hardware-compatibility", "all"], 2, "ampere-plus"),
        (["--batch", "1,3,2"], 2, "min <= opt <= max"),
        (["--batch", "2,2,4"], 2, "could not run one"),
        (["--rebuilds", "0"], 2, "--rebuilds"),
        (["--workspace", "0"], 2, "workspace"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(
    checkpoint: Path, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    outcome = fp_export("build-engine", checkpoint, "-o", tmp_path / "b", "--target", "tensorrt-rtx", *arguments)
    assert outcome.returncode == code, outcome.stderr
    assert said in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_builds_killed_at_random_moments_leave_nothing_wrong(built: tuple[Path, Run], tmp_path: Path) -> None:
    """kill -9 while a plan is built and put away: afterwards the store has the plan, verified, or none."""
    path, _ = built
    plans = tmp_path / "plans"
    line = [sys.executable, "-m", "fourphase.engine.plan_command", str(path), "--target", "tensorrt-rtx"]
    line += ["--whole", "--plans", str(plans), "--force"]
    for step in range(6):
        with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(0.4 + 0.35 * step)
            process.send_signal(signal.SIGKILL)
        for plan in inspected(path, "--plans", plans):
            if plan["source"] == "store":
                data = (plans / f"{plan['key']}.plan").read_bytes()
                meta = json.loads((plans / f"{plan['key']}.json").read_text())
                assert hashlib.sha256(data).hexdigest() == meta["plan_sha256"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(plans.glob(".*.tmp"))
