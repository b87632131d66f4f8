"""A stdout that cannot be written is 30 in every command of fp-bench that measures for long, not a bug."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fourphase.benchmarks import cli, hazards, mutants, networks
from fourphase.benchmarks.accuracy import checkpoint_command
from fourphase.benchmarks.end_to_end import command as end_to_end_command
from fourphase.benchmarks.hazards.cli import hazards as hazards_command
from fourphase.benchmarks.latency import command as latency_command
from fourphase.benchmarks.mutants.cli import mutants as mutants_command
from fourphase.benchmarks.scaling import command as scaling_command
from fourphase.runtime.errors import OutputNotWritable

RESULT: dict[str, Any] = {"schema": "any/1", "rows": []}
DOCUMENT = SimpleNamespace(to_dict=lambda: RESULT)


def measured(module: object, name: str, found: object) -> Callable[[pytest.MonkeyPatch], None]:
    """What takes long is done."""
    return lambda patch: patch.setattr(module, name, lambda *_, **__: found)


CASES = [
    (measured(latency_command, "_measured", RESULT), partial(latency_command.latency, json_output=True)),
    (measured(scaling_command, "_gru", (RESULT, None)), partial(scaling_command.gru, json_output=True)),
    (measured(scaling_command, "_scaling", (RESULT, None)), partial(scaling_command.scaling, json_output=True)),
    (measured(end_to_end_command, "measured", RESULT), partial(end_to_end_command.end_to_end, json_output=True)),
    (measured(hazards.cli, "run_hazards", DOCUMENT), partial(hazards_command, readers="ours", json_output=True)),
    (measured(mutants.cli, "run", []), partial(mutants_command, count=1, json_output=True)),
]


@pytest.mark.parametrize(("prepare", "command"), CASES)
def test_a_full_disk_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch, prepare: Callable[[pytest.MonkeyPatch], None], command: Callable[[], None]
) -> None:
    prepare(monkeypatch)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(OutputNotWritable, match="no space left"):
            command()


def test_a_full_disk_is_told_by_what_writes_files_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    untrained = SimpleNamespace(to_dict=dict)
    monkeypatch.setattr(networks, "untrained", lambda *_: untrained)
    monkeypatch.setattr(networks, "write_untrained", lambda *_: None)
    model = tmp_path / "model.safetensors"
    for command in (
        partial(cli.phantom, tmp_path / "studies", matrix=64, slices=40, json_output=True, quiet=True),
        partial(checkpoint_command.phantom_checkpoint, model, untrained=True, json_output=True),
    ):
        with open("/dev/full", "w") as full:
            monkeypatch.setattr("sys.stdout", full)
            with pytest.raises(OutputNotWritable, match="no space left"):
                command()
