"""The plots of memory and energy per candidate, and how a candidate is drawn: colour by runtime, shape by precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fourphase.benchmarks.report.answers_latency import OURS
from fourphase.benchmarks.report.page_parts import finding
from fourphase.benchmarks.report.reading import Row, dig
from fourphase.benchmarks.report.svg_base import legend
from fourphase.benchmarks.report.svg_rows import Dot, dot_rows
from fourphase.benchmarks.report.tables_latency import ways_of
from fourphase.benchmarks.report.words import candidate_name, significant, way_name
from fourphase.export.report_markup import Markup, element

__all__ = ["candidate_dot", "energy_plots", "memory_plots", "runtime_colour", "way_legend"]

_SHAPES = {"fp32": "square", "fp16": "circle", "int8": "diamond"}
_RUNTIMES = ("torch-eager", "torch-compile", "cuda-graph", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")


def runtime_colour(runtime: str) -> str:
    return runtime if runtime in _RUNTIMES else "other"


def candidate_dot(row: Row, value: float, words: str, **more: object) -> Dot:
    shape = _SHAPES.get(row["precision"], "triangle")
    title = f"{candidate_name(row)}: {words}"
    return Dot(row["network"], value, runtime_colour(row["runtime"]), shape, title, **more)  # type: ignore[arg-type]


def way_legend(rows: Sequence[Row], *more: tuple[str, str, str]) -> Markup:
    ways = ways_of(rows)
    entries = [(_SHAPES.get(way[1], "triangle"), runtime_colour(way[0]), way_name(*way)) for way in ways]
    return legend([*entries, *more])


def memory_plots(rows: Sequence[Row]) -> list[Markup]:
    found = []
    for place, words in (("host_peak_bytes", "host"), ("device_peak_bytes", "device")):
        megabytes_of = {id(row): count / 1e6 for row in rows if (count := dig(row, "memory", place))}
        measured = [row for row in rows if id(row) in megabytes_of]
        ours = [megabytes_of[id(row)] for row in measured if row["network"] == OURS]
        heading = f"Peak {words} memory of each candidate's process"
        heading += f": {OURS} needs {significant(min(ours))} MB at least" if ours else ""
        label = f"peak {words} memory, MB (logarithmic)"
        found += [_quantity(heading, label, measured, megabytes_of, "MB")] if measured else []
    return found


def energy_plots(rows: Sequence[Row]) -> list[Markup]:
    sources = list(dict.fromkeys(source for row in rows for source in row.get("energy") or ()))
    if not sources:
        notes = dict.fromkeys(note for row in rows for note in dig(row, "watched", "notes") or () if "energy" in note)
        why = f": {'; '.join(notes)}" if notes else ""
        return [element("p", f"Energy per study was not measured{why}.", class_="soft")]
    found = []
    for source in sources:
        joules_of = {id(row): joules for row in rows if (joules := dig(row, "energy", source))}
        measured = [row for row in rows if id(row) in joules_of]
        heading = f"Energy per study, {source}"
        found.append(_quantity(heading, "joules per study (logarithmic)", measured, joules_of, "J"))
    return found


def _quantity(heading: str, label: str, rows: Sequence[Row], values: Mapping[int, float], unit: str) -> Markup:
    """One row per network, the least first; `values` by the id of a row."""
    least: dict[str, float] = {}
    for row in sorted(rows, key=lambda row: values[id(row)]):
        least.setdefault(row["network"], values[id(row)])
    dots = [
        candidate_dot(row, values[id(row)], f"{significant(values[id(row)])} {unit}")
        for name in least
        for row in rows
        if row["network"] == name
    ]
    notes = {name: f"{significant(value)} {unit}" for name, value in least.items()}
    drawn = dot_rows(
        heading, "One row per network, one mark per runtime and precision.", label, dots, strong=OURS, notes=notes
    )
    return finding(heading, drawn, "", way_legend(rows))
