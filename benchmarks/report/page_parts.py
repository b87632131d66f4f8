"""What the page is made of beside tables: figures with the finding as heading, and the style, light, dark and paper."""

from __future__ import annotations

from collections.abc import Iterable

from fourphase.export.report_markup import Markup, element

__all__ = ["STYLE", "columns_of", "finding"]

#: Colours that people who see few of them can tell apart, for light and dark ground: name -> (light, dark).
_COLOURS = {
    "torch-eager": ("#6b7683", "#a9b4bf"), "torch-compile": ("#8e4585", "#d897d0"),
    "cuda-graph": ("#a67c00", "#e2c25b"), "onnxruntime": ("#0067b1", "#62b4f4"), "openvino": ("#c2500a", "#ff9d52"),
    "tensorrt": ("#18703a", "#63cc82"), "tensorrt-rtx": ("#0b7a75", "#5fd0c9"),
    "ours": ("#0067b1", "#62b4f4"), "variant": ("#7fa9c9", "#4d7ea3"), "baseline": ("#c2500a", "#ff9d52"),
    "slower": ("#0067b1", "#62b4f4"), "faster": ("#c2500a", "#ff9d52"), "untold": ("#6b7683", "#a9b4bf"),
    "other": ("#6b7683", "#a9b4bf"),
    "s0": ("#8fb8d9", "#2f5f86"), "s1": ("#b9a3d0", "#5c4a7d"), "s2": ("#9ccfb4", "#2c6b4a"),
    "s3": ("#e3cf86", "#77651f"), "s4": ("#f0b48a", "#8a4a1c"), "s5": ("#d6dade", "#454f59"),
    "s6": ("#e5a9b4", "#7d3b48"), "s7": ("#b7c9cf", "#3d5c66"),
    "s8": ("#c9c3a5", "#56512f"), "s9": ("#b3b8dd", "#454b7d"),
    "q0": ("#0067b1", "#62b4f4"), "q1": ("#c2500a", "#ff9d52"), "q2": ("#18703a", "#63cc82"),
    "q3": ("#8e4585", "#d897d0"), "q4": ("#a67c00", "#e2c25b"), "q5": ("#6b7683", "#a9b4bf"),
}  # fmt: skip
_LIGHT = "--ink:#1b2430;--soft:#55606d;--line:#dfe3e8;--band:#f5f7f9;--ground:#fff;--warn:#9a3412;--warn-bg:#fff4e8"
_DARK = "--ink:#e4e9ee;--soft:#a0acb8;--line:#2f3943;--band:#1a2027;--ground:#12161b;--warn:#ffb57d;--warn-bg:#2b1d12"


def _palette() -> str:
    light, dark = (";".join(f"--c-{name}:{pair[side]}" for name, pair in _COLOURS.items()) for side in (0, 1))
    classes = "".join(
        f".plot .c-{name},.key .c-{name}{{fill:var(--c-{name});stroke:var(--c-{name})}}" for name in _COLOURS
    )
    return (
        f":root{{color-scheme:light dark;{_LIGHT};{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{_DARK};{dark}}}}}{classes}"
    )


_PAGE = """
*{box-sizing:border-box}html{background:var(--ground)}body{margin:0 auto;max-width:66rem;padding:2rem 1.25rem 4rem;
color:var(--ink);background:var(--ground);font:1rem/1.55 system-ui,sans-serif;font-variant-numeric:tabular-nums}
h1{font-size:2.1rem;line-height:1.15;margin:0 0 .4rem;letter-spacing:-.01em}h2{font-size:1.45rem;margin:3.2rem 0 .4rem;
padding-top:1rem;border-top:2px solid var(--line)}h3{font-size:1.02rem;line-height:1.35;margin:1.8rem 0 .4rem}
p{margin:.45rem 0;max-width:48rem}a{color:inherit}.soft,small{color:var(--soft)}.soft{font-size:.9rem}
.warning{border:2px solid var(--warn);background:var(--warn-bg);color:var(--warn);font-weight:700;font-size:1.1rem;
padding:.7rem 1rem;border-radius:.4rem;margin:1rem 0;max-width:none}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.8rem;margin:1.4rem 0}
.tile{border:1px solid var(--line);border-radius:.5rem;padding:.8rem 1rem;background:var(--band)}
.tile b{display:block;font-size:1.9rem;line-height:1.15;letter-spacing:-.02em}.tile span{display:block;font-size:.88rem;
color:var(--soft);line-height:1.35;margin-top:.2rem}
.answers{padding-left:1.1rem;max-width:52rem}.answers li{margin:.4rem 0}.answers a{color:var(--soft);font-size:.85rem}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.92rem;margin:1.2rem 0 0}
.wide{overflow-x:auto;margin:.6rem 0}table{border-collapse:collapse;font-size:.83rem}th,td{
padding:.28rem .7rem .28rem 0;text-align:right;vertical-align:top;border-bottom:1px solid var(--line);
white-space:nowrap}thead th{color:var(--soft);
font-weight:500;vertical-align:bottom}th:first-child,.t{text-align:left}tbody th{font-weight:600}
.gaps td,.gaps th{white-space:normal}.gaps td:last-child{min-width:20rem}
figure{margin:1.6rem 0 1rem}figure h3{margin:0 0 .1rem}figcaption{font-size:.88rem;color:var(--soft);max-width:52rem}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:0 2.2rem;align-items:start}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;font-size:.86rem;margin:.3rem 0;max-width:none}
.key{width:1em;height:1em;vertical-align:-.12em;margin-right:.35em;overflow:visible}
.scroll{overflow-x:auto}.plot{display:block;width:100%;height:auto}.wide-plot{min-width:50rem}.half-plot{max-width:34rem}
.plot text{font:12px system-ui,sans-serif;fill:var(--ink)}.plot .soft{fill:var(--soft)}.plot .strong{font-weight:700}
.plot .inside{font-size:11px}.plot line{stroke:var(--line)}.plot .limit{stroke:var(--ink);stroke-width:1.4}
.plot .leader{stroke:var(--soft);stroke-width:.7}.plot .band{fill:var(--band);stroke:none}
.plot polyline{fill:none;stroke-width:1.4}.plot polyline.heavy{stroke-width:2.8}.plot rect{stroke:none}
.plot .label{font-size:11.5px}
.plot path.ring,.key path.ring{fill:none;stroke:var(--ink);stroke-width:1.4}.plot .dashed{stroke-dasharray:3 3}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.25rem;margin:.75rem 0;font-size:.9rem}dt{
color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}summary{cursor:pointer;font-size:.92rem;margin:.8rem 0}
code{font-size:.85em;overflow-wrap:anywhere}
@media(max-width:44rem){body{padding:1.2rem .9rem 3rem}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.4rem}
h1{font-size:1.7rem}}
@media print{html{font-size:9pt}body{max-width:none;padding:0}nav,.answers a{display:none}figure,tr,.tile{
break-inside:avoid}h2,h3{break-after:avoid}.wide,.scroll{overflow:visible}.wide-plot{min-width:0}
th,td{padding:.1rem .5rem .1rem 0;white-space:normal}details::details-content{content-visibility:visible;height:auto}}
"""


def _ranges() -> str:
    # After the colours, so that a range's width and the missing fill of a line win over them.
    return ".plot .range{stroke-width:3.4;stroke-opacity:.45;stroke-linecap:round}" + "".join(
        f".plot line.c-{name}{{stroke:var(--c-{name})}}.plot polyline.c-{name}{{fill:none}}" for name in _COLOURS
    )


STYLE = _palette() + _PAGE + _ranges()


def finding(heading: str, plot: Markup, caption: str = "", key: Markup | None = None) -> Markup:
    """A plot under the sentence that it shows."""
    parts = [element("h3", heading), *([key] if key is not None else []), plot]
    return element("figure", *parts, *([element("figcaption", caption)] if caption else []))


def columns_of(parts: Iterable[Markup]) -> list[Markup]:
    """Side by side where there is room; nothing of nothing."""
    found = list(parts)
    return [element("div", *found, class_="columns")] if found else []
