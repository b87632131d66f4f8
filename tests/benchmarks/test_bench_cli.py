import inspect
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fourphase.benchmarks import cli, networks, preprocess_bench
from fourphase.benchmarks.accuracy import calibration_bench, judgement, training
from fourphase.benchmarks.accuracy import cli as accuracy_cli
from fourphase.benchmarks.cli import app
from fourphase.benchmarks.end_to_end.command import end_to_end_step
from fourphase.benchmarks.latency.ratio import FEWEST_ROUNDS
from fourphase.benchmarks.phantoms.phantom import make_phantom
from fourphase.benchmarks.phantoms.phantom_dicom import WrittenStudy, write_study
from fourphase.calibration import metrics
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import EnvironmentFault, InputMissing, ModelIncompatible, OutputNotWritable, UsageError
from tests.support.lowered_bundle import write_lowered

SIZE = ["--matrix", "64", "--slices", "20"]


def invoke(*arguments: str | Path) -> str:
    """stdout of a command; raises what the command raises."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_phantom_writes_both_kinds_in_turn(tmp_path: Path) -> None:
    text = invoke("phantom", "-o", tmp_path, "--seed", "4", "--count", "2", *SIZE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hcc-0004", "icc-0005"]
    for case in tmp_path.iterdir():
        names = {path.name for path in case.iterdir()}
        assert names == {"dicom", "lesion_box.json", "lesion_mask.nii.gz", "truth.json"}
        assert str(case) in text
    assert "4 x 20 slices of 64 x 64" in text


def test_phantom_reports_as_json(tmp_path: Path) -> None:
    body = json.loads(invoke("phantom", "-o", tmp_path, "--kind", "ICC", "--json", *SIZE))
    assert body["studies"] == [{"folder": str(tmp_path / "icc-0000"), "kind": "ICC", "seed": 0}]


def test_phantom_overwrites_nothing_and_writes_nothing_if_one_is_there(tmp_path: Path) -> None:
    (tmp_path / "hcc-0001").mkdir()
    (tmp_path / "hcc-0001" / "mine").touch()
    with pytest.raises(OutputNotWritable):
        invoke("phantom", "-o", tmp_path, "--kind", "HCC", "--count", "2", *SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["hcc-0001"]


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        invoke("phantom", "-o", tmp_path, "--kind", "FNH")
    assert list(tmp_path.iterdir()) == []


def test_phantom_checkpoint_trains_writes_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(training.QUICK, gru_hidden=4, batch=4, slices=4, tail_studies=2, tail_epochs=1, validation=2)
    monkeypatch.setattr(training, "QUICK", tiny)
    monkeypatch.setattr(training, "PreprocessingConfig", lambda: PreprocessingConfig(size=(8, 32, 32)))
    model, plot = tmp_path / "model.safetensors", tmp_path / "plot.png"
    options = ["--quick", "--studies", "8", "--width", "2"]
    command: list[str | Path] = ["phantom-checkpoint", "-o", model, "--plot", plot, *options]
    text = invoke(*command)
    assert model.is_file()
    assert plot.is_file()
    assert "on 2 unseen phantoms" in text
    body = json.loads(invoke(*command, "--json"))
    assert body["count"] == 2
    assert 0 <= body["auc"] <= 1


def test_a_checkpoint_has_the_right_suffix(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        invoke("phantom-checkpoint", "-o", tmp_path / "model.pt")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> WrittenStudy:
    folder = tmp_path_factory.mktemp("bench") / "case"
    return write_study(folder, make_phantom("HCC", 3), 96, 40, lambda steps: None)


def test_preprocess_measures_both_pipelines_and_they_agree(study: WrittenStudy) -> None:
    """The whole-volume pipeline is an independent implementation of the contract's preprocessing."""
    lines = invoke("preprocess", study.dicom, "--box", study.box, "--repeats", "1").splitlines()
    body = json.loads(lines[-1])
    assert body["max_difference"] < 1e-3
    assert body["slices"] == 160
    assert "SimpleITK" in "".join(lines[:-1])
    for name in (preprocess_bench.OURS, preprocess_bench.THEIRS):
        assert sum(body["shares"][name].values()) == pytest.approx(1)
        assert body["seconds"][name] > 0
        assert 30 < body["peak_mb"][name] < 2000
    assert body["machine"]["cpu"]["usable_cores"] >= 1
    assert body["quick"] is False
    threads = len(os.sched_getaffinity(0))
    assert body["settings"] == {"study": "the study given", "slices": 160, "repeats": 1, "threads": threads}
    # One run each has no interval, so no ratio is quoted, nor one of the medians instead.
    refused = "1 rounds, an interval needs 5"
    assert (body["paired_ratio"]["value"], body["paired_ratio"]["refused"]) == (None, refused)
    assert "ratio" not in body
    assert f"No ratio is quoted: {refused}." in lines


def test_preprocess_quotes_the_ratio_in_turns(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = preprocess_bench.OURS, preprocess_bench.THEIRS
    runs = {ours: [1.0, 1.1, 1.0, 1.1, 1.0], theirs: [2.0, 2.2, 2.0, 2.2, 2.0]}
    both = dict.fromkeys(runs, 1.0)
    comparison = preprocess_bench.Comparison(
        5, 160, both, dict.fromkeys(runs, (1.0, 1.0)), runs, both, both, {name: {"scan": 1.0} for name in runs}, 0.0
    )
    cli._print_comparison(comparison)
    assert "2.00 (2.00–2.00) (theirs over ours; above 1, ours is faster)." in capsys.readouterr().out
    found = preprocess_bench.result_of(comparison, "a study", quick=True)
    assert (found["quick"], found["paired_ratio"]["value"]) == (True, pytest.approx(2))


def test_enough_runs_for_a_ratio_are_the_default() -> None:
    assert preprocess_bench.REPEATS >= FEWEST_ROUNDS
    assert inspect.signature(cli.preprocess).parameters["repeats"].default == preprocess_bench.REPEATS


def test_steps_without_simpleitk_are_skipped_and_did_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess_bench, "find_spec", lambda name: None)
    for step in (preprocess_bench.preprocess_step, end_to_end_step):
        outcome = step(lambda record: None, quick=True)
        assert (outcome.status, outcome.result) == ("skipped", {})
        assert outcome.reason == "SimpleITK is not installed: pip install 'fourphase[dev]'"


def test_a_full_disk_is_no_bug_of_preprocess(study: WrittenStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(OutputNotWritable):
            cli.preprocess(study.dicom, study.box, repeats=1, quiet=True)


def test_peak_memory_is_the_childs_own(study: WrittenStudy) -> None:
    """A parent that once held much memory must not pass its maximum on."""
    code = (
        "import sys; x = b'x' * 10**9; del x; from pathlib import Path; "
        "from fourphase.benchmarks.preprocess_bench import _run_apart, OURS; "
        "print(_run_apart(OURS, Path(sys.argv[1]), Path(sys.argv[2]), None)['peak_mb'])"
    )
    command = [sys.executable, "-c", code, str(study.dicom), str(study.box)]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak < 700


def test_preprocess_names_the_extra_without_simpleitk(monkeypatch: pytest.MonkeyPatch, study: WrittenStudy) -> None:
    monkeypatch.setattr(preprocess_bench, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault) as caught:
        invoke("preprocess", study.dicom, "--box", study.box)
    assert "[dev]" in caught.value.hint


def test_preprocess_wants_study_and_box_together(study: WrittenStudy, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        invoke("preprocess", study.dicom)
    with pytest.raises(InputMissing):
        invoke("preprocess", tmp_path / "nowhere", "--box", study.box)


def test_an_unreadable_study_is_an_error_and_no_number(tmp_path: Path, study: WrittenStudy) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputMissing):
        invoke("preprocess", tmp_path / "empty", "--box", study.box)


def test_the_cropped_volume_is_padded_where_the_region_leaves_it() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    cropped = preprocess_bench._cropped(array, np.array([-1, 1, 2]), np.array([3, 2, 4]), -1024)
    assert cropped.shape == (3, 2, 4)
    np.testing.assert_array_equal(cropped[1:, :, :2], array[:, 1:, 2:])
    assert (cropped[0] == -1024).all()
    assert (cropped[..., 2:] == -1024).all()


PHANTOM_OPTIONS = ["--seed", "3", "--difficulty", "0.5"]


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are for other tests; 2000 resamples each take most of the time."""
    for module in (metrics, judgement, calibration_bench):
        monkeypatch.setattr(module, "bootstrap", partial(metrics.bootstrap, resamples=20))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lowered(tmp_path_factory.mktemp("cli") / "bundle").path


@pytest.mark.usefixtures("few_resamples")
def test_accuracy_prints_a_table_a_warning_and_one_line_of_json(bundle: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    *lines, last = invoke("accuracy", bundle, "--count", "2", *PHANTOM_OPTIONS, "--plot", plot).splitlines()
    body, text = json.loads(last), "\n".join(lines)
    assert body["schema"] == "fourphase.accuracy/2"
    assert (body["phantoms"]["count"], body["phantoms"]["seed"], body["phantoms"]["difficulty"]) == (2, 3, 0.5)
    assert "SYNTHETIC PHANTOMS" in text
    assert "says nothing about patients" in text
    assert "AUC 89.73, ACC 85.50, F1 85.44, NPV 86.35 %" in text
    for row in body["rows"]:
        assert row["precision"] in text
        assert f"{100 * row['auc']['value']:.2f}" in text
    assert plot.is_file()


@pytest.mark.usefixtures("few_resamples")
def test_accuracy_prints_only_json_if_asked(bundle: Path) -> None:
    text = invoke("accuracy", bundle, "--count", "2", "--json")
    assert [row["name"] for row in json.loads(text)["rows"]][:3] == ["fp32", "fp16", "int8"]


def test_accuracy_needs_a_bundle_and_a_plot_that_can_be_written(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelIncompatible):
        invoke("accuracy", tmp_path)
    with pytest.raises(UsageError, match=r"is not a \.png file"):
        invoke("accuracy", bundle, "--plot", tmp_path / "plot.jpg")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputNotWritable):
        invoke("accuracy", tmp_path / "absent", "--plot", tmp_path / "folder.png")


@pytest.mark.usefixtures("few_resamples")
def test_calibration_prints_a_table_the_winners_and_one_line_of_json(bundle: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    options = ["--counts", "2, 1", "--evaluate", "2", *PHANTOM_OPTIONS]
    *lines, last = invoke("calibration", bundle, *options, "--plot", plot).splitlines()
    body, text = json.loads(last), "\n".join(lines)
    assert body["schema"] == "fourphase.calibration-bench/1"
    assert [winner["count"] for winner in body["winners"]] == [1, 2]
    for winner in body["winners"]:
        assert f"on {winner['count']}: {winner['algorithm']} wins with {winner['sqnr_db']:.1f} dB" in text
    for trial in body["trials"]:
        assert f"{trial['sqnr_db']:.1f}" in text
    assert "SYNTHETIC PHANTOMS" in text
    assert "carries no preprocessing" not in text
    assert plot.is_file()


@pytest.mark.usefixtures("few_resamples")
def test_a_bare_onnx_is_taken_with_a_note(bundle: Path) -> None:
    text = invoke("calibration", bundle / "model.fp32.onnx", "--counts", "1", "--evaluate", "2")
    assert "an ONNX carries no preprocessing" in text


@pytest.mark.usefixtures("few_resamples")
def test_a_full_disk_is_no_bug_of_accuracy(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (
        partial(accuracy_cli.accuracy, bundle, count=2, json_output=True),
        partial(accuracy_cli.calibration, bundle, counts="1", evaluate=2),
    ):
        with open("/dev/full", "w") as full:
            monkeypatch.setattr("sys.stdout", full)
            with pytest.raises(OutputNotWritable):
                command()


@pytest.mark.parametrize("counts", ["", "8,", "0", "8;64", "-1", "8.5", "1000000"])
def test_counts_that_are_no_numbers_are_refused(bundle: Path, counts: str) -> None:
    with pytest.raises(UsageError) as caught:
        invoke("calibration", bundle, "--counts", counts)
    assert caught.value.key == "counts_invalid"


def test_an_untrained_checkpoint_says_that_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "PreprocessingConfig", lambda: PreprocessingConfig(size=(8, 32, 32)))
    model = tmp_path / "model.safetensors"
    command: list[str | Path] = ["phantom-checkpoint", "-o", model, "--untrained", "--width", "4", "--gru-hidden", "8"]
    text = invoke(*command)
    assert text.startswith("NOT TRAINED")
    assert b'\\"data\\":\\"none: random weights\\"' in model.read_bytes()
    body = json.loads(invoke(*command, "--json"))
    assert (body["trained"], body["width"], body["gru_hidden"]) == (False, 4, 8)
    for name in ("HCC", "ICC"):
        assert f"{name} {body['logits_spread'][name]:.4f}" in text


@pytest.mark.parametrize("option", [["--quick"], ["--studies", "64"], ["--plot", "plot.png"]])
def test_an_untrained_checkpoint_goes_with_no_option_of_training(tmp_path: Path, option: list[str]) -> None:
    with pytest.raises(UsageError):
        invoke("phantom-checkpoint", "-o", tmp_path / "model.safetensors", "--untrained", *option)
    assert list(tmp_path.iterdir()) == []
