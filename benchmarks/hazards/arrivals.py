"""Hazards of how a study arrives: as a zip, honest or not, or not yet all of it."""

from __future__ import annotations

import os
import shutil
import zipfile
from functools import partial
from pathlib import Path

from fourphase.benchmarks.hazards.hazard import Case, Hazard
from fourphase.benchmarks.hazards.study import file_name

__all__ = ["ARRIVALS"]

ARCHIVE, SNAPSHOT = "tests/runtime/test_study_archive.py::", "tests/runtime/test_study_snapshot.py::"
_ONLY_ZIPS = "reads no zip"
_BOMB_BYTES = 2**30
_PIECE = 2**20


def _packed(case: Case, *, unsafe: bool) -> None:
    """The study as a zip, in the folder's place; its members lead out of it."""
    packed = case.root.with_suffix(".zip")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in case.all_paths():
            name = path.relative_to(case.root).as_posix()
            archive.write(path, f"../../../{name}" if unsafe else name)
    _replace_folder(case, packed)


def _zip_bomb(case: Case) -> None:
    """1 GB of zeros in 4 MB, beside the slices."""
    packed = case.root.with_suffix(".zip")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in case.all_paths():
            archive.write(path, path.relative_to(case.root).as_posix())
        with archive.open("bomb", "w", force_zip64=True) as bomb:
            for _ in range(_BOMB_BYTES // _PIECE):
                bomb.write(bytes(_PIECE))
    _replace_folder(case, packed)


def _replace_folder(case: Case, packed: Path) -> None:
    shutil.rmtree(case.root)
    os.rename(packed, case.root)


def _half_copied(case: Case) -> None:
    """The last series is not there yet."""
    shutil.move(case.root / "DL", case.root.parent / "coming")


def _copy_goes_on(case: Case) -> None:
    shutil.move(case.root.parent / "coming" / file_name(0), case.root / "last")


ARRIVALS = (
    Hazard(
        "zip",
        "the study as a zip",
        partial(_packed, unsafe=False),
        "read",
        ARCHIVE + "test_a_zip_is_read_like_its_folder",
        ours_only=_ONLY_ZIPS,
    ),
    Hazard(
        "zip_traversal",
        "a zip whose members lead out of the folder",
        partial(_packed, unsafe=True),
        "read: archive_unsafe_folders",
        ARCHIVE + "test_unsafe_folders_are_renamed",
        ours_only=_ONLY_ZIPS,
    ),
    Hazard(
        "zip_bomb",
        "a zip of 4 MB with 1 GB in it",
        _zip_bomb,
        "refused: 15 archive_over_limits",
        ARCHIVE + "test_an_honest_bomb_costs_nothing",
        ours_only=_ONLY_ZIPS,
    ),
    Hazard(
        "still_copied",
        "a study that is still being copied",
        _half_copied,
        "refused: 10 study_changing",
        SNAPSHOT + "test_what_a_half_copy_looks_like_gives_way_to_the_reason",
        ours_only="does not look for it",
        meanwhile=_copy_goes_on,
    ),
)
