"""Where the lesion box of a received study comes from: a file the site put beside the spool, or an object in the study.

A file `DIR/<StudyInstanceUID>.json` (or `.nii.gz`, `.nii`) wins over a segmentation or structure set that was received.
Without either there is no box, and none is guessed. What the box says is `box_file`'s question.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fourphase.runtime.errors import BoxInvalid
from fourphase.runtime.listen.instance import BOX_KINDS

__all__ = ["FoundBox", "box_signature", "find_box"]

_ENDINGS = (".json", ".nii.gz", ".nii")
#: A file younger than this may still be being written.
_SETTLED_S = 1.0


@dataclass(frozen=True)
class FoundBox:
    """A lesion box.

    Attributes:
        path: of the site's file, or the name of a received instance.
        kind: "json", "nifti", "seg" or "rtstruct".
        signature: changes with the site's file; '' for a received object.
    """

    path: Path
    kind: str
    signature: str = ""


def find_box(boxes: Path | None, uid: str, names: Iterable[str]) -> FoundBox | None:
    """The study's lesion box; None if there is none yet.

    Args:
        uid: StudyInstanceUID, digits and dots.
        names: of the study's instances in the spool.

    Raises: BoxInvalid (16) if there are several and nothing says which.
    """
    files = _files(boxes, uid)
    if len(files) > 1:
        raise _several(f"{len(files)} files")
    if files:
        kind = "json" if files[0].suffix == ".json" else "nifti"
        return FoundBox(files[0], kind, box_signature(boxes, uid))
    received = [(name, kind) for name in sorted(names) for kind in BOX_KINDS if name.endswith(f".{kind}.dcm")]
    if len(received) > 1:
        raise _several(f"{len(received)} segmentations and structure sets in the study")
    return FoundBox(Path(received[0][0]), received[0][1]) if received else None


def box_signature(boxes: Path | None, uid: str) -> str:
    """What changes when the site adds, changes or removes a study's box file; '' if there is none."""
    stats = [(path.suffix, path.stat()) for path in _files(boxes, uid)]
    return " ".join(f"{suffix} {stat.st_size} {stat.st_mtime_ns}" for suffix, stat in stats)


def _files(boxes: Path | None, uid: str) -> list[Path]:
    if boxes is None:
        return []
    files = [boxes / f"{uid}{ending}" for ending in _ENDINGS]
    return [path for path in files if path.is_file() and not 0 <= time.time() - path.stat().st_mtime < _SETTLED_S]


def _several(what: str) -> BoxInvalid:
    return BoxInvalid(
        f"the study has several lesion boxes: {what}",
        "put the one that counts into the folder of --boxes, as <StudyInstanceUID>.json",
        key="box_several",
    )
