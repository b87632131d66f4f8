"""Where a run's result goes: `OUTPUT/<case>/` with result.json, run.json and sr.dcm, each written once per content.

A changed study is another run: its result lies beside the earlier one, in `<case>-2`, `<case>-3` and so on, and
run.json has the number as `revision`. A run that was interrupted and repeated leaves what it wrote as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fourphase.runtime.atomic import new_directory

if TYPE_CHECKING:
    from fourphase.runtime.pipeline import PreparedStudy
    from fourphase.runtime.result import StudyResult

__all__ = ["Written", "run_key", "write_outcome"]

SCHEMA = "fourphase.listen_run/1"


@dataclass(frozen=True)
class Written:
    """A result on disk. revision: 1 for the first content of the study. new: false if it was there already."""

    folder: Path
    revision: int
    new: bool

    @property
    def sr(self) -> Path:
        return self.folder / "sr.dcm"


def run_key(names: Iterable[str], box: bytes, settings: Mapping[str, str]) -> str:
    """sha256 (hex) of all that a result depends on.

    Args:
        names: of the instances, which hold their content's digest.
        box: the site's box file; b'' for a box that was received.
        settings: the bundle and the options.
    """
    parts = {"content": sorted(names), "box": hashlib.sha256(box).hexdigest(), "settings": dict(settings)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_outcome(result: StudyResult, prepared: PreparedStudy, output: Path, key: str) -> Written:
    """Writes the result and then the SR, so that a failing SR never costs the result.

    Args:
        key: from `run_key`. The study's files must still be there.

    Raises: OutputNotWritable (30); what `sr.write_sr` raises.
    """
    from fourphase.runtime.sr import write_sr

    written = _place(output, result.case, key)
    if written.new:
        with new_directory(written.folder) as folder:
            (folder / "result.json").write_bytes(result.to_json().encode("ascii") + b"\n")
            run = {"schema": SCHEMA, "revision": written.revision, "key": key}
            (folder / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="ascii")
    if not written.sr.exists():
        write_sr(result, prepared, written.sr)
    return written


def _place(output: Path, case: str, key: str) -> Written:
    """The folder that holds this run, or the first one that is free."""
    revision = 1
    while True:
        folder = output / (case if revision == 1 else f"{case}-{revision}")
        if not folder.exists():
            return Written(folder, revision, new=True)
        if _key_of(folder) == key:
            return Written(folder, revision, new=False)
        revision += 1


def _key_of(folder: Path) -> str:
    try:
        return str(json.loads((folder / "run.json").read_bytes())["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
