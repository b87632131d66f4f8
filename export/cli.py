"""`fp-export`: checkpoint -> verified ONNX -> bundle, and looking at what came out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourphase.export.calibrate_command import calibrate
from fourphase.export.ladder_table import precisions_text
from fourphase.export.search_command import search
from fourphase.runtime.console import be_quiet, note, run_app, say_errors_as_json
from fourphase.runtime.errors import UsageError

if TYPE_CHECKING:
    from fourphase.runtime.bundle import Bundle

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)

CheckpointArgument = Annotated[Path, typer.Argument(help=".safetensors, .pt or .pth.")]
ConfigOption = Annotated[
    Path | None, typer.Option(help="TOML with [network] and [preprocessing]; overrides the file's.")
]
TargetOption = Annotated[str, typer.Option(help="auto, tensorrt, tensorrt-rtx or none (ONNX only).")]
CapabilityOption = Annotated[
    list[str] | None, typer.Option(help="A GPU that a TensorRT for RTX engine is for, such as 8.9. Repeatable.")
]
AcceptOption = Annotated[Path | None, typer.Option(help="TOML with other thresholds for the gates.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")]


@app.command("onnx")
def export_onnx(
    checkpoint: CheckpointArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    config: ConfigOption = None,
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
    from fourphase.export.checkpoint import load_checkpoint

    verified = verified_onnx(load_checkpoint(checkpoint, config))
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
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn a checkpoint into a bundle: ONNX verified against PyTorch, lowered, judged, and a TensorRT engine.

    Example: fp-export build-engine model.safetensors -o liver.bundle --precision int8 --calibration calibration
    """
    _set_up(json_output, quiet)
    from fourphase.export.build import build_bundle
    from fourphase.export.build_request import BuildRequest

    request = BuildRequest(
        precision=precision,
        target=target,
        compute_capabilities=tuple(compute_capability or ()),
        gru=gru,
        calibration=calibration,
        evaluation=evaluation,
        algorithm=algorithm,
        policy=policy,
        accept=accept,
        config=config,
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
    config: ConfigOption = None,
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
        report = verify_onnx(subject, checkpoint, config)
    else:
        report = verify_bundle(subject, checkpoint, config, evaluation=evaluation, accept=accept)
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


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what is in a bundle: configuration, precision per block, engines, hashes, parity.

    Example: fp-export inspect liver.bundle
    """
    _set_up(json_output, quiet)
    from fourphase.runtime.bundle import load_bundle

    content = load_bundle(bundle)
    if json_output:
        print(json.dumps(json.loads((bundle / "manifest.json").read_bytes()), indent=1))
    else:
        _print_bundle(content)


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
        print(_engine_line(engine))
        for warning in engine["warnings"]:
            note(f"  note: {warning}")


def _engine_line(engine: dict[str, Any]) -> str:
    capabilities = ", ".join(engine["compute_capabilities"])
    return (
        f"engine {engine['key']}: {engine['precision']}, {engine['flavour']} {engine['version']} for compute"
        f" capability {capabilities}, {engine['bytes'] / 1e6:.1f} MB, built in {engine['build_seconds']:.1f} s;"
        " not run on a GPU here"
    )


def _print_bundle(bundle: Bundle) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"bundle sha256 {bundle.sha256}", markup=False)
    console.print(f"classes {', '.join(bundle.classes)}; phases {', '.join(bundle.phases)}", markup=False)
    console.print(f"input float32 (batch, {', '.join(map(str, bundle.input_shape))})", markup=False)
    console.print(f"network {json.dumps(dict(bundle.network))}", markup=False, soft_wrap=True)
    console.print(f"preprocessing {bundle.preprocessing.hash}", markup=False)
    for precision, model in bundle.models.items():
        console.print(f"model {precision}: {model.file}, {precisions_text(model.blocks)}", markup=False)
    if bundle.calibration:
        made = bundle.calibration
        console.print(
            f"calibration: {made['studies']} studies, {made['algorithm']}, set {made['hash'][:16]}", markup=False
        )
    for engine in bundle.engines:
        meta = json.loads(bundle.read(engine.meta))
        capabilities = ", ".join(meta["compute_capabilities"])
        console.print(f"engine {engine.plan}: {meta['flavour']} {meta['version']} for {capabilities}", markup=False)
    first, ladder = bundle.parity.get("torch_fp32_to_onnx_fp32"), bundle.parity.get("ladder")
    if first:
        console.print(
            f"parity with PyTorch: worst {first['worst_block']} at {first['worst_relative']:.1e}", markup=False
        )
    if ladder:
        judged = ladder["judged_on"]
        console.print(
            f"judged on {judged['studies']} studies ({judged['source']}), against {ladder['baseline']}", markup=False
        )
        for precision, verdict in ladder["verdicts"].items():
            noise = "equal" if verdict["sqnr_db"] is None else f"{verdict['sqnr_db']:.1f} dB"
            console.print(f"  {precision}: {noise}, {verdict['flips']} flips", markup=False)
    console.print(f"made with {', '.join(f'{name} {number}' for name, number in bundle.tools.items())}", markup=False)
    table = Table("file", "bytes", "sha256")
    for name, record in bundle.files.items():
        table.add_row(name, f"{record.bytes:,}", record.sha256[:16])
    console.print(table)
    console.print("hashes as the manifest has them; fp-export verify checks them")


if __name__ == "__main__":
    main()
