"""The blocks of any network: parts of its module tree with one output worth comparing, named by their paths.

A block is a direct child of the network; in a Sequential, ModuleList or ModuleDict it is a child of that (`layer1.0`).
A flat Sequential is cut in front of every layer with a weight, so that VGG's features are thirteen blocks, and norms,
activations and pools belong to the layer before them. A part that holds more than half of all weights, such as a
network inside a wrapper, is looked into. Nodes outside every block belong to `outside`.

Our own network has names of its own, see `blocks`. Which nodes of a block deserve a precision of their own is for
`node_parts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fourphase.export.interface import INPUT, OUTPUTS

__all__ = ["OUTSIDE", "ModuleBlocks", "module_blocks"]

#: The block of nodes that belong to no part of the module tree.
OUTSIDE = "outside"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
#: Leaves with a weight that do not open a block: they scale what the layer before them made.
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU)


@dataclass(frozen=True)
class ModuleBlocks:
    """Which module belongs to which block.

    Attributes:
        members: module path -> block, of the topmost modules of every block.
        outputs: module path -> block whose output is this module's.
    """

    members: dict[str, str]
    outputs: dict[str, str]

    def name_of(self, path: str) -> str | None:
        """The block whose output a module gives; None for a module that gives none."""
        return self.outputs.get(path)

    def of_scopes(self, scopes: list[str]) -> str:
        """The block of an ONNX node from the module paths it was exported from, outermost first.

        The last scope is the operator's own name, which may be that of a module (`relu`).
        """
        return next((self.members[scope] for scope in reversed(scopes[:-1]) if scope in self.members), OUTSIDE)


def module_blocks(network: nn.Module) -> ModuleBlocks:
    """The blocks of a network, in the order of its module tree."""
    members: dict[str, str] = {}
    outputs: dict[str, str] = {}
    for group in _groups("", network, _weights(network) / 2):
        name = f"block.{group[0]}" if group[0] in (INPUT, *OUTPUTS) else group[0]
        members |= dict.fromkeys(group, name)
        outputs[group[-1]] = name
    return ModuleBlocks(members, outputs)


def _groups(path: str, module: nn.Module, most: float) -> Iterator[list[str]]:
    """Paths of the modules that make one block, in their order, for every block under `module`."""
    children = [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]
    runs = _runs(children, most) if isinstance(module, nn.Sequential) else [[entry] for entry in children]
    for run in runs:
        first, child = run[0]
        if _is_opened(child, most):
            yield from _groups(first, child, most)
        else:
            yield [name for name, _ in run]


def _runs(children: list[tuple[str, nn.Module]], most: float) -> list[list[tuple[str, nn.Module]]]:
    """Consecutive children of a Sequential that make one block: at most one of them has weights (norms apart)."""
    runs: list[list[tuple[str, nn.Module]]] = []
    for name, child in children:
        last = [module for _, module in runs[-1]] if runs else []
        ended = not last or _is_opened(last[0], most)
        if ended or (_opens(child) and (not _is_leaf(child) or any(_opens(module) for module in last))):
            runs.append([])
        runs[-1].append((name, child))
    return runs


def _is_opened(module: nn.Module, most: float) -> bool:
    """Whether a module is looked into instead of being a block."""
    if isinstance(module, _CONTAINERS):
        return _has_parts(module)
    return not _is_leaf(module) and _weights(module) > most and any(not _is_leaf(c) for c in module.children())


def _has_parts(container: nn.Module) -> bool:
    children = list(container.children())
    if not isinstance(container, nn.Sequential):
        return bool(children)
    return any(not _is_leaf(child) for child in children) or sum(_opens(child) for child in children) > 1


def _opens(module: nn.Module) -> bool:
    return not isinstance(module, _NORMS) and _weights(module) > 0


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
