"""`fp-bench archive`: many studies at once, on all cores and on a cluster: studies per hour, linear or why not.

First the ways to spread studies over cores are measured in turns on a few of them; then, with --output, the whole
archive is run by the fastest (with --ray by Ray). Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourphase.benchmarks.archive.options import (
    ArchiveOptions,
    check_options,
    check_output,
    rehearsed,
    sample_of,
    studies_of,
    workers_of,
)
from fourphase.benchmarks.guarded_steps import Outcome, Save
from fourphase.benchmarks.places import machine_places, readable
from fourphase.runtime.console import be_quiet, note, progress, say_errors_as_json, stdout_checked
from fourphase.runtime.errors import FourphaseError, SomeStudiesFailed

if TYPE_CHECKING:
    from fourphase.benchmarks.archive.job import Job, Task
    from fourphase.benchmarks.archive.modes import Mode
    from fourphase.benchmarks.archive.studies import Found
    from fourphase.benchmarks.archive.trial import Measured

__all__ = ["SCHEMA", "archive", "archive_step", "run_archive"]

SCHEMA = "fourphase.archive/1"


def archive(
    studies: Annotated[
        Path | None, typer.Argument(metavar="STUDIES", help="A folder of studies; default: phantoms.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="The bundle; default: the paper's network, untrained.")] = None,
    box: Annotated[
        str | None, typer.Option(metavar="NAME", help="The lesion box within every study, or a path with {study}.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Run the whole archive and write what fp-run writes into this folder.")
    ] = None,
    workers: Annotated[str, typer.Option(metavar="auto|N", help="auto: the fastest split of the cores.")] = "auto",
    ray: Annotated[
        str, typer.Option(metavar="ADDRESS|local", help="Also Ray: one of its own on this machine, or a cluster's.")
    ] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on in an --output that holds results.")] = False,
    count: Annotated[int, typer.Option(min=1, help="How many phantoms, without STUDIES.")] = 8,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Studies per round; default: 4 per core, at least 8, at most all.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=0, help="Rounds in which the ways take turns; 0: run the archive without measuring.")
    ] = 5,
    backend: Annotated[str, typer.Option(help="As fp-run's.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="As fp-run's.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A rehearsal with tiny phantoms: shows no speed.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Run many studies at once, and measure how many an hour: one process, several, Ray; linear or why not.

    Example: fp-bench archive studies/ --bundle liver.bundle --box lesion_box.json --output results/
    """
    be_quiet(quiet)
    say_errors_as_json(json_output)
    options = ArchiveOptions(
        studies, bundle, box, output, workers_of(workers), ray, resume, count, sample, rounds, backend, precision, quick
    )
    result = run_archive(rehearsed(options) if quick else options)
    with stdout_checked():
        if not json_output:
            from fourphase.benchmarks.archive.show import show

            show(result)
        print(json.dumps(result, allow_nan=False))
    say_errors_as_json(False)  # the document on stdout tells of them
    _fail_if_studies_failed(result)


def archive_step(
    save: Save, *, quick: bool, bundle: str | None = None, count: int | None = None, rounds: int | None = None,
    ray: str = "local",
) -> Outcome:  # fmt: skip
    """The report's section: phantoms, every split and a local Ray (or why not); failed if no way ran a study."""
    options = ArchiveOptions(
        bundle=None if bundle is None else Path(bundle),
        ray=ray,
        count=count or ArchiveOptions.count,
        rounds=rounds or ArchiveOptions.rounds,
        quick=quick,
    )
    result = run_archive(rehearsed(options) if quick else options)
    if any(row["status"] == "ok" for row in result["rows"]):
        return Outcome("ok", result=result)
    return Outcome("failed", result["rows"][0]["reason"], result)


def run_archive(options: ArchiveOptions) -> dict[str, Any]:
    """Measures, and runs the archive if it has an output folder.

    Raises: UsageError (2), InputMissing (10), what loading the bundle raises (20 to 24), OutputNotWritable (30).
    """
    check_options(options)
    from fourphase.benchmarks.archive.studies import default_bundle
    from fourphase.runtime.bundle import load_bundle

    with studies_of(options) as found:
        check_output(options, found)
        if options.bundle is None:
            bundle, about = default_bundle(quick=options.quick)
        else:
            bundle, about = options.bundle, {}
        classes = load_bundle(bundle).classes
        result = _run(options, found, bundle, classes)
        whole = result | {"prepared": about} if about else result
        told: dict[str, Any] = readable(whole, _places(options, bundle))
        return told


def _places(options: ArchiveOptions, bundle: Path) -> dict[str, str]:
    """What error texts may name: the folders that were given, and those of this machine."""
    given = {"<output>": options.output, "<bundle>": bundle, "<studies>": options.studies}
    return {str(path.absolute()): name for name, path in given.items() if path is not None} | machine_places()


def _run(options: ArchiveOptions, found: Found, bundle: Path, classes: tuple[str, ...]) -> dict[str, Any]:
    from fourphase.benchmarks.archive.findings import explain
    from fourphase.benchmarks.archive.job import Job, tasks_of
    from fourphase.benchmarks.archive.modes import modes_of, usable_cores
    from fourphase.benchmarks.archive.whole import run_whole
    from fourphase.benchmarks.machine import describe_machine

    machine = dict(describe_machine(lambda _: None).result)
    cores = len(usable_cores())
    tasks = tasks_of(found.requests)
    output = "" if options.output is None else str(options.output.absolute())
    job = Job(str(bundle.absolute()), options.backend, options.precision, output)
    modes = modes_of(cores, options.workers, options.ray, must=bool(output))
    measured = _measure(options, modes, job, tasks)
    explanation = explain(measured) if measured else []
    rows = [one.row(measured[0]) for one in measured]
    run = None
    if output:
        run = run_whole(_chosen(options, modes, measured), job, tasks, classes, found.ignored)
        rows = rows or [_row_of(run)]
    return {
        "schema": SCHEMA,
        "quick": options.quick,
        "machine": machine,
        "settings": _settings(options, cores, len(tasks)),
        "studies": len(tasks),
        "phantoms": found.phantoms,
        "rows": rows,
        "explanation": explanation,
        "run": run,
    }


def _measure(options: ArchiveOptions, modes: list[Mode], job: Job, tasks: Sequence[Task]) -> list[Measured]:
    from fourphase.benchmarks.archive.trial import measure_modes
    from fourphase.runtime.study_snapshot import content_hash

    if not options.rounds:
        return []
    chosen = tasks[: sample_of(options, len(tasks))]
    for task in chosen:  # into the page cache: the first mode must not be the one that waits for the disk
        with suppress(FourphaseError):
            content_hash(Path(task.folder))
    present = sum(not mode.missing for mode in modes)
    note(f"measuring {present} ways to run {len(chosen)} studies, {options.rounds} rounds each")
    with progress("studies", present * len(chosen) * options.rounds) as advance:
        return measure_modes(modes, job, chosen, options.rounds, lambda _: advance(1))


def _chosen(options: ArchiveOptions, modes: Sequence[Mode], measured: Sequence[Measured]) -> Mode:
    """What runs the whole archive: Ray if asked for, else the number of workers, else the fastest, else all cores."""
    from fourphase.benchmarks.archive.findings import fastest

    if options.ray:
        return modes[-1]
    best = fastest(measured)
    if options.workers is None and best is not None:
        return best.mode
    local = [mode for mode in modes if not mode.address]
    return [mode for mode in local if options.workers in (None, mode.workers)][-1]


def _row_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """The only row where nothing was measured in turns: no reference, so no speedup."""
    known = {name: run[name] for name in ("mode", "workers", "threads_each", "seconds", "studies_per_hour", "backend")}
    totals = run["totals"]
    status, reason = "ok", "run once, without a reference"
    if totals["failed"] and not totals["done"] + totals["skipped"]:
        status, reason = "failed", "no study was run to its end"
    about = {"status": status, "reason": reason, "failed": totals["failed"]}
    return {**known, **about, "speedup": None, "efficiency": None}


def _settings(options: ArchiveOptions, cores: int, studies: int) -> dict[str, Any]:
    from fourphase.benchmarks.archive.ray_team import LOCAL

    return {
        "protocol": {
            "rounds": options.rounds,
            "studies_per_round": sample_of(options, studies) if options.rounds else 0,
            "order": "the modes take turns; a round's time begins when all workers have loaded the bundle",
            "files": "in the page cache before the first round",
            "reference": "one process on one core",
        },
        "threads": cores,
        "workers": options.workers or "auto",
        # A cluster's address names machines.
        "ray": options.ray if options.ray in ("", LOCAL) else "cluster",
        "backend": options.backend,
        "precision": options.precision,
    }


def _fail_if_studies_failed(result: dict[str, Any]) -> None:
    """Raises: SomeStudiesFailed (40)."""
    run, a_round = result["run"], result["settings"]["protocol"]["studies_per_round"]
    in_rounds = max([row["failed"] or 0 for row in result["rows"]], default=0)
    if run is not None and run["totals"]["failed"]:
        cause = f"{run['totals']['failed']} of {result['studies']} studies failed"
    elif in_rounds:
        cause = f"{in_rounds} of the {a_round} studies of a round failed"
    else:
        return
    raise SomeStudiesFailed(cause, "see the errors above; the other results are complete")
