"""The scaling bench: resized graphs are still the network, points have processes of their own, failures are rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
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
from onnx.reference import ReferenceEvaluator
from torch import nn
from typer.testing import CliRunner

from fourphase.benchmarks.latency.limits import Cost
from fourphase.benchmarks.latency.sensors import Watched
from fourphase.benchmarks.scaling import command, scaling_bench
from fourphase.benchmarks.scaling.apart import Apart, ApartFailed
from fourphase.benchmarks.scaling.command import scaling, scaling_step
from fourphase.benchmarks.scaling.graphs import exported, resized
from fourphase.benchmarks.scaling.models import SizedNetwork, sized_network
from fourphase.benchmarks.scaling.plot import plot_scaling
from fourphase.benchmarks.scaling.scaling_bench import ScalingOptions, run_scaling
from fourphase.benchmarks.scaling.sweeps import FULL, KINDS, QUICK, Point, ScalingTable, Size, SweepResult
from fourphase.benchmarks.scaling.worker import example_input
from fourphase.runtime import openvino_backend
from fourphase.runtime.errors import OutputNotWritable, UsageError

THEIRS = "resnet3d-18-medicalnet"
TINY = ScalingOptions(networks=(THEIRS,), kinds=("batch",), rounds=2, round_seconds=0.0, quick=True)


class Small(nn.Module):
    """(B, P, T, C, H, W) -> (B, 2), with T, H and W written into shapes, as networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(20, 2)

    def forward(self, study: torch.Tensor) -> torch.Tensor:
        count, phases, slices = study.shape[:3]
        maps = torch.relu(self.conv(study.reshape(-1, *study.shape[3:])))
        joined = maps.mean(dim=(2, 3)).reshape(count, phases, slices, 5).permute(0, 2, 1, 3)
        logits: torch.Tensor = self.head(joined.reshape(count, slices, 20)).amax(dim=1)
        return logits


@pytest.fixture(scope="module")
def small() -> SizedNetwork:
    torch.manual_seed(0)
    module = Small().eval()
    return SizedNetwork(module, ("logits",), exported(module, torch.zeros(2, 4, 14, 3, 46, 62), "study", "logits"))


@pytest.mark.parametrize("size", [Size(3, 8, 1, 1), Size(20, 32, 2, 1), Size(14, 62, 1, 1)])
def test_a_resized_graph_computes_the_module_at_that_size(small: SizedNetwork, size: Size, tmp_path: Path) -> None:
    small.write(size, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    evaluated: Any = ReferenceEvaluator(model).run(None, {"study": example_input(size.shape())})
    found = np.asarray(evaluated[0])
    np.testing.assert_allclose(found, small.reference(size)["logits"], atol=1e-5)
    assert found.shape == (size.batch, 2)


def test_only_sizes_change_and_the_graph_given_stays(small: SizedNetwork) -> None:
    before = small.model.SerializeToString()
    changed = resized(small.model, {14: 7, 46: 32, 62: 32})
    assert small.model.SerializeToString() == before
    dims = changed.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims[1:]] == [4, 7, 3, 32, 32]
    weights = {value.name: value for value in small.model.graph.initializer}
    kept = [value for value in changed.graph.initializer if value.data_type == onnx.TensorProto.FLOAT]
    assert len(kept) == 4
    assert all(value == weights[value.name] for value in kept)


def test_cost_counts_one_study_at_its_size(small: SizedNetwork) -> None:
    def macs(size: Size) -> int:
        return 4 * size.slices * size.crop**2 * 27 * 5 + size.slices * 20 * 2

    for size in (Size(3, 8, 1, 1), Size(5, 16, 4, 1)):
        assert small.cost(size).gmac * 1e9 == pytest.approx(macs(size))


def use(monkeypatch: pytest.MonkeyPatch, network: SizedNetwork) -> None:
    monkeypatch.setattr(scaling_bench, "sized_network", lambda name, width: network)


def test_points_take_turns_and_tell_their_memory(small: SizedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, small)
    turns: list[int] = []
    run = Apart.run

    def recorded(self: Apart, count: int) -> list[float]:
        turns.append(len(next(iter(self.outputs.values()))))  # the batch
        return run(self, count)

    monkeypatch.setattr(Apart, "run", recorded)
    saved: list[ScalingTable] = []
    table = run_scaling(TINY, saved.append)
    assert turns == [1, 2, 4] * 2
    assert saved == [table]
    (sweep,) = table.sweeps
    assert [point.x for point in sweep.points] == [1, 2, 4]
    for point in sweep.points:
        assert (point.status, len(point.round_medians_ms)) == ("ok", 2)
        assert point.latency_ms is not None
        assert point.latency_ms["min"] > 0
        assert point.difference is not None
        assert point.difference["relative"] < 1e-5
        # An interpreter with ONNX Runtime and no torch.
        assert 3e7 < (point.peak_bytes or 0) < 3e8
        assert point.gmac == pytest.approx(point.x * (small.cost(Size(8, 32, 1, 4)).gmac))
    assert sweep.law()[0] is None


def test_peak_memory_holds_the_input_of_its_own_size_only(small: SizedNetwork, tmp_path: Path) -> None:
    path, peaks = tmp_path / "model.onnx", []
    for size in (Size(8, 32, 1, 1), Size(64, 128, 1, 1), Size(8, 32, 1, 1)):
        small.write(size, path)
        with Apart("onnxruntime", path, "study", size.shape()) as process:
            peaks.append(process.peak_bytes)
    assert peaks[1] - peaks[0] > 4 * np.prod(Size(64, 128, 1, 1).shape())
    assert abs(peaks[2] - peaks[0]) < 2e7


def test_a_graph_that_is_not_the_network_fails_and_is_not_timed(
    small: SizedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    use(monkeypatch, replace(small, module=Small().eval()))
    (sweep,) = run_scaling(TINY).sweeps
    for point in sweep.points:
        assert (point.status, point.latency_ms) == ("failed", None)
        assert "off torch by" in point.reason
    assert sweep.law() == (None, "0 points, a fit needs 3")


def test_a_point_that_ends_its_process_is_a_failed_row(small: SizedNetwork, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ApartFailed, match=r"protobuf|model"):
        Apart("onnxruntime", path, "study", (1, 4, 3, 3, 8, 8))
    size = Size(3, 8, 1, 1)
    small.write(size, path)
    with Apart("onnxruntime", path, "study", size.shape()) as process:
        assert len(process.run(3)) == 3
        process._process.kill()
        with pytest.raises(ApartFailed, match="SIGKILL"):
            process.run(1)


def test_a_process_lost_between_rounds_leaves_the_other_points(
    small: SizedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, small)
    run = Apart.run

    def lost(self: Apart, count: int) -> list[float]:
        if len(self.outputs["logits"]) == 2:
            self._process.kill()
        return run(self, count)

    monkeypatch.setattr(Apart, "run", lost)
    (sweep,) = run_scaling(TINY).sweeps
    assert [point.status for point in sweep.points] == ["ok", "failed", "ok"]
    assert "SIGKILL" in sweep.points[1].reason


def test_what_may_not_fit_into_memory_is_not_tried(small: SizedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, small)
    monkeypatch.setattr(scaling_bench, "_available_bytes", lambda: 1000)
    (sweep,) = run_scaling(TINY).sweeps
    assert [point.status for point in sweep.points] == ["not measured"] * 3
    assert "may need 0.0 GB of memory" in sweep.points[0].reason
    monkeypatch.setattr(scaling_bench, "_available_bytes", lambda: 4 * (4 * 10 + 3 * (5 + 7)))
    assert scaling_bench._too_large(Cost(1.0, 10, 5, 7), 3) == ""
    assert scaling_bench._too_large(Cost(1.0, 10, 5, 7), 4) != ""


def test_a_runtime_that_is_not_installed_is_a_row(small: SizedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, small)
    monkeypatch.setattr(openvino_backend, "is_available", lambda: False)
    ours, theirs = run_scaling(replace(TINY, runtimes=("onnxruntime", "openvino"))).sweeps
    assert [point.status for point in ours.points] == ["ok"] * 3
    assert [point.status for point in theirs.points] == ["missing"] * 3
    assert all("openvino" in point.reason and point.latency_ms is None for point in theirs.points)


def test_sweeps_vary_one_thing_and_hold_the_rest() -> None:
    for sweeps in (FULL, QUICK):
        assert tuple(sweeps) == KINDS
        for kind, sweep in sweeps.items():
            assert kind == sweep.what
            sizes = [sweep.size(x) for x in sweep.xs]
            assert [getattr(size, kind) for size in sizes] == list(sweep.xs)
            assert len({replace(size, **{kind: 1}) for size in sizes}) == 1


@pytest.mark.slow
def test_our_network_is_itself_at_other_sizes(tmp_path: Path) -> None:
    network = sized_network("four-phase", 4)
    for size in (Size(8, 32, 2, 4), Size(24, 48, 1, 4)):
        network.write(size, tmp_path / "model.onnx")
        with Apart("onnxruntime", tmp_path / "model.onnx", "study", size.shape()) as process:
            expected = network.reference(size)
            assert list(expected) == ["logits", "phase_logits"]
            for name, value in expected.items():
                np.testing.assert_allclose(process.outputs[name], value, rtol=1e-3, atol=1e-4 * np.abs(value).max())


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    made = typer.Typer()
    made.command("scaling")(scaling)
    made.command("another")(lambda: None)
    return made


def test_the_command_rehearses_draws_and_prints_its_schema(app: typer.Typer, tmp_path: Path) -> None:
    plot = tmp_path / "scaling.png"
    options = ["--network", THEIRS, "--what", "batch", "--rounds", "2", "--plot", str(plot)]
    result = CliRunner().invoke(app, ["scaling", "--quick", *options], catch_exceptions=False)
    assert result.exit_code == 0
    *table, last = result.stdout.splitlines()
    assert "rehearsal" in table[-1]
    body = json.loads(last)
    assert (body["schema"], body["quick"]) == ("fourphase.scaling/1", True)
    assert "cpu" in body["machine"]
    assert body["settings"]["protocol"]["rounds"] == 2
    (sweep,) = body["sweeps"]
    assert (sweep["what"], sweep["network"], sweep["runtime"], sweep["fit"]) == ("batch", THEIRS, "onnxruntime", None)
    assert "2 rounds" in sweep["reason"]
    assert [point["x"] for point in sweep["points"]] == list(QUICK["batch"].xs)
    assert all(point["status"] == "ok" and point["difference"]["relative"] < 1e-3 for point in sweep["points"])
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("options", [["--runtime", "cuda"], ["--network", "stic"], ["--what", "time"]])
def test_bad_input_is_refused_before_anything_is_measured(app: typer.Typer, options: list[str]) -> None:
    with pytest.raises(UsageError):
        CliRunner().invoke(app, ["scaling", "--quick", *options], catch_exceptions=False)


@pytest.mark.parametrize("name", ["file/x.png", "x.pdf"])
def test_a_plot_that_cannot_be_written_is_refused_first(app: typer.Typer, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError if name == "x.pdf" else OutputNotWritable):
        CliRunner().invoke(app, ["scaling", "--plot", str(tmp_path / name)], catch_exceptions=False)


def test_as_a_step_it_gives_what_the_command_prints(small: SizedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, small)
    saved: list[Any] = []
    outcome = scaling_step(saved.append, quick=True, networks=[THEIRS], kinds=["batch", "slices"], rounds=1)
    assert outcome.status == "ok"
    assert [len(part["sweeps"]) for part in saved] == [1, 2]
    assert outcome.result == saved[-1]
    json.dumps(outcome.result, allow_nan=False)


def test_the_plot_draws_fits_and_says_when_it_is_a_rehearsal(tmp_path: Path) -> None:
    sweep = FULL["slices"]
    points = tuple(Point(x, "ok", "", {"p50": 2.0 * x}, (2.0 * x,) * 5, x / 10) for x in sweep.xs)
    result = SweepResult(sweep, "four-phase", "onnxruntime", points)
    pictures = []
    for quick in (False, True):
        plot_scaling(ScalingTable(quick, {"threads": 2}, [result]), tmp_path / "plot.png")
        pictures.append((tmp_path / "plot.png").read_bytes())
    assert pictures[0] != pictures[1]


def test_a_graph_that_hangs_is_ended(small: SizedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = Size(3, 8, 1, 1)
    small.write(size, tmp_path / "model.onnx")
    with pytest.raises(ApartFailed, match=r"no answer within 0\.01 s"):
        Apart("onnxruntime", tmp_path / "model.onnx", "study", size.shape(), limit_s=0.01)
    with Apart("onnxruntime", tmp_path / "model.onnx", "study", size.shape()) as process:
        process._limit_s = 0.01
        with pytest.raises(ApartFailed, match="no answer"):
            process.run(1_000_000)
        assert process._process.wait(timeout=30) == -9


@pytest.mark.parametrize(("busy", "fitted"), [(None, True), (0.15, True), (0.4, False)])
def test_a_sweep_that_others_disturbed_has_no_fit(busy: float | None, fitted: bool) -> None:
    sweep = FULL["slices"]
    points = tuple(Point(x, "ok", "", {"p50": 2.0 * x}, (2.0 * x,) * 5, busy_elsewhere=busy) for x in sweep.xs)
    law, reason = SweepResult(sweep, "four-phase", "onnxruntime", points).law()
    assert (law is not None) == fitted
    assert ("slices 16 is not steady: other processes took 40%" in reason) != fitted


def test_a_sweep_is_watched(small: SizedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def watching(*, gpu: bool) -> Iterator[Any]:
        yield SimpleNamespace(result=lambda: Watched(1.0, busy_elsewhere=0.25))

    use(monkeypatch, small)
    monkeypatch.setattr(scaling_bench, "watch", watching)
    (sweep,) = run_scaling(TINY).sweeps
    assert {point.busy_elsewhere for point in sweep.points} == {0.25}


def test_reasons_name_no_places_of_the_machine(small: SizedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any) -> Apart:
        raise ApartFailed(f"cannot read {tempfile.gettempdir()}/x/model.onnx")

    use(monkeypatch, small)
    monkeypatch.setattr(scaling_bench, "Apart", failing)
    saved: list[Any] = []
    result = scaling_step(saved.append, quick=True, networks=[THEIRS], kinds=["batch"], rounds=1).result
    for part in (saved[0], result):
        assert part["sweeps"][0]["points"][0]["reason"] == "cannot read <tmp>/x/model.onnx"


def test_a_picture_that_fails_does_not_take_the_measurement_with_it(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(table: Any, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "_scaling", lambda **options: ({"sweeps": []}, None))
    monkeypatch.setattr("fourphase.benchmarks.scaling.plot.plot_scaling", full)
    result = CliRunner().invoke(app, ["scaling", "--json", "--plot", str(tmp_path / "plot.png")])
    assert isinstance(result.exception, OSError)
    assert json.loads(result.stdout) == {"sweeps": []}
