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
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fourphase.calibration.calibration_set import (
    MANIFEST,
    SCHEMA,
    STORED,
    CalibrationCase,
    CalibrationSet,
    load_calibration_set,
)
from fourphase.calibration.hu_histogram import HUHistograms
from fourphase.runtime.atomic import new_directory
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.console import progress
from fourphase.runtime.errors import FourphaseError, InputMissing, OutputNotWritable, PixelDataError, UsageError
from fourphase.runtime.pipeline import PreparedStudy, StudyRequest, prepare_study
from fourphase.runtime.result import SALT_VARIABLE, case_hash

__all__ = ["calibrate", "study_requests", "write_calibration_set"]

#: A folder of one study as `fp-bench phantom` writes it.
_DICOM, _BOX = "dicom", "lesion_box.json"


def calibrate(
    requests: Sequence[StudyRequest], config: PreprocessingConfig, target: Path, phases: Sequence[str]
) -> CalibrationSet:
    """Reads and preprocesses studies into a calibration set at `target`.

    Args:
        config, phases: of the model that will be calibrated.

    Raises: the StudyError that applies (10 to 17), saying which of the studies it was; UsageError (2) for two studies
        of the same content; OutputNotWritable (30). In every case the target is untouched.
    """
    with progress("preparing studies", len(requests)) as advance:

        def prepared() -> Iterator[PreparedStudy]:
            for number, request in enumerate(requests, start=1):
                with _naming(number, len(requests)):
                    study = prepare_study(request, phases, config)
                yield study
                advance(1)

        return write_calibration_set(target, prepared(), config, phases)


def study_requests(folders: Sequence[Path], boxes: Sequence[Path] = ()) -> tuple[StudyRequest, ...]:
    """What the command line means: study folders with one box each, or folders in `fp-bench phantom`'s layout.

    In that layout a folder holds `dicom` and `lesion_box.json`, or several folders that do.

    Raises: UsageError (2) if boxes were given, but not one per folder; InputMissing (10) if there are no studies.
    """
    if boxes:
        if len(boxes) != len(folders):
            raise UsageError(
                f"{len(folders)} study folders with {len(boxes)} boxes",
                "give one --box per study folder, in the same order",
                key="boxes_do_not_match",
            )
        return tuple(StudyRequest(folder, box) for folder, box in zip(folders, boxes, strict=True))
    cases = [case for folder in folders for case in _cases(folder)]
    if not cases:
        raise InputMissing(
            f"there is no study: no folder holds {_DICOM}/ and {_BOX}",
            "give --box FILE for each study folder, or folders as fp-bench phantom writes them",
            key="calibration_empty",
        )
    return tuple(StudyRequest(case / _DICOM, case / _BOX) for case in cases)


def write_calibration_set(
    target: Path, studies: Iterable[PreparedStudy], config: PreprocessingConfig, phases: Sequence[str]
) -> CalibrationSet:
    """Writes the set; `studies` is consumed one by one.

    Returns: the set as a reader finds it.

    Raises: InputMissing (10) without a study; UsageError (2) for two studies of the same content; PixelDataError (15)
        for a value that is not finite; OutputNotWritable (30). In every case the target is untouched.
    """
    _check_target(target)
    with new_directory(target) as folder:
        writer = _Writer(folder, config, phases)
        for study in studies:
            writer.add(study)
        writer.finish()
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

    def finish(self) -> None:
        if not self.cases:
            raise InputMissing("there is no study to calibrate on", "give at least one study", key="calibration_empty")
        document = {
            "schema": SCHEMA,
            "tools": {name: version(name) for name in ("fourphase", "numpy", "pydicom")},
            "phases": self.phases,
            "preprocessing": self.config.to_dict(),
            "preprocessing_hash": self.config.hash,
            "salted": bool(os.environ.get(SALT_VARIABLE)),
            "cases": [asdict(self.cases[digest]) for digest in sorted(self.cases)],
            "hu_histograms": self.histograms.to_dict(),
        }
        (self.folder / MANIFEST).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="ascii")


def _npy(study: PreparedStudy, number: int) -> bytes:
    if not np.isfinite(study.input).all():
        raise PixelDataError(
            f"study {number} holds values that are not finite",
            "export the study again from the archive, or leave it out",
            key="input_not_finite",
        )
    buffer = io.BytesIO()
    np.save(buffer, study.input.astype(STORED), allow_pickle=False)
    return buffer.getvalue()


def _cases(folder: Path) -> list[Path]:
    """The folder itself if it is one study, otherwise the studies in it, by name."""
    if (folder / _BOX).is_file():
        return [folder]
    return sorted(box.parent for box in folder.glob(f"*/{_BOX}"))


def _check_target(target: Path) -> None:
    """Refuses to replace a directory that is neither empty nor a calibration set."""
    taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if taken and not (target / MANIFEST).is_file():
        raise OutputNotWritable(
            f"{target} exists and is not a calibration set",
            "choose a new directory, an empty one, or a calibration set to replace",
            key="target_not_a_set",
        )


@contextmanager
def _naming(number: int, count: int) -> Iterator[None]:
    """An error of one study of several says which, by its place on the command line (folders may name patients)."""
    try:
        yield
    except FourphaseError as error:
        message = f"study {number} of {count}: {error.message}"
        raise type(error)(message, error.hint, key=error.key, table=error.table) from error
    except OSError as error:
        # Or it would pass for a failure to write the set.
        raise InputMissing(
            f"study {number} of {count} cannot be read: {(error.strerror or 'error').lower()}",
            "check the disk it lies on, and try again",
        ) from error
