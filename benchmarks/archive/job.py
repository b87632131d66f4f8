"""What workers are told and what they answer: a job, its studies, and a report of each; all of it JSON.

Nothing is run here. A report holds what a summary needs of a study, a digest of its result, and what the worker has
used so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fourphase.runtime.errors import FourphaseError
from fourphase.runtime.pipeline import StudyRequest
from fourphase.runtime.summary import Entry

__all__ = ["Job", "Proof", "Report", "Task", "Used", "failed_report", "output_of", "tasks_of"]


@dataclass(frozen=True)
class Proof:
    """What a worker on another machine must find under the same paths before it begins.

    Attributes:
        bundle: sha256 that identifies the bundle. studies: hash of the studies' names and of two studies' content.
        token: names a file that the caller wrote into the output folder.
    """

    bundle: str
    studies: str
    token: str


@dataclass(frozen=True)
class Job:
    """What is the same for all studies.

    Attributes:
        bundle: its directory. backend, precision: as `fp-run` takes them.
        output: where `<case>/result.json` goes; "" for nowhere.
        done: request hash -> case of what `output` holds already and need not be run again.
        proof: looked at by workers that may be on another machine.
    """

    bundle: str
    backend: str = "auto"
    precision: str | None = None
    output: str = ""
    done: Mapping[str, str] | None = None
    proof: Proof | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Job:
        proof = body["proof"]
        return cls(**{**body, "proof": None if proof is None else Proof(**proof)})


@dataclass(frozen=True)
class Task:
    """One study: its position from 1, its folder (or zip file) and its lesion box."""

    number: int
    folder: str
    box: str


def tasks_of(requests: Sequence[StudyRequest]) -> list[Task]:
    """The studies as tasks, numbered in their order."""
    return [Task(number, str(one.folder), str(one.box)) for number, one in enumerate(requests, 1)]


@dataclass(frozen=True)
class Used:
    """What a worker has used since it began.

    Attributes:
        cpu_s: processor time of it and its children. peak_bytes: the most memory that it held itself.
        read_bytes: fetched from storage (not from the page cache); None where the kernel does not say.
    """

    cpu_s: float
    peak_bytes: int
    read_bytes: int | None


@dataclass(frozen=True)
class Report:
    """How one study ended.

    Attributes:
        status: "done", "skipped" (done before) or "failed".
        case, prediction, warnings, request, error: as in `summary.Entry`.
        seconds: wall time in the worker. timings_ms: the result's; empty without one.
        digest: sha256 of the result without its timings; "" without a result.
        used: by the worker until now.
    """

    number: int
    status: str
    case: str | None
    request: str | None
    prediction: Mapping[str, Any] | None
    warnings: tuple[str, ...]
    error: Mapping[str, Any] | None
    seconds: float
    timings_ms: Mapping[str, float]
    digest: str
    used: Used

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Report:
        return cls(**{**body, "warnings": tuple(body["warnings"]), "used": Used(**body["used"])})

    def entry(self, study: str | None = None) -> Entry:
        """The study in the summary; `study`: its folder's name, if names were asked for."""
        prediction, error = self.prediction, self.error
        return Entry(
            self.number, self.status, self.case, self.request, prediction, self.warnings, error, self.seconds, study
        )


def failed_report(task: Task, error: FourphaseError, used: Used) -> Report:
    """The report of a study whose worker cannot give one."""
    blank = Report(task.number, "failed", None, None, None, (), None, 0.0, {}, "", used)
    return replace(blank, error=error.to_dict())


def output_of(job: Job) -> Path | None:
    """The job's output folder."""
    return Path(job.output) if job.output else None
