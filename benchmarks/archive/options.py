"""What an archive run is asked for, and what of it can be refused before any work is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fourphase.runtime.errors import OutputNotWritable, UsageError

if TYPE_CHECKING:
    from fourphase.benchmarks.archive.studies import Found

__all__ = [
    "ArchiveOptions",
    "check_options",
    "check_output",
    "rehearsed",
    "sample_of",
    "studies_of",
    "workers_of",
]

_QUICK_ROUNDS, _QUICK_COUNT = 2, 4
_SAMPLE_PER_CORE, _SMALLEST_SAMPLE = 4, 8


@dataclass(frozen=True)
class ArchiveOptions:
    """What is run, and how.

    Attributes:
        studies: a folder of studies, or None for `count` phantoms. box: as `fp-run --each --box`.
        bundle: None for the untrained network of the paper.
        output: where the whole archive's results go; None: it is only measured.
        workers: None for every split of the cores. ray: "local", an address, or "" for no Ray.
        resume: `output` may hold results; what is done is not run again.
        sample: studies per round of the measurement. rounds: 0 for no measurement.
        backend, precision: as fp-run's.
    """

    studies: Path | None = None
    bundle: Path | None = None
    box: str | None = None
    output: Path | None = None
    workers: int | None = None
    ray: str = ""
    resume: bool = False
    count: int = 8
    sample: int | None = None
    rounds: int = 5
    backend: str = "auto"
    precision: str | None = None
    quick: bool = False


def rehearsed(options: ArchiveOptions) -> ArchiveOptions:
    """As little as shows that it runs."""
    return replace(options, rounds=min(options.rounds, _QUICK_ROUNDS), count=min(options.count, _QUICK_COUNT))


def sample_of(options: ArchiveOptions, studies: int) -> int:
    from fourphase.benchmarks.archive.modes import usable_cores

    return min(options.sample or max(_SAMPLE_PER_CORE * len(usable_cores()), _SMALLEST_SAMPLE), studies)


@contextmanager
def studies_of(options: ArchiveOptions) -> Iterator[Found]:
    from fourphase.benchmarks.archive.studies import BOX, find_studies, phantoms

    if options.studies is None:
        with phantoms(options.count, quick=options.quick) as made:
            yield made
    else:
        yield find_studies(options.studies, options.box or BOX)


def workers_of(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or text == "0":
        raise UsageError(f"--workers {text} is no number of workers", "give auto or a number", key="workers_invalid")
    return int(text)


def check_options(options: ArchiveOptions) -> None:
    """What can be refused before any work is done."""
    from fourphase.benchmarks.archive.ray_team import LOCAL, require_ray

    if options.studies is not None and options.bundle is None:
        raise UsageError("studies are given, but no bundle", "give --bundle", key="bundle_missing")
    if options.studies is None and options.box is not None:
        raise UsageError("--box belongs to STUDIES; phantoms have theirs", "leave --box out", key="box_unused")
    if not options.rounds and options.output is None:
        cause = "there is nothing to do: nothing is measured and nothing written"
        raise UsageError(cause, "give --output DIR, or more --rounds", key="nothing_to_do")
    if options.ray and options.output is not None:
        require_ray()
    if options.ray not in ("", LOCAL) and options.output is None:
        cure = "give --output DIR on storage that all machines share"
        raise UsageError("a Ray cluster needs an output folder", cure, key="output_missing")


def check_output(options: ArchiveOptions, found: Found) -> None:
    from fourphase.runtime.run_outputs import RunFiles, check_files, done_cases
    from fourphase.runtime.summary import JSON_NAME

    if options.output is None:
        return
    folders = [request.folder for request in found.requests]
    check_files(RunFiles(options.output), len(folders), folders)
    held = (options.output / JSON_NAME).exists() or done_cases(options.output)
    if held and not options.resume:
        raise OutputNotWritable(
            f"{options.output} holds results", "give --resume to go on, or another --output", key="output_exists"
        )
