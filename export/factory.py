"""`--model package.module:factory`: a network that somebody else's code makes.

Importing a module and calling its factory runs that code. It is done for a name the user typed, never for one that a
file holds. The current directory is searched after the installed packages, so that a factory beside the checkpoint is
found, and what it imports while it runs. What that code prints goes to stderr: stdout is the command's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from torch import nn

from fourphase.runtime.errors import ExportRefused, UsageError

__all__ = ["network_from_factory"]

_FORM = "give --model package.module:factory, where factory(**[network]) returns a torch.nn.Module"


def network_from_factory(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Imports "package.module:factory" and calls it with the keyword arguments.

    Raises: UsageError (2) if it is not found or not callable; ExportRefused (25) with its own words if it raises, or
        if it returns no module. Code that ends the process by SystemExit has raised.
    """
    factory = _imported(name)
    try:
        with redirect_stdout(sys.stderr):
            network = factory(**arguments)
    except (Exception, SystemExit) as error:
        words = next(iter(str(error).splitlines()), "")
        raise ExportRefused(
            f"the factory {name} failed: {type(error).__name__}: {words}",
            "check the table [network] of the configuration: its keys are the factory's keyword arguments",
            key="factory_failed",
        ) from error
    if not isinstance(network, nn.Module):
        raise ExportRefused(
            f"the factory {name} returned a {type(network).__name__}, not a torch.nn.Module", _FORM, key="factory_kind"
        )
    return network


def _imported(name: str) -> Any:
    module_name, _, path = name.partition(":")
    if not module_name or not path or not all(part.isidentifier() for part in module_name.split(".")):
        raise UsageError(f"{name!r} does not name a factory", _FORM, key="factory_unknown")
    try:
        found: Any = _module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        words = next(iter(str(error).splitlines()), "")
        raise UsageError(
            f"the factory {name} cannot be imported: {type(error).__name__}: {words}", _FORM, key="factory_unknown"
        ) from error
    if not callable(found):
        raise UsageError(f"{name} is a {type(found).__name__} and cannot be called", _FORM, key="factory_unknown")
    return found


def _module(name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        # For good: a factory may import its neighbours only when it is called.
        sys.path.append(here)
    with redirect_stdout(sys.stderr):
        return importlib.import_module(name)
