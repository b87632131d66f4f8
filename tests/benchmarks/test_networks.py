"""The registry's networks run, and their activations have the size of a trained network's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fourphase.benchmarks.networks import (
    BASELINES,
    NETWORKS,
    TINY,
    Scale,
    Untrained,
    check_tells_apart,
    settled,
    untrained,
    write_untrained,
)
from fourphase.benchmarks.phantoms.phantom_set import PhantomSet
from fourphase.export.blocks import record_blocks
from fourphase.export.checkpoint import load_checkpoint
from fourphase.export.network import FourPhaseNet
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import SelfCheckFailed

SMALL = PreprocessingConfig(size=(8, 32, 32))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny layers on several threads wait for each other most of the time, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_runs_at_every_batch_and_is_the_same_each_time(name: str) -> None:
    module, studies = NETWORKS[name](TINY, 3)
    again, _ = NETWORKS[name](TINY, 3)
    assert len(studies) == 3
    assert not module.training
    with torch.no_grad():
        together = logits(module, studies)
        assert together.shape == (3, 2)
        for index, study in enumerate(studies):
            torch.testing.assert_close(logits(module, study[None])[0], together[index], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logits(again, studies), together)
    assert float(together.std(dim=0).max()) > 1e-3  # it tells random studies apart


def logits(module: torch.nn.Module, studies: torch.Tensor) -> torch.Tensor:
    """Ours give phase_logits beside them."""
    outputs = module(studies)
    first: torch.Tensor = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
    return first


def test_the_names_are_those_of_reports() -> None:
    assert list(NETWORKS) == [
        "four-phase", "four-phase-shared", "four-phase-backbone", "four-phase-spm", "four-phase-miff",
        "four-phase-nc-art-pv", "four-phase-nc-art-dl",
        "resnet3d-18-s122", "resnet3d-18-s222", "resnet3d-18-medicalnet", "densenet3d-121",
        "stic", "mexpale", "transmed", "tdn",
    ]  # fmt: skip


@pytest.mark.parametrize("name", BASELINES)
def test_a_baselines_activations_are_settled(name: str) -> None:
    """On studies that it was not settled on, every layer with weights puts out numbers of the size of 1."""
    module, studies = NETWORKS[name](TINY, 2)
    largest: dict[str, float] = {}
    for path, layer in module.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(
                lambda _, __, output, path=path: largest.update(
                    {path: float((output if isinstance(output, torch.Tensor) else output[0]).abs().max())}
                )
            )
    with torch.no_grad():
        module(studies)
    assert max(largest.values()) < 50
    assert max(largest.values()) > 1


def test_dropout_does_not_count_while_statistics_are_taken() -> None:
    dropped = torch.nn.Sequential(torch.nn.Dropout(0.9), torch.nn.BatchNorm1d(3))
    examples = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    settled(dropped, examples)
    torch.testing.assert_close(dropped[1].running_var, examples.var(dim=0))


def test_on_the_meta_device_nothing_is_settled() -> None:
    with torch.device("meta"):
        module, study = NETWORKS["resnet3d-18-s122"](TINY, 2)
    assert study.is_meta
    assert not module.training


def test_activations_are_settled() -> None:
    """With batch-norm statistics as made, stages 2 to 4 have deviations of 11 to 16 and the 1D blocks of 127."""
    module, study = NETWORKS["four-phase"](Scale(width=8, gru_hidden=8, size=(8, 64, 64)), 1)
    assert isinstance(module, FourPhaseNet)
    with torch.no_grad(), record_blocks(module) as blocks:
        module(study)
    for stage in ("stage1/NC", "stage2/ART", "stage3/PV", "stage4/DL", "conv1d"):
        assert 0.2 < float(blocks[stage].std()) < 5, stage


def test_statistics_are_those_of_all_examples_together() -> None:
    """Three examples with means of their own: the variance between them counts."""
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    noise = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    examples = noise + torch.tensor([-20.0, 0.0, 20.0])[:, None, None, None]
    assert settled(network, examples) is network
    assert not network.training
    with torch.no_grad():
        output = network[0](examples)
    torch.testing.assert_close(network[1].running_mean, output.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(network[1].running_var, output.var(dim=(0, 2, 3)))


@pytest.fixture(scope="module")
def made() -> Untrained:
    return untrained(4, 8, 0, SMALL)


def test_an_untrained_network_is_settled_on_phantoms_and_tells_others_apart(made: Untrained) -> None:
    """Its logits are those of phantoms with seeds of their own, computed again from the network that is returned."""
    others = PhantomSet(4, 0, 0.9, SMALL, purpose="validation")
    with torch.no_grad():
        again = torch.cat([made.network(torch.from_numpy(study))[0] for study in others.studies()]).numpy()
        with record_blocks(made.network) as blocks:
            made.network(torch.from_numpy(PhantomSet(1, 0, 0.9, SMALL, purpose="validation").study(0)))
    np.testing.assert_allclose(made.logits, again, rtol=1e-4, atol=1e-5)
    for stage in ("stage1/NC", "stage2/ART", "stage3/PV", "stage4/DL", "conv1d"):
        assert 0.2 < float(blocks[stage].std()) < 5, stage
    body = made.to_dict()
    spread = [max(column) - min(column) for column in zip(*again.tolist(), strict=True)]
    assert list(body["logits_spread"].values()) == pytest.approx(spread, rel=1e-3)
    assert min(spread) > 1e-3


def test_the_same_seed_gives_the_same_untrained_file(made: Untrained, tmp_path: Path) -> None:
    digests, other = [], untrained(4, 8, 1, SMALL)
    for index, network in enumerate((made, untrained(4, 8, 0, SMALL), other)):
        path = tmp_path / f"{index}.safetensors"
        write_untrained(path, network)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]
    weights = [next(network.network.parameters()) for network in (made, other)]
    assert not torch.equal(*weights)
    loaded = load_checkpoint(tmp_path / "0.safetensors")
    assert isinstance(loaded.network, FourPhaseNet)
    assert (loaded.network.config.width, loaded.network.config.gru_hidden) == (4, 8)
    assert loaded.preprocessing == SMALL


def test_torchs_random_numbers_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    untrained(2, 4, 0, SMALL)
    assert torch.rand(1) == expected


def test_a_network_that_says_the_same_of_all_is_refused() -> None:
    logits = np.array([[0.1, 0.2], [0.10001, 0.2]], dtype=np.float32)
    with pytest.raises(SelfCheckFailed, match="the same of 2 phantoms"):
        check_tells_apart(logits)
    check_tells_apart(logits + np.array([[0, 0], [0, 1e-3]], dtype=np.float32))
