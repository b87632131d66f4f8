"""`fp-export build-plan`: the engine of a bundle for this machine, from the bundle alone, without torch or onnx."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourphase.runtime.console import be_quiet, note, run_app, say_errors_as_json

if TYPE_CHECKING:
    from fourphase.engine.options import BuildOptions
    from fourphase.engine.plans import PlanOutcome
    from fourphase.runtime.flavour import Target

__all__ = ["app", "build_options", "build_plan_command", "engine_line"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

BatchOption = Annotated[str, typer.Option(metavar="MIN,OPT,MAX", help="Studies per run the engine is built for.")]
WorkspaceOption = Annotated[int, typer.Option(metavar="MIB", help="Scratch memory a layer may take, in MiB.")]
LevelOption = Annotated[
    int | None,
    typer.Option(help="Builder optimisation level: 0 builds fastest, 5 searches longest; default TensorRT's, 3."),
]
HardwareOption = Annotated[
    str, typer.Option(help="none, ampere-plus or same-compute-capability: more GPUs for one plan, perhaps slower.")
]
VersionOption = Annotated[
    bool,
    typer.Option(
        "--version-compatible", help="Newer TensorRT may load the plan; it then runs host code from the file."
    ),
]
DlaOption = Annotated[
    int | None, typer.Option(metavar="CORE", help="Put the trunk of a split network on this accelerator (Jetson Orin).")
]
CapabilityOption = Annotated[
    list[str] | None, typer.Option(help="A GPU that a TensorRT for RTX engine is for, such as 8.9. Repeatable.")
]
NoCacheOption = Annotated[bool, typer.Option("--no-timing-cache", help="Measure every tactic anew, and keep nothing.")]


def build_options(
    *,
    batch: str = "1,1,2",
    workspace: int = 4096,
    level: int | None = None,
    hardware: str = "none",
    version_compatible: bool = False,
    dla: int | None = None,
    capabilities: list[str] | None = None,
    no_timing_cache: bool = False,
) -> BuildOptions:
    """The command line's words -> BuildOptions. Raises: UsageError (2)."""
    from fourphase.engine.options import BuildOptions
    from fourphase.runtime.errors import UsageError

    try:
        low, opt, high = (int(part) for part in batch.split(","))
    except ValueError:
        raise UsageError(
            f"--batch {batch} is not MIN,OPT,MAX", "write for example --batch 1,1,4", key="batch"
        ) from None
    if low > 1:
        raise UsageError(
            f"--batch {batch}: an engine for {low} studies at least could not run one",
            "let MIN be 1",
            key="profile_invalid",
        )
    return BuildOptions(
        batch=(low, opt, high),
        workspace_bytes=workspace << 20,
        compute_capabilities=tuple(capabilities or ()),
        optimization_level=level,
        hardware_compatibility=hardware,
        version_compatible=version_compatible,
        dla_core=dla,
        timing_cache=not no_timing_cache,
    )


@app.command(no_args_is_help=True)
def build_plan_command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    target: Annotated[str, typer.Option(help="auto, tensorrt or tensorrt-rtx.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="Default: the lowest the bundle has.")] = None,
    plans: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to keep the plan; default: the bundle's own engines/.")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="One engine even if the bundle is split.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build again what is there already.")] = False,
    batch: BatchOption = "1,1,2",
    workspace: WorkspaceOption = 4096,
    optimization_level: LevelOption = None,
    hardware_compatibility: HardwareOption = "none",
    version_compatible: VersionOption = False,
    dla: DlaOption = None,
    compute_capability: CapabilityOption = None,
    no_timing_cache: NoCacheOption = False,
    lock_timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Wait so long for another's build.")] = 3600.0,
    json_output: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Build the engine of a bundle for this machine, unless it is there. Needs TensorRT, neither torch nor onnx.

    Example: fp-export build-plan liver.bundle
    """
    be_quiet(quiet)
    say_errors_as_json(json_output)
    from fourphase.engine.plans import ensure_plans
    from fourphase.runtime.bundle import load_bundle
    from fourphase.runtime.errors import EnvironmentFault
    from fourphase.runtime.flavour import choose_target
    from fourphase.runtime.plan_store import PlanStore

    options = build_options(
        batch=batch,
        workspace=workspace,
        level=optimization_level,
        hardware=hardware_compatibility,
        version_compatible=version_compatible,
        dla=dla,
        capabilities=compute_capability,
        no_timing_cache=no_timing_cache,
    )
    chosen = choose_target(target)
    if chosen.name == "none":
        raise EnvironmentFault(
            f"there is nothing to build an engine with: {chosen.reason}",
            "install TensorRT, or pip install 'fourphase[rtx]'",
            key="tensorrt_missing",
        )
    content = load_bundle(bundle)
    outcomes = ensure_plans(
        content,
        PlanStore(content, plans),
        chosen.name,
        options,
        precision=precision,
        whole=whole,
        force=force,
        lock_timeout_s=lock_timeout,
    )
    _print_plans(outcomes, chosen, json_output)


def _print_plans(outcomes: Sequence[PlanOutcome], target: Target, json_output: bool) -> None:
    records = [{"key": one.key, "outcome": one.outcome, **one.meta} for one in outcomes]
    if json_output:
        chosen = {"name": target.name, "reason": target.reason}
        print(json.dumps({"schema": "fourphase.plans/1", "target": chosen, "plans": records}, indent=1))
        return
    print(f"target {target.name}: {target.reason}")
    for record in records:
        print(engine_line(record, record["outcome"]))
        for warning in record["warnings"]:
            note(f"  note: {warning}")


def engine_line(engine: dict[str, Any], outcome: str = "built") -> str:
    """One engine's meta data in a line."""
    part = "" if engine["part"] == "whole" else f" {engine['part']}"
    part += f" of {engine['slices']} slices" if engine["slices"] else ""
    size = f", {engine['bytes'] / 1e6:.1f} MB" if "bytes" in engine else ""
    tries = len(engine["attempts"])
    last = engine["attempts"][-1]["workspace_bytes"] >> 20
    ladder = f" (at the {tries}. try, with {last} MiB of workspace)" if tries > 1 else ""
    words = {"built": f"built in {engine['build_seconds']:.1f} s{ladder}"}
    words |= {"found": "there already, verified", "waited": "built by another process meanwhile, verified"}
    audited = engine["audit"] if isinstance(engine["audit"], str) else f"audited: {engine['audit']['summary']}"
    return (
        f"engine {engine['key']}: {engine['precision']}{part}, {engine['flavour']} {engine['version']} for compute"
        f" capability {', '.join(engine['compute_capabilities'])}{size}, {words[outcome]}; {audited}"
    )


def main() -> None:
    """Entry point of `python -m fourphase.engine.plan_command`, which fp-run --rebuild runs."""
    run_app(app, "fp-export build-plan")


if __name__ == "__main__":
    main()
