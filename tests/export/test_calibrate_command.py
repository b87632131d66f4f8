"""`fp-export calibrate` as a user types it: what it takes, what it says, and what it refuses before any work."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from fourphase.calibration.calibration_set import CalibrationSet, load_calibration_set
from fourphase.export.calibrate_command import calibrate, calibration_report, hu_quantile, model_input
from fourphase.export.checkpoint import save_checkpoint
from fourphase.export.config import PHASES
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.console import be_quiet, say_errors_as_json
from fourphase.runtime.errors import FourphaseError
from fourphase.runtime.pipeline import StudyRequest, prepare_study
from tests.support import tiny_bundle
from tests.support.dicom import uid, write_phases
from tests.support.networks import SMALL, small_network

#: Inside what `write_phases` scans.
BOX = {"space": "LPS_mm", "min": [-4.0, -5.0, 4.0], "max": [3.0, 5.5, 12.0]}
#: What the command reads from the `net.toml` of these tests.
PREPROCESSING = PreprocessingConfig(size=(2, 8, 8))

Command = Callable[..., str]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """studies/ with three cases (HCC, ICC, HCC), net.toml that makes them small, cases.csv with two of them."""
    root = tmp_path_factory.mktemp("root")
    for number in range(3):
        case = root / "studies" / f"case{number}"
        write_phases(case / "dicom", StudyInstanceUID=uid("study", number), RescaleSlope=str(1 + number / 10))
        (case / "lesion_box.json").write_text(json.dumps(BOX))
        (case / "truth.json").write_text(json.dumps({"kind": ("HCC", "ICC")[number % 2]}))
    (root / "net.toml").write_text("[preprocessing]\nsize = [2, 8, 8]\n")
    rows = [f"studies/case{n}/dicom,studies/case{n}/lesion_box.json,{label}" for n, label in ((0, "HCC"), (1, ""))]
    (root / "cases.csv").write_text("\n".join(["study,box,label", *rows, ""]))
    return root


@pytest.fixture
def run(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs the command with `--config net.toml -o tmp_path/set`; returns what it printed."""
    app = typer.Typer()
    app.command()(calibrate)

    def run(*arguments: str | Path, config: bool = True, output: Path = tmp_path / "set") -> str:
        line = [*map(str, arguments), "-o", str(output), *(["--config", str(root / "net.toml")] if config else [])]
        app(line, standalone_mode=False)
        return capsys.readouterr().out

    yield run
    be_quiet(False)
    say_errors_as_json(False)


@pytest.fixture
def no_study_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourphase.calibration.calibrate.prepare_study", None)


def written(tmp_path: Path) -> CalibrationSet:
    return load_calibration_set(tmp_path / "set", PREPROCESSING, PHASES)


def test_the_report_is_what_the_set_holds(run: Command, root: Path, tmp_path: Path) -> None:
    report = json.loads(run(root / "studies", "--json"))
    data = written(tmp_path)
    assert report["schema"] == "fourphase.calibration-report/1"
    size = sum(path.stat().st_size for path in (tmp_path / "set" / "cases").iterdir())
    assert report["set"] == {"path": str(tmp_path / "set"), "hash": data.hash, "bytes": size, "salted": False}
    assert (report["studies"], report["labels"], report["unlabelled"]) == (3, {"HCC": 2, "ICC": 1}, 0)
    source = f"the configuration {root / 'net.toml'}"
    assert report["preprocessing"] == {"hash": PREPROCESSING.hash, "source": source}
    assert data.labels is not None
    assert sorted(data.labels) == ["HCC", "HCC", "ICC"]


def test_the_reported_hu_are_those_of_the_studies(run: Command, root: Path) -> None:
    report = json.loads(run(root / "studies", "--json"))
    cases = [root / "studies" / f"case{number}" for number in range(3)]
    inputs = [
        prepare_study(StudyRequest(case / "dicom", case / "lesion_box.json"), PHASES, PREPROCESSING).input
        for case in cases
    ]
    low, high = PREPROCESSING.windows_hu[0]
    share = np.stack(inputs)[:, :, :, 0] * PREPROCESSING.std[0] + PREPROCESSING.mean[0]
    hu = low + (high - low) * share
    for index, phase in enumerate(PHASES):
        expected = np.quantile(hu[:, index], [0.05, 0.5, 0.95])
        found = [report["phases"][phase][name] for name in ("p5_hu", "median_hu", "p95_hu")]
        np.testing.assert_allclose(found, expected, atol=25)  # one bin
        assert found[0] < found[1] < found[2]


def test_a_quantile_is_linear_within_its_bin() -> None:
    assert hu_quantile([10, 10, 10, 10], -100, 100, 0.5) == 0
    assert hu_quantile([10, 10, 10, 10], -100, 100, 0.05) == pytest.approx(-90)
    assert hu_quantile([0, 0, 4, 0], -100, 100, 0.25) == pytest.approx(12.5)
    values = np.random.default_rng(0).normal(60, 40, 100_000)
    counts = np.histogram(values, bins=80, range=(-1000, 1000))[0].tolist()
    assert hu_quantile(counts, -1000, 1000, 0.95) == pytest.approx(np.quantile(values, 0.95), abs=2)


def test_the_range_is_from_5_to_95_percent(run: Command, root: Path, tmp_path: Path) -> None:
    run(root / "studies" / "case0")
    even = {"low": -1000, "high": 1000, "phases": {"NC": [1] * 80}}
    report = calibration_report(replace(written(tmp_path), hu_histograms=even), model_input(None, None, None), 0)
    assert report["phases"] == {"NC": {"p5_hu": -900, "median_hu": 0, "p95_hu": 900}}


def test_a_person_reads_the_same(run: Command, root: Path, tmp_path: Path) -> None:
    report = json.loads(run("--cases", root / "cases.csv", "--json"))
    text = run("--cases", root / "cases.csv")
    hashes = [written(tmp_path).hash, PREPROCESSING.hash]
    medians = [f"{report['phases'][phase]['median_hu']:.0f}" for phase in PHASES]
    for expected in [*hashes, *medians, *PHASES, "2: 1 HCC, 1 without a label", "without FOURPHASE_SALT", "net.toml"]:
        assert expected in text
    assert f"wrote {tmp_path / 'set'} (" in text


def test_without_a_model_the_contracts_defaults_hold() -> None:
    found = model_input(None, None, None)
    assert (found.preprocessing, found.phases, found.classes) == (PreprocessingConfig(), PHASES, None)
    assert found.source == "the contract's defaults"


def test_a_bundles_preprocessing_is_taken(run: Command, root: Path, tmp_path: Path) -> None:
    bundle = tiny_bundle.write_tiny(tmp_path / "tiny.bundle")
    report = json.loads(run(root / "studies", "--bundle", bundle.path, "--json", config=False))
    assert report["preprocessing"] == {"hash": bundle.preprocessing.hash, "source": f"the bundle {bundle.path}"}
    assert load_calibration_set(tmp_path / "set", bundle.preprocessing, bundle.phases).shape == tiny_bundle.SHAPE


def test_a_checkpoints_preprocessing_is_taken_unless_a_configuration_overrides_it(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.safetensors"
    save_checkpoint(checkpoint, small_network(), SMALL)
    found = model_input(None, checkpoint, None)
    assert (found.preprocessing, found.phases, found.classes) == (SMALL, PHASES, ("HCC", "ICC"))
    assert found.source == f"the checkpoint {checkpoint}"
    network = 'width = 4\ngru_hidden = 8\ngate_reduction = 2\nphases = ["DL", "PV", "ART", "NC"]\n'
    config = tmp_path / "net.toml"
    config.write_text(f"[network]\n{network}[preprocessing]\nmargin_mm = 5\n")
    for given in (model_input(None, checkpoint, config), model_input(None, None, config)):
        assert given.preprocessing == PreprocessingConfig(margin_mm=5)
        assert given.phases == ("DL", "PV", "ART", "NC")
        assert given.source == f"the configuration {config}"


@pytest.mark.usefixtures("no_study_is_read")
@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ([], "studies_missing"),
        (["{root}/studies", "--cases", "{root}/cases.csv"], "studies_given_twice"),
        (["--cases", "{root}/cases.csv", "--box", "box.json"], "studies_given_twice"),
        (["{root}/studies", "--box", "box.json", "--box", "box.json"], "boxes_do_not_match"),
        (["{root}/studies", "--bundle", "x"], "model_given_twice"),
        (["{root}/studies", "--model", "a:b"], "model_given"),
        (["{root}/studies", "--checkpoint", "x.onnx", "--model", "a:b"], "model_given"),
        (["{root}/studies", "--exclude", "{tmp}/set"], "output_excluded"),
        (["{root}/studies", "--plot", "hu.jpg"], "suffix"),
        (["{root}/studies", "--plot", "{tmp}/set/hu.png"], "plot_in_set"),
        (["{root}/studies", "--plot", "{root}/cases.csv/hu.png"], "output_not_writable"),
        (["{root}/studies", "--exclude", "{root}"], "calibration_missing"),
        (["{root}/absent"], "calibration_empty"),
    ],
)
def test_what_is_wrong_is_refused_before_any_study_is_read(
    run: Command, root: Path, tmp_path: Path, arguments: list[str], key: str
) -> None:
    with pytest.raises(FourphaseError) as caught:
        run(*(text.format(root=root, tmp=tmp_path) for text in arguments))
    assert caught.value.key == key
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_study_is_read")
def test_a_place_that_is_taken_is_refused_before_any_study_is_read(run: Command, root: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    with pytest.raises(FourphaseError, match="is not a calibration set") as caught:
        run(root / "studies", output=tmp_path)
    assert caught.value.code == 30


@pytest.mark.usefixtures("no_study_is_read")
def test_a_label_that_is_no_class_of_the_model_is_refused_and_not_quoted(
    run: Command, root: Path, tmp_path: Path
) -> None:
    table = root / "wrong.csv"
    table.write_text((root / "cases.csv").read_text().replace("HCC", "hcc"))
    with pytest.raises(FourphaseError, match="study 1 of 2 has a label that is no class") as caught:
        run("--cases", table)
    assert (caught.value.code, caught.value.key) == (2, "label_unknown")
    assert "hcc" not in caught.value.message


def test_an_excluded_set_must_share_no_study(run: Command, root: Path, tmp_path: Path) -> None:
    evaluation = tmp_path / "evaluation"
    run(root / "studies" / "case2", output=evaluation)
    with pytest.raises(FourphaseError, match="1 of 3 calibration studies are also in the other set: study 3"):
        run(root / "studies", "--exclude", evaluation)
    assert not (tmp_path / "set").exists()
    text = run("--cases", root / "cases.csv", "--exclude", evaluation)
    assert "excluded       1 set: no study in common" in text


def test_the_plot_is_an_image_with_something_on_it(run: Command, root: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    run(root / "studies", "--plot", tmp_path / "hu.png")
    pixels: Any = imread(tmp_path / "hu.png")
    assert pixels.shape[:2] == (624, 840)
    dark = (pixels[..., :3].max(axis=2) < 0.5).any(axis=1)
    assert all(rows.any() for rows in np.split(dark, 4))


def test_a_missing_matplotlib_is_found_before_any_work(
    run: Command, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("fourphase.calibration.calibrate.prepare_study", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        run(root / "studies", "--plot", tmp_path / "hu.png")
    assert caught.value.name == "matplotlib"
    assert list(tmp_path.iterdir()) == []


def test_a_refused_study_is_one_json_object_and_its_own_code(root: Path, tmp_path: Path) -> None:
    box = tmp_path / "box.json"
    box.write_text("{")
    folder = root / "studies" / "case0" / "dicom"
    program = "from fourphase.export.calibrate_command import calibrate; import typer; app = typer.Typer();"
    program += "app.command()(calibrate); from fourphase.runtime.console import run_app; run_app(app, 'fp-export')"
    line = [folder, "--box", box, "-o", tmp_path / "set", "--json", "--quiet"]
    done = subprocess.run([sys.executable, "-c", program, *map(str, line)], capture_output=True, text=True, check=False)
    assert done.returncode == 16
    assert json.loads(done.stdout)["error"]["key"] == "box_format"
    assert done.stderr.startswith("error: study 1 of 1: the lesion box")
    assert not (tmp_path / "set").exists()
