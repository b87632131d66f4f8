"""A policy as a file: TOML or JSON, selector -> precision, at the top or under the key `policy` (as in a search.json).

"*" = "fp16"
gru = "fp32"
stage = "int8"
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fourphase.calibration.blocks import Policy
from fourphase.runtime.errors import InputMissing, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["read_policy"]


def read_policy(path: Path) -> Policy:
    """Raises: InputMissing (10); UsageError (2) for what is no policy, or an unknown precision."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputMissing(f"the policy {path.name} cannot be read: {error.strerror}", "check the path") from error
    try:
        document: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise _invalid(f"the policy {path.name} is not valid {path.suffix[1:].upper() or 'TOML'}: {error}") from error
    rules = document.get("policy", document) if isinstance(document, dict) else None
    if not isinstance(rules, dict) or not rules or not all(isinstance(value, str) for value in rules.values()):
        raise _invalid(f"the policy {path.name} is not a table of selectors and precisions")
    return Policy.of(rules)


def _invalid(cause: str) -> UsageError:
    return UsageError(cause, 'write lines such as  stage = "int8"  and  gru = "fp32"', key="policy_invalid")
