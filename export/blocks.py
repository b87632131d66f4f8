"""The names engineers use for the parts of the network, and how they are found in PyTorch and in ONNX.

A block is a part with one output worth comparing: `stem/NC`, `stage1/NC`, `gate1.channel/NC`, `gate1.spatial/NC`,
`mix1/NC` (the map after interactive perception), `conv1d`, `gru` (all states), `head`, `phase_head/NC`. With a shared
backbone the part after the slash is absent. Reports, parity and policies speak of these, never of exporter names.
Any other network has the blocks of its module tree, see `module_blocks`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from fourphase.export.module_blocks import module_blocks
from fourphase.export.network import SHARED, FourPhaseNet

__all__ = ["Naming", "TappedNetwork", "block_of_scopes", "naming_of", "outputs_of", "record_blocks"]

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


class Naming(Protocol):
    """Which block a module's output is, and which block an ONNX node belongs to."""

    def name_of(self, path: str) -> str | None:
        """The block of a module path; None for a module whose output is no block's."""
        ...

    def of_scopes(self, scopes: list[str]) -> str:
        """The block of a node, from the module paths it was exported from, outermost first."""
        ...


class _Ours:
    """The names of our own network."""

    def name_of(self, path: str) -> str | None:
        return block_name(path)

    def of_scopes(self, scopes: list[str]) -> str:
        return block_of_scopes(scopes)


def naming_of(network: nn.Module) -> Naming:
    """The names of a network's blocks."""
    return _Ours() if isinstance(network, FourPhaseNet) else module_blocks(network)


@contextmanager
def record_blocks(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within the context, every forward pass puts each block's output into the yielded mapping, in order.

    Of a block that is called several times, the last output stays; one that gives no tensor of floats has none.
    """
    values: dict[str, Tensor] = {}
    phases = network.config.phases if isinstance(network, FourPhaseNet) else ()
    naming, hooks = naming_of(network), []
    for path, module in network.named_modules():
        name = naming.name_of(path)
        if name is not None:
            hooks.append(module.register_forward_hook(_Recorder(name, values, phases)))
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
        if isinstance(output, tuple) and output:
            # A recurrence gives its states first, attention its values.
            output = output[0]
        if self.phases and isinstance(output, list):
            per_phase = len(output) == len(self.phases)
            names = [f"{self.name}/{phase}" for phase in self.phases] if per_phase else [self.name]
            self.values.update(zip(names, output, strict=True))
        elif isinstance(output, Tensor) and output.is_floating_point():
            self.values[self.name] = output


def outputs_of(found: Any) -> tuple[Tensor, ...]:
    """What a network returned as a tuple: (logits,) or (logits, phase_logits), if it is what the contract says."""
    return tuple(found) if isinstance(found, tuple | list) else (found,)


class TappedNetwork(nn.Module):
    """Export only: the network with every block's output behind the real ones.

    Input float32 (B, P, T, C, H, W); output (logits[, phase_logits], *blocks), the blocks in the order of `names`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.names: tuple[str, ...] = ()
        self.outputs = 0

    def forward(self, study: Tensor) -> tuple[Tensor, ...]:
        with record_blocks(self.network) as recorded:
            outputs = outputs_of(self.network(study))
        # A value has one name in a graph: a head's output may be the logits, a flattened map may be the map.
        names = {id(value): name for name, value in reversed(recorded.items())}
        for value in outputs:
            names.pop(id(value), None)
        blocks = {name: value for name, value in recorded.items() if names.get(id(value)) == name}
        self.names, self.outputs = tuple(blocks), len(outputs)
        return (*outputs, *blocks.values())
