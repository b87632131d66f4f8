"""Checkpoints: read without ever running code from the file, checked key by key, written with their configuration.

A `.safetensors` carries the configuration in its metadata under `fourphase.config`: JSON with the tables `network` and
`preprocessing` (absent: the contract's defaults). A `.pt` or `.pth` is a state dict, plain or under "state_dict", read
with `weights_only=True`; it has no configuration, so `--config net.toml` with the same two tables is required.

The network is ours, or what a factory makes that the user names (see `factory`); a file never names one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fourphase.export.checkpoint_file import CONFIG_KEY, read_config, read_weights
from fourphase.export.config import NetworkConfig
from fourphase.export.factory import network_from_factory
from fourphase.export.interface import Interface, interface_from_config, interface_from_dict
from fourphase.export.module_outputs import probed_outputs
from fourphase.export.network import FourPhaseNet
from fourphase.runtime.atomic import write_file
from fourphase.runtime.config import PreprocessingConfig, canonical_json
from fourphase.runtime.errors import ModelIncompatible, UsageError

__all__ = [
    "CONFIG_KEY",
    "Checkpoint",
    "checkpoint_of_module",
    "load_checkpoint",
    "read_config",
    "save_checkpoint",
]

#: DistributedDataParallel and torch.compile put these before every key.
_PREFIXES = ("module.", "_orig_mod.")
#: At most this many keys are named in an error; the rest are counted.
_NAMED_KEYS = 12


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network, ready for export.

    Attributes:
        network: in eval mode, float32, on the CPU: FourPhaseNet or any other.
        preprocessing: what its input must look like.
        sha256: of the file.
        notes: what was changed while reading (prefixes removed, FP16 widened), for the report.
        interface: its phases, classes and outputs.
        section: what a bundle's manifest says of the network, JSON types: our configuration, or who made it.
    """

    network: nn.Module
    preprocessing: PreprocessingConfig
    sha256: str
    notes: tuple[str, ...]
    interface: Interface
    section: Mapping[str, Any]


def load_checkpoint(path: Path, config: Path | None = None, model: str | None = None) -> Checkpoint:
    """Reads a checkpoint; `config` (TOML) overrides the configuration the file carries.

    Args:
        model: "package.module:factory" of another network than ours. It is imported and called: code that the user
            named runs. Never taken from a file.

    Raises: InputMissing (10), ModelIncompatible (20) for a file that is not a checkpoint, holds code or does not fit
        the configuration, UsageError (2) for a wrong or missing configuration or factory, ExportRefused (25) for a
        network that does not give logits.
    """
    data, (state, carried) = read_weights(path)
    sections = read_config(config) if config else carried
    if sections is None and model is None:
        raise UsageError(
            f"{path.name} carries no network configuration",
            "give --config net.toml with the tables [network] and [preprocessing]",
            key="config_missing",
        )
    sections = sections or {}
    preprocessing = PreprocessingConfig.from_dict(sections.get("preprocessing", {}))
    digest = hashlib.sha256(data).hexdigest()
    if model is not None:
        interface, arguments = interface_from_dict(sections.get("model", {})), sections.get("network", {})
        # Before loading: a factory that gives a half network would round the FP32 weights it is filled with.
        network = network_from_factory(model, arguments).float().cpu()
        notes = _load_state(network, state)
        return _foreign(network, preprocessing, digest, notes, interface, _section(model, arguments))
    _refuse_model_table(sections)
    ours = FourPhaseNet(NetworkConfig.from_dict(sections.get("network", {})))
    _check_channels(preprocessing)
    return _ours(ours, preprocessing, digest, _load_state(ours, state))


def checkpoint_of_module(
    module: nn.Module,
    preprocessing: PreprocessingConfig,
    *,
    phases: Sequence[str],
    classes: Sequence[str],
    factory: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """A network in memory as a checkpoint; its outputs are found by running it once.

    Args:
        module: takes study float32 (B, P, T, C, H, W), gives logits (B, K) or (logits, phase_logits (B, P, K)).
        factory, arguments: for the manifest, how it was made; JSON types.

    Raises: UsageError (2) for phases and classes that are none, ExportRefused (25) for other outputs.
    """
    section = _section(factory, arguments or {})
    digest = hashlib.sha256(canonical_json(section).encode())
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    if isinstance(module, FourPhaseNet):
        return _ours(module, preprocessing, digest.hexdigest(), ())
    interface = Interface(tuple(phases), tuple(classes))
    return _foreign(module, preprocessing, digest.hexdigest(), (), interface, section)


def _ours(network: FourPhaseNet, preprocessing: PreprocessingConfig, sha256: str, notes: tuple[str, ...]) -> Checkpoint:
    interface = interface_from_config(network.config)
    return Checkpoint(network.eval(), preprocessing, sha256, notes, interface, network.config.to_dict())


def _foreign(
    network: nn.Module,
    preprocessing: PreprocessingConfig,
    sha256: str,
    notes: tuple[str, ...],
    interface: Interface,
    section: Mapping[str, Any],
) -> Checkpoint:
    network = network.eval().float()
    return Checkpoint(network, preprocessing, sha256, notes, probed_outputs(network, interface, preprocessing), section)


def _section(factory: str | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"factory": factory, "arguments": dict(arguments)}


def _refuse_model_table(sections: Mapping[str, Any]) -> None:
    if "model" in sections:
        raise UsageError(
            "the table [model] speaks of another network than ours",
            "give --model package.module:factory, or put phases and classes into [network]",
            key="config_invalid",
        )


def save_checkpoint(
    path: Path, network: FourPhaseNet, preprocessing: PreprocessingConfig, training: Mapping[str, Any] | None = None
) -> None:
    """Writes a `.safetensors` with its configuration; the same network gives the same bytes.

    `training` may hold anything worth remembering about how the weights came to be (JSON values).
    """
    from safetensors.torch import save

    sections = {"network": network.config.to_dict(), "preprocessing": preprocessing.to_dict()}
    if training:
        sections["training"] = dict(training)
    state = {key: value.detach().contiguous() for key, value in network.state_dict().items()}
    # One metadata key only: safetensors does not keep the order of several.
    write_file(path, save(state, metadata={CONFIG_KEY: canonical_json(sections)}))


def _check_channels(preprocessing: PreprocessingConfig) -> None:
    if preprocessing.channels != 3:
        raise UsageError(
            f"the preprocessing makes {preprocessing.channels} channels, the network takes 3",
            "give three windows",
            key="config_invalid",
        )


def _load_state(network: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Fills the network, or says by name which keys are missing, unexpected, wrongly shaped or not finite."""
    notes = []
    expected = network.state_dict()
    for prefix in _PREFIXES:
        stripped = {key.removeprefix(prefix): value for key, value in state.items()}
        # A network may have a part of its own that is called as the wrapper is.
        fits_better = len(expected.keys() & stripped.keys()) >= len(expected.keys() & state.keys())
        if state and all(key.startswith(prefix) for key in state) and fits_better:
            state = stripped
            notes.append(f"removed the prefix {prefix!r} from every key")
    # BatchNorm's step counter plays no part in inference and is absent from older checkpoints.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    shared = [key for key in expected if key in state]
    problems = {
        "missing": missing,
        "unexpected": [key for key in state if key not in expected],
        "wrong shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in shared
            if state[key].shape != expected[key].shape
        ],
        "not finite": [key for key in shared if not torch.isfinite(state[key]).all()],
    }
    found = [f"{problem}: {_listed(keys)}" for problem, keys in problems.items() if keys]
    if found:
        raise ModelIncompatible(
            f"the checkpoint does not fit the network configuration; {'; '.join(found)}",
            "give the configuration it was trained with (--config), or the right checkpoint",
            key="checkpoint_keys",
        )
    kinds = {str(state[key].dtype) for key in shared if state[key].is_floating_point()} - {"torch.float32"}
    if kinds:
        notes.append(f"widened {', '.join(sorted(kinds))} weights to torch.float32")
    network.load_state_dict({**expected, **{key: state[key] for key in shared}})
    return tuple(notes)


def _listed(keys: list[str]) -> str:
    more = len(keys) - _NAMED_KEYS
    return ", ".join(keys[:_NAMED_KEYS]) + (f" and {more} more" if more > 0 else "")
