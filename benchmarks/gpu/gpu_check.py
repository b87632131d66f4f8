"""Everything that needs a GPU, checked and measured by one command, written to one JSON file.

    fp-bench gpu-check prepare -o KIT.tar.xz --width 16 --wheel PYCUDA.whl  # anywhere with the extra [export]
    fp-bench gpu-check run KIT.tar.xz -o RESULT.json                        # on the machine with the GPU

Each step runs in a process of its own within a time budget: what fails is recorded with its full text, and the next
step still runs. Nothing is estimated: what was not measured is recorded as skipped, with the reason.

Where a machine is lent for ten minutes at a time, the steps are run in four calls (`gpu_steps.CALLS`) and put together:

    fp-bench gpu-check run -o 1.json --call 1 --within 540                  # needs no kit
    fp-bench gpu-check run KIT.tar.xz -o 2.json --call 2 --within 540       # and 3; 4 if there is time
    fp-bench gpu-check merge 1.json 2.json 3.json -o RESULT.json
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from fourphase.benchmarks.gpu.kit import read_manifest
from fourphase.benchmarks.gpu.kit_archive import install_wheels, is_archive, pack, unpack
from fourphase.benchmarks.gpu.steps import CALLS, check_steps, selected
from fourphase.benchmarks.guarded_steps import Outcome, Save, run_steps
from fourphase.runtime.console import be_quiet, note, progress, run_app
from fourphase.runtime.errors import GPUUnavailable, UsageError

__all__ = ["app", "main", "prepare_kit"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)

QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="A tiny network: a rehearsal, no measurement.")]


@app.command()
def prepare(
    output: Annotated[Path, typer.Option("--output", "-o", help="The kit to write: a directory, or a .tar.xz.")],
    width: Annotated[int, typer.Option(help="Stem width; 64 is the paper's, 16 is made to be carried (26 MiB).")] = 64,
    wheel: Annotated[list[Path] | None, typer.Option(help="A wheel to carry, such as pycuda's. Repeatable.")] = None,
    quick: QuickOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the kit: models with inputs and references, bundles, wheels. Needs the extra [export], no GPU.

    Example: fp-bench gpu-check prepare -o kit.tar.xz --width 16 --wheel pycuda-2026.1-cp312-cp312-linux_x86_64.whl
    """
    be_quiet(quiet)
    with tempfile.TemporaryDirectory(prefix="fourphase-kit-") as scratch:
        folder = Path(scratch, "kit") if is_archive(output) else output
        models = _write_kit(folder, width, quick, wheel or [])["models"]
        sizes = {name: entry["onnx"]["bytes"] for name, entry in models.items()}
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if is_archive(output):
            with progress("packing", None):
                total = pack(folder, output)
    record = {"schema": "fourphase.gpu-kit-outcome/1", "kit": str(output), "total_bytes": total, "onnx_bytes": sizes}
    print(json.dumps(record))


@app.command()
def run(
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON file to write.")],
    kit: Annotated[Path | None, typer.Argument(help="A kit; without one, it is prepared here at width 64.")] = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu to rehearse.")] = "cuda",
    quick: QuickOption = False,
    budget: Annotated[float, typer.Option(help="Seconds a step may take.")] = 300,
    within: Annotated[float | None, typer.Option(help="Seconds all steps together may take.")] = None,
    call: Annotated[int | None, typer.Option(help="Only the steps of this call, 1 to 4; see the docs.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only steps whose name starts so. Repeatable.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Check and measure what needs a GPU; the exit code is 0 once the report is written, whatever it says.

    What the engines' inspector says is kept beside the report, as <report>.inspector.zip.

    Example: fp-bench gpu-check run kit.tar.xz -o result.json --call 2 --within 540
    """
    be_quiet(quiet)
    _refuse_early(device, call, only)
    from fourphase.benchmarks.gpu.report import Report

    with tempfile.TemporaryDirectory(prefix="fourphase-kit-") as name:
        scratch = Path(name)
        found, wheels = _opened(kit, scratch)
        steps = selected(check_steps(found, scratch, device, quick), CALLS[call] if call else only or [])
        header = {"device": device, "quick": quick, "call": call, "gpu": _gpu(), "wheels": wheels}
        report = Report(output, found or scratch / "kit", {**header, "started": _now()}, scratch / "recordings")
        with progress("GPU check", len(steps)) as advance:

            def ended(name: str, record: Mapping[str, Any]) -> None:
                report.add(name, record)
                note(f"{name}: {record['status']} ({record['seconds']:.0f} s) {record['reason']}".rstrip())
                advance(1)

            run_steps(steps, budget, ended, within)
    outcomes = {name: record["status"] for name, record in report.records.items()}
    print(json.dumps({"schema": "fourphase.gpu-check-outcome/1", "report": str(output), "steps": outcomes}))


@app.command()
def merge(
    parts: Annotated[list[Path], typer.Argument(help="Reports of calls on the same machine, in their order.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON file to write.")],
    quiet: QuietOption = False,
) -> None:
    """Put the reports of several calls together; a step that ran in more than one is taken from the last.

    Example: fp-bench gpu-check merge 1.json 2.json 3.json -o result.json
    """
    be_quiet(quiet)
    from fourphase.benchmarks.gpu.report import merge_reports

    merged = merge_reports(parts, output)
    outcomes = {name: step["status"] for name, step in merged["steps"].items()}
    print(json.dumps({"schema": "fourphase.gpu-check-outcome/1", "report": str(output), "steps": outcomes}))


def prepare_kit(save: Save, *, target: str, quick: bool) -> Outcome:
    """The step that makes a kit in place, at full width."""
    manifest = _write_kit(Path(target), 64, quick)
    return Outcome("ok", result={name: manifest[name] for name in ("width", "size", "batch", "tools")})


def main() -> None:
    """Entry point of `python -m fourphase.benchmarks.gpu.gpu_check`."""
    run_app(app, "gpu-check")


def _write_kit(target: Path, width: int, quick: bool, wheels: list[Path] | None = None) -> dict[str, Any]:
    from fourphase.benchmarks.gpu.kit_writer import write_kit
    from fourphase.benchmarks.networks import TINY, Scale

    return write_kit(target, TINY if quick else Scale(width=width), wheels or [])


def _opened(kit: Path | None, scratch: Path) -> tuple[Path | None, dict[str, str]]:
    """The kit as a directory, and what came of its wheels, which are on the steps' path from now on."""
    if kit is None:
        return None, {}
    folder = unpack(kit, scratch / "kit") if is_archive(kit) else kit
    read_manifest(folder)
    site = scratch / "site"
    wheels = install_wheels(folder, site)
    if "installed" in wheels.values():
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return folder, wheels


def _refuse_early(device: str, call: int | None, only: list[str] | None) -> None:
    """What can be known to be wrong before the first step."""
    from fourphase.runtime.cuda import probe

    if device not in ("cuda", "cpu"):
        raise UsageError(f"unknown device {device!r}", "choose cuda or cpu", key="device_unknown")
    if call is not None and (call not in CALLS or only):
        raise UsageError(
            f"--call {call} cannot be run" + (" together with --only" if only else ""),
            f"give one of {', '.join(map(str, CALLS))}, or --only PREFIX",
            key="call_unknown",
        )
    gpu = probe()
    if device == "cuda" and gpu.device is None:
        raise GPUUnavailable(
            f"the GPU check needs a GPU: {gpu.reason}", "run it where there is one; --device cpu --quick rehearses it"
        )


def _gpu() -> dict[str, Any] | None:
    """What must be the same for reports to be put together."""
    from fourphase.runtime.cuda import probe

    found = probe().device
    if found is None:
        return None
    return {"name": found.name, "compute_capability": found.compute_capability, "driver": found.driver}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


if __name__ == "__main__":
    main()
