"""The report's sections on engines: the split of the network, how each was built, what a run on the GPU gave.

A report of an earlier version lacks some of this; what it lacks is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
from fourphase.export.report_plots import memory_svg
from fourphase.export.report_words import (
    bytes_text,
    cache_text,
    gpu_text,
    number,
    part_text,
    passed_text,
    studies_text,
    workspace_text,
)

__all__ = ["device_section", "engines_section", "split_section"]

_METHODS = {
    "onnxruntime": "in ONNX Runtime",
    "literal": "by the literal evaluation, where every FP16 and INT8 value is really rounded",
}


def split_section(report: Row) -> list[Markup]:
    """Whether trunk and tail are the whole model, and the memory of both forms."""
    split = report.get("split")
    if not split:
        return []
    columns = (
        Column("compared", lambda row: row["block"]),
        Column("max abs", lambda row: number(row["max_abs"], ".3g")),
        Column("relative", lambda row: number(row["relative"], ".3g")),
        Column("allowed", lambda row: number(row["allowed"], "g")),
        Column("", lambda row: passed_text([] if row["passed"] else ["differs"]), text=True),
    )
    words = [
        f"Two engines: a trunk for {split['slices']} slices at a time, and a tail for the features of all of them.",
        f"Held against the whole model on {studies_text(split['studies'])} {_METHODS.get(split['method'], '')}. "
        "“independence” is each chunk's features in the whole graph while its neighbours are blank: not one bit may "
        "differ. The others may differ by rounding.",
    ]
    memory = split.get("memory")
    plots = [figure(memory_svg(memory), lines_of(_memory_lines(memory)))] if memory else []
    return [*lines_of(words), table(columns, split["rows"]), *plots]


def _memory_lines(memory: Row) -> list[str]:
    whole = memory["whole"]
    return [
        f"Activations of one study at their peak: {bytes_text(memory['split_peak_bytes'])} split, "
        f"{bytes_text(whole['peak_bytes'])} whole ({memory['ratio']:.1%}). The whole model peaks in {whole['block']}.",
        "Beside the trunk the features of all slices are kept (the lighter end of its bar). Trunk and tail never run "
        "at the same time.",
        "A model of memory, by the lifetimes of the graph's values, not a measurement: an engine fuses layers and "
        "needs scratch memory. Weights are not in it.",
    ]


def engines_section(report: Row) -> list[Markup]:
    engines, target = report.get("engines") or (), report.get("target")
    parts = [element("p", f"Target {target['name']}: {target['reason']}.")] if target else []
    if engines:
        caches = _grouped(engines, lambda engine: cache_text(engine.get("timing_cache")))
        told = _grouped(engines, lambda engine: engine["audit"] if isinstance(engine.get("audit"), str) else "")
        parts += [_engines_table(engines), facts_of({"timing cache": caches, "precision audit": told})]
    for engine in engines:
        parts += [*_tries(engine), *_audit(engine)]
        warnings = [element("li", warning) for warning in engine.get("warnings") or ()]
        if warnings:
            parts.append(details(f"Warnings of {engine['key']}: {len(warnings)}", element("ul", *warnings)))
    return parts


def _engines_table(engines: Sequence[Row]) -> Markup:
    columns = (
        Column("engine", lambda engine: code(engine["key"])),
        Column("part", part_text, text=True),
        Column("built with", _maker, text=True),
        Column("precision", lambda engine: engine["precision"], text=True),
        Column("compute capability", lambda engine: ", ".join(engine["compute_capabilities"]), text=True),
        Column("size", lambda engine: bytes_text(engine["bytes"])),
        Column("build time", lambda engine: number(engine["build_seconds"], ".1f", " s")),
        Column("workspace", lambda engine: stacked(*_workspace(engine))),
    )
    return table(columns, engines)


def _maker(engine: Row) -> Markup:
    return stacked(f"{engine['flavour']} {engine['version']}", gpu_text(engine.get("gpu")))


def _workspace(engine: Row) -> tuple[str, str]:
    tries = engine.get("attempts") or ()
    if not tries:
        return "–", ""
    return workspace_text(tries[-1]), f"at the {len(tries)}. try" if len(tries) > 1 else ""


def _tries(engine: Row) -> list[Markup]:
    """The workspace ladder, where it had more than one rung."""
    tries = engine.get("attempts") or ()
    columns = Column("workspace", workspace_text), Column("outcome", lambda one: one["outcome"], text=True)
    return [details(f"Tries of {engine['key']}: {len(tries)}", table(columns, tries))] if len(tries) > 1 else []


def _audit(engine: Row) -> list[Markup]:
    """What the engine says that it computes in; where there is no audit, the facts say why."""
    audit = engine.get("audit")
    if not audit or isinstance(audit, str):
        return []
    columns = (
        Column("precision", lambda pair: pair["name"]),
        Column("layers", lambda pair: f"{pair['layers']:.0f}"),
        Column("share", lambda pair: f"{pair['share_of_layers']:.1%}"),
        Column("bytes out", lambda pair: bytes_text(round(pair["bytes"]))),
        Column("share", lambda pair: f"{pair['share_of_bytes']:.1%}"),
    )
    shares = [{"name": name, **share} for name, share in audit["by_precision"].items()]
    blocks = [{"name": name, "layers": counts} for name, counts in audit["by_block"].items()]
    of_block = (
        Column("block", lambda row: row["name"]),
        Column("layers", lambda row: ", ".join(f"{name} {count}" for name, count in row["layers"].items()), text=True),
    )
    silent = [
        f"{words} ({len(audit[key])}): {', '.join(audit[key])}."
        for key, words in (("unknown", "Types not understood"), ("unseen", "Weighted nodes in no weighted layer"))
        if audit[key]
    ]
    return [
        element("p", f"Precision audit of {engine['key']}: its {len(audit['layers'])} layers, by their operands."),
        table(columns, shares),
        *lines_of(silent),
        details(f"Layers per block of {engine['key']}", table(of_block, blocks)),
    ]


def device_section(report: Row) -> list[Markup]:
    """The golden inputs through the engines on a GPU, for each of the rebuilds; without an engine there is nothing."""
    found = report.get("on_device")
    if not found or not report.get("engines"):
        return []
    builds = found["rebuilds"]
    if found["state"] != "passed" or not builds:
        return lines_of(
            [f"Not run on a GPU: {found['reason']}.", "What the engines compute is unproven until fp-run's self-check."]
        )
    columns = (
        Column("build", lambda row: row["number"]),
        Column("engines", lambda row: code(", ".join(row["keys"])), text=True),
        Column("batches", lambda row: ", ".join(map(str, row["batches"])), text=True),
        Column("off golden", lambda row: number(row["max_abs_difference"], ".3g")),
        Column("latency", lambda row: stacked(_milliseconds(row["latency_ms"]["median"]), _range(row["latency_ms"]))),
        Column("", lambda row: "kept" if row["number"] == found["kept"] else "", text=True),
    )
    allowed = builds[0]["tolerance"]
    lines = [
        "Every golden input through each build on this GPU, one at a time, then as many at once as the profile takes.",
        _spread_text(found, len(builds)),
        "Latency is the median of 20 runs of one study from host to host, with the fastest and the slowest: it "
        "compares builds, and is no benchmark.",
    ]
    lead = element("b", "✓ passed", class_="good")
    tolerance = f": within atol {allowed['atol']:g}, rtol {allowed['rtol']:g} of the golden outputs."
    rows = [{"number": number_, **build} for number_, build in enumerate(builds, start=1)]
    return [element("p", lead, tolerance), table(columns, rows), *lines_of(lines)]


def _spread_text(found: Row, builds: int) -> str:
    if builds == 1:
        return "One build: how far another would be from it is not known (--rebuilds 3 tells)."
    return (
        f"{builds} independent builds are {found['logits_spread']:.2g} apart in their logits and "
        f"{_milliseconds(found['latency_spread_ms'])} in their latency; the one nearest to the golden outputs is kept."
    )


def _range(latency: Row) -> str:
    return f"{latency['min']:.2f} to {latency['max']:.2f}"


def _milliseconds(value: float) -> str:
    return f"{value:.2f} ms"


def _grouped(engines: Sequence[Row], words: Callable[[Row], str]) -> str:
    """What is said of all engines once; else each saying with the engines it is said of."""
    said: dict[str, list[str]] = {}
    for engine in engines:
        said.setdefault(words(engine), []).append(engine["key"])
    said.pop("", None)
    if len(said) == 1 and len(next(iter(said.values()))) == len(engines):
        return next(iter(said))
    return "; ".join(f"{text} ({', '.join(keys)})" for text, keys in said.items())
