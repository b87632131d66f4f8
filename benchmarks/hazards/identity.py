"""Hazards of identity: copies, several phases, patients or reconstructions in one series, UIDs that say nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from fourphase.benchmarks.hazards.hazard import MIDDLE, Case, Hazard, change, change_all, other_uid
from fourphase.benchmarks.hazards.study import HURT

__all__ = ["IDENTITY"]

STUDY, BOX = "tests/runtime/test_study.py::", "tests/runtime/test_box.py::"
PHASES_TEST = "tests/runtime/test_phases.py::"


def _duplicate(case: Case) -> None:
    shutil.copy(case.path(MIDDLE), case.series / "COPY")


def _second_phase(case: Case, *, told_apart: bool) -> None:
    """The arterial slices come in the portal venous series, too, or only there."""
    first = dcmread(case.path(0))
    keep = [] if told_apart else ["AcquisitionNumber", "AcquisitionTime"]
    for source in sorted((case.root / "ART").iterdir()):
        target = case.series / f"A{source.name}"
        shutil.copy(source, target)

        def edit(dataset: Dataset) -> None:
            for keyword in ["SeriesInstanceUID", "SeriesNumber", "SeriesDescription", *keep]:
                setattr(dataset, keyword, first[keyword].value)

        change(target, edit)
    if told_apart:
        shutil.rmtree(case.root / "ART")


def _two_phases(case: Case) -> None:
    _second_phase(case, told_apart=True)


def _two_phases_alike(case: Case) -> None:
    _second_phase(case, told_apart=False)


def _no_frame(case: Case) -> None:
    change_all(case.all_paths(), lambda dataset: delattr(dataset, "FrameOfReferenceUID"))


def _empty_uids(case: Case) -> None:
    def edit(dataset: Dataset) -> None:
        dataset.StudyInstanceUID = dataset.SeriesInstanceUID = dataset.FrameOfReferenceUID = ""

    change_all(case.all_paths(), edit)


def _second(case: Case, keyword: str, value: str) -> None:
    """Every second slice of the series is, and says it is, of somebody or something else: a mirror image."""

    def edit(dataset: Dataset) -> None:
        setattr(dataset, keyword, value)
        dataset.PixelData = np.ascontiguousarray(dataset.pixel_array[:, ::-1]).tobytes()

    change_all(case.paths()[::2], edit)


def _two_patients(case: Case) -> None:
    _second(case, "PatientID", "ANOTHER")


def _two_studies(case: Case) -> None:
    _second(case, "StudyInstanceUID", "1.2.826.0.1.3680043.10.999")


def _reconstructions(case: Case) -> None:
    """The same acquisition with a lung kernel, in the same folder."""
    folder: Path = case.series
    paths = case.sound.write_phase(folder / "lung", HURT, case.sound.grid)
    for path in paths:

        def edit(dataset: Dataset) -> None:
            dataset.SeriesInstanceUID = other_uid("lung")
            dataset.SOPInstanceUID = other_uid("lung", str(dataset.SOPInstanceUID))
            dataset.SeriesNumber = 77
            dataset.ConvolutionKernel = "B70f"

        change(path, edit)
        shutil.move(path, folder / f"L{path.name}")
    (folder / "lung").rmdir()


IDENTITY = (
    Hazard(
        "exact_duplicate",
        "one file twice",
        _duplicate,
        "read: duplicate_slices",
        STUDY + "test_exact_copies_are_dropped_with_a_notice",
    ),
    Hazard(
        "two_phases_one_series",
        "two phases under one SeriesInstanceUID, with their own times",
        _two_phases,
        "refused: 13 evidence_contradicts",
        STUDY + "test_two_acquisitions_in_one_series_are_separated",
    ),
    Hazard(
        "two_phases_alike",
        "same positions, other pixels, nothing tells them apart",
        _two_phases_alike,
        "refused: 14 slices_overlap",
        STUDY + "test_overlap_that_nothing_tells_apart_is_kept_as_problem",
    ),
    Hazard(
        "no_frame_of_reference",
        "no FrameOfReferenceUID",
        _no_frame,
        "read: frame_of_reference_missing",
        BOX + "test_no_frame_needs_agreeing_geometry",
    ),
    Hazard(
        "empty_uids",
        "study, series and frame UIDs emptied by an anonymiser",
        _empty_uids,
        "read: frame_of_reference_missing",
        STUDY + "test_empty_uids_fall_back_to_folder_and_grid",
    ),
    Hazard(
        "two_patients",
        "slices of two patients in one series",
        _two_patients,
        "refused: 17 mixed_patients",
        STUDY + "test_two_patients_or_studies_are_17",
    ),
    Hazard(
        "two_studies",
        "slices of two studies in one series",
        _two_studies,
        "refused: 17 mixed_studies",
        STUDY + "test_two_patients_or_studies_are_17",
    ),
    Hazard(
        "reconstructions",
        "a phase in two reconstructions, soft and lung kernel",
        _reconstructions,
        "read: reconstruction_chosen",
        PHASES_TEST + "test_preferred_reconstruction",
    ),
)
