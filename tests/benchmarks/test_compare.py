"""Two runs side by side: noise by closed forms and scipy, noise that is no regression, what is lost or refused."""

from __future__ import annotations

import copy
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from scipy.stats import norm, ttest_ind
from typer.testing import CliRunner

from fourphase.benchmarks.report import cli
from fourphase.benchmarks.report.comparable import COMPARABLE, comparables_of
from fourphase.benchmarks.report.compare import CompareResult, Pair, compare
from fourphase.benchmarks.report.document import read_json
from fourphase.benchmarks.report.sections import SECTIONS
from fourphase.benchmarks.report.welch import change_of_rounds, change_of_spreads
from fourphase.runtime.errors import InputMissing, OutputNotWritable, UsageError
from tests.support.bench_reports import PROTOCOL, bench_report, latency_section

Json = dict[str, Any]

app = typer.Typer(pretty_exceptions_enable=False)
app.command("compare")(cli.compare)
app.command("render")(cli.render)


def latency_row(section: Json, network: str, runtime: str, precision: str) -> Json:
    (row,) = [row for row in section["rows"] if (row["network"], row["runtime"], row["precision"]) ==
              (network, runtime, precision)]  # fmt: skip
    return dict(row)


def made_slower(section: Json, factor: float, *names: str) -> Json:
    """The section with one row's times multiplied."""
    changed = copy.deepcopy(section)
    for row in changed["rows"]:
        if (row["network"], row["runtime"], row["precision"]) == names:
            statistics = row["statistics"]
            statistics["round_medians_ms"] = [factor * value for value in statistics["round_medians_ms"]]
            statistics["latency_ms"] = {key: value if key == "cv_percent" else factor * value
                                        for key, value in statistics["latency_ms"].items()}  # fmt: skip
    return changed


def pair_of(found: CompareResult, name: str) -> Pair:
    (pair,) = [pair for pair in found.pairs if pair.row == name]
    return pair


def test_welchs_interval_is_scipys() -> None:
    random = np.random.default_rng(3)
    old, new = np.exp(random.normal(3, 0.02, 8)), np.exp(random.normal(3.1, 0.06, 11))
    change = change_of_rounds(old.tolist(), new.tolist())
    interval = ttest_ind(np.log(new), np.log(old), equal_var=False).confidence_interval(0.95)
    middle = (interval.low + interval.high) / 2
    assert change.ratio == pytest.approx(math.exp(middle))
    assert change.noise == pytest.approx(math.exp((interval.high - interval.low) / 2) - 1)
    interval = ttest_ind(np.log(new), np.log(old), equal_var=False).confidence_interval(0.999)
    wider = change_of_rounds(old.tolist(), new.tolist(), 0.999)
    assert wider.noise == pytest.approx(math.exp((interval.high - interval.low) / 2) - 1)


def test_welchs_interval_in_closed_form() -> None:
    # Logarithms 0, a, 2a and 1, 1 + a, 1 + 2a: variance a^2 each, so t has 4 degrees of freedom: 2.776445.
    a = 0.01
    old = [math.exp(a * index) for index in range(3)]
    new = [math.exp(1 + a * index) for index in range(3)]
    change = change_of_rounds(old, new)
    assert change.ratio == pytest.approx(math.e)
    assert math.log1p(change.noise) == pytest.approx(2.776445 * a * math.sqrt(2 / 3), rel=1e-6)


def test_runs_without_any_spread_have_no_noise() -> None:
    assert change_of_rounds([2.0] * 3, [3.0] * 3).noise == 0
    with pytest.raises(ValueError, match="3 rounds"):
        change_of_rounds([1.0, 1.0], [1.0, 1.0, 1.0])


def test_the_noise_of_spreads_is_that_of_both() -> None:
    change = change_of_spreads(100, 110, 3, 4)
    assert (change.ratio, change.noise) == pytest.approx((1.1, math.exp(norm.ppf(0.975) * 0.05) - 1))
    wider = change_of_spreads(100, 110, 3, 4, 0.999)
    assert wider.noise == pytest.approx(math.exp(norm.ppf(0.9995) * 0.05) - 1)


@pytest.mark.parametrize("seed", range(1, 6))
def test_another_run_of_the_same_is_no_regression(seed: int) -> None:
    found = compare(bench_report(seed=0), bench_report(seed=seed))
    assert found.regressions == ()
    assert {pair.verdict for pair in found.pairs} <= {"unchanged", "absent"}
    assert sum(pair.verdict == "unchanged" for pair in found.pairs) > 150


def test_a_row_that_is_30_percent_slower_is_found_and_stands_first() -> None:
    old = latency_section()
    new = made_slower(latency_section(seed=1), 1.3, "stic", "openvino", "int8")
    found = compare(old, new)
    (worst,) = found.regressions
    assert found.pairs[0] is worst
    assert worst.row == "stic, openvino, int8, batch 1"
    assert worst.ratio == pytest.approx(1.3, rel=0.03)
    assert (worst.noise, worst.noise_from) == (0.05, "tolerance")
    rounds = latency_row(new, "stic", "openvino", "int8")["statistics"]["round_medians_ms"]
    assert worst.new == pytest.approx(math.prod(rounds) ** (1 / len(rounds)))
    (back,) = [pair for pair in compare(new, old).pairs if pair.verdict == "faster"]
    assert worst.ratio is not None
    assert back.ratio == pytest.approx(1 / worst.ratio)
    assert compare(new, old).regressions == ()


def test_the_same_30_percent_within_the_noise_is_none() -> None:
    # Torch eager of STIC has rounds that differ by 30 %: its own noise is beyond a change of that size.
    old = latency_section()
    new = made_slower(old, 1.15, "stic", "torch-eager", "fp32")
    pair = pair_of(compare(old, new), "stic, torch-eager, fp32, batch 1")
    assert (pair.verdict, pair.noise_from) == ("unchanged", "rounds")
    assert pair.noise is not None
    assert pair.noise > 0.15


def test_a_change_below_the_tolerance_is_none() -> None:
    old = latency_section()
    new = made_slower(old, 1.04, "stic", "openvino", "int8")
    assert compare(old, new).regressions == ()
    assert len(compare(old, new, tolerance=0.02).regressions) == 1
    assert len(compare(old, made_slower(old, 1.06, "stic", "openvino", "int8")).regressions) == 1
    assert pair_of(compare(new, old), "stic, openvino, int8, batch 1").verdict == "unchanged"


def test_rows_are_sorted_by_the_size_of_the_change() -> None:
    old = latency_section()
    new = made_slower(made_slower(old, 1.2, "tdn", "openvino", "int8"), 1.5, "stic", "openvino", "int8")
    new = made_slower(new, 0.5, "mexpale", "openvino", "int8")
    names = [(pair.row.partition(",")[0], pair.verdict) for pair in compare(old, new).pairs[:3]]
    assert names == [("stic", "slower"), ("tdn", "slower"), ("mexpale", "faster")]


def test_what_was_measured_and_is_missing_now_is_lost() -> None:
    old, new = latency_section(), latency_section()
    for row in new["rows"]:
        if row["network"] == "tdn" and row["runtime"] == "openvino":
            row |= {"status": "failed", "reason": "out of memory", "statistics": None}
    new["rows"] = [row for row in new["rows"] if row["network"] != "stic" or row["runtime"] != "openvino"]
    found = compare(old, new)
    lost = {pair.row: pair.reason for pair in found.regressions}
    assert lost == {
        "tdn, openvino, fp32, batch 1": "failed: out of memory",
        "tdn, openvino, int8, batch 1": "failed: out of memory",
        "stic, openvino, fp32, batch 1": "absent: not in NEW",
        "stic, openvino, int8, batch 1": "absent: not in NEW",
    }
    assert {pair.verdict for pair in found.regressions} == {"lost"}
    back = compare(new, old)
    assert back.regressions == ()
    assert sum(pair.verdict == "found" for pair in back.pairs) == 4


def test_a_section_that_failed_as_a_whole_is_lost() -> None:
    old, new = bench_report(), bench_report()
    new["sections"]["scaling"] = {"status": "timeout", "reason": "stopped after 60 s"}
    del new["sections"]["gru"]
    found = compare(old, new)
    assert {(pair.section, pair.verdict) for pair in found.regressions} == {("scaling", "lost"), ("gru", "lost")}
    assert {pair.reason for pair in found.regressions if pair.section == "scaling"} == {"absent: stopped after 60 s"}


@pytest.mark.parametrize("name", [name for name in SECTIONS if name != "baselines"])
def test_every_section_of_times_is_compared(name: str) -> None:
    old, new = bench_report()["sections"][name], bench_report(slower=1.5)["sections"][name]
    found = compare(old, new)
    measured = [pair for pair in found.pairs if pair.verdict != "absent"]
    slower = [pair for pair in measured if pair.verdict == "slower"]
    # Where single runs are all there is, their spread may hide it.
    assert len(slower) >= 0.9 * len(measured) > 0
    assert compare(new, old).regressions == ()
    assert all(pair.ratio == pytest.approx(1.5, rel=0.1) for pair in slower)


def test_an_archive_is_compared_by_the_study() -> None:
    """Twice as many studies take twice as long: nothing has changed."""
    old, new = bench_report()["sections"]["archive"], bench_report()["sections"]["archive"]
    for section, factor in ((old, 1), (new, 2)):
        section["studies"] *= factor
        for row in section["rows"]:
            if row["seconds"]:
                row["rounds_s"] = [factor * share * row["seconds"] for share in (0.99, 1.0, 1.01, 1.0, 1.0)]
                row["seconds"] *= factor
    found = compare(old, new)
    assert found.regressions == ()
    measured = [pair for pair in found.pairs if pair.verdict == "unchanged"]
    assert len(measured) == 5
    assert all(pair.ratio == pytest.approx(1) for pair in measured)
    one = pair_of(found, "one process, 1 workers, 2 threads each")
    assert one.old == pytest.approx(28 / 16, rel=1e-3)
    assert one.noise_from == "tolerance"


def test_an_archive_in_which_every_study_failed_is_lost() -> None:
    old, new = bench_report()["sections"]["archive"], bench_report()["sections"]["archive"]
    new["rows"][0] |= {"studies_per_hour": None, "failed": 16}
    (lost,) = compare(old, new).regressions
    assert (lost.verdict, lost.reason) == ("lost", "not measured")


def test_a_change_of_unknown_noise_is_none_and_says_so() -> None:
    """One round in OLD and no spread: nobody knows what is noise."""
    old, new = bench_report()["sections"]["archive"], bench_report(slower=2)["sections"]["archive"]
    old["rows"][0]["rounds_s"] = old["rows"][0]["rounds_s"][:1]
    found = compare(old, new)
    pair = pair_of(found, "one process, 1 workers, 2 threads each")
    assert (pair.verdict, pair.noise, pair.noise_from) == ("unchanged", None, "unknown")
    assert pair.ratio == pytest.approx(2)
    assert pair.reason == "its noise is not known"
    assert len(found.regressions) == 4
    # The spread of one run is 0 and says nothing.
    single = latency_section()
    for row in single["rows"]:
        if row["statistics"]:
            row["statistics"] |= {"round_medians_ms": [], "latency_ms": {**row["statistics"]["latency_ms"],
                                                                         "cv_percent": 0.0}}  # fmt: skip
    assert {pair.noise_from for pair in compare(single, single).pairs if pair.ratio} == {"unknown"}


def test_many_rows_share_the_risk() -> None:
    """Bonferroni: with n rows each interval has a confidence of 1 - 0.05 / n; beyond it alone is no change."""
    random = np.random.default_rng(5)
    old, new = latency_section(), latency_section()
    for section in (old, new):
        for row in section["rows"]:
            if row["statistics"]:
                row["statistics"]["round_medians_ms"] = np.exp(0.2 * random.normal(size=6)).tolist()
    found = compare(old, new, tolerance=0)
    judged = [pair for pair in found.pairs if pair.ratio is not None]
    assert found.confidence == pytest.approx(1 - 0.05 / len(judged))
    assert found.to_dict()["settings"] == {"tolerance": 0, "confidence": found.confidence}
    assert found.regressions == ()
    name = "stic, openvino, int8, batch 1"
    rounds = [np.log(latency_row(side, "stic", "openvino", "int8")["statistics"]["round_medians_ms"])
              for side in (new, old)]  # fmt: skip
    interval = ttest_ind(*rounds, equal_var=False).confidence_interval(1 - 0.05 / len(judged))
    noise = pair_of(found, name).noise
    assert noise == pytest.approx(math.exp((interval.high - interval.low) / 2) - 1)
    # At 95 % each, some of these rows of pure noise would be called slower.
    alone = [
        change_of_rounds(*(latency_row(side, *pair.row.split(", ")[:3])["statistics"]["round_medians_ms"]
                           for side in (old, new)))
        for pair in judged
    ]  # fmt: skip
    assert any(change.ratio > 1 + change.noise for change in alone)


def test_identities_tell_all_rows_apart() -> None:
    for name, section in bench_report()["sections"].items():
        rows = list(COMPARABLE[SECTIONS[name].schema](section))
        assert len(comparables_of(section)) == len(rows) > 1


def test_an_auc_has_dropped_where_the_intervals_have_nothing_in_common() -> None:
    old, new = bench_report()["sections"]["baselines"], bench_report()["sections"]["baselines"]
    new["rows"][0]["auc"] = {key: value - 0.05 for key, value in new["rows"][0]["auc"].items()}
    new["rows"][1]["auc"] = {key: value - 0.2 for key, value in new["rows"][1]["auc"].items()}
    found = compare(old, new)
    (worse,) = found.regressions
    assert (worse.row, worse.verdict) == ("four-phase-shared, AUC", "less accurate")
    assert worse.ratio == pytest.approx(-0.2)
    assert [pair.verdict for pair in compare(new, old).pairs][:1] == ["more accurate"]


def test_an_auc_in_int8_that_dropped_or_went_is_told() -> None:
    old, new = bench_report()["sections"]["baselines"], bench_report()["sections"]["baselines"]
    first, second = new["rows"][0], new["rows"][1]
    first["int8"]["auc"] = {key: value - 0.2 for key, value in first["int8"]["auc"].items()}
    second["int8"], second["int8_reason"] = None, "fold 1: no parity"
    found = compare(old, new)
    verdicts = {pair.row: pair.verdict for pair in found.regressions}
    assert verdicts["four-phase, AUC in INT8"] == "less accurate"
    assert set(verdicts) == {"four-phase, AUC in INT8", "four-phase-shared, AUC in INT8"}
    third = new["rows"][2]
    failed = {"network": third["network"], "status": "diverged", "reason": "fold 3"}
    new["rows"] = [*new["rows"][:2], failed, *new["rows"][3:]]
    told = {pair.row: pair.reason for pair in compare(old, new).regressions}
    assert "fold 3" in told[f"{third['network']}, AUC in INT8"]


def test_other_machines_are_refused_unless_asked_for() -> None:
    old, new = bench_report(), bench_report()
    new["machine"] = {**new["machine"], "cpu": {"name": "AMD EPYC", "cores": 2, "usable_cores": 8}}
    with pytest.raises(UsageError, match=r"CPU Intel.* and AMD EPYC; usable cores 2 and 8") as caught:
        compare(old, new)
    assert "--other-machine" in caught.value.hint
    found = compare(old, new, other_machine=True)
    assert found.changed[0].startswith("CPU Intel")


def test_other_threads_are_another_machine() -> None:
    old, new = latency_section(), latency_section()
    new["settings"] = {**new["settings"], "threads": 1}
    with pytest.raises(UsageError, match="threads of latency 2 and 1"):
        compare(old, new)


def test_a_rehearsal_is_never_compared_with_a_measurement() -> None:
    with pytest.raises(UsageError, match="rehearsal"):
        compare(bench_report(quick=True), bench_report(), other_machine=True)
    assert compare(bench_report(quick=True), bench_report(quick=True)).quick


def test_kinds_are_not_mixed() -> None:
    with pytest.raises(UsageError, match=r"OLD is a fourphase.latency/1, NEW a fourphase.gru/1"):
        compare(latency_section(), bench_report()["sections"]["gru"])
    with pytest.raises(InputMissing, match=r"fourphase.doctor cannot be compared"):
        compare({"schema": "fourphase.doctor/1"}, {"schema": "fourphase.doctor/1"})
    with pytest.raises(InputMissing, match="no rows"):
        compare({**latency_section(), "rows": []}, {**latency_section(), "rows": []})


def test_changed_versions_are_said() -> None:
    old, new = latency_section(), latency_section()
    new["machine"] = {**new["machine"], "packages": {**new["machine"]["packages"], "onnxruntime": "1.33.0"}}
    assert compare(old, new).changed == ("onnxruntime 1.32.0 -> 1.33.0",)


def test_changed_settings_and_folds_are_said() -> None:
    old, new = bench_report(), bench_report()
    sections = new["sections"]
    sections["latency"]["settings"] = {**PROTOCOL, "protocol": {**PROTOCOL["protocol"], "rounds": 3}, "notes": ["x"]}
    sections["baselines"]["folds"] = 4
    sections["gru"]["settings"] = {**PROTOCOL, "words": "w" * 99}
    new["machine"] = {**new["machine"], "python": "3.12.1"}
    assert compare(old, new).changed == (
        "Python 3.11.7 -> 3.12.1", "latency: protocol.rounds 8 -> 3", "gru: words differs", "baselines: folds 5 -> 4",
    )  # fmt: skip
    assert compare(old, old).changed == ()


@pytest.mark.parametrize("name", ["end-to-end", "baselines", "preprocess", "archive"])
def test_runs_of_other_studies_are_not_compared(name: str) -> None:
    old, new = bench_report()["sections"][name], bench_report()["sections"][name]
    others: dict[str, Json] = {
        "end-to-end": {"study": {**old.get("study", {}), "files": 999}},
        "baselines": {"phantoms": {**old.get("phantoms", {}), "seed": 1}},
        "preprocess": {"settings": {**PROTOCOL, "study": "the study given"}},
        "archive": {"phantoms": False},
    }
    if name == "preprocess":
        old["settings"] = {**PROTOCOL, "study": "phantom of 4 x 250 slices of 512 x 512"}
    if name == "archive":
        old["phantoms"] = True
    with pytest.raises(UsageError, match=f"{name}: (study|phantoms) ") as caught:
        compare(old, {**new, **others[name]}, other_machine=True)
    assert caught.value.key == "study_differs"
    assert compare(old, old).changed == ()


def test_a_phantoms_bytes_are_not_its_identity() -> None:
    old, new = bench_report()["sections"]["end-to-end"], bench_report()["sections"]["end-to-end"]
    for section, count in ((old, 5), (new, 6)):
        section["study"] |= {"phantom": True, "bytes": count}
    assert compare(old, new).regressions == ()
    for section in (old, new):
        section["study"]["phantom"] = False
    with pytest.raises(UsageError, match="study"):
        compare(old, new)


def test_a_run_that_does_not_say_its_machine_is_refused() -> None:
    old, new = latency_section(), latency_section()
    del old["machine"]
    with pytest.raises(UsageError, match="OLD does not say of which machine it is") as caught:
        compare(old, new)
    assert caught.value.key == "machine_unknown"
    # Two that say nothing are not of one machine.
    with pytest.raises(UsageError, match="OLD and NEW"):
        compare(old, old)
    assert compare(old, old, other_machine=True).changed == (
        "OLD does not say of which machine it is", "NEW does not say of which machine it is",
    )  # fmt: skip


@pytest.mark.parametrize("damage", ["row", "time", "text", "negative"])
def test_rows_that_cannot_be_read_are_no_bug(damage: str) -> None:
    broken = latency_section()
    row = next(row for row in broken["rows"] if row["statistics"])
    if damage == "row":
        del row["network"]
    if damage == "time":
        row["statistics"]["latency_ms"] = {"min": 3.0}
    if damage == "text":
        row["statistics"]["latency_ms"]["p50"] = "fast"
    if damage == "negative":
        row["statistics"]["round_medians_ms"][0] = -1.0
    with pytest.raises(InputMissing, match=r"fourphase\.latency cannot be read") as caught:
        compare(latency_section(), broken)
    assert (caught.value.code, caught.value.key) == (10, "section_malformed")


def test_a_malformed_report_is_no_bug(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(bench_report()))
    for content in ({"schema": "fourphase.bench-report/1"}, {**bench_report(), "sections": [1]}):
        bad.write_text(json.dumps(content))
        with pytest.raises(InputMissing, match=r"bad\.json is no benchmark report"):
            cli.compare(good, bad)


def test_a_section_that_was_ended_as_another_kind_has_no_rows() -> None:
    old, new = bench_report(), bench_report()
    reason = "its result says that it is fourphase.gru/1"
    new["sections"]["scaling"] = {**new["sections"]["gru"], "status": "failed", "reason": reason}
    lost = compare(old, new).regressions
    assert {(pair.section, pair.reason) for pair in lost} == {("scaling", f"absent: {reason}")}


def test_a_full_disk_is_no_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(bench_report()))
    for command in (partial(cli.compare, path, path), partial(cli.render, path, tmp_path / "out")):
        with open("/dev/full", "w") as full:
            monkeypatch.setattr("sys.stdout", full)
            with pytest.raises(OutputNotWritable):
                command()


def run(folder: Path, old: Json, new: Json, *more: str) -> tuple[int, str, str]:
    for name, content in (("old.json", old), ("new.json", new)):
        (folder / name).write_text(json.dumps(content))
    result = CliRunner().invoke(app, ["compare", str(folder / "old.json"), str(folder / "new.json"), *more])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_exits_with_29_on_a_regression(tmp_path: Path) -> None:
    old = bench_report()
    new = bench_report(seed=1)
    new["sections"]["latency"] = made_slower(new["sections"]["latency"], 1.3, "stic", "openvino", "int8")
    code, out, err = run(tmp_path, old, new)
    assert code == 29
    found = json.loads(out.splitlines()[-1])
    assert found["schema"] == "fourphase.compare/1"
    assert found["counts"]["slower"] == 1
    assert found["rows"][0]["verdict"] == "slower"
    assert found["machine"]["cpu"]["usable_cores"] == 2
    assert "1 slower, such as stic, openvino, int8, batch 1 (latency)" in err
    code, out, err = run(tmp_path, old, new, "--json")
    assert code == 29
    assert json.loads(out) == found


def test_what_a_command_printed_can_be_compared(tmp_path: Path) -> None:
    (tmp_path / "printed.txt").write_text("a table\n| of | numbers |\n" + json.dumps(latency_section()) + "\n")
    assert read_json(tmp_path / "printed.txt") == latency_section()
    (tmp_path / "table.txt").write_text("a table\n")
    with pytest.raises(InputMissing, match=r"table.txt is no JSON file"):
        read_json(tmp_path / "table.txt")


def test_the_command_exits_with_0_without_one_and_28_for_accuracy_alone(tmp_path: Path) -> None:
    old, new = bench_report(), bench_report(seed=1)
    code, out, err = run(tmp_path, old, new)
    assert (code, err) == (0, "")
    assert "unchanged" in out
    for row in new["sections"]["baselines"]["rows"]:
        if row["network"] == "four-phase":
            row["auc"] = {"value": 0.6, "low": 0.55, "high": 0.65}
    code, _, err = run(tmp_path, old, new)
    assert code == 28
    assert "1 less accurate, such as four-phase, AUC" in err
