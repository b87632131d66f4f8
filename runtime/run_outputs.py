"""One study run and written: result.json first, then input, preview and SR, last the record that all of it is there.

The record, `OUTPUT/<case>/request.json`, holds the hash of what was asked (content, box, options, model) and the sha256
of every file; whatever does not agree with it was not done. Nothing is computed here; several studies are `batch`'s.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fourphase.runtime.atomic import check_file_target, write_file
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.dicom_file import open_regular
from fourphase.runtime.errors import EnvironmentFault, FourphaseError, OutputNotWritable, UsageError
from fourphase.runtime.pipeline import LoadedModel, PreparedStudy, StudyRequest, run_study
from fourphase.runtime.result import SCHEMA as RESULT_SCHEMA
from fourphase.runtime.result import StudyResult, case_hash, write_result
from fourphase.runtime.study_archive import open_study
from fourphase.runtime.study_snapshot import content_hash, request_hash, unchanged

__all__ = ["Outcome", "RunFiles", "as_error", "check_files", "done_cases", "run_one"]

SCHEMA = "fourphase.request/1"
RESULT, PREVIEW, SR, RECORD = "result.json", "preview.png", "sr.dcm", "request.json"
#: The package behind each file, and the extra that installs it.
_EXTRAS = {PREVIEW: ("PIL", "preview"), SR: ("highdicom", "sr")}
#: Far above any real result, preview or SR.
_LARGEST_FILE = 64 << 20


@dataclass(frozen=True)
class RunFiles:
    """What a run writes.

    Attributes:
        folder: OUTPUT; each case has a folder in it.
        preview, sr: preview.png and sr.dcm beside result.json.
        input: the .npy file for the network's input.
    """

    folder: Path | None = None
    preview: bool = False
    sr: bool = False
    input: Path | None = None

    @property
    def extras(self) -> tuple[str, ...]:
        """The files beside result.json, in the order in which they are written."""
        return tuple(name for name, wanted in ((PREVIEW, self.preview), (SR, self.sr)) if wanted)

    def preview_of(self, case: str) -> str | None:
        """Where the preview of a case lies; None if none was asked for or made."""
        path = (self.folder or Path()) / case / PREVIEW
        return str(path) if self.preview and path.is_file() else None


@dataclass(frozen=True, eq=False)
class Outcome:
    """How a study ended.

    Attributes:
        body: the result as its JSON; None if there is none. result: likewise; None also for a skipped study.
        request: hash of what was asked; None without an output folder, or if the study could not be hashed.
        failures: empty if all went well. With a result: what of the files could not be made.
        skipped: it was done before; `body` is what that run wrote.
    """

    body: Mapping[str, Any] | None
    result: StudyResult | None
    request: str | None
    failures: tuple[Exception, ...] = ()
    skipped: bool = False


def check_files(files: RunFiles, studies: int, inputs: list[Path]) -> None:
    """Everything about the outputs that can be known before the model is loaded.

    Args:
        inputs: the STUDY_DIR arguments; nothing is written into them.

    Raises: UsageError (2), EnvironmentFault (24), OutputNotWritable (30).
    """
    for name in files.extras:
        if files.folder is None:
            option = "--preview" if name == PREVIEW else "--sr"
            raise UsageError(f"{option} needs --output", "give --output DIR", key="output_missing")
        package, extra = _EXTRAS[name]
        if importlib.util.find_spec(package) is None:
            cure = f"pip install 'fourphase[{extra}]'"
            raise EnvironmentFault(f"the package {package} is not installed", cure, key="extra_missing")
    if files.input is not None:
        _check_input_file(files.input, studies)
    if files.folder is not None:
        target = Path(os.path.realpath(files.folder))
        if any(target.is_relative_to(os.path.realpath(folder)) for folder in inputs if folder.is_dir()):
            cause = "the output folder lies in a study folder, which is only ever read"
            raise UsageError(cause, "choose an --output DIR outside", key="output_in_study")
        check_file_target(files.folder / "summary.json")


def _check_input_file(path: Path, studies: int) -> None:
    if studies > 1:
        raise UsageError("--save-input takes one study", "run the studies one by one", key="save_input_several")
    if path.suffix != ".npy":
        raise UsageError(f"--save-input {path.name} is not a .npy file", "name it FILE.npy", key="save_input_name")
    check_file_target(path)


def run_one(
    model: LoadedModel, request: StudyRequest, files: RunFiles, done: Mapping[str, str] | None = None
) -> Outcome:
    """Runs a study (a folder or a zip file) and writes what was asked for; never raises an Exception, see Outcome.

    Args:
        done: request hash -> case, of `done_cases`: what is in it and complete is not run again.
    """
    asked = None
    try:
        with unchanged(request.folder) as check_unchanged:
            if files.folder is not None:
                asked = _request_hash(model, request)
                body = _done_before(files.folder, files, asked, done or {})
                if body is not None and files.input is None:  # the network's input is never kept
                    return Outcome(body, None, asked, skipped=True)
            with open_study(request.folder) as opened:
                opened_request = replace(request, folder=opened.folder)
                result, prepared = run_study(model, opened_request, keep_input=files.input is not None)
                check_unchanged()  # before anything is written
                result = replace(result, warnings=tuple(dict.fromkeys([*opened.warnings, *result.warnings])))
                config = model.bundle.preprocessing
                return Outcome(result.to_dict(), result, asked, _write(result, prepared, config, files, asked))
    except Exception as error:
        return Outcome(None, None, asked, (error,))


def as_error(failure: Exception) -> FourphaseError:
    """The failure in the contract's form; what was not raised on purpose is a bug (1) and only its type is told."""
    if isinstance(failure, FourphaseError):
        return failure
    cause = f"this is a bug in fourphase ({type(failure).__name__})"
    return FourphaseError(cause, "report it with the lines above and the output of pip list")


def _write(
    result: StudyResult, prepared: PreparedStudy, config: PreprocessingConfig, files: RunFiles, asked: str | None
) -> tuple[Exception, ...]:
    """Writes everything, in order; what one file's failure is does not keep the next from being written."""
    failures: list[Exception] = []

    def attempt(write: Callable[..., object], *arguments: object) -> bool:
        try:
            write(*arguments)
        except Exception as error:
            failures.append(error)
            return False
        return True

    if files.folder is not None:
        case = files.folder / result.case
        if not attempt(_make_room, case, asked) or not attempt(write_result, result, files.folder):
            return tuple(failures)  # nothing may be newer than the result it belongs to
    if files.input is not None:
        attempt(_save_array, files.input, prepared)
    if files.folder is not None:
        for name in files.extras:
            attempt(_write_extra, name, result, prepared, config, case / name)
        if asked is not None and not failures:
            attempt(_write_record, case, asked)
    return tuple(failures)


def _write_extra(
    name: str, result: StudyResult, prepared: PreparedStudy, config: PreprocessingConfig, path: Path
) -> None:
    if name == SR:
        from fourphase.runtime.sr import write_sr

        write_sr(result, prepared, path)
    else:
        from fourphase.runtime.preview import preview_png

        write_file(path, preview_png(prepared, config))


def _save_array(path: Path, prepared: PreparedStudy) -> None:
    buffer = io.BytesIO()
    np.save(buffer, prepared.input, allow_pickle=False)
    write_file(path, buffer.getvalue())


# ---- what was done before


def _request_hash(model: LoadedModel, request: StudyRequest) -> str | None:
    """Hash of the study's content and everything that decides the result; None if the box cannot be read.

    The box comes in as its sha256, for masks are large. Then running the study says what is wrong with it.
    """
    try:
        box = _sha256_of(request.box)
        site = None if request.site is None else _sha256_of(request.site).hex()
    except OSError:
        return None
    backend, bundle = model.choice.backend, model.bundle
    options = {
        "version": version("fourphase"),
        "bundle": bundle.sha256,
        "backend": backend.name,
        "precision": backend.precision,
        "plans": json.dumps(dict(model.choice.plans), sort_keys=True, default=str),
        "preprocess": model.preprocessing.device,
        # Another salt gives another case. The salt itself stays secret.
        "salt": case_hash("request", bundle.sha256),
        **{f"phase.{phase}": spec for phase, spec in request.phases.items()},
    }
    given = {"label": request.label, "roi": request.roi, "site": site}
    options |= {name: str(value) for name, value in given.items() if value is not None}
    return request_hash(content_hash(request.folder), box, options)


def _sha256_of(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open_regular(path.resolve()) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def done_cases(output: Path) -> dict[str, str]:
    """Request hash -> case of every record below `output`; whether the files still agree is asked when it matters."""
    found = {}
    for path in sorted(output.glob(f"*/{RECORD}")):
        record = _json_object(_bytes_of(path))
        if record.get("schema") == SCHEMA and record.get("case") == path.parent.name:
            found[str(record.get("request"))] = path.parent.name
    return found


def _done_before(output: Path, files: RunFiles, asked: str | None, done: Mapping[str, str]) -> dict[str, Any] | None:
    """The result of the same request, if it and every file that is asked for now are as they were written."""
    if asked is None or asked not in done:
        return None
    folder = output / done[asked]
    record = _json_object(_bytes_of(folder / RECORD))
    hashes = record.get("files")
    if record.get("request") != asked or not isinstance(hashes, dict):
        return None
    for name in (RESULT, *files.extras):
        data = _bytes_of(folder / name)
        if data is None or hashlib.sha256(data).hexdigest() != hashes.get(name):
            return None
    body = _json_object(_bytes_of(folder / RESULT))
    fits = body.get("schema") == RESULT_SCHEMA and body.get("case") == folder.name
    return body if fits and isinstance(body.get("prediction"), dict) else None


def _make_room(case: Path, asked: str | None) -> None:
    """Takes back the record, and what another request left beside its result: it would seem to belong to this one."""
    record = _json_object(_bytes_of(case / RECORD))
    stale = [RECORD] if asked is not None and record.get("request") == asked else [RECORD, PREVIEW, SR]
    try:
        for name in stale:
            (case / name).unlink(missing_ok=True)
    except OSError as error:
        cause = f"cannot replace files in {case}: {(error.strerror or 'error').lower()}"
        raise OutputNotWritable(cause, "choose an --output DIR that you may write to") from None


def _write_record(case: Path, asked: str) -> None:
    present = {name: data for name in (RESULT, PREVIEW, SR) if (data := _bytes_of(case / name)) is not None}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in present.items()}
    body = {"schema": SCHEMA, "request": asked, "case": case.name, "files": hashes}
    write_file(case / RECORD, json.dumps(body, indent=1).encode("ascii") + b"\n")


def _bytes_of(path: Path) -> bytes | None:
    """The content of a regular file of ours; None if there is none, or it cannot be one."""
    try:
        with io.BufferedReader(open_regular(path)) as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError:
        return None
    return data if len(data) <= _LARGEST_FILE else None


def _json_object(data: bytes | None) -> dict[str, Any]:
    """The object in a file of ours; empty for anything else."""
    try:
        body = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
