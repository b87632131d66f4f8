"""The main road as its users walk it: `fp-bench phantom`, `fp-run`, and what happens when the study is not right."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from tests.support.tiny_bundle import PREPROCESSING, write_tiny

Run = subprocess.CompletedProcess[str]


def command(module: str, *arguments: str | Path) -> Run:
    """Runs a command as its users do, in a process of its own."""
    line = [sys.executable, "-m", f"fourphase.{module}.cli", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small phantom study as the command writes it: dicom/, lesion_box.json, lesion_mask.nii.gz, truth.json."""
    folder = tmp_path_factory.mktemp("phantom")
    outcome = command("benchmarks", "phantom", "-o", folder, "--kind", "HCC", "--seed", "3", "--matrix", "128")
    assert outcome.returncode == 0, outcome.stderr
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tiny.bundle"
    write_tiny(path)
    return path


@pytest.fixture
def copied(case: Path, tmp_path: Path) -> Path:
    """A copy of the case that may be damaged."""
    return Path(shutil.copytree(case, tmp_path / "case"))


def fp_run(folder: Path, bundle: Path, *arguments: str | Path, box: Path | None = None) -> Run:
    box = box or folder / "lesion_box.json"
    return command("runtime", folder / "dicom", "--box", box, "--bundle", bundle, *arguments)


def phase_folder(result: dict[str, Any], case: Path, phase: str) -> list[Path]:
    """The files of a phase, in the order of their position."""
    uid = result["phases"][phase]["series_instance_uid"]
    found = []
    for path in sorted((case / "dicom").rglob("*")):
        if path.is_file():
            header = pydicom.dcmread(path, stop_before_pixels=True)
            if header.get("SeriesInstanceUID") == uid:
                found.append((float(header.ImagePositionPatient[2]), path))
    return [path for _, path in sorted(found)]


@pytest.fixture(scope="session")
def result(case: Path, bundle: Path) -> dict[str, Any]:
    outcome = fp_run(case, bundle, "--json")
    assert outcome.returncode == 0, outcome.stderr
    return dict(json.loads(outcome.stdout))


def test_a_lost_gpu_ends_a_run_of_several_studies_with_22(
    case: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What another study would get from that GPU could not be trusted; the document is complete all the same."""
    from fourphase.runtime import cli, run_outputs
    from fourphase.runtime.errors import GPU_LOST, GPUUnavailable

    asked = []

    def lose(*_: object, **__: object) -> None:
        asked.append(1)
        raise GPUUnavailable("the GPU is lost", "look at dmesg", key=GPU_LOST)

    monkeypatch.setattr(run_outputs, "run_study", lose)
    study, box = str(case / "dicom"), str(case / "lesion_box.json")
    line = ["fp-run", study, study, study, "--box", box, "--box", box, "--box", box, "--bundle", str(bundle), "--json"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 22
    assert asked == [1]
    out = capsys.readouterr().out
    document = json.loads(out)
    assert document["results"][0]["error"]["key"] == GPU_LOST


def test_the_result_is_the_contracts(result: dict[str, Any]) -> None:
    assert result["schema"] == "fourphase.result/1"
    assert result["prediction"]["label"] in ("HCC", "ICC")
    assert sum(result["prediction"]["probabilities"].values()) == pytest.approx(1)
    assert list(result["phases"]) == ["NC", "ART", "PV", "DL"]
    assert all(record["slices"] > 1 and record["evidence"] for record in result["phases"].values())
    assert result["backend"]["name"] == "onnxruntime"
    assert result["backend"]["self_check"] == "passed"
    assert result["preprocessing"]["hash"] == PREPROCESSING.hash
    assert list(result["timings_ms"]) == ["scan", "read", "preprocess", "breathing", "inference", "total"]


def test_the_phases_are_the_true_ones(result: dict[str, Any], case: Path) -> None:
    """Contrast agent in the aorta makes the arterial phase the brightest series by its 99.9th percentile below bone."""
    starts = {}
    for phase in result["phases"]:
        starts[phase] = float(pydicom.dcmread(phase_folder(result, case, phase)[0]).AcquisitionTime)
    assert sorted(starts, key=lambda phase: starts[phase]) == ["NC", "ART", "PV", "DL"]


def test_running_twice_gives_the_same_bytes(case: Path, bundle: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        outcome = fp_run(case, bundle, "--output", tmp_path / name, "--quiet")
        assert outcome.returncode == 0, outcome.stderr
        (path,) = (tmp_path / name).glob("*/result.json")
        content = json.loads(path.read_bytes())
        del content["timings_ms"]
        contents.append(json.dumps(content))
    assert contents[0] == contents[1]


def test_mask_and_json_give_the_same_box(case: Path, bundle: Path, result: dict[str, Any]) -> None:
    outcome = fp_run(case, bundle, "--json", box=case / "lesion_mask.nii.gz")
    by_mask = json.loads(outcome.stdout)["box"]
    spacing = max(pydicom.dcmread(phase_folder(result, case, "PV")[0]).PixelSpacing)
    depth = 5.0
    for end in ("min", "max"):
        difference = np.abs(np.subtract(by_mask[end], result["box"][end]))
        assert (difference[:2] <= spacing / 2 + 1e-3).all()
        assert difference[2] <= depth / 2 + 1e-3


def whole_volume_input(files: list[Path], box: dict[str, Any]) -> NDArray[np.float32]:
    """The contract's preprocessing by others: SimpleITK reads and resamples the volume, torch resizes. (T, C, H, W)."""
    volume = sitk.Cast(sitk.ReadImage([str(path) for path in files]), sitk.sitkFloat64)
    low = np.array(box["min"]) - PREPROCESSING.margin_mm
    extent = np.array(box["max"]) + PREPROCESSING.margin_mm - low
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetSize([max(1, math.floor(value + 0.5)) for value in extent])
    resampler.SetOutputSpacing((1.0, 1.0, 1.0))
    resampler.SetOutputOrigin(tuple(low + 0.5))
    resampler.SetDefaultPixelValue(-1024)
    millimetres = torch.from_numpy(sitk.GetArrayFromImage(resampler.Execute(volume)))[None, None]
    resized = torch.nn.functional.interpolate(millimetres, PREPROCESSING.size, mode="trilinear", align_corners=False)
    hu = resized[0, 0].numpy()
    windows = zip(PREPROCESSING.windows_hu, PREPROCESSING.mean, PREPROCESSING.std, strict=True)
    channels = [(np.clip((hu - low) / (high - low), 0, 1) - mean) / std for (low, high), mean, std in windows]
    return np.stack(channels, axis=1).astype(np.float32)


def test_the_saved_input_is_what_others_compute(
    case: Path, bundle: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "input.npy"
    outcome = fp_run(case, bundle, "--save-input", path, "--quiet")
    assert outcome.returncode == 0, outcome.stderr
    saved = np.load(path, allow_pickle=False)
    assert saved.dtype == np.float32
    assert saved.shape == (4, 2, 3, 4, 5)
    box = json.loads((case / "lesion_box.json").read_text())
    for index, phase in enumerate(("NC", "ART", "PV", "DL")):
        expected = whole_volume_input(phase_folder(result, case, phase), box)
        np.testing.assert_allclose(saved[index], expected, atol=1e-3)
    assert saved.std() > 0.1, "an empty region would agree too"


def test_a_box_per_phase_is_used_per_phase(case: Path, bundle: Path, tmp_path: Path) -> None:
    one = json.loads((case / "lesion_box.json").read_text())
    moved = {"min": [v + 6 for v in one["min"]], "max": [v + 6 for v in one["max"]]}
    phases = {phase: {"min": one["min"], "max": one["max"]} for phase in ("NC", "PV", "DL")} | {"ART": moved}
    boxes = {"each": {**one, "phases": phases}, "one": one, "moved": {**one, **moved}}
    inputs = {}
    for name, content in boxes.items():
        path, saved = tmp_path / f"{name}.json", tmp_path / f"{name}.npy"
        path.write_text(json.dumps(content))
        outcome = fp_run(case, bundle, "--save-input", saved, "--json", box=path)
        assert outcome.returncode == 0, outcome.stderr
        assert ("phases" in json.loads(outcome.stdout)["box"]) == (name == "each")
        inputs[name] = np.load(saved)
    np.testing.assert_array_equal(inputs["each"][[0, 2, 3]], inputs["one"][[0, 2, 3]])
    np.testing.assert_array_equal(inputs["each"][1], inputs["moved"][1])
    assert not np.array_equal(inputs["one"][1], inputs["moved"][1])


def test_the_answer_for_a_person_says_what_it_is(case: Path, bundle: Path) -> None:
    outcome = fp_run(case, bundle)
    assert outcome.returncode == 0, outcome.stderr
    for expected in ("model output, not a diagnosis", "self-check passed", "ART", "evidence", "tiny.bundle"):
        assert expected in outcome.stdout


# What is refused: each damage, the contract's code, and a word of the cause.


def _nothing(case: Path, result: dict[str, Any]) -> None:
    shutil.rmtree(case / "dicom")


def _empty(case: Path, result: dict[str, Any]) -> None:
    shutil.rmtree(case / "dicom")
    (case / "dicom").mkdir()


def _text_only(case: Path, result: dict[str, Any]) -> None:
    _empty(case, result)
    (case / "dicom" / "notes.txt").write_text("no images here")


def _no_portal_venous(case: Path, result: dict[str, Any]) -> None:
    for path in phase_folder(result, case, "PV"):
        path.unlink()


def _edit(paths: list[Path], **changes: str) -> None:
    for path in paths:
        dataset = pydicom.dcmread(path)
        for name, value in changes.items():
            setattr(dataset, name, value)
        dataset.save_as(path)


def _contradiction(case: Path, result: dict[str, Any]) -> None:
    """Native and delayed exchange their descriptions: the words now say the opposite of the times."""
    native, delayed = (phase_folder(result, case, phase) for phase in ("NC", "DL"))
    names = [str(pydicom.dcmread(files[0], stop_before_pixels=True).SeriesDescription) for files in (native, delayed)]
    _edit(native, SeriesDescription=names[1])
    _edit(delayed, SeriesDescription=names[0])


def _missing_slice_inside(case: Path, result: dict[str, Any]) -> None:
    centre = (result["box"]["min"][2] + result["box"]["max"][2]) / 2
    files = phase_folder(result, case, "ART")
    depths = [float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2]) for path in files]
    files[int(np.argmin(np.abs(np.array(depths) - centre)))].unlink()


def _truncated(case: Path, result: dict[str, Any]) -> None:
    for path in phase_folder(result, case, "DL"):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])


def _box_elsewhere(case: Path, result: dict[str, Any]) -> None:
    box = json.loads((case / "lesion_box.json").read_text())
    box["min"], box["max"] = [2000, 2000, 2000], [2020, 2020, 2020]
    (case / "lesion_box.json").write_text(json.dumps(box))


def _two_patients(case: Path, result: dict[str, Any]) -> None:
    _edit(phase_folder(result, case, "NC"), PatientID="SOMEBODY-ELSE", PatientName="SOMEBODY^ELSE")


BAD_STUDIES: dict[str, tuple[Callable[[Path, dict[str, Any]], None], int, str]] = {
    "missing folder": (_nothing, 10, "does not exist"),
    "empty folder": (_empty, 11, "no files"),
    "text files": (_text_only, 11, "no usable CT"),
    "one phase removed": (_no_portal_venous, 12, "PV"),
    "contradictory descriptions and times": (_contradiction, 13, "contradict"),
    "a missing slice inside the box": (_missing_slice_inside, 14, "slices"),
    "truncated pixels": (_truncated, 15, "truncated"),
    "box outside the volume": (_box_elsewhere, 16, "outside"),
    "two patients": (_two_patients, 17, "2 patients"),
}


@pytest.mark.parametrize("name", BAD_STUDIES)
def test_a_bad_study_is_one_sentence_and_a_cure(
    name: str, copied: Path, bundle: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    damage, code, word = BAD_STUDIES[name]
    damage(copied, result)
    outcome = fp_run(copied, bundle, "--json", "--quiet", "--output", tmp_path / "results")
    assert outcome.returncode == code, outcome.stderr
    lines = outcome.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert word in lines[0]
    assert lines[-1].startswith("  fix: ")
    assert "Traceback" not in outcome.stderr
    assert "SOMEBODY" not in outcome.stderr + outcome.stdout
    assert str(copied) not in outcome.stderr + outcome.stdout, "a path may carry a name"
    assert json.loads(outcome.stdout)["error"]["code"] == code
    assert not list((tmp_path / "results").rglob("*")) if (tmp_path / "results").exists() else True


def test_one_phase_missing_names_what_was_found(copied: Path, bundle: Path, result: dict[str, Any]) -> None:
    _no_portal_venous(copied, result)
    error = fp_run(copied, bundle, "--quiet").stderr
    for phase in ("NC", "ART", "DL"):
        assert f"{phase} (series {result['phases'][phase]['series_number']})" in error


def test_the_override_typed_from_the_hint_settles_an_ambiguity(
    copied: Path, bundle: Path, result: dict[str, Any]
) -> None:
    _contradiction(copied, result)
    hint = fp_run(copied, bundle, "--quiet").stderr.splitlines()[-1]
    assert "--phase" in hint
    overrides = [f"--phase={phase}={record['series_number']}" for phase, record in result["phases"].items()]
    outcome = fp_run(copied, bundle, "--json", *overrides)
    assert outcome.returncode == 0, outcome.stderr
    settled = json.loads(outcome.stdout)
    assert {p: r["series_instance_uid"] for p, r in settled["phases"].items()} == {
        p: r["series_instance_uid"] for p, r in result["phases"].items()
    }
    assert settled["warnings"], "evidence that contradicts an override is a warning"


def test_a_label_without_a_mask_is_refused(case: Path, bundle: Path) -> None:
    outcome = fp_run(case, bundle, "--label", "1", "--quiet")
    assert outcome.returncode == 16
    assert "no labels" in outcome.stderr


def test_a_flipped_byte_in_the_model_is_code_21(case: Path, bundle: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged.bundle"))
    model = damaged / "model.fp32.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    outcome = fp_run(case, damaged, "--quiet")
    assert outcome.returncode == 21
    assert "model.fp32.onnx" in outcome.stderr


@pytest.fixture(params=["--backend", "--require-backend"])
def gpu_option(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_backend_that_is_not_there_is_never_replaced_in_silence(case: Path, bundle: Path, gpu_option: str) -> None:
    outcome = fp_run(case, bundle, gpu_option, "tensorrt", "--quiet")
    assert outcome.returncode in (22, 24)
    assert "tensorrt" in outcome.stderr


def test_several_studies_one_of_them_bad(case: Path, copied: Path, bundle: Path, result: dict[str, Any]) -> None:
    _no_portal_venous(copied, result)
    box = case / "lesion_box.json"
    outcome = command(
        "runtime", case / "dicom", copied / "dicom", "--box", box, "--box", box, "--bundle", bundle, "--json", "--quiet"
    )
    assert outcome.returncode == 40, outcome.stderr
    first, second = json.loads(outcome.stdout)["results"]
    assert first["prediction"] == result["prediction"]
    assert second["error"]["code"] == 12


def test_phantoms_run_as_they_are_written(case: Path, bundle: Path, result: dict[str, Any], tmp_path: Path) -> None:
    """DIR/<case>/dicom with DIR/<case>/lesion_box.json is what `fp-bench phantom -o DIR` leaves; twice: done before."""
    line: list[str | Path] = ["--each", case.parent, "--box", "lesion_box.json", "--bundle", bundle]
    line += ["--output", tmp_path / "results"]
    for status in ("done", "skipped"):
        outcome = command("runtime", *line, "--json", "--quiet")
        assert outcome.returncode == 0, outcome.stderr
        (body,) = json.loads(outcome.stdout)["results"]
        assert (body["status"], body["prediction"]) == (status, result["prediction"])
        (entry,) = json.loads((tmp_path / "results" / "summary.json").read_text())["studies"]
        assert (entry["number"], entry["status"], entry["case"]) == (1, status, result["case"])


def test_two_lesions_of_one_study_are_two_cases(case: Path, bundle: Path, tmp_path: Path) -> None:
    box = json.loads((case / "lesion_box.json").read_text())
    box["max"] = [value - 1 for value in box["max"]]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(box))
    for path in (case / "lesion_box.json", other, other):
        outcome = fp_run(case, bundle, "--output", tmp_path / "results", "--quiet", box=path)
        assert outcome.returncode == 0, outcome.stderr
    assert len(list((tmp_path / "results").glob("*/result.json"))) == 2


def test_a_stdout_that_cannot_be_written_is_code_30(case: Path, bundle: Path) -> None:
    line = [sys.executable, "-m", "fourphase.runtime.cli", str(case / "dicom"), "--box", str(case / "lesion_box.json")]
    for option in ("--json", "--quiet"):
        with open("/dev/full", "w") as full:
            outcome = subprocess.run(
                [*line, "--bundle", str(bundle), option], stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert outcome.returncode == 30, outcome.stderr
        assert "stdout" in outcome.stderr
        assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "term")]
)
def test_signals_end_a_command_with_their_code(
    case: Path, bundle: Path, tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    """Loading the model is replaced by waiting, so that the signal arrives in the middle of the command."""
    waiting = (
        "import signal, sys, time; from fourphase.runtime import cli, pipeline;"
        "pipeline.load_model = lambda *a, **k: (print('ready', flush=True), time.sleep(60)); cli.main()"
    )
    arguments = [str(case / "dicom"), "--box", str(case / "lesion_box.json"), "--bundle", str(bundle)]
    line = [sys.executable, "-c", waiting, *arguments]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
    assert process.returncode == code
    assert word in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ([], "no lesion box"),
        (["--box", "a.json", "--box", "b.json"], "1 studies need 1"),
        (["--box", "{box}", "--phase", "ART"], "not PHASE=SPEC"),
        (["--box", "{box}", "--phase", "ART=3", "--phase", "ART=4"], "twice"),
        (["--box", "{box}", "--save-input", "x.txt"], "not a .npy"),
        (["--box", "{box}", "--bogus"], "No such option"),
        (["--box", "{box}", "--backend", "cuda"], "unknown backend"),
    ],
)
def test_wrong_use_is_code_2(case: Path, bundle: Path, arguments: list[str], cause: str) -> None:
    filled = [argument.format(box=case / "lesion_box.json") for argument in arguments]
    outcome = command("runtime", case / "dicom", "--bundle", bundle, *filled)
    assert outcome.returncode == 2, outcome.stderr
    assert cause in outcome.stderr


def test_help_has_an_example_and_loads_nothing_heavy() -> None:
    for module, example in (("runtime", "fp-run study/"), ("export", None), ("benchmarks", None)):
        helped = command(module, "--help")
        assert helped.returncode == 0
        assert example is None or example in " ".join(helped.stdout.split())
    for modules, heavy in (
        ("fourphase.runtime.cli, fourphase.export.cli", {"numpy", "torch", "onnx", "onnxruntime", "pydicom", "scipy"}),
        ("fourphase.benchmarks.cli", {"torch", "onnx", "onnxruntime", "pydicom", "SimpleITK"}),
    ):
        probe = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
        outcome = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
        assert outcome.stdout.strip() == "[]"
