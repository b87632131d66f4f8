"""Folds, what a training may see of the phantoms it is judged on, and what becomes of one that diverges."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnx.reference import ReferenceEvaluator

from fourphase.benchmarks.accuracy import fold_training, int8_scores
from fourphase.benchmarks.accuracy.baselines_bench import judged_rows
from fourphase.benchmarks.accuracy.cross_plan import QUICK, CrossPlan, Studies, rendered
from fourphase.benchmarks.accuracy.cross_validation import (
    NetworkRun,
    choose_rates,
    folds_of,
    held_out_jobs,
    out_of_fold,
)
from fourphase.benchmarks.accuracy.fold_training import Job, run_jobs, train_one
from fourphase.benchmarks.accuracy.int8_scores import int8_logits, int8_model
from fourphase.benchmarks.networks import NETWORKS
from fourphase.benchmarks.phantoms.rendering import to_input
from fourphase.calibration.metrics import bootstrap, scores_of
from fourphase.calibration.roc import auc
from fourphase.runtime.errors import EnvironmentFault, ParityFailed, SelfCheckFailed, UsageError

FAST = "resnet3d-18-medicalnet"
PLAN = replace(QUICK, count=24, folds=3, epochs=6, rates=(4e-3,), calibration=0)
INT8 = replace(PLAN, epochs=1, calibration=2)
TRUTH = np.arange(24) % 2 == 1


def clear_studies(truth: NDArray[np.bool_], lifted: NDArray[np.bool_]) -> Studies:
    """Noise; the `lifted` are 150 HU brighter in all phases."""
    noise = np.random.default_rng(5).normal(0, 20, (len(truth), 4, *PLAN.scale.size))
    return Studies((noise + 150 * lifted[:, None, None, None, None]).astype(np.float16), truth)


STUDIES = clear_studies(TRUTH, TRUTH)


def one_job(studies: Studies = STUDIES, fold: int = 0, network: str = FAST, rate: float = 4e-3) -> Job:
    folds = folds_of(TRUTH, 3, 0)
    plan = replace(PLAN, epochs=1)
    return Job(network, rate, studies, np.flatnonzero(folds != fold), np.flatnonzero(folds == fold), fold, plan)


@pytest.mark.parametrize(("count", "folds"), [(240, 5), (23, 4), (4, 2)])
def test_folds_are_of_equal_size_and_mix(count: int, folds: int) -> None:
    truth = np.random.default_rng(count).permutation(np.arange(count) % 2 == 1)
    found = folds_of(truth, folds, 7)
    for kind in (truth, ~truth):
        sizes = np.bincount(found[kind], minlength=folds)
        assert len(sizes) == folds
        assert sizes.min() >= 1
        assert np.ptp(sizes) <= 1
    np.testing.assert_array_equal(found, folds_of(truth, folds, 7))
    if count > 4:
        assert (found != folds_of(truth, folds, 8)).any()


def test_every_study_is_scored_once_and_trained_on_in_all_other_folds() -> None:
    fold = folds_of(TRUTH, 3, 0)
    jobs = held_out_jobs(FAST, 1e-3, STUDIES, fold, PLAN)
    assert sorted(np.concatenate([job.score for job in jobs]).tolist()) == list(range(24))
    for job in jobs:
        assert not set(job.score.tolist()) & set(job.train.tolist())
        assert len(job.score) + len(job.train) == 24


def test_training_looks_neither_at_the_scored_studies_nor_at_their_truth() -> None:
    job = one_job()
    hu, flipped, other = STUDIES.hu.copy(), TRUTH.copy(), TRUTH.copy()
    hu[job.score] = np.nan
    flipped[job.score] = ~flipped[job.score]
    other[job.train[0]] = ~other[job.train[0]]
    unseen = train_one(replace(job, studies=Studies(hu, TRUTH)))
    assert unseen.reason == "the trained network's logits are not finite", "its loss never was"
    expected = train_one(job).logits
    assert expected is not None
    np.testing.assert_array_equal(train_one(replace(job, studies=Studies(STUDIES.hu, flipped))).logits, expected)
    changed = train_one(replace(job, studies=Studies(STUDIES.hu, other))).logits
    assert changed is not None
    assert np.abs(changed - expected).max() > 1e-6


def test_scores_out_of_fold_tell_what_can_be_told_and_nothing_else() -> None:
    """Brightness is the truth: AUC near 1. With shuffled truth 0.5 is within the interval."""
    shuffled = np.random.default_rng(0).permutation(TRUTH)
    found = {}
    for name, truth in (("true", TRUTH), ("shuffled", shuffled)):
        studies = clear_studies(truth, TRUTH)
        (run,) = out_of_fold(_chosen(studies), studies, PLAN, 1)
        assert run.logits is not None
        scores = scores_of(run.logits)
        found[name] = bootstrap(lambda i, s=scores, t=truth: auc(s[i], t[i]), truth, resamples=300)  # type: ignore[misc]
    assert found["true"].value > 0.95
    assert found["shuffled"].low <= 0.5 <= found["shuffled"].high


def _chosen(studies: Studies) -> list[NetworkRun]:
    return choose_rates([FAST], studies, replace(PLAN, epochs=1), 1)


def test_the_same_job_gives_the_same_logits_and_another_fold_others() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (train_one(one_job(fold=fold)) for fold in (0, 0, 1))
    assert torch.rand(1) == expected, "torch's random numbers are left alone"
    assert first.logits is not None
    assert other.logits is not None
    np.testing.assert_array_equal(first.logits, again.logits)
    assert np.abs(first.logits - other.logits).max() > 1e-6
    assert (first.status, first.reason) == ("ok", "")


def test_processes_of_their_own_change_nothing() -> None:
    jobs = [one_job(fold=fold) for fold in (0, 1)]
    for here, there in zip(run_jobs(jobs, 1, "here"), run_jobs(jobs, 2, "there"), strict=True):
        assert here.logits is not None
        assert there.logits is not None
        np.testing.assert_array_equal(here.logits, there.logits)
        assert here.parameters == there.parameters > 1000


class Deadly:
    """A job that ends the process that unpickles it."""

    network = FAST

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (9,)


def test_a_killed_training_is_a_fault_of_the_machine() -> None:
    jobs: list[Any] = [Deadly(), Deadly()]
    with pytest.raises(EnvironmentFault, match="a training's process was killed") as caught:
        run_jobs(jobs, 2, "dying")
    assert (caught.value.code, caught.value.key) == (24, "worker_died")


def test_a_network_is_told_of_before_the_next_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the second network's training is killed: the first one's end must have been told."""

    def trained(job: Job) -> fold_training.Trained:
        if job.network != FAST:
            raise EnvironmentFault("killed", "", key="worker_died")
        return fold_training.Trained(np.zeros((len(job.score), 2), np.float32), "ok", "", 1, 0.0)

    monkeypatch.setattr(fold_training, "train_one", trained)
    no_fold = np.empty(0, dtype=np.intp)
    runs = [NetworkRun(name, 1, rate, {}, None, no_fold, "ok", "", 0.0, 0.0)
            for name, rate in ((FAST, 1e-3), ("tdn", 1e-3), ("transmed", None))]  # fmt: skip
    told: list[NetworkRun] = []
    with pytest.raises(EnvironmentFault):
        out_of_fold(runs, STUDIES, PLAN, 1, told.append)
    assert [run.network for run in told] == ["transmed", FAST]
    assert told[1].logits is not None
    assert told[1].logits.shape == (24, 2)


def test_a_network_of_three_phases_sees_three() -> None:
    """The delayed phase is not looked at by the network without it."""
    job = one_job(network="four-phase-nc-art-pv")
    hu = STUDIES.hu.copy()
    hu[:, 3] += 100
    without, with_other = train_one(job), train_one(replace(job, studies=Studies(hu, TRUTH)))
    assert without.logits is not None
    np.testing.assert_array_equal(without.logits, with_other.logits)


@pytest.mark.parametrize("network", [FAST, "four-phase-nc-art-pv"])
def test_the_int8_model_of_what_was_trained_says_nearly_the_same(network: str) -> None:
    plan = replace(PLAN, calibration=8)
    studies, folds = rendered(plan.phantoms("folds"), lambda _: None), folds_of(TRUTH, 3, 0)
    job = Job(network, 4e-3, studies, np.flatnonzero(folds != 0), np.flatnonzero(folds == 0), 0, plan)
    fp32, both = train_one(job), train_one(replace(job, int8=True))
    assert (fp32.int8, fp32.int8_reason) == (None, "")
    assert both.int8_reason == ""
    assert fp32.logits is not None
    assert both.logits is not None
    assert both.int8 is not None
    np.testing.assert_array_equal(both.logits, fp32.logits)
    # Width 4 and six epochs: int8 costs it a tenth of its range. Another network's scores do not follow at all.
    assert np.corrcoef(scores_of(fp32.logits), scores_of(both.int8))[0, 1] > 0.9


def test_the_int8_model_is_int8_and_its_scores_are_its_own() -> None:
    """Against onnx's reference evaluator, which rounds FP16 and int8 as the graph says."""
    network, _ = NETWORKS[FAST](PLAN.scale, 1)
    calibration = replace(PLAN, calibration=4).phantoms("calibration")
    model = int8_model(network, calibration)
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["QuantizeLinear"] > 5
    assert any(one.data_type == TensorProto.FLOAT16 for one in model.graph.initializer)
    studies = [calibration.study(index)[0] for index in range(2)]
    found = int8_logits(model, studies)
    reference = ReferenceEvaluator(model)
    expected = np.concatenate([np.asarray(reference.run(["logits"], {"study": study[None]})[0]) for study in studies])  # type: ignore[index]
    with torch.no_grad():
        fp32 = network(torch.from_numpy(np.stack(studies))).numpy()
    # Sums in another order fall on the other side of a rounding here and there, and this network has learnt nothing.
    np.testing.assert_allclose(found, expected, atol=0.06 * np.abs(fp32).max(), rtol=0)
    assert np.abs(found - fp32).max() > 1e-3, "that is the FP32 model: its export is within 1e-5"


def test_logits_that_are_not_finite_are_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {"logits": np.array([[np.inf, 0.0]], dtype=np.float32)}
    monkeypatch.setattr(int8_scores, "literal_session", lambda model: lambda study: outputs)
    with pytest.raises(SelfCheckFailed, match="not finite") as caught:
        int8_logits(ModelProto(), [np.zeros((4, 1, 3, 1, 1), np.float32)])
    assert "FP32" in caught.value.hint


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ParityFailed("logits differ", "look at the block"), "logits differ"),
        (RuntimeError("NOT_IMPLEMENTED : Resize\nmore"), "RuntimeError: NOT_IMPLEMENTED : Resize"),
    ],
)
def test_a_network_that_cannot_be_lowered_keeps_its_fp32_scores(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(fold_training, "int8_model", refuse)
    (run,) = out_of_fold(_chosen(STUDIES), STUDIES, INT8, 1)
    assert run.logits is not None
    assert (run.status, run.int8, run.int8_reason) == ("ok", None, f"fold 1: {reason}")
    (row,) = judged_rows([run], STUDIES)
    assert row.to_dict()["int8"] is None
    assert row.to_dict()["int8_reason"] == f"fold 1: {reason}"


def test_int8_scores_stand_at_their_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fold's model here says which study it was asked about, by its brightness."""
    bright = np.arange(24, dtype=np.float32)
    hu = np.broadcast_to(bright[:, None, None, None, None], (24, 4, *PLAN.scale.size)).astype(np.float16)
    studies = Studies(hu, TRUTH)
    expected = [float(to_input(hu[index].astype(np.float32), PLAN.preprocessing).mean()) for index in range(24)]

    def said(model: object, inputs: Iterator[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.array([[study.mean(), 0.0] for study in inputs], dtype=np.float32)

    monkeypatch.setattr(fold_training, "int8_model", lambda *_: None)
    monkeypatch.setattr(fold_training, "int8_logits", said)
    (run,) = out_of_fold(_chosen(STUDIES), studies, INT8, 1)
    assert run.int8 is not None
    np.testing.assert_allclose(run.int8[:, 0], expected, rtol=1e-6)
    assert len(set(expected)) == 24


def test_batch_norm_starts_anew() -> None:
    """Builders settle it on random studies with a cumulative mean, which would go on through the training."""
    norm = torch.nn.BatchNorm2d(2)
    norm.momentum = None
    norm(torch.full((1, 2, 2, 2), 7.0))
    fold_training._forget_statistics(torch.nn.Sequential(norm))
    norm(torch.full((1, 2, 2, 2), 5.0))
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, torch.full((2,), 0.5))


def test_a_rate_that_diverges_is_not_chosen() -> None:
    plan = replace(PLAN, epochs=1, rates=(1e30, 4e-3))
    (run,) = choose_rates([FAST], STUDIES, plan, 1)
    assert run.rates[1e30] is None
    loss = run.rates[4e-3]
    assert loss is not None
    assert loss > 0
    assert (run.rate, run.status) == (4e-3, "ok")


def test_the_rate_with_the_lower_loss_is_chosen() -> None:
    """One of both learns nothing in one epoch."""
    (run,) = choose_rates([FAST], STUDIES, replace(PLAN, rates=(1e-9, 4e-3)), 1)
    assert run.rate == 4e-3
    assert min(run.rates.values(), key=lambda loss: loss or 9) == run.rates[4e-3]


def test_a_network_that_diverges_is_a_row_with_a_reason() -> None:
    plan = replace(PLAN, epochs=1, rates=(1e30,))
    runs = out_of_fold(choose_rates([FAST], STUDIES, plan, 1), STUDIES, plan, 1)
    (row,) = judged_rows(runs, STUDIES)
    body = row.to_dict()
    assert body["status"] == "diverged"
    assert "training diverged: the loss is nan at step" in body["reason"]
    assert (body["auc"], body["roc"], body["rate"], body["parameters"] > 0) == (None, None, None, True)


def test_what_torch_refuses_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(network: object, batches: Iterator[object], rate: float, steps: int) -> Iterator[float]:
        raise RuntimeError("sizes do not match\nsecond line")

    monkeypatch.setattr(fold_training, "fit", refuses)
    trained = train_one(one_job())
    assert (trained.status, trained.reason, trained.logits) == ("failed", "sizes do not match", None)


def test_rendered_phantoms_are_those_of_the_set_to_half_precision() -> None:
    phantoms = replace(PLAN, count=6).phantoms("folds")
    advanced: list[int] = []
    studies = rendered(phantoms, advanced.append)
    assert advanced == [1] * 6
    assert studies.hu.dtype == np.float16
    np.testing.assert_allclose(studies.hu[3], phantoms.hu(3), rtol=2**-11, atol=1e-3)
    assert studies.truth.tolist() == [False, True] * 3
    assert phantoms.hash != replace(PLAN, tuning=6).phantoms("tuning").hash


@pytest.mark.parametrize(("count", "folds"), [(10, 1), (9, 5)])
def test_too_few_phantoms_or_folds_are_refused(count: int, folds: int) -> None:
    with pytest.raises(UsageError) as caught:
        CrossPlan(count=count, folds=folds)
    assert caught.value.key == "phantoms_too_few"
