"""The registry's networks run, and their activations have the size of a trained network's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fourphase.benchmarks.networks import NETWORKS, TINY, Scale
from fourphase.export.blocks import record_blocks
from fourphase.export.network import FourPhaseNet


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
        together = module(studies)
        for index, study in enumerate(studies):
            alone = module(study[None])
            torch.testing.assert_close(alone[0], together[0][index : index + 1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(again(studies), together)


def test_activations_are_settled() -> None:
    """With batch-norm statistics as made, stages 2 to 4 have deviations of 11 to 16 and the 1D blocks of 127."""
    module, study = NETWORKS["four-phase"](Scale(width=8, gru_hidden=8, size=(8, 64, 64)), 1)
    assert isinstance(module, FourPhaseNet)
    with torch.no_grad(), record_blocks(module) as blocks:
        module(study)
    for stage in ("stage1/NC", "stage2/ART", "stage3/PV", "stage4/DL", "conv1d"):
        assert 0.2 < float(blocks[stage].std()) < 5, stage
