"""What the latency section says in sentences: how fast, against which networks, and what arithmetic would say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fourphase.benchmarks.report.reading import Row, dig, rows_of
from fourphase.benchmarks.report.tables_latency import Way, median_ms
from fourphase.benchmarks.report.words import counted, listed, significant, time_text, way_name

__all__ = ["OURS", "fastest_of", "is_baseline", "latency_answers", "verdict_of", "verdicts_in"]

OURS = "four-phase"
_REFERENCE = ("torch-eager", "fp32")
#: (slow, fast) of which every reader asks.
_INT8_PAIR = (("onnxruntime", "fp32"), ("openvino", "int8"))


def is_baseline(network: str) -> bool:
    """Whether it is none of ours: neither four-phase, its ablation rows, nor a bundle of the user's."""
    return not network.startswith((OURS, "bundle:"))


def fastest_of(section: Row, network: str = OURS, precision: str | None = None) -> Row | None:
    """The network's row with the smallest median at the smallest batch, of one precision if it is given."""
    rows = [
        row
        for row in rows_of(section)
        if row["network"] == network and median_ms(row) is not None and precision in (None, row["precision"])
    ]
    smallest = min((row.get("batch", 1) for row in rows), default=1)
    return min((row for row in rows if row.get("batch", 1) == smallest), key=lambda row: median_ms(row) or 0.0,
               default=None)  # fmt: skip


def verdict_of(pair: Row | None) -> str:
    """Of a over b: "faster", "slower", or "untold" where the interval holds 1 or none is quoted."""
    ratio = dig(pair, "ratio") or {}
    if ratio.get("value") is None:
        return "untold"
    return "faster" if ratio["high"] < 1 else "slower" if ratio["low"] > 1 else "untold"


def verdicts_in(section: Row, way: Way, batch: int = 1) -> dict[str, list[str]]:
    """Verdict -> baselines with it, against four-phase in one runtime and precision; "absent": without a ratio."""
    pairs = {
        pair["a"]["network"]: pair
        for pair in rows_of(section, "pairs")
        if pair.get("kind") == "networks"
        and pair["b"]["network"] == OURS
        and (pair["a"]["runtime"], pair["a"]["precision"]) == way
        and pair["a"].get("batch", 1) == batch
    }
    found: dict[str, list[str]] = {"faster": [], "slower": [], "untold": [], "absent": []}
    for network in section.get("networks") or dict.fromkeys(row["network"] for row in rows_of(section)):
        if is_baseline(network):
            verdict = verdict_of(pairs[network]) if network in pairs else "absent"
            found[verdict].append(network)
    return found


def latency_answers(section: Row) -> Iterator[str]:
    best = fastest_of(section)
    if best is None:
        return
    yield from _fastest(section, best)
    exact = fastest_of(section, precision="fp32") or best
    for way in dict.fromkeys((row["runtime"], row["precision"]) for row in (best, exact)):
        yield from _against_baselines(section, way, best.get("batch", 1))
    yield from _variants(section, best)
    yield from _arithmetic(section)


def _fastest(section: Row, best: Row) -> Iterator[str]:
    rows = [row for row in rows_of(section) if row["network"] == OURS and row.get("batch", 1) == best.get("batch", 1)]
    count = sum(median_ms(row) is not None for row in rows)
    here = best["runtime"], best["precision"]
    text = f"On this machine {OURS} takes {time_text(median_ms(best))} per study in {way_name(*here)}"
    text += f", the fastest of {count} ways that were measured" if count > 1 else ""
    gain = _gain_text(section, best, _REFERENCE, here)
    text += f": {gain} {way_name(*_REFERENCE)}" if gain else ""
    times = dig(best, "limit", "times")
    yield text + (f". That is {significant(times)} times this machine's floor." if times else ".")
    gain = _gain_text(section, best, *_INT8_PAIR)
    if gain:
        yield f"{OURS} in {way_name(*_INT8_PAIR[1])} is {gain} {way_name(*_INT8_PAIR[0])}."


def _gain_text(section: Row, row: Row, slow: Way, fast: Way) -> str:
    """`3.3 (3.2 to 3.4) times as fast as`; "" where no such ratio is quoted."""
    for pair in rows_of(section, "pairs"):
        if any(pair[side]["network"] != row["network"] or pair[side].get("batch", 1) != row.get("batch", 1)
               for side in ("a", "b")):  # fmt: skip
            continue
        a, b = ((pair[side]["runtime"], pair[side]["precision"]) for side in ("a", "b"))
        ratio = pair.get("ratio") or {}
        if {a, b} != {slow, fast} or slow == fast or ratio.get("value") is None:
            continue
        value, low, high = (float(ratio[key]) for key in ("value", "low", "high"))
        if (a, b) == (fast, slow):
            value, low, high = 1 / value, 1 / high, 1 / low
        return f"{value:.1f} ({low:.1f} to {high:.1f}) times as fast as"
    return ""


def _against_baselines(section: Row, way: Way, batch: int) -> Iterator[str]:
    found = verdicts_in(section, way, batch)
    total = sum(map(len, found.values()))
    if total == 0 or len(found["absent"]) == total:
        return
    parts = [
        _verdict_text(found["faster"], "faster"),
        _verdict_text(found["slower"], "slower"),
        _verdict_text(found["untold"], "not told apart from it, or refused"),
        _verdict_text(found["absent"], "without a number"),
    ]
    baselines = counted(total, "baseline", "baselines")
    yield f"In {way_name(*way)}, of the {baselines}, against {OURS}: {listed([part for part in parts if part])}."


def _variants(section: Row, best: Row) -> Iterator[str]:
    """What a gate, the head or a phase costs: the paper's ablation rows and phase subsets, as ratios over the whole."""
    way = best["runtime"], best["precision"]
    ratios = {
        pair["a"]["network"]: pair.get("ratio") or {}
        for pair in rows_of(section, "pairs")
        if pair.get("kind") == "networks"
        and pair["b"]["network"] == OURS
        and (pair["a"]["runtime"], pair["a"]["precision"], pair["a"].get("batch", 1)) == (*way, best.get("batch", 1))
    }
    variants = [name for name in section.get("networks") or () if name.startswith(f"{OURS}-")]
    known = {name: ratio for name in variants if (ratio := ratios.get(name, {})).get("value") is not None}
    if known:
        parts = [f"{name} {one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})" for name, one in known.items()]
        without = [name for name in variants if name not in known]
        rest = f"; of {listed(without)} there is no ratio" if without else ""
        yield f"Of the time that {OURS} takes in {way_name(*way)}, its variants take: {listed(parts)}{rest}."


def _verdict_text(names: Sequence[str], word: str) -> str:
    if not names:
        return ""
    are = "is" if len(names) == 1 else "are"
    return f"{len(names)} {are} {word} ({', '.join(names)})"


def _arithmetic(section: Row) -> Iterator[str]:
    networks: Mapping[str, Row] = section.get("networks") or {}
    ours = dig(networks, OURS, "gmac")
    others = {name: facts["gmac"] for name, facts in networks.items() if is_baseline(name)}
    if ours is None or not others:
        return
    fewer = sum(gmac < ours for gmac in others.values())
    yield (
        f"By arithmetic, 2D + GRU is {'not ' if fewer else ''}the cheap way: {OURS} needs {significant(ours)} GMAC "
        f"per study, and {fewer} of {counted(len(others), 'baseline needs', 'baselines need')} fewer."
    )
