"""`fp-export`: checkpoint -> verified ONNX -> bundle, and looking at what came out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fourphase.engine.plan_command import (
    BatchOption,
    CapabilityOption,
    DlaOption,
    HardwareOption,
    LevelOption,
    NoCacheOption,
    VersionOption,
    WorkspaceOption,
    build_options,
    build_plan_command,
    engine_line,
)
from fourphase.export.calibrate_command import calibrate
from fourphase.export.search_command import search
from fourphase.export.triton_command import triton
from fourphase.runtime.console import be_quiet, note, run_app, say_errors_as_json
from fourphase.runtime.errors import UsageError

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)

CheckpointArgument = Annotated[Path, typer.Argument(help=".safetensors, .pt or .pth; or an .onnx you bring along.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        help="TOML with [network] and [preprocessing]; overrides the file's. For --model and .onnx also [model]"
        " phases and classes."
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="PACKAGE.MODULE:FACTORY",
        help="Another network than ours: the factory is imported, called with [network], and its code runs.",
    ),
]
TargetOption = Annotated[str, typer.Option(help="auto, tensorrt, tensorrt-rtx or none (ONNX only).")]
AcceptOption = Annotated[Path | None, typer.Option(help="TOML with other thresholds for the gates.")]
PlansOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Engines built for this machine; default: in the bundle.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")]


@app.command("onnx")
def export_onnx(
    checkpoint: CheckpointArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    config: ConfigOption = None,
    model: ModelOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write only the verified FP32 ONNX of a checkpoint.

    Example: fp-export onnx model.safetensors -o model.onnx
    """
    _set_up(json_output, quiet)
    from fourphase.runtime.atomic import check_file_target, write_file

    if output.suffix != ".onnx":
        raise UsageError(f"{output.name} is not an .onnx file", "name it MODEL.onnx", key="suffix")
    check_file_target(output)
    from fourphase.export.build import verified_onnx
    from fourphase.export.source import load_source

    source = load_source(checkpoint, config, model)
    for line in source.notes:
        note(line)
    verified = verified_onnx(source)
    write_file(output, verified.data)
    parity = verified.parity.to_dict()
    if json_output:
        print(
            json.dumps({"schema": "fourphase.onnx-report/1", "bytes": len(verified.data), "parity": parity}, indent=1)
        )
    else:
        from fourphase.export.ladder_table import print_parity

        print_parity(parity)
        print(f"wrote {output} ({len(verified.data) / 1e6:.1f} MB)")


@app.command("build-engine")
def build_engine(
    checkpoint: CheckpointArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle directory to write.")],
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 or int8; default: the policy's if one is given, else fp16.")
    ] = None,
    target: TargetOption = "auto",
    compute_capability: CapabilityOption = None,
    split: Annotated[
        int | None,
        typer.Option(
            metavar="SLICES", help="Two engines: a trunk for so many slices at a time, and a tail. Less memory."
        ),
    ] = None,
    batch: BatchOption = "1,1,2",
    workspace: WorkspaceOption = 4096,
    optimization_level: LevelOption = None,
    hardware_compatibility: HardwareOption = "none",
    version_compatible: VersionOption = False,
    dla: DlaOption = None,
    no_timing_cache: NoCacheOption = False,
    rebuilds: Annotated[
        int, typer.Option(help="Build the engine so often and report the spread of results; needs the GPU.")
    ] = 1,
    calibration: Annotated[
        Path | None, typer.Option(help="Calibration set (fp-export calibrate); int8 needs one.")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="Another such set, to judge on; default: the calibration set, if there is one.")
    ] = None,
    algorithm: Annotated[str, typer.Option(help="int8 thresholds: percentile, mse, minmax or entropy.")] = "percentile",
    policy: Annotated[
        Path | None, typer.Option(help="TOML or JSON: precision per block, see docs/precision.md.")
    ] = None,
    accept: AcceptOption = None,
    gru: Annotated[str, typer.Option(help="auto, loop (the ONNX operator) or unrolled.")] = "auto",
    config: ConfigOption = None,
    model: ModelOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn a checkpoint into a bundle: ONNX verified against PyTorch, lowered, judged, and a TensorRT engine.

    Example: fp-export build-engine model.safetensors -o liver.bundle --precision int8 --calibration calibration

    Another network: fp-export build-engine weights.pt --model package.module:factory --config net.toml -o my.bundle
    """
    _set_up(json_output, quiet)
    from fourphase.export.build import build_bundle
    from fourphase.export.build_request import BuildRequest

    request = BuildRequest(
        precision=precision,
        target=target,
        engine=build_options(
            batch=batch,
            workspace=workspace,
            level=optimization_level,
            hardware=hardware_compatibility,
            version_compatible=version_compatible,
            dla=dla,
            capabilities=compute_capability,
            no_timing_cache=no_timing_cache,
        ),
        split=split,
        rebuilds=rebuilds,
        gru=gru,
        calibration=calibration,
        evaluation=evaluation,
        algorithm=algorithm,
        policy=policy,
        accept=accept,
        config=config,
        model=model,
    )
    result = build_bundle(checkpoint, output, request)
    if json_output:
        print(json.dumps(result.report, indent=1))
        return
    _print_build(result.report)
    print(f"wrote {output} in {result.report['seconds']:.0f} s, sha256 {result.bundle.sha256[:12]}")


@app.command()
def verify(
    subject: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, or an .onnx with --checkpoint.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Also compare every block with this checkpoint.")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="Also judge every precision on these studies (a set of fp-export calibrate).")
    ] = None,
    accept: AcceptOption = None,
    plans: PlansOption = None,
    config: ConfigOption = None,
    model: ModelOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check a bundle on this machine: hashes, guards, golden outputs and, with --checkpoint, parity block by block.

    Example: fp-export verify liver.bundle --checkpoint model.safetensors
    """
    _set_up(json_output, quiet)
    from fourphase.export.verify import verify_bundle, verify_onnx

    if subject.suffix == ".onnx":
        if checkpoint is None:
            raise UsageError("an .onnx is verified against a checkpoint", "give --checkpoint", key="checkpoint_needed")
        report = verify_onnx(subject, checkpoint, config, model)
    else:
        report = verify_bundle(
            subject, checkpoint, config, factory=model, evaluation=evaluation, accept=accept, plans=plans
        )
    if json_output:
        print(json.dumps(report, indent=1))
        return
    for step, outcome in report["steps"].items():
        print(f"{step}: {outcome}")
    from fourphase.export.ladder_table import print_ladder, print_parity

    if report["parity"]:
        print_parity(report["parity"])
    if report["ladder"]:
        print_ladder(report)


app.command("calibrate")(calibrate)
app.command("search")(search)
app.command("build-plan", no_args_is_help=True)(build_plan_command)
app.command("triton")(triton)


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    plans: PlansOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what is in a bundle: configuration, precision per block, engines and which fits here, hashes, parity.

    Example: fp-export inspect liver.bundle
    """
    _set_up(json_output, quiet)
    from fourphase.runtime.bundle import load_bundle
    from fourphase.runtime.plan_choice import PlanPolicy, report_plans
    from fourphase.runtime.plan_meta import this_machine

    content = load_bundle(bundle)
    machine = this_machine()
    found = report_plans(content, machine, PlanPolicy(plans))
    if json_output:
        here = {
            "gpu": machine.gpu.reason,
            "tensorrt": dict(machine.versions),
            "plans": [report.to_dict() for report in found],
        }
        manifest = json.loads((bundle / "manifest.json").read_bytes())
        print(json.dumps({**manifest, "this_machine": here}, indent=1))
        return
    from fourphase.export.bundle_table import print_bundle, print_plans

    print_bundle(content)
    print_plans(machine, found)


def main() -> None:
    """Entry point of `fp-export`."""
    run_app(app, "fp-export")


def _set_up(json_output: bool, quiet: bool) -> None:
    be_quiet(quiet)
    say_errors_as_json(json_output)


def _print_build(report: dict[str, Any]) -> None:
    from fourphase.export.ladder_table import print_ladder, print_parity

    print_parity(report["parity"])
    print_ladder(report)
    print(f"GRU {report['gru']['form']}: {report['gru']['reason']}")
    calibration = report["calibration"]
    if calibration:
        origin = "read from the cache" if calibration["from_cache"] else "computed"
        print(
            f"scales: {calibration['scales']} by {calibration['algorithm']}, {calibration['studies']} studies, {origin}"
        )
    print(f"target {report['target']['name']}: {report['target']['reason']}")
    for engine in report["engines"]:
        print(engine_line(engine))
        for warning in engine["warnings"]:
            note(f"  note: {warning}")
    _print_split(report["split"])
    checked = report["on_device"]
    if checked["state"] == "passed":
        print(
            f"on this GPU: {len(checked['rebuilds'])} build(s) within the golden outputs' tolerance, logits"
            f" {checked['logits_spread']:.2g} and latency {checked['latency_spread_ms']:.2f} ms apart"
        )
    elif report["engines"]:
        print(f"not run on a GPU: {checked['reason']}")


def _print_split(split: dict[str, Any] | None) -> None:
    if split is None:
        return
    memory = split["memory"]
    whole, parts = memory["whole"]["peak_bytes"] / 2**20, memory["split_peak_bytes"] / 2**20
    print(
        f"split in chunks of {split['slices']} slices: equal to the whole; activations by model {parts:.3g} MiB,"
        f" whole {whole:.3g} MiB"
    )


if __name__ == "__main__":
    main()
