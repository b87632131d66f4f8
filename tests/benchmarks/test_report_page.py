"""The report's page: well formed, loading nothing, escaping everything, with the numbers of the tables; its plots."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from fourphase.benchmarks.report.page import report_page
from fourphase.benchmarks.report.svg_base import log_axis, spread_out
from fourphase.benchmarks.report.svg_rows import Dot, Estimate, dot_rows, forest
from fourphase.benchmarks.report.svg_xy import Point, Series, scatter, xy_plot
from fourphase.benchmarks.report.tables import tables_of
from tests.support.bench_reports import bench_report

Json = dict[str, Any]
HOSTILE = "<script>alert('&\"')</script>"


class Page(HTMLParser):
    """What is on a page; fails on tags that do not match."""

    VOID = ("meta",)

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.headings: list[str] = []
        self.rows: list[tuple[str, ...]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "data", "action")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")
        if tag == "tr":
            self.rows.append(())
        if tag in ("td", "th"):
            self.rows[-1] += ("",)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "h2" in self.open:
            self.headings[-1] += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1] = (*self.rows[-1][:-1], self.rows[-1][-1] + data)


@pytest.fixture(scope="module")
def report() -> Json:
    return bench_report()


@pytest.fixture(scope="module")
def page(report: Json) -> str:
    return report_page(report)


def test_the_page_loads_nothing_and_is_well_formed(page: str) -> None:
    found = Page(page)
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(found.tags)
    assert all(address.startswith("#") and address[1:] in found.ids for address in found.addresses)
    assert len(set(found.ids)) == len(found.ids)
    assert "url(" not in page
    assert "@import" not in page
    assert "http:" not in page
    assert "https:" not in page
    for drawn in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawn)


def test_the_page_has_every_cell_of_the_tables_once(report: Json, page: str) -> None:
    rows = Page(page).rows
    for tables in tables_of(report).values():
        for table in tables:
            for row in (table.head, *table.rows):
                wanted = sum(tuple(row) == other for tables in tables_of(report).values()
                             for one in tables for other in (one.head, *one.rows))  # fmt: skip
                assert rows.count(tuple(row)) == wanted, row


def test_the_page_says_what_matters(page: str) -> None:
    found = Page(page)
    assert found.headings == [
        "Latency", "End to end", "GRU: loop or unrolled", "Scaling", "Archive", "Accuracy on phantoms",
        "Preprocessing", "What is not here", "Settings and versions",
    ]  # fmt: skip
    for text in ("Intel Xeon Processor, 2 usable cores, 25 GB of memory", "SYNTHETIC PHANTOMS", "Research use only",
                 "TensorRT is not installed", "Energy per study was not measured: RAPL energy: not on this machine.",
                 "onnxruntime 1.32.0"):  # fmt: skip
        assert text in found.text
    assert "REHEARSAL" not in found.text
    assert "REHEARSAL" in Page(report_page(bench_report(quick=True))).text


def test_every_plot_has_words_for_who_cannot_see_it(page: str) -> None:
    plots = [ElementTree.fromstring(drawn) for drawn in re.findall(r'<svg[^>]*role="img".*?</svg>', page, re.DOTALL)]
    assert len(plots) > 20
    for plot in plots:
        assert plot.get("aria-label")
        assert plot.findtext("desc")


def test_nothing_in_a_report_becomes_markup(report: Json) -> None:
    section = report["sections"]["latency"]
    rows = [{**row, "network": HOSTILE, "reason": HOSTILE} for row in section["rows"]]
    pairs = [{**pair, "a": {**pair["a"], "network": HOSTILE}} for pair in section["pairs"]]
    gru = {"status": "failed", "reason": HOSTILE}
    networks = {HOSTILE: section["networks"]["four-phase"]}
    hostile = {**section, "rows": rows, "pairs": pairs, "networks": networks, "settings": {HOSTILE: HOSTILE}}
    made = report_page({**report, "sections": {"latency": hostile, "gru": gru}})
    assert "<script" not in made
    assert HOSTILE in Page(made).text


@pytest.mark.parametrize("name", ["latency", "end-to-end", "gru", "scaling", "archive", "baselines", "preprocess"])
def test_a_section_alone_or_without_its_rows_is_a_page(report: Json, name: str) -> None:
    section = report["sections"][name]
    alone = Page(report_page({**report, "sections": {name: section}}))
    assert len(alone.headings) == 3
    for key in section:
        Page(report_page({**report, "sections": {name: {k: v for k, v in section.items() if k != key}}}))
    begun = Page(report_page({**report, "sections": {name: {"status": "timeout", "reason": "after 3 s"}}}))
    assert "This section did not come to its end (timeout): after 3 s" in begun.text


def test_a_report_in_which_all_failed_is_a_page(report: Json) -> None:
    rows = [
        {**row, "status": "failed", "reason": "no", "statistics": None, "limit": None, "difference": None,
         "memory": None, "energy": None, "watched": None}
        for row in report["sections"]["latency"]["rows"]
    ]  # fmt: skip
    section = {**report["sections"]["latency"], "rows": rows, "pairs": []}
    made = report_page({**report, "sections": {"latency": section}})
    found = Page(made)
    assert "Nothing was measured." in found.text
    assert "By arithmetic" not in found.text
    assert 'class="tile' not in made
    assert 'role="img"' not in made
    (gap,) = [row for row in found.rows if row[:3] == ("Latency", "failed", "no")]
    assert gap[3].endswith(": every network")


def tiles_of(report: Json) -> list[str]:
    return re.findall(r'<div class="tile"><b>(.*?)</div>', report_page(report))


def test_the_headline_is_our_fastest_pipeline_over_the_reference(report: Json) -> None:
    """Not the pair with the largest ratio; and it says what the fastest plain pipeline would make of it."""
    section = report["sections"]["end-to-end"]
    ratios = {(pair["a"], pair["b"]): pair["ratio"]["value"] for pair in section["ratios"]}
    slow = {"a": "plain-torch", "b": "ours-onnxruntime-fp32", "ratio": {"value": 99.0, "low": 98.0, "high": 100.0}}
    changed = {**section, "ratios": [slow, *section["ratios"][:1], *section["ratios"][2:]]}
    value, other = ratios["plain-torch", "ours-openvino-int8"], ratios["plain-onnxruntime", "ours-openvino-int8"]
    (tile,) = tiles_of({**report, "sections": {"end-to-end": changed}})
    assert tile.startswith(f"{value:.1f}×")
    assert "plain-torch over ours-openvino-int8, warm" in tile
    assert f"over plain-onnxruntime, the fastest plain one, {other:.1f}×" in tile
    text = Page(report_page({**report, "sections": {"end-to-end": changed}})).text
    assert f"plain-torch over ours-openvino-int8: {value:.1f}×; over plain-onnxruntime, the fastest plain one" in text
    assert "times as fast as plain-onnxruntime (the fastest plain one)." in text
    assert "99.0×" not in tile


def test_a_refused_ratio_is_in_no_headline(report: Json) -> None:
    section = report["sections"]["end-to-end"]
    refused = {"value": None, "low": 0.9, "high": 1.9, "rounds": 8, "refused": "noisy"}
    ratios = [{**pair, "ratio": refused} if pair["a"] == "plain-onnxruntime" else pair for pair in section["ratios"]]
    changed = {**report, "sections": {"end-to-end": {**section, "ratios": ratios}}}
    (tile,) = tiles_of(changed)
    assert "over plain-onnxruntime, the fastest plain one, no ratio is quoted" in tile
    assert "Over plain-onnxruntime, the fastest plain one, no ratio can be quoted." in Page(report_page(changed)).text
    all_refused = {**section, "ratios": [{**pair, "ratio": refused} for pair in ratios]}
    assert tiles_of({**report, "sections": {"end-to-end": all_refused}}) == []


def test_a_section_that_was_skipped_is_a_gap_and_no_warning(report: Json) -> None:
    made = report_page({**report, "sections": {"preprocess": {"status": "skipped", "reason": "no SimpleITK"}}})
    assert '<p class="soft">This section was skipped: no SimpleITK</p>' in made
    assert 'class="warning"' not in made
    assert ("Preprocessing", "skipped", "no SimpleITK", "the whole section") in Page(made).rows


def archive_report(report: Json, *changes: Json) -> Json:
    rows = [{**row, **change} for row, change in zip(report["sections"]["archive"]["rows"], changes, strict=False)]
    return {**report, "sections": {"archive": {**report["sections"]["archive"], "rows": rows}}}


def test_an_archives_headline_needs_the_same_results_and_the_fewest_failures(report: Json) -> None:
    best = Page(report_page(archive_report(report, {}, {}, {}))).text
    assert "2,390 studies per hour at best (processes, 2 workers of 1 thread)" in best
    for wrong in ({"same_results": False}, {"failed": 3}, {"studies_per_hour": None}):
        made = archive_report(report, {}, {}, wrong)
        text = Page(report_page(made)).text
        assert "2,057 studies per hour at best (one process, 1 worker of 2 threads)." in text
        assert "one process, 1 × 2 threads is the fastest" in text
        (tile,) = tiles_of(made)
        assert tile.startswith("2,057")
    assert "; 3 studies failed." in Page(report_page(archive_report(report, {"failed": 3}))).text
    rows = Page(report_page(archive_report(report, {}, {}, {"same_results": False}))).rows
    assert (rows[3][0], rows[3][-1]) == ("processes", "NO")


def test_an_archive_without_any_rate_is_a_page(report: Json) -> None:
    """A reference that dropped out leaves modes without studies per hour; so do studies that all failed."""
    none: Json = {"studies_per_hour": None, "speedup": None, "efficiency": None}
    made = archive_report(report, none, none)
    text = Page(report_page(made)).text
    assert "Nothing was measured." in text
    assert tiles_of(made) == []
    assert "no study came to its end" in text
    differ = {"same_results": False}
    assert "No way to share the work gave one core" in report_page(archive_report(report, differ, differ))


def test_ratios_without_any_interval_are_words_and_no_plot(report: Json) -> None:
    few = {"value": None, "low": None, "high": None, "rounds": 4, "refused": "4 rounds, an interval needs 5"}
    section = report["sections"]["end-to-end"]
    ratios = [{**pair, "ratio": few} for pair in section["ratios"]]
    made = report_page({**report, "sections": {"end-to-end": {**section, "ratios": ratios}}})
    assert "4 ratios are refused: 4 rounds, an interval needs 5." in Page(made).text
    assert made.count('role="img"') == 2


def path_places(drawn: str, kind: str) -> list[tuple[float, float]]:
    paths = ElementTree.fromstring(drawn).iter("path")
    found = [re.findall(r"[-\d.]+", path.get("transform") or "") for path in paths if kind in (path.get("class") or "")]
    return [(float(x), float(y)) for x, y in found]


def svg_of(drawn: str) -> str:
    (found,) = re.findall(r"<svg.*</svg>", drawn, re.DOTALL)
    return str(found)


def test_a_logarithmic_axis_puts_equal_ratios_at_equal_distances() -> None:
    axis = log_axis([1.0, 100.0], 50, 450, room=1.0)
    assert [axis.at(value) for value in (1.0, 10.0, 100.0)] == pytest.approx([50, 250, 450])


@pytest.mark.parametrize(
    ("low", "high"), [(0.9, 1.1), (0.3, 2.4), (1, 1000), (0.98, 0.99), (12, 13), (200, 7000), (1e-3, 1e5), (5, 5)]
)
@pytest.mark.parametrize("length", [140, 300, 800])
def test_ticks_are_inside_and_their_labels_apart(low: float, high: float, length: float) -> None:
    axis = log_axis([low, high], 100, 100 + length)
    ticks = axis.ticks
    assert ticks
    assert all(axis.low <= value <= axis.high for value, _ in ticks)
    for (one, first), (other, second) in pairwise(ticks):
        assert axis.at(other) - axis.at(one) > 6 * (len(first) + len(second)) / 2 or len(ticks) == 2


def test_marks_become_the_ticks() -> None:
    assert [value for value, _ in log_axis([16, 256], 0, 400, marks=[64, 16, 256]).ticks] == [16, 64, 256]
    # Where they have no room, every second of them.
    crowded = log_axis([64, 192], 0, 110, marks=[64, 96, 128, 160, 192])
    assert [value for value, _ in crowded.ticks] == [64, 128, 192]


def test_labels_are_moved_apart_and_stay_in_order() -> None:
    places = [100.0, 101.0, 50.0, 102.0]
    moved = spread_out(places, 14, 20, 300)
    ordered = sorted(moved)
    assert all(b - a >= 14 - 1e-9 for a, b in pairwise(ordered))
    assert moved.index(min(moved)) == 2
    crowded = spread_out([290.0, 295.0, 299.0], 14, 20, 300)
    assert max(crowded) <= 300
    assert all(b - a >= 14 - 1e-9 for a, b in pairwise(sorted(crowded)))


def test_a_forest_puts_the_estimate_where_it_belongs() -> None:
    rows = [
        Estimate("a", 0.5, 0.25, 1.0, "0.50", "faster", "a: 0.50"),
        Estimate("b", 2.0, 1.0, 4.0, "2.00", "slower", "b: 2.00"),
        Estimate("c", None, 0.25, 4.0, "refused", "untold", "c: noisy"),
    ]
    drawn = svg_of(forest("t", "d", "ratio", rows))
    (ax, ay), (bx, by) = path_places(drawn, "circle")
    lines = ElementTree.fromstring(drawn).iter("line")
    limit = [float(line.get("x1") or 0) for line in lines if line.get("class") == "limit"]
    # 0.5 and 2 lie equally far on both sides of 1; the refused one has no mark, its interval is dashed.
    assert limit[0] - ax == pytest.approx(bx - limit[0], abs=0.2)
    assert by - ay == pytest.approx(20)
    assert drawn.count("dashed") == 1


def test_shares_of_zero_are_drawn() -> None:
    rows = [Estimate("a", 0.0, 0.0, 0.5, "0.000", "ours", "a"), Estimate("b", 0.5, 0.25, 1.0, "0.500", "ours", "b")]
    drawn = svg_of(forest("t", "d", "AUC", rows, ratio=False))
    assert len(path_places(drawn, "circle")) == 2
    assert drawn.count('class="range') == 2


def test_a_difference_has_its_line_at_none() -> None:
    rows = [
        Estimate("a", -0.25, -0.5, -0.125, "-0.25", "ours", "a"),
        Estimate("b", 0.25, 0.125, 0.5, "0.25", "ours", "b"),
    ]
    drawn = svg_of(forest("t", "d", "AUC", rows, ratio=False, line_at=0.0))
    (ax, _), (bx, _) = path_places(drawn, "circle")
    lines = ElementTree.fromstring(drawn).iter("line")
    (limit,) = [float(line.get("x1") or 0) for line in lines if line.get("class") == "limit"]
    assert limit == pytest.approx((ax + bx) / 2, abs=0.1)


def test_a_dot_lies_between_the_ends_of_its_range_and_keeps_its_row() -> None:
    dots = [
        Dot("one", 100.0, "openvino", "square", "t", low=50.0, high=200.0, tick=25.0, ring=True),
        Dot("one", 200.0, "onnxruntime", "diamond", "t"),
        Dot("two", 400.0, "openvino", "square", "t"),
    ]
    drawn = svg_of(dot_rows("t", "d", "ms", dots, notes={"one": "100 ms"}))
    (first, third) = path_places(drawn, "square")
    (second,) = path_places(drawn, "diamond")
    # Doubling is one distance, whatever the value.
    assert third[0] - second[0] == pytest.approx(second[0] - first[0], abs=0.2)
    assert third[1] > second[1] > first[1]
    assert path_places(drawn, "ring") == [first]


def test_a_plot_of_two_axes_draws_each_point_and_names_each_series() -> None:
    x, y = log_axis([1, 100], 40, 340, room=1.0), log_axis([1, 100], 240, 40, room=1.0)
    series = [
        Series([Point(1, 1), Point(10, 10), Point(100, None, low=50, high=90)], "q0", "rising"),
        Series([Point(1, 100), Point(100, 1)], "q1", "falling", line=[]),
    ]
    drawn = svg_of(xy_plot("t", "d", (x, "x"), (y, "y"), series, (440, 280)))
    places = path_places(drawn, "circle")
    assert (40.0, 240.0) in places
    assert (190.0, 140.0) in places
    assert len(places) == 4
    assert drawn.count("dashed") == 1
    assert "rising" in drawn
    assert "falling" in drawn


def test_names_in_a_scatter_do_not_cover_each_other() -> None:
    x, y = log_axis([1, 100], 70, 700), log_axis([1, 100], 380, 40)
    points = [(Point(10, 10 * (1 + 0.01 * index)), "circle", "ours", f"network-{index}") for index in range(6)]
    drawn = svg_of(scatter("t", "d", (x, "x"), (y, "y"), points, (900, 430)))
    texts = [text for text in ElementTree.fromstring(drawn).iter("text") if (text.text or "").startswith("network-")]
    boxes = [(float(text.get("x") or 0), float(text.get("y") or 0)) for text in texts]
    for index, (left, top) in enumerate(boxes):
        for other_left, other_top in boxes[index + 1 :]:
            assert abs(top - other_top) >= 10 or abs(left - other_left) >= 60
