"""A report as one page: the machine, plain answers, plots and tables of every section, gaps, settings.

The page loads nothing and runs nothing. It says what the report holds and leaves out what it lacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType

from fourphase.benchmarks.report.answers import answers_of
from fourphase.benchmarks.report.answers_latency import OURS, fastest_of
from fourphase.benchmarks.report.answers_runs import best_archive, headline_pair, headline_text
from fourphase.benchmarks.report.document import ending_text, is_complete, machine_text
from fourphase.benchmarks.report.gaps import gap_table
from fourphase.benchmarks.report.markdown import NOTICE, QUICK
from fourphase.benchmarks.report.page_parts import STYLE
from fourphase.benchmarks.report.plots_accuracy import accuracy_plots
from fourphase.benchmarks.report.plots_latency import latency_plots
from fourphase.benchmarks.report.plots_runs import (
    archive_plots,
    end_to_end_plots,
    gru_plots,
    preprocess_plots,
    scaling_plots,
)
from fourphase.benchmarks.report.reading import Row, dig, rows_of, section_of
from fourphase.benchmarks.report.sections import SECTIONS
from fourphase.benchmarks.report.tables import tables_of
from fourphase.benchmarks.report.tables_latency import median_ms
from fourphase.benchmarks.report.text_table import Table
from fourphase.benchmarks.report.words import significant, time_text, way_name
from fourphase.export.report_markup import Markup, element, facts_of

__all__ = ["report_page"]

_PLOTS: Mapping[str, Callable[[Row], list[Markup]]] = MappingProxyType(
    {
        "latency": latency_plots, "end-to-end": end_to_end_plots, "gru": gru_plots, "scaling": scaling_plots,
        "archive": archive_plots, "baselines": accuracy_plots, "preprocess": preprocess_plots,
    }
)  # fmt: skip


def report_page(report: Row) -> str:
    """The page for a report (schema fourphase.bench-report/1)."""
    tables = tables_of(report)
    bodies = {name: _section(report, name, tables[name]) for name in SECTIONS}
    shown = {name: parts for name, parts in bodies.items() if parts}
    gaps = gap_table(report)
    head = element(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        # A viewer that honours it can load nothing for this page, whatever a report's text says.
        Markup(
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        ),
        element("title", "fourphase benchmarks"),
        element("style", Markup(STYLE)),
    )
    links = {**{name: SECTIONS[name].title for name in shown}, **({"gaps": "What is not here"} if gaps else {}),
             "settings": "Settings and versions"}  # fmt: skip
    nav = element("nav", *(element("a", title, href=f"#{name}") for name, title in links.items()))
    main = [
        *(element("section", element("h2", SECTIONS[name].title), *parts, id=name) for name, parts in shown.items()),
        *([_gaps(gaps)] if gaps else []),
        element("section", element("h2", "Settings and versions"), _settings(report), id="settings"),
    ]
    body = element("body", element("header", *_headline(report), nav), element("main", *main))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _headline(report: Row) -> list[Markup]:
    quick = [element("p", QUICK, class_="warning")] if report.get("quick") else []
    version = dig(report, "machine", "packages", "fourphase")
    when = f"Measured on {report.get('created')} with fourphase {version or '?'}."
    answers = [
        element("li", answer.text, " ", element("a", f"({SECTIONS[answer.section].title})", href=f"#{answer.section}"))
        for answer in answers_of(report)
    ]
    return [
        element("h1", "fourphase benchmarks"),
        element("p", element("strong", machine_text(report["machine"]))),
        element("p", when, " ", NOTICE, class_="soft"),
        *quick,
        *_tiles(report),
        element("ul", *answers, class_="answers") if answers else element("p", "Nothing was measured."),
    ]


def _tiles(report: Row) -> list[Markup]:
    """The few numbers that a reader looks for first."""
    found: list[tuple[str, str]] = []
    latency, end_to_end = section_of(report, "latency"), section_of(report, "end-to-end")
    best = fastest_of(latency)
    if best is not None:
        where = way_name(best["runtime"], best["precision"])
        found.append((time_text(median_ms(best)), f"{OURS}, one study in {where}, the fastest way here"))
    pair = headline_pair(end_to_end)
    if pair is not None:
        words = f"DICOM to result: {pair['a']} over {pair['b']}, warm{headline_text(end_to_end, pair)}"
        found.append((f"{pair['ratio']['value']:.1f}×", words))
    most = best_archive(section_of(report, "archive"))
    if most is not None:
        found.append((significant(most["studies_per_hour"]), f"studies per hour at best ({most['mode']})"))
    measured = sum(median_ms(row) is not None for row in rows_of(latency))
    if measured:
        gaps = len(rows_of(latency)) - measured
        found.append((str(measured), f"latencies measured in turns; {gaps} are missing, each with its reason"))
    tiles = [element("div", element("b", number), element("span", words), class_="tile") for number, words in found]
    return [element("div", *tiles, class_="tiles")] if tiles else []


def _section(report: Row, name: str, tables: list[Table]) -> list[Markup]:
    section = section_of(report, name)
    parts = [*_PLOTS[name](section), *(table.html() for table in tables)]
    if not is_complete(section):
        parts.insert(0, element("p", ending_text(section), class_=_class_of(section)))
    if parts and name == "baselines" and section.get("warning"):
        parts.insert(0, element("p", section["warning"], class_="warning"))
    return parts


def _class_of(section: Row) -> str:
    return "soft" if section["status"] == "skipped" else "warning"


def _gaps(table: Table) -> Markup:
    words = "What has no number, and why. Nothing here is estimated."
    return element("section", element("h2", "What is not here"), element("p", words),
                   element("div", table.html(), class_="gaps"), id="gaps")  # fmt: skip


def _settings(report: Row) -> Markup:
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in (machine.get("packages") or {}).items() if version)
    seconds: Mapping[str, float] = report.get("seconds") or {}
    facts: dict[str, object] = {
        "system": machine.get("os"), "Python": machine.get("python"), "packages": versions,
        "GPU": dig(machine, "gpu", "name") or machine.get("gpu_reason"),
    }  # fmt: skip
    for name, section in SECTIONS.items():
        settings = section_of(report, name).get("settings")
        took = f"measured in {significant(seconds[name] / 60)} min; " if name in seconds else ""
        if settings:
            facts[section.title] = f"{took}{json.dumps(settings, ensure_ascii=False)}"
    return facts_of(facts)
