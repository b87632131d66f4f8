"""One mutant through the reader, in this process: refused, accepted as it was, or accepted changed, and what was heard.

Everything that a person or a log could see is searched for the marker, and the study is looked at again afterwards: a
reader only reads. Crashes and hangs are `mutant_pool`'s to see.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.mutants.mutant import Mutant
from fourphase.benchmarks.mutants.oracle import judge
from fourphase.benchmarks.mutants.study import MARKER, PHASES, BaseStudy
from fourphase.runtime import pipeline
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import FourphaseError
from fourphase.runtime.private_copy import TMP_VARIABLE
from fourphase.runtime.study_archive import open_study

__all__ = ["ALLOWED_HU", "Bench", "Verdict"]

#: An input this near to the sound study's is the same.
ALLOWED_HU = 0.5
#: Small, so that a mutant takes milliseconds: what is read does not depend on it.
CONFIG = PreprocessingConfig(size=(16, 32, 32), spacing_mm=2.0)

States = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    Attributes:
        outcome: "refused", "unchanged", "notice" (unchanged with a new notice), one of `mutant_oracle.ORDER`, "bug",
            or, from the pool, "crash" or "hang".
        detail: code and key of a refusal, keys of new notices, what the oracle found, or a traceback.
        leak: the marker was heard. modified: an input was changed, or a temporary file left behind.
        off_hu: how far the input is off the sound study's.
    """

    number: int
    variant: str
    kind: str
    what: str
    outcome: str
    detail: str
    leak: bool = False
    modified: bool = False
    off_hu: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Bench:
    """Sound studies on disk, each changed for one mutant and put back.

    Args:
        root: an empty folder for them.
    """

    def __init__(self, root: Path, bases: Mapping[str, BaseStudy]) -> None:
        self.bases = bases
        self._root = root
        self._sound: dict[str, tuple[NDArray[np.float32], frozenset[str]]] = {}
        for name in ("temporary", "outside", "zips"):
            (root / name).mkdir()

    def check(self, mutant: Mutant) -> Verdict:
        """Runs the reader on a mutant; leaves the sound study behind."""
        with self.applied(mutant) as study, _heard() as heard:
            before = _states(study)
            outcome, detail, off_hu, said = self._read(mutant, study)
            modified = _states(study) != before or any((self._root / "temporary").iterdir())
        leak = MARKER.casefold() in "\n".join([*heard, *said]).casefold()
        body = mutant.number, mutant.variant, mutant.kind, mutant.change.what
        return Verdict(*body, outcome, detail, leak, modified, round(off_hu, 3))

    def _read(self, mutant: Mutant, study: Path) -> tuple[str, str, float, list[str]]:
        """Outcome, detail, distance, and every text that would be printed."""
        previous = os.environ.get(TMP_VARIABLE)
        os.environ[TMP_VARIABLE] = str(self._root / "temporary")
        try:
            sound, usual = self._sound_input(mutant.variant)
            with open_study(study) as opened:
                prepared = self._prepared(opened.folder, mutant.variant)
                keys = {notice.key for notice in (*opened.warnings, *prepared.warnings)} - usual
                said = [notice.message for notice in (*opened.warnings, *prepared.warnings)]
                for match in prepared.phases.values():
                    said += [match.series.uid, match.series.name, *match.evidence]
                off_hu = _distance_hu(prepared.input, sound)
                shown = ", ".join(sorted(keys))
                if off_hu <= ALLOWED_HU:
                    return ("notice" if keys else "unchanged"), shown, off_hu, said
                outcome, what = judge(self.bases[mutant.variant], mutant, prepared.phases, keys)
                return outcome, f"{what}; notices: {shown or 'none'}", off_hu, said
        except FourphaseError as error:
            outcome = "bug" if error.code == 1 else "refused"
            return outcome, f"{error.code} {error.key}", 0.0, [json.dumps(error.to_dict(), ensure_ascii=False)]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a Rust panic is no Exception
            return "bug", traceback.format_exc(limit=-4), 0.0, []
        finally:
            os.environ.pop(TMP_VARIABLE)
            if previous is not None:
                os.environ[TMP_VARIABLE] = previous

    def _write_sound(self, variant: str) -> None:
        """The sound study and its box, when the first mutant of it comes."""
        base, box = self.bases[variant], self._box(variant)
        if box.exists():
            return
        for file, content in base.files.items():
            _write(self._folder(variant) / file, content)
        box.write_text(base.box_json)

    def _sound_input(self, variant: str) -> tuple[NDArray[np.float32], frozenset[str]]:
        """The undisturbed study's input and the keys of its notices; the study lies beside, whole."""
        if variant not in self._sound:
            with tempfile.TemporaryDirectory() as folder:
                for file, content in self.bases[variant].files.items():
                    _write(Path(folder) / file, content)
                prepared = self._prepared(Path(folder), variant)
            self._sound[variant] = prepared.input, frozenset(notice.key for notice in prepared.warnings)
        return self._sound[variant]

    def _prepared(self, folder: Path, variant: str) -> pipeline.PreparedStudy:
        return pipeline.prepare_study(pipeline.StudyRequest(folder, self._box(variant)), tuple(PHASES), CONFIG)

    @contextmanager
    def applied(self, mutant: Mutant) -> Iterator[Path]:
        """The mutated study as a folder or a zip, within the context."""
        base, folder = self.bases[mutant.variant], self._folder(mutant.variant)
        self._write_sound(mutant.variant)
        if mutant.change.archive is not None:
            archive = self._root / "zips" / f"{MARKER}.zip"
            archive.write_bytes(mutant.change.archive)
            try:
                yield archive
            finally:
                archive.unlink()
            return
        try:
            for name, content in mutant.change.files.items():
                self._replace(folder / name, content)
            yield folder
        finally:
            for name in mutant.change.files:
                _remove(folder / name)
                if name in base.files:
                    _write(folder / name, base.files[name])

    def _replace(self, path: Path, content: object) -> None:
        if content == "link" and path.exists():
            shutil.copy(path, self._root / "outside" / path.name)
        _remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == "link":
            path.symlink_to(self._root / "outside" / path.name)
        elif content == "fifo":
            os.mkfifo(path)
        elif content == "folder":
            path.mkdir()

    def _folder(self, variant: str) -> Path:
        return self._root / variant / MARKER

    def _box(self, variant: str) -> Path:
        return self._root / variant / "box.json"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def _states(study: Path) -> States:
    """Every file and folder with all that changes when somebody writes to it."""
    found = {}
    for path in (study, *study.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


def _distance_hu(array: NDArray[np.float32], sound: NDArray[np.float32]) -> float:
    """The largest difference of two inputs (P, T, C, H, W) in HU, in the channel that shows it best."""
    scales = np.array([(high - low) * std for (low, high), std in zip(CONFIG.windows_hu, CONFIG.std, strict=True)])
    return float((np.abs(array - sound) * scales[:, None, None].astype(np.float32)).max())


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Everything that is printed, logged or warned of; descriptors 1 and 2 too, which C libraries use."""
    heard: list[str] = []
    handler = _Listener(heard)
    root = logging.getLogger()
    level, printed = root.level, io.StringIO()
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile())
        stack.enter_context(_descriptors(file.fileno()))
        stack.enter_context(redirect_stdout(printed))
        stack.enter_context(redirect_stderr(printed))
        warned = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        try:
            yield heard
        finally:
            root.setLevel(level)
            root.removeHandler(handler)
            file.seek(0)
            heard += [printed.getvalue(), file.read().decode(errors="replace"), *(str(one.message) for one in warned)]


class _Listener(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__()
        self._texts = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())


@contextmanager
def _descriptors(target: int) -> Iterator[None]:
    kept = [os.dup(number) for number in (1, 2)]
    try:
        for number in (1, 2):
            os.dup2(target, number)
        yield
    finally:
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
