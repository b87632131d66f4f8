import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fourphase.benchmarks import preprocess_bench, training
from fourphase.benchmarks.cli import app
from fourphase.benchmarks.phantom import make_phantom
from fourphase.benchmarks.phantom_dicom import WrittenStudy, write_study
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import EnvironmentFault, InputMissing, OutputNotWritable, UsageError

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
    assert body["ratio"] == pytest.approx(
        body["seconds"][preprocess_bench.THEIRS] / body["seconds"][preprocess_bench.OURS]
    )


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
