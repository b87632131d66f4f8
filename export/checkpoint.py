"""Checkpoints: read without ever running code from the file, checked key by key, written with their configuration.

A `.safetensors` carries the configuration in its metadata under `fourphase.config`: JSON with the tables `network` and
`preprocessing` (absent: the contract's defaults). A `.pt` or `.pth` is a state dict, plain or under "state_dict", read
with `weights_only=True`; it has no configuration, so `--config net.toml` with the same two tables is required.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomllib
import torch
from torch import Tensor

from fourphase.export.config import NetworkConfig
from fourphase.export.network import FourPhaseNet
from fourphase.runtime.atomic import write_file
from fourphase.runtime.config import PreprocessingConfig, canonical_json
from fourphase.runtime.errors import InputMissing, ModelIncompatible, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["CONFIG_KEY", "Checkpoint", "load_checkpoint", "read_config", "save_checkpoint"]

CONFIG_KEY = "fourphase.config"
_SECTIONS = ("network", "preprocessing", "training")
#: DistributedDataParallel and torch.compile put these before every key.
_PREFIXES = ("module.", "_orig_mod.")
#: At most this many keys are named in an error; the rest are counted.
_NAMED_KEYS = 12


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network, ready for export.

    Attributes:
        network: in eval mode, float32, on the CPU.
        preprocessing: what its input must look like.
        sha256: of the file.
        notes: what was changed while reading (prefixes removed, FP16 widened), for the report.
    """

    network: FourPhaseNet
    preprocessing: PreprocessingConfig
    sha256: str
    notes: tuple[str, ...]


def load_checkpoint(path: Path, config: Path | None = None) -> Checkpoint:
    """Reads a checkpoint; `config` (TOML) overrides the configuration the file carries.

    Raises: InputMissing (10), ModelIncompatible (20) for a file that is not a checkpoint, holds code or does not fit
        the configuration, UsageError (2) for a wrong or missing configuration.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputMissing(f"the checkpoint {path} cannot be read: {error.strerror}", "check the path") from error
    if path.suffix == ".safetensors":
        state, carried = _read_safetensors(data)
    elif path.suffix in (".pt", ".pth"):
        state, carried = _read_pickle(data)
    else:
        raise UsageError(
            f"{path.name} is not a checkpoint this version reads", "give a .safetensors, .pt or .pth file", key="suffix"
        )
    sections = read_config(config) if config else carried
    if sections is None:
        raise UsageError(
            f"{path.name} carries no network configuration",
            "give --config net.toml with the tables [network] and [preprocessing]",
            key="config_missing",
        )
    network = FourPhaseNet(NetworkConfig.from_dict(sections.get("network", {})))
    preprocessing = PreprocessingConfig.from_dict(sections.get("preprocessing", {}))
    _check_channels(preprocessing)
    notes = _load_state(network, state)
    return Checkpoint(network.eval(), preprocessing, hashlib.sha256(data).hexdigest(), notes)


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


def _read_safetensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state = load(data)
        # The header: a little-endian length, then JSON.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError) as error:
        raise _unreadable(f"it is not a valid .safetensors file ({error})") from error
    text = header.get("__metadata__", {}).get(CONFIG_KEY)
    return state, None if text is None else _parse_sections(text)


def _read_pickle(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    try:
        with warnings.catch_warnings():
            # PyTorch remarks on the pickle protocol; what it cannot read, it refuses below.
            warnings.simplefilter("ignore")
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelIncompatible(
            "the checkpoint holds pickled objects other than tensors, which could run code; nothing was run",
            "save only the state dict: torch.save(model.state_dict(), path), or a .safetensors file",
            key="checkpoint_unsafe",
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, AttributeError, IndexError) as error:
        raise _unreadable("it is not a PyTorch checkpoint, or it is truncated") from error
    carried = content.get(CONFIG_KEY) if isinstance(content, dict) else None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise _unreadable("it holds no state dict")
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    return tensors, _parse_sections(carried) if isinstance(carried, str) else None


def _unreadable(reason: str) -> ModelIncompatible:
    return ModelIncompatible(
        f"the checkpoint cannot be read: {reason}", "copy or save the checkpoint again", key="checkpoint_unreadable"
    )


def _parse_sections(text: str) -> dict[str, Any]:
    try:
        sections = json.loads(text)
    except ValueError as error:
        raise _unreadable(f"its {CONFIG_KEY} is not JSON") from error
    return _checked_sections(sections, CONFIG_KEY)


def read_config(path: Path) -> dict[str, Any]:
    """The tables of a `net.toml`.

    Raises: InputMissing (10), UsageError (2).
    """
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputMissing(f"the configuration {path} cannot be read: {error.strerror}", "check the path") from error
    except ValueError as error:
        raise UsageError(f"{path.name} is not valid TOML: {error}", "correct the file", key="config_invalid") from error
    return _checked_sections(sections, path.name)


def _checked_sections(sections: Any, source: str) -> dict[str, Any]:
    valid = isinstance(sections, dict) and all(isinstance(sections.get(name, {}), dict) for name in _SECTIONS)
    unknown = sorted(set(sections) - set(_SECTIONS)) if valid else []
    if not valid or unknown:
        raise UsageError(
            f"{source} holds unknown tables: {', '.join(unknown)}" if unknown else f"{source} is not a set of tables",
            "the tables are [network] and [preprocessing]",
            key="config_invalid",
        )
    return dict(sections)


def _check_channels(preprocessing: PreprocessingConfig) -> None:
    if preprocessing.channels != 3:
        raise UsageError(
            f"the preprocessing makes {preprocessing.channels} channels, the network takes 3",
            "give three windows",
            key="config_invalid",
        )


def _load_state(network: FourPhaseNet, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Fills the network, or says by name which keys are missing, unexpected, wrongly shaped or not finite."""
    notes = []
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
            notes.append(f"removed the prefix {prefix!r} from every key")
    expected = network.state_dict()
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
