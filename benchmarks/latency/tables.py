"""The result of `fp-bench latency` for a person: a table of medians, and every ratio as a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["REHEARSAL", "pair_sentences", "print_latency", "row_notes", "way_of"]

#: Columns of a terminal that the table takes at least: for the network, and for each way to run it.
_WIDTH, _PER_WAY = 52, 17
REHEARSAL = "A REHEARSAL with tiny networks: these numbers measure nothing."


def way_of(row: Mapping[str, Any]) -> str:
    """ "openvino int8", with the batch if it is not 1."""
    return f"{row['runtime']} {row['precision']}" + (f" x{row['batch']}" if row["batch"] > 1 else "")


def print_latency(result: Mapping[str, Any]) -> None:
    """Prints table, sentences and reasons on stdout."""
    from rich.console import Console
    from rich.table import Column, Table

    rows = result["rows"]
    measured = [row for row in rows if row["statistics"]]
    ways = list(dict.fromkeys(way_of(row) for row in measured))
    console = Console(highlight=False)
    console = Console(highlight=False, width=max(console.width, _WIDTH + _PER_WAY * len(ways)))
    if result["quick"]:
        console.print(REHEARSAL)
    table = Table(
        Column("network", no_wrap=True), "parameters", "GMAC", *(way.replace(" ", "\n", 1) for way in ways),
        title="median ms (x times the limit of this machine); bold: the fastest; !: failed later",
    )  # fmt: skip
    for name, network in result["networks"].items():
        own = {way_of(row): row for row in measured if row["network"] == name}
        fastest = min((_p50(row) for row in own.values()), default=None)
        cells = [_cell(own.get(way), fastest) for way in ways]
        table.add_row(name, _millions(network["parameters"]), _gmac(network["gmac"]), *cells)
    if measured:
        console.print(table)
    for line in (*pair_sentences(result["pairs"]), *row_notes(rows), *result["settings"]["notes"]):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"int8 of prepared networks: {result['settings']['prepared_networks']}", markup=False)


def _p50(row: Mapping[str, Any]) -> float:
    value: float = row["statistics"]["latency_ms"]["p50"]
    return value


def _cell(row: Mapping[str, Any] | None, fastest: float | None) -> str:
    if row is None:
        return "-"
    text = f"{_p50(row):.4g}" + (f" ({row['limit']['times']:.3g}x)" if row["limit"] else "")
    marked = text + (" !" if row["status"] != "ok" else "")
    return f"[bold]{marked}[/bold]" if _p50(row) == fastest else marked


def _millions(parameters: int | None) -> str:
    return "?" if parameters is None else f"{parameters / 1e6:.3g} M"


def _gmac(gmac: float | None) -> str:
    return "?" if gmac is None else f"{gmac:.4g}"


def pair_sentences(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each pair in words, the slower one first; a refused ratio with its reason."""
    return [_sentence(pair) for pair in pairs]


def _sentence(pair: Mapping[str, Any]) -> str:
    a, b, ratio = pair["a"], pair["b"], pair["ratio"]
    if pair["kind"] == "networks":
        one, two, where = a["network"], b["network"], f" in {way_of(a)}"
    else:
        one, two, where = f"{a['network']} in {way_of(a)}", way_of(b), ""
    if ratio["value"] is None:
        return f"{one} and {two}{where}: no ratio, {ratio['refused']}"
    value, low, high = ratio["value"], ratio["low"], ratio["high"]
    if value < 1:
        one, two, value, low, high = two, one, 1 / value, 1 / high, 1 / low
        if pair["kind"] != "networks":
            one, two = f"{a['network']} in {way_of(b)}", way_of(a)
    if low <= 1:
        return f"{one} and {two}{where} take the same time, as far as was measured ({low:.2f} to {high:.2f})"
    return f"{one} takes {value:.2f} ({low:.2f} to {high:.2f}) times as long as {two}{where}"


def row_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why rows are missing or failed, one line per reason; and what is to be known of those that are there."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] != "ok":
            reasons.setdefault(f"{row['status']}: {row['reason']}", []).append(way_of(row))
    lines = [f"{', '.join(dict.fromkeys(ways))} {reason}" for reason, ways in reasons.items()]
    for row in rows:
        for said in filter(None, (row["drift"], row["note"])):
            lines.append(f"{row['network']} in {way_of(row)}: {said}")
    return lines
