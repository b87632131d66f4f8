"""`fp-bench calibration`: one pass for all counts, trials against a second road to the same model, winners by hand."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from fourphase.benchmarks.accuracy import calibration_bench, judgement
from fourphase.benchmarks.accuracy.calibration_bench import (
    CalibrationResult,
    Subject,
    measure_calibration,
    read_subject,
    winner_of,
)
from fourphase.benchmarks.accuracy.plot import plot_calibration
from fourphase.benchmarks.phantoms.phantom_set import PhantomSet
from fourphase.calibration import metrics
from fourphase.calibration.lowering import blocks_of, lowered_model
from fourphase.calibration.qdq import int8_policy, quantizable_values
from fourphase.calibration.scales import collect_histograms, growing_histograms, scales_from
from fourphase.calibration.thresholds import ALGORITHMS
from fourphase.runtime.errors import InputMissing, ModelIncompatible, UsageError
from tests.support.lowered_bundle import write_lowered
from tests.support.quantizable import PREPROCESSING, quantizable_model
from tests.support.tiny_bundle import reference_outputs, tiny_model, write_tiny

COUNTS = (1, 3)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(
        bytes(quantizable_model().SerializeToString()), ("HCC", "ICC"), ("NC", "ART", "PV", "DL"), PREPROCESSING, None
    )


@pytest.fixture(scope="module")
def known(subject: Subject) -> PhantomSet:
    return subject.phantoms(COUNTS[-1], 0, 0.9, "calibration")


@pytest.fixture(scope="module")
def unseen(subject: Subject) -> PhantomSet:
    return subject.phantoms(6, 0, 0.9, "evaluation")


@pytest.fixture(scope="module")
def result(subject: Subject, known: PhantomSet, unseen: PhantomSet) -> CalibrationResult:
    """With fewer resamples than the 2000 that make up most of the time; intervals are tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (metrics, judgement, calibration_bench):
            patch.setattr(module, "bootstrap", partial(metrics.bootstrap, resamples=20))
        return measure_calibration(subject, known, unseen, COUNTS)


def test_one_pass_gives_what_one_pass_per_count_gives(subject: Subject, known: PhantomSet) -> None:
    names = quantizable_values(onnx.load_from_string(subject.onnx))
    for count, found in zip(COUNTS, growing_histograms(subject.onnx, names, known, COUNTS), strict=True):
        alone = collect_histograms(subject.onnx, names, replace(known, count=count))
        for name in names:
            np.testing.assert_array_equal(found.histograms[name].counts, alone.histograms[name].counts)
            assert found.histograms[name].zeros == alone.histograms[name].zeros
            assert found.histograms[name].largest == alone.histograms[name].largest


def test_histograms_of_a_part_are_not_taken_for_those_of_the_whole(subject: Subject, known: PhantomSet) -> None:
    part, whole = growing_histograms(subject.onnx, ["stem"], known, COUNTS)
    assert whole.data_hash == known.hash
    assert part.data_hash not in (known.hash, replace(known, count=1).hash)
    assert part.onnx_sha256 == whole.onnx_sha256 == hashlib.sha256(subject.onnx).hexdigest()


def test_calibration_and_evaluation_share_no_phantom(known: PhantomSet, unseen: PhantomSet) -> None:
    for study in known.studies():
        assert all(np.abs(study - other).max() > 0.1 for other in unseen.studies())


def test_there_is_a_trial_for_every_count_and_algorithm(result: CalibrationResult) -> None:
    tried = [(trial.count, trial.algorithm) for trial in result.trials]
    assert tried == [(count, algorithm) for count in COUNTS for algorithm in ALGORITHMS]
    assert len({trial.verdict.sqnr_db for trial in result.trials}) > len(ALGORITHMS)


@pytest.mark.parametrize(("count", "algorithm"), [(1, "minmax"), (3, "mse")])
def test_a_trial_is_what_the_reference_evaluator_says_of_that_model(
    subject: Subject, known: PhantomSet, unseen: PhantomSet, result: CalibrationResult, count: int, algorithm: str
) -> None:
    """Made by the single steps, run by onnx's own evaluator, which rounds FP16 inside of operators too."""
    model = onnx.load_from_string(subject.onnx)
    policy = int8_policy(blocks_of(model))
    found = collect_histograms(subject.onnx, quantizable_values(model, policy), replace(known, count=count))
    lowered = bytes(lowered_model(model, policy, scales_from(found, algorithm)).SerializeToString())
    before, after = (
        np.concatenate([reference_outputs(data, study)[0] for study in unseen.studies()])
        for data in (subject.onnx, lowered)
    )
    noise = float(np.square(after - before).sum() / np.square(before).sum())
    (trial,) = (trial for trial in result.trials if (trial.count, trial.algorithm) == (count, algorithm))
    assert trial.verdict.sqnr_db == pytest.approx(-10 * np.log10(noise), abs=3)
    assert trial.verdict.studies == 6
    assert trial.verdict.max_abs == pytest.approx(np.abs(after - before).max(), abs=3e-3)


def test_the_winner_is_ahead_of_the_next_best() -> None:
    """Errors of the same shape and another size: the lead is the ratio of sizes, in every resample."""
    rng = np.random.default_rng(0)
    reference, error = (rng.normal(size=(40, 2)).astype(np.float32) for _ in range(2))
    sizes = {"minmax": 0.1, "mse": 0.01, "entropy": 0.5, "percentile": 0.02}
    logits = {name: reference + np.float32(size) * error for name, size in sizes.items()}
    winner = winner_of(8, reference, logits, np.arange(40) % 2 == 1)
    assert (winner.count, winner.algorithm, winner.runner_up) == (8, "mse", "percentile")
    lead = 20 * np.log10(2)
    assert (winner.ahead_db.low, winner.ahead_db.value, winner.ahead_db.high) == pytest.approx((lead,) * 3, abs=1e-3)
    expected = 20 * np.log10(np.linalg.norm(reference) / np.linalg.norm(0.01 * error))
    assert winner.sqnr_db == pytest.approx(expected, abs=1e-3)


def test_a_lead_by_chance_has_an_interval_that_says_so() -> None:
    rng = np.random.default_rng(1)
    reference = rng.normal(size=(200, 2)).astype(np.float32)
    logits = {name: reference + rng.normal(0, 0.05, (200, 2)).astype(np.float32) for name in ("mse", "minmax")}
    ahead = winner_of(8, reference, logits, np.arange(200) % 2 == 1).ahead_db
    assert ahead.low < 0 < ahead.value < ahead.high


def test_the_report_says_what_it_is_of(result: CalibrationResult) -> None:
    body = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert body["schema"] == "fourphase.calibration-bench/1"
    assert len(body["trials"]) == len(result.trials)
    assert body["policy"]["stage"] == "int8"
    assert body["calibration"]["count"] == 3
    assert body["evaluation"]["count"] == 6
    assert "SYNTHETIC" in body["warning"]
    for winner in body["winners"]:
        trials = {trial["algorithm"]: trial["sqnr_db"] for trial in body["trials"] if trial["count"] == winner["count"]}
        assert winner["algorithm"] == max(trials, key=lambda name: trials[name])
        ahead = trials[winner["algorithm"]] - trials[winner["runner_up"]]
        assert winner["ahead_db"]["value"] == pytest.approx(ahead)


def test_the_plot_is_a_png(result: CalibrationResult, tmp_path: Path) -> None:
    plot_calibration(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_bundle_and_its_bare_onnx_are_the_same_subject(tmp_path: Path, subject: Subject) -> None:
    bundle = write_lowered(tmp_path / "bundle")
    found = read_subject(bundle.path)
    assert (found.onnx, found.preprocessing, found.bundle) == (subject.onnx, PREPROCESSING, bundle.sha256)
    assert (found.classes, found.phases) == (subject.classes, subject.phases)
    bare = read_subject(bundle.path / "model.fp32.onnx")
    assert (bare.onnx, bare.preprocessing, bare.bundle) == (subject.onnx, PREPROCESSING, None)


def test_what_is_no_fp32_model_of_studies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputMissing):
        read_subject(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("no ONNX")
    with pytest.raises(ModelIncompatible, match="not a valid ONNX"):
        read_subject(tmp_path / "text.onnx")
    image = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]> g (float[1, 3, 8, 8] x) => (float[1] y) {}'
    )
    (tmp_path / "image.onnx").write_bytes(image.SerializeToString())
    with pytest.raises(ModelIncompatible, match=r"is \(1, 3, 8, 8\), not") as caught:
        read_subject(tmp_path / "image.onnx")
    assert caught.value.key == "input_shape"
    with pytest.raises(ModelIncompatible, match="is not a bundle"):
        read_subject(tmp_path)
    other = write_tiny(tmp_path / "other", classes=("benign", "malignant"))
    with pytest.raises(ModelIncompatible, match="benign from malignant"):
        read_subject(other.path)


def test_a_model_without_named_blocks_is_refused(subject: Subject, known: PhantomSet, unseen: PhantomSet) -> None:
    with pytest.raises(UsageError, match="unknown block"):
        measure_calibration(replace(subject, onnx=tiny_model()), known, unseen, COUNTS)


def test_one_phantom_cannot_be_judged(subject: Subject, known: PhantomSet, unseen: PhantomSet) -> None:
    with pytest.raises(UsageError, match="one class only"):
        measure_calibration(subject, known, replace(unseen, count=1), COUNTS)
