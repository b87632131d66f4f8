"""The content of the structured report: TID 1500 with the images, the lesion's region and what the model said of it.

It needs highdicom, which is imported where it is used. Patient, study and UIDs of the document are `sr`'s concern.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime import sr_codes as codes
from fourphase.runtime.geometry import Region
from fourphase.runtime.result import NOTICE, StudyResult
from fourphase.runtime.sr_codes import class_codes, clean, phase_code, private_code
from fourphase.runtime.sr_source import SourceImage, SourcePhase
from fourphase.runtime.sr_text import answer, box_texts, phase_text

if TYPE_CHECKING:
    from highdicom import sr

__all__ = ["Identifiers", "faces", "measurement_report"]

_PREDICTION = private_code("PREDICTION", f"Predicted class ({NOTICE})")
_PHASE = private_code("PHASE", "Contrast phase")
_PHASE_SERIES = private_code("PHASE_SERIES", "Series taken for a phase")
_BOX = private_code("BOX", "Lesion box")
_WARNING = private_code("WARNING", "Warning")
_CASE = private_code("CASE", "Case")


@dataclass(frozen=True)
class Identifiers:
    """What names the lesion and the software: UIDs of both, and the software's version."""

    lesion_uid: str
    device_uid: str
    version: str


def measurement_report(
    result: StudyResult, phases: Sequence[SourcePhase], identifiers: Identifiers, remarks: Sequence[str]
) -> sr.MeasurementReport:
    """The content tree (TID 1500, PS3.16).

    Args:
        phases: in the model's order.
        remarks: sentences to add to the warnings.
    """
    from highdicom import sr

    device = sr.DeviceObserverIdentifyingAttributes(
        identifiers.device_uid,
        name="fourphase",
        manufacturer_name="fourphase",
        model_name=f"fourphase {identifiers.version}",
    )
    report = sr.MeasurementReport(
        sr.ObservationContext(observer_device_context=sr.ObserverContext(sr.CodedConcept(*codes.DEVICE), device)),
        codes.CT_PROCEDURE,
        imaging_measurements=_groups(result, phases, identifiers),
    )
    content = report[0].ContentSequence
    content.insert(len(content) - 1, _image_library(phases))  # TID 1500: before the measurements
    content.append(_evaluations(result, phases, remarks))
    return report


# ---- images (TID 1600)


def _image_library(phases: Sequence[SourcePhase]) -> sr.ContainerContentItem:
    """One group per phase; the images are those that hold the lesion box with its margin."""
    from highdicom import sr

    library = sr.ContainerContentItem(codes.IMAGE_LIBRARY, template_id="1600", relationship_type="CONTAINS")
    library.ContentSequence = sr.ContentSequence()
    for phase in phases:
        group = sr.ContainerContentItem(codes.IMAGE_LIBRARY_GROUP, relationship_type="CONTAINS")
        acquisition = "HAS ACQ CONTEXT"
        group.ContentSequence = sr.ContentSequence(
            [
                sr.CodeContentItem(codes.MODALITY, codes.COMPUTED_TOMOGRAPHY, acquisition),
                sr.CodeContentItem(_PHASE, phase_code(phase.phase), acquisition),
                sr.UIDRefContentItem(codes.SERIES_INSTANCE_UID, phase.series_instance_uid, acquisition),
            ]
        )
        if phase.frame_of_reference_uid:
            frame = sr.UIDRefContentItem(codes.FRAME_OF_REFERENCE_UID, phase.frame_of_reference_uid, acquisition)
            group.ContentSequence.append(frame)
        for image in phase.images:
            reference = (image.sop_class_uid, image.sop_instance_uid, _frames(image))
            group.ContentSequence.append(sr.ImageContentItem(codes.SOURCE, *reference, relationship_type="CONTAINS"))
        library.ContentSequence.append(group)
    return library


def _frames(image: SourceImage) -> list[int] | None:
    return list(image.frames) or None


def _all_images(phases: Sequence[SourcePhase]) -> list[SourceImage]:
    """Every SOP instance once, though several phases may lie in one multi-frame image."""
    frames: dict[tuple[str, str], set[int]] = {}
    for phase in phases:
        for image in phase.images:
            frames.setdefault((image.sop_class_uid, image.sop_instance_uid), set()).update(image.frames)
    return [SourceImage(*key, tuple(sorted(numbers))) for key, numbers in frames.items()]


# ---- the lesion


def _groups(
    result: StudyResult, phases: Sequence[SourcePhase], identifiers: Identifiers
) -> list[sr.MeasurementsAndQualitativeEvaluations | sr.VolumetricROIMeasurementsAndQualitativeEvaluations]:
    """The lesion's measurement group, with its region where one region stands for all phases.

    A box per phase gives a group for the prediction, without region, and one per phase with that phase's region.
    Without frame of reference there are no coordinates in DICOM's sense; the box is then in the text only.
    """
    shared = _shared_frame(phases)
    prediction = _prediction_group(result, phases, identifiers, shared)
    if shared or len({phase.region for phase in phases}) == 1:
        return [prediction]
    return [
        prediction,
        *(_region_group(phase, result, identifiers) for phase in phases if phase.frame_of_reference_uid),
    ]


def _shared_frame(phases: Sequence[SourcePhase]) -> str:
    """The frame of reference in which one box serves all phases, '' if there is none or the boxes differ."""
    frames = {phase.frame_of_reference_uid for phase in phases} - {""}
    one_region = len({phase.region for phase in phases}) == 1
    return frames.pop() if one_region and len(frames) == 1 else ""


def _prediction_group(
    result: StudyResult, phases: Sequence[SourcePhase], identifiers: Identifiers, frame_of_reference_uid: str
) -> sr.MeasurementsAndQualitativeEvaluations | sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """TID 1411 with a region, else TID 1501: what the model said, and by which algorithm."""
    from highdicom import sr

    predicted, images = class_codes(result.label), _all_images(phases)
    tracking = sr.TrackingIdentifier(identifiers.lesion_uid, f"Lesion of case {result.case}")
    said: dict[str, Any] = {
        "finding_type": predicted.finding,
        "finding_category": predicted.category,
        "finding_sites": [sr.FindingSite(codes.LIVER)],
        "algorithm_id": _algorithm(result, identifiers.version),
        "measurements": _probabilities(result.probabilities),
        "qualitative_evaluations": [sr.QualitativeEvaluation(_PREDICTION, predicted.prediction)],
    }
    if frame_of_reference_uid:
        surface = _surface(phases[0].region, frame_of_reference_uid, images)
        roi = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(tracking, referenced_volume_surface=surface, **said)
        _add_texts(roi[0].ContentSequence, result, phases)
        return roi
    references = [(one.sop_class_uid, one.sop_instance_uid, _frames(one)) for one in images]
    sources = [sr.SourceImageForMeasurementGroup(*reference) for reference in references]
    group = sr.MeasurementsAndQualitativeEvaluations(tracking, source_images=sources, **said)
    _add_texts(group[0].ContentSequence, result, phases)
    return group


def _region_group(
    phase: SourcePhase, result: StudyResult, identifiers: Identifiers
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """The same lesion in one phase: where it lies, and nothing else."""
    from highdicom import sr

    words = phase_code(phase.phase).meaning
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(identifiers.lesion_uid, f"Lesion of case {result.case}, {words}"),
        referenced_volume_surface=_surface(phase.region, phase.frame_of_reference_uid, phase.images),
        finding_type=codes.LESION,
        finding_category=codes.ABNORMAL_STRUCTURE,
        finding_sites=[sr.FindingSite(codes.LIVER)],
    )


def _surface(region: Region, frame_of_reference_uid: str, images: Sequence[SourceImage]) -> sr.VolumeSurface:
    """The box as the six polygons that enclose it: SCOORD3D has no box (PS3.3 C.18.9.1.2), an ellipsoid would lie."""
    from highdicom import sr

    sources = [sr.SourceImageForSegmentation(one.sop_class_uid, one.sop_instance_uid, _frames(one)) for one in images]
    return sr.VolumeSurface("POLYGON", faces(region), frame_of_reference_uid, source_images=sources)


def faces(region: Region) -> list[NDArray[np.float64]]:
    """The six faces as closed polygons, float64 (5, 3) each, LPS mm: foot, head, right, left, front, back."""
    low, high = np.array(region.min), np.array(region.max)
    around = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])
    polygons = []
    for axis in (2, 0, 1):
        first, second = (other for other in range(3) if other != axis)
        for side in (low, high):
            polygon = np.empty((5, 3))
            polygon[:, axis] = side[axis]
            polygon[:, first] = np.where(around[:, 0] == 1, high[first], low[first])
            polygon[:, second] = np.where(around[:, 1] == 1, high[second], low[second])
            polygons.append(polygon)
    return polygons


def _probabilities(probabilities: Mapping[str, float]) -> list[sr.Measurement]:
    """TID 300: one number per class in percent; as exact as in the JSON (0.912346 is 91.2346 %)."""
    from highdicom import sr

    return [
        sr.Measurement(class_codes(name).probability, float(Decimal(repr(value)) * 100), codes.PERCENT)
        for name, value in probabilities.items()
    ]


def _algorithm(result: StudyResult, version: str) -> sr.AlgorithmIdentification:
    """TID 4019: what must be the same for the same numbers to come out."""
    from highdicom import sr

    model, made, backend = result.model, result.preprocessing, result.backend
    parameters = {
        "classes": ", ".join(result.classes),
        "model bundle": model["bundle"],
        "model sha256": model["sha256"],
        "precision": model["precision"],
        "engine": backend["name"],
        **{f"plan {name}": str(value) for name, value in backend.get("plans", {}).items()},
        "self-check": backend["self_check"],
        "preprocessing hash": made["hash"],
        "preprocessing device": made["device"],
        "margin": f"{result.box['margin_mm']:g} mm",
    }
    return sr.AlgorithmIdentification(
        "fourphase liver lesion classifier", version, [clean(f"{name}: {value}") for name, value in parameters.items()]
    )


# ---- words


def _add_texts(content: sr.ContentSequence, result: StudyResult, phases: Sequence[SourcePhase]) -> None:
    """Puts the words before the coordinates and images, where a reader looks for them."""
    from highdicom import sr

    texts = [sr.TextContentItem(codes.COMMENT, f"{answer(result)}: {NOTICE}", "CONTAINS")]
    texts += [sr.TextContentItem(_BOX, text, "CONTAINS") for text in box_texts(phases)]
    first = next((index for index, item in enumerate(content) if item.ValueType in ("SCOORD3D", "IMAGE")), len(content))
    for item in reversed(texts):
        content.insert(first, item)


def _evaluations(result: StudyResult, phases: Sequence[SourcePhase], remarks: Sequence[str]) -> sr.ContainerContentItem:
    """TID 1500, rows 12 to 14: what concerns the whole report."""
    from highdicom import sr

    texts = [(codes.COMMENT, f"Written by software and not verified by a person: {NOTICE}.")]
    texts += [(_PHASE_SERIES, phase_text(phase, result)) for phase in phases]
    texts += [(_WARNING, message) for message in (*(notice.message for notice in result.warnings), *remarks)]
    texts.append((_CASE, result.case))
    container = sr.ContainerContentItem(codes.QUALITATIVE_EVALUATIONS, relationship_type="CONTAINS")
    container.ContentSequence = sr.ContentSequence(
        [sr.TextContentItem(name, clean(text), "CONTAINS") for name, text in texts]
    )
    return container
