"""What is measured: a network in a runtime, at a precision and a batch; and what its worker must know to load it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DEVICES", "PRECISIONS", "Candidate", "Task"]

PRECISIONS = ("fp32", "fp16", "int8")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Candidate:
    """One row of the table. `batch`: studies per inference."""

    network: str
    runtime: str
    precision: str
    batch: int = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def words(self) -> str:
        """For a person: "four-phase in openvino int8"."""
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        return f"{self.network} in {self.runtime} {self.precision}{batch}"


@dataclass(frozen=True)
class Task:
    """A candidate and where its files are; JSON types only, it is sent to another process.

    Attributes:
        module: the Python module of the runtime, which has `load(task)`.
        device: "cpu" or "cuda".
        bundle: the bundle's directory; its golden inputs are what is computed.
        network, quick: name and scale in the registry of `networks`; "" for a user's own bundle.
        checkpoint: of a user's own network, for the runtimes of PyTorch; "" for none.
        threads: how many cores the worker may use.
    """

    module: str
    runtime: str
    precision: str
    batch: int
    device: str
    bundle: str
    network: str = ""
    quick: bool = False
    checkpoint: str = ""
    threads: int = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Task:
        return cls(**{field.name: content[field.name] for field in fields(cls)})

    def torch_module(self) -> nn.Module:
        """The network in PyTorch: the prepared one, or the user's checkpoint. Raises: as reading a checkpoint does."""
        if self.network:
            from fourphase.benchmarks.latency.prepare import Prepared

            return Prepared(self.network, self.quick, Path(self.bundle), {}).module()
        from fourphase.export.checkpoint import load_checkpoint

        return load_checkpoint(Path(self.checkpoint)).network
