import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fourphase.benchmarks.accuracy.training import FULL, QUICK, TrainingPlan, TrainingResult, train, write_checkpoint
from fourphase.benchmarks.accuracy.training_plot import plot_training
from fourphase.export.checkpoint import load_checkpoint
from fourphase.runtime.config import PreprocessingConfig

SMALL = PreprocessingConfig(size=(8, 32, 32))
TINY = TrainingPlan(width=2, gru_hidden=4, studies=8, batch=4, slices=4, tail_studies=4, tail_epochs=2, validation=4)


def nothing(stage: str, step: int, steps: int, loss: float | None) -> None:
    pass


def digest(path: Path, result: TrainingResult) -> str:
    write_checkpoint(path, result)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def tiny() -> TrainingResult:
    return train(TINY, 7, nothing, SMALL)


def test_the_same_seed_gives_the_same_file(tiny: TrainingResult, tmp_path: Path) -> None:
    again, other = train(TINY, 7, nothing, SMALL), train(TINY, 8, nothing, SMALL)
    digests = [digest(tmp_path / f"{i}.safetensors", result) for i, result in enumerate((tiny, again, other))]
    assert digests[0] == digests[1] != digests[2]


def test_training_leaves_torchs_settings_alone(tiny: TrainingResult) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train(replace(TINY, studies=4, validation=2), 0, nothing, SMALL)
    assert torch.rand(1) == expected
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_checkpoint_is_read_as_it_was_trained(tiny: TrainingResult, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, tiny)
    checkpoint = load_checkpoint(path)
    assert checkpoint.preprocessing == SMALL
    assert checkpoint.network.config.classes == ("HCC", "ICC")
    study = torch.randn(1, 4, 8, 3, 32, 32)
    with torch.no_grad():
        for loaded, trained in zip(checkpoint.network(study), tiny.network.eval()(study), strict=True):
            torch.testing.assert_close(loaded, trained)


def test_scores_are_of_both_kinds_in_turn(tiny: TrainingResult) -> None:
    assert tiny.is_icc.tolist() == [False, True, False, True]
    assert np.isfinite(tiny.scores).all()
    assert tiny.right == sum((score > 0) == icc for score, icc in zip(tiny.scores, tiny.is_icc, strict=True))
    assert len(tiny.losses) == 2


def test_every_stage_is_reported(tiny: TrainingResult) -> None:
    seen: list[tuple[str, int, int]] = []
    train(TINY, 7, lambda stage, step, steps, loss: seen.append((stage, step, steps)), SMALL)
    assert {stage for stage, _, _ in seen} == {"training", "full depth", "along the slices", "validation"}
    assert all(stage_last == steps for stage_last, steps in {s: (n, m) for s, n, m in seen}.values())


@pytest.mark.slow
def test_a_little_training_already_tells_the_kinds_apart() -> None:
    plan = TrainingPlan(
        width=4,
        gru_hidden=8,
        studies=256,
        batch=4,
        slices=6,
        tail_studies=32,
        tail_epochs=40,
        validation=40,
        rate=5e-3,
        hardest=0.0,
        difficulty=0.0,
    )
    result = train(plan, 0, nothing, PreprocessingConfig(size=(12, 32, 32)))
    assert np.mean(result.losses[-5:]) < 0.7 * np.mean(result.losses[:5])
    assert result.auc > 0.9


def test_the_quick_plan_differs_in_amounts_only() -> None:
    amounts = ("studies", "tail_studies", "validation")
    assert replace(QUICK, **{name: getattr(FULL, name) for name in amounts}) == FULL
    assert FULL.validation >= 100


def test_the_plot_is_a_png(tiny: TrainingResult, tmp_path: Path) -> None:
    plot_training(tiny, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
