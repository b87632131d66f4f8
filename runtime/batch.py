"""Several studies, one after the other: found in folders, paired with their boxes, run, summed up after each.

One failing study does not stop the rest; a lost GPU, a full disk under the summary and a signal do. What one study
writes is `run_outputs`'s, what the summary looks like is `summary`'s.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from fourphase.runtime.console import note, print_bug, print_error, progress, say_errors_as_json, stdout_checked
from fourphase.runtime.errors import (
    GPU_LOST,
    FourphaseError,
    InputMissing,
    PhaseAmbiguous,
    SomeStudiesFailed,
    UsageError,
)
from fourphase.runtime.pipeline import LoadedModel, StudyRequest
from fourphase.runtime.run_outputs import Outcome, RunFiles, as_error, done_cases, run_one
from fourphase.runtime.summary import Entry, Summary, write_summary

__all__ = ["BatchOptions", "boxes_of", "check_boxes", "list_studies", "run_batch", "study_name"]

#: Called with a study's number, its request and its error.
Settle: TypeAlias = Callable[[int, StudyRequest, PhaseAmbiguous], None]

TEMPLATE = "{study}"
#: Zip files by content that are documents; they may lie beside the studies.
_DOCUMENTS = (".docx", ".xlsx", ".xlsm", ".pptx", ".odt", ".ods", ".odp")
_BOX_CURE = "correct --box FILE"


@dataclass(frozen=True)
class BatchOptions:
    """How several studies are run.

    Attributes:
        force: also those that were done before.
        names: put the folders' names into the summary; they often are patients' names.
        json: one document on stdout at the end, instead of text after each study.
        ignored: what lay beside the studies, for the summary.
    """

    force: bool = False
    names: bool = False
    json: bool = False
    ignored: int = 0


def list_studies(folders: Sequence[Path]) -> tuple[list[Path], int]:
    """The studies in folders of studies: every direct child that is a folder or a zip file, by name, hidden ones not.

    Returns:
        The studies, and how many other files lay beside them.

    Raises:
        InputMissing: no such folder, or none of them holds a study.
    """
    studies, others = [], 0
    for folder in folders:
        try:
            with os.scandir(folder) as found:
                entries = sorted((one for one in found if not one.name.startswith(".")), key=lambda one: one.name)
        except OSError as error:
            causes = {FileNotFoundError: "does not exist", NotADirectoryError: "is not a folder"}
            cause = causes.get(type(error), "cannot be read")
            raise InputMissing(f"a folder of studies {cause}", "give a folder that holds study folders") from None
        here = [Path(one.path) for one in entries if one.is_dir() or _is_zip(one)]
        studies += here
        others += len(entries) - len(here)
    if not studies:
        cause = "the folder holds no studies: neither folders nor zip files"
        raise InputMissing(cause, "leave --each out to run the folder as one study", key="no_studies")
    return studies, others


def _is_zip(entry: os.DirEntry[str]) -> bool:
    """By name, so that a damaged zip is a failed study; by content, whatever it is called, unless it is a document."""
    suffix = Path(entry.name).suffix.casefold()
    if not entry.is_file() or suffix in _DOCUMENTS:
        return False
    if suffix == ".zip":
        return True
    try:
        with open(entry.path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def study_name(study: Path) -> str:
    """The folder's own name, or the zip file's without `.zip`: what stands for {study}."""
    path = Path(os.path.abspath(study))
    return path.stem if path.suffix.casefold() == ".zip" and path.is_file() else path.name


def boxes_of(studies: Sequence[Path], boxes: Sequence[Path], *, each: bool) -> list[Path]:
    """The box of every study.

    Args:
        boxes: one per study, or one that holds {study}; with `each` also one path to look up in every study folder.

    Raises: UsageError.
    """
    if not boxes:
        cure = "give --box FILE: JSON in LPS mm, a NIfTI label mask, DICOM SEG or RTSTRUCT"
        raise UsageError("no lesion box is given", cure, key="box_missing")
    if len(boxes) == 1 and TEMPLATE in str(boxes[0]):
        return [Path(str(boxes[0]).replace(TEMPLATE, study_name(study))) for study in studies]
    if each and len(boxes) == 1:
        return [_box_within(study, boxes[0], len(studies)) for study in studies]
    if each or len(boxes) != len(studies):
        cure = "give --box once, with {study} in it" if each else "give --box FILE once per study, in the same order"
        cause = f"{len(studies)} studies need {len(studies)} lesion boxes, {len(boxes)} given"
        raise UsageError("--each takes one --box" if each else cause, cure, key="box_count")
    return list(boxes)


def _box_within(study: Path, box: Path, studies: int) -> Path:
    if box.is_absolute() and studies > 1:
        cause, cure = f"one lesion box is given for {studies} studies", "put {study} into the path of --box"
        raise UsageError(cause, cure, key="box_absolute")
    return study / box


def check_boxes(requests: Sequence[StudyRequest], *, each: bool) -> None:
    """Whether the boxes are there, before the model is loaded.

    With `each` a box that only some studies lack is those studies' failure; so is an empty folder, which has none.

    Raises: InputMissing (10).
    """
    missing = [number for number, request in enumerate(requests, 1) if not request.box.is_file()]
    if not each and missing:
        whose = "the lesion box" if len(requests) == 1 else f"the lesion box of study {missing[0]}"
        what = "is not a file" if requests[missing[0] - 1].box.is_dir() else "does not exist or cannot be read"
        raise InputMissing(f"{whose} {what}", _BOX_CURE)
    if len(missing) == len(requests) and any(_holds_files(request.folder) for request in requests):
        cure = "name the box as it is called in every study folder, or put {study} into its path (for zip files, too)"
        raise InputMissing("no study has such a lesion box", cure)


def _holds_files(folder: Path) -> bool:
    return not folder.is_dir() or any(files for _, _, files in os.walk(folder))


def run_batch(
    model: LoadedModel, requests: Sequence[StudyRequest], files: RunFiles, options: BatchOptions, settle: Settle
) -> None:
    """Runs every study, prints results and errors, and writes the summary after each study.

    Args:
        settle: called in the end for every study whose phases are ambiguous, with its number.

    Raises:
        SomeStudiesFailed (40): after all studies, if one failed.
        GPUUnavailable (22): the GPU is lost.
        OutputNotWritable (30): the summary or stdout cannot be written.
    """
    say_errors_as_json(False)  # from here on an error is part of the one JSON document
    batch = _Batch(model, requests, files, options)
    ended: FourphaseError | None = None
    try:
        batch.run()
    except FourphaseError as error:
        ended = error
    if options.json:
        document = {"schema": "fourphase.results/1", "results": batch.documents}
        with stdout_checked():
            print(json.dumps(document, indent=1, allow_nan=False))
    for number, ambiguous in batch.ambiguous:
        settle(number, requests[number - 1], ambiguous)
    totals = batch.summary.totals
    note(", ".join(f"{count} {name}" for name, count in totals.items() if count or name == "failed"))
    if ended is not None:
        raise ended
    if totals["failed"]:
        cure = "see the errors above; the other results are complete"
        raise SomeStudiesFailed(f"{totals['failed']} of {len(requests)} studies failed", cure)


class _Batch:
    """The run of several studies, and what is known of those that have ended."""

    def __init__(
        self, model: LoadedModel, requests: Sequence[StudyRequest], files: RunFiles, options: BatchOptions
    ) -> None:
        self._model, self._requests, self._files, self._options = model, requests, files, options
        self._stdout = sys.stdout  # a progress bar on stderr takes its place
        classes = model.bundle.classes
        self.summary = Summary(len(requests), classes, ignored=options.ignored, names=options.names)
        self.documents: list[dict[str, Any]] = []
        self.ambiguous: list[tuple[int, PhaseAmbiguous]] = []

    def run(self) -> None:
        folder = self._files.folder
        done = {} if folder is None or self._options.force else done_cases(folder)
        self._save()  # an older run's summary must not stand for this one
        with progress("studies", len(self._requests)) as advance:
            for number, request in enumerate(self._requests, 1):
                note(f"study {number} of {len(self._requests)}")
                started = time.perf_counter()
                outcome = run_one(self._model, request, self._files, done)
                self._keep(number, outcome, time.perf_counter() - started)
                advance(1)

    def _keep(self, number: int, outcome: Outcome, seconds: float) -> None:
        errors = [as_error(failure) for failure in outcome.failures]
        entry = self._entry(number, outcome, errors, seconds)
        self.summary = replace(self.summary, entries=(*self.summary.entries, entry))
        self.documents.append(_document(entry, outcome))
        self.ambiguous += [(number, error) for error in errors if isinstance(error, PhaseAmbiguous)]
        try:
            self._save()
        finally:
            self._show_safely(outcome)
        for failure, error in zip(outcome.failures, errors, strict=True):
            if error.key == GPU_LOST:
                raise error
            if failure is not error:
                print_bug(failure)
            print_error(error)

    def _entry(self, number: int, outcome: Outcome, errors: Sequence[FourphaseError], seconds: float) -> Entry:
        body = outcome.body or {}
        return Entry(
            number,
            "failed" if errors else "skipped" if outcome.skipped else "done",
            body.get("case"),
            outcome.request,
            body.get("prediction"),
            tuple(warning["key"] for warning in body.get("warnings", ())),
            errors[0].to_dict() if errors else None,
            seconds,
            study_name(self._requests[number - 1].folder) if self._options.names else None,
        )

    def _save(self) -> None:
        if self._files.folder is not None:
            write_summary(self.summary, self._files.folder)

    def _show_safely(self, outcome: Outcome) -> None:
        """The result is written: that it cannot be printed for a person does not stop the studies after it."""
        try:
            self._show(outcome)
        except FourphaseError:
            raise
        except Exception as error:
            print_bug(error)

    def _show(self, outcome: Outcome) -> None:
        if self._options.json or outcome.body is None:
            return
        from fourphase.runtime.report import print_done_before, print_result

        text = io.StringIO()
        if outcome.result is None:
            print_done_before(outcome.body, text)
        else:
            print_result(outcome.result, text, preview=self._files.preview_of(outcome.result.case))
        # On a terminal through the bar, which stays below; what is not a terminal gets it in any case.
        stdout = sys.stdout if self._stdout.isatty() else self._stdout
        with stdout_checked():
            print(text.getvalue(), end="", file=stdout, flush=True)


def _document(entry: Entry, outcome: Outcome) -> dict[str, Any]:
    """The study in the JSON on stdout: its result, or its error, or both if only a file could not be made."""
    body = dict(outcome.body) if outcome.body is not None else {"schema": "fourphase.error/1"}
    error = {} if entry.error is None else {"error": entry.error}
    return {"number": entry.number, "status": entry.status, **body, **error}
