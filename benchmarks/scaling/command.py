"""`fp-bench gru` and `fp-bench scaling`: the commands, their tables, and the same as steps of the report."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourphase.runtime.console import be_quiet, say_errors_as_json, stdout_checked
from fourphase.runtime.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from fourphase.benchmarks.guarded_steps import Outcome, Save
    from fourphase.benchmarks.latency.ratio import Ratio
    from fourphase.benchmarks.scaling.gru_table import GruTable
    from fourphase.benchmarks.scaling.sweeps import ScalingTable, SweepResult

__all__ = ["gru", "gru_step", "scaling", "scaling_step"]

PlotOption = Annotated[Path | None, typer.Option(help="Draw what was measured into this PNG.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Rehearse on tiny sizes: no measurement.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")]

_QUICK = "rehearsal at tiny sizes: these numbers are no measurement"


def gru(
    runtime: Annotated[str | None, typer.Option(help="Which runtimes, with commas; default: all.")] = None,
    slices: Annotated[str | None, typer.Option(help="Numbers of steps, with commas; default: 16 to 256.")] = None,
    hidden: Annotated[str | None, typer.Option(help="Hidden sizes, with commas; default: 256,128,512.")] = None,
    engine_seconds: Annotated[
        float | None, typer.Option(min=0, help="Time for building engines, all together; default: 60.")
    ] = None,
    plot: PlotOption = None,
    quick: QuickOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure ONNX's GRU operator against its unrolled form, per runtime, over steps and hidden size.

    Example: fp-bench gru --plot gru.png
    """
    _set_up(json_output, quiet, plot)
    result, table = _gru(
        quick=quick,
        runtimes=_names(runtime),
        slices=_numbers(slices, "--slices"),
        hidden=_numbers(hidden, "--hidden"),
        engine_seconds=engine_seconds,
    )
    with stdout_checked():
        if not json_output:
            _print_gru(table)
        print(json.dumps(result, allow_nan=False))
    say_errors_as_json(False)  # stdout holds its one document
    if plot is not None:
        from fourphase.benchmarks.scaling.plot import plot_gru

        plot_gru(table, plot)


def gru_step(save: Save, *, quick: bool, **options: Any) -> Outcome:
    """`fp-bench gru` as a step of the report; options: runtimes, slices, hidden (lists), engine_seconds."""
    from fourphase.benchmarks.guarded_steps import Outcome

    return Outcome("ok", result=_gru(save, quick=quick, **options)[0])


def _gru(
    save: Save | None = None,
    *,
    quick: bool,
    runtimes: Sequence[str] | None = None,
    slices: Sequence[int] | None = None,
    hidden: Sequence[int] | None = None,
    engine_seconds: float | None = None,
) -> tuple[dict[str, Any], GruTable]:
    from dataclasses import replace

    from fourphase.benchmarks.places import cleaned
    from fourphase.benchmarks.scaling.gru_bench import GRU_RUNTIMES, QUICK_GRU, GruOptions, run_gru
    from fourphase.benchmarks.scaling.gru_table import SCHEMA

    _require_known(runtimes, GRU_RUNTIMES, "runtime")
    options = QUICK_GRU if quick else GruOptions()
    given = {"runtimes": runtimes, "slices": slices, "hidden": hidden}
    chosen: dict[str, Any] = {name: tuple(values) for name, values in given.items() if values}
    if engine_seconds is not None:
        chosen["engine_seconds"] = engine_seconds
    head = _head(SCHEMA)
    saved = (lambda table: save(head | cleaned(table.to_dict()))) if save else (lambda table: None)
    table = run_gru(replace(options, **chosen), saved)
    return head | cleaned(table.to_dict()), table


def scaling(
    network: Annotated[str | None, typer.Option(help="Which networks, with commas; default: ours and one 3D.")] = None,
    runtime: Annotated[str, typer.Option(help="onnxruntime, openvino, or both with a comma.")] = "onnxruntime",
    what: Annotated[str, typer.Option(help="What is varied, with commas.")] = "slices,crop,batch,width",
    rounds: Annotated[int, typer.Option(min=1, help="How often each point takes its turn.")] = 6,
    plot: PlotOption = None,
    quick: QuickOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure how latency and memory grow with slices, crop, batch and width, and fit the exponents.

    Example: fp-bench scaling --what slices,crop --plot scaling.png
    """
    _set_up(json_output, quiet, plot)
    result, table = _scaling(
        quick=quick, networks=_names(network), runtimes=_names(runtime), kinds=_names(what), rounds=rounds
    )
    with stdout_checked():
        if not json_output:
            _print_scaling(table)
        print(json.dumps(result, allow_nan=False))
    say_errors_as_json(False)  # stdout holds its one document
    if plot is not None:
        from fourphase.benchmarks.scaling.plot import plot_scaling

        plot_scaling(table, plot)


def scaling_step(save: Save, *, quick: bool, **options: Any) -> Outcome:
    """`fp-bench scaling` as a step of the report; options: networks, runtimes, kinds (lists), rounds."""
    from fourphase.benchmarks.guarded_steps import Outcome

    return Outcome("ok", result=_scaling(save, quick=quick, **options)[0])


def _scaling(
    save: Save | None = None,
    *,
    quick: bool,
    networks: Sequence[str] | None = None,
    runtimes: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    rounds: int | None = None,
) -> tuple[dict[str, Any], ScalingTable]:
    from fourphase.benchmarks.places import cleaned
    from fourphase.benchmarks.scaling.cpu_runtimes import CPU_RUNTIMES
    from fourphase.benchmarks.scaling.scaling_bench import SCALING_NETWORKS, ScalingOptions, run_scaling
    from fourphase.benchmarks.scaling.sweeps import KINDS, SCHEMA

    given = {"networks": networks, "runtimes": runtimes, "kinds": kinds}
    known = {"networks": SCALING_NETWORKS, "runtimes": CPU_RUNTIMES, "kinds": KINDS}
    for name, values in given.items():
        _require_known(values, known[name], name.removesuffix("s"))
    chosen: dict[str, Any] = {name: tuple(values) for name, values in given.items() if values}
    if rounds is not None:
        chosen["rounds"] = rounds
    head = _head(SCHEMA)
    saved = (lambda table: save(head | cleaned(table.to_dict()))) if save else (lambda table: None)
    table = run_scaling(ScalingOptions(**chosen, quick=quick), saved)
    return head | cleaned(table.to_dict()), table


def _head(schema: str) -> dict[str, Any]:
    from fourphase.benchmarks.machine import describe_machine

    return {"schema": schema, "machine": describe_machine(lambda result: None).result}


def _set_up(json_output: bool, quiet: bool, plot: Path | None) -> None:
    """Also what would only fail after minutes of measuring."""
    be_quiet(quiet)
    say_errors_as_json(json_output)
    if plot is not None:
        from fourphase.benchmarks.latency.plot import require_plot

        require_plot(plot)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def _numbers(text: str | None, option: str) -> list[int] | None:
    if text is None:
        return None
    names = _names(text) or []
    if not all(name.isdecimal() and int(name) > 1 for name in names) or len(set(names)) < len(names):
        raise UsageError(f"{option} {text} is no list of different numbers above 1", f"for example {option} 16,64")
    return [int(name) for name in names]


def _require_known(names: Sequence[str] | None, known: Collection[str], what: str) -> None:
    """Raises: UsageError (2) for a name that is unknown or given twice."""
    for name in names or ():
        if name not in known:
            raise UsageError(f"unknown {what} {name!r}", f"choose out of {', '.join(known)}", key=f"{what}_unknown")
    if len(set(names or ())) < len(names or ()):
        raise UsageError(f"a {what} is named twice", "name each once", key=f"{what}_twice")


def _print_gru(table: GruTable) -> None:
    from rich.table import Table

    shown = Table("runtime", "hidden", "slices", "loop ms", "unrolled ms", "loop / unrolled", "prepare s")
    rows = {(row.runtime, row.hidden, row.slices, row.form): row for row in table.rows}
    ratios = {(ratio.runtime, ratio.hidden, ratio.slices): ratio.ratio for ratio in table.ratios()}
    for key in dict.fromkeys(name[:3] for name in rows):
        forms = [rows.get((*key, form)) for form in ("loop", "unrolled")]
        times = ["" if row is None or row.latency_ms is None else f"{row.latency_ms['p50']:.3f}" for row in forms]
        prepared = [f"{row.prepare_s:.2f}" for row in forms if row is not None and row.prepare_s is not None]
        runtime, hidden, slices = key
        ratio = _ratio_words(ratios[key]) if key in ratios else ""
        shown.add_row(runtime, str(hidden), str(slices), *times, ratio, " / ".join(prepared))
    reasons = [f"{row.runtime}, {row.form}: {row.status}, {row.reason}" for row in table.rows if row.reason]
    _print_all([shown], table.quick, list(dict.fromkeys(reasons)))


def _ratio_words(ratio: Ratio) -> str:
    if ratio.value is None:
        return ratio.refused.partition(":")[0]
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _print_scaling(table: ScalingTable) -> None:
    shown = [
        _network_table(name, [sweep for sweep in table.sweeps if sweep.network == name])
        for name in dict.fromkeys(sweep.network for sweep in table.sweeps)
    ]
    lines = []
    for sweep in table.sweeps:
        name, what = f"{sweep.network}, {sweep.runtime}", sweep.sweep.what
        lines.append(f"{name}: {sweep.statement() or f'{what}: no fit, {sweep.law()[1]}'}")
        lines += [f"{name}: {what} {point.x}: {point.status}, {point.reason}" for point in sweep.points if point.reason]
    _print_all(shown, table.quick, lines)


def _network_table(network: str, sweeps: Sequence[SweepResult]) -> RichTable:
    from rich.table import Table

    shown = Table("runtime", "varied", "at", "median ms", "GMAC", "peak MB", title=network, title_justify="left")
    for sweep in sweeps:
        for point in sweep.points:
            shown.add_row(
                sweep.runtime,
                sweep.sweep.what,
                str(point.x),
                "" if point.latency_ms is None else f"{point.latency_ms['p50']:.1f}",
                "" if point.gmac is None else f"{point.gmac:.3g}",
                "" if point.peak_bytes is None else f"{point.peak_bytes / 1e6:.0f}",
            )
    return shown


def _print_all(tables: Sequence[RichTable], quick: bool, lines: Sequence[str]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for part in (*tables, *lines, *([_QUICK] if quick else [])):
        console.print(part)
