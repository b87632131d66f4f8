"""A folder -> the CT series in it: what is there, what was skipped and why, and whether it is one patient's one study.

Names and extensions mean nothing; every regular file is looked into, headers only. Symlinks are not followed, FIFOs and
devices are not opened. Which series is which phase is `phases`'s question.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fourphase.runtime.console import progress
from fourphase.runtime.dicom_file import quiet_pydicom
from fourphase.runtime.errors import InputMissing, MixedStudies, Notice, NoUsableCT
from fourphase.runtime.headers import Findings, SeriesTags, SliceHeader, read_slice_headers
from fourphase.runtime.series import Series, series_from_slices
from fourphase.runtime.study_snapshot import regular_files

__all__ = ["Series", "SeriesTags", "SliceHeader", "Study", "read_study"]

#: Reasons after which a slice of a phase may be missing, so the user is told.
SUSPICIOUS = (
    *("damaged", "multi_frame", "no_geometry", "no_pixel_data", "over_limits"),
    *("unreadable", "unreadable_folder"),
)


@dataclass(frozen=True, eq=False)
class Study:
    """The CT series of one patient's one study.

    Attributes:
        uid: StudyInstanceUID; when empty, a digest of the slices that is the same for any file names and order.
        series: by SeriesNumber.
        skipped: reason -> files, or frames of multi-frame files, that are no slice of `series`.
        warnings: what the user should know about the folder.
    """

    uid: str
    series: tuple[Series, ...]
    skipped: dict[str, int]
    warnings: tuple[Notice, ...]


def read_study(folder: Path) -> Study:
    """Reads the headers of every file below `folder`.

    Raises:
        InputMissing: no such folder, or it cannot be read.
        NoUsableCT: no CT series with at least two slices.
        MixedStudies: the CT series come from several patients or studies.
    """
    found = Findings()
    _read_headers(_regular_files(folder, found.skipped), folder, found)
    losses = not set(found.skipped).isdisjoint(SUSPICIOUS)
    series, single = series_from_slices(found.slices, found.unusable, found.unplaced, losses=losses)
    if single:
        found.skipped["single_slice"] += single
    counts = dict(sorted(found.skipped.items()))
    if not series:
        raise _no_usable_ct(counts)
    _check_one_study(series)
    ordered = tuple(sorted(series, key=_series_order))
    return Study(_study_uid(ordered), ordered, counts, tuple(_notices(counts)))


def _regular_files(folder: Path, skipped: Counter[str]) -> list[Path]:
    return sorted(Path(entry.path) for entry in regular_files(folder, skipped))


def _read_headers(files: list[Path], folder: Path, found: Findings) -> None:
    with progress("reading headers", len(files)) as advance, quiet_pydicom():
        for path in files:
            read_slice_headers(path, path.parent.relative_to(folder).as_posix(), found)
            advance(1)


def _no_usable_ct(skipped: dict[str, int]) -> NoUsableCT | InputMissing:
    counts = ", ".join(f"{reason} {files}" for reason, files in skipped.items())
    if set(skipped) & {"unreadable", "unreadable_folder"} and not set(skipped) - {"unreadable", "unreadable_folder"}:
        return InputMissing("no file of the study can be read", "give the user who runs this the right to read them")
    return NoUsableCT(
        f"no usable CT series (files skipped: {counts})" if skipped else "the study folder holds no files",
        "give the folder that holds the DICOM files of all phases",
    )


def _check_one_study(series: Iterable[Series]) -> None:
    """Empty identifiers (anonymised data) contradict nothing. Never says which patients."""
    tags = {header.tags for one in series for header in one.slices}
    patients = {tag.patient for tag in tags} - {""}
    studies = {tag.study_uid for tag in tags} - {""}
    for what, found in (("patients", patients), ("studies", studies)):
        if len(found) > 1:
            raise MixedStudies(
                f"the folder holds CT series of {len(found)} {what}",
                "give the folder of one study of one patient",
                key=f"mixed_{what}",
            )


def _series_order(series: Series) -> tuple[float, str, int]:
    return (float("inf") if series.number is None else series.number, series.uid, series.part or 0)


def _study_uid(series: tuple[Series, ...]) -> str:
    uids = {header.tags.study_uid for one in series for header in one.slices} - {""}
    if uids:
        return uids.pop()
    slices = sorted(
        repr((header.sop_instance_uid, header.tags.uid, header.position, header.acquired_day, header.acquired_time))
        for one in series
        for header in one.slices
    )
    return hashlib.sha256("\n".join(slices).encode()).hexdigest()


def _notices(skipped: dict[str, int]) -> list[Notice]:
    suspicious = {reason: files for reason, files in skipped.items() if reason in SUSPICIOUS}
    if not suspicious:
        return []
    counts = ", ".join(f"{reason} {files}" for reason, files in suspicious.items())
    return [Notice("files_skipped", f"files that may belong to the study were skipped: {counts}")]
