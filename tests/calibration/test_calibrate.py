"""From DICOM folders to a set, as the command does it."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fourphase.calibration.calibrate import calibrate, check_target, write_calibration_set
from fourphase.calibration.calibration_set import CalibrationSet
from fourphase.calibration.case_table import CalibrationRequest, study_requests
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import FourphaseError, InputMissing, Notice, NoUsableCT, OutputNotWritable, UsageError
from fourphase.runtime.pipeline import PreparedStudy, StudyRequest, prepare_study
from tests.support.dicom import uid, write_phases
from tests.support.quantizable import PHASES, PREPROCESSING, prepared, studies

#: Inside what `write_phases` scans.
BOX = {"space": "LPS_mm", "min": [-4.0, -5.0, 4.0], "max": [3.0, 5.5, 12.0]}
#: 3 MB per study as float32.
LARGER = PreprocessingConfig(size=(16, 64, 64))


def write_case(folder: Path, number: int, phases: Sequence[str] = PHASES) -> Path:
    """One study in `fp-bench phantom`'s layout; even numbers are HCC."""
    write_phases(folder / "dicom", phases, StudyInstanceUID=uid("study", number), RescaleSlope=str(1 + number / 10))
    (folder / "lesion_box.json").write_text(json.dumps(BOX))
    (folder / "truth.json").write_text(json.dumps({"kind": ("HCC", "ICC")[number % 2]}))
    return folder


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    for number in (0, 1):
        write_case(tmp_path / "cases" / f"case{number}", number)
    return tmp_path / "cases"


def made(cases: Path, target: Path, exclude: Sequence[CalibrationSet] = ()) -> CalibrationSet:
    return calibrate(study_requests([cases]), PREPROCESSING, target, PHASES, exclude)


def test_a_folder_of_studies_becomes_a_set(cases: Path, tmp_path: Path) -> None:
    requests = study_requests([cases])
    data = calibrate(requests, PREPROCESSING, tmp_path / "set", PHASES)
    assert len(data) == 2
    assert data.cases[0].slices == dict.fromkeys(PHASES, 8)
    assert data.labels is not None
    found = {label: study[0] for label, study in zip(data.labels, data.studies(), strict=True)}
    for request, label in zip(requests, ("HCC", "ICC"), strict=True):
        expected = prepare_study(request.study, PHASES, PREPROCESSING).input.astype(np.float16)
        np.testing.assert_array_equal(found[label], expected.astype(np.float32))


def test_the_same_study_twice_is_refused(cases: Path, tmp_path: Path) -> None:
    requests = study_requests([cases / "case0", cases / "case0"])
    with pytest.raises(UsageError, match="studies 1 and 2"):
        calibrate(requests, PREPROCESSING, tmp_path / "set", PHASES)
    assert not (tmp_path / "set").exists()


def test_a_study_that_cannot_be_used_is_named_by_its_place(cases: Path, tmp_path: Path) -> None:
    for path in (cases / "case1" / "dicom").rglob("IM*"):
        path.unlink()
    with pytest.raises(NoUsableCT, match=r"^study 2 of 2: ") as caught:
        made(cases, tmp_path / "set")
    assert caught.value.code == 11
    assert "case1" not in caught.value.message
    assert not (tmp_path / "set").exists()


def test_half_a_study_is_refused(cases: Path, tmp_path: Path) -> None:
    (cases / "case0" / "lesion_box.json").unlink()
    with pytest.raises(InputMissing, match=r"^study 1 of 2: the lesion box does not exist"):
        made(cases, tmp_path / "set")


def test_no_hint_speaks_of_an_option_that_is_not_there(cases: Path, tmp_path: Path) -> None:
    write_case(cases / "case2", 2, phases=("NC", "ART", "DL"))
    with pytest.raises(FourphaseError, match=r"^study 3 of 3: ") as caught:
        made(cases, tmp_path / "set")
    assert caught.value.code == 12
    assert "--phase" not in caught.value.hint
    assert "only the right series" in caught.value.hint


def test_a_disk_that_cannot_be_read_does_not_pass_for_one_that_cannot_be_written(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("fourphase.calibration.calibrate.prepare_study", failing)
    with pytest.raises(InputMissing, match="study 1 of 2 cannot be read: input/output error"):
        made(cases, tmp_path / "set")


def test_what_the_run_time_remarks_is_said_with_the_studys_place(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def remarking(*arguments: Any) -> Any:
        return replace(prepare_study(*arguments), warnings=(Notice("key", "the box is clipped"),))

    monkeypatch.setattr("fourphase.calibration.calibrate.prepare_study", remarking)
    made(cases, tmp_path / "set")
    assert capsys.readouterr().err == "study 1 of 2: the box is clipped\nstudy 2 of 2: the box is clipped\n"


def test_an_overlapping_set_is_never_written(cases: Path, tmp_path: Path) -> None:
    first = made(cases / "case1", tmp_path / "first")
    with pytest.raises(UsageError, match=r"1 of 2 calibration studies .*: study 2$") as caught:
        made(cases, tmp_path / "second", [first])
    assert caught.value.key == "calibration_overlap"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases", "first"]
    assert len(made(cases / "case0", tmp_path / "second", [first])) == 1


def test_an_overlap_leaves_the_old_set(cases: Path, tmp_path: Path) -> None:
    old, first = made(cases / "case0", tmp_path / "set"), made(cases / "case1", tmp_path / "first")
    with pytest.raises(UsageError):
        made(cases, old.path, [first])
    (file,) = (old.path / "cases").iterdir()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == old.cases[0].sha256


def test_another_salt_is_found_before_any_study_is_read(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = made(cases / "case1", tmp_path / "other")
    monkeypatch.setenv("FOURPHASE_SALT", "secret")
    monkeypatch.setattr("fourphase.calibration.calibrate.prepare_study", None)
    with pytest.raises(UsageError, match="FOURPHASE_SALT"):
        made(cases, tmp_path / "set", [other])


def test_the_target_is_checked_before_any_study_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "set", tmp_path):
        with pytest.raises(OutputNotWritable):
            check_target(target)
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty")
    check_target(tmp_path / "new" / "set")
    assert not (tmp_path / "new" / "set").exists()


@dataclass
class Counting:
    """Prepares random studies of LARGER's size, and counts how many were alive each time one was asked for."""

    alive: list[int]
    made: list[weakref.ref[Any]]

    def __call__(self, *_: object) -> Any:
        self.alive.append(sum(reference() is not None for reference in self.made))
        number = len(self.made)
        array = np.random.default_rng(number).uniform(-2, 2, (4, 16, 3, 64, 64)).astype(np.float32)
        self.made.append(weakref.ref(array))
        series = SimpleNamespace(series=SimpleNamespace(slices=range(58)))
        return SimpleNamespace(uid=f"1.2.{number}", input=array, phases=dict.fromkeys(PHASES, series), warnings=())


def calibrate_counted(count: int, target: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counting = Counting([], [])
    monkeypatch.setattr("fourphase.calibration.calibrate.prepare_study", counting)
    requests = [CalibrationRequest(StudyRequest(Path(), Path()))] * count
    assert len(calibrate(requests, LARGER, target, PHASES)) == count
    return counting.alive


def test_no_study_is_kept_while_the_next_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert calibrate_counted(6, tmp_path / "set", monkeypatch) == [0] * 6


def test_memory_does_not_grow_with_the_number_of_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {}
    for count in (2, 12):
        tracemalloc.start()
        calibrate_counted(count, tmp_path / str(count), monkeypatch)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    one_stored = 4 * 16 * 3 * 64 * 64 * 2
    assert peaks[12] - peaks[2] < one_stored / 4


def test_a_generator_given_to_the_writer_is_consumed_one_by_one(tmp_path: Path) -> None:
    seen: list[int] = []

    def counted() -> Iterator[PreparedStudy]:
        for number, study in enumerate(prepared(studies(3))):
            seen.append(len(list(tmp_path.glob(".set.*/cases/*.npy"))) - number)
            yield study

    write_calibration_set(tmp_path / "set", counted(), PREPROCESSING, PHASES)
    assert seen == [0, 0, 0]
