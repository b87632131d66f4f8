"""No patient data in anything that the commands print, write or name; the SR alone belongs to the patient.

Every text of a study that may name somebody, every file and folder name holds a marker. Studies of every kind, whole
and damaged, go through the commands as processes with all warnings on, and all that came out is searched.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import pty
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import JPEGLSLossless

from tests.runtime.test_listen_cli import on
from tests.support.dicom import stored_values, uid, write_series
from tests.support.listen import send
from tests.support.markers import ASCII, MARKS, Mark, edit_file, leaks, mark_file, write_marked
from tests.support.segments import FOR_HIGHDICOM, contour, write_rtstruct, write_seg
from tests.support.tiny_bundle import PREPROCESSING, write_tiny

BOX = {"space": "LPS_mm", "min": [-2, -4, 6], "max": [2, 4, 12]}
PLAIN = MARKS[0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(
        tmp_path_factory.mktemp("bundle") / "tiny.bundle", preprocessing=replace(PREPROCESSING, margin_mm=2.0)
    ).path


# ---- studies, whole and damaged: what was done to a case -> how the command must end


@dataclass(frozen=True)
class Case:
    """A study folder with its box; both have names that must not be told."""

    folder: Path
    mark: Mark

    @property
    def box(self) -> Path:
        return self.folder / f"{self.mark.text} box.json"

    @property
    def study(self) -> Path:
        return self.folder / f"{self.mark.text} dicom"

    def phase(self, number: int) -> list[Path]:
        """The files of a series, by position."""
        paths = (self.study / f"{self.mark.text} s{number}").iterdir()
        return sorted(paths, key=lambda path: float(dcmread(path, specific_tags=[0x00200032]).ImagePositionPatient[2]))

    def edit(self, numbers: Sequence[int], **elements: object) -> None:
        for number in numbers:
            for path in self.phase(number):
                edit_file(path, **elements)


def _nothing(case: Case) -> None:
    pass


def _notices(case: Case) -> None:
    """All that may be warned of: a copy, a damaged file, inverted display, loss, no frame of reference."""
    case.edit([2], PhotometricInterpretation="MONOCHROME1", LossyImageCompression="01")
    first = case.phase(3)[0]
    shutil.copy(first, first.with_name(f"{case.mark.text} copy"))
    data = first.read_bytes()
    first.with_name(f"{case.mark.text} damaged").write_bytes(data[: data.index(b"\xe0\x7f\x10\0") - 7])
    box = json.loads(case.box.read_text())
    case.box.write_text(json.dumps(box | {"min": [-2, -4, -3]}))


def _no_box(case: Case) -> None:
    case.box.unlink()


def _other_files(case: Case) -> None:
    shutil.rmtree(case.study)
    case.study.mkdir()
    (case.study / f"{case.mark.text}.txt").write_text(f"Dear {case.mark.text}")
    write_series(case.study, stored_values((3, 8, 8)), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    for path in case.study.glob("IM*"):
        mark_file(path, case.mark)


def _phase_gone(case: Case) -> None:
    shutil.rmtree(case.study / f"{case.mark.text} s4")


def _untold(case: Case) -> None:
    case.edit([2, 3, 4, 5], SeriesDescription=case.mark.text, AcquisitionTime="")


def _untold_without_numbers(case: Case) -> None:
    """The table and the proposal then have only UIDs, and these are free text, too."""
    for number in (2, 3, 4, 5):
        values = {"SeriesDescription": case.mark.text, "AcquisitionTime": ""}
        case.edit([number], **values, SeriesNumber=f"7777{number}", SeriesInstanceUID=f"{ASCII}.{number}")
        for path in case.phase(number):
            path.write_bytes(path.read_bytes().replace(f"7777{number}".encode(), f"{ASCII}{number}".encode()))


def _contradiction(case: Case) -> None:
    case.edit([2], SeriesDescription=f"spaet {case.mark.text}")
    case.edit([5], SeriesDescription=f"{case.mark.text} nativ")


def _slice_gone(case: Case) -> None:
    case.phase(3)[3].unlink()


def _truncated(case: Case) -> None:
    for path in case.phase(5):
        path.write_bytes(path.read_bytes()[:-300])


def _syntax_of_text(case: Case) -> None:
    """The transfer syntax is quoted where it is a UID; here it is a name."""
    for path in case.phase(3):
        data = path.read_bytes()
        path.write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", f"{ASCII}.name.of.a.pat\0\0".encode()[:20], 1))


def _box_elsewhere(case: Case) -> None:
    case.box.write_text(json.dumps(BOX | {"min": [900, 900, 900], "max": [920, 920, 920]}))


def _box_of_words(case: Case) -> None:
    case.box.write_text(json.dumps({case.mark.text: 1, **BOX, "phases": {case.mark.text: {"min": case.mark.text}}}))


def _box_for_somebody(case: Case) -> None:
    phases = {case.mark.text: {"min": [-2, -4, 6], "max": [2, 4, 12]}}
    case.box.write_text(json.dumps({"space": "LPS_mm", "phases": phases}))


def _mask_of_words(case: Case) -> None:
    case.box.write_bytes(gzip.compress(b"\x5c\x01\0\0" + case.mark.text.encode() * 200))


def _segments(case: Case) -> None:
    """Two segments to choose from; their labels are what people write there."""
    images = write_series(case.folder / "drawn", stored_values((8, 16, 16)), **FOR_HIGHDICOM)
    mask = np.zeros((8, 16, 16, 2), np.uint8)
    mask[3:5, 4:8, 6:9] = 1
    write_seg(case.box, images, mask, names=("a", "b"))
    dataset = dcmread(case.box)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for item in dataset.SegmentSequence:
        item.SegmentLabel = item.SegmentDescription = case.mark.text
    dataset.PatientName = dataset.PatientID = case.mark.text
    dataset.save_as(case.box)
    shutil.rmtree(case.folder / "drawn")


def _rois(case: Case) -> None:
    square = [(-2, -4), (2, -4), (2, 4), (-2, 4)]
    contours = [contour(np.array([(x, y, z) for x, y in square])) for z in (6.0, 9.0, 12.0)]
    write_rtstruct(case.box, {f"{ASCII} liver": contours, f"{ASCII} lesion": contours})
    mark_file(case.box, case.mark)


def _two_patients(case: Case) -> None:
    case.edit([2], PatientID=f"{case.mark.text} other", PatientName=case.mark.text)


def _two_studies(case: Case) -> None:
    case.edit([4], StudyInstanceUID=uid("another"))


DAMAGES: Mapping[str, tuple[Callable[[Case], None], int]] = {
    "whole": (_nothing, 0), "notices": (_notices, 0), "no box": (_no_box, 10), "other files": (_other_files, 11),
    "phase gone": (_phase_gone, 12), "untold": (_untold, 13), "contradiction": (_contradiction, 13),
    "no numbers": (_untold_without_numbers, 13), "slice gone": (_slice_gone, 14), "truncated": (_truncated, 15),
    "syntax of text": (_syntax_of_text, 15), "box elsewhere": (_box_elsewhere, 16), "words": (_box_of_words, 16),
    "somebody": (_box_for_somebody, 16), "mask of words": (_mask_of_words, 16), "segments": (_segments, 16),
    "rois": (_rois, 16), "two patients": (_two_patients, 17), "two studies": (_two_studies, 17),
}  # fmt: skip


def make_case(folder: Path, mark: Mark, **elements: object) -> Case:
    case = Case(folder, mark)
    write_marked(case.study, mark, **FOR_HIGHDICOM, **elements)
    case.box.write_text(json.dumps(BOX))
    return case


#: Where other character sets than ASCII can make a difference.
OF_TEXT = (
    *("whole", "notices", "phase gone", "untold", "contradiction", "words", "somebody", "segments", "rois"),
    "two patients",
)


def write_hospital(folder: Path, mark: Mark) -> list[int]:
    """One case of every kind in a folder of studies; returns the codes in the order of the folders' names."""
    whole = make_case(folder.with_name("whole"), mark)
    kinds = [kind for name, kind in DAMAGES.items() if mark is PLAIN or name in OF_TEXT]
    for number, (damage, _) in enumerate(kinds):
        damage(Case(Path(shutil.copytree(whole.folder, folder / f"{mark.text}^{number:02d}")), mark))
    return [code for _, code in kinds]


# ---- the commands


def environment(**more: str) -> dict[str, str]:
    """Every warning is printed, and text is UTF-8 wherever the tests run."""
    return {**os.environ, "PYTHONWARNINGS": "default", "PYTHONIOENCODING": "utf-8", **more}


def run(*arguments: object, program: str | None = None, module: str = "runtime.cli") -> tuple[int, str, str]:
    start = ["-m", f"fourphase.{module}"] if program is None else ["-c", program]
    line = [sys.executable, *start, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, encoding="utf-8", check=False, env=environment())
    return done.returncode, done.stdout, done.stderr


def assert_private(mark: Mark, streams: Mapping[str, str], *folders: Path) -> None:
    found = leaks(mark, streams, folders)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: mark.name)
def test_every_kind_of_study_and_failure_names_nobody(tmp_path: Path, bundle: Path, mark: Mark) -> None:
    codes = write_hospital(tmp_path / "in" / mark.text, mark)
    out = tmp_path / "out"
    arguments = ["--each", tmp_path / "in" / mark.text, "--box", f"{mark.text} box.json", "--bundle", bundle]
    code, stdout, stderr = run(*arguments, "--output", out, "--preview", "--sr")
    assert code == 40, stderr
    entries = json.loads((out / "summary.json").read_text())["studies"]
    assert [(entry["error"] or {"code": 0})["code"] for entry in entries] == codes, stderr
    assert len(list(out.glob("*/preview.png"))) == len(list(out.glob("*/sr.dcm"))) == codes.count(0)
    assert {"files_skipped", "monochrome1", "duplicate_slices", "lossy_compression"} <= set(entries[1]["warnings"])
    assert_private(mark, {"stdout": stdout, "stderr": stderr}, out)
    if mark is not PLAIN:
        return
    code, stdout, stderr = run(*arguments, "--output", tmp_path / "json", "--json", "--quiet")
    assert [(body.get("error") or {"code": 0})["code"] for body in json.loads(stdout)["results"]] == codes
    assert_private(mark, {"stdout": stdout, "stderr": stderr}, tmp_path / "json")


def test_the_markers_are_where_they_should_be_and_would_be_found(tmp_path: Path) -> None:
    """The proof of the proof: SR and study hold them, in every form that they are searched for."""
    for mark in MARKS:
        study = write_marked(tmp_path / mark.name, mark, phases=("NC",))
        found = leaks(mark, {}, [study])
        path = next(path for path in study.rglob("*") if path.is_file())
        assert any(one.startswith("a name") for one in found)
        assert any(one.startswith(path.name) for one in found)
        dataset = dcmread(path)
        for keyword in ("PatientName", "PatientAddress", "OperatorsName", "StationName", "InstitutionName", "StudyID"):
            assert mark.text in str(dataset[keyword].value), keyword
        assert mark.text in str(dataset.RequestAttributesSequence[0].ScheduledProcedureStepDescription)
        for shown in (mark.text, json.dumps(mark.text), ascii(mark.text), repr(mark.text.encode(mark.codec))):
            assert leaks(mark, {"a stream": f"x{shown}y"}, []), shown


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("in") / f"{ASCII}^case", PLAIN)


def test_one_study_as_a_folder_and_as_a_zip(whole: Case, bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / f"{ASCII}.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.comment = ASCII.encode()
        for path in whole.study.rglob("*"):
            if path.is_file():
                file.write(path, f"{ASCII}/{path.relative_to(whole.study)}")
        file.writestr(f"../{ASCII}/x", ASCII)
        file.writestr(f"{ASCII}/nested.zip", b"PK\x03\x04" + ASCII.encode())
    answers = []
    for number, study in enumerate((whole.study, archive)):
        out = tmp_path / f"out{number}"
        arguments = [study, "--box", whole.box, "--bundle", bundle, "--output", out, "--preview"]
        code, stdout, stderr = run(*arguments, "--save-input", out / "input.npy")
        assert code == 0, stderr
        assert_private(PLAIN, {"stdout": stdout, "stderr": stderr}, out)
        code, stdout, stderr = run(*arguments, "--json", "--quiet")
        assert (code, stderr) == (0, "")
        assert_private(PLAIN, {"stdout": stdout}, out)
        answers.append(json.loads(stdout)["prediction"])
    assert answers[0] == answers[1]
    for name, damage in (
        ("cut", archive.read_bytes()[:-90]),
        ("flipped", archive.read_bytes().replace(b"\0\1", b"\1")),
    ):
        broken = tmp_path / f"{ASCII} {name}.zip"
        broken.write_bytes(damage)
        code, stdout, stderr = run(broken, "--box", whole.box, "--bundle", bundle, "--json")
        assert 10 <= code <= 17, stderr
        assert_private(PLAIN, {"stdout": stdout, "stderr": stderr})


def test_each_error_of_one_study_as_text_and_json(bundle: Path, tmp_path: Path) -> None:
    """Here the case folder is what was typed; nothing repeats it."""
    kinds = [name for name in DAMAGES if name in ("no box", "untold", "truncated", "segments")]
    source = make_case(tmp_path / "in" / f"{ASCII}^0", PLAIN)
    for name in kinds:
        damage, expected = DAMAGES[name]
        case = Case(Path(shutil.copytree(source.folder, tmp_path / "in" / f"{ASCII}^{name}")), PLAIN)
        damage(case)
        code, stdout, stderr = run(case.study, "--box", case.box, "--bundle", bundle, "--json")
        assert code == expected == json.loads(stdout)["error"]["code"], stderr
        assert_private(PLAIN, {"stdout": stdout, "stderr": stderr})


def test_a_terminal_gets_the_command_that_settles_an_ambiguity_and_nothing_else(bundle: Path, tmp_path: Path) -> None:
    case = make_case(tmp_path / f"{ASCII}^case", PLAIN)
    _untold(case)
    line = [sys.executable, "-m", "fourphase.runtime.cli", case.study, "--box", case.box, "--bundle", bundle]
    ours, theirs = pty.openpty()
    with subprocess.Popen(list(map(str, line)), stdout=theirs, stderr=theirs, env=environment(TERM="xterm")) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # the end of a terminal, on Linux
                break
    os.close(ours)
    assert process.returncode == 13
    lines = shown.decode().splitlines()
    assert [ASCII in line for line in lines if line.startswith("fp-run ")] == [True], "the user typed it"
    assert_private(PLAIN, {"terminal": "\n".join(line for line in lines if not line.startswith("fp-run "))})


BUG = """
import sys
from fourphase.runtime import cli, run_outputs
def bug(model, request, **options):
    marker = request.folder.name
    try:
        raise KeyError(marker)
    except KeyError as error:
        raise ValueError(f"{marker} and {request.box}") from error
setattr(run_outputs, sys.argv.pop(1), bug)
cli.main()
"""


@pytest.mark.parametrize("each", [False, True])
def test_a_bug_has_a_traceback_without_texts(whole: Case, bundle: Path, tmp_path: Path, each: bool) -> None:
    """Exceptions of others quote paths and values; the place in the code is what a report needs."""
    where = [whole.folder.parent, "--each", "--box", whole.box.name] if each else [whole.study, "--box", whole.box]
    arguments = ["run_study", *where, "--bundle", bundle, "--output", tmp_path / "out"]
    code, stdout, stderr = run(*arguments, program=BUG)
    assert code == (40 if each else 1)
    for word in ("Traceback", "run_outputs.py", "KeyError", "ValueError", "bug in fourphase"):
        assert word in stderr, stderr
    assert_private(PLAIN, {"stdout": stdout, "stderr": stderr}, tmp_path / "out")


PANIC = """
import sys
from fourphase.runtime import cli, decode_pool
sys.path.insert(0, sys.argv.pop(1))
decode_pool._shared = decode_pool.DecodePool(decoder="tests.support.markers")
cli.main()
"""


def test_a_decoder_that_says_whom_it_decodes_is_not_heard(bundle: Path, tmp_path: Path) -> None:
    case = make_case(tmp_path / "in" / ASCII, PLAIN, transfer_syntax=JPEGLSLossless)
    root = Path(__file__).parents[1]
    code, stdout, stderr = run(root, case.study, "--box", case.box, "--bundle", bundle, "--json", program=PANIC)
    assert code == 15, stderr
    assert_private(PLAIN, {"stdout": stdout, "stderr": stderr})


def test_wrong_use_does_not_repeat_paths(whole: Case, bundle: Path, tmp_path: Path) -> None:
    taken = whole.study / "results"
    for arguments in (
        [whole.study / "nowhere", "--box", whole.box],
        [whole.study, "--box", whole.study],
        [whole.study, "--box", whole.box, "--phase", whole.study],
        [whole.study, "--box", whole.box, "--phase", f"ART={ASCII} s9"],
        [whole.study, "--box", whole.box, "--output", taken],
        [whole.study, "--box", whole.box, "--roi", ASCII],
        [whole.study / "nowhere", "--each", "--box", whole.box.name],
    ):
        code, stdout, stderr = run(*arguments, "--bundle", bundle)
        assert code in (2, 10, 12, 16), (arguments, stderr)
        assert_private(PLAIN, {"stdout": stdout, "stderr": stderr})


def test_a_calibration_set_names_nobody(whole: Case, bundle: Path, tmp_path: Path) -> None:
    """Report, notes, the set and its names; and what is refused of a table and of a study."""
    damaged = Case(Path(shutil.copytree(whole.folder, tmp_path / ASCII / "damaged")), PLAIN)
    _truncated(damaged)
    noticed = Case(Path(shutil.copytree(whole.folder, tmp_path / ASCII / "noticed")), PLAIN)
    _notices(noticed)
    table = tmp_path / f"{ASCII}.csv"
    for name, rows, expected in (
        ("set", [(whole, "HCC"), (noticed, "ICC")], 0),
        ("twice", [(whole, "HCC"), (whole, "HCC")], 2),
        ("unread", [(whole, "HCC"), (damaged, "ICC")], 15),
        ("labels", [(whole, ASCII)], 2),
    ):
        with table.open("w", newline="") as file:
            lines = [[case.study, case.box, label] for case, label in rows]
            csv.writer(file).writerows([["study", "box", "label"], *lines])
        out = tmp_path / "out" / name
        arguments = ["calibrate", "--cases", table, "-o", out, "--bundle", bundle]
        code, stdout, stderr = run(*arguments, module="export.cli")
        assert code == expected, stderr
        assert_private(PLAIN, {"stdout": stdout, "stderr": stderr}, tmp_path / "out")


def test_the_receiver_names_nobody(whole: Case, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log, its results, and every name in its spool, whose content is the patients' by nature."""
    pytest.importorskip("pynetdicom")
    good = [path for path in whole.study.rglob("*") if path.is_file()]
    bad = [dcmread(path) for path in whole.phase(3)]
    for dataset in bad:
        dataset.StudyInstanceUID = uid("bad study")
        dataset.SOPInstanceUID = uid(dataset.SOPInstanceUID)
    with on(tmp_path / "site", bundle, "--max-studies", "2") as site:
        (site.root / "boxes" / f"{uid('bad study')}.json").write_text(json.dumps(BOX))
        monkeypatch.setenv("PYTHONWARNINGS", "default")
        site.start()
        assert set(send(site.port, good)) == {0}
        assert set(send(site.port, bad)) == {0}
        assert site.process is not None
        assert site.process.wait(60) == 0
        log = site.log.read_text()
        assert (site.states["done"], site.states["failed"]) == (1, 1), log
        names = "\n".join(str(path.relative_to(site.spool)) for path in site.spool.rglob("*"))
        errors = "\n".join(path.read_text() for path in site.spool.glob("studies/*/error.json"))
        assert '"code": 12' in errors
        assert_private(PLAIN, {"log": log, "names": names, "errors": errors}, site.spool / "results")
