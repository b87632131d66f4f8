"""`fp-export search`: the cheapest precisions within an accuracy budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fourphase.runtime.console import be_quiet, say_errors_as_json

__all__ = ["search"]


def search(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle; its FP32 model is where it starts.")],
    calibration: Annotated[Path, typer.Option(help="Calibration set (fp-export calibrate).")],
    evaluation: Annotated[
        Path | None, typer.Option(help="Another such set, to judge on; default: the calibration set.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The bundle to write; default: BUNDLE itself, replaced.")
    ] = None,
    max_flips: Annotated[int, typer.Option(min=0, help="Studies whose decision may change.")] = 0,
    max_auc_drop: Annotated[float, typer.Option(min=0, help="Loss of AUC allowed, where there are labels.")] = 0.005,
    min_sqnr_db: Annotated[float, typer.Option(help="Signal to noise of the logits, in dB.")] = 15.0,
    algorithm: Annotated[str, typer.Option(help="int8 thresholds: percentile, mse, minmax or entropy.")] = "percentile",
    target: Annotated[str, typer.Option(help="auto, tensorrt, tensorrt-rtx or none (ONNX only).")] = "auto",
    compute_capability: Annotated[
        list[str] | None, typer.Option(help="A GPU that a TensorRT for RTX engine is for, such as 8.9. Repeatable.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the search as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Find which blocks may be FP16 or INT8 within an accuracy budget, and write that policy into the bundle.

    Costs are those of a stated model (multiply-accumulates and bytes per type), not latencies.

    Example: fp-export search liver.bundle --calibration calibration --max-flips 0 --max-auc-drop 0.005
    """
    be_quiet(quiet)
    say_errors_as_json(json_output)
    from fourphase.calibration.gates import Acceptance
    from fourphase.engine.options import BuildOptions
    from fourphase.export.search_bundle import SearchRequest, search_bundle

    limits = Acceptance(min_sqnr_db, max_flips, max_auc_drop)
    options = BuildOptions(compute_capabilities=tuple(compute_capability or ()))
    request = SearchRequest(calibration, evaluation, limits, algorithm, target, options)
    outcome = search_bundle(bundle, output or bundle, request)
    if json_output:
        print(json.dumps(outcome.result.to_dict(), indent=1))
        return
    _print_search(outcome.report)
    print(f"wrote {output or bundle}, sha256 {outcome.bundle.sha256[:12]}")


def _print_search(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from fourphase.export.ladder_table import print_ladder

    found = report["search"]
    alone = Table("group", "precision", "cost saved", "SQNR", "flips", "AUC", title="Each group lowered alone")
    for row in found["sensitivities"]:
        alone.add_row(row["group"], row["precision"], f"{row['cost_saved']:.1%}", *_harm(row))
    steps = Table("group", "precision", "cost", "SQNR", "flips", "AUC", "", title="The search, step by step")
    for row in found["steps"]:
        kept = "kept" if row["kept"] else "taken back"
        steps.add_row(row["group"], row["precision"], f"{row['cost']:.1%}", *_harm(row), kept)
    console = Console(highlight=False, soft_wrap=True)
    console.print(alone)
    console.print(steps)
    for block in found["held"]:
        overflows = block in report["ranges"]["overflowing"]
        why = "its values do not fit into FP16" if overflows else "so do the default policies"
        console.print(f"{block} stays fp32 by name: {why}", markup=False)
    rules = ", ".join(f"{name} {precision}" for name, precision in found["policy"].items())
    console.print(f"policy: {rules}; everything else fp32", markup=False)
    console.print(f"cost {found['cost_relative_to_fp32']:.1%} of FP32 by the stated model; not a latency", markup=False)
    print_ladder(report)


def _harm(row: dict[str, Any]) -> tuple[str, str, str]:
    noise = "equal" if row["finite"] else "not finite"
    noise = noise if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB"
    change = "-" if row["auc_change"] is None else f"{row['auc_change']:+.4f}"
    return noise, str(row["flips"]), change
