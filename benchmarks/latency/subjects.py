"""The networks that are measured: of the registry, prepared as bundles, or a user's own bundle. And what each costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourphase.benchmarks.guarded_steps import Step, run_step
from fourphase.benchmarks.latency.candidate import Candidate, Task
from fourphase.benchmarks.latency.limits import Cost, network_cost
from fourphase.benchmarks.latency.runtimes import RUNTIMES, TORCH
from fourphase.runtime.bundle import Bundle, load_bundle
from fourphase.runtime.config import canonical_json
from fourphase.runtime.console import note
from fourphase.runtime.errors import UsageError

if TYPE_CHECKING:
    from fourphase.export.checkpoint import Checkpoint

__all__ = ["Subject", "bundle_subject", "prepared_subject"]

#: Seconds for the export and the lowering of one network of full size.
_PREPARE_S = 3600.0


@dataclass(frozen=True, eq=False)
class Subject:
    """A network that can be measured.

    Attributes:
        name: as it stands in the table.
        bundle: None if it could not be prepared; `problem` says why.
        missing: precision -> why the bundle lacks it.
        cost: None where the network's arithmetic cannot be counted; `cost_reason` says why.
        registry, quick, checkpoint: see `candidate.Task`.
    """

    name: str
    bundle: Bundle | None
    problem: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    cost: Cost | None = None
    cost_reason: str = ""
    registry: str = ""
    quick: bool = False
    checkpoint: str = ""

    def why_not(self, runtime: str, precision: str) -> str | None:
        """Why this network cannot be measured so, whatever the machine; None if it can."""
        if runtime in TORCH:
            own = self.registry or self.checkpoint
            return None if own else "a bundle holds no PyTorch network (--checkpoint gives its own)"
        if self.bundle is None or precision in self.bundle.models:
            return None
        return self.missing.get(
            precision, f"the bundle has no model in {precision}, only in: {', '.join(self.bundle.models)}"
        )

    def task(self, candidate: Candidate, device: str, threads: int) -> Task:
        assert self.bundle is not None
        return Task(
            module=RUNTIMES[candidate.runtime],
            runtime=candidate.runtime,
            precision=candidate.precision,
            batch=candidate.batch,
            device=device,
            bundle=str(self.bundle.path),
            network=self.registry,
            quick=self.quick,
            checkpoint=self.checkpoint,
            threads=threads,
        )

    def to_dict(self) -> dict[str, Any]:
        """The network's entry in the JSON."""
        cost = self.cost
        return {
            "parameters": cost and cost.parameters,
            "gmac": cost and cost.gmac,
            "cost": cost and cost.to_dict(),
            "cost_reason": self.cost_reason,
            "input": None if self.bundle is None else list(self.bundle.input_shape),
            "own_bundle": not self.registry,
        }


def prepared_subject(name: str, precisions: Sequence[str], *, quick: bool, work: Path) -> Subject:
    """A network of the registry, prepared in a process of its own unless it is in `work` already."""
    import torch

    from fourphase.benchmarks.latency.prepare import prepared_before
    from fourphase.benchmarks.networks import NETWORKS, TINY, Scale

    with torch.device("meta"):
        module, study = NETWORKS[name](TINY if quick else Scale(), 1)
    known: dict[str, Any] = {"cost": network_cost(module, study), "registry": name, "quick": quick}
    found = prepared_before(name, quick=quick, precisions=precisions, work=work)
    if found is not None:
        return Subject(name, load_bundle(found.bundle), missing=found.missing, **known)
    note(f"preparing {name}{' (tiny)' if quick else ''}: once, then it is in the cache")
    arguments = {"network": name, "quick": quick, "precisions": list(precisions), "work": str(work)}
    record = run_step(Step(name, "fourphase.benchmarks.latency.prepare:prepare_step", arguments), _PREPARE_S)
    if record["status"] != "ok":
        return Subject(name, None, problem=f"it could not be prepared: {record['reason']}", **known)
    result = record["result"]
    return Subject(name, load_bundle(Path(result["bundle"])), missing=result["missing"], **known)


def bundle_subject(path: Path, checkpoint: str | None) -> Subject:
    """A user's own bundle.

    Raises: ModelIncompatible (20), IntegrityError (21) if it is none; as reading a checkpoint; UsageError (2) for a
        checkpoint of another network.
    """
    bundle = load_bundle(path)
    name = f"bundle:{path.resolve().name}"
    cost, reason = _cost_of(bundle, checkpoint)
    return Subject(name, bundle, cost=cost, cost_reason=reason, checkpoint=checkpoint or "")


def _cost_of(bundle: Bundle, checkpoint: str | None) -> tuple[Cost | None, str]:
    """Counted on the PyTorch network: the checkpoint's, or ours by the manifest's configuration."""
    import torch

    from fourphase.export.config import NetworkConfig
    from fourphase.export.network import FourPhaseNet

    with torch.device("meta"):
        study = torch.empty(1, *bundle.input_shape)
    if checkpoint:
        from fourphase.export.checkpoint import load_checkpoint

        found = load_checkpoint(Path(checkpoint))
        _require_same_network(found, bundle)
        return network_cost(found.network, study), ""
    try:
        with torch.device("meta"):
            network = FourPhaseNet(NetworkConfig.from_dict(dict(bundle.network)))
    except UsageError:
        return None, "the bundle's network is not ours, and without --checkpoint nothing else is known of it"
    return network_cost(network, study), ""


def _require_same_network(checkpoint: Checkpoint, bundle: Bundle) -> None:
    """Raises: UsageError for a checkpoint of another network than the bundle's; weights, the outputs tell of."""
    interface = checkpoint.interface
    pairs = {
        "phases": (list(interface.phases), list(bundle.phases)),
        "classes": (list(interface.classes), list(bundle.classes)),
        "input": (list(interface.input_sizes(checkpoint.preprocessing)), list(bundle.input_shape)),
        "network": (dict(checkpoint.section), _known_of(bundle) or dict(checkpoint.section)),
    }
    for what, (one, two) in pairs.items():
        if canonical_json({what: one}) != canonical_json({what: two}):
            raise UsageError(
                f"the checkpoint and the bundle are of different networks: {what} {one} and {two}",
                "give the checkpoint that the bundle was built from",
                key="checkpoint_of_another",
            )


def _known_of(bundle: Bundle) -> dict[str, Any] | None:
    """What the manifest says of how the network is made, defaults included; None of a graph that was brought along."""
    from fourphase.export.interface import four_phase_config

    ours = four_phase_config(bundle.network)
    if ours is not None:
        return ours.to_dict()
    return None if "onnx" in bundle.network else dict(bundle.network)
