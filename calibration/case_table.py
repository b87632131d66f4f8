"""Which studies are meant: folders, folders with a box each, or a table of them. No study is opened here.

Errors count studies, folders and rows (as a spreadsheet does: the header is row 1); they never quote a path or a cell,
which may name patients.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fourphase.runtime.errors import InputMissing, UsageError
from fourphase.runtime.pipeline import StudyRequest

__all__ = ["CalibrationRequest", "read_case_table", "study_requests"]

#: A folder of one study as `fp-bench phantom` writes it.
_DICOM, _BOX, _TRUTH = "dicom", "lesion_box.json", "truth.json"
#: The columns of a table; the last one may be left out.
_COLUMNS = ("study", "box", "label")


@dataclass(frozen=True)
class CalibrationRequest:
    """A study to read, and its true class, such as "HCC"; None where it is not known."""

    study: StudyRequest
    label: str | None = None


def study_requests(folders: Sequence[Path], boxes: Sequence[Path] = ()) -> tuple[CalibrationRequest, ...]:
    """Study folders with one box each, or folders in `fp-bench phantom`'s layout.

    In that layout a folder holds `dicom`, `lesion_box.json` and perhaps `truth.json`, or several folders that do. The
    label is the truth's `kind`.

    Raises: UsageError (2) if boxes were given, but not one per folder; InputMissing (10) for a folder without a study
        or a truth that cannot be read.
    """
    if boxes:
        if len(boxes) != len(folders):
            raise UsageError(
                f"{len(folders)} study folders with {len(boxes)} boxes",
                "give one --box per study folder, in the same order",
                key="boxes_do_not_match",
            )
        return tuple(CalibrationRequest(StudyRequest(*pair)) for pair in zip(folders, boxes, strict=True))
    cases = [case for number, folder in enumerate(folders, start=1) for case in _cases(folder, number)]
    return tuple(
        CalibrationRequest(
            StudyRequest(case / _DICOM, case / _BOX), _true_class(case / _TRUTH, f"study {number} of {len(cases)}")
        )
        for number, case in enumerate(cases, start=1)
    )


def read_case_table(path: Path) -> tuple[CalibrationRequest, ...]:
    """Reads a CSV file with the columns study, box and, optionally, label; paths are relative to the file.

    Raises: InputMissing (10) for no file, a table without rows, or a study or box that does not exist; UsageError (2)
        for another header, a row that does not fit it, and rows that are equal.
    """
    rows = [(number, cells) for number, cells in enumerate(_records(path), start=1) if any(cells)]
    if len(rows) < 2:
        raise InputMissing("the case table names no study", "add one row per study", key="calibration_empty")
    header = rows[0][1]
    _check_header(header)
    requests = [(number, _request(path.parent, header, cells, number)) for number, cells in rows[1:]]
    _check_different(requests)
    return tuple(request for _, request in requests)


def _cases(folder: Path, number: int) -> list[Path]:
    """The folder itself if it is one study, otherwise the studies in it, by name."""
    found = [folder] if _is_case(folder) else sorted(case for case in folder.glob("[!.]*") if _is_case(case))
    if not found:
        raise InputMissing(
            f"there is no study in folder {number} of the command line: no {_DICOM}/ and no {_BOX}, nor folders with "
            "them",
            "give --box FILE for each study folder, or folders as fp-bench phantom writes them",
            key="calibration_empty",
        )
    return found


def _is_case(folder: Path) -> bool:
    """Either is enough: half a study is refused when it is read, not passed over."""
    return os.path.isdir(folder / _DICOM) or os.path.isfile(folder / _BOX)


def _true_class(path: Path, name: str) -> str | None:
    if not os.path.lexists(path):
        return None
    try:
        kind = json.loads(path.read_bytes())["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if not isinstance(kind, str) or not kind:
        raise InputMissing(
            f"{name}: its {_TRUTH} cannot be read or names no kind",
            f"correct it, or remove {_TRUTH} to leave the class unknown",
            key="truth_invalid",
        )
    return kind


def _records(path: Path) -> list[list[str]]:
    """The records of a CSV file, stripped; a byte order mark, as spreadsheets write it, is no part of the header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [[cell.strip() for cell in record] for record in csv.reader(file, strict=True)]
    except OSError as error:
        cause = (error.strerror or "error").lower()
        raise InputMissing(f"the case table cannot be read: {cause}", "check the path given to --cases") from error
    except (ValueError, csv.Error) as error:
        raise _invalid("the case table is not CSV in UTF-8", "save it again as comma-separated UTF-8") from error


def _check_header(header: list[str]) -> None:
    missing = [name for name in _COLUMNS[:2] if name not in header]
    unknown = [
        str(position)
        for position, name in enumerate(header, start=1)
        if name not in _COLUMNS or name in header[: position - 1]
    ]
    problems = [f"it lacks {' and '.join(missing)}"] if missing else []
    problems += [f"it has an unknown or repeated name in column {', '.join(unknown)}"] if unknown else []
    if problems:
        raise _invalid(
            f"row 1 of the case table is not its header: {'; '.join(problems)}",
            f"begin the table with the line {','.join(_COLUMNS)} (the label may be left out), separated by commas",
        )


def _request(folder: Path, header: list[str], cells: list[str], number: int) -> CalibrationRequest:
    if len(cells) != len(header):
        raise _invalid(
            f"row {number} of the case table has {len(cells)} cells, its header {len(header)}",
            "correct the row; a path with a comma needs quotes",
        )
    row = dict(zip(header, cells, strict=True))
    for name in _COLUMNS[:2]:
        if not row[name]:
            raise _invalid(f"row {number} of the case table names no {name}", "fill in the cell")
    label = row.get("label") or None
    if label is not None and not label.isprintable():
        raise _invalid(f"row {number} of the case table has a label that cannot be printed", "correct the cell")
    study, box = folder / row["study"], folder / row["box"]
    for found, what in ((os.path.isdir(study), "study is not a folder"), (os.path.isfile(box), "box is not a file")):
        if not found:
            raise InputMissing(
                f"row {number} of the case table: the {what}", "paths are relative to the table's folder"
            )
    return CalibrationRequest(StudyRequest(study, box), label)


def _check_different(requests: Sequence[tuple[int, CalibrationRequest]]) -> None:
    """The same study with another box is another lesion; with the same box it would count twice."""
    seen: dict[tuple[str, str], int] = {}
    for number, request in requests:
        names = os.path.realpath(request.study.folder), os.path.realpath(request.study.box)
        first = seen.setdefault(names, number)
        if first != number:
            raise _invalid(f"rows {first} and {number} of the case table name the same study and box", "remove one")


def _invalid(problem: str, hint: str) -> UsageError:
    return UsageError(problem, hint, key="case_table_invalid")
