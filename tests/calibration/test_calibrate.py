"""From DICOM folders to a set, as the command does it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fourphase.calibration.calibrate import calibrate, study_requests
from fourphase.runtime.errors import InputMissing, NoUsableCT, UsageError
from fourphase.runtime.pipeline import StudyRequest, prepare_study
from tests.support.dicom import uid, write_phases
from tests.support.quantizable import PHASES, PREPROCESSING

#: Inside what `write_phases` scans.
BOX = {"space": "LPS_mm", "min": [-4.0, -5.0, 4.0], "max": [3.0, 5.5, 12.0]}


def write_case(folder: Path, number: int) -> Path:
    """One study in `fp-bench phantom`'s layout."""
    write_phases(folder / "dicom", StudyInstanceUID=uid("study", number), RescaleSlope=str(1 + number / 10))
    (folder / "lesion_box.json").write_text(json.dumps(BOX))
    return folder


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    for number in (0, 1):
        write_case(tmp_path / "cases" / f"case{number}", number)
    return tmp_path / "cases"


def test_a_folder_of_studies_becomes_a_set(cases: Path, tmp_path: Path) -> None:
    requests = study_requests([cases])
    data = calibrate(requests, PREPROCESSING, tmp_path / "set", PHASES)
    assert len(data) == 2
    assert data.cases[0].slices == dict.fromkeys(PHASES, 8)
    expected = [prepare_study(request, PHASES, PREPROCESSING).input.astype(np.float16) for request in requests]
    found = [study[0].astype(np.float16) for study in data.studies()]
    for array in expected:
        assert any(np.array_equal(array, other) for other in found)


def test_the_same_study_twice_is_refused(cases: Path, tmp_path: Path) -> None:
    requests = study_requests([cases / "case0", cases / "case0"])
    with pytest.raises(UsageError, match="studies 1 and 2"):
        calibrate(requests, PREPROCESSING, tmp_path / "set", PHASES)
    assert not (tmp_path / "set").exists()


def test_a_study_that_cannot_be_used_is_named_by_its_place(cases: Path, tmp_path: Path) -> None:
    for path in (cases / "case1" / "dicom").rglob("IM*"):
        path.unlink()
    with pytest.raises(NoUsableCT, match=r"^study 2 of 2: ") as caught:
        calibrate(study_requests([cases]), PREPROCESSING, tmp_path / "set", PHASES)
    assert caught.value.code == 11
    assert "case1" not in caught.value.message
    assert not (tmp_path / "set").exists()


def test_a_disk_that_cannot_be_read_does_not_pass_for_one_that_cannot_be_written(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("fourphase.calibration.calibrate.prepare_study", failing)
    with pytest.raises(InputMissing, match="study 1 of 2 cannot be read: input/output error"):
        calibrate(study_requests([cases]), PREPROCESSING, tmp_path / "set", PHASES)


def test_the_three_ways_to_say_which_studies(cases: Path, tmp_path: Path) -> None:
    one, two = cases / "case0", cases / "case1"
    expected = tuple(StudyRequest(case / "dicom", case / "lesion_box.json") for case in (one, two))
    assert study_requests([cases]) == study_requests([one, two]) == expected
    boxes = [one / "lesion_box.json", two / "lesion_box.json"]
    assert study_requests([one / "dicom", two / "dicom"], boxes) == expected


def test_boxes_must_match_the_folders(cases: Path) -> None:
    with pytest.raises(UsageError, match="2 study folders with 1 boxes"):
        study_requests([cases, cases], [cases / "case0" / "lesion_box.json"])


def test_a_folder_without_studies_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="there is no study"):
        study_requests([tmp_path])
