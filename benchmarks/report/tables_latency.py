"""The tables of the latency section: cost, medians, every candidate's figures, ratios of networks and of runtimes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fourphase.benchmarks.report.reading import Row, dig, rows_of, status_of
from fourphase.benchmarks.report.text_table import Strong, Table
from fourphase.benchmarks.report.words import DASH, megabytes, ratio_text, significant, way_name

__all__ = ["PUBLISHED", "latency_tables", "median_ms", "ways_of"]

#: Network -> (parameters, GMAC per study) that follow from the paper's and the baselines' descriptions at full size.
PUBLISHED: Mapping[str, tuple[float, float]] = {
    "four-phase": (52.0e6, 152.1),
    "four-phase-shared": (18.4e6, 152.1),
    "resnet3d-18-s122": (33.2e6, 215.1),
    "resnet3d-18-s222": (33.2e6, 107.5),
    "resnet3d-18-medicalnet": (33.2e6, 24.3),
    "densenet3d-121": (11.3e6, 30.1),
    "stic": (17.9e6, 61.4),
    "mexpale": (33.2e6, 24.3),
    "transmed": (16.6e6, 50.2),
    "tdn": (26.1e6, 71.3),
}
Way = tuple[str, str]


def median_ms(row: Row) -> float | None:
    """p50 of the latency of a row that was measured."""
    value = dig(row, "statistics", "latency_ms", "p50") if status_of(row) == "ok" else None
    return None if value is None else float(value)


def ways_of(rows: Sequence[Row]) -> list[Way]:
    """(runtime, precision) of which at least one row was measured."""
    return list(dict.fromkeys((row["runtime"], row["precision"]) for row in rows if median_ms(row) is not None))


def latency_tables(section: Row) -> list[Table]:
    rows = rows_of(section)
    batches = list(dict.fromkeys(row.get("batch", 1) for row in rows))
    medians = [_medians([row for row in rows if row.get("batch", 1) == batch], batch) for batch in batches]
    return [
        _cost(section),
        *medians,
        *(_network_ratios(section, batch) for batch in batches),
        *(_runtime_ratios(section, batch) for batch in batches),
        _details(rows),
    ]


def _cost(section: Row) -> Table:
    networks: Mapping[str, Row] = section.get("networks") or {}
    quick = bool(section.get("quick"))
    rows = []
    for name, facts in networks.items():
        parameters, gmac = PUBLISHED.get(name, (None, None))
        expected = (DASH, DASH) if quick or not parameters else (f"{parameters / 1e6:.1f}", f"{gmac:.1f}")
        size = facts.get("input")
        rows.append((name, significant(facts["parameters"] / 1e6), expected[0], significant(facts["gmac"], 4),
                     expected[1], " x ".join(map(str, size)) if size else DASH))  # fmt: skip
    head = ("network", "10⁶ parameters", "expected", "GMAC per study", "expected ", "input")
    note = (
        "GMAC: multiply-accumulates of convolutions and matrix products. Expected: from the papers' descriptions and"
        " code; what explains a difference is said in benchmarks/baselines. Input: phase, slice, channel, row, column."
    )
    return Table("Size and arithmetic", head, rows, note, words=("input",))


def _medians(rows: Sequence[Row], batch: int) -> Table:
    ways = ways_of(rows)
    found = {(row["network"], row["runtime"], row["precision"]): row for row in rows}
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        cells = [found.get((network, *way)) for way in ways]
        known = [ms for cell in cells if cell and (ms := median_ms(cell)) is not None]
        fastest = min(known, default=None)
        lines.append((network, *(_median_cell(cell, fastest) for cell in cells)))
    title = "Median latency, ms" + ("" if batch == 1 else f", batch {batch}")
    return Table(title, ("network", *(way_name(*way) for way in ways)), lines, "The fastest of each network is bold.")


def _median_cell(row: Row | None, fastest: float | None) -> str:
    if row is None:
        return DASH
    ms = median_ms(row)
    if ms is None:
        return status_of(row)
    return Strong(significant(ms)) if ms == fastest else significant(ms)


def _network_ratios(section: Row, batch: int) -> Table:
    pairs = [pair for pair in rows_of(section, "pairs")
             if pair.get("kind") == "networks" and pair["a"].get("batch", 1) == batch]  # fmt: skip
    ways = list(dict.fromkeys((pair["a"]["runtime"], pair["a"]["precision"]) for pair in pairs))
    found = {(pair["a"]["network"], pair["a"]["runtime"], pair["a"]["precision"]): pair for pair in pairs}
    others = dict.fromkeys(pair["b"]["network"] for pair in pairs)
    lines = [
        (network, *(_pair_text(found.get((network, *way))) for way in ways))
        for network in dict.fromkeys(pair["a"]["network"] for pair in pairs)
    ]
    title = f"Ratio of latencies over {', '.join(others)}" + ("" if batch == 1 else f", batch {batch}")
    note = "Above 1, the network takes longer. 95 % intervals from rounds in turns; why a ratio is refused: see Gaps."
    return Table(title, ("network", *(way_name(*way) for way in ways)), lines, note)


def _pair_text(pair: Row | None) -> str:
    return DASH if pair is None else ratio_text(pair.get("ratio"))


def _runtime_ratios(section: Row, batch: int) -> Table:
    found: dict[tuple[str, str], Row] = {}
    for pair in rows_of(section, "pairs"):
        if pair.get("kind") != "networks" and pair["a"].get("batch", 1) == batch:
            words = " over ".join(way_name(pair[side]["runtime"], pair[side]["precision"]) for side in ("a", "b"))
            found[pair["a"]["network"], words] = pair
    columns = list(dict.fromkeys(words for _, words in found))
    rows = [
        (network, *(_pair_text(found.get((network, words))) for words in columns))
        for network in dict.fromkeys(network for network, _ in found)
    ]
    title = "Ratios of runtimes and precisions" + ("" if batch == 1 else f", batch {batch}")
    return Table(title, ("network", *columns), rows, "Above 1, the first takes longer than the second.", True)


def _details(rows: Sequence[Row]) -> Table:
    measured = [row for row in rows if median_ms(row) is not None]
    energies = list(dict.fromkeys(source for row in measured for source in row.get("energy") or ()))
    said = ["; ".join(filter(None, (row.get("note"), row.get("drift")))) for row in measured]
    head = ("network", "in", "batch", *(name for name, _ in _COLUMNS), *(f"J per study, {name}" for name in energies))
    head += ("note",) if any(said) else ()
    lines = [
        (row["network"], way_name(row["runtime"], row["precision"]), str(row.get("batch", 1)),
         *(cell(row) for _, cell in _COLUMNS), *(significant(dig(row, "energy", name)) for name in energies),
         *((words,) if any(said) else ()))
        for row, words in zip(measured, said, strict=True)
    ]  # fmt: skip
    note = (
        "x floor: median over the shortest time that this machine's measured peaks allow; a library that uses Winograd "
        "convolutions may come below 1. Difference: relative, from torch eager FP32."
    )
    return Table("Every candidate", head, lines, note, True, ("in", "note"))


def _of(*path: str, digits: int = 3) -> Callable[[Row], str]:
    return lambda row: significant(dig(row, *path), digits)


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("p50 ms", _of("statistics", "latency_ms", "p50", digits=4)),
    ("min", _of("statistics", "latency_ms", "min")),
    ("p95", _of("statistics", "latency_ms", "p95")),
    ("p99", _of("statistics", "latency_ms", "p99")),
    ("mean", _of("statistics", "latency_ms", "mean")),
    ("cv %", _of("statistics", "latency_ms", "cv_percent")),
    ("studies/s", _of("statistics", "studies_per_second")),
    ("floor ms", _of("limit", "limit_ms")),
    ("x floor", _of("limit", "times")),
    ("host MB", lambda row: megabytes(dig(row, "memory", "host_peak_bytes"))),
    ("device MB", lambda row: megabytes(dig(row, "memory", "device_peak_bytes"))),
    ("load s", _of("load_s")),
    ("max abs", _of("difference", "max_abs")),
    ("difference", _of("difference", "relative")),
)
