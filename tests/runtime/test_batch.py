"""Several studies: which they are, their boxes, what is run and what is skipped, and what ends a run."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fourphase.runtime import atomic, cli, console, pipeline, run_outputs, summary
from fourphase.runtime.batch import boxes_of, list_studies, study_name
from fourphase.runtime.errors import (
    GPU_LOST,
    FourphaseError,
    GPUUnavailable,
    InputMissing,
    OutputNotWritable,
    PixelDataError,
    UsageError,
)
from fourphase.runtime.pipeline import StudyRequest, prepare_study
from tests.support.dicom import write_phases
from tests.support.tiny_bundle import PHASES, PREPROCESSING, reference_outputs, tiny_model, write_tiny

BOX = {"space": "LPS_mm", "min": [-2, -4, 6], "max": [2, 4, 12]}
SMALL = replace(PREPROCESSING, margin_mm=2.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tiny.bundle"
    write_tiny(path, preprocessing=SMALL)
    return path


def write_case(case: Path) -> Path:
    """A study as the phantoms lie: dicom/ and box.json."""
    write_phases(case / "dicom", StudyInstanceUID=f"1.2.3.{sum(case.name.encode())}")
    (case / "box.json").write_text(json.dumps(BOX))
    return case


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies MARKER-a, MARKER-b, MARKER-c; only read."""
    folder = tmp_path_factory.mktemp("studies")
    for name in "abc":
        write_case(folder / f"MARKER-{name}")
    return folder


@pytest.fixture
def studies(three: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(three, tmp_path / "studies"))


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def results(self) -> list[dict[str, Any]]:
        return list(json.loads(self.out)["results"])


FpRun = Callable[..., Ran]


@pytest.fixture
def fp_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[FpRun]:
    """The command in this process, with --bundle and --output tmp_path/out."""

    def run(*arguments: str | Path, output: Path | None = None) -> Ran:
        line = ["fp-run", *map(str, arguments), "--bundle", str(bundle), "--output", str(output or tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as caught:
            console.run_app(cli.app, "fp-run")
        out, err = capsys.readouterr()
        return Ran(int(caught.value.code or 0), out, err)

    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield run
    console.be_quiet(False)
    console.say_errors_as_json(False)
    for number, handler in kept.items():
        signal.signal(number, handler)


def summary_of(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "summary.json").read_text()))


def states(output: Path) -> list[str]:
    return [entry["status"] for entry in summary_of(output)["studies"]]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the studies that are run from now on."""
    ran: list[Path] = []
    true = pipeline.run_study

    def run_study(model: Any, request: StudyRequest, **options: Any) -> Any:
        ran.append(request.folder)
        return true(model, request, **options)

    monkeypatch.setattr(run_outputs, "run_study", run_study)
    return ran


# ---- which studies


def test_children_are_folders_and_zip_files_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "zipped", "w") as archive:
        archive.writestr("x", b"y")
    shutil.copy(tmp_path / "zipped", tmp_path / "patients.xlsx")
    (tmp_path / "damaged.ZIP").write_bytes(b"PK\x03")
    (tmp_path / "list.csv").write_text("a,b")
    os.mkfifo(tmp_path / "pipe")
    found, ignored = list_studies([tmp_path])
    assert [path.name for path in found] == ["a", "b", "damaged.ZIP", "empty", "link", "zipped"]
    assert ignored == 3, "the table, the list and the pipe"


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, Path.touch])
def test_a_folder_without_studies_is_code_10(tmp_path: Path, make: Callable[[Path], None]) -> None:
    folder = tmp_path / "MARKER"
    make(folder)
    with pytest.raises(InputMissing) as caught:
        list_studies([folder])
    assert caught.value.code == 10
    assert "MARKER" not in caught.value.message


def test_the_name_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "case.zip").touch()
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "v1.2").mkdir()
    assert study_name(tmp_path / "case.zip") == "case"
    assert study_name(tmp_path / "folder.zip") == "folder.zip"
    assert study_name(tmp_path / "v1.2") == "v1.2"
    monkeypatch.chdir(tmp_path / "v1.2")
    assert study_name(Path(".")) == "v1.2"


def test_boxes(tmp_path: Path) -> None:
    studies = [tmp_path / "a", tmp_path / "b"]
    template, within, absolute = Path("boxes/{study}_{study}.json"), Path("sub/box.json"), tmp_path / "box.json"
    assert boxes_of(studies, [template], each=True) == [Path("boxes/a_a.json"), Path("boxes/b_b.json")]
    assert boxes_of(studies, [template], each=False) == boxes_of(studies, [template], each=True)
    assert boxes_of(studies, [within], each=True) == [tmp_path / "a/sub/box.json", tmp_path / "b/sub/box.json"]
    assert boxes_of(studies[:1], [absolute], each=True) == [absolute]
    assert boxes_of(studies, [absolute, within], each=False) == [absolute, within]
    for wrong, each in (([absolute], True), ([within, within], True), ([within], False), ([], True)):
        with pytest.raises(UsageError):
            boxes_of(studies, wrong, each=each)


# ---- a run


def test_each_study_is_what_it_is_alone(three: Path, bundle: Path, tmp_path: Path, fp_run: FpRun) -> None:
    ran = fp_run("--each", three, "--box", "box.json", "--json", "--quiet")
    assert ran.code == 0, ran.err
    assert ran.err == ""
    assert [body["number"] for body in ran.results] == [1, 2, 3]
    for body, case in zip(ran.results, sorted(three.iterdir()), strict=True):
        array = prepare_study(StudyRequest(case / "dicom", case / "box.json"), PHASES, SMALL).input
        logits, _ = reference_outputs(tiny_model(), array[None])
        np.testing.assert_allclose(body["prediction"]["logits"], logits[0], atol=1e-5)
        stored = json.loads((tmp_path / "out" / body["case"] / "result.json").read_text())
        assert stored == {name: value for name, value in body.items() if name not in ("number", "status")}
    found = summary_of(tmp_path / "out")
    assert found["totals"] == {"studies": 3, "done": 3, "skipped": 0, "failed": 0, "pending": 0, "ignored": 0}
    assert [entry["case"] for entry in found["studies"]] == [body["case"] for body in ran.results]
    assert [entry["prediction"] for entry in found["studies"]] == [body["prediction"] for body in ran.results]
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        flat = list(csv.DictReader(file))
    assert [row["label"] for row in flat] == [body["prediction"]["label"] for body in ran.results]


def test_one_bad_study_does_not_stop_the_rest(studies: Path, tmp_path: Path, fp_run: FpRun) -> None:
    """An empty folder (11, not 10: it has no box either), a phase missing (12), no box (10), phases untold (13)."""
    untold = write_case(studies / "MARKER-d")
    write_phases(untold / "dicom", SeriesDescription="CT", AcquisitionTime=None)
    (studies / "MARKER-aa").mkdir()
    shutil.rmtree(studies / "MARKER-b" / "dicom" / "s4")
    (studies / "MARKER-c" / "box.json").unlink()
    (studies / "notes.txt").write_text("left out, and said so")
    ran = fp_run("--each", studies, "--box", "box.json")
    assert ran.code == 40
    found = summary_of(tmp_path / "out")
    errors = [entry["error"] and entry["error"]["code"] for entry in found["studies"]]
    assert errors == [None, 11, 12, 10, 13]
    assert found["totals"]["ignored"] == 1
    assert found["studies"][2]["request"] is not None
    assert "1 files beside the studies are left out" in ran.err
    assert "error: 4 of 5 studies failed" in ran.err
    assert ran.out.count("model output, not a diagnosis") == 1
    everything = ran.out + ran.err + "".join(p.read_text() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert "MARKER" not in everything


def test_names_are_in_the_summary_only_if_asked_for(three: Path, tmp_path: Path, fp_run: FpRun) -> None:
    fp_run("--each", three, "--box", "box.json", "--names", "--quiet")
    assert [entry["study"] for entry in summary_of(tmp_path / "out")["studies"]] == [
        "MARKER-a",
        "MARKER-b",
        "MARKER-c",
    ]


def test_zipped_studies_with_boxes_by_name(three: Path, tmp_path: Path, fp_run: FpRun) -> None:
    folder, boxes = tmp_path / "zips", tmp_path / "boxes"
    folder.mkdir()
    boxes.mkdir()
    for case in three.iterdir():
        shutil.make_archive(str(folder / case.name), "zip", case / "dicom")
        shutil.copy(case / "box.json", boxes / f"{case.name}.json")
    ran = fp_run("--each", folder, "--box", boxes / "{study}.json", "--json", "--quiet")
    assert ran.code == 0, ran.err
    plain = fp_run("--each", three, "--box", "box.json", "--json", "--quiet", output=tmp_path / "plain")
    assert [one["prediction"] for one in ran.results] == [one["prediction"] for one in plain.results]
    assert [one["case"] for one in ran.results] == [one["case"] for one in plain.results]


def test_boxes_that_no_study_has_are_noticed_before_the_model_is_loaded(
    three: Path, fp_run: FpRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    ran = fp_run("--each", three, "--box", "bocks.json")
    assert ran.code == 10
    assert "no study has such a lesion box" in ran.err
    case = three / "MARKER-a"
    ran = fp_run(case, case, "--box", case / "box.json", "--box", case / "bocks.json")
    assert ran.code == 10
    assert "the lesion box of study 2 does not exist" in ran.err
    assert "MARKER" not in ran.err


def test_the_same_study_twice_runs_twice(
    three: Path, tmp_path: Path, fp_run: FpRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = three / "MARKER-a"
    ran = counted(monkeypatch)
    outcome = fp_run(case, case, "--box", case / "box.json", "--box", case / "box.json", "--quiet")
    assert outcome.code == 0, outcome.err
    assert ran == [case, case]
    first, second = summary_of(tmp_path / "out")["studies"]
    assert (first["case"], first["status"]) == (second["case"], "done")


# ---- done before


def test_what_was_done_is_skipped_and_its_answer_kept(
    studies: Path, tmp_path: Path, fp_run: FpRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    (studies / "MARKER-b" / "dicom" / "s4").rename(tmp_path / "away")
    first = fp_run("--each", studies, "--box", "box.json", "--json", "--quiet")
    assert first.code == 40
    (tmp_path / "away").rename(studies / "MARKER-b" / "dicom" / "s4")
    ran = counted(monkeypatch)
    second = fp_run("--each", studies, "--box", "box.json", "--json", "--quiet")
    assert second.code == 0, second.err
    assert [path.name for path in ran] == ["MARKER-b"]
    assert states(tmp_path / "out") == ["skipped", "done", "skipped"]
    assert [body["status"] for body in second.results] == ["skipped", "done", "skipped"]
    for index in (0, 2):
        assert second.results[index] == {**first.results[index], "status": "skipped"}
        assert summary_of(tmp_path / "out")["studies"][index]["prediction"] == first.results[index]["prediction"]
    text = fp_run("--each", studies, "--box", "box.json", "--quiet")
    assert text.out.count("done before") == 3
    assert len(ran) == 1
    fp_run("--each", studies, "--box", "box.json", "--force", "--quiet")
    assert len(ran) == 4


def _other_pixels(case: Path, output: Path) -> None:
    path = min((case / "dicom" / "s2").iterdir())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _other_box(case: Path, output: Path) -> None:
    (case / "box.json").write_text(json.dumps({**BOX, "max": [2, 4, 11]}))


def _in(name: str, content: str | None) -> Callable[[Path, Path], None]:
    def damage(case: Path, output: Path) -> None:
        for path in output.glob(f"*/{name}"):
            path.unlink()
            if content is not None:
                path.write_text(content)

    return damage


def _edited(case: Path, output: Path) -> None:
    """A result that reads well, but is not the one that was written."""
    (path,) = output.glob("*/result.json")
    path.write_text(path.read_text().replace('"HCC"', '"ICC"', 1))


def _moved(case: Path, output: Path) -> None:
    """Another case's folder: it says another case than its name."""
    (path,) = output.glob("*/result.json")
    path.parent.rename(output / "fedcba9876543210")


def _salt(case: Path, output: Path) -> None:
    os.environ["FOURPHASE_SALT"] = "another"


@pytest.mark.parametrize(
    "change",
    [
        _other_pixels,
        _other_box,
        _salt,
        _edited,
        _moved,
        _in("result.json", None),
        _in("result.json", '{"schema": "fourphase.result/1"'),
        _in("request.json", None),
        _in("request.json", "[1, 2"),
        _in("request.json", '{"schema": "fourphase.request/1", "request": 3, "case": ["x"]}'),
    ],
)
def test_what_is_not_the_same_is_not_done(
    three: Path,
    tmp_path: Path,
    fp_run: FpRun,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, Path], None],
) -> None:
    monkeypatch.setenv("FOURPHASE_SALT", "a salt")
    case = Path(shutil.copytree(three / "MARKER-a", tmp_path / "in" / "case"))
    ran = counted(monkeypatch)
    for _ in range(2):
        assert fp_run("--each", case.parent, "--box", "box.json", "--quiet").code == 0
    assert len(ran) == 1, "it was skipped before the change"
    change(case, tmp_path / "out")
    assert fp_run("--each", case.parent, "--box", "box.json", "--quiet").code == 0
    assert len(ran) == 2


@pytest.mark.parametrize("option", [("--phase", "NC=2"), ("--phases", "site.toml"), ("--preview",), ("--sr",)])
def test_other_options_are_another_request(
    three: Path, tmp_path: Path, fp_run: FpRun, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...]
) -> None:
    stub_extras(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("site.toml").write_text("")
    ran: list[StudyRequest] = []
    true = pipeline.run_study

    def run_study(model: Any, request: StudyRequest, **options: Any) -> Any:
        ran.append(request)
        return true(model, replace(request, site=None), **options)  # what is in it is not the question here

    monkeypatch.setattr(run_outputs, "run_study", run_study)
    arguments = ["--each", three, "--box", "box.json", "--quiet"]
    assert fp_run(*arguments).code == 0
    for _ in range(2):
        assert fp_run(*arguments, *option).code == 0
    assert len(ran) == 6, "once without and once with it"


def test_a_single_study_is_always_run_but_recorded(
    three: Path, tmp_path: Path, fp_run: FpRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = counted(monkeypatch)
    case = three / "MARKER-a"
    for _ in range(2):
        assert fp_run(case, "--box", case / "box.json", "--quiet").code == 0
    assert len(ran) == 2
    assert not (tmp_path / "out" / "summary.json").exists()
    assert fp_run("--each", three, "--box", "box.json", "--quiet").code == 0
    assert states(tmp_path / "out") == ["skipped", "done", "done"]


def test_a_run_that_dies_before_the_record_was_not_done(
    three: Path, tmp_path: Path, fp_run: FpRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after result.json, before preview and SR: the record is missing, also that of an older request."""
    stub_extras(monkeypatch)
    case = three / "MARKER-a"
    arguments = [case, "--box", case / "box.json", "--quiet"]
    assert fp_run(*arguments, "--preview", "--sr").code == 0
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert {path.name for path in folder.iterdir()} == {"result.json", "preview.png", "sr.dcm", "request.json"}

    def die(*_: object) -> None:
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(run_outputs, "_write_record", die)
        assert fp_run(*arguments, "--phase", "NC=2").code == 137
    assert {path.name for path in folder.iterdir()} == {"result.json"}, "what an older request left is not this one's"
    ran = counted(monkeypatch)
    assert fp_run("--each", three, "--box", "box.json", "--quiet").code == 0
    assert case in ran


# ---- what else is written


def stub_extras(monkeypatch: pytest.MonkeyPatch, preview: Exception | None = None, sr: Exception | None = None) -> None:
    """`preview` and `sr` that write a few bytes, or fail."""

    def preview_png(prepared: Any, config: Any) -> bytes:
        if preview is not None:
            raise preview
        return b"png"

    def write_sr(result: Any, prepared: Any, path: Path) -> None:
        assert (path.parent / "result.json").exists(), "the JSON comes first"
        if sr is not None:
            raise sr
        path.write_bytes(b"sr")

    for name, function in (("preview", preview_png), ("sr", write_sr)):
        module = ModuleType(f"fourphase.runtime.{name}")
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())


@pytest.mark.parametrize("failing", ["preview", "sr"])
def test_a_preview_or_sr_that_fails_never_loses_the_result(
    three: Path, tmp_path: Path, fp_run: FpRun, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    error = PixelDataError("slice 3 is damaged", "send it again")
    stub_extras(monkeypatch, **{failing: error})
    case, other = three / "MARKER-a", {"preview": "sr.dcm", "sr": "preview.png"}[failing]
    ran = fp_run("--each", three, "--box", "box.json", "--preview", "--sr", "--json", "--quiet")
    assert ran.code == 40
    for body, entry in zip(ran.results, summary_of(tmp_path / "out")["studies"], strict=True):
        assert body["error"]["code"] == entry["error"]["code"] == 15
        assert body["status"] == entry["status"] == "failed"
        assert body["prediction"]["label"] == entry["prediction"]["label"]
        files = {path.name for path in (tmp_path / "out" / body["case"]).iterdir()}
        assert files == {"result.json", other}, "not recorded as done"
    single = fp_run(case, "--box", case / "box.json", "--preview", "--sr", "--json", "--quiet")
    assert single.code == 15
    document = json.loads(single.out)
    assert document["prediction"] == ran.results[0]["prediction"]
    assert document["error"]["code"] == 15
    assert single.err.startswith("error: slice 3 is damaged")
    person = fp_run(case, "--box", case / "box.json", "--preview", "--sr", "--quiet")
    assert person.code == 15
    assert "model output, not a diagnosis" in person.out


def test_both_that_fail_are_both_said(three: Path, fp_run: FpRun, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_extras(monkeypatch, PixelDataError("first cause", "cure"), InputMissing("second cause", "cure"))
    case = three / "MARKER-a"
    single = fp_run(case, "--box", case / "box.json", "--preview", "--sr", "--quiet")
    assert single.code == 15
    assert "first cause" in single.err
    assert "second cause" in single.err
    several = fp_run("--each", three, "--box", "box.json", "--preview", "--sr", "--quiet")
    assert several.err.count("second cause") == 3


# ---- bugs, lost GPUs, full disks, signals


def test_a_bug_in_one_study_is_its_failure(
    three: Path, tmp_path: Path, fp_run: FpRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = pipeline.run_study

    def run_study(model: Any, request: StudyRequest, **options: Any) -> Any:
        if request.folder.name == "MARKER-b":
            raise ValueError(f"third-party text about {request.folder}")
        return true(model, request, **options)

    monkeypatch.setattr(run_outputs, "run_study", run_study)
    ran = fp_run("--each", three, "--box", "box.json", "--quiet")
    assert ran.code == 40
    entry = summary_of(tmp_path / "out")["studies"][1]
    assert (entry["status"], entry["error"]["code"], entry["error"]["key"]) == ("failed", 1, "bug")
    assert states(tmp_path / "out") == ["done", "failed", "done"]
    assert "runtime/run_outputs.py" in ran.err
    assert "ValueError" in ran.err
    assert "MARKER" not in ran.err + (tmp_path / "out" / "summary.json").read_text()
    assert "third-party" not in ran.err


def _failing_at(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> list[Path]:
    ran: list[Path] = []

    def run_study(model: Any, request: StudyRequest, **options: Any) -> Any:
        if len(ran) + 1 == number:
            raise error
        ran.append(request.folder)
        return pipeline.run_study(model, request, **options)

    monkeypatch.setattr(run_outputs, "run_study", run_study)
    return ran


def test_a_lost_gpu_ends_the_run_with_22(
    three: Path, tmp_path: Path, fp_run: FpRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = GPUUnavailable("the GPU is lost", "look at dmesg", key=GPU_LOST)
    ran = _failing_at(monkeypatch, 2, lost)
    outcome = fp_run("--each", three, "--box", "box.json", "--json", "--quiet")
    assert outcome.code == 22
    assert len(ran) == 1
    assert [body["status"] for body in outcome.results] == ["done", "failed"]
    assert summary_of(tmp_path / "out")["totals"] == {
        "studies": 3, "done": 1, "skipped": 0, "failed": 1, "pending": 1, "ignored": 0,
    }  # fmt: skip


def test_a_full_disk_under_the_summary_ends_the_run_with_30(
    three: Path, fp_run: FpRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, true = counted(monkeypatch), atomic.write_file

    def write_file(path: Path, data: bytes) -> None:
        if len(ran) == 2:
            raise OutputNotWritable("cannot write: no space left on device", "free disk space")
        true(path, data)

    monkeypatch.setattr(summary, "write_file", write_file)
    outcome = fp_run("--each", three, "--box", "box.json", "--json", "--quiet")
    assert outcome.code == 30
    assert len(ran) == 2
    assert [body["status"] for body in outcome.results] == ["done", "done"], "what was computed is not lost"


def test_a_full_disk_under_a_result_is_that_studys_failure(
    three: Path, tmp_path: Path, fp_run: FpRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutputNotWritable("cannot write: no space left on device", "free disk space")

    monkeypatch.setattr(run_outputs, "write_result", full)
    outcome = fp_run("--each", three, "--box", "box.json", "--quiet")
    assert outcome.code == 40
    found = summary_of(tmp_path / "out")
    assert [entry["error"]["code"] for entry in found["studies"]] == [30, 30, 30]
    case = three / "MARKER-a"
    single = fp_run(case, "--box", case / "box.json", "--quiet")
    assert single.code == 30
    assert "model output, not a diagnosis" in single.out


WAITING = """
import sys, time
from fourphase.runtime import cli, run_outputs
true, number, place = run_outputs.run_study, 0, sys.argv.pop()
def wait(*a, **k):
    print("ready", file=sys.stderr, flush=True)
    time.sleep(60)
def run_study(*a, **k):
    global number
    number += 1
    return wait() if number == 2 and place == "study" else true(*a, **k)
run_outputs.run_study = run_study
if place == "hashing":
    run_outputs.content_hash = wait
if place == "native":
    import hashlib
    def run_study(*a, **k):
        print("ready", file=sys.stderr, flush=True)
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2**31 - 1)
    run_outputs.run_study = run_study
    cli._GRACE_S = 1.0
cli.main()
"""


@pytest.mark.parametrize(
    ("place", "number", "code"),
    [
        ("study", signal.SIGTERM, 143),
        ("study", signal.SIGINT, 130),
        ("study", signal.SIGKILL, -9),
        ("hashing", signal.SIGTERM, 143),
        ("native", signal.SIGTERM, 143),
    ],
)
def test_a_signal_ends_the_run_and_leaves_a_valid_summary(
    three: Path, bundle: Path, tmp_path: Path, place: str, number: signal.Signals, code: int
) -> None:
    """In the second study, in hashing, and in a native call that lets no handler run."""
    line = [sys.executable, "-c", WAITING, "--each", three, "--box", "box.json", "--bundle", bundle]
    line += ["--output", tmp_path / "out", "--quiet", place]
    with subprocess.Popen(
        list(map(str, line)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "ready\n"
            started = time.monotonic()
            process.send_signal(number)
            _, error = process.communicate(timeout=15)
        finally:
            process.kill()
    assert process.returncode == code
    assert time.monotonic() - started < 5
    assert "Traceback" not in error
    assert number != signal.SIGTERM or "error: terminated" in error
    totals = summary_of(tmp_path / "out")["totals"]
    finished = 1 if place == "study" else 0
    assert (totals["done"], totals["pending"]) == (finished, 3 - finished)
    assert cli._GRACE_S <= 4.5


def test_a_failure_keeps_its_kind() -> None:
    known = PixelDataError("a", "b")
    assert run_outputs.as_error(known) is known
    bug = run_outputs.as_error(KeyError("MARKER"))
    assert (type(bug), bug.code, bug.key) == (FourphaseError, 1, "bug")
    assert "MARKER" not in bug.message + bug.hint
