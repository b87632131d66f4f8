"""The sections of a report: which step measures each, and what its result calls itself. It measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fourphase.benchmarks.guarded_steps import Step
from fourphase.runtime.errors import UsageError

__all__ = ["SECTIONS", "Section", "chosen_sections"]

_ROOM = "fourphase.benchmarks"


@dataclass(frozen=True)
class Section:
    """One question and the step that answers it.

    Attributes:
        schema: of the step's result, without its version.
        function: "package.module:name", called as name(save, quick=..., **options).
        options: what the report asks for beyond the command's defaults; JSON types only.
    """

    name: str
    title: str
    schema: str
    function: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def step(self, quick: bool) -> Step:
        return Step(self.name, self.function, {"quick": quick, **self.options})


def _named(*sections: Section) -> Mapping[str, Section]:
    return MappingProxyType({section.name: section for section in sections})


#: In the order in which they run and stand in a report. What the other sections hang on comes first.
SECTIONS: Mapping[str, Section] = _named(
    Section(
        "latency", "Latency", "fourphase.latency", f"{_ROOM}.latency.command:latency_step", {"networks": ["all"]}
    ),
    Section("end-to-end", "End to end", "fourphase.end-to-end", f"{_ROOM}.end_to_end.command:end_to_end_step"),
    Section("gru", "GRU: loop or unrolled", "fourphase.gru", f"{_ROOM}.scaling.command:gru_step"),
    Section("scaling", "Scaling", "fourphase.scaling", f"{_ROOM}.scaling.command:scaling_step"),
    Section("archive", "Archive", "fourphase.archive", f"{_ROOM}.archive.command:archive_step"),
    Section(
        "baselines", "Accuracy on phantoms", "fourphase.baselines",
        f"{_ROOM}.accuracy.baselines_command:baselines_step",
    ),
    Section(
        "preprocess", "Preprocessing", "fourphase.preprocess-bench", f"{_ROOM}.preprocess_bench:preprocess_step"
    ),
)  # fmt: skip


def chosen_sections(only: Sequence[str], skip: Sequence[str]) -> list[Section]:
    """The sections that are asked for, in their order.

    Raises: UsageError (2) for a name that is none, and if nothing is left.
    """
    for name in (*only, *skip):
        if name not in SECTIONS:
            raise UsageError(
                f"{name!r} is no section of the report", f"choose of {', '.join(SECTIONS)}", key="section_unknown"
            )
    chosen = [section for name, section in SECTIONS.items() if (not only or name in only) and name not in skip]
    if not chosen:
        raise UsageError("--only and --skip leave no section", "skip fewer sections", key="section_none")
    return chosen
