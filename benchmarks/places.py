"""What may leave this machine in a report: paths become names, floats get six digits. Neither torch nor a file here."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["cleaned", "machine_places", "readable"]


def cleaned(value: Any) -> Any:
    """JSON types with six digits of every float, and every place of this machine in a text replaced by its name."""
    return readable(value, machine_places())


def readable(value: Any, places: Mapping[str, str]) -> Any:
    """JSON types with six digits of every float, and every place (a path) in a string replaced by its name."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, str):
        for path in sorted(places, key=len, reverse=True):
            value = value.replace(path, places[path])
        return value
    if isinstance(value, Mapping):
        return {name: readable(part, places) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [readable(part, places) for part in value]
    return value


def machine_places() -> dict[str, str]:
    """The directories of this machine that error texts speak of."""
    places = {
        os.getcwd(): "<cwd>",
        str(Path(__file__).resolve().parents[1]): "<project>",
        _home(): "<home>",
        tempfile.gettempdir(): "<tmp>",
        sys.prefix: "<python>",
        sys.base_prefix: "<python>",
    }
    return {path: name for path, name in places.items() if len(path) > 1}


def _home() -> str:
    """ "" where nobody knows it: a user id without an entry, no HOME."""
    try:
        return str(Path.home())
    except RuntimeError:
        return ""
