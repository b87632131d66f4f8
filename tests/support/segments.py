"""Lesions as DICOM objects for tests: segmentations by highdicom, structure sets by pydicom.

>>> paths = write_series(tmp_path / "study", stored_values((8, 16, 16)), **FOR_HIGHDICOM)
>>> path = write_seg(tmp_path / "lesion.dcm", paths, mask)
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, RTStructureSetStorage

from tests.support.dicom import uid

__all__ = ["FOR_HIGHDICOM", "contour", "rewritten", "write_rtstruct", "write_seg"]

highdicom: Any = importlib.import_module("highdicom")  # its annotations are partial

#: What highdicom wants to find in the images, beside what `slice_dataset` writes.
FOR_HIGHDICOM: dict[str, Any] = {
    "AccessionNumber": "",
    "PatientBirthDate": "",
    "PatientSex": "",
    "ReferringPhysicianName": "",
    "StudyDate": "20200101",
    "StudyID": "",
    "StudyTime": "101500",
    "Manufacturer": "",
}


def write_seg(
    path: Path,
    images: Sequence[Path],
    mask: NDArray[Any],
    *,
    kind: str = "BINARY",
    names: Sequence[str] = ("lesion",),
    transfer_syntax: str = ExplicitVRLittleEndian,
    **options: Any,
) -> Path:
    """A segmentation of single-frame images.

    Args:
        mask: (images, rows, columns[, segments]), in the order of `images`; labels from 1 where there is no last axis.
        kind: BINARY, FRACTIONAL or LABELMAP. names: one SegmentLabel per segment.
    """
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=highdicom.sr.CodedConcept(
                "49755003", "SCT", "Morphologically Altered Structure"
            ),
            segmented_property_type=highdicom.sr.CodedConcept("4147007", "SCT", "Mass"),
            algorithm_type="MANUAL",
        )
        for number, name in enumerate(names, 1)
    ]
    dataset = highdicom.seg.Segmentation(
        [dcmread(image) for image in images],
        mask,
        kind,
        segments,
        series_instance_uid=uid("seg series"),
        series_number=100,
        sop_instance_uid=uid("seg", path.name),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=transfer_syntax,
        **options,
    )
    dataset.save_as(path)
    return path


def contour(points: NDArray[np.float64], kind: str = "CLOSED_PLANAR", digits: int = 4, **elements: Any) -> Dataset:
    """One contour; points (n, 3) in LPS mm."""
    item = Dataset()
    item.ContourGeometricType = kind
    item.NumberOfContourPoints = len(points)
    item.ContourData = [f"{value:.{digits}f}" for value in points.ravel()]
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def write_rtstruct(
    path: Path,
    rois: Mapping[str, Sequence[Dataset]],
    *,
    transfer_syntax: str = ExplicitVRLittleEndian,
    undefined: bool = False,
    series: Sequence[str] = (),
    frame: str = uid("frame"),
    kinds: Sequence[str] = (),
    **elements: Any,
) -> Path:
    """A structure set: ROIName -> contours; ROINumbers are 1, 2, ...

    Args:
        undefined: write sequences and items with undefined length.
        series: SeriesInstanceUIDs it was drawn on. kinds: RTROIInterpretedType of each ROI.
    """
    dataset = Dataset()
    defaults = {"PatientID": "MARKER-ID", "PatientName": "MARKER^NAME", "StudyInstanceUID": uid("study")}
    for keyword, value in {**defaults, "Modality": "RTSTRUCT", **elements}.items():
        setattr(dataset, keyword, value)
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, uid("rtstruct", path.name)
    study, reference = Dataset(), Dataset()
    study.RTReferencedSeriesSequence = [_with(SeriesInstanceUID=one) for one in series]
    reference.FrameOfReferenceUID, reference.RTReferencedStudySequence = frame, [study]
    dataset.ReferencedFrameOfReferenceSequence = [reference]
    dataset.StructureSetROISequence = [
        _with(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=frame)
        for number, name in enumerate(rois, 1)
    ]
    dataset.ROIContourSequence = [
        _with(ReferencedROINumber=number, ContourSequence=list(contours))
        for number, contours in enumerate(rois.values(), 1)
    ]
    dataset.RTROIObservationsSequence = [
        _with(ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType=kind)
        for number, kind in enumerate(kinds, 1)
    ]
    if undefined:
        _open_ended(dataset)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    dataset.save_as(path, enforce_file_format=True)
    return path


def rewritten(path: Path, target: Path, *removed: str, **elements: Any) -> Path:
    """A copy of a DICOM file with top-level elements changed or removed."""
    dataset = dcmread(path)
    for keyword in removed:
        del dataset[keyword]
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(target)
    return target


def _with(**elements: Any) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def _open_ended(dataset: Dataset) -> None:
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                _open_ended(item)
