"""`fp-bench accuracy`: figures against counting by hand, rows against onnx's reference evaluator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fourphase.benchmarks.accuracy import accuracy_bench
from fourphase.benchmarks.accuracy.accuracy_bench import AccuracyResult, measure_accuracy, positives_among
from fourphase.benchmarks.accuracy.judgement import ECE_NOTE, figures_of, intervals_text, judgement_of
from fourphase.benchmarks.accuracy.plot import plot_accuracy
from fourphase.benchmarks.phantoms.phantom_set import PhantomSet
from fourphase.calibration.metrics import Interval
from fourphase.runtime import openvino_backend
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.cpu import int8_instructions
from fourphase.runtime.errors import ModelIncompatible, SelfCheckFailed, UsageError
from tests.support.lowered_bundle import write_lowered
from tests.support.quantizable import PREPROCESSING
from tests.support.tiny_bundle import reference_outputs

Floats = NDArray[np.float32]

PHANTOMS = PhantomSet(8, 0, 0.9, PREPROCESSING)
CLASSES = ("HCC", "ICC")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_lowered(tmp_path_factory.mktemp("accuracy") / "bundle")


@pytest.fixture(scope="module")
def result(bundle: Bundle) -> Iterator[AccuracyResult]:
    """With OpenVINO's row also on a CPU where its int8 is refused; what it computes there is compared with itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_backend, "why_not", lambda precision: None)
        yield measure_accuracy(bundle, PHANTOMS)


def by_hand(logits: Floats, positives: NDArray[np.bool_]) -> dict[str, float]:
    """The four figures by their definitions, one phantom and one pair after the other."""
    scores = [float(second) - float(first) for first, second in logits]
    called = [score > 0 for score in scores]
    pairs = list(product(np.flatnonzero(positives), np.flatnonzero(~positives)))
    right = sum(1.0 if scores[p] > scores[n] else 0.5 if scores[p] == scores[n] else 0.0 for p, n in pairs)
    true_positive = sum(c and bool(p) for c, p in zip(called, positives, strict=True))
    true_negative = sum(not c and not p for c, p in zip(called, positives, strict=True))
    precision = true_positive / sum(called) if any(called) else 0.0
    recall = true_positive / int(positives.sum())
    return {
        "auc": right / len(pairs),
        "accuracy": (true_positive + true_negative) / len(scores),
        "f1": 2 * precision * recall / (precision + recall) if true_positive else 0.0,
        "npv": true_negative / called.count(False) if not all(called) else 0.0,
    }


needs_openvino = pytest.mark.skipif(not openvino_backend.is_available(), reason="needs the extra [openvino]")


def noisy(count: int = 120, seed: int = 0) -> tuple[Floats, NDArray[np.bool_]]:
    """Logits that are right more often than not."""
    rng = np.random.default_rng(seed)
    positives = np.arange(count) % 2 == 1
    scores = rng.normal(0, 1, count) + np.where(positives, 0.9, -0.6)
    return np.stack([-scores, scores], axis=1).astype(np.float32), positives


def test_figures_are_those_of_the_definitions() -> None:
    logits, positives = noisy()
    found = {name: interval.value for name, interval in figures_of(logits, positives).items()}
    assert found == pytest.approx(by_hand(logits, positives))


def test_the_interval_of_the_accuracy_is_as_wide_as_theory_says() -> None:
    """Resampled within each class: the variance is the mean of the classes' binomial variances, over the count."""
    logits, positives = noisy(400)
    right = (logits.argmax(axis=1) == 1) == positives
    shares = [float(right[positives == truth].mean()) for truth in (True, False)]
    sigma = np.sqrt(np.mean([share * (1 - share) for share in shares]) / len(right))
    interval = figures_of(logits, positives)["accuracy"]
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * sigma, rel=0.12)
    assert interval.low < interval.value < interval.high


@needs_openvino
def test_rows_are_the_bundles_models_and_the_program_that_runs_int8(result: AccuracyResult) -> None:
    names = [row.name for row in result.rows]
    programs = [row.program.split()[0] for row in result.rows]
    assert names == ["fp32", "fp16", "int8", "int8 OpenVINO"]
    assert programs == ["ONNX", "literal", "literal", "OpenVINO"]
    assert result.notes == (ECE_NOTE,)


def test_fp32_is_what_the_reference_evaluator_computes(bundle: Bundle, result: AccuracyResult) -> None:
    for index in (0, 5):
        logits, _ = reference_outputs(bundle.read("model.fp32.onnx"), PHANTOMS.study(index))
        np.testing.assert_allclose(result.logits["fp32"][index], logits[0], rtol=1e-4, atol=1e-5)


def test_int8_is_what_the_reference_evaluator_computes(bundle: Bundle, result: AccuracyResult) -> None:
    """Which rounds FP16 inside of operators too: it agrees to FP16's steps, and FP32 is much further away."""
    model = bundle.read("model.int8.onnx")
    expected = np.concatenate([reference_outputs(model, study)[0] for study in PHANTOMS.studies()])
    assert np.abs(result.logits["int8"] - expected).max() < 6e-3
    assert np.abs(result.logits["fp32"] - expected).max() > 1.2e-2


def test_every_row_is_held_against_fp32(result: AccuracyResult) -> None:
    reference = result.logits["fp32"]
    baseline = by_hand(reference, result.positives)
    for row in result.rows:
        logits = result.logits[row.name]
        figures = by_hand(logits, result.positives)
        assert {name: interval.value for name, interval in row.judgement.figures.items()} == pytest.approx(figures)
        if row.name == "fp32":
            assert row.against_fp32 is None
            continue
        verdict = row.against_fp32
        assert verdict is not None
        assert verdict.auc_change is not None
        assert verdict.flips == sum(a.argmax() != b.argmax() for a, b in zip(reference, logits, strict=True))
        assert verdict.auc_change[0] == pytest.approx(figures["auc"] - baseline["auc"])
        noise = np.linalg.norm(logits - reference) / np.linalg.norm(reference)
        assert verdict.sqnr_db == pytest.approx(-20 * np.log10(noise), rel=1e-4)
        assert verdict.bars["mlperf_99"] == (figures["auc"] >= 0.99 * baseline["auc"])


def test_precisions_differ_as_their_steps_do(result: AccuracyResult) -> None:
    fp16, int8 = (row.against_fp32 for row in result.rows[1:3])
    assert fp16 is not None
    assert int8 is not None
    assert fp16.sqnr_db > int8.sqnr_db + 10


@needs_openvino
@pytest.mark.skipif(int8_instructions() is None, reason="OpenVINO's int8 is refused on this CPU (no VNNI, no AMX)")
def test_openvinos_row_is_what_its_backend_says(bundle: Bundle, result: AccuracyResult) -> None:
    backend = openvino_backend.load_backend(bundle, "int8")
    np.testing.assert_array_equal(result.logits["int8 OpenVINO"][3], backend.infer(PHANTOMS.study(3)).logits[0])


def test_the_positive_class_is_the_second() -> None:
    assert positives_among(PHANTOMS, ("HCC", "ICC")).tolist() == [False, True] * 4
    assert positives_among(PHANTOMS, ("ICC", "HCC")).tolist() == [True, False] * 4


@pytest.mark.parametrize("reason", ["openvino is not installed", "would be wrong on this CPU"])
def test_without_openvino_a_note_says_why(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    monkeypatch.setattr(openvino_backend, "is_available", lambda: "installed" not in reason)
    monkeypatch.setattr(openvino_backend, "why_not", lambda precision: f"its {precision} {reason}")
    without_fp16 = {name: bundle.models[name] for name in ("fp32", "int8")}
    found = measure_accuracy(replace(bundle, models=without_fp16), replace(PHANTOMS, count=2))
    assert [row.name for row in found.rows] == ["fp32", "int8"]
    assert reason in found.notes[1]


def test_a_bundle_of_fp32_alone_has_one_row_and_no_note(bundle: Bundle) -> None:
    found = measure_accuracy(replace(bundle, models={"fp32": bundle.models["fp32"]}), replace(PHANTOMS, count=2))
    assert [row.name for row in found.rows] == ["fp32"]
    assert found.notes == (ECE_NOTE,)


def test_the_report_says_what_it_is_of(bundle: Bundle, result: AccuracyResult) -> None:
    body = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert body["schema"] == "fourphase.accuracy/2"
    assert body["bundle"]["sha256"] == bundle.sha256
    assert set(body["bundle"]["models"]) == {"fp32", "fp16", "int8"}
    assert body["phantoms"] == {"count": 8, "seed": 0, "difficulty": 0.9, "hash": PHANTOMS.hash}
    assert body["positive"] == "ICC"
    assert body["machine"]["packages"]["onnxruntime"]
    assert (body["paper"]["auc"], body["paper"]["npv"]) == (0.8973, 0.8635)
    assert "SYNTHETIC" in body["warning"]
    assert [row["name"] for row in body["rows"]] == [row.name for row in result.rows]
    for row in body["rows"]:
        logits = result.logits[row["name"]].astype(np.float64)
        icc = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
        assert np.trapezoid(row["roc"]["tpr"], row["roc"]["fpr"]) == pytest.approx(row["auc"]["value"], abs=1e-5)
        assert row["brier"]["value"] == pytest.approx(float(np.mean((icc - result.positives) ** 2)))
        curve = row["calibration_curve"]
        assert sum(curve["count"]) == 8
        assert np.average(curve["predicted"], weights=curve["count"]) == pytest.approx(icc.mean())
        assert np.average(curve["observed"], weights=curve["count"]) == pytest.approx(0.5)


def test_a_judgement_is_that_of_the_definitions() -> None:
    """Bins of 12 of 120 by hand; the Brier score's interval is that of a mean of squares."""
    logits, positives = noisy()
    judged = judgement_of(logits, positives)
    icc = 1 / (1 + np.exp(logits[:, 0].astype(np.float64) - logits[:, 1]))
    errors = (icc - positives) ** 2
    assert judged.brier.value == pytest.approx(errors.mean())
    sigma = np.sqrt(np.mean([errors[positives == truth].var() for truth in (True, False)]) / len(errors))
    assert judged.brier.high - judged.brier.low == pytest.approx(2 * 1.96 * sigma, rel=0.12)
    ranked = sorted(zip(icc, positives, strict=True))
    bins = [ranked[first : first + 12] for first in range(0, 120, 12)]
    shares = [sum(truth for _, truth in cases) / 12 for cases in bins]
    said = [sum(value for value, _ in cases) / 12 for cases in bins]
    assert judged.curve.observed == pytest.approx(shares)
    assert judged.curve.predicted == pytest.approx(said)
    assert judged.ece.value == pytest.approx(np.mean([abs(a - b) for a, b in zip(shares, said, strict=True)]))
    assert judged.ece.value > judged.ece_by_chance > 0, "its scores are twice as sure as they may be"


def test_what_cannot_be_judged_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="one class only"):
        measure_accuracy(bundle, replace(PHANTOMS, count=1))
    with pytest.raises(ModelIncompatible, match="no fp32 model"):
        measure_accuracy(replace(bundle, models={"int8": bundle.models["int8"]}), PHANTOMS)
    with pytest.raises(ModelIncompatible, match="FNH"):
        measure_accuracy(replace(bundle, classes=("HCC", "FNH")), PHANTOMS)


def test_logits_that_are_not_finite_have_no_figures() -> None:
    logits = np.array([[1, 2], [np.nan, 1], [np.inf, 0]], dtype=np.float32)
    with pytest.raises(SelfCheckFailed, match="int8 computes logits that are not finite on 2 of 3") as caught:
        accuracy_bench.require_finite({"fp32": np.zeros((3, 2), dtype=np.float32), "int8": logits})
    assert caught.value.key == "output_not_finite"


def test_intervals_are_in_per_cent() -> None:
    assert intervals_text(Interval(0.9436, 0.91019, 0.97091)) == "94.36\n91.02 to 97.09"
    assert intervals_text(Interval(-0.001, -0.002, 0.0005), "+") == "-0.10\n-0.20 to +0.05"


def test_the_plot_is_a_png(result: AccuracyResult, tmp_path: Path) -> None:
    plot_accuracy(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
