"""The bytes of a checkpoint: weights and the configuration beside them, read without ever running code from the file.

What the weights are of is for `checkpoint`.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourphase.runtime.errors import InputMissing, ModelIncompatible, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["CONFIG_KEY", "read_config", "read_weights"]

CONFIG_KEY = "fourphase.config"
_SECTIONS = ("network", "preprocessing", "training", "model")


def read_weights(path: Path) -> tuple[bytes, tuple[dict[str, Tensor], dict[str, Any] | None]]:
    """The file's bytes, its weights and the configuration it carries."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputMissing(f"the checkpoint {path} cannot be read: {error.strerror}", "check the path") from error
    if path.suffix == ".safetensors":
        return data, _read_safetensors(data)
    if path.suffix in (".pt", ".pth"):
        return data, _read_pickle(data)
    raise UsageError(
        f"{path.name} is not a checkpoint this version reads",
        "give a .safetensors, .pt, .pth or .onnx file",
        key="suffix",
    )


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
            "the tables are [network] and [preprocessing]; for --model and .onnx, [model] too",
            key="config_invalid",
        )
    return dict(sections)
