"""FP16 and INT8 through the commands a user types: built, judged, searched, verified, refused where they must be."""

from __future__ import annotations

import json
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

from fourphase.calibration.blocks import Policy, node_blocks
from fourphase.calibration.gates import Acceptance
from fourphase.calibration.rounding import rounding_session
from fourphase.calibration.thresholds import DEFAULT_ALGORITHM
from fourphase.export import source
from fourphase.export.build import build_bundle
from fourphase.export.build_request import BuildRequest
from fourphase.export.checkpoint import save_checkpoint
from fourphase.export.network import FourPhaseNet
from fourphase.export.search_bundle import SearchRequest, search_bundle
from fourphase.export.verify import verify_bundle
from fourphase.runtime.backends import choose_backend
from fourphase.runtime.bundle import load_bundle
from fourphase.runtime.cache import CACHE_VARIABLE
from fourphase.runtime.errors import AccuracyGateFailed, FourphaseError, ParityFailed, UsageError
from fourphase.runtime.selfcheck import self_check
from tests.support.networks import SMALL, exported_once, small_network
from tests.support.study_sets import poisoned, write_random_set

#: The untrained network's decisions are near ties: only the numbers are judged in most tests.
LOOSE = "[fp16]\nmax_flips = 99\nmax_auc_drop = 1.0\n[int8]\nmax_flips = 99\nmax_auc_drop = 1.0\nmin_sqnr_db = 10\n"


class Place:
    """One folder with everything a user has made before the build."""

    def __init__(self, folder: Path, network: FourPhaseNet) -> None:
        self.folder, self.checkpoint = folder, folder / "model.safetensors"
        save_checkpoint(self.checkpoint, network, SMALL)
        self.calibration, self.evaluation = folder / "calibration", folder / "evaluation"
        write_random_set(self.calibration, 3, seed=1)
        write_random_set(self.evaluation, 6, seed=2)
        self.accept = folder / "accept.toml"
        self.accept.write_text(LOOSE)

    def request(self, **keys: Any) -> BuildRequest:
        given = {"target": "none", "calibration": self.calibration, "evaluation": self.evaluation}
        return BuildRequest(**{"accept": self.accept, **given, **keys})


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        patch.setattr(source, "onnx_from_network", exported_once)
        yield


@pytest.fixture(scope="module")
def place(network: FourPhaseNet, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("precision"), network)


@pytest.fixture(scope="module")
def int8_bundle(place: Place) -> Path:
    """Built as a user types it."""
    target = place.folder / "int8.bundle"
    outcome = fp_export(
        "build-engine", place.checkpoint, "-o", target, "--precision", "int8", "--target", "none", "--calibration",
        place.calibration, "--evaluation", place.evaluation, "--accept", place.accept,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    assert "against FP32, 6 studies (evaluation set)" in outcome.stdout
    assert "3 studies, computed" in outcome.stdout
    return target


def fp_export(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fourphase.export.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_bundle_holds_the_ladder_and_what_it_was_made_with(int8_bundle: Path, place: Place) -> None:
    bundle = load_bundle(int8_bundle)
    assert list(bundle.models) == ["fp32", "fp16", "int8"]
    assert bundle.models["int8"].blocks["stage2/PV"] == "int8"
    assert bundle.models["int8"].blocks["gru"] == bundle.models["fp16"].blocks["gru"] == "fp32"
    assert bundle.calibration is not None
    assert (bundle.calibration["studies"], bundle.calibration["algorithm"]) == (3, DEFAULT_ALGORITHM)
    kinds = {
        name: {node.op_type for node in onnx.load_model_from_string(bundle.read(model.file)).graph.node}
        for name, model in bundle.models.items()
    }
    assert "QuantizeLinear" in kinds["int8"]
    assert "QuantizeLinear" not in kinds["fp16"]
    assert "Cast" in kinds["fp16"]
    assert b"<html" in bundle.read("report.html")
    scales = json.loads(bundle.read("scales.json"))
    assert scales["onnx_sha256"] == bundle.files["model.fp32.onnx"].sha256


def test_the_ladder_is_measured_against_pytorch(int8_bundle: Path, network: FourPhaseNet, place: Place) -> None:
    """The report's figures by hand: torch on one side, the literal evaluation of the shipped files on the other."""
    bundle = load_bundle(int8_bundle)
    data = write_random_set(place.folder / "again", 6, seed=2)
    studies, truth = list(data.studies()), np.array(data.labels) == "ICC"
    with torch.no_grad():
        outputs = [network(torch.from_numpy(study))[0].numpy() for study in studies]
    reference = np.concatenate(outputs).astype(np.float64)
    for rung in json.loads(bundle.read("report.json"))["ladder"]:
        run = rounding_session(onnx.load_model_from_string(bundle.read(bundle.models[rung["precision"]].file)))
        found = np.concatenate([run(study)["logits"] for study in studies])
        noise, verdict = np.square(found - reference).sum(), rung["verdict"]
        if rung["precision"] != "fp32":
            assert verdict["sqnr_db"] == pytest.approx(10 * np.log10(np.square(reference).sum() / noise), abs=0.05)
        assert verdict["flips"] == int((found.argmax(1) != reference.argmax(1)).sum())
        margin = found[:, 1] - found[:, 0]
        pairs = margin[truth][:, None] - margin[~truth][None, :]
        assert verdict["auc"] == pytest.approx((pairs > 0).mean())


def test_the_report_names_every_block_with_its_precision(int8_bundle: Path, network: FourPhaseNet) -> None:
    ladder = {rung["precision"]: rung for rung in json.loads((int8_bundle / "report.json").read_bytes())["ladder"]}
    rows = {row["block"]: row for row in ladder["int8"]["blocks"]}
    assert {"stem/NC", "stage4/DL", "gate2.channel/ART", "mix1/NC", "conv1d", "gru", "head"} <= set(rows)
    assert rows["stage3/ART"]["precision"] == "int8"
    assert rows["mix1/NC"]["precision"] == "fp16"
    assert rows["stage3/ART"]["sqnr_db"] < ladder["fp16"]["blocks"][0]["sqnr_db"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_onnx_runtime_reproduces_each_precisions_own_golden_outputs(int8_bundle: Path, precision: str) -> None:
    bundle = load_bundle(int8_bundle)
    backend = choose_backend(bundle, "onnxruntime", precision=precision).backend
    check = self_check(backend, bundle, all_inputs=True)
    assert check.inputs == 2
    change = float(np.abs(bundle.golden(precision).logits - bundle.golden().logits).max())
    assert (change > 1e-6) == (precision != "fp32")


def test_verify_derives_the_models_again_and_judges_them(int8_bundle: Path, place: Place) -> None:
    report = verify_bundle(int8_bundle, place.checkpoint, evaluation=place.evaluation, accept=place.accept)
    assert report["steps"]["typing int8"].startswith("the graph is what its policy makes")
    assert report["steps"]["gates"] == "3 precisions passed on 6 studies"
    with pytest.raises(UsageError, match="are also in the other set"):
        verify_bundle(int8_bundle, evaluation=place.calibration, accept=place.accept)
    outcome = fp_export("verify", int8_bundle, "--evaluation", place.evaluation, "--accept", place.accept)
    assert outcome.returncode == 0, outcome.stderr
    assert "gates: 3 precisions passed" in outcome.stdout
    assert "int8: stage1" in fp_export("inspect", int8_bundle).stdout


def test_verify_finds_a_model_that_is_not_what_the_manifest_says(place: Place, int8_bundle: Path) -> None:
    from fourphase.engine.bundle import OnnxModel, contents_of, write_bundle

    contents = contents_of(load_bundle(int8_bundle))
    blocks = dict(contents.models["int8"].blocks)
    blocks["stage4/NC"] = "fp16"
    models = {**contents.models, "int8": OnnxModel(contents.models["int8"].onnx, blocks)}
    target = place.folder / "doctored.bundle"
    write_bundle(target, replace(contents, models=models))
    with pytest.raises(ParityFailed, match="int8 model is not what the manifest"):
        verify_bundle(target)


def test_scales_come_from_the_cache_the_second_time(place: Place, int8_bundle: Path) -> None:
    result = build_bundle(place.checkpoint, place.folder / "second.bundle", place.request(precision="int8"))
    assert result.report["calibration"]["from_cache"] is True
    assert files(int8_bundle)["model.int8.onnx"] == files(result.bundle.path)["model.int8.onnx"]


def test_the_unrolled_gru_gives_the_same_answers(place: Place, int8_bundle: Path) -> None:
    request = place.request(precision="int8", gru="unrolled")
    result = build_bundle(place.checkpoint, place.folder / "unrolled.bundle", request)
    kinds = {node.op_type for node in onnx.load_model_from_string(result.bundle.read("model.int8.onnx")).graph.node}
    assert "GRU" not in kinds
    assert result.report["gru"] == {"form": "unrolled", "reason": "asked for"}
    verify_bundle(result.bundle.path, place.checkpoint)
    loop, unrolled = load_bundle(int8_bundle).golden("int8"), result.bundle.golden("int8")
    np.testing.assert_allclose(unrolled.logits, loop.logits, atol=0.05 * np.abs(loop.logits).max())


def test_a_failed_gate_leaves_the_old_bundle_untouched(place: Place, int8_bundle: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.bundle"
    shutil.copytree(int8_bundle, kept)
    before = files(kept)
    strict = tmp_path / "accept.toml"
    for text, kind, code in (
        ("[int8]\nmin_sqnr_db = 90\n", ParityFailed, 27),
        (
            "[fp16]\nmax_flips = 99\n[int8]\nmin_sqnr_db = 0\nmax_flips = 99\nmax_auc_drop = -1\n",
            AccuracyGateFailed,
            28,
        ),
    ):
        strict.write_text(text)
        with pytest.raises(kind) as caught:
            build_bundle(place.checkpoint, kept, place.request(precision="int8", accept=strict))
        assert caught.value.code == code
        lost = {row["block"].partition("/")[0]: row for row in caught.value.table}
        assert {"stem", "stage4", "gate1.channel", "gru", "head"} <= set(lost)
        assert len(lost) == len(caught.value.table), "one line per kind of block"
        rows = json.loads(before["report.json"])["ladder"][2]["blocks"]
        worst = min(row["sqnr_db"] for row in rows if row["block"].startswith("stage4/"))
        assert lost["stage4"]["SQNR"] == f"{worst:.1f} dB"
        assert lost["stage4"]["precision"] == "int8"
        assert files(kept) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["accept.toml", "kept.bundle"]


def test_fp16_without_studies_says_that_decisions_were_not_judged(place: Place) -> None:
    result = build_bundle(place.checkpoint, place.folder / "fp16.bundle", BuildRequest(target="none"))
    assert result.report["precision"] == "fp16"
    assert result.report["judged_on"]["source"] == "golden inputs"
    assert "decisions were not judged" in result.report["judged_on"]["note"]
    assert result.report["ladder"][1]["verdict"]["sqnr_db"] > 40


@pytest.mark.parametrize(
    ("change", "code", "key"),
    [
        ({"precision": "int8", "calibration": "other_preprocessing"}, 20, "calibration_preprocessing"),
        ({"precision": "int8", "calibration": "empty"}, 10, "calibration_missing"),
        ({"precision": "int8", "evaluation": "calibration"}, 2, "calibration_overlap"),
        ({"precision": None, "policy": '"stage9" = "fp16"'}, 2, "policy_block_unknown"),
        ({"precision": "int8", "policy": 'stage = "fp16"'}, 2, "policy_precision"),
        ({"precision": None, "policy": 'stage = "int4"'}, 2, "policy_invalid"),
        ({"precision": None, "policy": "stage ="}, 2, "policy_invalid"),
        (
            {"precision": None, "policy": 'stage = "int8"', "calibration": None, "evaluation": None},
            2,
            "calibration_needed",
        ),
        ({"precision": "int8", "evaluation": "foreign_labels"}, 2, "label_unknown"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    place: Place, tmp_path: Path, change: dict[str, Any], code: int, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = {"calibration": place.calibration, "empty": tmp_path, "other_preprocessing": tmp_path / "other", None: None}
    write_random_set(tmp_path / "other", 1, seed=5, config=replace(SMALL, margin_mm=5.0))
    sets["foreign_labels"] = _relabelled(place.evaluation, tmp_path / "foreign")
    for name in ("calibration", "evaluation"):
        if name in change:
            change = {**change, name: sets[change[name]]}
    if "policy" in change:
        (tmp_path / "policy.toml").write_text(change["policy"])
        change = {**change, "policy": tmp_path / "policy.toml"}
    with pytest.raises(FourphaseError) as caught:
        build_bundle(place.checkpoint, tmp_path / "b", place.request(**change))
    assert (caught.value.code, caught.value.key) == (code, key), caught.value.message
    assert not (tmp_path / "b").exists()


def _relabelled(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    manifest = json.loads((target / "calibration.json").read_text())
    for case in manifest["cases"]:
        case["label"] = "metastasis"
    (target / "calibration.json").write_text(json.dumps(manifest))
    return target


def test_the_policy_decides_block_by_block(place: Place, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(json.dumps({"policy": {"*": "fp16", "stage4": "int8", "gru": "fp32"}}))
    request = place.request(policy=tmp_path / "policy.json")
    bundle = build_bundle(place.checkpoint, tmp_path / "b", request).bundle
    model = onnx.load_model_from_string(bundle.read("model.int8.onnx"))
    blocks = node_blocks(model)
    quantized = {blocks[node.name].partition("/")[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert quantized == {"stage4"}
    assert bundle.models["int8"].blocks["head"] == "fp16"
    assert bundle.models["fp16"].blocks["stage4/NC"] == "fp16"


LIMITS = Acceptance(min_sqnr_db=25.0, max_flips=99, max_auc_drop=1.0)


def test_the_search_writes_its_policy_into_the_bundle(place: Place, int8_bundle: Path, tmp_path: Path) -> None:
    outcome = fp_export(
        "search", int8_bundle, "--calibration", place.calibration, "--evaluation", place.evaluation, "-o",
        tmp_path / "searched", "--target", "none", "--min-sqnr-db", "25", "--max-flips", "99", "--max-auc-drop", "1",
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    bundle = load_bundle(tmp_path / "searched")
    found = json.loads(bundle.read("search.json"))
    assert found["verdict"]["sqnr_db"] >= 25
    assert 0 < found["cost_relative_to_fp32"] < 0.6
    assert {row["kept"] for row in found["steps"]} == {True, False}, "a search that refuses nothing was not needed"
    assert not [row for row in found["sensitivities"] if row["group"] == "gru" and row["precision"] == "int8"]
    lowest = list(bundle.models)[-1]
    policy = Policy.of(found["policy"])
    assert bundle.models[lowest].blocks == {block: policy.precision_of(block) for block in bundle.models["fp32"].blocks}
    verify_bundle(bundle.path)
    request = SearchRequest(place.calibration, place.evaluation, LIMITS, target="none")
    again = search_bundle(int8_bundle, tmp_path / "again", request)
    assert again.bundle.read("search.json") == bundle.read("search.json")
    assert files(again.bundle.path)[f"model.{lowest}.onnx"] == files(bundle.path)[f"model.{lowest}.onnx"]


def test_a_search_that_may_lower_nothing_leaves_the_bundle_alone(
    place: Place, int8_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(int8_bundle, tmp_path / "kept")
    before = files(tmp_path / "kept")
    request = SearchRequest(place.calibration, place.evaluation, replace(LIMITS, min_sqnr_db=200.0), target="none")
    with pytest.raises(AccuracyGateFailed, match="no block may be lowered") as caught:
        search_bundle(tmp_path / "kept", tmp_path / "kept", request)
    assert caught.value.code == 28
    assert files(tmp_path / "kept") == before


def test_a_poisoned_block_is_found_named_and_kept_in_fp32_by_the_search(tmp_path: Path) -> None:
    place = Place(tmp_path, poisoned(small_network()))
    with pytest.raises(ParityFailed, match="block stage3/ART does not fit into FP16") as caught:
        build_bundle(place.checkpoint, tmp_path / "b", place.request(precision="fp16"))
    assert (caught.value.code, caught.value.key) == (27, "fp16_overflow")
    assert "fp-export search" in caught.value.hint
    assert [row["block"] for row in caught.value.table] == ["stage3/ART"]
    build_bundle(place.checkpoint, tmp_path / "b", place.request(precision="fp32"))
    request = SearchRequest(place.calibration, place.evaluation, LIMITS, target="none")
    outcome = search_bundle(tmp_path / "b", tmp_path / "b", request)
    assert outcome.result.held == ("stage3/ART",)
    blocks = load_bundle(tmp_path / "b").models[outcome.report["precision"]].blocks
    assert blocks["stage3/ART"] == "fp32"
    assert blocks["stage3/PV"] != "fp32", "one bad block must not keep its whole group"
    assert outcome.report["ladder"][-1]["verdict"]["failed"] == ()
    verify_bundle(tmp_path / "b", place.checkpoint)
    # The other way round: without the exception the very same policy is not finite.
    (tmp_path / "policy.toml").write_text('"*" = "fp16"')
    with pytest.raises(ParityFailed, match="stage3/ART"):
        build_bundle(place.checkpoint, tmp_path / "c", place.request(policy=tmp_path / "policy.toml"))
