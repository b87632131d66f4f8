"""The network's configuration: every point the paper leaves open is one key with a stated default. No torch here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fourphase.runtime.errors import UsageError

__all__ = ["PHASES", "NetworkConfig"]

#: The phase order of the paper, which is also the order of the input's phase axis.
PHASES = ("NC", "ART", "PV", "DL")
_CHOICES = {"ipm_graph": ("ring", "all", "chain"), "ipm_norm": ("sum", "mean"), "stem_stride": (1, 2)}


@dataclass(frozen=True)
class NetworkConfig:
    """One reading of Qiao et al. 2024 (doi 10.1186/s12938-024-01297-x); the defaults are facts/network's.

    Attributes:
        phases: the phases in the order of the input's phase axis.
        classes: the classes in the order of the logits.
        width: channels of the stem; the four stages have 1, 2, 4 and 8 times as many. 64 is ResNet-18.
        stem_stride: stride of the 7x7 stem convolution.
        share_backbone: one trunk (and its gates) for all phases instead of one per phase.
        ipm_stages: the stages (1-4) followed by interactive perception; () turns it off.
        ipm_graph: which phases are neighbours: "ring", "all" others, or "chain" in the order of `phases`.
        ipm_norm: "sum" adds the neighbours' gates (Eq. 1), "mean" averages them.
        gate_reduction: bottleneck of the channel gate's MLP.
        spm: the spatiotemporal prediction module (1D residual blocks and GRU); without it only the phase heads decide.
        gru_hidden, gru_layers, bidirectional: the recurrent part.
        lambda_aux: y = (1 - lambda) X_f + lambda mean(X_p); unused without `spm`. The paper's value is unknown.
    """

    phases: tuple[str, ...] = PHASES
    classes: tuple[str, ...] = ("HCC", "ICC")
    width: int = 64
    stem_stride: int = 2
    share_backbone: bool = False
    ipm_stages: tuple[int, ...] = (1, 2, 3, 4)
    ipm_graph: str = "ring"
    ipm_norm: str = "sum"
    gate_reduction: int = 16
    spm: bool = True
    gru_hidden: int = 256
    gru_layers: int = 1
    bidirectional: bool = False
    lambda_aux: float = 0.3

    def __post_init__(self) -> None:
        problems = [
            (
                "phases must be at least two different names",
                len(set(self.phases)) != len(self.phases) or self.count < 2,
            ),
            ("classes must be at least two different names", len(set(self.classes)) != len(self.classes) or self.k < 2),
            ("ipm_stages must be different numbers from 1 to 4", not self._stages_valid()),
            ("lambda_aux must be from 0 to 1", not 0 <= self.lambda_aux <= 1),
        ]
        problems += [
            (f"{name} must be one of {', '.join(map(str, allowed))}", getattr(self, name) not in allowed)
            for name, allowed in _CHOICES.items()
        ]
        problems += [
            (f"{name} must be at least 1", getattr(self, name) < 1)
            for name in ("width", "gate_reduction", "gru_hidden", "gru_layers")
        ]
        for problem, found in problems:
            if found:
                raise UsageError(
                    f"the network configuration is invalid: {problem}", "correct the key", key="config_invalid"
                )

    def _stages_valid(self) -> bool:
        return len(set(self.ipm_stages)) == len(self.ipm_stages) and set(self.ipm_stages) <= {1, 2, 3, 4}

    @property
    def count(self) -> int:
        """Number of phases, P."""
        return len(self.phases)

    @property
    def k(self) -> int:
        """Number of classes, K."""
        return len(self.classes)

    @property
    def stage_channels(self) -> tuple[int, int, int, int]:
        return (self.width, 2 * self.width, 4 * self.width, 8 * self.width)

    @property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """For every phase, the indices of the phases whose gates weight it (Eq. 1)."""
        last = self.count - 1
        if self.ipm_graph == "all":
            return tuple(tuple(q for q in range(self.count) if q != p) for p in range(self.count))
        if self.ipm_graph == "chain":
            return tuple(tuple(q for q in (p - 1, p + 1) if 0 <= q <= last) for p in range(self.count))
        return tuple(tuple(sorted({(p - 1) % self.count, (p + 1) % self.count})) for p in range(self.count))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, section: Mapping[str, Any]) -> NetworkConfig:
        """Reads the configuration of a checkpoint, a manifest or a TOML file; unknown keys are an error.

        Raises: UsageError naming the key.
        """
        kinds = {field.name: type(getattr(cls(), field.name)) for field in dataclasses.fields(cls)}
        unknown = sorted(set(section) - set(kinds))
        if unknown:
            raise UsageError(
                f"unknown network configuration keys: {', '.join(unknown)}",
                f"the keys are {', '.join(kinds)}",
                key="config_invalid",
            )
        return cls(**{name: _typed(name, value, kinds[name]) for name, value in section.items()})


def _typed(name: str, value: Any, kind: type) -> Any:
    """JSON and TOML have lists where the dataclass has tuples; any other mismatch of types is an error."""
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise UsageError(
            f"the network configuration's {name} is {value!r}, not a {kind.__name__}",
            "correct the key",
            key="config_invalid",
        )
    return value
