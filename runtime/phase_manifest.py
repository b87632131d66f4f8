"""A site's `phases.toml`: what its own series descriptions mean, where the general words do not know it.

    schema = "fourphase.phases/1"
    [ART]
    descriptions = ["Abdomen HAP*", "leber km frueh*"]   # shell patterns for the whole SeriesDescription
    [ignore]
    descriptions = ["*research*"]                        # never a phase

Patterns are compared like the general words: without regard to case, accents, width, and with `_` as a space. They
replace the general words for the series they match; they never replace geometry or acquisition times.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fourphase.runtime.dicom_file import open_regular
from fourphase.runtime.errors import InputMissing, UsageError
from fourphase.runtime.phase_tokens import CLASSES, normalized

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["IGNORE", "SCHEMA", "PhaseManifest", "SiteRule", "read_manifest"]

SCHEMA = "fourphase.phases/1"
#: The table of descriptions that are no phase.
IGNORE = "ignore"
#: A site's file is some lines; anything larger is another file.
LARGEST_FILE = 2**20


@dataclass(frozen=True)
class SiteRule:
    """One pattern of the file: the phase it means (NC, ART, PV, DL or "ignore") and the pattern as it was written."""

    phase: str
    pattern: str


@dataclass(frozen=True)
class PhaseManifest:
    """The rules of one `phases.toml`, in the order of the file."""

    rules: tuple[SiteRule, ...]

    def rule_for(self, description: str) -> SiteRule | None:
        """The rule that a SeriesDescription fits; None if there is none, or no description.

        Raises: UsageError (2) if it fits rules of two phases.
        """
        text = normalized(description)
        fitting = [rule for rule in self.rules if text and fnmatchcase(text, normalized(rule.pattern))]
        if len({rule.phase for rule in fitting}) > 1:
            named = " and ".join(f"{rule.pattern!r} ({rule.phase})" for rule in fitting[:2])
            raise UsageError(
                f"a series fits two patterns of the phases file: {named}",
                "make the patterns of one phase narrower",
                key="phases_file_conflict",
            )
        return fitting[0] if fitting else None


def read_manifest(path: Path) -> PhaseManifest:
    """Reads a site's `phases.toml`.

    Raises:
        InputMissing (10): no such file.
        UsageError (2): not TOML, another schema, an unknown table or key, a pattern that matches everything.
    """
    try:
        with open_regular(path.resolve()) as file:
            raw = file.read(LARGEST_FILE + 1)
    except OSError:
        raise InputMissing(
            "the phases file does not exist or cannot be read", "give --phases FILE, a phases.toml", key="phases_file"
        ) from None
    if len(raw) > LARGEST_FILE:
        raise _invalid("is too large to be one")
    try:
        body = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise _invalid("is not valid TOML in UTF-8") from None
    return PhaseManifest(_rules(body))


def _rules(body: Mapping[str, Any]) -> tuple[SiteRule, ...]:
    if body.get("schema") != SCHEMA:
        raise _invalid(f'has another schema than "{SCHEMA}"')
    tables = {name: table for name, table in body.items() if name != "schema"}
    if unknown := sorted(set(tables) - {*CLASSES, IGNORE}):
        raise _invalid(f"has unknown entries: {', '.join(unknown[:5])}")
    return tuple(SiteRule(phase, pattern) for phase, table in tables.items() for pattern in _patterns(phase, table))


def _patterns(phase: str, table: Any) -> list[str]:
    if not isinstance(table, dict) or set(table) != {"descriptions"}:
        raise _invalid(f"needs exactly one key in [{phase}]: descriptions")
    patterns = table["descriptions"]
    if not isinstance(patterns, list) or not all(isinstance(one, str) for one in patterns):
        raise _invalid(f"needs a list of texts as descriptions in [{phase}]")
    if any(not normalized(one).strip("*? ") for one in patterns):
        raise _invalid(f"has a pattern in [{phase}] that fits every series")
    return list(patterns)


def _invalid(what: str) -> UsageError:
    return UsageError(
        f"the phases file {what}",
        f'correct it: schema = "{SCHEMA}", then [ART] descriptions = [...]',
        key="phases_file",
    )
