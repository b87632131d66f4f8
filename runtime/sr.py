"""One study's result as a DICOM Comprehensive 3D SR for the archive: unverified, linked to its images, reproducible.

The same result of the same study gives the same bytes: every UID is derived from what it names, and the report is dated
by the study, never by the clock. Timings are left out. It needs the extra [sr]. Nothing is sent anywhere.
"""

from __future__ import annotations

import importlib.metadata
import io
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID

from fourphase.runtime.atomic import write_file
from fourphase.runtime.config import canonical_json
from fourphase.runtime.dicom_file import quiet_pydicom
from fourphase.runtime.errors import EnvironmentFault
from fourphase.runtime.result import NOTICE, StudyResult
from fourphase.runtime.sr_codes import SCHEME, SCHEME_NAME
from fourphase.runtime.sr_content import Identifiers, measurement_report
from fourphase.runtime.sr_source import SourcePhase, SourceStudy, source_phases, source_study

if TYPE_CHECKING:
    from fourphase.runtime.pipeline import PreparedStudy

__all__ = ["require_highdicom", "sr_bytes", "structured_report", "write_sr"]

#: Under it our UIDs are version 5 UUIDs in the form 2.25.<number> (PS3.5 B.2).
_NAMESPACE = uuid.UUID("6f1c8a52-0d0e-4b6b-9a35-6a1f7f1de5c4")
#: Above what scanners use, so that archives list it last.
_SERIES_NUMBER = 9900


def require_highdicom() -> None:
    """Raises: EnvironmentFault (24) without highdicom; call it before work is spent on what would be written."""
    try:
        import highdicom  # noqa: F401
    except ModuleNotFoundError as error:
        raise EnvironmentFault(
            f"the package {(error.name or 'highdicom').split('.')[0]} is not installed",
            "pip install 'fourphase[sr]'",
            key="extra_missing",
        ) from None


def structured_report(result: StudyResult, prepared: PreparedStudy) -> Dataset:
    """The report (TID 1500 in a Comprehensive 3D SR, 1.2.840.10008.5.1.4.1.1.88.34) with its file meta information.

    Args:
        result: as `run_study` returned it with `prepared`; the study's files must still be there.

    Raises:
        EnvironmentFault: (24, extra_missing) highdicom is not installed.
        InputMissing: (10, sr_source_incomplete) the study's images cannot be referred to: empty or shared UIDs, a file
            that is gone or was replaced.
    """
    require_highdicom()
    with quiet_pydicom():
        source = source_study(prepared)
        phases = source_phases(prepared, float(result.box["margin_mm"]))
        report = _document(result, source, phases)
        # In (0008,0018) stands what the rest of the document is: another content is another instance.
        uid = _uid("instance", source.study_uid, result.case, _digest(report))
        report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = UID(uid)
    return report


def sr_bytes(report: Dataset) -> bytes:
    """The report as a DICOM file (PS3.10), Explicit VR Little Endian."""
    buffer = io.BytesIO()
    with quiet_pydicom():
        dcmwrite(buffer, report, enforce_file_format=True)
    return buffer.getvalue()


def write_sr(result: StudyResult, prepared: PreparedStudy, path: Path) -> None:
    """Writes `structured_report` to a file, complete or not at all.

    Raises: as `structured_report`; OutputNotWritable (30).
    """
    write_file(path, sr_bytes(structured_report(result, prepared)))


def _document(result: StudyResult, source: SourceStudy, phases: tuple[SourcePhase, ...]) -> Dataset:
    from highdicom import sr
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    version = importlib.metadata.version("fourphase")
    names = (source.study_uid, result.case, result.model["sha256"], version)
    remarks = () if source.moment.known else ("the study has no date; 1900-01-01 stands for an unknown one",)
    content = measurement_report(result, phases, _identifiers(result, source.study_uid, version), remarks)
    document = sr.Comprehensive3DSR(
        evidence=_evidence(source.study_uid, phases),
        content=content,
        series_instance_uid=_uid("series", *names),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=_uid("draft", *names),
        instance_number=1,
        manufacturer="fourphase",
        manufacturer_model_name="fourphase",
        software_versions=version,
        series_description=f"Liver lesion classification: {NOTICE}",
        is_complete=True,
        is_final=False,
        is_verified=False,
        specific_character_set="ISO_IR 192",
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, SCHEME_NAME, responsible_organization="fourphase")],
        content_date=source.moment.date,
        content_time=source.moment.time,
    )
    _complete(document, source)
    return document


def _complete(document: Dataset, source: SourceStudy) -> None:
    """Puts in patient, study and date, and takes out what highdicom writes of the present, all optional (C.12.1)."""
    document.update(source.attributes)
    document.ContentDate, document.ContentTime = source.moment.date, source.moment.time
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        document.pop(keyword, None)
    for equipment in document.get("ContributingEquipmentSequence", ()):
        equipment.pop("ContributionDateTime", None)


def _evidence(study_uid: str, phases: tuple[SourcePhase, ...]) -> list[Dataset]:
    """The images as highdicom wants them, each once. It logs names it doubts, so it never sees a patient's."""
    found: dict[str, Dataset] = {}
    for phase in phases:
        for image in phase.images:
            one = Dataset()
            one.SOPClassUID, one.SOPInstanceUID = image.sop_class_uid, image.sop_instance_uid
            one.StudyInstanceUID, one.SeriesInstanceUID = study_uid, phase.series_instance_uid
            one.PatientID = one.AccessionNumber = one.StudyID = one.PatientSex = ""
            one.PatientName = one.PatientBirthDate = one.StudyDate = one.StudyTime = None
            found.setdefault(image.sop_instance_uid, one)
    return list(found.values())


def _identifiers(result: StudyResult, study_uid: str, version: str) -> Identifiers:
    """A lesion is its box in its study, whichever model looks at it; a device is a version of this software."""
    corners = {key: result.box[key] for key in ("min", "max", "phases") if key in result.box}
    return Identifiers(_uid("lesion", study_uid, canonical_json(corners)), _uid("device", version), version)


def _digest(report: Dataset) -> str:
    buffer = io.BytesIO()
    dcmwrite(buffer, report, enforce_file_format=True)
    return str(uuid.uuid5(_NAMESPACE, buffer.getvalue().hex()))


def _uid(*names: str) -> str:
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(names)).int}"
