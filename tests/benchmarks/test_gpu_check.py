"""The kit and the command, end to end on the CPU: `prepare`, then `run --device cpu --quick`."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from fourphase.benchmarks import gpu_kit_writer
from fourphase.benchmarks.gpu_check import check_steps
from fourphase.benchmarks.gpu_kit import BATCH, MODELS, load_kit_model, read_manifest
from fourphase.benchmarks.gpu_kit_writer import _checked, _Part, write_kit
from fourphase.benchmarks.networks import TINY
from fourphase.runtime.cuda import probe
from fourphase.runtime.errors import IntegrityError, ModelIncompatible, ParityFailed

STEP_KEYS = {"status", "reason", "seconds", "result", "error", "output_tail", "gpu_after"}


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs `gpu_check` as a person would; tiny layers run best on one thread."""
    return subprocess.run(
        [sys.executable, "-m", "fourphase.benchmarks.gpu_check", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny kit for the session: the export takes some ten seconds whatever the size."""
    target = tmp_path_factory.mktemp("gpu") / "kit"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    write_kit(target, TINY)
    torch.set_num_threads(threads)
    return target


@pytest.fixture
def own_kit(kit: Path, tmp_path: Path) -> Path:
    """A copy, free to be damaged."""
    return Path(shutil.copytree(kit, tmp_path / "kit"))


@pytest.mark.parametrize("name", MODELS)
def test_the_kits_references_are_what_its_models_compute(kit: Path, name: str) -> None:
    """By onnx's reference evaluator, which shares no code with PyTorch or ONNX Runtime."""
    model = load_kit_model(kit, name)
    evaluator = ReferenceEvaluator(onnx.load_from_string(model.onnx))
    inputs, outputs = model.studies(1)
    assert {len(value) for value in (*inputs.values(), *outputs.values())} == {model.rows}
    assert {len(value) for value in model.studies(BATCH)[1].values()} == {BATCH * model.rows}
    for output, value in zip(outputs, evaluator.run(list(outputs), inputs), strict=True):
        np.testing.assert_allclose(value, outputs[output], atol=1e-4, rtol=1e-4)
        assert np.ptp(outputs[output]) > 1e-3  # a constant would prove nothing


def test_the_parts_are_cut_out_of_the_network(kit: Path) -> None:
    graphs = {name: onnx.load_from_string(load_kit_model(kit, name).onnx).graph for name in MODELS}
    names = {name: {node.name for node in graph.node} for name, graph in graphs.items()}
    assert names["gru"] | names["gates"] < names["network"]
    assert [node.op_type for node in graphs["gru"].node].count("GRU") == 1
    assert [output.name for output in graphs["gates"].output] == ["gate1.channel/NC", "gate1.spatial/NC"]
    assert read_manifest(kit)["models"]["network"]["cost"]["gmac"] > 0


def test_a_model_that_differs_from_pytorch_never_gets_into_a_kit(kit: Path) -> None:
    model = load_kit_model(kit, "gru")
    inputs = model.inputs["conv1d"]
    part = _Part(
        model=onnx.load_from_string(model.onnx),
        input="conv1d",
        codes=np.zeros(1, np.uint8),
        decode="features",
        outputs=("gru",),
        torch_function=lambda x: (x,),
        rows=1,
    )
    reference = dict(model.outputs)
    assert _checked("gru", part, model.onnx, inputs, reference)["relative"] < 1e-5
    reference["gru"] = reference["gru"] + np.float32(0.01)
    with pytest.raises(ParityFailed, match="the kit's model gru does not compute what PyTorch does"):
        _checked("gru", part, model.onnx, inputs, reference)


def test_references_are_computed_study_by_study(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def double(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(len(x))
        return (2 * x,)

    part = _Part(onnx.ModelProto(), "x", np.zeros(1, np.uint8), "features", ("y",), double, rows=3)
    x = np.arange(12, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(gpu_kit_writer._reference(replace(part), x)["y"], 2 * x)
    assert seen == [3, 3, 3, 3]


def test_a_damaged_kit_is_refused(own_kit: Path) -> None:
    model = own_kit / "network.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\x01")
    with pytest.raises(IntegrityError, match=r"network\.onnx"):
        load_kit_model(own_kit, "network")
    (own_kit / "gru.npz").unlink()
    with pytest.raises(ModelIncompatible, match=r"gru\.npz is missing"):
        load_kit_model(own_kit, "gru")
    (own_kit / "manifest.json").write_text('{"schema": "fourphase.gpu-kit/2"}')
    with pytest.raises(ModelIncompatible, match="gpu-kit/2"):
        read_manifest(own_kit)


def test_a_rehearsal_from_kit_to_report_goes_on_after_a_failure(own_kit: Path, tmp_path: Path) -> None:
    model = own_kit / "gates.onnx"
    model.write_bytes(model.read_bytes() + b"\x00")
    only = ["machine", "tensorrt-rtx/gates", "tensorrt/gates", "gpu-tests", "peaks", "torch/four-phase/1"]
    chosen = [argument for name in only for argument in ("--only", name)]
    report_path = tmp_path / "result.json"
    done = command("run", own_kit, "-o", report_path, "--device", "cpu", "--quick", *chosen)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    report = json.loads(report_path.read_text())
    assert outcome["report"] == str(report_path)
    assert outcome["steps"] == {name: step["status"] for name, step in report["steps"].items()}
    _check_schema(report)
    steps = report["steps"]
    if importlib.util.find_spec("tensorrt_rtx"):
        error = steps["tensorrt-rtx/gates/current"]["error"]
        assert error["key"] == "integrity"
        assert "gates.onnx" in error["message"]
        assert steps["tensorrt-rtx/gates/8.9"]["status"] == "failed"  # tried instead
    assert steps["tensorrt/gates"]["status"] == "skipped"
    assert steps["gpu-tests"]["status"] == "skipped"
    row = steps["torch/four-phase/1"]["result"]["rows"][0]
    assert row["limit"]["times_limit"] > 1
    for path in (str(tmp_path), str(Path.home()), sys.prefix):
        assert path not in report_path.read_text()


def _check_schema(report: dict[str, Any]) -> None:
    assert set(report) == {"schema", "device", "quick", "started", "kit", "steps"}
    assert (report["schema"], report["device"], report["quick"]) == ("fourphase.gpu-check/1", "cpu", True)
    assert set(report["kit"]) == {"width", "size", "batch", "tools"}
    for name, step in report["steps"].items():
        assert set(step) == STEP_KEYS, name
        assert step["status"] in ("ok", "failed", "skipped", "crashed", "timeout")
        assert step["status"] == "ok" or step["reason"], name


@pytest.mark.rtx
def test_tensorrt_for_rtx_builds_every_model_of_the_kit_and_says_that_it_was_not_run(kit: Path, tmp_path: Path) -> None:
    report_path = tmp_path / "result.json"
    done = command("run", kit, "-o", report_path, "--device", "cpu", "--only", "tensorrt-rtx", "--quick", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    steps = json.loads(report_path.read_text())["steps"]
    for name in MODELS:
        current = steps[f"tensorrt-rtx/{name}/current"]
        assert current["status"] == "skipped"
        assert current["reason"].startswith("built, not run")
        assert current["result"]["build"]["plan_bytes"] > 10_000
        assert "rows" not in current["result"]
        assert steps[f"tensorrt-rtx/{name}/8.9"]["reason"].startswith("not needed")


def test_without_a_kit_the_first_network_step_is_to_make_one(tmp_path: Path) -> None:
    names = [step.name for step in check_steps(None, tmp_path / "kit", "cuda", quick=False)]
    assert names[:3] == ["machine", "prepare", "tensorrt-rtx/gru/current"]
    assert "torch/four-phase-shared/4" in names
    steps = {step.name: step for step in check_steps(tmp_path, tmp_path / "kit", "cuda", quick=False)}
    assert "prepare" not in steps
    assert steps["tensorrt-rtx/gru/8.0"].instead_of == "tensorrt-rtx/gru/current"
    assert steps["tensorrt-rtx/gru/8.0"].arguments["capability"] == "8.0"
    assert steps["tensorrt/network"].arguments["kit"] == str(tmp_path)


@pytest.mark.skipif(probe().device is not None, reason="there is a GPU")
def test_what_is_known_to_be_wrong_is_told_before_the_first_step(kit: Path, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    no_gpu = command("run", kit, "-o", output)
    assert no_gpu.returncode == 22
    assert "--device cpu --quick" in no_gpu.stderr
    assert command("run", kit, "-o", output, "--device", "cpu", "--only", "nothing").returncode == 2
    assert command("run", tmp_path, "-o", output, "--device", "cpu").returncode == 20
    assert not output.exists()
