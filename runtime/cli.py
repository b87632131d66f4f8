"""`fp-run`: DICOM studies -> results, by a verified bundle. Nothing heavy is imported before it is needed.

It parses and delegates: one study is run by `run_outputs`, several by `batch`, and `report` prints for people.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourphase.runtime.console import be_quiet, note, print_error, run_app, say_errors_as_json, stdout_checked
from fourphase.runtime.errors import FourphaseError, InputMissing, PhaseAmbiguous, UsageError

if TYPE_CHECKING:
    from fourphase.runtime.pipeline import StudyRequest
    from fourphase.runtime.run_outputs import Outcome, RunFiles

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

#: A computation that does not look at signals is left to end for so long after SIGTERM; the contract gives 5 s.
_GRACE_S = 4.0
#: Options that are not part of the command that settles one study's phases: it names study, box and phases itself.
_NOT_REPEATED = ("studies", "box", "phase", "each", "names", "force")


@app.command(no_args_is_help=True)
def run(
    context: typer.Context,
    studies: Annotated[
        list[Path], typer.Argument(metavar="STUDY_DIR...", help="Folders or zip files that hold one study each.")
    ],
    bundle: Annotated[Path, typer.Option(help="The bundle that fp-export build-engine wrote.")],
    box: Annotated[
        list[Path] | None,
        typer.Option(
            help="Lesion box: JSON (LPS mm), NIfTI label mask, DICOM SEG or RTSTRUCT; once per study, in the same "
            "order, or once with {study} for the folder's name. With --each also a path within every study folder."
        ),
    ] = None,
    label: Annotated[int | None, typer.Option(help="Which label, segment or ROI number is the lesion.")] = None,
    roi: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which segment of a SEG or ROI of an RTSTRUCT is the lesion.")
    ] = None,
    phase: Annotated[
        list[str] | None,
        typer.Option(metavar="NC=SPEC", help="A phase's SeriesInstanceUID, SeriesNumber or subfolder. Repeatable."),
    ] = None,
    site: Annotated[
        Path | None, typer.Option("--phases", metavar="FILE", help="The site's phases.toml: its words for phases.")
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="STUDY_DIR holds studies: every folder and zip file in it is one.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write DIR/<case>/result.json; of several studies DIR/summary.json and .csv.")
    ] = None,
    sr: Annotated[bool, typer.Option("--sr", help="Also write DIR/<case>/sr.dcm, a DICOM SR.")] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Also write DIR/<case>/preview.png: the phases with the box drawn.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Of several studies, run also those that --output holds already.")
    ] = False,
    names: Annotated[
        bool, typer.Option("--names", help="Put the folders' names into the summary; they may name patients.")
    ] = False,
    backend: Annotated[str, typer.Option(help="auto, tensorrt, tensorrt-rtx, onnxruntime or openvino.")] = "auto",
    require_backend: Annotated[str | None, typer.Option(help="Fail (22) rather than fall back to another.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or int8; default: what the bundle has.")] = None,
    preprocess: Annotated[
        str, typer.Option(help="auto, cpu or gpu (needs a TensorRT engine). In this version auto is cpu.")
    ] = "auto",
    plans: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Engines built for this machine; default: in the bundle.")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build the engine for this GPU if none fits.")] = False,
    allow_engine_host_code: Annotated[
        bool, typer.Option("--allow-engine-host-code", help="Load version-compatible engines, which run host code.")
    ] = False,
    save_input: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Save the network's input, float32 (P, T, C, H, W).")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Tell HCC from ICC in four-phase contrast CT studies. Model output, not a diagnosis.

    Example: fp-run study/ --box lesion_box.json --bundle liver.bundle --output results/

    Many:    fp-run --each studies/ --box lesion_box.json --bundle liver.bundle --output results/
    """
    be_quiet(quiet)
    say_errors_as_json(json_output)
    overrides = _overrides(phase or [])
    _check_summary_options(names, output)
    from fourphase.runtime.batch import BatchOptions, boxes_of, check_boxes, list_studies, run_batch
    from fourphase.runtime.pipeline import StudyRequest, load_model
    from fourphase.runtime.plan_choice import PlanPolicy
    from fourphase.runtime.run_outputs import RunFiles, check_files, run_one

    found, ignored = list_studies(studies) if each else (studies, 0)
    boxes = boxes_of(found, box or [], each=each)
    requests = [
        StudyRequest(folder, own, label, overrides, roi, site) for folder, own in zip(found, boxes, strict=True)
    ]
    files = RunFiles(output, preview, sr, save_input)
    check_files(files, len(requests), studies)
    check_boxes(requests, each=each)
    _check_site(site)
    if ignored:
        note(f"{ignored} files beside the studies are left out")
    policy = PlanPolicy(plans, rebuild, allow_engine_host_code)
    model = load_model(
        bundle, backend=backend, require=require_backend, precision=precision, plans=policy, preprocess=preprocess
    )
    if len(requests) > 1 or each:
        options = BatchOptions(force, names, json_output, ignored)
        run_batch(model, requests, files, options, lambda *study: _print_settling(context, *study))
    else:
        _finish(context, requests[0], files, run_one(model, requests[0], files), json_output)


def main() -> None:
    """Entry point of `fp-run`."""
    _end_soon_after_sigterm()
    run_app(app, "fp-run")


def _overrides(phases: list[str]) -> dict[str, str]:
    named = [_override(text) for text in phases]
    overrides = dict(named)
    if len(overrides) < len(named):
        raise UsageError("--phase names a phase twice", "give each phase once", key="phase_override")
    return overrides


def _override(text: str) -> tuple[str, str]:
    name, separator, spec = text.partition("=")
    if not (name and separator and spec):
        raise UsageError("a --phase is not PHASE=SPEC", "write for example --phase ART=3", key="phase_override")
    return name, spec


def _check_summary_options(names: bool, output: Path | None) -> None:
    if names and output is None:
        raise UsageError("--names needs --output, where the summary is", "give --output DIR", key="output_missing")


def _check_site(site: Path | None) -> None:
    if site is not None and not site.is_file():
        raise InputMissing("the file of --phases does not exist or is no file", "correct --phases FILE")


def _finish(context: typer.Context, request: StudyRequest, files: RunFiles, outcome: Outcome, as_json: bool) -> None:
    """Prints what there is of one study, then fails with what went wrong, if anything did."""
    from fourphase.runtime.run_outputs import as_error

    if outcome.result is not None:
        errors = [as_error(failure) for failure in outcome.failures]
        with stdout_checked():
            if as_json:
                body = outcome.result.to_dict() | ({"error": errors[0].to_dict()} if errors else {})
                print(json.dumps(body, indent=1, allow_nan=False))
            else:
                from fourphase.runtime.report import print_result

                print_result(outcome.result, preview=files.preview_of(outcome.result.case))
        say_errors_as_json(False)  # the document on stdout holds the error
        for error in errors[1:]:
            print_error(error)
    if not outcome.failures:
        return
    failure = outcome.failures[0]
    if isinstance(failure, PhaseAmbiguous) and sys.stderr.isatty():
        print_error(failure)
        _print_settling(context, 1, request, failure)
        raise SystemExit(failure.code)
    raise failure


def _print_settling(context: typer.Context, number: int, request: StudyRequest, error: FourphaseError) -> None:
    """The whole command that settles a study's phases, for the person who typed this one; logs never get its paths."""
    if sys.stderr.isatty():
        command = shlex.join(_settling_command(context, request, re.findall(r"--phase (\S+)", error.hint)))
        print(f"to settle study {number}, correct the phases if need be and run:\n{command}", file=sys.stderr)


def _settling_command(context: typer.Context, request: StudyRequest, phases: list[str]) -> list[str]:
    """fp-run for this one study, with every other option as it was typed."""
    words = ["fp-run", str(request.folder), "--box", str(request.box)]
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in _NOT_REPEATED and source is not None and source.name == "COMMANDLINE":
            value: Any = context.params[name]
            words += [parameter.opts[0]] if isinstance(value, bool) else [parameter.opts[0], str(value)]
    return words + [word for phase in phases for word in ("--phase", phase)]


def _end_soon_after_sigterm() -> None:
    """Bounds how long SIGTERM takes: Python's handler must wait for a native call, a network's inference for example.

    What is being written is lost as a whole: files appear complete or not at all.
    """
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)

    def wait() -> None:
        while number := os.read(receiver, 1):
            if number[0] == signal.SIGTERM:
                time.sleep(_GRACE_S)
                if copies := sys.modules.get("fourphase.runtime.private_copy"):
                    copies.remove_copies()
                os.write(2, b"error: terminated\n  fix: run the command again\n")
                os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, name="sigterm", daemon=True).start()


if __name__ == "__main__":
    main()
