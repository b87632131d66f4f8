"""The report's numbers in CSV, Markdown and HTML: each of the JSON's is there once, with its value; so is each gap."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from decimal import Context, Decimal
from typing import Any

import pytest

from fourphase.benchmarks.report.answers import answers_of
from fourphase.benchmarks.report.answers_latency import verdicts_in
from fourphase.benchmarks.report.figures import figures_of, report_csv
from fourphase.benchmarks.report.gaps import gaps_of
from fourphase.benchmarks.report.markdown import report_markdown
from fourphase.benchmarks.report.reading import merged_order
from fourphase.benchmarks.report.tables import tables_of
from fourphase.benchmarks.report.text_table import Strong, Table, escaped
from fourphase.benchmarks.report.words import listed, significant, time_text
from tests.support.bench_reports import bench_report, without

Json = dict[str, Any]
WAYS = {
    "torch-eager": "torch eager", "torch-compile": "torch.compile", "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX", "cuda-graph": "CUDA graph",
}  # fmt: skip


@pytest.fixture(scope="module")
def report() -> Json:
    return bench_report()


@pytest.fixture(scope="module")
def rows(report: Json) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(report_csv(report))))


def one(rows: list[dict[str, str]], **wanted: str) -> dict[str, str]:
    (found,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return found


def test_no_figure_is_there_twice(rows: list[dict[str, str]]) -> None:
    names = ("section", "network", "runtime", "precision", "batch", "case", "figure")
    identities = [tuple(row[name] for name in names) for row in rows]
    assert len(set(identities)) == len(identities) > 1500


def test_every_latency_of_the_json_is_in_the_csv(report: Json, rows: list[dict[str, str]]) -> None:
    for row in report["sections"]["latency"]["rows"]:
        identity = {name: str(row[name]) for name in ("network", "runtime", "precision", "batch")}
        found = one(rows, section="latency", figure="latency p50", **identity)
        if row["status"] != "ok":
            assert (found["value"], found["status"], found["reason"]) == ("", row["status"], row["reason"])
            continue
        summary = row["statistics"]["latency_ms"]
        assert [float(found[key]) for key in ("value", "low", "high")] == [
            summary[key] for key in ("p50", "min", "p95")
        ]
        host = one(rows, section="latency", figure="peak host memory", **identity)
        assert float(host["value"]) == row["memory"]["host_peak_bytes"]


def test_every_ratio_of_the_json_is_in_the_csv(report: Json, rows: list[dict[str, str]]) -> None:
    refused = 0
    for pair in report["sections"]["latency"]["pairs"]:
        a, b = pair["a"], pair["b"]
        identity = {name: str(a[name]) for name in ("network", "runtime", "precision", "batch")}
        found = one(rows, figure=f"ratio over {b['network']}, {b['runtime']} {b['precision']}", **identity)
        ratio = pair["ratio"]
        assert float(found["low"]) == ratio["low"]
        if ratio["value"] is None:
            refused += 1
            assert (found["value"], found["status"], found["reason"]) == ("", "refused", ratio["refused"])
        else:
            assert float(found["value"]) == ratio["value"]
    assert refused > 0
    for row in report["sections"]["gru"]["ratios"]:
        case = f"{row['slices']} slices, hidden {row['hidden']}"
        found = one(rows, section="gru", runtime=row["runtime"], case=case)
        assert found["value"] == ("" if row["ratio"]["value"] is None else repr(row["ratio"]["value"]))


def test_the_other_sections_figures_are_in_the_csv(report: Json, rows: list[dict[str, str]]) -> None:
    sections = report["sections"]
    for name, row in sections["end-to-end"]["pipelines"].items():
        if row["status"] == "ok":
            found = one(rows, section="end-to-end", case=f"{name}, warm", figure="latency p50")
            assert float(found["value"]) == row["warm"]["total_ms"]["p50"]
            found = one(rows, section="end-to-end", case=f"{name}, cold", figure="step load")
            assert float(found["value"]) == row["cold_ms"]["load"]
    for sweep in sections["scaling"]["sweeps"]:
        found = one(rows, section="scaling", network=sweep["network"], case=sweep["what"], figure="exponent")
        assert found["value"] == ("" if sweep["fit"] is None else repr(sweep["fit"]["exponent"]))
    for row in sections["archive"]["rows"]:
        case = f"{row['mode']}, {row['workers']} workers of {row['threads_each']} threads"
        found = one(rows, section="archive", case=case, figure="studies per hour")
        assert found["value"] == ("" if row["status"] != "ok" else repr(row["studies_per_hour"]))
    for row in sections["baselines"]["rows"]:
        found = one(rows, section="baselines", network=row["network"], precision="", figure="AUC")
        assert found["value"] == ("" if row["status"] != "ok" else repr(row["auc"]["value"]))
        if row.get("int8"):
            int8 = {"section": "baselines", "network": row["network"], "precision": "int8"}
            difference = one(rows, figure="AUC minus FP32's", **int8)
            assert difference["value"] == repr(row["int8"]["auc_against_fp32"]["value"])
            assert one(rows, figure="flipped decisions", **int8)["value"] == str(row["int8"]["flipped"])
    for name, seconds in sections["preprocess"]["seconds"].items():
        assert float(one(rows, section="preprocess", case=name, figure="time median")["value"]) == seconds


def markdown_rows(text: str) -> Iterator[tuple[str, list[str]]]:
    """(title, cells) of every row of every table, heads included."""
    title = ""
    for line in text.splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
        elif line.startswith("| "):
            yield title, [cell.strip().strip("*") for cell in line.strip("|").split(" | ")]


def test_every_latency_and_ratio_is_in_the_markdown_as_often_as_said(report: Json) -> None:
    text = report_markdown(report)
    rows = list(markdown_rows(text))
    heads = dict(reversed(rows))
    details = {tuple(cells[:3]): cells for title, cells in rows if title == "Every candidate"}
    section = report["sections"]["latency"]
    measured = [row for row in section["rows"] if row["status"] == "ok"]
    assert len(details) == len(measured) + 1
    for row in measured:
        way = f"{WAYS[row['runtime']]} {row['precision'].upper()}"
        cells = dict(zip(heads["Every candidate"], details[row["network"], way, "1"], strict=True))
        assert float(cells["p50 ms"].replace(",", "")) == pytest.approx(
            row["statistics"]["latency_ms"]["p50"], rel=6e-4
        )
        assert float(cells["host MB"].replace(",", "")) == pytest.approx(
            row["memory"]["host_peak_bytes"] / 1e6, rel=6e-3
        )
        assert (cells["floor ms"] == "–") == (row["limit"] is None)
    ratios = {cells[0]: cells for title, cells in rows if title == "Ratio of latencies over four-phase"}
    for pair in section["pairs"]:
        if pair["kind"] == "networks":
            way = f"{WAYS[pair['a']['runtime']]} {pair['a']['precision'].upper()}"
            cells = dict(zip(ratios["network"], ratios[pair["a"]["network"]], strict=True))
            ratio = pair["ratio"]
            wanted = f"{ratio['value']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})" if ratio["value"] else "refused"
            assert cells[way] == wanted


def test_the_fastest_of_each_network_is_bold(report: Json) -> None:
    (table,) = [table for table in tables_of(report)["latency"] if table.title == "Median latency, ms"]
    latencies = {
        (row["network"], row["runtime"], row["precision"]): row["statistics"]["latency_ms"]["p50"]
        for row in report["sections"]["latency"]["rows"]
        if row["status"] == "ok"
    }
    for line in table.rows:
        least = min(value for key, value in latencies.items() if key[0] == line[0])
        assert [cell for cell in line if isinstance(cell, Strong)] == [f"{least:,.0f}"]


def test_every_gap_of_the_json_is_listed_with_its_reason(report: Json) -> None:
    gaps = gaps_of(report)
    rows = report["sections"]["latency"]["rows"]
    wanted = [(row["network"], row["status"], row["reason"]) for row in rows if row["status"] != "ok"]
    found = [(gap.of, gap.status, gap.reason) for gap in gaps if gap.section == "Latency" and gap.of]
    assert sorted(found) == sorted(wanted)
    reasons = {gap.reason for gap in gaps}
    assert {"no C++ compiler for torch.compile", "2 rounds, an interval needs 5", "out of memory",
            "only 2 cores are usable", "training diverged in fold 3",
            "noisy: the interval of the exponent is wider than 0.5"} <= reasons  # fmt: skip
    assert {"speed-up of ray, 1 workers", "speed-up of ray, 2 workers"} <= {gap.what for gap in gaps}
    text = report_markdown(report)
    assert all(escaped(reason) in text for reason in reasons if "is wider than 1.25 x" not in reason)
    # Six ratios over one noisy row: one line, with what their reasons have in common.
    assert text.count("| noisy: the interval … to … is wider than 1.25 x |") == 1


def test_what_no_network_has_is_said_of_every_network(report: Json) -> None:
    def why_no_engine(row: Json) -> str:
        start = "| Latency | missing | TensorRT is not installed | "
        (line,) = [line for line in report_markdown(row).splitlines() if line.startswith(start)]
        return line

    assert why_no_engine(report) == ("| Latency | missing | TensorRT is not installed | TensorRT FP16: every network |")
    section = report["sections"]["latency"]
    changed = [
        {**row, "status": "failed", "reason": "out of memory"}
        if (row["network"], row["runtime"]) == ("stic", "tensorrt") else row for row in section["rows"]
    ]  # fmt: skip
    line = why_no_engine({**report, "sections": {"latency": {**section, "rows": changed}}})
    assert "every network" not in line
    assert "TensorRT FP16: four-phase, four-phase-shared, " in line
    assert "stic" not in line


def test_what_no_form_and_size_of_the_gru_has_is_said_once(report: Json) -> None:
    section = report["sections"]["gru"]
    missing = {"status": "missing", "reason": "no GPU here", "latency_ms": None}
    rows = [
        {**row, "runtime": runtime, **missing}
        for runtime in ("tensorrt", "tensorrt-rtx") for row in section["rows"] if row["runtime"] == "openvino"
    ]  # fmt: skip

    def said(rows: list[Json]) -> str:
        text = report_markdown({**report, "sections": {"gru": {**section, "rows": rows}}})
        (line,) = [line for line in text.splitlines() if "| no GPU here |" in line]
        return line.rpartition("| no GPU here | ")[2]

    assert said(rows) == "TensorRT and TensorRT for RTX: every form and size |"
    (one_less,) = {said(rows[1:])}
    first = rows[0]
    assert "TensorRT for RTX: every form and size" in one_less
    assert f"{first['form']} {first['slices']} x {first['hidden']}" not in one_less.partition(";")[0]
    assert "(slices x hidden size)" in one_less


def test_the_preprocess_ratio_is_the_one_in_turns_or_none(report: Json, rows: list[dict[str, str]]) -> None:
    section = report["sections"]["preprocess"]
    ratio = section["paired_ratio"]
    found = one(rows, section="preprocess", figure="ratio of theirs over ours")
    assert [float(found[key]) for key in ("value", "low", "high")] == [ratio[key] for key in ("value", "low", "high")]
    said = f"{ratio['value']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f}) (theirs over ours; above 1, ours is faster)"
    assert said in report_markdown(report)
    refused = {"value": None, "low": 9.0, "high": 13.0, "rounds": 5, "refused": "noisy: too wide"}
    # A ratio of the medians is nothing to fall back on.
    noisy = {"preprocess": {**section, "paired_ratio": refused, "ratio": 11.57}}
    changed = {**report, "sections": noisy}
    found = one(list(csv.DictReader(io.StringIO(report_csv(changed)))), figure="ratio of theirs over ours")
    assert (found["value"], found["status"], found["reason"]) == ("", "refused", "noisy: too wide")
    assert "No ratio is quoted: noisy: too wide; inputs differ" in report_markdown(changed)
    assert "11.6" not in report_markdown(changed) + report_csv(changed)
    assert ("theirs over ours", "ratio refused", "noisy: too wide") in [
        (gap.what, gap.status, gap.reason) for gap in gaps_of(changed)
    ]
    assert not [gap for gap in gaps_of(report) if gap.what == "theirs over ours"]


def test_an_archive_row_without_a_rate_is_a_gap(report: Json) -> None:
    section = report["sections"]["archive"]
    failed = {**section["rows"][0], "studies_per_hour": None, "failed": 16}
    changed = {**report, "sections": {"archive": {**section, "rows": [failed]}}}
    found = one(list(csv.DictReader(io.StringIO(report_csv(changed)))), figure="studies per hour")
    assert (found["value"], found["status"], found["reason"]) == ("", "not measured", "no study came to its end")
    assert "no study came to its end" in [gap.reason for gap in gaps_of(changed)]
    assert "| one process | 1 | 2 | 28.0 | – |" in report_markdown(changed)
    assert answers_of(changed) == []


def test_what_was_skipped_is_a_gap_and_did_not_fail(report: Json) -> None:
    skipped = {**report, "sections": {"preprocess": {"status": "skipped", "reason": "no SimpleITK"}}}
    assert "**This section was skipped: no SimpleITK**" in report_markdown(skipped)
    assert ("skipped", "no SimpleITK") in [(gap.status, gap.reason) for gap in gaps_of(skipped)]


def test_a_section_that_is_not_there_or_failed_is_a_gap(report: Json) -> None:
    assert ("Scaling", "not measured") in [(gap.section, gap.status) for gap in gaps_of(without(report, ["scaling"]))]
    failed = {**report, "sections": {**report["sections"], "gru": {"status": "timeout", "reason": "stopped after 9 s"}}}
    assert "stopped after 9 s" in [gap.reason for gap in gaps_of(failed)]
    assert "**This section did not come to its end (timeout): stopped after 9 s**" in report_markdown(failed)
    assert one(list(csv.DictReader(io.StringIO(report_csv(failed)))), section="gru")["status"] == "timeout"


@pytest.mark.parametrize("section", ["latency", "end-to-end", "gru", "scaling", "archive", "baselines", "preprocess"])
def test_a_section_that_has_nothing_yet_breaks_nothing(report: Json, section: str) -> None:
    begun = {**report, "sections": {section: {"status": "crashed", "reason": "SIGKILL"}}}
    assert [figure.status for figure in figures_of(begun)] == ["crashed"]
    assert "SIGKILL" in report_markdown(begun)
    assert answers_of(begun) == []


def test_the_answers_count_what_the_intervals_say(report: Json) -> None:
    section = report["sections"]["latency"]
    found = verdicts_in(section, ("openvino", "int8"))
    ratios = {
        pair["a"]["network"]: pair["ratio"]
        for pair in section["pairs"]
        if pair["kind"] == "networks" and (pair["a"]["runtime"], pair["a"]["precision"]) == ("openvino", "int8")
    }
    others = [name for name in section["networks"] if not name.startswith("four-phase")]
    assert found["faster"] == [name for name in others if name in ratios and ratios[name]["high"] < 1]
    assert found["slower"] == [name for name in others if name in ratios and ratios[name]["low"] > 1]
    assert found["absent"] == ["transmed"]
    assert sum(map(len, found.values())) == len(others) == 8
    texts = [answer.text for answer in answers_of(report)]
    assert texts[0].startswith("On this machine four-phase takes 892 ms per study in OpenVINO INT8")
    assert any(f"{len(found['faster'])} are faster (" in text for text in texts)


def test_int8_of_the_trained_networks_is_in_every_part_of_the_report(report: Json, rows: list[dict[str, str]]) -> None:
    section = report["sections"]["baselines"]
    changes = {row["network"]: row["int8"]["auc_against_fp32"] for row in section["rows"] if row.get("int8")}
    assert len(changes) == 13  # of 15, tdn did not train and stic could not be lowered
    (table,) = [table for table in tables_of(report)["baselines"] if table.title == "In INT8, on the same phantoms"]
    assert [row[0] for row in table.rows] == list(changes)
    (loses,) = [row for row in table.rows if row[0] == "mexpale"]
    assert loses[2] == "−0.090 (−0.121 to −0.063)"
    said = [answer.text for answer in answers_of(report) if answer.text.startswith("INT8 against FP32")]
    assert said == [
        "INT8 against FP32 on the same phantoms: the 95 % interval of the AUC's change lies below 0 for 1 of 13 "
        "networks and above 0 for 0; the lowest change is mexpale's, −0.090 (−0.121 to −0.063)."
    ]
    alone = {
        "sections": {"baselines": {**section, "rows": [row for row in section["rows"] if row["network"] == "tdn"]}}
    }
    assert answers_of(alone) == []
    others = {**section, "rows": [row for row in section["rows"] if row["network"] != "four-phase"]}
    assert [answer.text[:4] for answer in answers_of({"sections": {"baselines": others}})] == ["INT8"]
    reason = "fold 2: logits differ from PyTorch's"
    assert ("stic in INT8", "failed", reason) in [(gap.what, gap.status, gap.reason) for gap in gaps_of(report)]
    found = one(rows, section="baselines", network="stic", precision="int8")
    assert (found["value"], found["status"], found["reason"]) == ("", "failed", reason)


def test_the_gru_sentence_counts_what_was_refused_too(report: Json) -> None:
    section = report["sections"]["gru"]
    ratios = [row["ratio"] for row in section["ratios"] if row["runtime"] == "openvino"]
    unrolled, loop = sum(ratio["low"] > 1 for ratio in ratios), sum(ratio["high"] < 1 for ratio in ratios)
    (text,) = [answer.text for answer in answers_of(report) if answer.text.startswith("GRU in OpenVINO")]
    wins = f"Of 15 sizes, unrolling wins at {unrolled} and the loop at {loop}; {15 - unrolled - loop} cannot be told."
    assert wins in text
    assert unrolled > loop > 0


@pytest.mark.parametrize("value", [0.99, 1.01])
def test_an_interval_around_one_is_not_told_apart(report: Json, value: float) -> None:
    section = report["sections"]["latency"]
    pairs = [
        {**pair, "ratio": {**pair["ratio"], "value": value, "low": 0.98, "high": 1.04}}
        if pair["kind"] == "networks" else pair
        for pair in section["pairs"]
    ]  # fmt: skip
    found = verdicts_in({**section, "pairs": pairs}, ("openvino", "fp32"))
    assert (len(found["untold"]), found["faster"], found["slower"]) == (8, [], [])


def test_what_the_parts_of_our_network_cost_is_said_in_its_fastest_runtime(report: Json) -> None:
    section = report["sections"]["latency"]
    ratios = {
        pair["a"]["network"]: pair["ratio"]
        for pair in section["pairs"]
        if pair["kind"] == "networks" and (pair["a"]["runtime"], pair["a"]["precision"]) == ("openvino", "int8")
    }
    (said,) = [answer.text for answer in answers_of(report) if "its variants take" in answer.text]
    assert said.startswith("Of the time that four-phase takes in OpenVINO INT8, its variants take: four-phase-shared ")
    for name, ratio in ratios.items():
        text = f"{name} {ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        assert (text in said) is name.startswith("four-phase-")
    gone = [pair for pair in section["pairs"] if pair["a"]["network"] != "four-phase-spm"]
    (said,) = [
        answer.text for answer in answers_of({"sections": {"latency": {**section, "pairs": gone}}})
        if "its variants take" in answer.text
    ]  # fmt: skip
    assert said.endswith("; of four-phase-spm there is no ratio.")


def test_refused_ratios_are_not_called_equal(report: Json) -> None:
    section = report["sections"]["latency"]
    refused = {"value": None, "low": None, "high": None, "rounds": 2, "refused": "2 rounds, an interval needs 5"}
    pairs = [{**pair, "ratio": refused} for pair in section["pairs"]]
    texts = [answer.text for answer in answers_of({"sections": {"latency": {**section, "pairs": pairs}}})]
    (said,) = [text for text in texts if text.startswith("In OpenVINO FP32")]
    assert "8 are not told apart from it, or refused (" in said


def test_a_rehearsal_says_so_everywhere() -> None:
    text = report_markdown(bench_report(quick=True))
    assert "**REHEARSAL (--quick)" in text
    assert "REHEARSAL" not in report_markdown(bench_report())
    # Published costs are of full size.
    (cost,) = [
        table for table in tables_of(bench_report(quick=True))["latency"] if table.title == "Size and arithmetic"
    ]
    assert {row[2] for row in cost.rows} == {"–"}


@pytest.mark.parametrize("value", [0.000123456, 0.00999, 0.0999999, 1.0, 2.875, 9.996, 28.71, 99.96, 931.4, 28684.2])
@pytest.mark.parametrize("digits", [3, 4])
def test_numbers_keep_their_digits(value: float, digits: int) -> None:
    text = significant(value, digits).replace(",", "")
    rounded = Context(prec=max(digits, math.floor(math.log10(value)) + 1)).create_decimal(Decimal(value))
    assert Decimal(text) == rounded


def test_words_for_numbers() -> None:
    assert (significant(None), significant(0), significant(12345.6)) == ("–", "0", "12,346")
    assert (time_text(931.4), time_text(2868), time_text(0.0123)) == ("931 ms", "2.87 s", "0.0123 ms")
    assert (listed([]), listed(["a"]), listed(["a", "b", "c"])) == ("", "a", "a, b and c")


def test_steps_of_several_pipelines_keep_their_order() -> None:
    lists = [["scan", "read", "infer"], ["scan", "read", "breathe", "infer", "rest"], ["start", "scan"]]
    assert merged_order(lists) == ["start", "scan", "read", "breathe", "infer", "rest"]


def test_markdown_escapes_what_would_be_markup() -> None:
    table = Table("a|b", ("x", "y"), [("<b>|\n*", Strong("[1](2)"))])
    text = table.markdown()
    assert r"| \<b\>\|" in text
    assert r"**\[1\](2)**" in text
    assert len(text.splitlines()) == 5
