"""`fp-bench latency`: options in, a table, sentences and one JSON line out; and the same as a step of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourphase.runtime.console import be_quiet, say_errors_as_json, stdout_checked

if TYPE_CHECKING:
    from fourphase.benchmarks.guarded_steps import Outcome, Save

__all__ = ["latency", "latency_step"]


def latency(
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="BUNDLE", help="Your own; default: networks of the registry.")
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(help="Of the registry, or ours, baselines, all; repeatable. Default: four-phase and baselines."),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="torch-eager, torch-compile, cuda-graph, onnxruntime, openvino, tensorrt, tensorrt-rtx; repeatable."
        ),
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, fp16, int8; repeatable. A named one is measured in any case.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Studies per inference; repeatable.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Turns of each candidate (6).")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Of each candidate, all turns together (3).")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Cores per inference; 0: all.")] = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="The bundle's network for the PyTorch runtimes.")] = None,
    require: Annotated[bool, typer.Option("--require", help="A named runtime that is missing is an error.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A rehearsal with tiny networks: no measurement.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw it into FILE.png (extra [report]).")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Measure networks in runtimes and precisions, in turns, each in a process of its own, with the floor beside them.

    Example: fp-bench latency --network four-phase --network resnet3d-18-s122 --runtime openvino --runtime onnxruntime
    """
    be_quiet(quiet)
    say_errors_as_json(json_output)
    from fourphase.benchmarks.latency.options import LatencyOptions

    options = LatencyOptions(
        bundles=[str(path) for path in bundles or ()],
        checkpoint=None if checkpoint is None else str(checkpoint),
        networks=network or (),
        runtimes=runtime or (),
        precisions=precision or (),
        batches=batch or (1,),
        rounds=rounds,
        seconds=seconds,
        threads=threads,
        require=require,
    )
    if plot is not None:
        from fourphase.benchmarks.latency.plot import require_plot

        require_plot(plot)
    result = _measured(options, _nowhere, quick)
    with stdout_checked():
        if not json_output:
            from fourphase.benchmarks.latency.tables import print_latency

            print_latency(result)
        print(json.dumps(result, allow_nan=False))
    say_errors_as_json(False)  # stdout holds its one document
    if plot is not None:
        from fourphase.benchmarks.latency.plot import plot_latency

        plot_latency(result, plot)
    from fourphase.benchmarks.nothing_measured import require_some

    require_some(result["rows"])


def latency_step(save: Save, *, quick: bool, **options: Any) -> Outcome:
    """The same as a step of the report; `options` are those of `LatencyOptions`. Result: the JSON object."""
    from fourphase.benchmarks.guarded_steps import Outcome
    from fourphase.benchmarks.latency.options import LatencyOptions

    return Outcome("ok", result=_measured(LatencyOptions(**options), save, quick))


def _measured(options: Any, save: Save, quick: bool) -> dict[str, Any]:
    from fourphase.benchmarks.latency.bench import LatencyBench

    return LatencyBench(options, save, quick=quick).run()


def _nowhere(record: Any) -> None:
    """A person waits for the end."""
