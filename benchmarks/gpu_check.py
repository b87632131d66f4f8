"""Everything that needs a GPU, checked and measured by one command, written to one JSON file.

    python -m fourphase.benchmarks.gpu_check prepare -o KIT          # anywhere with the extra [export]
    python -m fourphase.benchmarks.gpu_check run KIT -o RESULT.json  # on the machine with the GPU

Each step runs in a process of its own within a time budget: what fails is recorded with its full text, and the next
step still runs. Nothing is estimated: what was not measured is recorded as skipped, with the reason.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from fourphase.benchmarks.gpu_kit import BATCH, MODELS, read_manifest
from fourphase.benchmarks.guarded_steps import Outcome, Save, Step, run_steps
from fourphase.runtime.console import be_quiet, note, progress, run_app
from fourphase.runtime.errors import GPUUnavailable, UsageError

__all__ = ["app", "check_steps", "main", "prepare_kit"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)

_ROOM = "fourphase.benchmarks"
#: What TensorRT for RTX is built for where it does not work for the GPU at hand: compute capabilities it knows well.
_FALLBACKS = ("8.0", "8.9")

QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="A tiny network: a rehearsal, no measurement.")]


@app.command()
def prepare(
    output: Annotated[Path, typer.Option("--output", "-o", help="The kit directory to write.")],
    width: Annotated[int, typer.Option(help="Stem width; 64 is the paper's (216 MB), 16 is made to be carried.")] = 64,
    quick: QuickOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the kit: ONNX models with inputs and PyTorch's outputs. Needs the extra [export], no GPU.

    Example: fp-bench gpu-check prepare -o kit --width 16
    """
    be_quiet(quiet)
    models = _write_kit(output, width, quick)["models"]
    sizes = {name: entry["onnx"]["bytes"] + entry["arrays"]["bytes"] for name, entry in models.items()}
    print(json.dumps({"schema": "fourphase.gpu-kit-outcome/1", "kit": str(output), "bytes": sizes}))


@app.command()
def run(
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON file to write.")],
    kit: Annotated[Path | None, typer.Argument(help="A kit; without one, it is prepared here at width 64.")] = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu to rehearse.")] = "cuda",
    quick: QuickOption = False,
    budget: Annotated[float, typer.Option(help="Seconds a step may take.")] = 300,
    only: Annotated[list[str] | None, typer.Option(help="Only steps whose name starts so. Repeatable.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Check and measure what needs a GPU; the exit code is 0 once the report is written, whatever it says.

    Example: fp-bench gpu-check run kit -o result.json
    """
    be_quiet(quiet)
    _refuse_early(device, kit)
    from fourphase.benchmarks.gpu_report import Report

    with tempfile.TemporaryDirectory(prefix="fourphase-kit-") as scratch:
        steps = _selected(check_steps(kit, Path(scratch, "kit"), device, quick), only or [])
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        report = Report(output, kit or Path(scratch, "kit"), {"device": device, "quick": quick, "started": started})
        with progress("GPU check", len(steps)) as advance:

            def ended(name: str, record: Mapping[str, Any]) -> None:
                report.add(name, record)
                note(f"{name}: {record['status']} ({record['seconds']:.0f} s) {record['reason']}".rstrip())
                advance(1)

            run_steps(steps, budget, ended)
    outcomes = {name: record["status"] for name, record in report.records.items()}
    print(json.dumps({"schema": "fourphase.gpu-check-outcome/1", "report": str(output), "steps": outcomes}))


def check_steps(kit: Path | None, scratch: Path, device: str, quick: bool) -> tuple[Step, ...]:
    """All steps in order; without a kit the first prepares one at `scratch`."""
    from fourphase.benchmarks.networks import NETWORKS

    where = {"device": device, "quick": quick}
    prepared = Step("prepare", f"{_ROOM}.gpu_check:prepare_kit", {"target": str(scratch), "quick": quick})
    return (
        Step("machine", f"{_ROOM}.machine:describe_machine"),
        *([] if kit else [prepared]),
        *(step for model in MODELS for step in _tensorrt_steps(model, {"kit": str(kit or scratch), **where})),
        Step("gpu-tests", f"{_ROOM}.gpu_tests:run_gpu_tests", {"device": device}),
        Step("peaks", f"{_ROOM}.limits:measure_peaks", where),
        *(
            Step(f"torch/{name}/{n}", f"{_ROOM}.torch_latency:measure_network", {"network": name, "batch": n, **where})
            for name in NETWORKS
            for n in (1, BATCH)
        ),
    )


def _tensorrt_steps(model: str, arguments: Mapping[str, Any]) -> list[Step]:
    """TensorRT for RTX for the GPU at hand, if that goes wrong for others; then TensorRT, which has no such choice."""
    function = f"{_ROOM}.tensorrt_check:check_model"
    current = f"tensorrt-rtx/{model}/current"

    def step(name: str, target: str, capability: str | None, instead_of: str | None = None) -> Step:
        details = {"model": model, "target": target, "capability": capability}
        return Step(name, function, {**details, **arguments}, needs="prepare", instead_of=instead_of)

    return [
        step(current, "tensorrt-rtx", None),
        *(step(f"tensorrt-rtx/{model}/{other}", "tensorrt-rtx", other, current) for other in _FALLBACKS),
        step(f"tensorrt/{model}", "tensorrt", None),
    ]


def prepare_kit(save: Save, *, target: str, quick: bool) -> Outcome:
    """The step that makes a kit in place, at full width."""
    manifest = _write_kit(Path(target), 64, quick)
    return Outcome("ok", result={name: manifest[name] for name in ("width", "size", "batch", "tools")})


def main() -> None:
    """Entry point of `python -m fourphase.benchmarks.gpu_check`."""
    run_app(app, "gpu-check")


def _write_kit(target: Path, width: int, quick: bool) -> dict[str, Any]:
    from fourphase.benchmarks.gpu_kit_writer import write_kit
    from fourphase.benchmarks.networks import TINY, Scale

    return write_kit(target, TINY if quick else Scale(width=width))


def _refuse_early(device: str, kit: Path | None) -> None:
    """What can be known to be wrong before the first step."""
    from fourphase.runtime.cuda import probe

    if device not in ("cuda", "cpu"):
        raise UsageError(f"unknown device {device!r}", "choose cuda or cpu", key="device_unknown")
    gpu = probe()
    if device == "cuda" and gpu.device is None:
        raise GPUUnavailable(
            f"the GPU check needs a GPU: {gpu.reason}", "run it where there is one; --device cpu --quick rehearses it"
        )
    if kit is not None:
        read_manifest(kit)


def _selected(steps: Sequence[Step], only: Sequence[str]) -> list[Step]:
    """The steps asked for, and those they need.

    Raises: UsageError if a prefix fits no step.
    """
    for prefix in only:
        if not any(step.name.startswith(prefix) for step in steps):
            names = ", ".join(step.name for step in steps)
            raise UsageError(f"no step starts with {prefix!r}", f"the steps are {names}", key="step_unknown")
    chosen = [step for step in steps if not only or step.name.startswith(tuple(only))]
    needed = {step.needs for step in chosen}
    return [step for step in steps if step in chosen or step.name in needed]


if __name__ == "__main__":
    main()
