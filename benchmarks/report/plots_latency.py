"""The plots of the latency section: every candidate, ratios, arithmetic against latency, memory and energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fourphase.benchmarks.report.answers_latency import OURS, fastest_of, is_baseline, verdicts_in
from fourphase.benchmarks.report.page_parts import columns_of, finding
from fourphase.benchmarks.report.plots_quantities import (
    candidate_dot,
    energy_plots,
    memory_plots,
    runtime_colour,
    way_legend,
)
from fourphase.benchmarks.report.plots_ratios import estimate_of, ratio_finding
from fourphase.benchmarks.report.reading import Row, dig, rows_of
from fourphase.benchmarks.report.svg_base import legend, log_axis
from fourphase.benchmarks.report.svg_rows import WIDE, dot_rows
from fourphase.benchmarks.report.svg_xy import Point, scatter
from fourphase.benchmarks.report.tables_latency import Way, median_ms, ways_of
from fourphase.benchmarks.report.words import (
    counted,
    significant,
    time_text,
    way_name,
)
from fourphase.export.report_markup import Markup, details

__all__ = ["latency_plots"]


def latency_plots(section: Row) -> list[Markup]:
    """Nothing of a section in which nothing was measured."""
    rows = [row for row in rows_of(section) if median_ms(row) is not None]
    smallest = min((row.get("batch", 1) for row in rows), default=1)
    rows = [row for row in rows if row.get("batch", 1) == smallest]
    if not rows:
        return []
    return [
        _overview(section, rows),
        *_network_forests(section, smallest),
        *_runtime_forests(section, smallest),
        *_arithmetic(section, rows),
        *memory_plots(rows),
        *energy_plots(rows),
    ]


def _by_fastest(rows: Sequence[Row]) -> dict[str, Row]:
    """Network -> its fastest row, the fastest network first."""
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: median_ms(row) or 0.0):
        best.setdefault(row["network"], row)
    return best


def _overview(section: Row, rows: Sequence[Row]) -> Markup:
    best = _by_fastest(rows)
    dots = []
    for network, fastest in best.items():
        for row in (row for row in rows if row["network"] == network):
            summary = row["statistics"]["latency_ms"]
            words = f"{time_text(summary['p50'])} ({time_text(summary['min'])} to {time_text(summary['p95'])})"
            limit = dig(row, "limit", "limit_ms")
            dots.append(candidate_dot(row, summary["p50"], words, low=summary["min"], high=summary["p95"], tick=limit,
                             ring=row is fastest))  # fmt: skip
    notes = {name: f"{time_text(median_ms(row))} {way_name(row['runtime'], row['precision'])}"
             for name, row in best.items()}  # fmt: skip
    first, ours = next(iter(best.items())), fastest_of(section)
    heading = f"{first[0]} is the fastest network at {time_text(median_ms(first[1]))}"
    if ours is not None and first[0] != OURS:
        heading += f"; {OURS} takes {time_text(median_ms(ours))}"
    drawn = dot_rows(heading, "One row per network, one mark per runtime and precision.",
                     "latency per inference, median (logarithmic)", dots, strong=OURS, notes=notes,
                     tick_label=time_text)  # fmt: skip
    caption = (
        "Marks are medians, bars go from the fastest run to the 95th percentile. The upright tick is the floor of the "
        "marks at its height: the shortest time that this machine's measured peaks in their precision allow for the "
        "network's arithmetic and memory traffic. Marks without one have no measured peak."
    )
    return finding(heading, drawn, caption, way_legend(rows, ("ring", "none", "the network's fastest")))


def _ways_with_pairs(section: Row, batch: int) -> list[Way]:
    pairs = [pair for pair in rows_of(section, "pairs")
             if pair.get("kind") == "networks" and pair["a"].get("batch", 1) == batch]  # fmt: skip
    return list(dict.fromkeys((pair["a"]["runtime"], pair["a"]["precision"]) for pair in pairs))


def _network_forests(section: Row, batch: int) -> list[Markup]:
    """One per runtime and precision."""
    drawn = columns_of(_network_forest(section, way, batch) for way in _ways_with_pairs(section, batch))
    words = {"faster": "faster", "slower": "slower", "untold": "not told apart, or refused"}
    key = legend(("circle", name, f"{text} than {OURS}" if name != "untold" else text) for name, text in words.items())
    return [key, *drawn] if drawn else []


def _network_forest(section: Row, way: Way, batch: int) -> Markup:
    pairs = [
        pair for pair in rows_of(section, "pairs")
        if pair.get("kind") == "networks" and pair["a"].get("batch", 1) == batch
        and (pair["a"]["runtime"], pair["a"]["precision"]) == way
    ]  # fmt: skip
    pairs.sort(key=lambda pair: (not is_baseline(pair["a"]["network"]), dig(pair, "ratio", "value") or 0.0))
    found = verdicts_in(section, way, batch)
    told = [f"{len(found[key])} {words}" for key, words in (
        ("faster", "faster"), ("slower", "slower"), ("untold", "not told apart, or refused"),
        ("absent", "without a ratio"))
        if found[key]]  # fmt: skip
    other = pairs[0]["b"]["network"]
    rows = [estimate_of(pair, pair["a"]["network"]) for pair in pairs]
    heading = (
        f"{way_name(*way)}: of {counted(sum(map(len, found.values())), 'baseline', 'baselines')}, {', '.join(told)}"
    )
    return ratio_finding(
        heading,
        f"Latency of each network over that of {other}, with 95 % intervals.",
        f"← faster than {other} · ratio of latencies · slower →",
        rows,
        pairs,
    )


def _runtime_forests(section: Row, batch: int) -> list[Markup]:
    """Four-phase's first; every other network's when asked for."""
    pairs = [pair for pair in rows_of(section, "pairs")
             if pair.get("kind") != "networks" and pair["a"].get("batch", 1) == batch]  # fmt: skip
    by_network: dict[str, list[Row]] = {}
    for pair in pairs:
        by_network.setdefault(pair["a"]["network"], []).append(pair)
    drawn = {network: _runtime_forest(network, group) for network, group in by_network.items()}
    ours = [drawn.pop(OURS)] if OURS in drawn else []
    more = details(f"Runtimes and precisions of {len(drawn)} other networks", *drawn.values())
    return [*ours, *([more] if drawn else [])]


def _runtime_forest(network: str, pairs: Sequence[Row]) -> Markup:
    """The largest ratio first, in the colour of the runtime that is held against."""
    pairs = sorted(pairs, key=lambda pair: -(dig(pair, "ratio", "value") or 0.0))
    rows = [
        estimate_of(
            pair,
            " over ".join(way_name(pair[side]["runtime"], pair[side]["precision"]) for side in ("a", "b")),
            runtime_colour(pair["b"]["runtime"]),
        )
        for pair in pairs
    ]
    heading = f"{network}: runtimes and precisions"
    if rows[0].value is not None:
        a, _, b = rows[0].row.partition(" over ")
        heading = f"{network}: {a} takes {rows[0].value:.1f} times as long as {b}"
    return ratio_finding(
        heading,
        "Latency of one runtime and precision over another, with 95 % intervals.",
        "← the first is faster · ratio of latencies · the second is faster →",
        rows,
        pairs,
        WIDE,
    )


def _arithmetic(section: Row, rows: Sequence[Row]) -> list[Markup]:
    """Latency against GMAC in the way that most networks were measured in."""
    networks: Mapping[str, Row] = section.get("networks") or {}
    ways = ways_of(rows)
    counts = {way: sum((row["runtime"], row["precision"]) == way for row in rows) for way in ways}
    ours = {(row["runtime"], row["precision"]): median_ms(row) or 0.0 for row in rows if row["network"] == OURS}
    way = max(ways, key=lambda way: (counts[way], way[1] == "fp32", -ours.get(way, 0.0)))
    chosen = [row for row in rows if (row["runtime"], row["precision"]) == way and row["network"] in networks]
    if len(chosen) < 2:
        return []
    costs = {row["network"]: (float(networks[row["network"]]["gmac"]), median_ms(row) or 0.0) for row in chosen}
    rates = {name: 1e3 * gmac / ms for name, (gmac, ms) in costs.items()}
    slowest, fastest = min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__)
    heading = (
        f"Arithmetic alone is not latency: in {way_name(*way)}, {slowest} does {significant(rates[slowest])} GMAC per "
        f"second, {fastest} {significant(rates[fastest])}"
    )
    width, height = WIDE, 430.0
    x = log_axis((gmac for gmac, _ in costs.values()), 70, width - 150, room=1.25)
    y = log_axis((ms for _, ms in costs.values()), height - 46, 34, time_text, room=1.25)
    points = [(Point(gmac, ms, f"{name}: {significant(gmac)} GMAC, {time_text(ms)}"), *_group(name), name)
              for name, (gmac, ms) in sorted(costs.items(), key=lambda cost: cost[0] != OURS)]  # fmt: skip
    drawn = scatter(heading, "Each network's median latency against its arithmetic, both logarithmic.",
                    (x, "arithmetic per study, GMAC (logarithmic)"), (y, "median latency"), points,
                    (width, height))  # fmt: skip
    key = legend(
        [("circle", "ours", OURS), ("circle", "variant", "its variants"), ("diamond", "baseline", "baselines")]
    )
    return [finding(heading, drawn, "", key)]


def _group(network: str) -> tuple[str, str]:
    if network == OURS:
        return "circle", "ours"
    return ("diamond", "baseline") if is_baseline(network) else ("circle", "variant")
