from __future__ import annotations

import csv
import errno
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourphase.runtime.errors import OutputNotWritable, PhaseMissing
from fourphase.runtime.summary import Entry, Summary, write_summary

PREDICTION = {"label": "HCC", "probabilities": {"HCC": 0.75, "ICC": 0.25}, "logits": [1.0, -0.1]}
DONE = Entry(1, "done", "0123456789abcdef", "ab" * 32, PREDICTION, ("tilt", "box_clipped"), None, 0.12345)
FAILED = Entry(2, "failed", None, None, None, (), PhaseMissing("no series, for PV", 'send "it"').to_dict(), 2.0)


def rows(summary: Summary) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(summary.to_csv(), newline="")))


def test_json_and_csv_hold_the_same_entries() -> None:
    summary = Summary(3, ("HCC", "ICC"), (DONE, FAILED))
    body = json.loads(summary.to_json())
    assert body["schema"] == "fourphase.summary/1"
    assert body["totals"] == {"studies": 3, "done": 1, "skipped": 0, "failed": 1, "pending": 1, "ignored": 0}
    first, second = body["studies"]
    assert first == {
        "number": 1,
        "case": "0123456789abcdef",
        "request": "ab" * 32,
        "status": "done",
        "prediction": PREDICTION,
        "warnings": ["tilt", "box_clipped"],
        "error": None,
        "seconds": 0.123,
    }
    assert second["error"] == {"code": 12, "key": "phase_missing", "message": "no series, for PV", "hint": 'send "it"'}
    flat = rows(summary)
    assert [row["number"] for row in flat] == ["1", "2"]
    assert [row["status"] for row in flat] == ["done", "failed"]
    assert (flat[0]["label"], flat[0]["probability_HCC"], flat[0]["probability_ICC"]) == ("HCC", "0.75", "0.25")
    assert flat[0]["warnings"] == "tilt box_clipped"
    assert (flat[1]["error_code"], flat[1]["error_message"], flat[1]["error_hint"]) == (
        "12",
        "no series, for PV",
        'send "it"',
    )
    assert flat[1]["label"] == flat[1]["case"] == flat[0]["error_code"] == ""


def test_names_are_there_only_if_asked_for() -> None:
    plain = Summary(1, ("HCC", "ICC"), (DONE,))
    named = replace(plain, entries=(replace(DONE, study="DOE^JANE"),), names=True)
    assert "study" not in json.loads(plain.to_json())["studies"][0]
    assert "study" not in rows(plain)[0]
    assert json.loads(named.to_json())["studies"][0]["study"] == "DOE^JANE"
    assert rows(named)[0]["study"] == "DOE^JANE"


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_no_text_is_a_formula_and_none_is_lost(text: str) -> None:
    """OWASP's list: a cell must not begin with = + - @, tab or carriage return."""
    (row,) = rows(Summary(1, ("HCC",), (replace(DONE, study=text),), names=True))
    cell = row["study"]
    assert not cell.lstrip().startswith(("=", "+", "-", "@"))
    assert not cell.startswith(("\t", "\r", "\n"))
    assert cell in (text, f"'{text}")
    assert cell == text or not text[0].isalnum()


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n=1", "＝1"])
def test_formulas_are_defused(name: str) -> None:
    summary = Summary(1, (name,), (replace(DONE, study=name),), names=True)
    (row,) = rows(summary)
    assert row["study"] == f"'{name}"
    assert f"probability_{name}" in row


def test_a_name_that_is_no_text_can_be_written(tmp_path: Path) -> None:
    """Names of folders are bytes; what is not UTF-8 comes as lone surrogates."""
    name = os.fsdecode(b"M\xfcller")
    summary = Summary(1, ("HCC",), (replace(DONE, study=name),), names=True)
    write_summary(summary, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["studies"][0]["study"] == name
    assert "M" in (tmp_path / "summary.csv").read_text("utf-8")


def test_the_files_are_complete_or_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_summary(Summary(2, ("HCC", "ICC"), (DONE,)), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"summary.json", "summary.csv"}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputNotWritable) as caught:
        write_summary(Summary(2, ("HCC", "ICC"), (DONE, FAILED)), tmp_path)
    assert caught.value.code == 30
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
