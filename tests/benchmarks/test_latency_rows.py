"""Groups, rows and sentences by hand: no process is started and nothing is timed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fourphase.benchmarks.latency.candidate import Candidate, Task
from fourphase.benchmarks.latency.groups import SPARED_BYTES, Group, group_pairs, network_groups, parts, runtime_groups
from fourphase.benchmarks.latency.rows import measured_row, merged_watches, pairs_of
from fourphase.benchmarks.latency.statistics import Sample
from fourphase.benchmarks.latency.tables import fastest_by_batch, other_devices, pair_sentences, row_notes, way_of
from fourphase.benchmarks.latency.turns import Played, PlayedGroup, busiest
from fourphase.benchmarks.latency.workers import Started, Turn, WorkerFailed

EAGER, ORT, ORT8, OPEN8 = (
    Candidate("four-phase", runtime, precision)
    for runtime, precision in (
        ("torch-eager", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "int8"),
    )
)  # fmt: skip
STIC, TDN = Candidate("stic", "onnxruntime", "fp32"), Candidate("tdn", "onnxruntime", "fp32")
GIB = 1 << 30
LOGITS = {"logits": np.array([[1.0, 2.0]], np.float32)}


def watched(**keys: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"energy_j": {}, "temperature_c": {}, "clock_mhz": {}, "throttled": {}}
    return {"seconds": 1.0, **empty, "busy_elsewhere": None, "notes": [], **keys}


def turn(*times_ms: float, waited: tuple[float, float] = (1.0, 0.0), **keys: Any) -> Turn:
    samples = tuple(Sample(one) for one in times_ms)
    return Turn(
        samples, sum(times_ms) / 1e3, watched(**keys), {"host_peak_bytes": 5, "device_peak_bytes": None}, waited
    )


def played(*times_ms: float, **keys: Any) -> Played:
    """One turn per time."""
    started = Started(2.5, {"logits": [[1.0, 2.0]]}, {"host_peak_bytes": 7, "device_peak_bytes": None}, "")
    return Played(started, [turn(one, **keys) for one in times_ms])


def test_groups_are_all_ways_of_a_network_then_all_networks_of_a_way() -> None:
    larger = Candidate("stic", "onnxruntime", "fp32", 4)
    everything = [EAGER, ORT, ORT8, STIC, TDN, larger]
    assert [group.candidates for group in network_groups(everything)] == [
        (EAGER, ORT, ORT8), (STIC,), (TDN,), (larger,),
    ]  # fmt: skip
    (group,) = runtime_groups(everything)  # batch 4 and int8 have one network: nothing to compare
    assert (group.kind, group.candidates, group.anchor) == ("networks", (ORT, STIC, TDN), ORT)


def test_a_group_that_memory_does_not_hold_is_divided_and_each_part_has_the_anchor() -> None:
    group = Group("networks", (STIC, TDN, ORT, Candidate("mexpale", "onnxruntime", "fp32")))
    need = {"four-phase": 3 * GIB, "stic": 2 * GIB, "tdn": 2 * GIB, "mexpale": 1 * GIB}

    def divided(available: int) -> list[list[str]]:
        found = parts(group, lambda one: need[one.network], available)
        return [[one.network for one in part] for part in found]

    whole = 8 * GIB + SPARED_BYTES
    assert divided(whole) == [["four-phase", "stic", "tdn", "mexpale"]]
    assert divided(whole - 1) == [["four-phase", "stic", "tdn"], ["four-phase", "mexpale"]]
    # Even what does not fit beside the anchor is tried.
    assert divided(0) == [["four-phase", "stic"], ["four-phase", "tdn"], ["four-phase", "mexpale"]]


def test_pairs_of_a_network_and_of_a_runtime() -> None:
    ways = Group("runtimes", (EAGER, ORT, ORT8, OPEN8))
    assert group_pairs(ways, ways.candidates) == [
        (EAGER, ORT, "runtimes"), (EAGER, ORT8, "runtimes"), (EAGER, OPEN8, "runtimes"),
        (ORT, ORT8, "precisions"), (ORT, OPEN8, "runtimes"),
    ]  # fmt: skip
    # Without eager the first that was measured takes its place, and no pair is there twice.
    assert group_pairs(ways, (ORT, OPEN8)) == [(ORT, OPEN8, "runtimes")]
    assert group_pairs(ways, ()) == []
    networks = Group("networks", (STIC, ORT, TDN))
    assert group_pairs(networks, (STIC, ORT, TDN)) == [(STIC, ORT, "networks"), (TDN, ORT, "networks")]


def test_a_row_is_of_all_groups_and_says_when_they_differ() -> None:
    games = [played(10, 11, 12, energy_j={"package": 2.0}), played(20, 21, 22, energy_j={"package": 4.0})]
    row = measured_row(Candidate("stic", "onnxruntime", "fp32", 2), games, LOGITS)
    assert row["statistics"]["latency_ms"]["mean"] == pytest.approx(16)
    assert row["statistics"]["studies_per_second"] == pytest.approx(2 * 6 / 0.096)
    assert row["energy"] == {"package": pytest.approx(18 / 12)}  # 3 x 2 J and 3 x 4 J for 6 inferences of 2 studies
    assert row["drift"] == "its groups' medians differ: 11, 21 ms"
    assert (row["load_s"], row["memory"]["host_peak_bytes"], row["difference"]["max_abs"]) == (2.5, 7, 0.0)
    assert measured_row(ORT, [played(10, 10), played(10.9, 10.9)], LOGITS)["drift"] == ""
    # Other outputs than the reference has cannot be compared.
    assert measured_row(ORT, games, {**LOGITS, "phase_logits": LOGITS["logits"]})["difference"] is None


def test_a_worker_that_does_not_sleep_is_told_of() -> None:
    assert measured_row(ORT, [played(1, 1, waited=(10.0, 0.1))], LOGITS)["note"] == ""
    row = measured_row(ORT, [played(1, 1, waited=(10.0, 5.0))], LOGITS)
    assert row["idle_cpu"] == pytest.approx(0.5)
    assert "50% of a core" in row["note"]


def test_watches_are_added_up() -> None:
    one = watched(seconds=1.0, energy_j={"a": 1.0, "b": 1.0}, temperature_c={"x": 50.0}, clock_mhz={"cpu": [1, 3]},
                  throttled={"t": False}, busy_elsewhere=0.2, notes=["n"])  # fmt: skip
    two = watched(seconds=3.0, energy_j={"a": 2.0}, temperature_c={"x": 60.0}, clock_mhz={"cpu": [2, 4]},
                  throttled={"t": True}, busy_elsewhere=0.4, notes=["n"])  # fmt: skip
    assert merged_watches([one, two]) == {
        "seconds": 4.0, "energy_j": {"a": 3.0}, "temperature_c": {"x": 60.0}, "clock_mhz": {"cpu": [1, 4]},
        "throttled": {"t": True}, "busy_elsewhere": pytest.approx(0.35), "notes": ["n"],
    }  # fmt: skip


@pytest.mark.parametrize(("busy", "refused"), [(None, False), (0.15, False), (0.16, True)])
def test_no_ratio_of_a_group_that_others_disturbed(busy: float | None, refused: bool) -> None:
    games = {EAGER: played(20, 20, 20, 20, 20), ORT: played(10, 10, 10, 10, 10)}
    (pair,) = pairs_of(Group("runtimes", (EAGER, ORT)), PlayedGroup(games, busy))
    assert pair["ratio"]["low"] == pytest.approx(2)
    assert (pair["ratio"]["value"] is None) == refused
    assert ("16% of the cores' time" in pair["ratio"]["refused"]) == refused


def sentence(a: Candidate, b: Candidate, kind: str, value: float | None, low: float, high: float) -> str:
    ratio = {"value": value, "low": low, "high": high, "rounds": 8, "refused": "noisy"}
    return pair_sentences([{"a": a.to_dict(), "b": b.to_dict(), "kind": kind, "ratio": ratio}])[0]


def test_ratios_in_words_the_slower_one_first() -> None:
    assert sentence(STIC, ORT, "networks", 1.9, 1.8, 2.0) == (
        "stic takes 1.90 (1.80 to 2.00) times as long as four-phase in onnxruntime fp32"
    )
    assert sentence(STIC, ORT, "networks", 0.5, 0.4, 0.8) == (
        "four-phase takes 2.00 (1.25 to 2.50) times as long as stic in onnxruntime fp32"
    )
    assert sentence(EAGER, OPEN8, "runtimes", 3.0, 2.9, 3.1) == (
        "four-phase in torch-eager fp32 takes 3.00 (2.90 to 3.10) times as long as openvino int8"
    )
    assert sentence(ORT, ORT8, "precisions", 0.5, 0.4, 0.8) == (
        "four-phase in onnxruntime int8 takes 2.00 (1.25 to 2.50) times as long as onnxruntime fp32"
    )
    assert "take the same time" in sentence(STIC, ORT, "networks", 1.01, 0.99, 1.03)
    assert sentence(STIC, ORT, "networks", None, 1, 2) == "stic and four-phase in onnxruntime fp32: no ratio, noisy"


def test_a_task_survives_json() -> None:
    task = Task("module", "openvino", "int8", 2, "cpu", "bundle", network="stic", quick=True, threads=3)
    assert Task.from_dict(task.to_dict()) == task


def answering(*logits: float, name: str = "logits") -> Played:
    """A candidate that says this in place of (1, 2)."""
    game = played(10, 10, 10, 10, 10)
    game.started = Started(2.5, {name: [list(logits)]}, {"host_peak_bytes": 7, "device_peak_bytes": None}, "")
    return game


@pytest.mark.parametrize(
    ("precision", "game", "word"),
    [
        ("fp32", answering(1.0, 2.0019), ""),
        ("fp32", answering(1.0, 2.0021), "off torch FP32 by 1.0e-03"),
        ("int8", answering(1.0, 1.5), ""),  # what it may lose, its golden outputs say
        ("int8", answering(1.0, math.nan), "not finite"),
        ("fp16", answering(1.0, 2.0, 3.0), "other shapes"),
        ("fp32", answering(1.0, 2.0, name="scores"), "other outputs than the reference"),
    ],
)
def test_a_wrong_answer_is_a_failed_row_and_in_no_pair(precision: str, game: Played, word: str) -> None:
    candidate = Candidate("four-phase", "onnxruntime", precision)
    row = measured_row(candidate, [game], LOGITS)
    assert row["status"] == ("failed" if word else "ok")
    assert word in row["reason"]
    assert bool(row["reason"]) == bool(word)
    assert row["statistics"] is not None
    games = {EAGER: played(20, 20, 20, 20, 20), candidate: game}
    wrong = [candidate] if word else []
    assert len(pairs_of(Group("runtimes", tuple(games)), PlayedGroup(games, None), wrong)) == (0 if word else 1)


def test_what_went_wrong_first_is_the_reason() -> None:
    game = answering(math.nan, 0.0)
    game.failed = WorkerFailed("crashed: ended by SIGSEGV", "crash")
    assert measured_row(ORT, [game], LOGITS)["reason"] == "crashed: ended by SIGSEGV"


def test_fp16_in_name_only_has_no_ratio_of_precisions() -> None:
    """ONNX Runtime and OpenVINO compute it in FP32 on a CPU; PyTorch does not."""
    names = ("onnxruntime", "torch-eager", "openvino")
    half, torch16, open16 = (Candidate("four-phase", name, "fp16") for name in names)
    ways = Group("runtimes", (EAGER, torch16, ORT, half, ORT8, open16))
    found = group_pairs(ways, ways.candidates)
    kinds = {(a.runtime, a.precision, b.runtime, b.precision): kind for a, b, kind in found}
    assert kinds["torch-eager", "fp32", "torch-eager", "fp16"] == "precisions"
    assert kinds["onnxruntime", "fp32", "onnxruntime", "int8"] == "precisions"
    assert kinds["torch-eager", "fp32", "onnxruntime", "fp16"] == "runtimes"
    assert ("onnxruntime", "fp32", "onnxruntime", "fp16") not in kinds
    assert group_pairs(Group("runtimes", (ORT, half)), (ORT, half)) == []


def test_others_are_as_busy_as_on_the_cores_of_the_workers() -> None:
    """One of 16 cores is a small share of the machine and all of a worker's."""
    games = [played(1, 1, 1, busy_elsewhere=share) for share in (0.5, 0.4, None)]
    assert busiest(games, 0.03) == pytest.approx(0.45)
    assert busiest(games, 0.6) == 0.6
    assert busiest([played(1, 1)], 0.2) == 0.2
    assert busiest([played(1, 1)], None) is None


def shown(runtime: str, p50: float, batch: int = 1, status: str = "ok", **keys: Any) -> dict[str, Any]:
    head = {"network": "n", "runtime": runtime, "precision": "fp32", "batch": batch, "status": status}
    return {**head, "statistics": {"latency_ms": {"p50": p50}}, "drift": "", "note": "", "reason": "r", **keys}


def test_the_fastest_is_one_of_its_batch_that_is_right() -> None:
    rows = [shown("a", 3.0), shown("b", 2.0), shown("c", 1.0, status="failed"), shown("a", 9.0, batch=4)]
    assert fastest_by_batch(rows) == {1: 2.0, 4: 9.0}


def test_who_runs_elsewhere_is_marked() -> None:
    rows = [shown("torch-eager", 1.0, device="cuda"), shown("onnxruntime", 9.0, device="cpu", note="said")]
    devices = other_devices({"rows": rows, "settings": {"device": "cuda"}})
    assert [way_of(row, devices) for row in rows] == ["torch-eager fp32", "onnxruntime fp32 on cpu"]
    assert row_notes(rows, devices) == ["n in onnxruntime fp32 on cpu: said"]
    ratio = {"value": 2.0, "low": 1.9, "high": 2.1, "rounds": 8, "refused": ""}
    pair = {"a": ORT.to_dict(), "b": EAGER.to_dict(), "kind": "runtimes", "ratio": ratio}
    assert "in onnxruntime fp32 on cpu takes" in pair_sentences([pair], devices)[0]
    # A report of an earlier version.
    assert other_devices({"rows": [shown("onnxruntime", 9.0)], "settings": {"device": "cuda"}}) == {}
