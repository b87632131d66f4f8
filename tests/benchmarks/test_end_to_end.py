"""The pipelines against each other and against torch, and what becomes of a run in which one fails or disagrees."""

import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import typer
from scipy import ndimage
from typer.testing import CliRunner

from fourphase.benchmarks import preprocess_bench
from fourphase.benchmarks.end_to_end import command, measure, worker
from fourphase.benchmarks.end_to_end.agreement import Answer, agreement
from fourphase.benchmarks.end_to_end.command import Options, end_to_end, measured
from fourphase.benchmarks.end_to_end.ours import OurPipeline
from fourphase.benchmarks.end_to_end.pipelines import PIPELINES, REFERENCE, Job, chosen_pipelines, why_missing
from fourphase.benchmarks.end_to_end.plain import PlainPipeline, network_input
from fourphase.benchmarks.end_to_end.plot import plot_steps
from fourphase.benchmarks.end_to_end.process import PipelineFailed, PipelineProcess
from fourphase.benchmarks.end_to_end.study import (
    drop_page_cache,
    given_study,
    into_page_cache,
    packages_into_page_cache,
    phantom_study,
)
from fourphase.benchmarks.end_to_end.table import print_result
from fourphase.benchmarks.latency.plot import require_plot
from fourphase.benchmarks.latency.prepare import Prepared, prepare
from fourphase.benchmarks.latency.sensors import Watched
from fourphase.benchmarks.phantoms.phantom import make_phantom
from fourphase.benchmarks.phantoms.phantom_dicom import WrittenStudy, write_study
from fourphase.export.checkpoint import save_checkpoint
from fourphase.export.network import FourPhaseNet
from fourphase.runtime import openvino_backend
from fourphase.runtime.bundle import load_bundle
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import EnvironmentFault, InputMissing, SelfCheckFailed, UsageError

PLAIN, OURS = "plain-onnxruntime", "ours-onnxruntime-fp32"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def tiny(cache: Path) -> Prepared:
    return prepare("four-phase", quick=True, work=cache / "benchmarks")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenStudy:
    return write_study(tmp_path_factory.mktemp("study") / "case", make_phantom("ICC", 5), 80, 36, lambda steps: None)


@pytest.fixture(scope="module")
def job(tiny: Prepared, written: WrittenStudy, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Job]:
    weights = tmp_path_factory.mktemp("weights") / "module.pt"
    torch.save(tiny.module(), weights)
    return lambda name: Job(name, str(written.dicom), str(written.box), str(tiny.bundle), str(weights), 1)


def run(pipeline: PlainPipeline | OurPipeline, path: Path) -> tuple[Answer, dict[str, float], dict[str, Any]]:
    pipeline.imports()
    pipeline.load()
    steps = pipeline.run()
    known = pipeline.save(path)
    with np.load(path) as found:
        return Answer(found["input"], found["logits"]), steps, known


# ---- the pipelines themselves


def test_the_plain_input_is_the_contracts(written: WrittenStudy) -> None:
    """Three implementations at the contract's size: SimpleITK on the region, on the whole volume, and ours."""
    config = PreprocessingConfig()
    ours, _, slices = preprocess_bench._ours(written.dicom, written.box)()
    files = preprocess_bench.series_files(sitk, written.dicom)
    assert sum(map(len, files)) == slices
    given = json.loads(written.box.read_text())
    low, high = np.array(given["min"]) - config.margin_mm, np.array(given["max"]) + config.margin_mm
    for phase, names in enumerate(files):
        volume = sitk.ReadImage(list(names))
        plain = network_input(sitk, volume, low.tolist(), high.tolist(), config)
        assert plain.shape == ours.shape[1:] == (64, 3, 128, 128)
        np.testing.assert_allclose(plain, ours[phase], atol=1e-3)
        if phase == 0:  # the whole volume takes long
            whole = preprocess_bench._whole_volume(sitk, ndimage, volume, low, high, config)
            np.testing.assert_allclose(plain, whole, atol=1e-3)
        assert float(np.ptp(plain)) > 1


def test_a_region_beyond_the_volume_is_background_after_half_a_voxel() -> None:
    """A volume of ones (HU) of 4 mm in a region of 8 mm: 2 mm of -1024 on each side."""
    config = PreprocessingConfig(size=(8, 8, 8))
    volume = sitk.GetImageFromArray(np.ones((4, 4, 4), dtype=np.int16))
    volume.SetOrigin((0.5, 0.5, 0.5))
    found = network_input(sitk, volume, [-2.0] * 3, [6.0] * 3, config)
    low, high = config.windows_hu[0]
    inside, outside = (
        (np.clip((hu - low) / (high - low), 0, 1) - config.mean[0]) / config.std[0] for hu in (1.0, -1024.0)
    )
    wanted = np.full((8, 8, 8), outside)
    wanted[2:6, 2:6, 2:6] = inside
    np.testing.assert_allclose(found[:, 0], wanted, atol=1e-5)


def test_plain_logits_are_the_networks_and_ours_agree(
    job: Callable[[str], Job], tiny: Prepared, tmp_path: Path
) -> None:
    plain, steps, known = run(PlainPipeline(job(REFERENCE)), tmp_path / "plain.npz")
    with torch.no_grad():
        wanted = tiny.module()(torch.from_numpy(plain.input[None]))[0][0].numpy()
    np.testing.assert_allclose(plain.logits, wanted, atol=1e-5)
    assert plain.input.shape == load_bundle(tiny.bundle).input_shape
    assert known == {"slices": [36] * 4, "device": "cpu"}
    assert list(steps) == ["scan", "read", "preprocess", "inference"]
    for name in (PLAIN, OURS):
        pipeline = PIPELINES[name]
        other, steps, known = run((OurPipeline if pipeline.ours else PlainPipeline)(job(name)), tmp_path / "other.npz")
        found = agreement(plain, other, exact=True)
        assert found.refused == ""
        assert found.input_max_abs is not None
        assert found.input_max_abs < 1e-3
        assert found.logits_relative is not None
        assert found.logits_relative < 1e-3
        assert known["slices"] == [36] * 4
        assert ("breathing" in steps) == pipeline.ours
        assert all(value >= 0 for value in steps.values())


def test_plain_refuses_a_study_that_is_not_four_series(job: Callable[[str], Job], tmp_path: Path) -> None:
    given = job(PLAIN)
    pipeline = PlainPipeline(Job(PLAIN, str(tmp_path), given.box, given.bundle, given.module, 1))
    pipeline.load()
    with pytest.raises(Exception, match="0 series, not 4"):
        pipeline.run()


# ---- agreement


def answer(offset: float = 0.0, logits: tuple[float, float] = (2.0, -4.0)) -> Answer:
    return Answer(np.full((4, 2, 3, 2, 2), offset, dtype=np.float32), np.array(logits, dtype=np.float32))


def test_agreement_is_measured_and_judged() -> None:
    found = agreement(answer(), answer(1e-3, (2.0, -4.03)), exact=True)
    assert found.input_max_abs == pytest.approx(1e-3)
    assert found.logits_max_abs == pytest.approx(0.03, rel=1e-4)
    assert found.logits_relative == pytest.approx(0.03 / 4, rel=1e-4)
    assert found.refused == ""


@pytest.mark.parametrize(
    ("other", "exact", "word"),
    [
        (answer(3e-3), True, "input differs"),
        (answer(0, (2.0, -4.05)), True, "logits differ"),
        (answer(0, (2.0, -3.0)), False, ""),  # int8 may lose what it likes here
        (answer(3e-3), False, "input differs"),
        (answer(0, (math.nan, 0)), False, "not finite"),
        (answer(0, (0, math.nan)), False, "not finite"),  # a NaN that is not the first
        (Answer(np.zeros((4, 1, 3, 2, 2), np.float32), np.zeros(2, np.float32)), True, "another shape"),
    ],
)
def test_disagreement_is_refused(other: Answer, exact: bool, word: str) -> None:
    refused = agreement(answer(), other, exact=exact).refused
    assert word in refused
    assert bool(refused) == bool(word)


# ---- a run, with processes made up


class FakeProcess:
    """Takes as long as the test says, and answers what it says."""

    totals: dict[str, list[float]]
    answers: dict[str, Answer]
    asked: list[str]

    def __init__(self, job: Job, **_: Any) -> None:
        self.name, self.turn = job.name, 0
        self.asked.append(f"start {self.name}")
        if job.name not in self.totals:
            raise PipelineFailed("it does not start")
        self.cold_ms = {"start": 10.0, "import": 20.0, "load": 30.0, "scan": 1.0, "rest": 1.0, "total": 62.0}

    def run(self) -> dict[str, float]:
        self.asked.append(self.name)
        times = self.totals[self.name]
        if self.turn >= len(times):
            raise PipelineFailed("its process ended by SIGKILL")
        total = times[self.turn]
        self.turn += 1
        return {"scan": total / 4, "inference": total / 2, "rest": total / 4, "total": total}

    def save(self, path: Path) -> dict[str, Any]:
        given = self.answers[self.name]
        np.savez(path, input=given.input, logits=given.logits)
        return {"slices": [7] * 4, "device": "cpu"}

    def peak_bytes(self) -> int:
        return 1000

    def close(self) -> None:
        self.asked.append(f"close {self.name}")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeProcess]:
    monkeypatch.setattr(measure, "PipelineProcess", FakeProcess)
    monkeypatch.setattr(measure, "packages_into_page_cache", lambda *others: 0)
    rounds = [99.0, 100.0, 101, 99, 100, 102, 98]
    FakeProcess.totals = {name: [scale * value for value in rounds] for name, scale in
                          ((REFERENCE, 6), (PLAIN, 3), (OURS, 2))}  # fmt: skip
    FakeProcess.answers = dict.fromkeys((REFERENCE, PLAIN, OURS), answer())
    FakeProcess.asked = []
    return FakeProcess


def run_fakes(written: WrittenStudy, rounds: int = 6, missing: dict[str, str] | None = None) -> dict[str, Any]:
    pipelines = tuple(PIPELINES[name] for name in (REFERENCE, PLAIN, OURS))
    plan = measure.Plan(pipelines, missing or {}, {}, Path("bundle"), Path("weights"), rounds, cold_starts=1)
    study = given_study(written.dicom, written.box)
    stages: list[measure.Measured] = []
    found = measure.measure(plan, study, stages.append).to_dict()
    json.dumps(found, allow_nan=False)
    assert len(stages) == 1 + 1 + rounds
    return found


def value(found: dict[str, Any], a: str) -> tuple[Any, str]:
    """A ratio over ours, and why there is none."""
    (ratio,) = [pair["ratio"] for pair in found["ratios"] if (pair["a"], pair["b"]) == (a, OURS)]
    return ratio["value"], ratio["refused"]


def test_pipelines_take_turns_and_ratios_are_of_the_same_round(fake: type[FakeProcess], written: WrittenStudy) -> None:
    found = run_fakes(written)
    names = [REFERENCE, PLAIN, OURS]
    turns = fake.asked[3:-3]
    assert turns == names * 7
    assert sorted(fake.asked[-3:]) == sorted(f"close {name}" for name in names)
    assert value(found, REFERENCE) == (pytest.approx(3), "")
    assert value(found, PLAIN) == (pytest.approx(1.5), "")
    assert len(found["ratios"]) == 2
    warm = found["pipelines"][OURS]["warm"]
    assert warm["round_medians_ms"] == [2 * value for value in (100, 101, 99, 100, 102, 98)]  # not the warm-up's 198
    assert warm["total_ms"]["p50"] == pytest.approx(200)
    assert warm["steps_ms"] == pytest.approx({"scan": 50, "inference": 100, "rest": 50})
    assert sum(warm["steps_ms"].values()) == pytest.approx(warm["total_ms"]["p50"])
    assert found["pipelines"][OURS]["cold_ms"]["total"] == 62
    assert found["pipelines"][OURS]["peak_bytes"] == 1000
    assert found["study"]["slices_per_phase"] == 7
    assert found["study"]["bytes"] == written.bytes_written
    assert found["watched"]["seconds"] >= 0


def test_a_pipeline_that_does_not_start_is_a_row_and_the_others_go_on(
    fake: type[FakeProcess], written: WrittenStudy
) -> None:
    del fake.totals[PLAIN]
    found = run_fakes(written)
    assert found["pipelines"][PLAIN]["status"] == "failed"
    assert found["pipelines"][PLAIN]["reason"] == "it does not start"
    assert found["pipelines"][PLAIN]["warm"] is None
    assert value(found, REFERENCE)[0] == pytest.approx(3)
    assert "it does not start" in value(found, PLAIN)[1]


def test_a_pipeline_that_dies_in_between_is_asked_no_more(fake: type[FakeProcess], written: WrittenStudy) -> None:
    del fake.totals[OURS][3:]
    found = run_fakes(written)
    row = found["pipelines"][OURS]
    assert (row["status"], row["reason"]) == ("failed", "its process ended by SIGKILL")
    assert fake.asked.count(OURS) == 4
    assert fake.asked.count(REFERENCE) == 7
    assert value(found, REFERENCE)[0] is None


def test_a_fast_wrong_answer_is_no_win(fake: type[FakeProcess], written: WrittenStudy) -> None:
    fake.answers[OURS] = answer(0.5)
    found = run_fakes(written)
    row = found["pipelines"][OURS]
    assert row["status"] == "failed"
    assert "input differs" in row["reason"]
    assert row["warm"] is not None
    ratio, refused = value(found, REFERENCE)
    assert ratio is None
    assert "input differs" in refused
    assert found["agreement"][OURS]["input_max_abs"] == 0.5


def test_without_the_reference_nothing_is_compared(fake: type[FakeProcess], written: WrittenStudy) -> None:
    del fake.totals[REFERENCE]
    found = run_fakes(written)
    assert value(found, PLAIN) == (None, f"there is no {REFERENCE} to compare {PLAIN}'s answer with")
    assert found["agreement"] == {}


def test_few_rounds_give_no_ratio_and_the_missing_are_marked(fake: type[FakeProcess], written: WrittenStudy) -> None:
    found = run_fakes(written, rounds=2, missing={PLAIN: "not here"})
    assert "needs 5" in value(found, REFERENCE)[1]
    assert found["pipelines"][PLAIN]["status"] == "missing"
    assert [pair["a"] for pair in found["ratios"]] == [REFERENCE]
    assert f"start {PLAIN}" not in fake.asked


# ---- processes


def test_a_failing_process_says_why(job: Callable[[str], Job], tmp_path: Path) -> None:
    given = job(PLAIN)
    with pytest.raises(PipelineFailed, match="0 series, not 4"):
        PipelineProcess(Job(PLAIN, str(tmp_path), given.box, given.bundle, given.module, 1))
    with pytest.raises(PipelineFailed, match=r"no answer within 0\.01 s"):
        PipelineProcess(given, limit_s=0.01)


def test_a_process_that_was_killed_is_told(job: Callable[[str], Job]) -> None:
    process = PipelineProcess(job(PLAIN))
    steps = process.run()
    assert sum(part for name, part in steps.items() if name != "total") == pytest.approx(steps["total"])
    assert steps["rest"] < 0.5 * steps["total"]
    cold = process.cold_ms
    assert sum(part for name, part in cold.items() if name != "total") == pytest.approx(cold["total"], rel=0.05)
    assert 5e7 < (process.peak_bytes() or 0) < 2e9
    os.kill(process._process.pid, 9)
    with pytest.raises(PipelineFailed, match="SIGKILL"):
        process.run()
    process.close()


def test_errors_name_no_paths() -> None:
    said = worker.said_of(
        RuntimeError("Exception in /tmp/x/itk.cxx:97:\nsitk::ERROR: cannot read '/home/me/a b/1.dcm'")
    )
    assert said == "RuntimeError: Exception in <path>:97"
    assert worker.said_of(ValueError("'/home/me/1.dcm' 3/4")) == "ValueError: '<path>' 3/4"
    assert worker.said_of(UsageError("cause", "cure")) == "cause"


def test_a_worker_answers_every_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Steady:
        def imports(self) -> None: ...
        def load(self) -> None: ...
        def run(self) -> dict[str, float]:
            return {"scan": 0.0}

        def save(self, path: Path) -> dict[str, Any]:
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(worker, "_pipeline", lambda job: Steady())
    answers = io.StringIO()
    worker.serve(Job(PLAIN, "", "", "", "", 1), 0.0, answers, io.StringIO(f"run\npeak\nsave {tmp_path}/x\nrun\n"))
    cold, ran, peak, error = map(json.loads, answers.getvalue().splitlines())
    assert set(cold) == {"start", "import", "load", "scan", "rest", "total"}
    assert ran["rest"] == ran["total"]
    assert peak["peak_bytes"] > 0
    assert error["error"] == "OSError: [Errno 28] No space left on device: '<path>'"


# ---- the command


def invoke(*arguments: str | Path) -> str:
    app = typer.Typer()
    app.command()(end_to_end)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_rehearsal_by_the_command(
    cache: Path, tiny: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOURPHASE_CACHE", str(cache))
    plot = tmp_path / "steps.png"
    chosen = f"{REFERENCE},{OURS},ours-tensorrt-rtx-fp16"
    lines = invoke("--quick", "--slices", "36", "--rounds", "2", "--pipelines", chosen, "--plot", plot).splitlines()
    body = json.loads(lines[-1])
    assert body["schema"] == command.SCHEMA
    assert body["quick"] is True
    assert "no measurements" in lines[0]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert body["study"]["phantom"] is True
    assert body["study"]["slices_per_phase"] == 36
    rows = body["pipelines"]
    assert rows["ours-tensorrt-rtx-fp16"]["status"] == "missing"
    for name in (REFERENCE, OURS):
        assert rows[name]["status"] == "ok", rows[name]["reason"]
        warm = rows[name]["warm"]
        assert len(warm["round_medians_ms"]) == 2
        assert min(warm["round_medians_ms"]) == warm["total_ms"]["min"]
        assert rows[name]["peak_bytes"] > 5e7
    np.testing.assert_allclose(rows[OURS]["logits"], rows[REFERENCE]["logits"], rtol=1e-2)
    assert "speed only" in body["settings"]["warnings"][0]
    assert str(tmp_path) not in lines[-1]
    assert str(cache) not in lines[-1]


def test_a_bundle_is_measured_beside_its_own_weights(tiny: Prepared, tmp_path: Path) -> None:
    checkpoint, network = tmp_path / "model.safetensors", tiny.module()
    assert isinstance(network, FourPhaseNet)
    save_checkpoint(checkpoint, network, load_bundle(tiny.bundle).preprocessing, {})
    options = Options(bundle=str(tiny.bundle), checkpoint=str(checkpoint))
    subject = command._subject(options, tmp_path / "module.pt")
    assert (subject.bundle, subject.warning) == (tiny.bundle, "")
    example = torch.randn(1, *load_bundle(tiny.bundle).input_shape)
    module = torch.load(tmp_path / "module.pt", weights_only=False)
    assert not module.training
    with torch.no_grad():
        torch.testing.assert_close(module(example)[0], network(example)[0])


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (Options(study="x"), "box_missing"),
        (Options(bundle="x"), "checkpoint_missing"),
        (Options(study="x", box="y", slices=9), "slices_of_study"),
        (Options(pipelines=("plain-torhc",)), "pipeline_unknown"),
        (Options(pipelines=(OURS,)), "reference_missing"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: Options, key: str) -> None:
    with pytest.raises(UsageError) as caught:
        measured(options, lambda record: None)
    assert caught.value.key == key


def test_without_simpleitk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess_bench, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault) as caught:
        measured(Options(quick=True), lambda record: None)
    assert "[dev]" in caught.value.hint


def test_what_cannot_run_here_has_a_reason(tiny: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(tiny.bundle)
    assert why_missing(PIPELINES[OURS], bundle, {}) == ""
    assert len(chosen_pipelines(None)) == len(PIPELINES)
    half = PIPELINES["ours-tensorrt-fp16"]
    engines = "fourphase.benchmarks.latency.engines.engine_why_not"
    monkeypatch.setattr(engines, lambda flavour: f"{flavour} is not installed")
    assert why_missing(half, bundle, {"fp16": "too hot"}).endswith(": tensorrt is not installed")
    monkeypatch.setattr(engines, lambda flavour: None)
    assert why_missing(half, bundle, {"fp16": "too hot"}) == "the bundle has no fp16 model: too hot"
    monkeypatch.setattr("fourphase.benchmarks.end_to_end.pipelines.find_spec", lambda name: None)
    lowered = PIPELINES["ours-openvino-int8"]
    assert why_missing(lowered, bundle, {}) == "openvino is not installed"
    monkeypatch.setattr("fourphase.benchmarks.end_to_end.pipelines.find_spec", lambda name: name)
    monkeypatch.setattr(openvino_backend, "why_not", lambda precision: f"{precision} would be wrong")
    assert why_missing(lowered, bundle, {}) == "int8 would be wrong"


def test_the_study_given_must_be_there_with_a_json_box(written: WrittenStudy, tmp_path: Path) -> None:
    with pytest.raises(InputMissing):
        given_study(tmp_path / "nowhere", written.box)
    with pytest.raises(UsageError):
        given_study(written.dicom, written.folder / "lesion_mask.nii.gz")
    assert into_page_cache(given_study(written.dicom, written.box)) == written.bytes_written


def test_a_phantoms_study_goes_with_its_context() -> None:
    with phantom_study(30, quick=True) as study:
        assert len([path for path in study.files if path.stat().st_size > 1e4]) >= 120
        assert "30 slices of 96 x 96" in study.what
    assert not study.folder.exists()


def test_the_page_cache_is_emptied_or_the_reason_is_told(tmp_path: Path) -> None:
    switch = tmp_path / "drop_caches"
    assert drop_page_cache(switch) == ""
    assert switch.read_text() == "3\n"
    assert "only root may" in drop_page_cache(tmp_path / "missing" / "drop_caches")


def test_a_picture_is_a_png(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        require_plot(tmp_path / "steps.jpg")


def test_a_run_in_which_all_failed_is_printed_and_drawn(
    fake: type[FakeProcess], written: WrittenStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.totals.clear()
    settings = {"protocol": {"rounds": 6, "warmups": 1, "cold_starts": 1}, "threads": 1, "reference": REFERENCE,
                "warnings": ["says nothing"]}  # fmt: skip
    head = {"quick": False, "settings": settings, "machine": {"cpu": {"name": "a CPU"}}}
    result = {**head, **run_fakes(written)}
    print_result(result)
    text = capsys.readouterr().out
    assert text.count("it does not start") == 3
    assert "says nothing" in text
    plot_steps(result, tmp_path / "steps.png")
    assert (tmp_path / "steps.png").stat().st_size > 1000


# ---- what must not be quoted


def test_logits_that_are_not_finite_are_a_failed_row_and_still_json(
    fake: type[FakeProcess], written: WrittenStudy
) -> None:
    fake.answers[OURS] = answer(0, (0.0, math.nan))
    found = run_fakes(written)  # which writes it as JSON
    row = found["pipelines"][OURS]
    assert (row["status"], row["reason"], row["logits"]) == ("failed", "its logits are not finite", [])
    assert value(found, REFERENCE)[0] is None
    assert fake.asked.count(OURS) == 0  # it takes no turn


def test_a_reference_that_is_not_finite_is_compared_with_nobody(fake: type[FakeProcess], written: WrittenStudy) -> None:
    fake.answers[REFERENCE] = answer(0, (math.inf, 0.0))
    found = run_fakes(written)
    assert found["pipelines"][REFERENCE]["status"] == "failed"
    assert found["pipelines"][OURS]["status"] == "ok"
    assert found["agreement"] == {}


@pytest.mark.parametrize(("busy", "quoted"), [(None, True), (0.1, True), (0.5, False)])
def test_a_run_that_others_disturbed_quotes_no_ratio(
    busy: float | None, quoted: bool, fake: type[FakeProcess], written: WrittenStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def watching() -> Iterator[Any]:
        yield SimpleNamespace(result=lambda: Watched(1.0, busy_elsewhere=busy))

    monkeypatch.setattr(measure, "watch", watching)
    ratio, refused = value(run_fakes(written), REFERENCE)
    assert (ratio is not None) == quoted
    assert ("other processes took 50%" in refused) != quoted


def test_before_cold_starts_packages_and_bundle_are_read(
    fake: type[FakeProcess], written: WrittenStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(measure, "packages_into_page_cache", lambda *others: read.extend(others))
    monkeypatch.setattr(measure, "drop_page_cache", lambda: "only root may")
    run_fakes(written)
    assert read == [Path("bundle"), Path("weights")]
    plan = measure.Plan((), {}, {}, Path("bundle"), Path("weights"), 1, 1, drop_caches=True)
    assert "only root may" in measure._cache_notes(plan)[0]
    assert len(read) == 4
    monkeypatch.setattr(measure, "drop_page_cache", lambda: "")
    assert "empty page cache" in measure._cache_notes(plan)[0]
    assert len(read) == 4


def test_packages_are_read_with_everything_below_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("package/__init__.py", 0), ("package/libs/deep/lib.so", 5000), ("bundle/model.onnx", 700)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    (tmp_path / "bundle" / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "weights").write_bytes(bytes(30))
    monkeypatch.syspath_prepend(tmp_path)
    others = (tmp_path / "bundle", tmp_path / "weights")
    assert packages_into_page_cache(*others, packages=("package", "no_such_package")) == 5730


def test_a_start_that_is_interrupted_leaves_no_process(
    job: Callable[[str], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def interrupted(self: PipelineProcess) -> None:
        seen.append(self._process)
        raise KeyboardInterrupt

    monkeypatch.setattr(PipelineProcess, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        PipelineProcess(job(PLAIN))
    assert seen[0].poll() == -9


def test_a_run_in_which_everything_failed_is_an_error_after_its_result(
    fake: type[FakeProcess], cache: Path, tiny: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(FakeProcess):
        def __init__(self, job: Job, **_: Any) -> None:
            raise PipelineFailed(f"cannot open {tempfile.gettempdir()}/somewhere/model.onnx")

    monkeypatch.setenv("FOURPHASE_CACHE", str(cache))
    monkeypatch.setattr(measure, "PipelineProcess", Failing)
    app = typer.Typer()
    app.command()(end_to_end)
    result = CliRunner().invoke(app, ["--quick", "--json", "--slices", "20", "--pipelines", REFERENCE])
    assert isinstance(result.exception, SelfCheckFailed)
    row = json.loads(result.stdout)["pipelines"][REFERENCE]
    assert (row["status"], row["reason"]) == ("failed", "cannot open <tmp>/somewhere/model.onnx")


def test_a_picture_that_fails_does_not_take_the_measurement_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(result: Any, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "measured", lambda options, save: {"pipelines": {"a": {"status": "ok", "reason": ""}}})
    monkeypatch.setattr("fourphase.benchmarks.end_to_end.plot.plot_steps", full)
    app = typer.Typer()
    app.command()(end_to_end)
    result = CliRunner().invoke(app, ["--json", "--plot", str(tmp_path / "steps.png")])
    assert isinstance(result.exception, OSError)
    assert json.loads(result.stdout)["pipelines"]["a"]["status"] == "ok"
