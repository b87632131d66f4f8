"""The lesion box as the user gave it: JSON, or the extent of a label in a mask; what is not understood is refused.

Masks are NIfTI label masks, DICOM segmentations and DICOM structure sets. Whether the box fits the study is `box`'s
question.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fourphase.runtime.dicom_drawing import Damaged, over_limits, read_object
from fourphase.runtime.dicom_file import SkippedFile, open_regular, quiet_pydicom
from fourphase.runtime.errors import BoxInvalid, InputMissing, Notice
from fourphase.runtime.geometry import Region
from fourphase.runtime.label_mask import read_label_mask
from fourphase.runtime.rtstruct_box import RTSTRUCT, read_rtstruct
from fourphase.runtime.seg_box import SEGMENTATIONS, read_seg

__all__ = ["LesionBox", "box_invalid", "hull", "read_box"]

SMALLEST_MM, LARGEST_MM = 2.0, 300.0
ROUNDING_MM = 1e-6
#: A JSON box is a few lines.
LARGEST_JSON = 2**20


@dataclass(frozen=True)
class LesionBox:
    """A lesion box as it was given, without margin.

    Attributes:
        region: LPS mm; with boxes per phase, the region that holds them all.
        source: "json", "nifti", "dicom-seg" or "rtstruct".
        frame_of_reference_uid: of the images it was drawn on; '' when not said.
        by_phase: phase -> its own region; empty when one box serves all.
        volume: the region of the whole grid of a NIfTI mask; None for others.
        study_uid: StudyInstanceUID of the DICOM object; patient: digest of its PatientID; '' when not said.
        series_uids: the series that the DICOM object says it was drawn on.
        warnings: what the user should know about the file.
    """

    region: Region
    source: str
    frame_of_reference_uid: str = ""
    by_phase: Mapping[str, Region] = field(default_factory=dict)
    volume: Region | None = None
    study_uid: str = ""
    patient: str = field(default="", repr=False)
    series_uids: tuple[str, ...] = ()
    warnings: tuple[Notice, ...] = ()


def read_box(path: Path, label: int | None, roi: str | None = None) -> LesionBox:
    """Reads a JSON box, a NIfTI label mask, a DICOM SEG or RTSTRUCT; the content decides which, not the name.

    Args:
        label: which label of the mask, SegmentNumber or ROINumber; None when there is only one.
        roi: the same by name, SegmentLabel or ROIName: exactly, or else without regard to case.

    Raises:
        InputMissing: no such file.
        BoxInvalid: anything else that is wrong with it.
    """
    try:
        target = path.resolve()
        with open_regular(target) as file:
            start = file.read(352)
            file.seek(0)
            if start[128:132] == b"DICM" or start[:2] in (b"\x08\0", b"\x02\0", b"\0\x08"):
                return _dicom_box(target, label, roi)
            if roi is not None:
                hint = "leave --roi out, or give a DICOM SEG or RTSTRUCT"
                raise box_invalid("has no names to choose from", "roi_without_names", hint)
            if start[:2] == b"\x1f\x8b" or start[344:347] in (b"n+1", b"ni1"):
                return _mask_box(file, label)
            if label is not None:
                raise box_invalid(
                    "is JSON and has no labels", "label_without_mask", "leave --label out, or give the mask"
                )
            return _json_box(file.read(LARGEST_JSON + 1))
    except OSError:
        what = "is not a file" if path.is_dir() else "does not exist or cannot be read"
        hint = "give --box FILE: JSON in LPS mm, a NIfTI label mask, a DICOM SEG or RTSTRUCT"
        raise InputMissing(f"the lesion box {what}", hint) from None


def box_invalid(what: str, key: str, hint: str = "correct the box and try again") -> BoxInvalid:
    return BoxInvalid(f"the lesion box {what}", hint, key=key)


def _dicom_box(path: Path, label: int | None, roi: str | None) -> LesionBox:
    try:
        with quiet_pydicom():
            found = read_object(path)
            if found.sop_class in SEGMENTATIONS:
                source, drawing = "dicom-seg", read_seg(found, label, roi)
            elif found.sop_class == RTSTRUCT:
                source, drawing = "rtstruct", read_rtstruct(found, label, roi)
            else:
                hint = "give a SEG, an RTSTRUCT, JSON or a .nii.gz mask"
                raise box_invalid("is DICOM, but neither a segmentation nor a structure set", "box_format", hint)
    except (Damaged, SkippedFile) as fault:
        if isinstance(fault, SkippedFile) and fault.reason == "over_limits":
            raise over_limits() from None
        raise box_invalid("is a damaged DICOM file", "mask_damaged", "export it again") from None
    return LesionBox(
        _checked(drawing.region),
        source,
        drawing.frame_of_reference_uid,
        study_uid=drawing.study_uid,
        patient=drawing.patient,
        series_uids=drawing.series_uids,
        warnings=drawing.warnings,
    )


def _mask_box(file: Any, label: int | None) -> LesionBox:
    mask = read_label_mask(file)
    if not mask.labels:
        raise box_invalid("is an empty mask", "mask_empty", "draw the lesion and save the mask again")
    present = ", ".join(map(str, list(mask.labels)[:20]))
    if label is None and len(mask.labels) > 1:
        raise box_invalid(f"is a mask with several labels: {present}", "mask_labels", "choose one with --label")
    if label is not None and label not in mask.labels:
        raise box_invalid(f"has no label {label}; the mask's labels are {present}", "mask_labels", "correct --label")
    region = mask.labels[next(iter(mask.labels)) if label is None else label]
    return LesionBox(_checked(region), "nifti", volume=mask.bounds)


def _json_box(raw: bytes) -> LesionBox:
    """{"space": "LPS_mm", "min": [x, y, z], "max": [x, y, z]}, optionally "frame_of_reference_uid" and "phases"."""
    if len(raw) > LARGEST_JSON:
        raise box_invalid("is neither JSON nor a NIfTI mask", "box_format")
    try:
        body = json.loads(raw, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except _NotFinite:
        raise box_invalid("holds NaN or Infinity", "box_format") from None
    except (ValueError, RecursionError):
        raise box_invalid("is neither valid JSON nor a NIfTI mask", "box_format") from None
    required = {"space"} if isinstance(body, dict) and "phases" in body else {"space", "min", "max"}
    _check_keys(body, required, {"min", "max", "frame_of_reference_uid", "phases"})
    if body["space"] != "LPS_mm":
        raise box_invalid('has another "space" than "LPS_mm"', "box_space")
    frame = body.get("frame_of_reference_uid", "")
    if not isinstance(frame, str):
        raise box_invalid("has a frame_of_reference_uid that is no text", "box_schema")
    by_phase = _phase_regions(body.get("phases", {}))
    whole = _region(body) if "min" in body or "max" in body else hull(by_phase)
    # Where every phase has its own, the box for all is not used: boxes follow the breathing, and need not share one.
    return LesionBox(hull(by_phase) if by_phase else _checked(whole), "json", frame, by_phase)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


class _NotFinite(Exception):
    """JSON's extension NaN, Infinity or -Infinity was met."""


def _no_constant(name: str) -> float:
    raise _NotFinite


def _check_keys(body: Any, required: set[str], allowed: set[str]) -> None:
    if not isinstance(body, dict):
        raise box_invalid("is no JSON object", "box_schema")
    missing, unknown = sorted(required - set(body)), sorted(set(body) - required - allowed)
    if missing:
        raise box_invalid(f"lacks {', '.join(missing)}", "box_schema")
    if unknown:
        raise box_invalid(
            "has keys that mean nothing", "box_schema", f"keep only {', '.join(sorted(required | allowed))}"
        )


def _phase_regions(phases: Any) -> dict[str, Region]:
    if not isinstance(phases, dict):
        raise box_invalid('has "phases" that are no JSON object', "box_schema")
    for body in phases.values():
        _check_keys(body, {"min", "max"}, set())
    return {phase: _checked(_region(body)) for phase, body in phases.items()}


def _region(body: Mapping[str, Any]) -> Region:
    corners = []
    for name in ("min", "max"):
        values = body.get(name)
        if not isinstance(values, list) or len(values) != 3 or not all(map(_is_finite_number, values)):
            raise box_invalid(f'needs three finite numbers as "{name}"', "box_schema")
        corners.append((float(values[0]), float(values[1]), float(values[2])))
    return Region(*corners)


def _is_finite_number(value: object) -> bool:
    """True for JSON numbers (not true and false) that fit into a float."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _checked(region: Region) -> Region:
    """The region, if every side is between 2 and 300 mm."""
    for axis, extent in zip("xyz", region.extent_mm, strict=True):
        if extent < 0:
            raise box_invalid(f"has min > max along {axis}", "box_reversed")
        if not SMALLEST_MM - ROUNDING_MM <= extent <= LARGEST_MM + ROUNDING_MM:
            limits = f"a side is {SMALLEST_MM:g} to {LARGEST_MM:g} mm"
            raise box_invalid(f"is {extent:.1f} mm along {axis}, but {limits}", "box_size")
    return region


def hull(regions: Mapping[str, Region]) -> Region:
    if not regions:
        raise box_invalid('has neither "min" and "max" nor a box in "phases"', "box_schema")
    low = np.min([region.min for region in regions.values()], axis=0)
    high = np.max([region.max for region in regions.values()], axis=0)
    return Region.of(low, high)
