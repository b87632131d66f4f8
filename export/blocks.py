"""The names engineers use for the parts of the network, and how they are found in PyTorch and in ONNX.

A block is a part with one output worth comparing: `stem/NC`, `stage1/NC`, `gate1.channel/NC`, `gate1.spatial/NC`,
`mix1/NC` (the map after interactive perception), `conv1d`, `gru` (all states), `head`, `phase_head/NC`. With a shared
backbone the part after the slash is absent. Reports, parity and policies speak of these, never of exporter names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fourphase.export.network import SHARED, FourPhaseNet

__all__ = ["TappedNetwork", "block_of_scopes", "record_blocks"]

_PATTERNS = (
    (re.compile(r"trunks\.(\w+)\.stem"), "stem/{0}"),
    (re.compile(r"trunks\.(\w+)\.stages\.(\d)"), "stage{1}/{0}"),
    (re.compile(r"trunks\.(\w+)\.gates\.(\d)\.(channel|spatial)"), "gate{1}.{2}/{0}"),
    (re.compile(r"perceptions\.(\d)"), "mix{0}"),
    (re.compile(r"heads\.(\w+)"), "phase_head/{0}"),
    (re.compile(r"spm\.(conv1d|gru|head)"), "{0}"),
)
#: Nodes outside every block's module that belong to one: the channel-refined map is made for the spatial gate alone.
_AROUND = ((re.compile(r"trunks\.(\w+)\.gates\.(\d)"), "gate{1}.spatial/{0}"),)


def block_name(path: str, patterns: tuple[tuple[re.Pattern[str], str], ...] = _PATTERNS) -> str | None:
    """The block of a module path such as `trunks.NC.stages.1`; None if the module is not a block by itself."""
    for pattern, name in patterns:
        match = pattern.fullmatch(path)
        if match:
            return name.format(*match.groups()).removesuffix(f"/{SHARED}")
    return None


def block_of_scopes(scopes: list[str]) -> str:
    """The block of an ONNX node from the module paths it was exported from, outermost first.

    What lies outside every block: the pooling and joining of features, and the final mix of the two logits.
    """
    for scope in reversed(scopes):
        name = block_name(scope) or block_name(scope, _AROUND)
        if name is not None:
            return name
    return "features" if any(scope == "spm" for scope in scopes) else "body"


@contextmanager
def record_blocks(network: FourPhaseNet) -> Iterator[dict[str, Tensor]]:
    """Within the context, every forward pass puts each block's output into the yielded mapping, in order."""
    values: dict[str, Tensor] = {}
    hooks = []
    for path, module in network.named_modules():
        name = block_name(path)
        if name is not None:
            hooks.append(module.register_forward_hook(_Recorder(name, values, network.config.phases)))
    try:
        yield values
    finally:
        for hook in hooks:
            hook.remove()


class _Recorder:
    """A forward hook that stores one block's output; interactive perception has one per phase."""

    def __init__(self, name: str, values: dict[str, Tensor], phases: tuple[str, ...]) -> None:
        self.name, self.values, self.phases = name, values, phases

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if isinstance(module, nn.GRU):
            output = output[0]
        if isinstance(output, list):
            per_phase = len(output) == len(self.phases)
            names = [f"{self.name}/{phase}" for phase in self.phases] if per_phase else [self.name]
            self.values.update(zip(names, output, strict=True))
        else:
            self.values[self.name] = output


class TappedNetwork(nn.Module):
    """Export only: the network with every block's output behind the two real ones.

    Input float32 (B, P, T, 3, H, W); output (logits, phase_logits, *blocks), the blocks in the order of `names`.
    """

    def __init__(self, network: FourPhaseNet) -> None:
        super().__init__()
        self.network = network
        self.names: tuple[str, ...] = ()

    def forward(self, study: Tensor) -> tuple[Tensor, ...]:
        with record_blocks(self.network) as blocks:
            logits, phase_logits = self.network(study)
        self.names = tuple(blocks)
        return (logits, phase_logits, *blocks.values())
