"""Which studies are meant: every way to say it, and every way to say it wrongly. No DICOM is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fourphase.calibration.case_table import CalibrationRequest, read_case_table, study_requests
from fourphase.runtime.errors import InputMissing, UsageError
from fourphase.runtime.pipeline import StudyRequest

#: What no error may quote.
SECRET = "Mustermann"


def make_case(folder: Path, kind: str | None = None) -> CalibrationRequest:
    """An empty study in `fp-bench phantom`'s layout, and what it should be read as."""
    (folder / "dicom").mkdir(parents=True)
    (folder / "lesion_box.json").write_text("{}")
    if kind is not None:
        (folder / "truth.json").write_text(json.dumps({"schema": "fourphase.phantom/1", "kind": kind}))
    return CalibrationRequest(StudyRequest(folder / "dicom", folder / "lesion_box.json"), kind)


@pytest.fixture
def cases(tmp_path: Path) -> tuple[CalibrationRequest, ...]:
    return tuple(make_case(tmp_path / f"{SECRET}{index}", kind) for index, kind in enumerate(("HCC", "ICC", None)))


def table(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "cases.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def row(index: int) -> str:
    return f"{SECRET}{index}/dicom,{SECRET}{index}/lesion_box.json"


def test_a_folder_of_studies_and_the_studies_themselves(cases: tuple[CalibrationRequest, ...], tmp_path: Path) -> None:
    assert study_requests([tmp_path]) == cases
    assert study_requests([tmp_path / f"{SECRET}{index}" for index in (2, 0)]) == (cases[2], cases[0])


def test_folders_with_a_box_each_have_no_label(cases: tuple[CalibrationRequest, ...]) -> None:
    folders, boxes = [case.study.folder for case in cases], [case.study.box for case in cases]
    expected = tuple(CalibrationRequest(StudyRequest(*pair)) for pair in zip(folders, boxes, strict=True))
    assert study_requests(folders, boxes) == expected
    with pytest.raises(UsageError, match="3 study folders with 1 boxes"):
        study_requests(folders, boxes[:1])


def test_half_a_study_is_not_passed_over(cases: tuple[CalibrationRequest, ...], tmp_path: Path) -> None:
    cases[1].study.box.unlink()
    cases[2].study.folder.rmdir()
    assert len(study_requests([tmp_path])) == 3


def test_a_hidden_folder_is_no_study(cases: tuple[CalibrationRequest, ...], tmp_path: Path) -> None:
    make_case(tmp_path / ".hcc-0003.tmp")
    assert study_requests([tmp_path]) == cases


def test_a_folder_without_studies_is_an_error_even_beside_one_with(
    cases: tuple[CalibrationRequest, ...], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for folders in ([tmp_path / "empty"], [tmp_path / "absent"], [tmp_path, tmp_path / "empty"]):
        with pytest.raises(InputMissing, match=f"no study in folder {len(folders)} ") as caught:
            study_requests(folders)
        assert caught.value.key == "calibration_empty"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": 1}', '{"kind": ""}', b"\xff"])
def test_a_truth_that_cannot_be_read_is_not_an_unknown_one(
    cases: tuple[CalibrationRequest, ...], tmp_path: Path, text: str | bytes
) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / f"{SECRET}1" / "truth.json").write_bytes(data)
    with pytest.raises(InputMissing, match=r"^study 2 of 3: its truth.json") as caught:
        study_requests([tmp_path])
    assert SECRET not in caught.value.message


def test_a_table_is_read_relative_to_itself(cases: tuple[CalibrationRequest, ...], tmp_path: Path) -> None:
    text = f"study,box,label\n{row(0)},HCC\n{row(1)},ICC\n{row(2)},\n"
    assert read_case_table(table(tmp_path, text)) == cases


@pytest.mark.parametrize(
    "text",
    [
        f"study,box\n{row(0)}\n",
        f"box,label,study\n{SECRET}0/lesion_box.json,,{SECRET}0/dicom\n",
        f"\ufeffstudy , box\r\n\r\n {SECRET}0/dicom , {SECRET}0/lesion_box.json\r\n,\r\n",
        f'study,box\n"{SECRET}0/dicom","{SECRET}0/lesion_box.json"',
    ],
    ids=["no label", "other order", "as spreadsheets save it", "quoted"],
)
def test_a_table_may_look_otherwise(cases: tuple[CalibrationRequest, ...], tmp_path: Path, text: str) -> None:
    assert read_case_table(table(tmp_path, text)) == (CalibrationRequest(cases[0].study),)


def test_an_absolute_path_stays_one(cases: tuple[CalibrationRequest, ...], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "cases.csv"
    path.write_text(f"study,box\n{cases[0].study.folder},../{SECRET}0/lesion_box.json\n")
    (request,) = read_case_table(path)
    assert request.study.folder == cases[0].study.folder
    assert request.study.box.samefile(cases[0].study.box)


def test_two_lesions_of_one_study_are_two_cases(cases: tuple[CalibrationRequest, ...], tmp_path: Path) -> None:
    text = f"study,box\n{row(0)}\n{SECRET}0/dicom,{SECRET}1/lesion_box.json\n"
    assert len(read_case_table(table(tmp_path, text))) == 2


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", InputMissing, "names no study"),
        ("study,box,label\n\n", InputMissing, "names no study"),
        (f"{row(0)}\n{row(1)}\n", UsageError, "row 1 .* lacks study and box; .* column 1, 2"),
        (f"study,label\n{row(0)}\n", UsageError, "it lacks box$"),
        (f"study,box,{SECRET}\n{row(0)},x\n", UsageError, "column 3"),
        (f"study,box,box\n{row(0)},x\n", UsageError, "repeated name in column 3"),
        (f"study;box\n{SECRET};x\n", UsageError, "lacks study and box"),
        (f"study,box,label\n{row(0)},HCC\n\n{row(1)}\n", UsageError, "row 4 .* 2 cells, its header 3"),
        (f"study,box\n{row(0)},x\n", UsageError, "row 2 .* 3 cells, its header 2"),
        (f"study,box\n{row(0)}\n,{SECRET}1/lesion_box.json\n", UsageError, "row 3 .* names no study"),
        (f"study,box\n{SECRET}1/dicom,\n", UsageError, "row 2 .* names no box"),
        (f"study,box,label\n{row(0)},H\x1bCC\n", UsageError, "row 2 .* label that cannot be printed"),
        (f"study,box\n{row(0)}\n{SECRET}9/dicom,{SECRET}0/lesion_box.json\n", InputMissing, "row 3.* study is not a"),
        (f"study,box\n{SECRET}0/dicom,{SECRET}0\n", InputMissing, "row 2.* box is not a file"),
        (f"study,box\n{row(0)}\n{row(1)}\n{SECRET}1/../{row(0)}\n", UsageError, "rows 2 and 4 .* same study and box"),
        (f'study,box\n"{SECRET}0/dicom,x\n', UsageError, "not CSV in UTF-8"),
        (b"study,box\n\xff,x\n", UsageError, "not CSV in UTF-8"),
    ],
)
def test_a_wrong_table_is_refused_by_row_and_quotes_nothing(
    cases: tuple[CalibrationRequest, ...], tmp_path: Path, text: str | bytes, error: type[UsageError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        read_case_table(table(tmp_path, text))
    assert SECRET not in caught.value.message + caught.value.hint
    assert caught.value.code == (2 if error is UsageError else 10)


def test_no_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="case table cannot be read: no such file"):
        read_case_table(tmp_path / "absent.csv")
