"""What `fp-listen` knows of one study, as `state.json` in the study's folder of the spool; nothing is decided here.

The file is replaced in one step, so it is the old state or the new one. It holds the StudyInstanceUID, like the images
beside it: the spool is patient data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fourphase.runtime.atomic import write_file

__all__ = ["STATES", "StudyState", "read_state", "write_state"]

SCHEMA = "fourphase.spool_study/1"
STATES = ("receiving", "waiting", "running", "done", "failed")


@dataclass(frozen=True)
class StudyState:
    """The state of a study.

    Attributes:
        uid: StudyInstanceUID.
        state: receiving; waiting (for a lesion box); running; done; failed.
        content: names of the instances that the state speaks of, sorted; anything beyond them is news.
        box: signature of the lesion box file that was used; '' for a box that was received.
        attempts: runs of this content that were begun and not ended.
        case, revision: of the last result; revision 0 means none yet.
        error: the `error` object of a failed study.
        files_deleted: the instances were deleted after the run.
        changed: when it was written, seconds since 1970.
    """

    uid: str
    state: str = "receiving"
    content: tuple[str, ...] = ()
    box: str = ""
    attempts: int = 0
    case: str = ""
    revision: int = 0
    error: Mapping[str, Any] | None = None
    files_deleted: bool = False
    changed: float = 0.0


def write_state(path: Path, state: StudyState) -> None:
    """Raises: OutputNotWritable (30)."""
    body = {"schema": SCHEMA, **asdict(state)}
    write_file(path, json.dumps(body, indent=1, ensure_ascii=True).encode("ascii") + b"\n")


def read_state(path: Path) -> StudyState | None:
    """The state in a file; None if there is none or it is damaged, which only a broken disk can do."""
    try:
        body = json.loads(path.read_bytes())
        if body.pop("schema") != SCHEMA or body["state"] not in STATES or not isinstance(body["uid"], str):
            return None
        return StudyState(**{**body, "content": tuple(map(str, body["content"]))})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
