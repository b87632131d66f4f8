from __future__ import annotations

import io
import json
import logging
import re
import shutil
import struct
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import highdicom
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, ImplicitVRLittleEndian

from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import EnvironmentFault, InputMissing, Notice, OutputNotWritable
from fourphase.runtime.geometry import Region
from fourphase.runtime.pipeline import LoadedModel, PreparedStudy
from fourphase.runtime.preprocess import plan_sampling
from fourphase.runtime.result import NOTICE, StudyResult
from fourphase.runtime.sr import sr_bytes, structured_report, write_sr
from fourphase.runtime.sr_codes import class_codes, phase_code
from fourphase.runtime.sr_content import faces
from fourphase.runtime.sr_source import source_study
from tests.support.dicom import file_bytes, slice_dataset, stored_values, uid
from tests.support.results import BOX, SLICES, STEP_MM, run_tiny, tiny_loaded, write_study

Run = tuple[StudyResult, PreparedStudy]
PATIENT = {
    "StudyDate": "20200102",
    "StudyTime": "093000",
    "StudyID": "17",
    "AccessionNumber": "ACC-1",
    "StudyDescription": "CT liver",
    "PatientName": "Doe^Jane",
    "PatientID": "P-1",
    "PatientBirthDate": "19600102",
    "PatientSex": "F",
    "ReferringPhysicianName": "Roe^Richard",
    "PatientAge": "059Y",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return tiny_loaded(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def run(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_tiny(model, write_study(tmp_path_factory.mktemp("run") / "study", **PATIENT))


@pytest.fixture(scope="module")
def report(run: Run) -> Dataset:
    return structured_report(*run)


def items(dataset: Dataset) -> Iterator[Dataset]:
    """Every content item, depth first."""
    for item in dataset.get("ContentSequence", ()):
        yield item
        yield from items(item)


def named(dataset: Dataset, meaning: str) -> list[Dataset]:
    return [item for item in items(dataset) if item.ConceptNameCodeSequence[0].CodeMeaning == meaning]


def texts(dataset: Dataset) -> list[str]:
    return [item.TextValue for item in items(dataset) if item.ValueType == "TEXT"]


def code(item: Dataset) -> tuple[str, str]:
    value = item.ConceptCodeSequence[0]
    return value.CodeValue, value.CodingSchemeDesignator


def evidence(dataset: Dataset) -> dict[str, list[str]]:
    """SeriesInstanceUID -> SOPInstanceUIDs."""
    (study,) = dataset.CurrentRequestedProcedureEvidenceSequence
    return {
        series.SeriesInstanceUID: [one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence]
        for series in study.ReferencedSeriesSequence
    }


#: What dciodvfy warns of rightly but cannot be otherwise: our own coding scheme, and what the source does not know.
EXPECTED = (
    "Warning - Unrecognized defined term <99FOURPHASE> for value 1 of attribute <Coding Scheme Designator>",
    "Warning - Missing attribute or value that would be needed to build DICOMDIR - ",
)


def findings_of(path: Path) -> list[str]:
    """The errors and unexpected warnings of dciodvfy."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, timeout=60, check=False)
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    assert "Comprehensive3DSR" in lines
    return [line for line in lines if line != "Comprehensive3DSR" and not line.startswith(EXPECTED)]


def dumped(path: Path) -> str:
    if shutil.which("dsrdump") is None:
        pytest.skip("dsrdump is not installed (Debian package dcmtk)")
    done = subprocess.run(["dsrdump", "+Pl", "+U8", str(path)], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode("utf-8")


def validated(dataset: Dataset, folder: Path) -> Dataset:
    """The report as a file, read again with pydicom, after dciodvfy found nothing and dsrdump could read it."""
    path = folder / "sr.dcm"
    path.write_bytes(sr_bytes(dataset))
    assert findings_of(path) == []
    assert NOTICE in dumped(path)
    return dcmread(path)


# ---- an ordinary study


def test_validators_and_readers_accept_it(report: Dataset, tmp_path: Path) -> None:
    read = validated(report, tmp_path)
    assert read.SOPClassUID == read.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
    assert read.SOPInstanceUID == read.file_meta.MediaStorageSOPInstanceUID
    assert read.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    flags = (read.CompletionFlag, read.PreliminaryFlag, read.VerificationFlag)
    assert flags == ("COMPLETE", "PRELIMINARY", "UNVERIFIED")
    content: Any = highdicom.sr.srread(tmp_path / "sr.dcm").content
    (group,) = content.get_volumetric_roi_measurement_groups()
    assert group.reference_type.meaning == "Volume Surface"
    assert [site.value.value for site in group.finding_sites] == ["10200004"]
    (device,) = content.get_observer_contexts()
    assert device.observer_identifying_attributes.name == "fourphase"


def test_the_numbers_are_those_of_the_json(run: Run, report: Dataset) -> None:
    written = json.loads(run[0].to_json())
    numbers = [item.MeasuredValueSequence[0] for item in items(report) if item.ValueType == "NUM"]
    assert [one.MeasurementUnitsCodeSequence[0].CodeValue for one in numbers] == ["%", "%"]
    expected = [Decimal(repr(value)) for value in written["prediction"]["probabilities"].values()]
    assert [Decimal(str(one.NumericValue)) / 100 for one in numbers] == expected
    # FD holds the same number as DS, not one beside it.
    assert [one.FloatingPointValue for one in numbers] == [float(one.NumericValue) for one in numbers]
    said = " ".join(texts(report))
    for value in (written["case"], written["model"]["sha256"], written["preprocessing"]["hash"], "onnxruntime"):
        assert value in said
    names = [item.ConceptNameCodeSequence[0] for item in items(report) if item.ValueType == "NUM"]
    assert [(name.CodeValue, name.CodingSchemeDesignator) for name in names] == [
        ("P_HCC", "99FOURPHASE"),
        ("P_ICC", "99FOURPHASE"),
    ]


@pytest.mark.parametrize(
    ("logits", "morphology", "disorder"),
    [((2.0, -1.0), "25370001", "109841003"), ((-1.0, 2.0), "70179006", "109842005")],
)
def test_the_finding_is_the_morphology_and_the_prediction_the_disorder(
    run: Run, logits: tuple[float, float], morphology: str, disorder: str
) -> None:
    made = structured_report(replace(run[0], logits=np.array(logits, np.float32)), run[1])
    assert [code(item) for item in named(made, "Finding")] == [(morphology, "SCT")]
    assert [code(item) for item in named(made, f"Predicted class ({NOTICE})")] == [(disorder, "SCT")]
    assert [code(item) for item in named(made, "Finding category")] == [("49755003", "SCT")]


def test_the_region_is_the_box_of_the_json(run: Run, report: Dataset) -> None:
    surfaces = [np.array(item.GraphicData).reshape(-1, 3) for item in named(report, "Volume Surface")]
    frames = {item.ReferencedFrameOfReferenceUID for item in named(report, "Volume Surface")}
    corners = np.unique(np.concatenate(surfaces).astype(np.float32), axis=0)
    assert frames == {uid("frame")}
    assert len(surfaces) == 6
    assert len(corners) == 8
    box = json.loads(run[0].to_json())["box"]
    np.testing.assert_array_equal(corners.min(axis=0), np.float32(box["min"]))
    np.testing.assert_array_equal(corners.max(axis=0), np.float32(box["max"]))


def test_the_images_are_those_that_the_model_saw(run: Run, report: Dataset) -> None:
    result, prepared = run
    low, high = BOX["min"][2] - 10, BOX["max"][2] + 10
    for phase, match in prepared.phases.items():
        files = [dcmread(path, stop_before_pixels=True) for path in match.series.slices[0].path.parent.iterdir()]
        around = {one.SOPInstanceUID for one in files if low - STEP_MM < one.ImagePositionPatient[2] < high + STEP_MM}
        listed = evidence(report)[result.phases[phase].series_instance_uid]
        assert len(listed) == len(set(listed)) < SLICES
        assert set(listed) == around
        region = prepared.box.by_phase[phase].grown(10)
        window = plan_sampling(match.series.geometry, region, PreprocessingConfig()).window.slices
        assert {header.sop_instance_uid for header in match.series.slices[window]} <= set(listed)
    referenced = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in items(report) if item.ValueType == "IMAGE"
    }
    assert referenced == {one for images in evidence(report).values() for one in images}


def test_it_belongs_to_the_study_and_the_patient(report: Dataset) -> None:
    for keyword, value in PATIENT.items():
        assert str(report[keyword].value) == value
    assert report.StudyInstanceUID == uid("study")
    assert report.SeriesInstanceUID not in evidence(report)
    assert (report.ContentDate, report.ContentTime) == ("20200102", "093000")
    # Nothing that describes the scanner's series: this is another one.
    assert "ConvolutionKernel" not in report
    assert report.Manufacturer == "fourphase"


def test_a_person_can_read_it(run: Run, report: Dataset, tmp_path: Path) -> None:
    (tmp_path / "sr.dcm").write_bytes(sr_bytes(replace_warnings(run, Notice("tilt", "series 3 is tilted"))))
    said = dumped(tmp_path / "sr.dcm")
    percent = ", ".join(f"{name} {value:.1%}" for name, value in run[0].probabilities.items())
    assert f'"{run[0].label} ({percent}): model output, not a diagnosis"' in said
    assert "8.2 x 12.1 x 9.5 mm; x -4.2 to 4.0, y -6.0 to 6.1, z 31.5 to 41.0 mm" in said
    assert '"Warning")="series 3 is tilted"' in said
    assert "Arterial phase: series 3, 14 of 30 slices used; taken because of description:" in said
    assert said.index("Comment") < said.index("SCOORD3D") < said.index("Source Image for Segmentation")


def replace_warnings(run: Run, *notices: Notice) -> Dataset:
    return structured_report(replace(run[0], warnings=notices), run[1])


# ---- the same each time


def test_the_same_result_gives_the_same_bytes(run: Run, report: Dataset, tmp_path: Path) -> None:
    result, prepared = run
    write_sr(replace(result, timings_ms={"total": 1e9}), replace(prepared, timings_ms={}), tmp_path / "a" / "sr.dcm")
    assert (tmp_path / "a" / "sr.dcm").read_bytes() == sr_bytes(report)


def test_nothing_comes_from_the_clock(report: Dataset) -> None:
    moments = [element for element in report.iterall() if element.VR in ("DA", "DT", "TM")]
    assert {element.keyword for element in moments} == {
        *("StudyDate", "StudyTime", "ContentDate", "ContentTime", "PatientBirthDate"),
    }


def test_another_result_is_another_instance_of_the_same_lesion(run: Run, report: Dataset) -> None:
    result, prepared = run
    other = structured_report(replace(result, model={**result.model, "precision": "fp16"}), prepared)
    assert other.SOPInstanceUID != report.SOPInstanceUID
    assert other.SeriesInstanceUID == report.SeriesInstanceUID
    later = structured_report(replace(result, case="0" * 16, model={**result.model, "sha256": "0" * 64}), prepared)
    assert later.SeriesInstanceUID != report.SeriesInstanceUID
    (tracked,), (again,) = (named(one, "Tracking Unique Identifier") for one in (report, later))
    assert tracked.UID == again.UID
    for made in (report, other, later):
        assert re.fullmatch(r"2\.25\.[1-9]\d{1,38}", made.SOPInstanceUID)


# ---- whose study: character sets, missing and broken attributes


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 192", "Ñandú^Zoë=王^小東"),
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 144", "Иванов^Иван"),
    ],
)
def test_a_name_in_any_character_set_is_utf_8_here(
    model: LoadedModel, tmp_path: Path, character_set: Any, name: str
) -> None:
    study = write_study(tmp_path / "study", SpecificCharacterSet=character_set, PatientName=name)
    read = validated(structured_report(*run_tiny(model, study)), tmp_path)
    assert read.SpecificCharacterSet == "ISO_IR 192"
    assert str(read.PatientName) == name


@pytest.mark.parametrize(
    ("declared", "name"),
    [
        (b"", "Müller^Jörg".encode("latin-1")),
        (b"ISO_IR 999", "Müller^Jörg".encode("latin-1")),
        (b"ISO_IR 100", "Müller^Jörg".encode()),
        (b"\\\\", "Müller^Jörg".encode("latin-1")),
        (b"ISO 2022 IR 6\\ISO 2022 IR 87", "Müller^Jörg".encode("latin-1")),
    ],
)
def test_a_missing_or_wrong_character_set_is_no_obstacle(
    model: LoadedModel, tmp_path: Path, declared: bytes, name: bytes
) -> None:
    study = write_study(tmp_path / "study")
    rewritten(study, SpecificCharacterSet=declared, PatientName=name)
    read = validated(structured_report(*run_tiny(model, study)), tmp_path)
    assert str(read.PatientName) == "Müller^Jörg"


def rewritten(study: Path, **values: bytes) -> None:
    """Puts raw bytes, however invalid, into the file that patient and study are taken from."""
    path = study / "NC" / "IM0000"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = file_bytes(Dataset(dcmread(path, force=True)), ImplicitVRLittleEndian, preamble=False)
    elements = dict(raw_elements(plain))
    for keyword, value in values.items():
        tag = tag_for_keyword(keyword)
        assert tag is not None
        elements[tag] = value + b" " * (len(value) % 2)
    parts = [struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(raw)) + raw for tag, raw in sorted(elements.items())]
    path.write_bytes(b"".join(parts))


def raw_elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements of a data set without sequences in Implicit VR Little Endian."""
    position = 0
    while position < len(data):
        group, element, length = struct.unpack_from("<HHI", data, position)
        yield group << 16 | element, data[position + 8 : position + 8 + length]
        position += 8 + length


def test_what_is_absent_is_empty_and_the_report_valid(model: LoadedModel, tmp_path: Path) -> None:
    absent = dict.fromkeys(("PatientName", "PatientID", "AcquisitionDate", "AcquisitionTime", "SpecificCharacterSet"))
    made = structured_report(*run_tiny(model, write_study(tmp_path / "study", **absent)))
    read = validated(made, tmp_path)
    for keyword in (*PATIENT, "AccessionNumber"):
        if keyword not in ("StudyDescription", "PatientAge"):
            assert not read[keyword].value, keyword
    assert (read.ContentDate, read.ContentTime) == ("19000101", "000000")
    assert "the study has no date; 1900-01-01 stands for an unknown one" in texts(read)


def test_without_study_date_the_acquisition_dates_it(run: Run, model: LoadedModel, tmp_path: Path) -> None:
    made = structured_report(*run_tiny(model, write_study(tmp_path / "study")))
    assert (made.ContentDate, made.ContentTime) == ("20200101", "101700")
    assert not [text for text in texts(made) if "1900" in text]


@pytest.mark.parametrize("text", ["x" * 300, "腹部造影CT検査" * 40, "a\\b" * 40, "line\r\nline\x07" * 30])
def test_a_long_or_broken_description_is_cut_to_what_dicom_allows(
    model: LoadedModel, tmp_path: Path, text: str
) -> None:
    study = write_study(tmp_path / "study", SpecificCharacterSet="ISO_IR 192")
    rewritten(study, StudyDescription=text.encode())
    read = validated(structured_report(*run_tiny(model, study)), tmp_path)
    shown = text.replace("\\", "/").replace("\r\n", " ").replace("\x07", "")
    assert read.StudyDescription == shown.encode()[:64].decode("utf-8", "ignore")


def test_values_that_dicom_forbids_are_left_out(model: LoadedModel, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", **PATIENT)
    broken = {
        "PatientSex": b"female",
        "PatientBirthDate": b"1960-13-45",
        "StudyTime": b"25:99",
        "PatientAge": b"59",
        "PatientWeight": b"heavy",
        "PatientIdentityRemoved": b"YES",
    }
    rewritten(study, **broken)
    read = validated(structured_report(*run_tiny(model, study)), tmp_path)
    assert (read.PatientSex, read.PatientBirthDate, read.StudyTime) == ("", "", "")
    assert "PatientAge" not in read
    assert "PatientWeight" not in read
    # PS3.3 C.7.1.1: required with PatientIdentityRemoved YES.
    assert (read.PatientIdentityRemoved, read.DeidentificationMethod) == ("YES", "as in the source images")
    assert read.PatientID == PATIENT["PatientID"]


def test_old_dates_and_times_are_written_the_new_way(model: LoadedModel, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    rewritten(study, StudyDate=b"2020.03.04", StudyTime=b"09:30:15")
    read = validated(structured_report(*run_tiny(model, study)), tmp_path)
    assert (read.StudyDate, read.StudyTime) == ("20200304", "093015")


def test_a_long_accession_number_is_never_shortened(model: LoadedModel, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    rewritten(study, AccessionNumber=b"A" * 24)
    assert structured_report(*run_tiny(model, study)).AccessionNumber == "A" * 24
    rewritten(study, AccessionNumber=b"A" * 2000)
    with pytest.raises(InputMissing, match="2000 characters"):
        structured_report(*run_tiny(model, study))


# ---- what cannot be referred to


@pytest.mark.parametrize(
    ("missing", "cause"),
    [
        ("StudyInstanceUID", "no StudyInstanceUID"),
        ("SeriesInstanceUID", "no SeriesInstanceUID"),
        ("SOPInstanceUID", "no SOPInstanceUID"),
    ],
)
def test_empty_uids_are_told(model: LoadedModel, tmp_path: Path, missing: str, cause: str) -> None:
    study = write_study(tmp_path / "study", **{missing: ""})
    with pytest.raises(InputMissing, match=cause) as caught:
        structured_report(*run_tiny(model, study))
    assert (caught.value.code, caught.value.key) == (10, "sr_source_incomplete")


def test_a_shared_sop_instance_uid_is_told(model: LoadedModel, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", SOPInstanceUID="1.2.3")
    with pytest.raises(InputMissing, match="share one SOPInstanceUID"):
        structured_report(*run_tiny(model, study))


def test_a_study_that_is_gone_or_replaced_is_told(model: LoadedModel, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    run = run_tiny(model, study)
    first = run[1].phases["NC"].series.slices[0]
    first.path.write_bytes(file_bytes(slice_dataset(stored_values((1, 16, 16))[0], (0, 0, 0), SOPInstanceUID="1.2")))
    with pytest.raises(InputMissing, match="replaced"):
        structured_report(*run)
    shutil.rmtree(study)
    with pytest.raises(InputMissing, match="no longer be read") as caught:
        structured_report(*run)
    assert "MARKER" not in caught.value.message + caught.value.hint + str(caught.value.__cause__)


# ---- regions


def test_a_box_per_phase_is_a_region_per_phase(model: LoadedModel, tmp_path: Path) -> None:
    boxes = {
        phase: {"min": [-4, -6, 30 + n], "max": [4, 6, 40 + n]} for n, phase in enumerate(("NC", "ART", "PV", "DL"))
    }
    result, prepared = run_tiny(model, write_study(tmp_path / "study"), {**boxes["NC"], "phases": boxes})
    read = validated(structured_report(result, prepared), tmp_path)
    groups = named(read, "Measurement Group")
    assert [group.ContentTemplateSequence[0].TemplateIdentifier for group in groups] == ["1501", *["1411"] * 4]
    assert len(named(groups[0], "Volume Surface")) == 0
    assert len([item for item in items(read) if item.ValueType == "NUM"]) == 2
    for group, (phase, box) in zip(groups[1:], boxes.items(), strict=True):
        points = np.concatenate([np.array(one.GraphicData).reshape(-1, 3) for one in named(group, "Volume Surface")])
        np.testing.assert_array_equal([points.min(axis=0), points.max(axis=0)], [box["min"], box["max"]])
        images = {
            one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for one in items(group) if one.ValueType == "IMAGE"
        }
        assert images == set(evidence(read)[uid("series", phase)])
    assert len({item.UID for item in named(read, "Tracking Unique Identifier")}) == 1
    assert [text for text in texts(read) if text.startswith("Delayed phase: 8.0 x 12.0 x 10.0 mm")]


def test_without_frame_of_reference_the_box_is_text(model: LoadedModel, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", FrameOfReferenceUID=None)
    read = validated(structured_report(*run_tiny(model, study)), tmp_path)
    assert not named(read, "Volume Surface")
    assert not named(read, "Frame of Reference UID")
    assert [text for text in texts(read) if text.startswith("8.2 x 12.1 x 9.5 mm")]
    assert len(evidence(read)) == 4
    content: Any = highdicom.sr.srread(tmp_path / "sr.dcm").content
    (group,) = content.get_image_measurement_groups()
    assert len(group.source_images) == sum(map(len, evidence(read).values()))


coordinates = st.floats(-500, 500, width=32)


@given(st.tuples(coordinates, coordinates, coordinates), st.tuples(*[st.floats(2, 300, width=32)] * 3))
def test_the_faces_enclose_the_box(low: tuple[float, float, float], size: tuple[float, float, float]) -> None:
    region = Region.of(np.array(low), np.array(low) + np.array(size))
    edges: Counter[frozenset[tuple[float, ...]]] = Counter()
    for face in faces(region):
        assert np.array_equal(face[0], face[4])
        assert sum(len(np.unique(face[:, axis])) == 1 for axis in range(3)) == 1
        points = [tuple(point) for point in face]
        edges.update(frozenset(pair) for pair in pairwise(points))
    # A closed surface: every edge of the box is shared by two faces, and no other edge exists.
    assert len(edges) == 12
    assert set(edges.values()) == {2}
    assert all(sum(a != b for a, b in zip(*edge, strict=True)) == 1 for edge in edges)
    corners = {point for edge in edges for point in edge}
    assert corners == {tuple(corner) for corner in region.corners()}


def test_frames_of_a_multi_frame_image_are_one_reference(run: Run, tmp_path: Path) -> None:
    """As headers of enhanced CT are: every frame is a slice of the same file."""
    result, prepared = run
    phases = {}
    for phase, match in prepared.phases.items():
        dataset = slice_dataset(
            stored_values((1, 16, 16))[0], (0, 0, 0), SOPClassUID=EnhancedCTImageStorage, SOPInstanceUID=uid(phase)
        )
        path = tmp_path / phase
        path.write_bytes(file_bytes(dataset))
        slices: Any = tuple(
            SimpleNamespace(
                path=path,
                sop_instance_uid=uid(phase),
                frame=SLICES - 1 - index,
                frames=SLICES,
                sop_class_uid=str(EnhancedCTImageStorage),
            )
            for index in range(SLICES)
        )
        phases[phase] = replace(match, series=replace(match.series, slices=slices))
    read = validated(structured_report(result, replace(prepared, phases=phases)), tmp_path)
    assert evidence(read) == {uid("series", phase): [uid(phase)] for phase in phases}
    references = [item.ReferencedSOPSequence[0] for item in named(read, "Source")]
    assert {one.ReferencedSOPClassUID for one in references} == {EnhancedCTImageStorage}
    # z from 21.5 to 51 mm are slices 8 to 21 of the series, hence frames 30 - 21 to 30 - 8 of this file.
    low, high = int((BOX["min"][2] - 10) / STEP_MM), int(np.ceil((BOX["max"][2] + 10) / STEP_MM))
    assert [list(one.ReferencedFrameNumber) for one in references] == [list(range(SLICES - high, SLICES - low + 1))] * 4


# ---- other models


def test_an_unknown_class_never_gets_a_snomed_code(run: Run, tmp_path: Path) -> None:
    other = replace(
        run[0],
        classes=("FNH", "Hämangiom des linken Leberlappens, sehr groß " * 3),
        logits=np.array([0, 1], np.float32),
    )
    read = validated(structured_report(other, run[1]), tmp_path)
    found = [code(item) for item in (*named(read, "Finding"), *named(read, f"Predicted class ({NOTICE})"))]
    assert {scheme for _, scheme in found} == {"99FOURPHASE"}
    assert not named(read, "Finding category")
    scheme = read.CodingSchemeIdentificationSequence[0]
    assert scheme.CodingSchemeDesignator == "99FOURPHASE"


@given(st.text(max_size=80), st.text(max_size=80))
def test_private_codes_fit_and_differ(name: str, other: str) -> None:
    for made in (class_codes(name).finding, class_codes(name).probability, phase_code(name)):
        if name not in ("HCC", "ICC"):
            assert made.scheme_designator == "99FOURPHASE"
        assert 0 < len(made.value) <= 16
        assert 0 < len(made.meaning) <= 64
        assert made.meaning.encode("utf-8")
    if name != other:
        assert class_codes(name).finding.value != class_codes(other).finding.value
        assert class_codes(name).probability.value != class_codes(other).probability.value


@pytest.mark.parametrize("name", ["hcc", "HCC ", "icc", "HCC/ICC", "CHOLANGIOCARCINOMA"])
def test_only_the_contracts_names_are_known(name: str) -> None:
    assert class_codes(name).prediction.scheme_designator == "99FOURPHASE"


# ---- hostile headers, the environment, the disk


def test_no_header_makes_anything_but_a_report_or_an_error(run: Run, report: Dataset, tmp_path: Path) -> None:
    prepared = run[1]
    series = prepared.phases["NC"].series
    (tmp_path / "NC").mkdir()
    path = tmp_path / "NC" / "IM0000"
    original = series.slices[0].path.read_bytes()
    first = replace(series.slices[0], path=path)
    match = replace(prepared.phases["NC"], series=replace(series, slices=(first, *series.slices[1:])))
    hostile = replace(prepared, phases={**prepared.phases, "NC": match})
    keywords = st.sampled_from([*PATIENT, "SpecificCharacterSet", "OtherPatientNames", "PatientWeight"])

    # The content is the same each time, and slow to write.
    bare = Dataset({tag: element for tag, element in report.items() if element.VR != "SQ"})
    bare.file_meta = report.file_meta

    @settings(deadline=None, max_examples=60)
    @given(st.dictionaries(keywords, st.binary(max_size=80)))
    def check(values: dict[str, bytes]) -> None:
        path.write_bytes(original)
        rewritten(tmp_path, **values)
        try:
            bare.update(source_study(hostile).attributes)
        except InputMissing:  # what is written so is no sound file, and would not have been a slice
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an identifier that is too long is copied, and pydicom says so
            read = dcmread(io.BytesIO(sr_bytes(bare)))
            assert str(read.PatientName) == str(bare.PatientName)
            for element in read:
                if element.VR in ("DA", "TM"):
                    assert re.fullmatch(r"(\d{8}|\d{2,6}(\.\d+)?)?", str(element.value))
        assert read.PatientSex in ("", "M", "F", "O")

    check()


def test_nothing_of_the_patient_is_logged(
    model: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    study = write_study(tmp_path / "study")
    marked = dict.fromkeys(("PatientName", "AccessionNumber", "ReferringPhysicianName"), b"MARKER/=^^^^^^=====")
    rewritten(study, **marked, PatientSex=b"MARKER", PatientBirthDate=b"MARKER")
    report = structured_report(*run_tiny(model, study))
    sr_bytes(report)
    assert "MARKER" in str(report.PatientName)
    assert "MARKER" not in caplog.text
    assert not [warning for warning in recwarn if "MARKER" in str(warning.message)]


def test_without_highdicom_the_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(EnvironmentFault, match="highdicom is not installed") as caught:
        structured_report(*run)
    assert (caught.value.code, caught.value.key) == (24, "extra_missing")
    assert "fourphase[sr]" in caught.value.hint


def test_a_file_that_cannot_be_written_is_code_30(run: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputNotWritable):
        write_sr(*run, tmp_path / "taken" / "sr.dcm")
