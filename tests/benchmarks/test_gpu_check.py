"""The kit and the command, end to end on the CPU: `prepare`, then `run --device cpu --quick`."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from fourphase.benchmarks.gpu.kit import (
    BATCH,
    BUNDLE,
    MODELS,
    PRECISIONS,
    SMALL,
    judged,
    load_kit_model,
    read_manifest,
)
from fourphase.benchmarks.gpu.kit_archive import pack
from fourphase.benchmarks.gpu.kit_parts import Part, torch_reference
from fourphase.benchmarks.gpu.kit_writer import _checked, write_kit
from fourphase.benchmarks.networks import TINY
from fourphase.runtime.bundle import load_bundle
from fourphase.runtime.cuda import probe
from fourphase.runtime.errors import IntegrityError, ModelIncompatible, ParityFailed
from fourphase.runtime.onnxruntime_backend import load_backend
from fourphase.runtime.selfcheck import self_check

pytestmark = pytest.mark.slow
FP32 = tuple(name for name in MODELS if not name.endswith(("fp16", "int8")))
STEP_KEYS = {"status", "reason", "seconds", "result", "error", "output_tail", "gpu_after"}


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs `gpu_check` as a person would; tiny layers run best on one thread."""
    return subprocess.run(
        [sys.executable, "-m", "fourphase.benchmarks.gpu.gpu_check", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny kit for the session: each of its three exports takes some ten seconds whatever the size."""
    target = tmp_path_factory.mktemp("gpu") / "kit"
    wheel = target.with_name("some-1.0-cp27-cp27m-win32.whl")
    wheel.write_bytes(b"for another Python")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    write_kit(target, TINY, [wheel])
    torch.set_num_threads(threads)
    return target


@pytest.fixture
def own_kit(kit: Path, tmp_path: Path) -> Path:
    """A copy, free to be damaged."""
    return Path(shutil.copytree(kit, tmp_path / "kit"))


@pytest.mark.parametrize("name", FP32)
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


@pytest.mark.parametrize("name", sorted({*MODELS} - {*FP32}))
def test_lowered_models_are_held_to_their_literal_values(kit: Path, name: str) -> None:
    """The bounds leave room for rounding, and none for a scale that is off by a tenth."""
    model, wide = load_kit_model(kit, name), load_kit_model(kit, name.rpartition("-")[0])
    assert model.allowed is not None
    assert set(model.allowed) == set(model.outputs)
    inputs, outputs = model.studies(BATCH)
    assert {len(value) for value in (*inputs.values(), *outputs.values())} == {BATCH}  # two studies, twice
    assert judged(outputs, outputs, model.allowed)["passed"]
    off = {output: value + 1.01 * np.float32(model.allowed[output]) for output, value in outputs.items()}
    assert not judged(off, outputs, model.allowed)["passed"]
    kinds = {tensor.data_type for tensor in onnx.load_from_string(model.onnx).graph.initializer}
    wanted = onnx.TensorProto.INT8 if name.endswith("int8") else onnx.TensorProto.FLOAT16
    assert wanted in kinds
    assert len(model.onnx) < len(wide.onnx)
    assert set(model.precisions.values()) == {"fp32", "fp16", model.precision}
    assert set(model.blocks.values()) <= set(model.precisions)


@pytest.mark.parametrize("folder", [BUNDLE, SMALL])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_kits_bundles_pass_the_start_up_check(kit: Path, folder: str, precision: str) -> None:
    bundle = load_bundle(kit / folder)
    assert self_check(load_backend(bundle, precision), bundle, all_inputs=True).inputs == 2
    assert (bundle.models[precision].split is None) == (precision == "fp16")


def test_the_parts_are_cut_out_of_the_network(kit: Path) -> None:
    graphs = {name: onnx.load_from_string(load_kit_model(kit, name).onnx).graph for name in MODELS}
    names = {name: {node.name for node in graph.node} for name, graph in graphs.items()}
    assert names["gru"] | names["gates"] < names["network"]
    assert [node.op_type for node in graphs["gru"].node].count("GRU") == 1
    assert [output.name for output in graphs["gates"].output] == ["gate1.channel/NC", "gate1.spatial/NC"]
    manifest = read_manifest(kit)
    assert manifest["models"]["network"]["cost"]["gmac"] > 0
    assert not [node for node in graphs["gru-unrolled"].node if node.op_type == "GRU"]
    # A loop and what it is written out to share their input and what they must give.
    for kind in ("inputs", "outputs"):
        assert manifest["models"]["gru"][kind] == manifest["models"]["gru-unrolled"][kind]
    (wheel,) = manifest["wheels"]
    assert (kit / wheel["file"]).read_bytes() == b"for another Python"


def test_a_model_that_differs_from_pytorch_never_gets_into_a_kit(kit: Path) -> None:
    model = load_kit_model(kit, "gru")
    inputs = model.inputs["conv1d"]
    part = Part(
        model=onnx.load_from_string(model.onnx),
        input="conv1d",
        codes=np.zeros(1, np.uint8),
        decode="features",
        outputs=("gru",),
        reference=lambda x: {"gru": x},
    )
    reference = dict(model.outputs)
    assert _checked("gru", part, model.onnx, inputs, reference)["relative"] < 1e-5
    reference["gru"] = reference["gru"] + np.float32(0.01)
    with pytest.raises(ParityFailed, match="the kit's model gru does not compute what it must"):
        _checked("gru", part, model.onnx, inputs, reference)


def test_references_are_computed_study_by_study() -> None:
    seen: list[int] = []

    def double(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(len(x))
        return (2 * x,)

    x = np.arange(12, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(torch_reference(double, ("y",), 3)(x)["y"], 2 * x)
    assert seen == [3, 3, 3, 3]


def test_a_damaged_kit_is_refused(own_kit: Path) -> None:
    model = own_kit / "network.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\x01")
    with pytest.raises(IntegrityError, match=r"network\.onnx"):
        load_kit_model(own_kit, "network")
    (own_kit / "gru.outputs.npz").unlink()
    with pytest.raises(ModelIncompatible, match=r"gru\.outputs\.npz is missing"):
        load_kit_model(own_kit, "gru")
    (own_kit / "manifest.json").write_text('{"schema": "fourphase.gpu-kit/1"}')
    with pytest.raises(ModelIncompatible, match="gpu-kit/1"):
        read_manifest(own_kit)


def test_a_rehearsal_from_kit_to_report_goes_on_after_a_failure(own_kit: Path, tmp_path: Path) -> None:
    model = own_kit / "gates.onnx"
    model.write_bytes(model.read_bytes() + b"\x00")
    only = ["machine", "tensorrt-rtx/gates", "tensorrt/gates", "gpu-tests", "leaks", "peaks", "torch/four-phase/1"]
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
    assert steps["leaks/tensorrt"]["status"] == "skipped"
    row = steps["torch/four-phase/1"]["result"]["rows"][0]
    assert row["limit"]["times_limit"] > 1
    for path in (str(tmp_path), str(Path.home()), sys.prefix):
        assert path not in report_path.read_text()


def _check_schema(report: dict[str, Any]) -> None:
    assert set(report) == {"schema", "device", "quick", "call", "gpu", "wheels", "started", "kit", "steps"}
    assert (report["schema"], report["device"], report["quick"]) == ("fourphase.gpu-check/2", "cpu", True)
    assert (report["call"], report["gpu"]) == (None, None)
    assert "not a supported wheel" in report["wheels"]["some-1.0-cp27-cp27m-win32.whl"]
    assert set(report["kit"]) == {"width", "size", "batch", "tools"}
    for name, step in report["steps"].items():
        assert set(step) == STEP_KEYS, name
        assert step["status"] in ("ok", "failed", "skipped", "crashed", "timeout")
        assert step["status"] == "ok" or step["reason"], name


@pytest.mark.rtx
def test_tensorrt_for_rtx_builds_every_model_of_the_kit_and_says_that_it_was_not_run(kit: Path, tmp_path: Path) -> None:
    report_path = tmp_path / "result.json"
    archive = tmp_path / "kit.tar.xz"
    pack(kit, archive)
    only = [argument for name in ("tensorrt-rtx", "product/tensorrt-rtx") for argument in ("--only", name)]
    done = command("run", archive, "-o", report_path, "--device", "cpu", *only, "--quick", "--quiet")
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
    for precision in PRECISIONS:
        product = steps[f"product/tensorrt-rtx/{precision}"]
        assert product["reason"].startswith("built, not run"), product
        parts = {form: [build["part"] for build in builds] for form, builds in product["result"]["builds"].items()}
        assert parts["whole"] == ["whole"]
        assert parts.get("split") == (None if precision == "fp16" else ["trunk", "tail"])


def test_calls_are_run_apart_and_put_together(kit: Path, tmp_path: Path) -> None:
    first, second, merged = (tmp_path / name for name in ("1.json", "2.json", "all.json"))
    options = ["--device", "cpu", "--quick", "--quiet"]
    # Nothing of the second call can be begun in a second.
    assert command("run", "-o", first, "--only", "machine", "--only", "peaks", *options).returncode == 0
    assert command("run", kit, "-o", second, "--call", "2", "--within", "1", *options).returncode == 0
    late = json.loads(second.read_text())["steps"]
    assert "tensorrt/network-int8" in late
    needless = {name for name, step in late.items() if step["reason"].startswith("not needed")}
    assert needless == {name for name in late if name.endswith(("/8.0", "/8.9"))}
    assert {late[name]["reason"] for name in late.keys() - needless} == {"the 1 s of the call are over"}
    done = command("merge", first, second, "-o", merged)
    assert done.returncode == 0, done.stderr
    report = json.loads(merged.read_text())
    assert [call["call"] for call in report["calls"]] == [None, 2]
    assert report["kit"]["width"] == TINY.width
    assert report["steps"]["machine"]["status"] == "ok"
    assert report["steps"]["tensorrt/network-int8"]["status"] == "skipped"
    assert json.loads(done.stdout.splitlines()[-1])["steps"]["peaks"] == "ok"
    assert command("merge", first, kit / "manifest.json", "-o", merged).returncode == 10


@pytest.mark.skipif(probe().device is not None, reason="there is a GPU")
def test_what_is_known_to_be_wrong_is_told_before_the_first_step(kit: Path, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    no_gpu = command("run", kit, "-o", output)
    assert no_gpu.returncode == 22
    assert "--device cpu --quick" in no_gpu.stderr
    assert command("run", kit, "-o", output, "--device", "cpu", "--only", "nothing").returncode == 2
    assert command("run", kit, "-o", output, "--device", "cpu", "--call", "5").returncode == 2
    assert command("run", kit, "-o", output, "--device", "cpu", "--call", "1", "--only", "peaks").returncode == 2
    assert command("run", tmp_path, "-o", output, "--device", "cpu").returncode == 20
    assert not output.exists()
