"""The report's page: what it says and leaves out, that nothing in a report can become markup, and where plots draw."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from fourphase.calibration.blocks import Policy
from fourphase.calibration.cost import BlockCost
from fourphase.calibration.gates import DEFAULTS, Acceptance, judge
from fourphase.calibration.hu_histogram import HUHistograms
from fourphase.calibration.range_audit import BlockRange, RangeReport, SumRange, ValueRange
from fourphase.calibration.search import search
from fourphase.engine.timing_cache import CacheUse
from fourphase.export.parity import BlockParity, ParityReport
from fourphase.export.report_html import report_html
from fourphase.export.report_markup import element
from fourphase.export.report_plots import histograms_svg, ladder_svg, memory_svg, parity_svg, ranges_svg, search_svg
from fourphase.export.report_svg import Axis, make_axis
from fourphase.export.split_parity import SplitParity
from fourphase.runtime.config import PreprocessingConfig
from tests.support.inspector_answers import audit_of

Report = dict[str, Any]

LOGITS = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
NOISE = np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32)
POSITIVES = np.arange(20) % 2 == 0
HOSTILE = "<script>alert('&\"')</script>"
#: Where the plots' axes begin and end.
LEFT, RIGHT, BEYOND = 116.0, 368.0, 30.0


def step(precision: str, noise: float, size: int) -> Report:
    verdict = judge(precision, LOGITS, LOGITS + np.float32(noise) * NOISE, DEFAULTS[precision], POSITIVES)
    gates = {"min_sqnr_db": DEFAULTS[precision].min_sqnr_db, "max_flips": 0, "max_auc_drop": 0.005}
    blocks = [
        {"block": name, "precision": precision, "sqnr_db": sqnr, "max_abs": 0.01, "peak": 12.25}
        for name, sqnr in (("stem/NC", 61.25), ("stem/ART", 58.5), ("gru", 47.75))
    ]
    policy = {"*": precision, "gru": "fp32"}
    return {"precision": precision, "bytes": size, "policy": policy, "verdict": verdict.to_dict(), "gates": gates,
            "blocks": blocks}  # fmt: skip


def ranges(peak: float = 40.0) -> Report:
    value = ValueRange("relu_7", "node_relu", "Relu", peak, 0.0125)
    weight = ValueRange("w", "node_conv", "Conv", 0.5, 0.0)
    total = SumRange("node_conv", "Conv", 147, 52.5, 0.00075)
    blocks = [BlockRange("stem/NC", (value,), (weight,), (total,)), BlockRange("gru", (weight,), (), ())]
    return RangeReport(4, tuple(blocks)).to_dict()


def searched() -> Report:
    """Two groups: the stem takes FP16 with some noise, the GRU overflows in it."""

    def evaluate(policy: Policy) -> Any:
        if policy.precision_of("gru") == "fp16":
            return np.full_like(LOGITS, np.inf)
        return LOGITS + np.float32(0.01 * (policy.precision_of("stem/NC") == "fp16")) * NOISE

    costs = {"stem/NC": BlockCost(1000, 1), "gru": BlockCost(10, 1)}
    return search(evaluate, costs, Acceptance(30.0), lowerings={"stem": ["fp16"], "gru": ["fp16"]}).to_dict()


def split() -> Report:
    """In chunks of 4 slices; the trunk needs 30 MB and the features 1 MB, the tail 5 MB, the whole 80 MB."""
    rows = (BlockParity("independence", 1, 0.0, 0.0, 0.0, True), BlockParity("logits", 1, 3e-7, 1.23e-6, 1e-4, True))

    def peak(count: int) -> Report:
        return {"peak_bytes": count, "node": "node_select", "block": "stem/NC"}

    memory = {"slices": 4, "whole": peak(80_000_000), "trunk": peak(30_000_000), "tail": peak(5_000_000),
              "features_bytes": 1_000_000, "split_peak_bytes": 31_000_000, "ratio": 0.3875}  # fmt: skip
    return {**SplitParity(4, 1, "onnxruntime", rows).to_dict(), "memory": memory}


def engine(key: str, part: str, **changes: Any) -> Report:
    return {
        "key": key, "bytes": 2871044, "flavour": "tensorrt-rtx", "version": "1.7.1", "part": part,
        "slices": 4 if part == "trunk" else None, "compute_capabilities": ["8.9", "12.0"], "precision": "int8",
        "build_seconds": 4.25, "warnings": ["slow <kernel>"], "gpu": None, "plan_sha256": "b" * 64,
        "attempts": [{"workspace_bytes": 4 << 30, "outcome": "built"}],
        "timing_cache": {"state": "none", "reason": "chosen when loaded"}, "audit": "not audited: no GPU here",
        **changes,
    }  # fmt: skip


def build_on_gpu(keys: list[str], difference: float, median: float) -> Report:
    return {
        "keys": keys, "plan_sha256": keys, "batches": [1, 2], "max_abs_difference": difference,
        "tolerance": {"atol": 0.25, "rtol": 0.05, "phase_atol": 0.5}, "logits": [[0.5, -0.5]],
        "latency_ms": {"median": median, "min": median - 0.25, "max": median + 1.5},
    }  # fmt: skip


def on_gpu(builds: int) -> Report:
    rebuilds = [build_on_gpu(["ab12", "cd34"], 0.0125, 4.5), build_on_gpu(["ef56", "0789"], 0.003, 4.75)][:builds]
    return {"state": "passed", "reason": "", "logits_spread": 0.0095, "latency_spread_ms": 0.25, "kept": builds,
            "rebuilds": rebuilds}  # fmt: skip


@pytest.fixture(scope="session")
def whole() -> Report:
    """A complete report, its parts made by the classes that make them in a build."""
    rows = (BlockParity("logits", 1, 2e-7, 3.21e-7, 1e-4, True), BlockParity("stem/NC", 1, 4e-6, 6.54e-6, 1e-3, True))
    histograms = HUHistograms(PreprocessingConfig(size=(2, 4, 4)), ("NC", "ART"))
    histograms.add(np.zeros((2, 2, 3, 4, 4), dtype=np.float32))
    return {
        "schema": "fourphase.report/1",
        "checkpoint": {"sha256": "c" * 64, "notes": ["one note."]},
        "parameters": 825000,
        "precision": "int8",
        "gru": {"form": "loop", "reason": "the target takes it"},
        "onnx": {"bytes": 3300123, "sha256": "a" * 64, "nodes": 507, "guards": "passed"},
        "parity": ParityReport(1e-4, rows, {}).to_dict(),
        "judged_on": {"source": "evaluation set", "studies": 20, "labels": True, "hash": "e" * 64, "note": "Unseen."},
        "ladder": [step("fp32", 0.0, 3300000), step("fp16", 1e-3, 1650000), step("int8", 1e-2, 990000)],
        "ranges": ranges(),
        "calibration": {"studies": 64, "hash": "d" * 64, "algorithm": "mse", "scales": 90, "from_cache": False,
                        "salted": True, "hu_histograms": histograms.to_dict()},
        "search": searched(),
        "golden": {"int8": {"atol": 0.25, "rtol": 0.05}},
        "target": {"name": "tensorrt-rtx", "reason": "no GPU here"},
        "split": split(),
        "engines": [
            engine("ab12", "trunk", attempts=[{"workspace_bytes": 4 << 30, "outcome": "the build was killed"},
                                              {"workspace_bytes": 2 << 30, "outcome": "built"}],
                   audit=audit_of("10_fp16").to_dict(), timing_cache={"state": "extended"},
                   gpu={"name": "NVIDIA L4", "compute_capability": "8.9"}),
            engine("cd34", "tail"),
        ],
        "on_device": on_gpu(2),
        "tools": {"torch": "2.13.0"},
        "seconds": 31.2,
    }  # fmt: skip


class Page(HTMLParser):
    """Reads a page strictly: every tag closed in order; its text, its headings and its tables' rows."""

    VOID = ("meta",)

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "h2" in self.open:
            self.headings[-1] += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += ("|" if "small" in self.open else "") + data

    def row(self, *first: str) -> list[str]:
        """The one table row that begins with these cells."""
        (found,) = [row for row in self.rows if tuple(row[: len(first)]) == first]
        return found


def sqnr(noise: float) -> float:
    return float(10 * np.log10(np.square(LOGITS, dtype=float).sum() / np.square(noise * NOISE, dtype=float).sum()))


def test_the_headline_says_what_was_judged_on_what(whole: Report) -> None:
    text = Page(report_html(whole)).text
    assert "INT8 bundle825,000 parameters · GRU as loop · ONNX of 3.30 MB · built in 31.2 s" in text
    assert (
        f"✓ INT8 passed its gates: SQNR {sqnr(1e-2):.1f} dB (at least 15 dB), 0 flipped decisions (at most 0)" in text
    )
    assert "Judged on 20 studies (evaluation set, with labels).Note: Unseen." in text
    assert "Research use only, not a diagnosis." in text


def test_a_failed_gate_is_named(whole: Report) -> None:
    verdict = {**whole["ladder"][2]["verdict"], "failed": ["finite", "max_flips"], "sqnr_db": None, "max_abs": None,
               "auc": None, "auc_change": None, "bars": {}}  # fmt: skip
    report = {**whole, "ladder": [{**whole["ladder"][2], "verdict": verdict}]}
    page = Page(report_html(report))
    assert "✗ INT8 fails finite logits, flipped decisions: SQNR not finite (at least 15 dB)" in page.text
    assert "AUC not judged" in page.text
    assert page.row("INT8")[2:] == [
        "not finite|at least 15 dB", "–", "0 of 20|at most 0", "–", "not judged", "–",
        "✗ finite logits, flipped decisions",
    ]  # fmt: skip


def test_flips_that_no_gate_limits_are_not_shown_as_passed(whole: Report) -> None:
    fp32, fp16, int8 = whole["ladder"]
    page = Page(report_html({**whole, "ladder": [fp32, fp16, {**int8, "gates": {**int8["gates"], "max_flips": 20}}]}))
    assert "0 flipped decisions (any number allowed)" in page.text
    assert page.row("INT8")[4] == "0 of 20|any number allowed"


def test_the_ladder_has_every_number(whole: Report) -> None:
    fp32, fp16, int8 = whole["ladder"]
    verdict = {
        **fp16["verdict"],
        "auc": 0.9312,
        "auc_change": [-0.0012, -0.0034, 0.0021],
        "bars": {"mlperf_99_9": False},
    }
    page = Page(report_html({**whole, "ladder": [fp32, {**fp16, "verdict": verdict}, int8]}))
    assert page.row("FP16") == [
        "FP16", "1.65 MB|50% of FP32", f"{sqnr(1e-3):.1f} dB|at least 40 dB", f"{1e-3 * np.abs(NOISE).max():.3g}",
        "0 of 20|at most 0", "0.9312", "-0.0012 [-0.0034, +0.0021]|drop at most 0.005", "99.9 % ✗", "✓ passed",
    ]  # fmt: skip
    assert page.row("FP32")[2:4] == ["equal|at least 80 dB", "0"]
    assert page.row("INT8")[7] == "99 % ✓, 99.9 % ✓"


def test_every_block_comparison_range_step_and_engine_has_its_row(whole: Report) -> None:
    page = Page(report_html(whole))
    assert page.row("stem/ART", "int8") == ["stem/ART", "int8", "58.5 dB", "0.01", "12.25"]
    assert page.row("stem/NC", "1") == ["stem/NC", "1", "4.00e-06", "6.54e-06", "1e-03", "✓ passed"]
    assert page.row("stem/NC", "40") == [
        "stem/NC", "40", "×1,638", "Relu, value relu_7 of node_relu", "1.25%", "0.00%",
        "Conv node_conv: 147 terms, magnitude 52.5, error 7.5e-04",
    ]  # fmt: skip
    (stem, *_), steps = whole["search"]["sensitivities"], whole["search"]["steps"]
    assert page.row("stem", "fp16", f"{stem['cost_saved']:.1%}")[3:] == [f"{sqnr(0.01):.1f} dB", "0", "–"]
    assert page.row("stem", "fp16", f"{steps[0]['cost']:.3f}")[-1] == "kept"
    assert page.row("gru", "fp16", f"{steps[1]['cost']:.3f}")[-1] == "refused"
    built = ["int8", "8.9, 12.0", "2.87 MB", "4.2 s"]
    assert page.row("ab12") == [
        "ab12", "trunk, 4 slices", "tensorrt-rtx 1.7.1|on NVIDIA L4 (8.9)", *built, "2,048 MiB|at the 2. try",
    ]  # fmt: skip
    assert page.row("cd34") == ["cd34", "tail", "tensorrt-rtx 1.7.1|without a GPU", *built, "4,096 MiB"]
    for text in ("slow <kernel>", "gru fp32, otherwise int8", "atol 0.25, rtol 0.05", "torch 2.13.0", "507 nodes",
                 "one note.", "loop (the target takes it)",
                 "studies64algorithmmsescales90", "saltedhash", "Target tensorrt-rtx: no GPU here.",
                 *(letter * 64 for letter in "abcde")):  # fmt: skip
        assert text in page.text


@pytest.mark.parametrize(
    ("key", "heading"),
    [("parity", "FP32 parity"), ("ranges", "FP16 ranges"), ("calibration", "Calibration"), ("search", "Search"),
     ("split", "Split"), ("on_device", "On the device")],
)  # fmt: skip
def test_what_is_null_is_left_out(whole: Report, key: str, heading: str) -> None:
    full, page = Page(report_html(whole)), Page(report_html({**whole, key: None}))
    assert full.headings == ["Ladder", "Ladder per block", "FP32 parity", "FP16 ranges", "Calibration", "Search",
                             "Split", "Engines", "On the device", "Hashes and tools"]  # fmt: skip
    assert page.headings == [name for name in full.headings if name != heading]


def test_each_top_level_key_may_be_absent(whole: Report) -> None:
    for key in whole:
        Page(report_html({name: value for name, value in whole.items() if name != key}))
    bare = Page(report_html({"schema": "fourphase.report/1"}))
    assert bare.headings == []
    assert bare.text.endswith("BundleResearch use only, not a diagnosis.\n")


def test_a_split_is_told_with_its_equality_and_memory(whole: Report) -> None:
    page = Page(report_html(whole))
    assert page.row("independence") == ["independence", "0", "0", "0", "✓ passed"]
    assert page.row("logits", "3e-07") == ["logits", "3e-07", "1.23e-06", "0.0001", "✓ passed"]
    for text in ("a trunk for 4 slices at a time", "on 1 study in ONNX Runtime.",
                 "31.00 MB split, 80.00 MB whole (38.8%)", "The whole model peaks in stem/NC.",
                 "not a measurement"):  # fmt: skip
        assert text in page.text
    differs = {**whole["split"], "rows": [{**whole["split"]["rows"][1], "passed": False}], "method": "literal"}
    page = Page(report_html({"split": differs}))
    assert page.row("logits")[-1] == "✗ differs"
    assert "by the literal evaluation, where every FP16 and INT8 value is really rounded" in page.text


def test_a_build_tells_of_its_tries_its_cache_and_its_audit(whole: Report) -> None:
    page = Page(report_html(whole))
    assert "Tries of ab12: 2" in page.text
    assert "Tries of cd34" not in page.text
    assert page.row("4,096 MiB") == ["4,096 MiB", "the build was killed"]
    assert page.row("2,048 MiB") == ["2,048 MiB", "built"]
    assert "hit in part, the rest was measured and is kept (ab12); none: chosen when loaded (cd34)" in page.text
    assert "precision auditnot audited: no GPU here (cd34)" in page.text
    # By hand from the recorded answer, as in tests/engine/test_audit_record.py.
    total = 1568 + 50176 + 50176 + 12544 + 25088 + 25088 + 2048 + 20 + 22 + 40
    assert "Precision audit of ab12: its 11 layers" in page.text
    assert page.row("mixed") == ["mixed", "2", f"{2 / 11:.1%}", "1,608 bytes", f"{1608 / total:.1%}"]
    assert page.row("stem/NC", "fp16 2, mixed 1") == ["stem/NC", "fp16 2, mixed 1"]
    assert "not understood" not in page.text


def test_what_an_audit_could_not_read_is_loud(whole: Report) -> None:
    audit = {**audit_of("10_fp16").to_dict(), "unknown": ["gemm: Weird"], "unseen": ["node_a", "node_b"]}
    text = Page(report_html({"engines": [engine("ab12", "whole", audit=audit)]})).text
    assert "Types not understood (1): gemm: Weird." in text
    assert "Weighted nodes in no weighted layer (2): node_a, node_b." in text


def test_what_is_said_of_all_engines_is_said_once(whole: Report) -> None:
    text = Page(report_html({"engines": [engine("ab12", "trunk"), engine("cd34", "tail")]})).text
    assert "timing cachenone: chosen when loadedprecision auditnot audited: no GPU here" in text


@pytest.mark.parametrize("state", ["off", "miss", "hit", "extended", "rejected", "not kept"])
def test_every_state_of_the_timing_cache_has_words(state: str) -> None:
    text = Page(report_html({"engines": [engine("ab12", "whole", timing_cache=CacheUse(state).to_dict())]})).text
    told = text.partition("timing cache")[2].partition("precision audit")[0]
    assert len(told.split()) > 1
    assert told != state or state == "not kept"


def test_an_engine_of_an_earlier_version_is_shown(whole: Report) -> None:
    new = ("part", "slices", "attempts", "timing_cache", "audit")
    old = {name: value for name, value in engine("ab12", "whole").items() if name not in new}
    page = Page(report_html({"engines": [old]}))
    assert page.row("ab12")[1] == "whole"
    assert page.row("ab12")[-1] == "–"
    assert "timing cache" not in page.text


def test_rebuilds_on_the_gpu_are_compared(whole: Report) -> None:
    page = Page(report_html(whole))
    assert page.row("1", "ab12, cd34") == ["1", "ab12, cd34", "1, 2", "0.0125", "4.50 ms|4.25 to 6.00", ""]
    assert page.row("2", "ef56, 0789") == ["2", "ef56, 0789", "1, 2", "0.003", "4.75 ms|4.50 to 6.25", "kept"]
    assert "✓ passed: within atol 0.25, rtol 0.05 of the golden outputs." in page.text
    assert "2 independent builds are 0.0095 apart in their logits and 0.25 ms in their latency" in page.text
    text = Page(report_html({**whole, "on_device": on_gpu(1)})).text
    assert "One build: how far another would be from it is not known" in text
    assert "apart in their logits" not in text


def test_engines_that_did_not_run_are_not_shown_as_passed(whole: Report) -> None:
    idle = {"state": "not run", "reason": "no CUDA device", "rebuilds": []}
    page = Page(report_html({"engines": whole["engines"], "on_device": idle}))
    assert "Not run on a GPU: no CUDA device." in page.text
    assert "✓" not in page.text
    assert Page(report_html({"engines": [], "on_device": idle})).headings == []


def hostile(value: Any, key: str = "") -> Any:
    """Every text replaced, but for the precisions, which are names of ours; keys that name things too."""
    if isinstance(value, dict):
        named = key in ("policy", "tools", "golden", "phases", "bars", "by_block", "by_precision")
        return {HOSTILE + name if named else name: hostile(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner, key) for inner in value]
    return HOSTILE if isinstance(value, str) and key != "precision" else value


def text_of_device(whole: Report, reason: str) -> str:
    idle = {"state": "not run", "reason": reason, "rebuilds": []}
    return Page(report_html({"engines": whole["engines"], "on_device": idle})).text


def test_no_text_of_a_report_becomes_markup(whole: Report) -> None:
    text = report_html(hostile(whole))
    page = Page(text)
    assert "script" not in page.tags
    assert text.count("<script") == 0
    assert page.text.count(HOSTILE) > 30
    assert page.tags == Page(report_html(whole)).tags
    assert text_of_device(whole, HOSTILE).count(HOSTILE) == 1
    assert element("a", "<b>", href='">') == '<a href="&quot;&gt;">&lt;b&gt;</a>'


def test_blocks_that_the_search_held_are_named(whole: Report) -> None:
    found = {**whole["search"], "held": ["stage3/NC", "gru"]}
    text = Page(report_html({"search": found})).text
    assert (
        "Held in FP32 by name, as FP16 cannot hold them or the default policies keep them there: stage3/NC, gru."
        in text
    )
    assert f"Chosen: stem fp16, otherwise fp32. Its cost is {found['cost_relative_to_fp32']:.3f} of FP32's." in text
    assert f"On 20 studies: SQNR {sqnr(0.01):.1f} dB, 0 flipped decisions, AUC not judged." in text


def test_the_page_loads_nothing(whole: Report) -> None:
    text = report_html(whole)
    page = Page(text)
    assert "default-src 'none'" in text
    assert all(address.startswith("#") for address in page.addresses)
    assert {address[1:] for address in page.addresses} == set(re.findall(r'<section id="([^"]+)"', text))
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)


def plot(markup: str) -> ElementTree.Element:
    """A plot read as XML, as a file of its own would be."""
    return ElementTree.fromstring(re.sub(r' xmlns="[^"]+"', "", markup))


def marks(root: ElementTree.Element, kind: str) -> list[tuple[float, float]]:
    """Where the marks of a class are drawn."""
    found = [path.get("transform", "") for path in root.iter("path") if path.get("class") == kind]
    return [(float(x), float(y)) for x, y in (text[10:-1].split() for text in found)]


def lines(root: ElementTree.Element, kind: str) -> list[tuple[float, float]]:
    """From x to x of the lines of a class."""
    return [
        (float(line.get("x1", "")), float(line.get("x2", "")))
        for line in root.iter("line")
        if line.get("class") == kind
    ]


def test_an_axis_maps_its_ends_and_what_is_beyond_them() -> None:
    linear, log = Axis(20, 60, 100, 300, 10), Axis(1e-6, 1e-2, 300, 100, 1, log=True)
    assert [linear.at(value) for value in (20, 30, 60, math.inf, -math.inf)] == [100, 150, 300, 330, 70]
    assert [log.at(value) for value in (1e-6, 1e-4, 1e-2, 0.0)] == pytest.approx([300, 200, 100, 330])
    assert linear.ticks == [(20, "20"), (30, "30"), (40, "40"), (50, "50"), (60, "60")]
    assert [label for _, label in log.ticks] == ["10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²"]


@pytest.mark.parametrize(
    ("values", "log", "ends"),
    [((21.0, 79.0), False, (20, 80)), ((50.0,), False, (50, 51)), ((math.inf,), False, (1, 2)),
     ((3e-7, 0.0, 2e-4), True, (1e-7, 1e-3)), ((5.0,), True, (1, 10)), ((-0.03, 0.07), False, (-0.04, 0.08))],
)  # fmt: skip
def test_an_axis_has_round_ends(values: tuple[float, ...], log: bool, ends: tuple[float, float]) -> None:
    axis = make_axis(values, 0, 1, log=log)
    assert (axis.low, axis.high) == pytest.approx(ends)
    assert (axis.ticks[0][0], axis.ticks[-1][0]) == pytest.approx(ends)


def test_the_ladder_draws_the_worst_phase_and_the_range() -> None:
    def row(block: str, sqnr_db: float | None, max_abs: float | None = 0.1) -> Report:
        return {"block": block, "sqnr_db": sqnr_db, "max_abs": max_abs}

    fp16 = [row("stem/NC", 80.0), row("stem/ART", 50.0), row("gru", None), row("head", None, None)]
    int8 = [row("stem/NC", 20.0), row("gru", 35.0)]
    root = plot(ladder_svg([{"precision": "fp16", "blocks": fp16}, {"precision": "int8", "blocks": int8}]))
    assert [x for x, _ in marks(root, "fp16")] == [(LEFT + RIGHT) / 2, RIGHT + BEYOND, LEFT - BEYOND]
    assert [x for x, _ in marks(root, "int8")] == [LEFT, LEFT + (RIGHT - LEFT) / 4]
    assert lines(root, "range fp16")[0] == ((LEFT + RIGHT) / 2, RIGHT)
    texts = [text.text for text in root.iter("text")]
    assert [text for text in texts if text in ("stem", "gru", "head")] == ["stem", "gru", "head"]
    assert {"equal", "not finite"} < set(texts)
    heights = [y for _, y in marks(root, "fp16")]
    assert np.diff(heights) == pytest.approx([17, 17])


def test_parity_is_drawn_against_what_is_allowed() -> None:
    found = (("logits", 1e-6, True), ("logits", 1e-8, True), ("gru", 1e-3, False))
    rows = [{"block": name, "relative": value, "allowed": 1e-4, "passed": passed} for name, value, passed in found]
    root, fifth = plot(parity_svg({"rows": rows})), (RIGHT - LEFT) / 5
    (mark,), (failed,) = marks(root, "fp32"), marks(root, "failed")
    assert mark[0] == pytest.approx(LEFT + 2 * fifth, abs=0.06)
    assert failed[0] == RIGHT
    assert lines(root, "range fp32")[0] == pytest.approx((mark[0], LEFT), abs=0.06)
    assert [x for x, _ in lines(root, "limit")] == pytest.approx([LEFT + 4 * fifth] * 2, abs=0.06)


def test_ranges_show_the_limit_and_what_is_beyond_it() -> None:
    root = plot(ranges_svg(ranges(peak=1e5)))
    place = LEFT + (math.log10(65504) + 1) / 6 * (RIGHT - LEFT)
    assert [x for x, _ in lines(root, "limit")] == pytest.approx([place] * 2, abs=0.06)
    assert [x for x, _ in marks(root, "failed")] == [RIGHT]
    assert {"65,504", "×0.66", "×131,008"} < {text.text for text in root.iter("text")}
    assert "FP16 cannot hold stem/NC." in Page(report_html({"ranges": ranges(peak=1e5)})).text
    assert (
        "stem/NC comes closest to its limit, with a headroom of ×1,638" in Page(report_html({"ranges": ranges()})).text
    )


def test_histograms_keep_their_median_and_height() -> None:
    counts = {"NC": [0, 10, 10, 0], "ART": [0, 5, 15, 0]}
    root = plot(histograms_svg({"low": -200, "high": 200, "phases": counts}))
    texts = {text.text for text in root.iter("text")}
    assert {"NC", "ART", "median 0 HU", f"median {100 / 3:.0f} HU"} < texts
    first, second = (re.findall(r"V([\d.]+)", path.get("d", "")) for path in root.iter("path"))
    assert first == ["28.0", "28.0", "66.0"]
    heights = [118.0 - float(value) for value in second]
    assert heights == pytest.approx([38 / 3, 38, 0], abs=0.1)


def test_the_search_marks_kept_refused_and_chosen() -> None:
    def step(cost: float, sqnr_db: float | None, kept: bool) -> Report:
        return {
            "group": "stem",
            "precision": "fp16",
            "cost": cost,
            "sqnr_db": sqnr_db,
            "finite": sqnr_db is not None,
            "flips": 0,
            "kept": kept,
        }

    steps = [step(0.75, 80.0, True), step(0.5, 60.0, True), step(0.25, 20.0, False), step(0.4, None, False)]
    found = {"steps": steps, "cost_relative_to_fp32": 0.5, "verdict": {"sqnr_db": 60.0, "max_abs": 0.1}}
    root = plot(search_svg(found))
    top, bottom = 52.0, 242.0
    assert marks(root, "fp16") == [(60 + 340 * 0.75, top), (230, pytest.approx(top + (bottom - top) / 3, abs=0.06))]
    assert marks(root, "failed") == [(60 + 340 * 0.25, bottom), (60 + 340 * 0.4, bottom + BEYOND)]
    assert marks(root, "chosen") == [marks(root, "fp16")[1]]
    (path,) = root.iter("polyline")
    assert path.get("points") == f"315.0,52.0 230.0,{top + (bottom - top) / 3:.1f}"


def test_the_bars_of_memory_have_the_lengths_of_what_they_show() -> None:
    root = plot(memory_svg(split()["memory"]))
    # The axis is 0 to 80 MB.
    unit = (RIGHT - LEFT) / 80
    bars = [(bar.get("class"), float(bar.get("x", "")), float(bar.get("width", ""))) for bar in root.iter("rect")]
    expected = [("fp32", 0, 80), ("fp16", 0, 30), ("fp16", 30, 1), ("fp16", 0, 5)]
    assert [name for name, _, _ in bars] == [name for name, _, _ in expected]
    assert [x for _, x, _ in bars] == pytest.approx([LEFT + unit * start for _, start, _ in expected], abs=0.06)
    assert [width for _, _, width in bars] == pytest.approx([unit * size for _, _, size in expected], abs=0.06)
    texts = [text.text for text in root.iter("text")]
    assert [text for text in texts if text and text.endswith("0 MB")] == ["80.00 MB", "31.00 MB", "5.00 MB"]
    assert [text for text in texts if text in ("whole", "trunk", "tail")] == ["whole", "trunk", "tail"]
