"""`fp-bench end-to-end`: DICOM to result, split by step, cold and warm, ours beside a plain pipeline, in one run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourphase.benchmarks.guarded_steps import Outcome, Save
from fourphase.runtime.console import be_quiet, say_errors_as_json, stdout_checked
from fourphase.runtime.errors import UsageError

if TYPE_CHECKING:
    from fourphase.benchmarks.end_to_end.measure import Plan
    from fourphase.benchmarks.end_to_end.pipelines import Pipeline
    from fourphase.benchmarks.end_to_end.study import StudyFiles

__all__ = ["SCHEMA", "Options", "end_to_end", "end_to_end_step", "measured"]

SCHEMA = "fourphase.end-to-end/1"
NETWORK = "four-phase"
_COMPILES = "--quick leaves out what compiles for minutes; name it in --pipelines"


@dataclass(frozen=True)
class Options:
    """What to measure; paths as text, so that a report can pass them on as JSON.

    Attributes:
        study, box: a study and its JSON box; None for a phantom of `slices` per phase (None: 250, quick 40).
        bundle, checkpoint: the network and the weights it was made of; None for the untrained network, full or tiny.
        pipelines: names out of `pipelines.PIPELINES`; None for all.
        work: where a prepared network is kept instead of the cache.
    """

    quick: bool = False
    study: str | None = None
    box: str | None = None
    bundle: str | None = None
    checkpoint: str | None = None
    slices: int | None = None
    rounds: int = 6
    cold_starts: int = 1
    pipelines: Sequence[str] | None = None
    drop_caches: bool = False
    work: str | None = None


@dataclass(frozen=True, eq=False)
class _Subject:
    """The network that is measured.

    Attributes:
        lacking: precision -> why the bundle was made without it.
        warning: what the numbers say nothing about; "" for a bundle that was given.
    """

    name: str
    bundle: Path
    lacking: Mapping[str, str]
    warning: str = ""


def end_to_end_step(save: Save, *, quick: bool, **options: Any) -> Outcome:
    """A section of the report, see `guarded_steps`; without SimpleITK it is skipped. `options`: those of `Options`."""
    from fourphase.benchmarks.preprocess_bench import simpleitk_missing

    missing = simpleitk_missing()
    if missing:
        return Outcome("skipped", missing)
    return Outcome("ok", result=measured(Options(quick=quick, **options), save))


def measured(options: Options, save: Save) -> dict[str, Any]:
    """The JSON object of one run; `save` is told what there is after every stage.

    Raises: UsageError (2), InputMissing (10), EnvironmentFault (24) without SimpleITK, and the bundle's errors. What
        goes wrong in a pipeline is a row of the result.
    """
    _check(options)
    from fourphase.benchmarks.end_to_end.measure import Measured, measure
    from fourphase.benchmarks.end_to_end.pipelines import chosen_pipelines
    from fourphase.benchmarks.machine import describe_machine
    from fourphase.benchmarks.places import cleaned
    from fourphase.benchmarks.preprocess_bench import require_simpleitk

    require_simpleitk()
    chosen = chosen_pipelines(options.pipelines)
    machine = describe_machine(lambda record: None).result
    with TemporaryDirectory(prefix="fourphase-end-to-end-") as scratch, _study(options) as study:
        weights = Path(scratch, "module.pt")
        subject = _subject(options, weights)
        plan = _plan(options, chosen, subject, weights)
        head = {"schema": SCHEMA, "machine": machine, "quick": options.quick}
        head["settings"] = _settings(options, plan, subject, study)

        def whole(found: Measured) -> dict[str, Any]:
            return {**head, **cleaned(found.to_dict())}

        return whole(measure(plan, study, lambda found: save(whole(found))))


def _check(options: Options) -> None:
    if (options.study is None) != (options.box is None):
        raise UsageError(
            "a study and its box belong together", "give both STUDY and --box, or neither", key="box_missing"
        )
    if (options.bundle is None) != (options.checkpoint is None):
        raise UsageError(
            "a bundle and its checkpoint belong together",
            "give --bundle and the --checkpoint it was built from (the plain pipeline runs the weights), or neither",
            key="checkpoint_missing",
        )
    if options.study is not None and options.slices is not None:
        raise UsageError("--slices is for a phantom", "leave out --slices or STUDY", key="slices_of_study")


def _subject(options: Options, weights: Path) -> _Subject:
    """The bundle, and its module written to `weights`; kept here, it would take memory from what is measured."""
    import torch

    if options.bundle is not None and options.checkpoint is not None:
        from fourphase.export.checkpoint import load_checkpoint

        torch.save(load_checkpoint(Path(options.checkpoint)).network, weights)
        return _Subject(Path(options.bundle).name, Path(options.bundle), {})
    from fourphase.benchmarks.latency.prepare import NOT_ACCURACY, prepare

    prepared = prepare(NETWORK, quick=options.quick, work=Path(options.work) if options.work else None)
    torch.save(prepared.module(), weights)
    return _Subject(NETWORK, prepared.bundle, prepared.missing, NOT_ACCURACY)


@contextmanager
def _study(options: Options) -> Iterator[StudyFiles]:
    from fourphase.benchmarks.end_to_end.study import given_study, phantom_study

    if options.study is not None and options.box is not None:
        yield given_study(Path(options.study), Path(options.box))
        return
    with phantom_study(options.slices, quick=options.quick) as study:
        yield study


def _plan(options: Options, chosen: Sequence[Pipeline], subject: _Subject, weights: Path) -> Plan:
    from fourphase.benchmarks.end_to_end.measure import Plan
    from fourphase.benchmarks.end_to_end.pipelines import LEFT_OUT_OF_QUICK, why_missing
    from fourphase.runtime.bundle import load_bundle

    bundle = load_bundle(subject.bundle)
    missing = {pipeline.name: why_missing(pipeline, bundle, subject.lacking) for pipeline in chosen}
    left_out = dict.fromkeys(LEFT_OUT_OF_QUICK, _COMPILES) if options.quick and options.pipelines is None else {}
    return Plan(
        pipelines=tuple(chosen),
        missing={name: reason for name, reason in missing.items() if reason},
        left_out=left_out,
        bundle=subject.bundle,
        module=weights,
        rounds=options.rounds,
        cold_starts=options.cold_starts,
        drop_caches=options.drop_caches,
    )


def _settings(options: Options, plan: Plan, subject: _Subject, study: StudyFiles) -> dict[str, Any]:
    """No paths: what was given is named, not where it lies."""
    from fourphase.benchmarks.end_to_end.agreement import INPUT_LIMIT, LOGITS_LIMIT
    from fourphase.benchmarks.end_to_end.measure import WARMUPS
    from fourphase.benchmarks.end_to_end.pipelines import REFERENCE
    from fourphase.benchmarks.latency.sensor_sources import usable_cores

    warnings = [subject.warning, "a synthetic phantom, no patient" if study.phantom else ""]
    return {
        "protocol": {"rounds": plan.rounds, "warmups": WARMUPS, "cold_starts": plan.cold_starts, "in_turns": True},
        "threads": len(usable_cores()),
        "network": subject.name,
        "pipelines": [pipeline.name for pipeline in plan.pipelines],
        "reference": REFERENCE,
        "limits": {"input_max_abs": INPUT_LIMIT, "logits_relative": LOGITS_LIMIT},
        "drop_caches": options.drop_caches,
        "warnings": [text for text in warnings if text],
    }


def end_to_end(
    study: Annotated[Path | None, typer.Argument(help="A study folder; default: a phantom of 4 x 250 slices.")] = None,
    box: Annotated[Path | None, typer.Option(help="The study's lesion box, JSON.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="A bundle; default: the untrained network, full size.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="The .safetensors that --bundle was built from.")] = None,
    slices: Annotated[int | None, typer.Option(min=8, help="Slices per phase of the phantom; default 250.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Studies of each warm pipeline, in turns; a ratio needs 5.")] = 6,
    cold: Annotated[int, typer.Option(min=1, help="Cold starts of each pipeline.")] = 1,
    pipelines: Annotated[str | None, typer.Option(help="Which, with commas; default: all.")] = None,
    drop_caches: Annotated[
        bool, typer.Option("--drop-caches", help="Empty the page cache before every cold start (root only).")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the steps as a picture, FILE.png.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A rehearsal with a tiny network: no measurement.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Measure DICOM to result, step by step, cold and warm: ours beside SimpleITK with torch or ONNX Runtime.

    Example: fp-bench end-to-end --plot steps.png
    """
    be_quiet(quiet)
    say_errors_as_json(json_output)
    if plot is not None:
        from fourphase.benchmarks.latency.plot import require_plot

        require_plot(plot)
    names = None if pipelines is None else tuple(name.strip() for name in pipelines.split(","))
    given, box_file, bundle_folder, weights = map(_text, (study, box, bundle, checkpoint))
    options = Options(
        quick=quick, study=given, box=box_file, bundle=bundle_folder, checkpoint=weights, slices=slices, rounds=rounds,
        cold_starts=cold, pipelines=names, drop_caches=drop_caches,
    )  # fmt: skip
    result = measured(options, lambda record: None)
    with stdout_checked():
        if not json_output:
            from fourphase.benchmarks.end_to_end.table import print_result

            print_result(result)
        print(json.dumps(result, allow_nan=False))
    say_errors_as_json(False)  # stdout holds its one document
    if plot is not None:
        from fourphase.benchmarks.end_to_end.plot import plot_steps

        plot_steps(result, plot)
    from fourphase.benchmarks.nothing_measured import require_some

    require_some(result["pipelines"].values())


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
