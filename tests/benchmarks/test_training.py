import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fourphase.benchmarks.accuracy.trainer import fit, logits_of, multi_task_loss
from fourphase.benchmarks.accuracy.training import FULL, QUICK, TrainingPlan, TrainingResult, train, write_checkpoint
from fourphase.benchmarks.accuracy.training_plot import plot_training
from fourphase.export.checkpoint import load_checkpoint
from fourphase.export.network import FourPhaseNet
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import SelfCheckFailed

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
    assert isinstance(checkpoint.network, FourPhaseNet)
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


def test_the_loss_is_the_papers_with_phases_and_cross_entropy_without() -> None:
    """Minus the log of the softmax's share of the true class, 0.3 times as much for the mean over the phases."""
    rng = np.random.default_rng(0)
    logits, phase_logits, truth = rng.normal(size=(3, 2)), rng.normal(size=(3, 4, 2)), np.array([1, 0, 1])
    true_share = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[range(3), truth]
    shares = (np.exp(phase_logits) / np.exp(phase_logits).sum(-1, keepdims=True))[range(3), :, truth]
    outputs, given = (torch.from_numpy(logits), torch.from_numpy(phase_logits)), torch.from_numpy(truth)
    alone = -np.log(true_share).mean()
    assert float(multi_task_loss(outputs[0], given)) == pytest.approx(alone)
    assert float(multi_task_loss(outputs, given)) == pytest.approx(alone - 0.3 * np.log(shares).mean())
    assert logits_of(outputs) is logits_of(outputs[0]) is outputs[0]


def test_one_trainer_trains_networks_with_and_without_phases() -> None:
    """Both tell two plain studies apart after a few steps, and start from training mode."""

    class WithPhases(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
            logits = super().forward(input)
            return logits, logits[:, None].expand(-1, 4, -1)

    studies, truth = torch.eye(2), torch.tensor([0, 1])
    for network in (torch.nn.Linear(2, 2).eval(), WithPhases(2, 2).eval()):
        losses = list(fit(network, [(studies, truth)] * 30, 0.1, 30))
        assert network.training
        assert len(losses) == 30
        assert losses[-1] < 0.3 * losses[0]


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    batches = [(torch.ones(1, 2), torch.tensor([0])), (torch.full((1, 2), torch.nan), torch.tensor([0]))]
    trained = fit(torch.nn.Linear(2, 2), batches, 0.01, 2)
    assert np.isfinite(next(trained))
    with pytest.raises(SelfCheckFailed, match="the loss is nan at step 2 of 2") as caught:
        next(trained)
    assert caught.value.key == "training_diverged"
