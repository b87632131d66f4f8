"""The engines of a bundle with NVIDIA's builder (TensorRT for RTX, no GPU): built once, kept, found, replaced."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fourphase.engine import plans as engine_plans
from fourphase.engine.build import EnginePlan
from fourphase.engine.bundle import OnnxModel, SplitOnnx, contents_of, model_of, write_bundle
from fourphase.engine.options import BuildOptions, EngineSource
from fourphase.engine.plan_command import engine_line
from fourphase.engine.plans import engine_options, ensure_plans, onnx_hashes, sources_of
from fourphase.runtime.bundle import Bundle, load_bundle
from fourphase.runtime.errors import IntegrityError, ModelIncompatible
from fourphase.runtime.plan_store import PlanStore
from tests.support.plans import META
from tests.support.tiny_bundle import tiny_contents, write_tiny

HALVES = SplitOnnx(8, b"trunk", b"tail", {"a": "stem"}, {"b": "head"})
SPLIT = OnnxModel(b"whole", {"stem": "fp16"}, {"n": "stem"}, ("n",), HALVES)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny(tmp_path / "bundle")


def command(bundle: Bundle, *arguments: str) -> list[str]:
    program = [sys.executable, "-m", "fourphase.engine.plan_command", str(bundle.path)]
    return [*program, "--target", "tensorrt-rtx", *arguments]


def run(bundle: Bundle, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(command(bundle, "--json", *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.rtx
def test_a_plan_is_built_kept_and_found_again(bundle: Bundle) -> None:
    (first,) = run(bundle)["plans"]
    assert first["outcome"] == "built"
    store = PlanStore(bundle)
    (entry,) = store.entries()
    assert entry.key == first["key"]
    assert entry.meta is not None
    assert entry.meta["onnx_sha256"] == bundle.files["model.fp32.onnx"].sha256
    plan = store.read(entry)
    assert len(plan) > 1000
    assert run(bundle)["plans"][0]["outcome"] == "found"
    assert store.read(store.entries()[0]) == plan
    (forced,) = run(bundle, "--force")["plans"]
    assert (forced["key"], forced["outcome"]) == (entry.key, "built")
    (other,) = run(bundle, "--compute-capability", "8.6")["plans"]
    assert other["key"] != entry.key
    assert len(store.entries()) == 2
    assert load_bundle(bundle.path).sha256 == bundle.sha256, "the bundle itself is what it was"


@pytest.mark.rtx
def test_a_damaged_plan_is_quarantined_and_built_again(bundle: Bundle) -> None:
    (first,) = run(bundle)["plans"]
    path = bundle.path / "engines" / f"{first['key']}.plan"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert run(bundle)["plans"][0]["outcome"] == "built"
    assert (bundle.path / "engines" / "quarantine" / f"{first['key']}-1").is_dir()


@pytest.mark.rtx
@pytest.mark.slow
def test_eight_at_once_build_one_engine(bundle: Bundle) -> None:
    children = [
        subprocess.Popen(command(bundle, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    outcomes, said = [], ""
    for child in children:
        out, err = child.communicate(timeout=300)
        assert child.returncode == 0, err
        outcomes.append(json.loads(out)["plans"][0]["outcome"])
        said += err
    assert outcomes.count("built") == 1
    assert set(outcomes) <= {"built", "waited", "found"}
    assert "waited" in outcomes
    assert "another process is building engine" in said
    assert len(PlanStore(bundle).entries()) == 1


@pytest.mark.rtx
def test_the_lock_of_a_build_times_out_with_its_code(bundle: Bundle, tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from fourphase.runtime.bundle import load_bundle\n"
        "from fourphase.engine import plans; from fourphase.runtime.plan_store import PlanStore\n"
        "plans.build_engine = lambda *_: (print('held', flush=True), time.sleep(60))\n"
        f"b = load_bundle(Path({str(bundle.path)!r})); plans.ensure_plans(b, PlanStore(b), 'tensorrt-rtx')"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        done = subprocess.run(command(bundle, "--lock-timeout", "0.2"), capture_output=True, text=True, check=False)
        holder.kill()
    assert done.returncode == 31
    assert "the build of engine" in done.stderr


@pytest.mark.rtx
def test_words_of_the_command(bundle: Bundle) -> None:
    done = subprocess.run(command(bundle), capture_output=True, text=True, check=False)
    assert "built in" in done.stdout
    assert "not audited: there is no GPU here" in done.stdout
    for arguments, code in (
        (["--batch", "3"], 2),
        (["--batch", "2,2,4"], 2),
        (["--precision", "int8"], 20),
        (["--dla", "0"], 2),
    ):
        failed = subprocess.run(command(bundle, *arguments), capture_output=True, text=True, check=False)
        assert failed.returncode == code, failed.stderr
        assert "fix:" in failed.stderr


def test_a_split_model_has_two_engines() -> None:
    trunk, tail = sources_of("fp16", SPLIT)
    assert (trunk.part, trunk.slices, trunk.onnx, dict(trunk.blocks)) == ("trunk", 8, b"trunk", {"a": "stem"})
    assert (tail.part, tail.slices, tail.onnx, dict(tail.blocks)) == ("tail", None, b"tail", {"b": "head"})
    (whole,) = sources_of("fp16", SPLIT, whole=True)
    assert (whole.part, whole.onnx, dict(whole.precisions), whole.exempt) == (
        "whole",
        b"whole",
        {"stem": "fp16"},
        ("n",),
    )
    options = BuildOptions(batch=(1, 2, 4), dla_core=1)
    assert engine_options(trunk, options) == replace(options, batch=(1, 1, 1))
    assert engine_options(tail, options) == replace(options, dla_core=None)


def test_a_split_model_travels_in_the_bundle(tmp_path: Path) -> None:
    contents = tiny_contents()
    whole = replace(SPLIT, onnx=contents.models["fp32"].onnx)
    written = write_bundle(tmp_path / "b", replace(contents, models={"fp32": whole}))
    assert written.models["fp32"].split is not None
    assert written.models["fp32"].split.slices == 8
    found = model_of(written, "fp32")
    assert found.split is not None
    assert whole.split is not None
    assert (found.onnx, dict(found.nodes), found.exempt) == (whole.onnx, {"n": "stem"}, ("n",))
    assert vars(found.split) == vars(whole.split)
    again = write_bundle(tmp_path / "c", contents_of(written))
    assert again.files == written.files
    assert len(onnx_hashes(written)) == 3
    (written.path / "model.fp32.trunk.onnx").write_bytes(b"trunj")
    with pytest.raises(IntegrityError, match=r"model\.fp32\.trunk\.onnx"):
        model_of(written, "fp32")


def test_stale_plans_are_moved_away_before_a_build(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PlanStore(bundle)
    stale = {**META, "onnx_sha256": "f" * 64, "plan_sha256": hashlib.sha256(b"old").hexdigest()}
    old = store.put(b"old", stale)

    def built(source: EngineSource, target: str, options: BuildOptions) -> EnginePlan:
        plan = b"new"
        onnx_sha256, plan_sha256 = (hashlib.sha256(data).hexdigest() for data in (source.onnx, plan))
        return EnginePlan(plan, {**META, "onnx_sha256": onnx_sha256, "plan_sha256": plan_sha256})

    monkeypatch.setattr(engine_plans, "build_engine", built)
    monkeypatch.setattr(engine_plans, "load_flavour", lambda name: None)
    monkeypatch.setattr(engine_plans, "plan_identity", lambda *_: META)
    (outcome,) = ensure_plans(bundle, store, "tensorrt")
    assert outcome.outcome == "built"
    assert old.key not in {entry.key for entry in store.entries()}


def test_a_precision_the_bundle_lacks_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ModelIncompatible, match="no model in int8"):
        ensure_plans(bundle, PlanStore(bundle), "tensorrt-rtx", precision="int8")


def test_the_line_of_an_engine_tells_its_audit_and_its_tries() -> None:
    tries = [{"workspace_bytes": 4 << 30, "outcome": "killed"}, {"workspace_bytes": 2 << 30, "outcome": "built"}]
    engine = {**META, "key": "ab", "attempts": tries, "build_seconds": 2.0, "audit": {"summary": "3 layers, fp16 100%"}}
    line = engine_line(engine)
    assert "built in 2.0 s (at the 2. try, with 2048 MiB of workspace)" in line
    assert line.endswith("audited: 3 layers, fp16 100%")
