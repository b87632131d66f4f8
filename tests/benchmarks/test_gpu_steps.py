"""Which steps there are, in which order, and that the calls leave none out."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from fourphase.benchmarks.gpu.kit import MODELS, PRECISIONS
from fourphase.benchmarks.gpu.steps import CALLS, check_steps, selected
from fourphase.benchmarks.guarded_steps import Step
from fourphase.runtime.errors import UsageError


def steps(kit: Path | None = Path("kit")) -> dict[str, Step]:
    return {step.name: step for step in check_steps(kit, Path("scratch"), "cuda", quick=False)}


@pytest.mark.parametrize("name", list(steps(None)))
def test_every_step_names_a_function_that_takes_its_arguments(name: str) -> None:
    step = steps(None)[name]
    module, _, function = step.function.partition(":")
    inspect.signature(getattr(importlib.import_module(module), function)).bind(lambda _: None, **step.arguments)


def test_every_step_is_in_a_call_and_the_first_needs_no_kit() -> None:
    calls = {number: {step.name for step in selected(list(steps().values()), CALLS[number])} for number in CALLS}
    assert set.union(*calls.values()) == set(steps())
    assert all("machine" in names for names in calls.values())
    assert not any(step.needs for step in selected(list(steps(None).values()), CALLS[1]))
    twice = (calls[2] & calls[3]) - {"machine"}
    assert not twice


def test_everything_is_checked_for_both_flavours() -> None:
    names = steps()
    for model in MODELS:
        assert f"tensorrt/{model}" in names
        assert names[f"tensorrt-rtx/{model}/8.9"].instead_of == f"tensorrt-rtx/{model}/current"
    for target, capabilities in (("tensorrt-rtx", [None, "8.0", "8.9"]), ("tensorrt", [None])):
        assert names[f"gru-forms/{target}/network"].arguments["models"] == ["network", "network-unrolled"]
        assert names[f"leaks/{target}"].arguments["capabilities"] == capabilities
        for precision in PRECISIONS:
            assert names[f"product/{target}/{precision}"].arguments["precision"] == precision
            assert f"rebuilds/{target}/{precision}" in names


def test_parts_come_before_the_whole_and_the_baselines_last() -> None:
    names = list(steps(None))
    assert names[:5] == ["machine", "doctor", "kernel", "prepare", "tensorrt-rtx/gru/current"]
    assert names.index("tensorrt-rtx/tail/current") < names.index("tensorrt-rtx/network/current")
    assert names.index("tensorrt-rtx/network/current") < names.index("product/tensorrt-rtx/fp32")
    assert names[-1].startswith("torch/")


def test_what_a_step_needs_is_chosen_with_it() -> None:
    chosen = [step.name for step in selected(list(steps(None).values()), ["tensorrt/gru"])]
    assert chosen == ["prepare", "tensorrt/gru", "tensorrt/gru-unrolled"]
    with pytest.raises(UsageError, match="no step starts with 'nothing'"):
        selected(list(steps().values()), ["nothing"])
