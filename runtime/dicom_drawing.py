"""A lesion drawn in a DICOM object: what SEG and RTSTRUCT share. The object's header, whose it is, which one is meant.

Where the lesion lies is `seg_box`'s and `rtstruct_box`'s question.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from fourphase.runtime.dicom_file import RawHeader, SkippedFile, read_nested, read_raw_header
from fourphase.runtime.elements import Found, Wanted
from fourphase.runtime.errors import BoxInvalid, Notice
from fourphase.runtime.geometry import Region

__all__ = [
    "LARGEST_GAP_MM",
    "LARGEST_MM",
    "BoxObject",
    "Candidate",
    "Damaged",
    "Drawing",
    "Item",
    "choose",
    "drawing_of",
    "over_limits",
    "read_object",
    "refused",
]

#: All contours of a large plan are less; `dicom_file` looks at no more.
FILE_LIMIT = 48 * 2**20
#: Candidates shown when the choice is not clear.
MOST_LISTED = 20
#: CT slices are not further apart; contours or frames that are were drawn on few of them.
LARGEST_GAP_MM = 10.0
#: No coordinate of a patient is further out.
LARGEST_MM = 1e6

CHARACTER_SET, SOP_CLASS, PATIENT_ID, STUDY_UID = 0x00080005, 0x00080016, 0x00100020, 0x0020000D
#: The elements of the data set that say whose it is.
_IDENTITY = (SOP_CLASS, CHARACTER_SET, PATIENT_ID, STUDY_UID)


class Damaged(Exception):
    """The file contradicts itself."""


@dataclass(frozen=True, eq=False)
class Item:
    """A data set, or an item of a sequence. Nothing is interpreted."""

    found: Found
    little_endian: bool
    character_set: bytes

    @cached_property
    def header(self) -> RawHeader:
        """The elements that are no sequences, to be read as text or numbers."""
        values = {tag: value for tag, value in self.found.items() if isinstance(value, bytes)}
        return RawHeader({CHARACTER_SET: self.character_set, **values}, little_endian=self.little_endian)

    def items(self, tag: int) -> list[Item]:
        """The items of a sequence; none when it is absent."""
        items = self.found.get(tag)
        if not isinstance(items, list):
            return []
        return [Item(item, self.little_endian, self.character_set) for item in items]


@dataclass(frozen=True, eq=False)
class BoxObject:
    """A DICOM file that may hold a lesion.

    Attributes:
        raw: its header. path: the file, never printed.
    """

    raw: RawHeader
    path: Path = field(repr=False)

    @property
    def sop_class(self) -> str:
        return self.raw.uid(SOP_CLASS) or self.raw.media_class

    def root(self, wanted: Wanted) -> Item:
        """The data set with the wanted sequences.

        Raises:
            SkippedFile: damaged, or over limits.
        """
        # Without pixel data the whole file is the header.
        raw = dataclasses.replace(self.raw, pixel_offset=self.raw.pixel_offset or FILE_LIMIT)
        found = read_nested(self.path, raw, {**dict.fromkeys(_IDENTITY), **wanted})
        return Item(found, raw.little_endian, raw.values.get(CHARACTER_SET, b""))


def read_object(path: Path) -> BoxObject:
    """The header of a DICOM file; call it within `dicom_file.quiet_pydicom`.

    Raises:
        SkippedFile: damaged. BoxInvalid: over limits.
    """
    try:
        return BoxObject(read_raw_header(path, (SOP_CLASS, CHARACTER_SET)), path)
    except SkippedFile:
        if path.stat().st_size > FILE_LIMIT:  # it may only have been cut off
            raise over_limits() from None
        raise


def refused(what: str, key: str, hint: str, table: Sequence[dict[str, str]] = ()) -> BoxInvalid:
    return BoxInvalid(f"the lesion box {what}", hint, key=key, table=table)


def over_limits() -> BoxInvalid:
    return refused("is a DICOM file larger than any study needs", "mask_limits", "export the lesion alone")


@dataclass(frozen=True)
class Drawing:
    """A lesion drawn in a DICOM object.

    Attributes:
        region: LPS mm, without margin.
        frame_of_reference_uid, study_uid: '' when not said.
        patient: digest of PatientID, as `headers.SeriesTags.patient`.
        series_uids: the series it was drawn on, as far as the object says.
        warnings: what the user should know.
    """

    region: Region
    frame_of_reference_uid: str
    study_uid: str
    patient: str = field(repr=False)
    series_uids: tuple[str, ...]
    warnings: tuple[Notice, ...]


def drawing_of(root: Item, region: Region, frame: str, series: set[str], warnings: tuple[Notice, ...]) -> Drawing:
    """The drawing with the identity that its object claims."""
    patient = root.header.text(PATIENT_ID)
    digest = hashlib.sha256(patient.encode()).hexdigest() if patient else ""
    return Drawing(region, frame, root.header.uid(STUDY_UID), digest, tuple(sorted(series - {""})), warnings)


# ---- which one


class Candidate(NamedTuple):
    """A segment or ROI to choose from. `name` is free text and never shown; `kind` is a code and may be."""

    number: int
    name: str
    kind: str


def choose(candidates: Sequence[Candidate], label: int | None, roi: str | None, what: str) -> Candidate:
    """The one that `label` (its number) and `roi` (its name, exactly or else without regard to case) ask for.

    Args:
        what: "segment" or "ROI".

    Raises:
        BoxInvalid: none or several; the error's table lists them by number and kind, because names are free text.
    """
    if not candidates:
        raise refused(f"holds no {what}", "mask_empty", "draw the lesion and save it again")
    found = [one for one in candidates if label in (None, one.number)]
    if roi is not None:
        exact = [one for one in found if one.name == roi.strip()]
        found = exact or [one for one in found if one.name.casefold() == roi.strip().casefold()]
    if len(found) == 1:
        return found[0]
    listed = found or candidates
    table = [{"number": str(one.number), "type": one.kind} for one in listed[:MOST_LISTED]]
    numbers = ", ".join(row["number"] for row in table) + (", ..." if len(listed) > len(table) else "")
    message = f"holds {len(found)} {what}s to choose from" if found else f"has no {what} of that number or name"
    hint = f"choose by number with --label ({numbers}) or by name with --roi"
    raise refused(f"{message}: {numbers}", "mask_labels", hint, table)
