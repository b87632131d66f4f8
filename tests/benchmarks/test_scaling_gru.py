"""The GRU bench: both forms are torch's GRU, a wrong one is caught, and what is not there is a row that says so."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import typer
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from typer.testing import CliRunner

from fourphase.benchmarks.guarded_steps import Outcome
from fourphase.benchmarks.latency.sensors import Watched
from fourphase.benchmarks.latency.statistics import Sample
from fourphase.benchmarks.scaling import gru_bench, gru_engines
from fourphase.benchmarks.scaling.command import gru, gru_step
from fourphase.benchmarks.scaling.gru_bench import QUICK_GRU, run_gru
from fourphase.benchmarks.scaling.gru_engines import EngineBudget, gru_engine
from fourphase.benchmarks.scaling.gru_graphs import FORMS, INPUT, OUTPUT, GruCase, GruGraphs, gru_graphs, why_wrong
from fourphase.benchmarks.scaling.gru_table import TORCH, GruRow, GruTable, loop_over_unrolled, over_torch
from fourphase.runtime import openvino_backend
from fourphase.runtime.errors import EngineBuildFailed, EnvironmentFault, UsageError
from fourphase.runtime.flavour import load_flavour

CPU = (TORCH, "onnxruntime", "openvino")
Floats = NDArray[np.float32]


def by_hand(graphs: GruGraphs) -> NDArray[np.float64]:
    """The last state by the equations of torch's documentation, float64; gates in its order r, z, n."""
    gru = graphs.module.gru
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    w, u, b, c = (gru.get_parameter(name).detach().double().numpy() for name in names)
    state, size = np.zeros(gru.hidden_size), gru.hidden_size
    for step in graphs.sequence[0].astype(np.float64):
        of_input, of_state = w @ step + b, u @ state + c
        r, z = (1 / (1 + np.exp(-(of_input + of_state)[part * size : (part + 1) * size])) for part in (0, 1))
        n = np.tanh(of_input[2 * size :] + r * of_state[2 * size :])
        state = (1 - z) * n + z * state
    return state


@pytest.mark.parametrize("case", [GruCase(3, 8, 16), GruCase(16, 8, 16), GruCase(40, 24, 32)])
def test_both_forms_compute_torchs_gru_at_their_own_size(case: GruCase) -> None:
    graphs = gru_graphs(case)
    expected = by_hand(graphs)
    np.testing.assert_allclose(graphs.reference[0], expected, atol=1e-6)
    for form in FORMS:
        evaluated: Any = ReferenceEvaluator(graphs.models[form]).run([OUTPUT], {INPUT: graphs.sequence})
        found = np.asarray(evaluated[0])
        np.testing.assert_allclose(found[0], expected, atol=1e-5)
    kinds = [{node.op_type for node in graphs.models[form].graph.node} for form in FORMS]
    assert "GRU" in kinds[0]
    assert "GRU" not in kinds[1]
    assert len(graphs.models["unrolled"].graph.node) > 12 * (case.slices - 1)


def test_the_arithmetic_is_that_of_the_matrix_products() -> None:
    module = torch.nn.GRUCell(32, 24)
    values = sum(weight.numel() for weight in (module.weight_ih, module.weight_hh))
    assert GruCase(10, 24, 32).gmac * 1e9 == pytest.approx(10 * values)


def test_a_wrong_state_is_told_apart_from_rounding() -> None:
    reference = np.array([[0.5, -0.25]], dtype=np.float32)
    assert why_wrong(reference + np.float32(1e-6), reference)[1] == ""
    assert "off torch's GRU" in why_wrong(reference + np.float32(1e-3), reference)[1]
    assert "not finite" in why_wrong(reference * np.float32(np.nan), reference)[1]
    assert "shape" in why_wrong(reference[:, :1], reference)[1]


def _swapped_gates(model: onnx.ModelProto) -> onnx.ModelProto:
    """The unrolled graph with the two halves of its first Split of gates exchanged: z and r."""
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    sigmoid = next(node for node in broken.graph.node if node.op_type == "Sigmoid")
    split = next(node for node in broken.graph.node if sigmoid.output[0] in node.input)
    first, second = split.output
    split.output[0], split.output[1] = second, first
    return broken


def test_a_wrong_form_fails_and_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: GruCase) -> GruGraphs:
        graphs = gru_graphs(case)
        return replace(graphs, models=graphs.models | {"unrolled": _swapped_gates(graphs.models["unrolled"])})

    monkeypatch.setattr(gru_bench, "gru_graphs", broken)
    table = run_gru(replace(QUICK_GRU, slices=(4,), runtimes=CPU))
    rows = {(row.runtime, row.form): row for row in table.rows}
    for runtime in CPU[1:]:
        assert rows[runtime, "loop"].status == "ok"
        wrong = rows[runtime, "unrolled"]
        assert (wrong.status, wrong.latency_ms) == ("failed", None)
        assert "off torch's GRU" in wrong.reason
    assert table.ratios() == []


def test_runtimes_that_are_not_there_are_rows_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_flavour(name: str) -> None:
        raise EnvironmentFault(f"{name} is not installed", "install it")

    monkeypatch.setattr(openvino_backend, "is_available", lambda: False)
    monkeypatch.setattr(gru_engines, "load_flavour", no_flavour)
    table = run_gru(replace(QUICK_GRU, slices=(4,)))
    assert len(table.rows) == 9
    for row in table.rows:
        expected = "ok" if row.runtime in (TORCH, "onnxruntime") else "missing"
        assert row.status == expected
        assert bool(row.reason) == (expected == "missing")
        assert (row.latency_ms is None) == (expected == "missing")
    assert {ratio.runtime for ratio in table.ratios()} == {"onnxruntime"}


def test_when_the_time_for_engines_is_spent_the_rest_is_said_not_to_be_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gru_engines, "load_flavour", lambda name: None)
    graphs = gru_graphs(GruCase(3, 8, 16))
    row, candidate = gru_engine(GruRow("tensorrt-rtx", "loop", 3, 8, "?"), graphs, EngineBudget(5, spent_s=6))
    assert candidate is None
    assert (row.status, row.prepare_s) == ("not measured", None)
    assert row.reason == "not built: 6 s went into engines, 5 s were allowed"


@pytest.mark.rtx
def test_without_a_gpu_an_rtx_engine_is_built_and_has_no_latency() -> None:
    pytest.importorskip("tensorrt_rtx")
    if load_flavour("tensorrt-rtx").gpu.device is not None:
        pytest.skip("there is a GPU")
    graphs, budget = gru_graphs(GruCase(3, 8, 16)), EngineBudget(60)
    rows = {}
    for form in FORMS:
        row, candidate = gru_engine(GruRow("tensorrt-rtx", form, 3, 8, "?"), graphs, budget)
        assert candidate is None
        assert (row.status, row.latency_ms) == ("not measured", None)
        assert row.reason.startswith("built, not run")
        assert row.plan_bytes
        rows[form] = row
    assert budget.spent_s >= sum(row.prepare_s or 0 for row in rows.values()) > 0
    assert 0 < (rows["loop"].layers or 0) != rows["unrolled"].layers


def timed_row(runtime: str, form: str, hidden: int, *medians: float) -> GruRow:
    return GruRow(runtime, form, 16, hidden, "ok", round_medians_ms=medians)


def test_ratios_pair_the_rounds_of_one_runtime_and_size() -> None:
    rows = [
        timed_row(TORCH, "loop", 8, 4.0, 4.0, 4.0, 4.0, 4.0),
        timed_row("onnxruntime", "loop", 8, 2.0, 4.0, 6.0, 8.0, 10.0),
        timed_row("onnxruntime", "unrolled", 8, 1.0, 2.0, 3.0, 4.0, 5.0),
        timed_row("onnxruntime", "loop", 9, 1.0, 1.0, 1.0, 1.0, 1.0),
        timed_row("openvino", "unrolled", 8, 1.0, 1.0, 1.0, 1.0, 1.0),
    ]
    (ratio,) = loop_over_unrolled(rows)
    assert (ratio.runtime, ratio.slices, ratio.hidden) == ("onnxruntime", 16, 8)
    assert ratio.ratio.value == pytest.approx(2)
    beside = {(found.runtime, found.form): found.ratio.value for found in over_torch(rows)}
    assert beside["openvino", "unrolled"] == pytest.approx(0.25)
    assert len(beside) == 3


def test_a_candidate_that_raises_while_it_is_timed_is_a_failed_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(loaded: object, graphs: object) -> Callable[[], Sample]:
        def once() -> Sample:
            raise RuntimeError("lost\nand more")

        return once

    monkeypatch.setattr(gru_bench, "_on_cpu", raising)
    table = run_gru(replace(QUICK_GRU, slices=(4,), runtimes=(TORCH, "onnxruntime")))
    statuses = [(row.runtime, row.status, row.reason) for row in table.rows]
    assert statuses == [(TORCH, "ok", ""), *[("onnxruntime", "failed", "RuntimeError: lost")] * 2]


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    made = typer.Typer()
    made.command("gru")(gru)
    made.command("another")(lambda: None)
    return made


def test_the_command_rehearses_draws_and_prints_its_schema(app: typer.Typer, tmp_path: Path) -> None:
    plot = tmp_path / "gru.png"
    options = ["gru", "--quick", "--runtime", ",".join(CPU), "--plot", str(plot)]
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    assert result.exit_code == 0
    *table, last = result.stdout.splitlines()
    assert "rehearsal" in table[-1]
    body = json.loads(last)
    assert (body["schema"], body["quick"], body["settings"]["slices"]) == ("fourphase.gru/1", True, [4, 8])
    assert "cpu" in body["machine"]
    assert [row["form"] for row in body["rows"]] == ["loop"] * 2 + FORMS_OF_TWO_SIZES * 2
    assert all(row["latency_ms"]["p50"] > 0 and row["difference"]["relative"] < 1e-5 for row in body["rows"])
    assert len(body["ratios"]) == 4
    assert all(ratio["ratio"]["rounds"] == 5 for ratio in body["ratios"])
    assert plot.read_bytes().startswith(b"\x89PNG")


FORMS_OF_TWO_SIZES = ["loop", "unrolled"] * 2


def test_json_alone_and_sizes_as_asked(app: typer.Typer) -> None:
    options = ["gru", "--quick", "--json", "--runtime", "onnxruntime", "--slices", "6", "--hidden", "4"]
    body = json.loads(CliRunner().invoke(app, options, catch_exceptions=False).stdout)
    assert [(row["slices"], row["hidden"]) for row in body["rows"]] == [(6, 4), (6, 4)]
    assert body["torch_ratios"] == []


@pytest.mark.parametrize("options", [["--runtime", "cuda"], ["--slices", "1"], ["--slices", "8,8"], ["--hidden", "x"]])
def test_bad_input_is_refused_before_anything_is_measured(app: typer.Typer, options: list[str]) -> None:
    with pytest.raises(UsageError):
        CliRunner().invoke(app, ["gru", "--quick", *options], catch_exceptions=False)


def test_as_a_step_it_saves_what_it_has_after_each_size() -> None:
    saved: list[Any] = []
    outcome = gru_step(saved.append, quick=True, runtimes=["onnxruntime"])
    assert isinstance(outcome, Outcome)
    assert outcome.status == "ok"
    assert [len(part["rows"]) for part in saved] == [2, 4]
    assert outcome.result == saved[-1]
    json.dumps(outcome.result, allow_nan=False)


def test_a_runtime_that_is_not_there_is_missing_whatever_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_flavour(name: str) -> None:
        raise EnvironmentFault(f"{name} is not installed", "install it")

    monkeypatch.setattr(gru_engines, "load_flavour", no_flavour)
    graphs = gru_graphs(GruCase(3, 8, 16))
    row, _ = gru_engine(GruRow("tensorrt", "loop", 3, 8, "?"), graphs, EngineBudget(5, spent_s=6))
    assert (row.status, row.reason) == ("missing", "tensorrt is not installed")


def test_a_build_that_fails_takes_its_time_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any) -> None:
        raise EngineBuildFailed("no kernel", "use another")

    clock = iter([100.0, 107.0])
    monkeypatch.setattr(gru_engines, "load_flavour", lambda name: None)
    monkeypatch.setattr(gru_engines, "build_engine", refused)
    monkeypatch.setattr(gru_engines, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    budget, graphs = EngineBudget(5), gru_graphs(GruCase(3, 8, 16))
    first, _ = gru_engine(GruRow("tensorrt", "loop", 3, 8, "?"), graphs, budget)
    second, _ = gru_engine(GruRow("tensorrt", "unrolled", 3, 8, "?"), graphs, budget)
    assert (first.status, first.reason, budget.spent_s) == ("failed", "no kernel", 7.0)
    assert (second.status, second.reason) == ("not measured", "not built: 7 s went into engines, 5 s were allowed")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out of memory: MemoryError"),
        (RuntimeError("Exception from src/core.cpp:1:\nthe model is odd"), "RuntimeError: the model is odd"),
        (OSError(f"no {tempfile.gettempdir()}/x"), "OSError: no <tmp>/x"),
    ],
)
def test_a_graph_that_does_not_load_is_a_failed_row(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(runtime: str, model: bytes) -> None:
        raise error

    monkeypatch.setattr(gru_bench, "load_graph", failing)
    result = gru_step(lambda record: None, quick=True, runtimes=["onnxruntime"], slices=[4]).result
    assert [(row["status"], row["reason"]) for row in result["rows"]] == [("failed", reason)] * 2


def test_ratios_of_a_size_that_others_disturbed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def watching(*, gpu: bool) -> Iterator[Any]:
        yield SimpleNamespace(result=lambda: Watched(1.0, busy_elsewhere=0.5))

    monkeypatch.setattr(gru_bench, "watch", watching)
    table = run_gru(replace(QUICK_GRU, slices=(4,), runtimes=(TORCH, "onnxruntime")))
    assert {row.busy_elsewhere for row in table.rows} == {0.5}
    for found in (*table.ratios(), *table.torch_ratios()):
        assert found.ratio.value is None
        assert "other processes took 50%" in found.ratio.refused
    assert len(table.torch_ratios()) == 2


def test_a_cpus_runtimes_are_not_set_beside_torch_on_a_gpu() -> None:
    rows = [timed_row(name, "loop", 8, *[1.0] * 5) for name in (TORCH, "onnxruntime", "openvino", "tensorrt")]
    assert [ratio.runtime for ratio in over_torch(rows, "cuda")] == ["tensorrt"]
    assert len(over_torch(rows, "cpu")) == 3
    assert [ratio.runtime for ratio in GruTable(False, {"torch_device": "cuda"}, rows).torch_ratios()] == ["tensorrt"]
