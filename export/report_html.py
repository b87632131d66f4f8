"""The report of a bundle as one page: `report.json` for people, to read, to print and to file.

The page loads nothing and runs nothing. It says what the report holds and leaves out what it lacks; it judges nothing
itself.
"""

from __future__ import annotations

from fourphase.export.report_markup import Markup, Row, element, lines_of
from fourphase.export.report_sections import SECTIONS
from fourphase.export.report_svg import PALETTE
from fourphase.export.report_words import bytes_text, gates_text, names_text, studies_text

__all__ = [
    "report_html",
]

_NOTICE = "Research use only, not a diagnosis."


_STYLE = """
*{box-sizing:border-box}body{margin:0 auto;max-width:64rem;padding:1.5rem 1.25rem 3rem;color:var(--ink);
background:Canvas;font:1rem/1.5 system-ui,sans-serif;font-variant-numeric:tabular-nums}h1{font-size:1.9rem;
line-height:1.2;margin:0 0 .25rem}h2{font-size:1.25rem;margin:2.5rem 0 .5rem;padding-top:.75rem;
border-top:1px solid var(--line)}p{margin:.4rem 0;max-width:46rem}a{color:inherit}.soft,small,figcaption{
color:var(--soft)}.verdict{font-size:1.15rem;margin:1rem 0;padding:.2rem 0 .2rem .9rem;
border-left:4px solid var(--soft)}.verdict.good{border-color:var(--good)}.verdict.bad{border-color:var(--failed)}
b.good{color:var(--good)}b.bad{color:var(--failed)}nav{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.9rem;
margin-top:1rem}.wide{overflow-x:auto;margin:.75rem 0}table{border-collapse:collapse;font-size:.9rem}th,td{
padding:.3rem .8rem .3rem 0;text-align:right;vertical-align:top;border-bottom:1px solid var(--line);
white-space:nowrap}thead th{color:var(--soft);font-weight:500}th:first-child,.t{text-align:left}tbody th{
font-weight:600}td small{display:block}code{font-size:.85em;
overflow-wrap:anywhere}figure{display:grid;grid-template-columns:minmax(0,36rem) minmax(12rem,1fr);gap:1rem 2rem;
margin:1rem 0;align-items:start}.plot{width:100%;height:auto}.key{width:1em;height:1em;vertical-align:-.12em;
margin-right:.35em}.key path{stroke-width:1.6}figcaption{font-size:.9rem}figcaption p{margin:0 0 .6rem}dl{
display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.25rem;margin:.75rem 0;font-size:.9rem}dt{
color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}summary{cursor:pointer;font-size:.9rem;margin:.5rem 0}
@media(max-width:44rem){figure{grid-template-columns:1fr}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.4rem}}
@media print{html{font-size:9.5pt}body{max-width:none;padding:0}nav{display:none}figure,tr{break-inside:avoid}h2{
break-after:avoid}.wide{overflow:visible}th,td{padding:.1rem .6rem .1rem 0;white-space:normal}
details::details-content{content-visibility:visible;height:auto}}
"""


def report_html(report: Row) -> str:
    """The page for the content of a `report.json` (schema fourphase.report/1); what is absent or null is left out."""
    sections = {name: parts for name, make in SECTIONS.items() if (parts := make(report))}
    title = f"{report['precision'].upper()} bundle" if report.get("precision") else "Bundle"
    head = element(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        # A viewer that honours it can load nothing for this page, whatever a report's text says.
        Markup(
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        ),
        element("title", f"{title}, fourphase report"),
        element("style", Markup(PALETTE + _STYLE)),
    )
    nav = element("nav", *(element("a", name, href=f"#{_anchor(name)}") for name in sections))
    bodies = (element("section", element("h2", name), *parts, id=_anchor(name)) for name, parts in sections.items())
    body = element("body", element("header", *_headline(report, title), nav), element("main", *bodies))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _headline(report: Row, title: str) -> list[Markup]:
    facts = [
        f"{report['parameters']:,} parameters" if report.get("parameters") is not None else "",
        f"GRU as {report['gru']['form']}" if report.get("gru") else "",
        f"ONNX of {bytes_text(report['onnx']['bytes'])}" if report.get("onnx") else "",
        f"built in {report['seconds']} s" if report.get("seconds") is not None else "",
    ]
    steps = [step for step in report.get("ladder") or () if step["precision"] == report.get("precision")]
    judged = report.get("judged_on") or {}
    return [
        element("h1", title),
        element("p", " · ".join(filter(None, facts)), class_="soft"),
        *(_verdict(step, judged) for step in steps if step.get("verdict")),
        *lines_of([f"Note: {judged['note']}"] if judged.get("note") else []),
        element("p", element("strong", _NOTICE)),
    ]


def _verdict(step: Row, judged: Row) -> Markup:
    failed = step["verdict"]["failed"]
    gates = ", ".join(f"{measured} ({wanted})" if wanted else measured for measured, wanted in gates_text(step))
    name = step["precision"].upper()
    lead = f"✗ {name} fails {names_text(failed)}" if failed else f"✓ {name} passed its gates"
    kind = "bad" if failed else "good"
    parts = [element("b", lead, class_=kind), f": {gates}.{_judged(judged)}"]
    return element("p", *parts, class_=f"verdict {kind}")


def _judged(judged: Row) -> str:
    if not judged:
        return ""
    labels = "with" if judged.get("labels") else "without"
    return f" Judged on {studies_text(judged['studies'])} ({judged['source']}, {labels} labels)."
