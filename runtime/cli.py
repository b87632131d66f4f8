"""`fp-run`: DICOM studies -> results, by a verified bundle. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fourphase.runtime.console import be_quiet, print_error, run_app, say_errors_as_json, stdout_checked
from fourphase.runtime.errors import GPU_LOST, FourphaseError, SomeStudiesFailed, UsageError

if TYPE_CHECKING:
    from fourphase.runtime.pipeline import LoadedModel, StudyRequest
    from fourphase.runtime.result import StudyResult

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(no_args_is_help=True)
def run(
    studies: Annotated[list[Path], typer.Argument(metavar="STUDY_DIR...", help="Folders that hold one study each.")],
    bundle: Annotated[Path, typer.Option(help="The bundle that fp-export build-engine wrote.")],
    box: Annotated[
        list[Path] | None,
        typer.Option(help="Lesion box: JSON (LPS mm) or a NIfTI label mask; once per study, in the same order."),
    ] = None,
    label: Annotated[int | None, typer.Option(help="Which label of the mask is the lesion.")] = None,
    phase: Annotated[
        list[str] | None,
        typer.Option(metavar="NC=SPEC", help="A phase's SeriesInstanceUID, SeriesNumber or subfolder. Repeatable."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write DIR/<case>/result.json.")] = None,
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
    """
    be_quiet(quiet)
    say_errors_as_json(json_output)
    requests = _requests(studies, box or [], label, phase or [])
    if save_input is not None:
        _check_save_input(save_input, len(studies))
    from fourphase.runtime.pipeline import load_model
    from fourphase.runtime.plan_choice import PlanPolicy

    policy = PlanPolicy(plans, rebuild, allow_engine_host_code)
    model = load_model(
        bundle, backend=backend, require=require_backend, precision=precision, plans=policy, preprocess=preprocess
    )
    if len(requests) == 1:
        _show(_run_one(model, requests[0], output, save_input), json_output)
    else:
        _run_several(model, requests, output, json_output)


def main() -> None:
    """Entry point of `fp-run`."""
    run_app(app, "fp-run")


def _requests(studies: list[Path], boxes: list[Path], label: int | None, phases: list[str]) -> list[StudyRequest]:
    from fourphase.runtime.pipeline import StudyRequest

    if not boxes:
        raise UsageError(
            "no lesion box is given", "give --box FILE: JSON in LPS mm, or a NIfTI label mask", key="box_missing"
        )
    if len(boxes) != len(studies):
        raise UsageError(
            f"{len(studies)} studies need {len(studies)} lesion boxes, {len(boxes)} given",
            "give --box FILE once per study, in the same order",
            key="box_count",
        )
    named = [_override(text) for text in phases]
    overrides = dict(named)
    if len(overrides) < len(named):
        raise UsageError("--phase names a phase twice", "give each phase once", key="phase_override")
    return [StudyRequest(folder, box, label, overrides) for folder, box in zip(studies, boxes, strict=True)]


def _override(text: str) -> tuple[str, str]:
    name, separator, spec = text.partition("=")
    if not (name and separator and spec):
        raise UsageError(f"--phase {text} is not PHASE=SPEC", "write for example --phase ART=3", key="phase_override")
    return name, spec


def _run_one(model: LoadedModel, request: StudyRequest, output: Path | None, save_input: Path | None) -> StudyResult:
    from fourphase.runtime.pipeline import run_study
    from fourphase.runtime.result import write_result

    result, prepared = run_study(model, request, keep_input=save_input is not None)
    if save_input is not None:
        _save_array(save_input, prepared.input)
    if output is not None:
        write_result(result, output)
    return result


def _check_save_input(path: Path, studies: int) -> None:
    from fourphase.runtime.atomic import check_file_target

    if studies > 1:
        raise UsageError("--save-input takes one study", "run the studies one by one", key="save_input_several")
    if path.suffix != ".npy":
        raise UsageError(f"--save-input {path.name} is not a .npy file", "name it FILE.npy", key="save_input_name")
    check_file_target(path)


def _save_array(path: Path, array: object) -> None:
    import io

    import numpy as np

    from fourphase.runtime.atomic import write_file

    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=False)
    write_file(path, buffer.getvalue())


def _run_several(model: LoadedModel, requests: list[StudyRequest], output: Path | None, json_output: bool) -> None:
    """Runs every study; one that fails is reported and does not stop the others, unless the GPU is lost with it."""
    from fourphase.runtime.console import note

    # From here on an error is part of the one JSON document.
    say_errors_as_json(False)
    outcomes: list[dict[str, object]] = []
    failed = 0
    lost: FourphaseError | None = None
    for number, request in enumerate(requests, start=1):
        note(f"study {number} of {len(requests)}")
        try:
            result = _run_one(model, request, output, None)
        except FourphaseError as error:
            failed += 1
            outcomes.append({"schema": "fourphase.error/1", "argument": number, "error": error.to_dict()})
            if error.key == GPU_LOST:
                lost = error
                break
            print_error(error)
            continue
        outcomes.append({"argument": number, **result.to_dict()})
        if not json_output:
            _show(result, json_output=False)
    if json_output:
        with stdout_checked():
            print(json.dumps({"schema": "fourphase.results/1", "results": outcomes}, indent=1, allow_nan=False))
    if lost is not None:
        raise lost
    if failed:
        raise SomeStudiesFailed(
            f"{failed} of {len(requests)} studies failed", "see the errors above; the other results are complete"
        )


def _show(result: StudyResult, json_output: bool) -> None:
    with stdout_checked():
        if json_output:
            print(result.to_json())
            return
        from fourphase.runtime.report import print_result

        print_result(result)


if __name__ == "__main__":
    main()
