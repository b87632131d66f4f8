"""What every network looks like from outside: the names, types and sizes of its input and outputs. No torch here.

Ours gives two outputs; another network may give the logits alone. What is inside is for `network` and the modules that
`checkpoint` and `given_onnx` read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fourphase.export.config import PHASES, NetworkConfig
from fourphase.runtime.backend import OUTPUTS
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import UsageError

__all__ = ["INPUT", "OUTPUTS", "Interface", "four_phase_config", "interface_from_config", "interface_from_dict"]

INPUT = "study"
_CLASSES = ("HCC", "ICC")


@dataclass(frozen=True)
class Interface:
    """The contract's interface of one network.

    Attributes:
        phases: in the order of the input's phase axis.
        classes: in the order of the logits.
        outputs: OUTPUTS, or its first alone.
    """

    phases: tuple[str, ...] = PHASES
    classes: tuple[str, ...] = _CLASSES
    outputs: tuple[str, ...] = OUTPUTS

    def __post_init__(self) -> None:
        for kind, names, least in (("phases", self.phases, 1), ("classes", self.classes, 2)):
            if len(set(names)) != len(names) or len(names) < least or not all(isinstance(n, str) and n for n in names):
                raise UsageError(
                    f"the model's {kind} are not {'two or more' if least > 1 else 'a list of'} different names",
                    f'give [model] {kind} = ["...", "..."] in --config',
                    key="config_invalid",
                )

    def input_sizes(self, preprocessing: PreprocessingConfig) -> tuple[int, ...]:
        """(P, T, C, H, W) of one study."""
        slices, rows, columns = preprocessing.size
        return (len(self.phases), slices, preprocessing.channels, rows, columns)

    def output_sizes(self) -> dict[str, tuple[int, ...]]:
        """Output name -> its sizes for one study, in the order of the outputs."""
        sizes = {OUTPUTS[0]: (len(self.classes),), OUTPUTS[1]: (len(self.phases), len(self.classes))}
        return {name: sizes[name] for name in self.outputs}


def interface_from_config(config: NetworkConfig) -> Interface:
    """Of our own network."""
    return Interface(config.phases, config.classes, OUTPUTS)


def interface_from_dict(section: Mapping[str, Any]) -> Interface:
    """The table [model] of a configuration; what it does not say is the contract's default.

    Raises: UsageError (2) for an unknown key, or names that are none.
    """
    unknown = sorted(set(section) - {"phases", "classes"})
    if unknown:
        raise UsageError(
            f"unknown keys in [model]: {', '.join(unknown)}", "the keys are phases and classes", key="config_invalid"
        )
    return Interface(_names(section.get("phases", PHASES)), _names(section.get("classes", _CLASSES)))


def _names(value: Any) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()


def four_phase_config(section: Mapping[str, Any]) -> NetworkConfig | None:
    """Our network's configuration from a manifest's `network`; None if it describes another model."""
    return None if "factory" in section or "onnx" in section else NetworkConfig.from_dict(section)
