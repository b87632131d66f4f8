"""The result of `fp-bench latency` for a person: a table of medians, and every ratio as a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["REHEARSAL", "fastest_by_batch", "other_devices", "pair_sentences", "print_latency", "row_notes", "way_of"]

#: Columns of a terminal that the table takes at least: for the network, and for each way to run it.
_WIDTH, _PER_WAY = 52, 17
REHEARSAL = "A REHEARSAL with tiny networks: these numbers measure nothing."
#: Runtime -> device, of the runtimes that do not run where the run's others do.
Devices = Mapping[str, str]
_SAME: Devices = {}


def way_of(row: Mapping[str, Any], devices: Devices = _SAME) -> str:
    """ "openvino int8", with the batch if it is not 1, and with the device if it is not the run's."""
    batch = f" x{row['batch']}" if row["batch"] > 1 else ""
    device = f" on {devices[row['runtime']]}" if row["runtime"] in devices else ""
    return f"{row['runtime']} {row['precision']}{batch}{device}"


def other_devices(result: Mapping[str, Any]) -> dict[str, str]:
    """The runtimes that do not run on the device of the run, and where they do; for `way_of`."""
    usual = result["settings"]["device"]
    # Rows of earlier versions do not say where they ran.
    return {row["runtime"]: row["device"] for row in result["rows"] if row.get("device", usual) != usual}


def fastest_by_batch(rows: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Batch -> the shortest median in ms of the rows that are ok."""
    found: dict[int, float] = {}
    for row in rows:
        if row["status"] == "ok" and row["statistics"]:
            found[row["batch"]] = min(_p50(row), found.get(row["batch"], _p50(row)))
    return found


def print_latency(result: Mapping[str, Any]) -> None:
    """Prints table, sentences and reasons on stdout."""
    from rich.console import Console
    from rich.table import Column, Table

    rows, devices = result["rows"], other_devices(result)
    measured = [row for row in rows if row["statistics"]]
    ways = list(dict.fromkeys(way_of(row, devices) for row in measured))
    console = Console(highlight=False)
    console = Console(highlight=False, width=max(console.width, _WIDTH + _PER_WAY * len(ways)))
    if result["quick"]:
        console.print(REHEARSAL)
    table = Table(
        Column("network", no_wrap=True), "parameters", "GMAC", *(way.replace(" ", "\n", 1) for way in ways),
        title="median ms (x times the limit of this machine); bold: the fastest of its batch; !: failed",
    )  # fmt: skip
    for name, network in result["networks"].items():
        own = {way_of(row, devices): row for row in measured if row["network"] == name}
        fastest = fastest_by_batch(own.values())
        cells = [_cell(own.get(way), fastest) for way in ways]
        table.add_row(name, _millions(network["parameters"]), _gmac(network["gmac"]), *cells)
    if measured:
        console.print(table)
    for line in (*pair_sentences(result["pairs"], devices), *row_notes(rows, devices), *result["settings"]["notes"]):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"int8 of prepared networks: {result['settings']['prepared_networks']}", markup=False)


def _p50(row: Mapping[str, Any]) -> float:
    value: float = row["statistics"]["latency_ms"]["p50"]
    return value


def _cell(row: Mapping[str, Any] | None, fastest: Mapping[int, float]) -> str:
    if row is None:
        return "-"
    text = f"{_p50(row):.4g}" + (f" ({row['limit']['times']:.3g}x)" if row["limit"] else "")
    if row["status"] != "ok":
        return f"{text} !"
    return f"[bold]{text}[/bold]" if _p50(row) == fastest[row["batch"]] else text


def _millions(parameters: int | None) -> str:
    return "?" if parameters is None else f"{parameters / 1e6:.3g} M"


def _gmac(gmac: float | None) -> str:
    return "?" if gmac is None else f"{gmac:.4g}"


def pair_sentences(pairs: Sequence[Mapping[str, Any]], devices: Devices = _SAME) -> list[str]:
    """Each pair in words, the slower one first; a refused ratio with its reason."""
    return [_sentence(pair, devices) for pair in pairs]


def _sentence(pair: Mapping[str, Any], devices: Devices) -> str:
    a, b, ratio = pair["a"], pair["b"], pair["ratio"]
    way_a, way_b = way_of(a, devices), way_of(b, devices)
    if pair["kind"] == "networks":
        one, two, where = a["network"], b["network"], f" in {way_a}"
    else:
        one, two, where = f"{a['network']} in {way_a}", way_b, ""
    if ratio["value"] is None:
        return f"{one} and {two}{where}: no ratio, {ratio['refused']}"
    value, low, high = ratio["value"], ratio["low"], ratio["high"]
    if value < 1:
        one, two, value, low, high = two, one, 1 / value, 1 / high, 1 / low
        if pair["kind"] != "networks":
            one, two = f"{a['network']} in {way_b}", way_a
    if low <= 1:
        return f"{one} and {two}{where} take the same time, as far as was measured ({low:.2f} to {high:.2f})"
    return f"{one} takes {value:.2f} ({low:.2f} to {high:.2f}) times as long as {two}{where}"


def row_notes(rows: Sequence[Mapping[str, Any]], devices: Devices = _SAME) -> list[str]:
    """Why rows are missing or failed, one line per reason; and what is to be known of those that are there."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] != "ok":
            reasons.setdefault(f"{row['status']}: {row['reason']}", []).append(way_of(row, devices))
    lines = [f"{', '.join(dict.fromkeys(ways))} {reason}" for reason, ways in reasons.items()]
    for row in rows:
        for said in filter(None, (row["drift"], row["note"])):
            lines.append(f"{row['network']} in {way_of(row, devices)}: {said}")
    return lines
