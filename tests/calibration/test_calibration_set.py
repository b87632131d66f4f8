"""A set written and read back; everything that can be wrong with one, each with its code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourphase.calibration.calibrate import write_calibration_set
from fourphase.calibration.calibration_set import MANIFEST, CalibrationSet, check_overlap, load_calibration_set
from fourphase.runtime.errors import (
    FourphaseError,
    InputMissing,
    IntegrityError,
    ModelIncompatible,
    OutputNotWritable,
    PixelDataError,
    UsageError,
)
from tests.support.quantizable import PHASES, PREPROCESSING, SHAPE, prepared, studies, write_set


@pytest.fixture
def data(tmp_path: Path) -> CalibrationSet:
    return write_set(tmp_path / "set", studies(3))


def load(data: CalibrationSet) -> CalibrationSet:
    return load_calibration_set(data.path, PREPROCESSING, PHASES)


def test_studies_come_back_rounded_to_float16(tmp_path: Path) -> None:
    study = np.random.default_rng(0).uniform(-2, 2.6, SHAPE).astype(np.float32)
    (back,) = write_set(tmp_path / "set", [study]).studies()
    assert back.shape == (1, *SHAPE)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back[0], study.astype(np.float16).astype(np.float32))


def test_neither_order_nor_place_changes_the_set(tmp_path: Path) -> None:
    first = write_set(tmp_path / "a", studies(3))
    second = write_set(tmp_path / "b", studies(3)[::-1])
    assert first.hash == second.hash
    for a, b in zip(first.studies(), second.studies(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert write_set(tmp_path / "c", studies(2)).hash != first.hash


def test_the_hash_depends_on_phases_and_preprocessing(data: CalibrationSet) -> None:
    assert replace(data, phases=PHASES[::-1]).hash != data.hash
    assert replace(data, preprocessing=replace(PREPROCESSING, margin_mm=9)).hash != data.hash


def test_the_manifest_says_what_is_in_it(data: CalibrationSet) -> None:
    manifest = json.loads((data.path / MANIFEST).read_text())
    assert manifest["schema"] == "fourphase.calibration-set/1"
    assert manifest["preprocessing_hash"] == PREPROCESSING.hash
    assert {"fourphase", "numpy", "pydicom"} == set(manifest["tools"])
    case = manifest["cases"][0]
    assert case["slices"] == dict.fromkeys(PHASES, 58)
    assert len(case["case"]) == 16
    assert "1.2." not in (data.path / MANIFEST).read_text()


def test_labels_travel_with_their_studies_and_change_no_scale(tmp_path: Path, data: CalibrationSet) -> None:
    arrays = studies(3)
    given = {array.tobytes(): label for array, label in zip(arrays, ("HCC", "ICC", "HCC"), strict=True)}
    labelled = write_calibration_set(
        tmp_path / "labelled", prepared(arrays), PREPROCESSING, PHASES, labels=list(given.values())
    )
    assert labelled.labels == tuple(given[study.tobytes()] for study in labelled.studies())
    assert data.labels is None
    assert labelled.hash == data.hash


def test_labels_are_all_or_none(tmp_path: Path) -> None:
    labels = ["HCC", None, "ICC"]
    made = write_calibration_set(tmp_path / "set", prepared(studies(3)), PREPROCESSING, PHASES, labels=labels)
    assert made.labels is None
    assert sorted(case.label or "" for case in made.cases) == ["", "HCC", "ICC"]


def test_a_label_too_many_or_too_few_is_a_bug_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        write_calibration_set(tmp_path / "set", prepared(studies(2)), PREPROCESSING, PHASES, labels=["HCC"])
    assert not (tmp_path / "set").exists()


def test_a_set_without_labels_in_its_manifest_is_read(data: CalibrationSet) -> None:
    path = data.path / MANIFEST
    manifest = json.loads(path.read_text())
    for case in manifest["cases"]:
        del case["label"]
    path.write_text(json.dumps(manifest))
    assert load(data).labels is None


def test_hu_histograms_are_those_of_the_sampled_region(data: CalibrationSet) -> None:
    counts = data.hu_histograms["phases"]["ART"]
    low, high = PREPROCESSING.windows_hu[0]
    share = np.stack(studies(3))[:, 1, :, 0] * PREPROCESSING.std[0] + PREPROCESSING.mean[0]
    hu = low + (high - low) * share.clip(0, 1)
    expected = np.histogram(hu, bins=80, range=(low, high))[0]
    assert sum(counts) == hu.size
    assert np.abs(np.array(counts) - expected).sum() <= 2  # values on an edge
    assert (data.hu_histograms["low"], data.hu_histograms["high"]) == (low, high)


def test_equal_content_is_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="studies 1 and 3 have the same content") as caught:
        write_set(tmp_path / "set", [*studies(2), studies(1)[0]])
    assert caught.value.key == "calibration_duplicate"
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, 65520.0])  # the last one rounds to infinity in float16
def test_a_value_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    broken = studies(2)
    broken[1][0, 0, 0, 0, 0] = value
    with pytest.raises(PixelDataError, match="study 2 holds values that are not finite"):
        write_set(tmp_path / "set", broken)
    assert not (tmp_path / "set").exists()


def test_no_study_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no study to calibrate on"):
        write_set(tmp_path / "set", [])
    assert not (tmp_path / "set").exists()


def test_a_failed_write_leaves_the_old_set(data: CalibrationSet) -> None:
    with pytest.raises(UsageError):
        write_set(data.path, [*studies(1), *studies(1)])
    assert load(data).hash == data.hash
    assert write_set(data.path, studies(1)).hash == load(data).hash


def test_a_directory_that_is_no_set_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    with pytest.raises(OutputNotWritable, match="not a calibration set"):
        write_set(tmp_path, studies(1))
    assert (tmp_path / "precious").exists()


def edited(**changes: Any) -> Callable[[CalibrationSet], None]:
    def edit(data: CalibrationSet) -> None:
        path = data.path / MANIFEST
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def first_file(data: CalibrationSet) -> Path:
    return data.path / data.cases[0].file


def flip(data: CalibrationSet) -> None:
    content = bytearray(first_file(data).read_bytes())
    content[-1] ^= 1
    first_file(data).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "error", "text"),
    [
        (flip, IntegrityError, "sha256"),
        (lambda data: first_file(data).unlink(), IntegrityError, "is missing"),
        (lambda data: first_file(data).write_bytes(b"x"), IntegrityError, "size"),
        (lambda data: (data.path / MANIFEST).write_text("{"), IntegrityError, "not valid JSON"),
        (lambda data: (data.path / MANIFEST).unlink(), InputMissing, "not a calibration set"),
        (edited(schema="fourphase.calibration-set/9"), ModelIncompatible, "schema"),
        (edited(cases=[]), InputMissing, "holds no studies"),
        (edited(cases=[{"file": "x"}]), IntegrityError, "invalid"),
        (edited(cases=[{"case": "", "file": "../x", "sha256": "", "bytes": 1, "slices": {}}]), IntegrityError, "x is"),
        (
            edited(cases=[{"case": "", "file": "x", "sha256": "", "bytes": 1, "slices": {}, "label": 1}]),
            IntegrityError,
            "invalid",
        ),
        (edited(phases=["ART", "NC", "PV", "DL"]), ModelIncompatible, "phases are ART, NC"),
        (edited(preprocessing={**PREPROCESSING.to_dict(), "margin_mm": 9}), ModelIncompatible, "preprocessing is"),
    ],
)
def test_a_damaged_or_foreign_set_is_refused(
    data: CalibrationSet, damage: Callable[[CalibrationSet], Any], error: type[FourphaseError], text: str
) -> None:
    damage(data)
    with pytest.raises(error, match=text):
        list(load(data).studies())


def test_a_stored_nan_is_refused_even_with_a_fitting_hash(data: CalibrationSet) -> None:
    array = np.load(first_file(data))
    array[0, 0, 0, 0, 0] = np.nan
    np.save(first_file(data), array)
    digest = hashlib.sha256(first_file(data).read_bytes()).hexdigest()
    cases = (replace(data.cases[0], sha256=digest), *data.cases[1:])
    with pytest.raises(PixelDataError, match="study 1 of 3"):
        list(replace(data, cases=cases).studies())


def test_an_array_of_another_type_is_refused_even_with_a_fitting_hash(data: CalibrationSet) -> None:
    np.save(first_file(data), np.load(first_file(data)).astype(np.float32))
    digest = hashlib.sha256(first_file(data).read_bytes()).hexdigest()
    with pytest.raises(IntegrityError, match="float32"):
        replace(data, cases=(replace(data.cases[0], sha256=digest),)).study(0)


def test_overlap_is_found_by_study_and_by_content(tmp_path: Path, data: CalibrationSet) -> None:
    other = write_set(tmp_path / "other", studies(3, seed=1))
    with pytest.raises(UsageError, match="3 of 3 calibration studies") as caught:
        check_overlap(data, other)  # other content, the same UIDs 1.2.0 to 1.2.2
    assert caught.value.key == "calibration_overlap"
    with pytest.raises(UsageError, match="1 of 3"):
        check_overlap(data, [data.cases[1].sha256, "f" * 64])
    check_overlap(data, ["f" * 64])
    with pytest.raises(UsageError, match=r"the other set: b, c$"):
        check_overlap(data, [case.case for case in data.cases[:2]], ["c", "b", "a"])


def test_a_set_of_another_preprocessing_can_still_be_compared(tmp_path: Path, data: CalibrationSet) -> None:
    with pytest.raises(ModelIncompatible):
        load_calibration_set(data.path, replace(PREPROCESSING, margin_mm=9))
    assert load_calibration_set(data.path, None).hash == data.hash


def test_sets_salted_differently_cannot_be_compared(
    tmp_path: Path, data: CalibrationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOURPHASE_SALT", "secret")
    salted = write_set(tmp_path / "salted", studies(1, seed=9))
    assert salted.salted
    assert not data.salted
    assert salted.cases[0].case not in {case.case for case in data.cases}
    monkeypatch.setenv("FOURPHASE_SALT", "another secret")
    salted_otherwise = write_set(tmp_path / "otherwise", studies(1, seed=8))
    for one, other in ((data, salted), (salted, data), (salted, salted_otherwise)):
        with pytest.raises(UsageError, match="FOURPHASE_SALT"):
            check_overlap(one, other)
