"""The sections of the report's page, each from what the report holds; without it, a section is empty."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from fourphase.export.report_engines import device_section, engines_section, split_section
from fourphase.export.report_markup import (
    Column,
    Markup,
    Row,
    code,
    details,
    element,
    facts_of,
    figure,
    lines_of,
    stacked,
    table,
)
from fourphase.export.report_plots import histograms_svg, ladder_svg, parity_svg, ranges_svg, search_svg
from fourphase.export.report_svg import key_svg
from fourphase.export.report_words import (
    auc_change,
    bars_text,
    bytes_text,
    choice,
    decibel,
    gates_text,
    number,
    passed_text,
    policy_text,
    sqnr_of,
    studies_text,
    sum_text,
    times,
)

__all__ = [
    "SECTIONS",
]


def _ladder(report: Row) -> list[Markup]:
    ladder = [step for step in report.get("ladder") or () if step.get("verdict")]
    full = next((step["bytes"] for step in ladder if step["precision"] == "fp32"), None)

    def size(step: Row) -> object:
        return stacked(bytes_text(step["bytes"]), f"{step['bytes'] / full:.0%} of FP32" if full else "")

    def gate(index: int, value: Callable[[Row], str]) -> Callable[[Row], object]:
        return lambda step: stacked(value(step["verdict"]), gates_text(step)[index][1])

    columns = (
        Column("precision", lambda step: step["precision"].upper()),
        Column("size", size),
        Column("SQNR", gate(0, decibel)),
        Column("max abs", lambda step: number(step["verdict"]["max_abs"], ".3g")),
        Column("flips", gate(1, lambda verdict: f"{verdict['flips']} of {verdict['studies']}")),
        Column("AUC", lambda step: number(step["verdict"].get("auc"), ".4f")),
        Column("AUC change, 95 % interval", gate(2, auc_change)),
        Column("MLPerf bars", lambda step: bars_text(step["verdict"]), text=True),
        Column("gates", lambda step: passed_text(step["verdict"]["failed"]), text=True),
    )
    words = (
        "SQNR, largest difference and flips compare the logits with the FP32 baseline on the same studies; small print "
        "is what the gate asks for. An MLPerf bar is met where the AUC is at least that share of FP32's."
    )
    return [table(columns, ladder), element("p", words, class_="soft")] if ladder else []


def _blocks(report: Row) -> list[Markup]:
    ladder = [step for step in report.get("ladder") or () if step.get("blocks")]
    shown = [step for step in ladder if any(sqnr_of(row) < math.inf for row in step["blocks"])]
    columns = (
        Column("block", lambda row: row["block"]),
        Column("computes in", lambda row: row["precision"], text=True),
        Column("SQNR", decibel),
        Column("max abs", lambda row: number(row["max_abs"], ".3g")),
        Column("peak", lambda row: number(row["peak"], ".4g")),
    )
    lines = [f"{step['precision'].upper()} equals the baseline in every block." for step in ladder if step not in shown]
    for step in shown:
        worst = min(step["blocks"], key=sqnr_of)
        lines.append(f"{step['precision'].upper()} is worst in {worst['block']}: {decibel(worst)}.")
    keys = [element("span", key_svg(step["precision"]), step["precision"].upper(), " ") for step in shown]
    words = (
        "How close each block's output is to the baseline's on one study, the errors from before it included. Further "
        "right is better. A mark is the worst phase, its bar the range over the phases."
    )
    caption = [element("p", *keys), *lines_of([words, *lines])]
    plot = [figure(ladder_svg(shown), caption)] if shown else lines_of(lines)
    tables = [
        details(f"Every block of {step['precision'].upper()} ({policy_text(step)})", table(columns, step["blocks"]))
        for step in ladder
    ]
    return [*plot, *tables] if ladder else []


def _parity(report: Row) -> list[Markup]:
    parity = report.get("parity") or {}
    rows = parity.get("rows") or ()
    if not rows:
        return []
    columns = (
        Column("block", lambda row: row["block"]),
        Column("batch", lambda row: row["batch"]),
        Column("max abs", lambda row: number(row["max_abs"], ".2e")),
        Column("relative", lambda row: number(row["relative"], ".2e")),
        Column("allowed", lambda row: number(row["allowed"], ".0e")),
        Column("", lambda row: passed_text([] if row["passed"] else ["failed"]), text=True),
    )
    failed = [row for row in rows if not row["passed"]]
    worst = max(rows, key=lambda row: math.inf if row["relative"] is None else row["relative"] / row["allowed"])
    lines = [
        f"The ONNX in FP32 against {parity['baseline']}: the outputs at several batch sizes, then every block. "
        "The error is relative to the largest value.",
        f"All {len(rows)} comparisons passed." if not failed else f"{len(failed)} of {len(rows)} comparisons failed: "
        f"{', '.join(dict.fromkeys(row['block'] for row in failed))}.",
        f"Closest to its limit is {worst['block']}: {number(worst['relative'], '.1e')} of {worst['allowed']:.0e}.",
    ]  # fmt: skip
    return [figure(parity_svg(parity), lines_of(lines)), details("Every comparison", table(columns, rows))]


def _ranges(report: Row) -> list[Markup]:
    ranges = report.get("ranges") or {}
    rows = ranges.get("blocks") or ()
    if not rows:
        return []
    columns = (
        Column("block", lambda row: row["block"]),
        Column("peak", lambda row: number(row["peak"], ",.4g", none="not finite")),
        Column("headroom", lambda row: times(row["headroom"])),
        Column("where", lambda row: f"{row['operator']}, value {row['value']} of {row['node']}", text=True),
        Column("lost values", lambda row: number(row["lost"], ".2%")),
        Column("lost weights", lambda row: number(row["lost_weights"], ".2%")),
        Column("largest sum", lambda row: sum_text(row.get("largest_sum")), text=True),
    )
    over = ranges.get("overflowing") or []
    closest = min(rows, key=lambda row: math.inf if row["headroom"] is None else row["headroom"])
    lines = [
        f"The largest magnitude of values and weights on {studies_text(ranges['studies'])}, computed in FP32. "
        f"The line is FP16's largest number, {ranges['fp16_max']:,.0f}; the number at the right is the headroom.",
        f"✗ FP16 cannot hold {', '.join(over)}." if over else "✓ FP16 holds every block; "
        f"{closest['block']} comes closest to its limit, with a headroom of {times(closest['headroom'])}.",
        "Other studies may reach further.",
    ]  # fmt: skip
    note = "Lost are values other than zero that are too small for a normal FP16 number."
    below = details("Every block", table(columns, rows), element("p", note, class_="soft"))
    return [figure(ranges_svg(ranges), lines_of(lines)), below]


def _calibration(report: Row) -> list[Markup]:
    calibration = report.get("calibration") or {}
    facts = facts_of({
        "studies": calibration.get("studies"),
        "algorithm": calibration.get("algorithm"),
        "scales": calibration.get("scales"),
        "scales from": choice(calibration.get("from_cache"), "the cache", "this run"),
        "case names": choice(calibration.get("salted"), "salted", "not salted"),
        "hash of the set": code(calibration.get("hash")),
    })  # fmt: skip
    histograms = calibration.get("hu_histograms")
    lines = [
        "HU of the sampled regions per phase, each to its own height; the line is the median.",
        "Left out at both ends is where every bin holds less than 0.1 % of its phase's voxels.",
    ]
    plots = [figure(histograms_svg(histograms), lines_of(lines))] if histograms else []
    return [facts, *plots] if calibration else []


def _search(report: Row) -> list[Markup]:
    search = report.get("search")
    if not search:
        return []
    common = Column("group", lambda row: row["group"]), Column("precision", lambda row: row["precision"], text=True)
    harm = (
        Column("SQNR", decibel),
        Column("flips", lambda row: row["flips"]),
        Column("AUC change", lambda row: number(row["auc_change"], "+.4f")),
    )
    saved = Column("cost saved", lambda row: number(row["cost_saved"], ".1%"))
    cost = Column("cost", lambda row: number(row["cost"], ".3f"))
    kept = Column("", lambda row: "kept" if row["kept"] else "refused", text=True)
    gates = ", ".join(measured for measured, _ in gates_text(search))
    lines = [
        f"Chosen: {policy_text(search)}. Its cost is {search['cost_relative_to_fp32']:.3f} of FP32's. "
        f"On {studies_text(search['verdict']['studies'])}: {gates}.",
        "Each step lowers one group more; it is kept if the whole policy still passes. Cost is a stated model of "
        "multiply-accumulates and bytes, not a measured time.",
    ]
    if search.get("held"):
        names = ", ".join(search["held"])
        lines.append(
            f"Held in FP32 by name, as FP16 cannot hold them or the default policies keep them there: {names}."
        )
    keys = element("p", key_svg("fp16"), "kept ", key_svg("failed"), "refused ")
    return [
        figure(search_svg(search), [keys, *lines_of(lines)]),
        element("p", "What happens when one group alone is lowered:"),
        table((*common, saved, *harm), search["sensitivities"]),
        details("Every step", table((*common, cost, *harm, kept), search["steps"])),
    ]


def _origin(report: Row) -> list[Markup]:
    checkpoint, onnx, judged = (report.get(key) or {} for key in ("checkpoint", "onnx", "judged_on"))
    gru, tools, golden = (report.get(key) or {} for key in ("gru", "tools", "golden"))
    facts = {
        "checkpoint sha256": code(checkpoint.get("sha256")),
        "checkpoint notes": " ".join(checkpoint.get("notes") or ()),
        "FP32 ONNX sha256": code(onnx.get("sha256")),
        "FP32 ONNX": f"{onnx['nodes']} nodes, {onnx['bytes']:,} bytes, guards {onnx['guards']}" if onnx else None,
        "GRU": f"{gru['form']} ({gru['reason']})" if gru else None,
        "judged studies' hash": code(judged.get("hash")),
        **{f"plan sha256 of {engine['key']}": code(engine["plan_sha256"]) for engine in report.get("engines") or ()},
        **{f"self-check of {name}": f"atol {it['atol']:g}, rtol {it['rtol']:g}" for name, it in golden.items()},
        "tools": ", ".join(f"{name} {version}" for name, version in tools.items()),
    }
    return [facts_of(facts)] if any(facts.values()) else []


#: Title -> what makes the section's parts from a report, in the order of the page.
SECTIONS: Mapping[str, Callable[[Row], list[Markup]]] = MappingProxyType(
    {
        "Ladder": _ladder, "Ladder per block": _blocks, "FP32 parity": _parity, "FP16 ranges": _ranges,
        "Calibration": _calibration, "Search": _search, "Split": split_section, "Engines": engines_section,
        "On the device": device_section, "Hashes and tools": _origin,
    }
)  # fmt: skip
