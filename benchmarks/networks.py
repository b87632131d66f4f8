"""The networks that benchmarks run, by name: one line each; and an untrained one as a checkpoint.

They are the network, the rows of its paper's ablation and its phase subsets, and the baselines of the paper, which all
take the same input. A baseline gives logits (B, K) alone, ours phase_logits (B, P, K) beside them.

Weights are random, but batch-norm statistics are settled on data, so that activations have the size they have in a
trained network: with arbitrary statistics they grow from stage to stage and FP16 is judged on numbers nobody will see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fourphase.benchmarks.accuracy.training import reproducible
from fourphase.benchmarks.baselines.densenet3d import DenseNet3d, DenseNet3dConfig
from fourphase.benchmarks.baselines.mexpale import MexPale, MexPaleConfig
from fourphase.benchmarks.baselines.resnet3d import RESIDUAL_GAIN, ResNet3d, ResNet3dConfig
from fourphase.benchmarks.baselines.stic import Stic, SticConfig
from fourphase.benchmarks.baselines.tdn import Tdn, TdnConfig
from fourphase.benchmarks.baselines.transmed import TransMed, TransMedConfig
from fourphase.benchmarks.phantoms.phantom_set import PhantomSet
from fourphase.export.checkpoint import save_checkpoint
from fourphase.export.config import PHASES, NetworkConfig
from fourphase.export.network import BasicBlock, FourPhaseNet
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.console import progress
from fourphase.runtime.errors import SelfCheckFailed

__all__ = [
    "BASELINES",
    "NETWORKS",
    "OURS",
    "TINY",
    "Builder",
    "Scale",
    "Untrained",
    "baseline",
    "check_tells_apart",
    "four_phase",
    "module_of",
    "settled",
    "untrained",
    "write_untrained",
]

#: Phantoms that an untrained network is settled on, and others that it is tried on. Settled on 4, a network of width 16
#: met a phantom among 12 others that drove conv1d to 330; settled on 16, to 125.
_SETTLED_ON, _TRIED_ON = 16, 4
_DIFFICULTY = 0.9
#: Logits that agree in this many decimals tell nothing apart.
_DECIMALS = 4
#: A baseline is settled on as many random studies as hold this many voxels per phase (one of full size), at most
#: _MOST_STUDIES: its deepest layers see one value per tiny study, and the deviation of a few tells little.
_SETTLED_VOXELS, _MOST_STUDIES = 1 << 20, 16
#: STIC and TDN resize the input's 128 pixels to 224.
_ENLARGED = 7 / 4


@dataclass(frozen=True)
class Scale:
    """How large a network and its input are; the defaults are the paper's.

    Attributes:
        size: slices, rows, columns of one phase.
        depth: where a baseline has more equal layers in a row (DenseNet up to 24), it has this many.
    """

    width: int = 64
    gru_hidden: int = 256
    size: tuple[int, int, int] = (64, 128, 128)
    depth: int = 24


#: Every kind of layer, a millionth of the work: for rehearsals.
TINY = Scale(width=4, gru_hidden=8, size=(8, 32, 32), depth=2)

#: (scale, batch) -> the module in eval mode on the CPU, and an input with `batch` studies on its first axis.
Builder = Callable[[Scale, int], tuple[nn.Module, Tensor]]


def four_phase(**keys: Any) -> Builder:
    """The builder of the network with these keys of its configuration."""

    def build(scale: Scale, batch: int) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        config = NetworkConfig(width=scale.width, gru_hidden=scale.gru_hidden, **keys)
        slices, rows, columns = scale.size
        study = torch.randn(batch, config.count, slices, 3, rows, columns)
        return settled(FourPhaseNet(config), study[:1]), study

    return build


def baseline(make: Callable[[Scale], nn.Module]) -> Builder:
    """The builder of a baseline for four phases; `make` gives the module of one scale."""

    def build(scale: Scale, batch: int) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        network = make(scale)
        slices, rows, columns = scale.size
        shape = (len(PHASES), slices, 3, rows, columns)
        count = min(_MOST_STUDIES, -(-_SETTLED_VOXELS // (slices * rows * columns)))
        return settled(network, torch.randn(count, *shape)), torch.randn(batch, *shape)

    return build


def settled(network: nn.Module, examples: Tensor) -> nn.Module:
    """The network in eval mode with the batch-norm statistics of the examples, all in one batch.

    (One study at a time would leave out how studies differ: the pooled features of one study's slices are much alike,
    and divided by their small deviation those of the next study come out in the hundreds.) Dropout is off meanwhile:
    it would be counted as variance. On the meta device there is nothing to settle.
    """
    if next(network.parameters()).is_meta:
        return network.eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    with torch.no_grad():
        network(examples)
    return network.eval()


@dataclass(frozen=True, eq=False)
class Untrained:
    """A network that has learnt nothing (eval mode).

    Attributes:
        logits: what it says of phantoms that it was not settled on, float32 (N, K).
    """

    network: FourPhaseNet
    preprocessing: PreprocessingConfig
    seed: int
    logits: NDArray[np.float32]

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        config, spread = self.network.config, np.ptp(self.logits, axis=0).tolist()
        return {
            "trained": False,
            "seed": self.seed,
            "width": config.width,
            "gru_hidden": config.gru_hidden,
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "settled_on": _SETTLED_ON,
            "logits_spread": dict(zip(config.classes, spread, strict=True)),
            "count": len(self.logits),
        }


def untrained(width: int, gru_hidden: int, seed: int, preprocessing: PreprocessingConfig | None = None) -> Untrained:
    """Random weights, and batch-norm statistics of a few phantoms.

    Raises: SelfCheckFailed (23) if it says the same of every phantom.
    """
    config = preprocessing or PreprocessingConfig()
    known, others = (
        PhantomSet(count, seed, _DIFFICULTY, config, purpose=purpose)
        for count, purpose in ((_SETTLED_ON, "training"), (_TRIED_ON, "validation"))
    )
    with progress("settling", _SETTLED_ON + _TRIED_ON) as advance, reproducible(seed), torch.no_grad():

        def inputs(phantoms: PhantomSet) -> Iterable[Tensor]:
            for study in phantoms.studies():
                yield torch.from_numpy(study)
                advance(1)

        network = FourPhaseNet(NetworkConfig(width=width, gru_hidden=gru_hidden))
        for module in network.modules():
            if isinstance(module, BasicBlock):
                nn.init.constant_(module.bn2.get_parameter("weight"), RESIDUAL_GAIN)
        settled(network, torch.cat(list(inputs(known))))
        logits = torch.cat([network(study)[0] for study in inputs(others)]).numpy()
    check_tells_apart(logits)
    return Untrained(network, config, seed, logits)


def check_tells_apart(logits: NDArray[np.float32]) -> None:
    """Raises: SelfCheckFailed (23) if the logits (N, K) of all studies agree in four decimals."""
    if len(np.unique(logits.round(_DECIMALS), axis=0)) == 1:
        raise SelfCheckFailed(
            f"the untrained network says the same of {len(logits)} phantoms, to {_DECIMALS} decimals",
            "take another --seed, or a larger --width",
            key="logits_all_equal",
        )


def write_untrained(path: Path, made: Untrained) -> None:
    """Writes the network as a checkpoint that says that it is not trained. Raises: OutputNotWritable (30)."""
    origin = {"data": "none: random weights", "seed": made.seed, "batch_norm": f"of {_SETTLED_ON} synthetic phantoms"}
    save_checkpoint(path, made.network, made.preprocessing, origin)


def _resnet3d(scale: Scale, stem_stride: tuple[int, int, int]) -> ResNet3d:
    return ResNet3d(ResNet3dConfig(width=scale.width, stem_stride=stem_stride))


def _densenet3d(scale: Scale) -> DenseNet3d:
    blocks = tuple(min(count, scale.depth) for count in DenseNet3dConfig.blocks)
    return DenseNet3d(DenseNet3dConfig(growth=scale.width // 2, blocks=blocks))


def _stic(scale: Scale) -> Stic:
    return Stic(SticConfig(width=scale.width, hidden=scale.width // 2, pixels=int(scale.size[1] * _ENLARGED)))


def _transmed(scale: Scale) -> TransMed:
    layers = min(TransMedConfig.layers, scale.depth)
    return TransMed(TransMedConfig(slices=scale.size[0], width=scale.width, layers=layers))


def _tdn(scale: Scale) -> Tdn:
    slices, rows, _ = scale.size
    blocks = tuple(min(count, scale.depth) for count in TdnConfig.blocks)
    return Tdn(TdnConfig(width=scale.width, blocks=blocks, segments=slices // 4, pixels=int(rows * _ENLARGED)))


#: The network; its paper's ablation rows (all with a head per phase: multi-task) and phase subsets (Table 10).
OURS: Mapping[str, Builder] = MappingProxyType(
    {
        "four-phase": four_phase(),
        "four-phase-shared": four_phase(share_backbone=True),
        "four-phase-backbone": four_phase(ipm_stages=(), spm=False),
        "four-phase-spm": four_phase(ipm_stages=()),
        "four-phase-miff": four_phase(spm=False),
        "four-phase-nc-art-pv": four_phase(phases=("NC", "ART", "PV")),
        "four-phase-nc-art-dl": four_phase(phases=("NC", "ART", "DL")),
    }
)
#: What the paper compares it with.
BASELINES: Mapping[str, Builder] = MappingProxyType(
    {
        "resnet3d-18-s122": baseline(lambda scale: _resnet3d(scale, (1, 2, 2))),
        "resnet3d-18-s222": baseline(lambda scale: _resnet3d(scale, (2, 2, 2))),
        "resnet3d-18-medicalnet": baseline(lambda scale: ResNet3d(ResNet3dConfig.medicalnet(width=scale.width))),
        "densenet3d-121": baseline(_densenet3d),
        "stic": baseline(_stic),
        "mexpale": baseline(lambda scale: MexPale(MexPaleConfig(ResNet3dConfig.medicalnet(width=scale.width)))),
        "transmed": baseline(_transmed),
        "tdn": baseline(_tdn),
    }
)
NETWORKS: Mapping[str, Builder] = MappingProxyType({**OURS, **BASELINES})


def module_of(name: str, tiny: bool = False) -> nn.Module:
    """A network of NETWORKS by name, as `fp-export --model fourphase.benchmarks.networks:module_of` takes it."""
    return NETWORKS[name](TINY if tiny else Scale(), 1)[0]
