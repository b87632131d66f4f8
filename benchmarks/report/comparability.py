"""Whether two runs can be compared at all, and what else than their numbers differs between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fourphase.benchmarks.report.reading import Row, dig
from fourphase.runtime.errors import UsageError

__all__ = ["Sections", "check_comparable", "other_changes"]

#: Section -> it in OLD and in NEW, {} where it is not.
Sections = Mapping[str, tuple[Row, Row]]

#: Of a section's settings: what is told as part of the machine, and what is no setting.
_NOT_SETTINGS = ("threads", "notes")
#: What a section was measured on; with another one, times and AUCs are of something else.
_SUBJECT: tuple[tuple[str, ...], ...] = (("study",), ("phantoms",), ("slices",), ("settings", "study"))
#: Longer settings are only said to differ.
_LONGEST = 60


def check_comparable(old: Row, new: Row, sections: Sections, *, other_machine: bool) -> list[str]:
    """What differs between the machines, which is nothing unless `other_machine`.

    Raises: UsageError (2): a rehearsal with a measurement (quick_differs), another study or other phantoms
        (study_differs), a run that does not say its machine (machine_unknown), another machine or number of threads
        (machine_differs); the latter two unless `other_machine`.
    """
    if bool(old.get("quick")) != bool(new.get("quick")):
        raise UsageError(
            "one of the two is a rehearsal (--quick)", "compare measurements with measurements", key="quick_differs"
        )
    for name, pair in sections.items():
        for what in _other_subjects(*pair):
            raise UsageError(
                f"{name}: {what}, so the two are of different things",
                "compare runs of the same study or phantoms",
                key="study_differs",
            )
    silent = [side for side, run in (("OLD", old), ("NEW", new)) if not dig(run, "machine", "cpu")]
    if silent and not other_machine:
        raise UsageError(
            f"{' and '.join(silent)} does not say of which machine it is",
            "measure it again, or say --other-machine",
            key="machine_unknown",
        )
    differ = _machine_differences(old, new, sections)
    if differ and not other_machine:
        raise UsageError(
            f"the runs are of different machines: {'; '.join(differ)}",
            "compare runs of one machine, or say --other-machine",
            key="machine_differs",
        )
    return [*(f"{side} does not say of which machine it is" for side in silent), *differ]


def other_changes(old: Row, new: Row, sections: Sections) -> Iterator[str]:
    """Versions, settings and folds that differ: a row may have changed because of them."""
    yield from _changes("", dig(old, "machine", "packages"), dig(new, "machine", "packages"))
    python = [dig(run, "machine", "python") for run in (old, new)]
    yield from _changes("", *({"Python": version} for version in python))
    for name, pair in sections.items():
        before, after = (_settings(section) for section in pair)
        # A section that is not there, or was ended early, has no other settings.
        yield from _changes(f"{name}: ", before, after) if before and after else ()


def _other_subjects(old: Row, new: Row) -> Iterator[str]:
    for path in _SUBJECT:
        before, after = (_subject(dig(section, *path)) for section in (old, new))
        if before is not None and after is not None and before != after:
            yield f"{path[-1]} {_short(before)} in OLD and {_short(after)} in NEW"


def _subject(found: Any) -> Any:
    if isinstance(found, Mapping) and found.get("phantom"):
        # A phantom's bytes may change with the version of what wrote it.
        return {name: value for name, value in found.items() if name != "bytes"}
    return found


def _settings(section: Row) -> dict[str, Any]:
    settings = dig(section, "settings")
    found = _flat({name: value for name, value in settings.items() if name not in _NOT_SETTINGS}) if settings else {}
    return {**found, "folds": section["folds"]} if "folds" in section else found


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found


def _machine_differences(old: Row, new: Row, sections: Sections) -> list[str]:
    facts = {
        "CPU": ("machine", "cpu", "name"),
        "usable cores": ("machine", "cpu", "usable_cores"),
        "GPU": ("machine", "gpu", "name"),
    }
    found = [(name, dig(old, *path), dig(new, *path)) for name, path in facts.items()]
    for name, pair in sections.items():
        before, after = (dig(section, "settings", "threads") for section in pair)
        # A section that is not there, or was ended early, is not of other threads.
        found += [(f"threads of {name}", before, after)] if before and after else []
    return [f"{name} {before or 'none'} and {after or 'none'}" for name, before, after in found if before != after]


def _changes(where: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> Iterator[str]:
    before, after = old or {}, new or {}
    for name in dict.fromkeys((*before, *after)):
        if before.get(name) != after.get(name):
            one, other = (_short(side.get(name)) for side in (before, after))
            short = max(len(one), len(other)) <= _LONGEST
            yield f"{where}{name} {one} -> {other}" if short else f"{where}{name} differs"


def _short(value: Any) -> str:
    return "absent" if value is None else str(value)
