"""The modes that are compared, the figures of their rows in closed form, and the sentences made of them."""

from __future__ import annotations

import importlib.util
import json
import math
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fourphase.benchmarks.archive.dispatch import Turn
from fourphase.benchmarks.archive.findings import explain, fastest
from fourphase.benchmarks.archive.job import Job, Report, Task, Used, failed_report
from fourphase.benchmarks.archive.modes import ALONE, Mode, modes_of, splits
from fourphase.benchmarks.archive.team import Team, chunks
from fourphase.benchmarks.archive.trial import Measured, measure_modes, storage_wait_s
from fourphase.benchmarks.latency.sensors import Watched
from fourphase.runtime.errors import GPU_LOST, EnvironmentFault, FourphaseError, GPUUnavailable, UsageError

STUDIES = 10
TWO = Mode("processes", 2, 1)


def turn(seconds: float, cpu_s: float, workers: int = 1, idle_s: float = 0.0, digest: str = "same") -> Turn:
    """A round of ten studies; `cpu_s` by all workers together, `idle_s` of the first one at the end."""
    reports = tuple(
        Report(number, "done", "case", None, None, (), None, 1.0, {"total": 100.0 * number}, digest, Used(0, 0, 0))
        for number in range(1, STUDIES + 1)
    )
    first = {worker: Used(5.0, 10, 0) for worker in range(workers)}
    last = {worker: Used(5.0 + cpu_s / workers, 3 << 20, 1000) for worker in range(workers)}
    return Turn(1.0, seconds, reports, first, last, {0: idle_s}, (), {"backend": "onnxruntime"})


def failing(round_: Turn, count: int) -> Turn:
    """The round with its first studies failed."""
    error = EnvironmentFault("it broke", "mend it")
    failed = [failed_report(Task(number, "", ""), error, Used(0, 0, 0)) for number in range(1, count + 1)]
    return replace(round_, reports=(*failed, *round_.reports[count:]))


def measured(mode: Mode, seconds: float, cpu_s: float, idle_s: float = 0.0, rounds: int = 5) -> Measured:
    """Rounds that differ by a thousandth, so that there is an interval."""
    turns = [turn(seconds * (1 + 1e-3 * index), cpu_s, mode.workers, idle_s) for index in range(rounds)]
    watched = [Watched(seconds, busy_elsewhere=0.01) for _ in turns]
    return Measured(mode, turns, watched, [0.02] * rounds)


# ---- modes


@pytest.mark.parametrize("cores", [1, 2, 6, 12, 64])
def test_splits_use_every_core(cores: int) -> None:
    found = splits(cores)
    assert all(workers * threads == cores for workers, threads in found)
    assert [workers for workers, _ in found] == [n for n in range(1, cores + 1) if cores / n == cores // n]


def test_each_worker_has_cores_of_its_own() -> None:
    cores = [0, 1, 4, 5, 8, 9]
    for workers, threads in splits(6):
        own = chunks(cores, workers, threads)
        assert [len(one) for one in own] == [threads] * workers
        assert [core for one in own for core in one] == cores


def test_the_reference_is_one_process_on_one_core() -> None:
    assert modes_of(4, None) == [
        ALONE, Mode("one process", 1, 4), Mode("processes", 2, 2), Mode("processes", 4, 1),
    ]  # fmt: skip
    assert modes_of(4, 3) == [ALONE, Mode("one process", 1, 4), Mode("processes", 3, 1)]
    assert modes_of(1, None) == [ALONE]


@pytest.mark.parametrize("workers", [0, 5])
def test_more_workers_than_cores_are_refused(workers: int) -> None:
    with pytest.raises(UsageError, match="4 cores"):
        modes_of(4, workers)


def test_a_ray_that_is_not_installed_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourphase.benchmarks.archive.ray_team.importlib.util.find_spec", lambda _: None)
    mode = modes_of(2, None, "local")[-1]
    assert (mode.name, mode.missing) == ("ray", "the package ray is not installed")
    row = Measured(mode).row(measured(ALONE, 10, 10))
    assert (row["status"], row["reason"]) == ("missing", "the package ray is not installed")
    assert (row["seconds"], row["studies_per_hour"], row["speedup"], row["efficiency"]) == (None, None, None, None)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra [ray]")
@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_a_cluster_that_does_not_answer_is_told_at_once(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    mode = modes_of(2, None, address.format(port=port))[-1]
    assert mode.missing == "Ray does not come up: ConnectionRefusedError"
    with pytest.raises(EnvironmentFault) as caught:
        modes_of(2, None, address.format(port=port), must=True)
    assert caught.value.key == "ray_unreachable"


# ---- figures


def test_a_row_in_closed_form() -> None:
    """Ten studies in 10 s alone; in 6 s by two workers that use 9.6 of the 12 s offered, 1 lost at the end."""
    reference, two = measured(ALONE, 10.0, 9.0), measured(TWO, 6.0, 9.6, idle_s=1.0)
    row = two.row(reference)
    middle = 6.0 * 1.002
    assert row["seconds"] == pytest.approx(middle)
    assert row["studies_per_hour"] == pytest.approx(3600 * 10 / middle)
    assert row["speedup"]["value"] == pytest.approx(10 / 6)
    assert row["efficiency"] == pytest.approx(10 / 6 / 2)
    assert row["busy"] == pytest.approx(9.6 / (2 * middle))
    assert row["cpu_s_per_study"] == pytest.approx(0.96)
    assert row["idle_at_the_end"] == pytest.approx(1.0 / (2 * middle))
    assert (row["peak_bytes"], row["read_bytes"]) == (2 * (3 << 20), 2000)
    assert row["steps_ms"] == {"total": 550.0}
    assert (row["status"], row["same_results"]) == ("ok", True)
    json.dumps(row, allow_nan=False)


def test_the_efficiency_is_the_product_of_what_was_used_and_what_became_slower() -> None:
    """The identity that the sentences rest on."""
    reference, two = measured(ALONE, 10.0, 9.0), measured(TWO, 6.0, 9.6)
    product = (two.busy / reference.busy) * (reference.cpu_s_per_study / two.cpu_s_per_study)
    assert two.row(reference)["efficiency"] == pytest.approx(product)


def test_other_results_than_the_reference_are_said() -> None:
    other = measured(TWO, 6.0, 9.6)
    other.turns[3] = turn(6.0, 9.6, 2, digest="other")
    assert other.row(measured(ALONE, 10, 9))["same_results"] is False


def test_a_study_that_failed_in_any_round_is_no_throughput_and_no_speedup() -> None:
    """Three of ten in the second round: they took no time, and a ratio of seconds would praise the mode for it."""
    two = measured(TWO, 6.0, 9.6)
    two.turns[1] = failing(two.turns[1], 3)
    row = two.row(measured(ALONE, 10.0, 9.0))
    assert (row["status"], row["failed"], row["same_results"]) == ("ok", 3, False)
    assert [one["study"] for one in row["failures"]] == [1, 2, 3]
    assert row["studies_per_hour"] == pytest.approx(3600 * 7 / row["seconds"])
    assert (row["speedup"]["value"], row["efficiency"]) == (None, None)
    assert row["speedup"]["refused"] == "its results differ from one core's"
    assert "no speedup is quoted (its results differ" in " ".join(explain([measured(ALONE, 10.0, 9.0), two]))


def test_other_results_give_no_speedup_whichever_has_them() -> None:
    reference, two = measured(ALONE, 10.0, 9.0), measured(TWO, 6.0, 9.6)
    two.turns[4] = turn(6.0, 9.6, 2, digest="other")
    assert two.speedup(reference).refused == "its results differ from one core's"
    assert measured(TWO, 6.0, 9.6).speedup(reference).value is not None
    reference.turns[2] = turn(10.0, 9.0, digest="other")
    assert measured(TWO, 6.0, 9.6).speedup(reference).refused == "one core's results differ from round to round"


def test_what_fails_on_one_core_too_is_the_same_work() -> None:
    reference, two = measured(ALONE, 10.0, 9.0), measured(TWO, 6.0, 9.6)
    for one in (reference, two):
        one.turns = [failing(round_, 1) for round_ in one.turns]
    row = two.row(reference)
    assert (row["failed"], row["same_results"]) == (1, True)
    assert row["speedup"]["value"] == pytest.approx(10 / 6)
    assert row["studies_per_hour"] == pytest.approx(3600 * 9 / row["seconds"])
    assert fastest([reference, two]) is two


def test_a_mode_without_one_study_done_has_failed() -> None:
    modes = [measured(ALONE, 1.0, 0.1), measured(TWO, 0.5, 0.1)]
    for one in modes:
        one.turns = [failing(round_, STUDIES) for round_ in one.turns]
    row = modes[1].row(modes[0])
    assert (row["status"], row["failed"], row["studies_per_hour"]) == ("failed", STUDIES, None)
    assert row["reason"] == "no study was run to its end; the first: it broke"
    assert row["speedup"]["refused"] == "no study was run to its end"
    assert fastest(modes) is None
    said = explain(modes)
    assert "No way is called the fastest: none ran a study to its end with the results of one core." in said
    json.dumps(row, allow_nan=False)


def test_a_reference_that_drops_out_takes_nothing_with_it() -> None:
    """What both took part in is compared; the other figures stand."""
    reference, two = measured(ALONE, 10.0, 9.0), measured(TWO, 6.0, 9.6, rounds=7)
    two.turns[5:] = [turn(600.0, 9.6, 2)] * 2
    assert two.speedup(reference).value == pytest.approx(10 / 6)
    reference.reason = "no worker is left: the last broke"
    reference.turns = reference.turns[:2]
    row = two.row(reference)
    assert (row["status"], row["speedup"]["rounds"], row["speedup"]["value"]) == ("ok", 2, None)
    assert row["studies_per_hour"] > 0
    said = explain([reference, two])
    assert said == ["One core alone was not measured to the end: no worker is left: the last broke."]
    reference.turns = []
    row = two.row(reference)
    assert (row["status"], row["same_results"]) == ("ok", None)
    assert row["speedup"]["refused"] == "one core alone was not measured"
    assert row["studies_per_hour"] == pytest.approx(3600 * STUDIES / row["seconds"])
    assert fastest([reference, two]) is two


@pytest.mark.parametrize("fault", [EnvironmentFault, GPUUnavailable])
def test_a_mode_that_does_not_come_up_is_out_and_the_others_go_on(fault: type[FourphaseError]) -> None:
    asked: list[str] = []

    def make(mode: Mode, job: Job, cpus: Sequence[int]) -> Team:
        asked.append(mode.name)
        raise fault("there is no room", "make some")

    found = measure_modes([ALONE, TWO], Job("bundle"), [], 2, lambda _: None, make)
    assert asked == ["one process", "processes"]
    assert [one.reason for one in found] == ["there is no room"] * 2


def test_a_lost_gpu_ends_the_measurement() -> None:
    def make(mode: Mode, job: Job, cpus: Sequence[int]) -> Team:
        raise GPUUnavailable("the GPU is lost", "start again", key=GPU_LOST)

    with pytest.raises(GPUUnavailable):
        measure_modes([ALONE, TWO], Job("bundle"), [], 1, lambda _: None, make)


def test_too_few_rounds_give_no_speedup() -> None:
    row = measured(TWO, 6.0, 9.6, rounds=2).row(measured(ALONE, 10.0, 9.0, rounds=2))
    assert row["speedup"]["value"] is None
    assert "2 rounds" in row["speedup"]["refused"]
    assert row["efficiency"] is None
    assert not math.isnan(row["seconds"])


def test_waiting_for_storage_is_the_kernels_count(tmp_path: Path) -> None:
    (tmp_path / "io").write_text("some avg10=0.00 avg60=0.12 avg300=0.62 total=2500000\nfull avg10=0.0 total=7\n")
    assert storage_wait_s(tmp_path / "io") == 2.5
    assert storage_wait_s(tmp_path / "none") is None
    (tmp_path / "io").write_text("some words")
    assert storage_wait_s(tmp_path / "io") is None


# ---- sentences


def test_a_linear_mode_is_called_linear_and_no_loss_is_told() -> None:
    said = explain([measured(ALONE, 10.0, 10.0), measured(TWO, 5.1, 10.0)])
    assert said[0] == (
        "2 processes, 1 core each: 1.96 times one core (1.96 to 1.96), 98% of what 2 cores could give: linear."
    )
    assert not any("processor time" in one or "uses its cores" in one for one in said)


def test_slower_work_is_told_apart_from_unused_cores() -> None:
    reference = measured(ALONE, 10.0, 10.0)
    slower = " ".join(explain([reference, measured(TWO, 7.0, 14.0)]))
    assert "not linear" in slower
    assert "costs 1.40 times the processor time" in slower
    assert "uses its cores" not in slower
    unused = " ".join(explain([reference, measured(TWO, 8.0, 10.0, idle_s=4.0)]))
    assert "not linear" in unused
    assert "costs" not in unused
    assert "uses its cores 62% of the time" in unused
    assert "25% lost; something waited for storage: 2% of the time" in unused


def test_what_one_thread_does_is_told_of_a_process_with_several() -> None:
    said = " ".join(explain([measured(ALONE, 10.0, 10.0), measured(Mode("one process", 1, 2), 8.0, 10.0)]))
    assert "the rest lies in steps that one thread does" in said


def test_waiting_that_the_kernel_does_not_count_is_not_told() -> None:
    two = measured(TWO, 8.0, 10.0, idle_s=4.0)
    two.reading = [None] * 5
    assert "waited for storage: not to be told here" in " ".join(explain([measured(ALONE, 10.0, 10.0), two]))


def test_the_fastest_is_named_and_the_second_beside_it() -> None:
    found = [measured(ALONE, 10.0, 10.0), measured(Mode("one process", 1, 2), 6.0, 10.0), measured(TWO, 5.0, 10.0)]
    said = explain(found)
    assert fastest(found) is found[2]
    assert "The fastest on this machine: 2 processes, 1 core each, 7186 studies an hour." in said
    assert "one process, 2 cores takes 1.20 times as long (1.20 to 1.20)." in said


def test_a_mode_that_fails_or_differs_is_never_the_fastest() -> None:
    wide = Mode("one process", 1, 2)
    failed, other = measured(TWO, 2.0, 9.6), measured(wide, 3.0, 9.6)
    failed.turns[0] = failing(failed.turns[0], 1)
    other.turns = [turn(3.0, 9.6, digest="other") for _ in other.turns]
    sound = measured(Mode("processes", 4, 1), 5.0, 9.6)
    found = [measured(ALONE, 10.0, 9.0), failed, other, sound]
    assert fastest(found) is sound
    told = [one for one in explain(found) if one.startswith(("The fastest", "one process, 1 core takes"))]
    assert len(told) == 2, "and it is the reference that stands second"
    assert "4 processes" in told[0]


def test_one_core_that_fails_where_the_others_do_not_is_no_measure_of_them() -> None:
    reference, two = measured(ALONE, 10.0, 9.0), measured(TWO, 6.0, 9.6)
    reference.turns = [failing(round_, 1) for round_ in reference.turns]
    assert fastest([reference, two]) is None


def test_why_nothing_stands_beside_one_core_is_said_as_it_is() -> None:
    alone, ray = measured(ALONE, 10.0, 10.0), Measured(Mode("ray", 1, 1, "local", "the package ray is not installed"))
    for found in ([alone], [alone, ray]):
        assert "There is one core: nothing can run beside anything." in explain(found)
    said = explain([alone, Measured(TWO, reason="no worker is left: the last broke"), ray])
    assert said == ["No other way than one core alone was measured to the end: the rows say why."]


def test_ray_is_not_the_fastest_on_this_machine() -> None:
    ray = measured(Mode("ray", 2, 1, "local"), 4.0, 10.0)
    found = [measured(ALONE, 10.0, 10.0), measured(TWO, 5.0, 10.0), ray]
    assert fastest(found) is found[1]


def test_a_noisy_mode_has_no_speedup_in_words_either() -> None:
    noisy = Measured(TWO, [turn(seconds, 9.6, 2) for seconds in (4.0, 9.0, 5.0, 8.0, 6.0)])
    said = explain([measured(ALONE, 10.0, 10.0), noisy])
    assert said[0].startswith("2 processes, 1 core each: no speedup is quoted (noisy")


def test_busy_neighbours_are_told() -> None:
    two = measured(TWO, 5.0, 10.0)
    two.watched = [replace(one, busy_elsewhere=0.3) for one in two.watched]
    reference = measured(ALONE, 10.0, 10.0)
    assert not any("Other programs" in one for one in explain([reference, measured(TWO, 5.0, 10.0)]))
    reference.watched = two.watched
    assert "Other programs took 30% of the cores meanwhile: the figures are too low." in explain([reference, two])


def test_without_a_reference_there_is_nothing_to_explain() -> None:
    lost = Measured(ALONE, reason="no worker is left: the last broke")
    assert explain([lost, measured(TWO, 5.0, 10.0)]) == [
        "One core alone was not measured: no worker is left: the last broke."
    ]
    assert lost.row(lost)["status"] == "failed"
