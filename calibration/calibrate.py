"""Studies -> calibration set: what `fp-export calibrate` does. One study is in memory at a time.

The set takes its name only when every study is in it; a study that cannot be used ends the command, because a set that
silently lacks the difficult studies is not the one that was asked for.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fourphase.calibration.calibration_set import (
    MANIFEST,
    SCHEMA,
    STORED,
    CalibrationCase,
    CalibrationSet,
    check_overlap,
    load_calibration_set,
)
from fourphase.calibration.case_table import CalibrationRequest
from fourphase.calibration.hu_histogram import HUHistograms
from fourphase.runtime.atomic import check_file_target, new_directory
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.console import note, progress
from fourphase.runtime.errors import FourphaseError, InputMissing, OutputNotWritable, PixelDataError, UsageError
from fourphase.runtime.pipeline import PreparedStudy, StudyRequest, prepare_study
from fourphase.runtime.result import SALT_VARIABLE, case_hash

__all__ = ["calibrate", "check_target", "write_calibration_set"]

#: Options of fp-run that hints speak of. What they choose differs from study to study.
_ABSENT_OPTIONS = ("--phase", "--label")


def calibrate(
    requests: Sequence[CalibrationRequest],
    config: PreprocessingConfig,
    target: Path,
    phases: Sequence[str],
    exclude: Sequence[CalibrationSet] = (),
) -> CalibrationSet:
    """Reads and preprocesses studies into a calibration set at `target`.

    Args:
        config, phases: of the model that will be calibrated.
        exclude: sets that no study may be in.

    Raises: the StudyError that applies (10 to 17), saying which of the studies it was; UsageError (2) for two studies
        of the same content, and as `check_overlap`; OutputNotWritable (30). In every case the target is untouched.
    """
    with progress("preparing studies", len(requests)) as advance:

        def prepared() -> Iterator[PreparedStudy]:
            for number, request in enumerate(requests, start=1):
                # Not kept in a variable: it would stay in memory while the next one is prepared.
                yield _prepared(request.study, phases, config, f"study {number} of {len(requests)}")
                advance(1)

        labels = [request.label for request in requests]
        return write_calibration_set(target, prepared(), config, phases, labels=labels, exclude=exclude)


def check_target(target: Path) -> None:
    """Refuses a target before work is spent on it: one that is not a set to replace, or that cannot be written.

    Raises: OutputNotWritable (30).
    """
    try:
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
        foreign = taken and not (target / MANIFEST).is_file()
    except OSError as error:
        raise _refused(target, f"cannot be read ({(error.strerror or 'error').lower()})") from error
    if foreign:
        raise _refused(target, "exists and is not a calibration set")
    # A set is moved into place, so it is the directory around it that must be writable.
    final = Path(os.path.realpath(target))
    check_file_target(final.with_name(f".{final.name}") if final.is_dir() else final)


def write_calibration_set(
    target: Path,
    studies: Iterable[PreparedStudy],
    config: PreprocessingConfig,
    phases: Sequence[str],
    *,
    labels: Sequence[str | None] | None = None,
    exclude: Sequence[CalibrationSet] = (),
) -> CalibrationSet:
    """Writes the set; `studies` is consumed one by one.

    Args:
        labels: the true class of each study. exclude: sets that no study may be in.

    Returns: the set as a reader finds it.

    Raises: InputMissing (10) without a study; UsageError (2) for two studies of the same content, and as
        `check_overlap`; PixelDataError (15) for a value that is not finite; OutputNotWritable (30). In every case the
        target is untouched.
    """
    check_target(target)
    for other in exclude:
        other.check_salt(_salt_mark())
    with new_directory(target) as folder:
        writer = _Writer(folder, config, phases)
        for study in studies:
            writer.add(study)
            del study  # it would stay in memory while the next one is prepared
        writer.finish(labels)
        made = load_calibration_set(folder, config, phases)
        names = [writer.name_of(case) for case in made.cases]
        for other in exclude:
            check_overlap(made, other, names)
    return load_calibration_set(target, config, phases)


class _Writer:
    """Writes the files of a set into an empty folder."""

    def __init__(self, folder: Path, config: PreprocessingConfig, phases: Sequence[str]) -> None:
        self.folder, self.config, self.phases = folder, config, tuple(phases)
        self.histograms = HUHistograms(config, phases)
        self.cases: dict[str, CalibrationCase] = {}
        (folder / "cases").mkdir()

    def add(self, study: PreparedStudy) -> None:
        number = len(self.cases) + 1
        data = _npy(study, number)
        digest = hashlib.sha256(data).hexdigest()
        if digest in self.cases:
            first = list(self.cases).index(digest) + 1
            raise UsageError(
                f"studies {first} and {number} have the same content, which would count it twice",
                "leave one of them out",
                key="calibration_duplicate",
            )
        name = f"cases/{digest[:16]}.npy"
        (self.folder / name).write_bytes(data)
        self.histograms.add(study.input)
        slices = {phase: len(match.series.slices) for phase, match in study.phases.items()}
        # Without the site's secret the schema stands in, so that two sets of one site can be compared.
        self.cases[digest] = CalibrationCase(case_hash(study.uid, SCHEMA), name, digest, len(data), slices)

    def name_of(self, case: CalibrationCase) -> str:
        """Its place in the order in which the studies were given; zeros, so that names sort as numbers do."""
        return f"study {list(self.cases).index(case.sha256) + 1:0{len(str(len(self.cases)))}}"

    def finish(self, labels: Sequence[str | None] | None) -> None:
        if not self.cases:
            raise InputMissing("there is no study to calibrate on", "give at least one study", key="calibration_empty")
        given = [None] * len(self.cases) if labels is None else labels
        cases = [replace(case, label=label) for case, label in zip(self.cases.values(), given, strict=True)]
        document = {
            "schema": SCHEMA,
            "tools": {name: version(name) for name in ("fourphase", "numpy", "pydicom")},
            "phases": self.phases,
            "preprocessing": self.config.to_dict(),
            "preprocessing_hash": self.config.hash,
            "salted": bool(os.environ.get(SALT_VARIABLE)),
            "salt_mark": _salt_mark(),
            "cases": [asdict(case) for case in sorted(cases, key=lambda case: case.sha256)],
            "hu_histograms": self.histograms.to_dict(),
        }
        (self.folder / MANIFEST).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="ascii")


def _npy(study: PreparedStudy, number: int) -> bytes:
    with np.errstate(over="ignore"):
        stored = study.input.astype(STORED)
    if not np.isfinite(stored).all():
        raise PixelDataError(
            f"study {number} holds values that are not finite, or too large for {STORED}",
            "export the study again from the archive, or leave it out",
            key="input_not_finite",
        )
    buffer = io.BytesIO()
    np.save(buffer, stored, allow_pickle=False)
    return buffer.getvalue()


def _refused(target: Path, why: str) -> OutputNotWritable:
    return OutputNotWritable(
        f"{target} {why}",
        "choose a new directory, an empty one, or a calibration set to replace",
        key="target_not_a_set",
    )


def _salt_mark() -> str:
    """What stands for FOURPHASE_SALT, or for its absence, in the sets made now."""
    return case_hash("", SCHEMA)


def _prepared(request: StudyRequest, phases: Sequence[str], config: PreprocessingConfig, name: str) -> PreparedStudy:
    with _naming(name):
        study = prepare_study(request, phases, config)
    for notice in study.warnings:
        note(f"{name}: {notice.message}")
    return study


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """An error of one study of several says which, by its place on the command line (folders may name patients)."""
    try:
        yield
    except FourphaseError as error:
        hint = error.hint
        if any(option in hint for option in _ABSENT_OPTIONS):
            hint = "give a copy of the study with only the right series, and a mask with one label, or leave it out"
        raise type(error)(f"{name}: {error.message}", hint, key=error.key, table=error.table) from error
    except OSError as error:
        # Or it would pass for a failure to write the set.
        raise InputMissing(
            f"{name} cannot be read: {(error.strerror or 'error').lower()}",
            "check the disk it lies on, and try again",
        ) from error
