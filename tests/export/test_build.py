"""Checkpoint -> bundle through the commands a user types, and what is refused on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from fourphase.engine.options import BuildOptions
from fourphase.export.build import build_bundle
from fourphase.export.build_request import BuildRequest
from fourphase.export.checkpoint import load_checkpoint, save_checkpoint
from fourphase.export.config import NetworkConfig
from fourphase.export.network import FourPhaseNet
from fourphase.export.verify import verify_bundle, verify_onnx
from fourphase.runtime.backends import choose_backend
from fourphase.runtime.bundle import load_bundle
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import FourphaseError, ParityFailed, UsageError
from tests.support.networks import SMALL, random_study


def rtx_for(capability: str, **changes: Any) -> BuildRequest:
    return BuildRequest(target="tensorrt-rtx", engine=BuildOptions(compute_capabilities=(capability,)), **changes)


NO_ENGINE = BuildRequest(precision="fp32", target="none")


@pytest.fixture(scope="session")
def checkpoint(network: FourPhaseNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_checkpoint(path, network, SMALL)
    return path


@pytest.fixture(scope="session")
def bundle_path(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "small.bundle"
    build_bundle(checkpoint, path, NO_ENGINE)
    return path


def fp_export(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fourphase.export.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_bundle_computes_what_the_checkpoint_does(bundle_path: Path, network: FourPhaseNet) -> None:
    bundle = load_bundle(bundle_path)
    study = random_study(2, seed=5)
    outputs = choose_backend(bundle, "onnxruntime").backend.infer(study)
    expected = network(torch.from_numpy(study))
    np.testing.assert_allclose(outputs.logits, expected[0].detach().numpy(), rtol=1e-4, atol=1e-5)
    assert outputs.phase_logits is not None
    np.testing.assert_allclose(outputs.phase_logits, expected[1].detach().numpy(), rtol=1e-4, atol=1e-5)


def test_the_golden_outputs_are_pytorchs(bundle_path: Path, network: FourPhaseNet) -> None:
    golden = load_bundle(bundle_path).golden()
    assert len(golden) == 2
    assert golden.phase_logits is not None
    for index in range(len(golden)):
        logits, phase_logits = network(torch.from_numpy(golden.study(index)))
        np.testing.assert_allclose(golden.logits[index], logits[0].detach().numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(golden.phase_logits[index], phase_logits[0].detach().numpy(), rtol=1e-5, atol=1e-6)
    assert not np.allclose(golden.logits[0], golden.logits[1]), "two golden inputs that say the same prove less"


def test_the_report_holds_parity_of_every_block(bundle_path: Path, network: FourPhaseNet) -> None:
    report = json.loads((bundle_path / "report.json").read_text())
    rows = {row["block"]: row for row in report["parity"]["rows"]}
    assert {"logits", "stem/NC", "stage4/DL", "gate3.channel/PV", "gate3.spatial/PV", "conv1d", "gru"} <= set(rows)
    assert all(0 <= row["relative"] <= row["allowed"] and row["max_abs"] >= 0 for row in rows.values())
    assert report["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert report["target"]["name"] == "none"


def test_verify_passes_and_finds_the_wrong_checkpoint(bundle_path: Path, checkpoint: Path, tmp_path: Path) -> None:
    report = verify_bundle(bundle_path, checkpoint)
    assert report["steps"]["parity"] == "configuration equal, every block passed"
    torch.manual_seed(3)
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, FourPhaseNet(NetworkConfig(width=4, gru_hidden=8, gate_reduction=2)), SMALL)
    with pytest.raises(ParityFailed, match="block stem/NC"):
        verify_bundle(bundle_path, other)


def test_verify_finds_a_bundle_that_is_not_configured_like_its_checkpoint(
    bundle_path: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Swapped classes and another window leave every number equal: only the sections themselves tell."""
    torch.manual_seed(0)
    loaded = load_checkpoint(checkpoint)
    state = loaded.network.state_dict()
    for name, keys, preprocessing in (
        ("network", {"classes": ("ICC", "HCC")}, SMALL),
        ("preprocessing", {}, replace(SMALL, windows_hu=((-1000.0, 1000.0), (-960.0, 240.0), (-15.0, 135.0)))),
    ):
        network = FourPhaseNet(replace(NetworkConfig.from_dict(loaded.section), **keys))  # type: ignore[arg-type]
        network.load_state_dict(state)
        other = tmp_path / f"{name}.safetensors"
        save_checkpoint(other, network, preprocessing)
        with pytest.raises(ParityFailed, match=f"{name} section is not the checkpoint's"):
            verify_bundle(bundle_path, other)


def test_a_doctored_onnx_exits_27_with_the_blocks_name(bundle_path: Path, checkpoint: Path, tmp_path: Path) -> None:
    model = onnx.load(bundle_path / "model.fp32.onnx")
    for node in model.graph.node:
        if node.op_type == "Add" and "gate1.spatial/PV" in node.input:
            node.input[list(node.input).index("gate1.spatial/PV")] = "gate1.spatial/NC"
    path = tmp_path / "doctored.onnx"
    onnx.save(model, path)
    with pytest.raises(ParityFailed, match="block mix1/"):
        verify_onnx(path, checkpoint)
    outcome = fp_export("verify", path, "--checkpoint", checkpoint, "--quiet")
    assert outcome.returncode == 27
    assert "block mix1/" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    gru = next(node for node in model.graph.node if node.op_type == "GRU")
    next(a for a in gru.attribute if a.name == "linear_before_reset").i = 0
    onnx.save(model, path)
    with pytest.raises(ParityFailed, match=f"node {gru.name} in block gru"):
        verify_onnx(path, checkpoint)


def test_a_failed_build_leaves_the_old_bundle_untouched(
    bundle_path: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "kept.bundle"
    import shutil

    shutil.copytree(bundle_path, target)
    before = {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()}

    def doctored(network: FourPhaseNet, preprocessing: PreprocessingConfig, gru: str) -> onnx.ModelProto:
        model = onnx.load(bundle_path / "model.fp32.onnx")
        next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "Tanh"
        return model

    monkeypatch.setattr("fourphase.export.source.onnx_from_network", doctored)
    with pytest.raises(ParityFailed, match=r"block gate1\.channel/NC"):
        build_bundle(checkpoint, target, NO_ENGINE)
    assert {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()} == before
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("arguments", "code", "cause"),
    [
        (["build-engine", "{absent}", "-o", "{out}"], 10, "cannot be read"),
        (["build-engine", "{checkpoint}", "-o", "{out}", "--precision", "int4"], 2, "unknown precision"),
        (["build-engine", "{checkpoint}", "-o", "{out}", "--precision", "int8"], 2, "needs a calibration set"),
        (["build-engine", "{checkpoint}", "-o", "{out}", "--gru", "scan"], 2, "unknown form of the GRU"),
        (["build-engine", "{checkpoint}", "-o", "{out}", "--algorithm", "max"], 2, "unknown calibration algorithm"),
        (["build-engine", "{checkpoint}", "-o", "{out}", "--target", "cuda"], 2, "unknown target"),
        (["build-engine", "{checkpoint}", "-o", "{home}"], 30, "not a bundle"),
        (["onnx", "{checkpoint}", "-o", "{checkpoint}"], 2, "not an .onnx"),
        (["onnx", "{checkpoint}", "-o", "{onnx_folder}"], 30, "is a directory"),
        (["inspect", "{absent}"], 20, "not a bundle"),
        (["verify", "{onnx}"], 2, "against a checkpoint"),
    ],
)
def test_wrong_use_is_one_sentence_and_a_cure(
    arguments: list[str], code: int, cause: str, checkpoint: Path, bundle_path: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("precious")
    folder = tmp_path / "folder.onnx"
    folder.mkdir()
    places = {
        "absent": tmp_path / "absent.safetensors",
        "checkpoint": checkpoint,
        "out": tmp_path / "out.bundle",
        "home": home,
        "onnx_folder": folder,
        "onnx": bundle_path / "model.fp32.onnx",
    }
    outcome = fp_export(*[argument.format(**places) for argument in arguments], "--quiet")
    assert outcome.returncode == code, outcome.stderr
    error, fix = outcome.stderr.splitlines()
    assert error.startswith("error: ")
    assert cause in error
    assert fix.startswith("  fix: ")
    assert (home / "thesis.txt").read_text() == "precious"
    assert not places["out"].exists()


def test_errors_are_json_where_json_was_asked_for(tmp_path: Path) -> None:
    outcome = fp_export("inspect", tmp_path / "absent", "--json")
    error = json.loads(outcome.stdout)["error"]
    assert error["code"] == outcome.returncode == 20
    assert set(error) == {"code", "key", "message", "hint"}


def test_inspect_prints_what_the_manifest_holds(bundle_path: Path) -> None:
    text = fp_export("inspect", bundle_path).stdout
    assert load_bundle(bundle_path).sha256 in text
    assert "model.fp32.onnx" in text
    assert json.loads(fp_export("inspect", bundle_path, "--json").stdout)["schema"] == "fourphase.bundle/1"


def test_a_wrong_compute_capability_costs_no_export(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra [rtx]", exc_type=ImportError)
    with pytest.raises(UsageError, match="9"):
        build_bundle(
            checkpoint,
            tmp_path / "b",
            BuildRequest(target="tensorrt-rtx", engine=BuildOptions(compute_capabilities=("99.9",))),
        )


def _engine_of(bundle: Path) -> dict[str, Any]:
    (meta,) = (bundle / "engines").glob("*.json")
    assert meta.with_suffix(".plan").stat().st_size > 0
    return dict(json.loads(meta.read_text()))


@pytest.mark.rtx
def test_a_real_plan_is_built_without_a_gpu(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "rtx.bundle"
    outcome = fp_export(
        "build-engine", checkpoint, "-o", target, "--target", "tensorrt-rtx", "--compute-capability", "8.9"
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "not run on a GPU: " in outcome.stdout
    assert "not audited: there is no GPU here" in outcome.stdout
    meta = _engine_of(target)
    assert meta["flavour"] == "tensorrt-rtx"
    assert meta["compute_capabilities"] == ["8.9"]
    assert len(load_bundle(target).engines) == 1


@pytest.mark.rtx
@pytest.mark.slow
def test_the_full_size_network_becomes_a_bundle_with_a_plan(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "full.safetensors"
    save_checkpoint(path, FourPhaseNet(NetworkConfig()), PreprocessingConfig())
    request = BuildRequest(target="tensorrt-rtx", engine=BuildOptions(compute_capabilities=("8.9",)))
    result = build_bundle(path, tmp_path / "full.bundle", request)
    assert result.report["parameters"] == 52_040_506
    assert _engine_of(tmp_path / "full.bundle")["profile"]["study"]["opt"] == [1, 4, 64, 3, 128, 128]
    assert verify_bundle(tmp_path / "full.bundle")["steps"]["guards"] == "passed"


def test_every_error_has_a_stable_key(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(FourphaseError) as caught:
        build_bundle(checkpoint, tmp_path / "b", BuildRequest(target="nowhere"))
    assert caught.value.key == "target_unknown"


def test_the_commands_defaults_are_the_rooms() -> None:
    """Help texts are written without importing what they speak of; this holds them together."""
    import inspect

    from fourphase.calibration.gates import DEFAULTS
    from fourphase.calibration.thresholds import DEFAULT_ALGORITHM
    from fourphase.export import cli, search_command

    for command in (cli.build_engine, search_command.search):
        assert inspect.signature(command).parameters["algorithm"].default == DEFAULT_ALGORITHM
    given = inspect.signature(search_command.search).parameters
    assert given["min_sqnr_db"].default == DEFAULTS["int8"].min_sqnr_db
    assert given["max_auc_drop"].default == DEFAULTS["int8"].max_auc_drop
    assert given["max_flips"].default == DEFAULTS["int8"].max_flips
