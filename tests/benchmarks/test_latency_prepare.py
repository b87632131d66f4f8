"""Prepared networks: the module is the bundle's, the cache is hit, what cannot be lowered is said."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fourphase.benchmarks.latency import prepare as prepare_module
from fourphase.benchmarks.latency.lowering import lowered_steps
from fourphase.benchmarks.latency.prepare import Prepared, prepare, prepared_before
from fourphase.benchmarks.latency.studies import reference_outputs, studies_of
from fourphase.benchmarks.networks import TINY, Scale, baseline
from fourphase.benchmarks.phantoms.phantom_set import PhantomSet
from fourphase.calibration.cpu_session import cpu_session
from fourphase.runtime.backends import choose_backend
from fourphase.runtime.bundle import load_bundle
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import ModelIncompatible, UsageError


class Small(nn.Module):
    """Study -> logits by 3D convolutions over all phases and channels: exported in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv3d(12, 8, 3, stride=2, padding=1), nn.Conv3d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, study: torch.Tensor) -> torch.Tensor:
        volume = study.transpose(2, 3).flatten(1, 2)
        logits: torch.Tensor = self.head(self.body(self.stem(volume).relu()).relu().mean(dim=(2, 3, 4)))
        return logits


def small(scale: Scale, batch: int) -> tuple[nn.Module, torch.Tensor]:
    return baseline(lambda scale: Small())(scale, batch)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NETWORKS", "BASELINES"):
        monkeypatch.setattr(prepare_module, name, {"small": small})


@pytest.fixture
def made(work: Path, registry: None) -> Prepared:
    return prepare("small", quick=True, work=work)


def test_the_module_is_the_one_the_bundle_was_made_of(made: Prepared) -> None:
    bundle = load_bundle(made.bundle)
    assert (tuple(bundle.models), bundle.outputs, made.missing) == (("fp32", "int8"), ("logits",), {})
    assert bundle.input_shape == (4, *TINY.size[:1], 3, *TINY.size[1:])
    studies = studies_of(bundle, 3)
    with torch.no_grad():
        logits = made.module()(torch.from_numpy(studies)).numpy()
    fresh, _ = small(TINY, 1)
    with torch.no_grad():
        assert np.abs(logits - fresh(torch.from_numpy(studies)).numpy()).max() < 1e-6
    found = choose_backend(bundle, "onnxruntime", precision="fp32").backend.infer(studies)
    assert np.abs(found.logits - logits).max() < 1e-5
    assert np.abs(reference_outputs(bundle, 3)["logits"] - logits).max() < 1e-5


def test_int8_passes_its_own_golden_outputs_and_is_not_fp32(made: Prepared) -> None:
    bundle = load_bundle(made.bundle)
    golden = bundle.golden("int8")
    found = choose_backend(bundle, "onnxruntime", precision="int8").backend.infer(golden.study(0))
    assert np.abs(found.logits - golden.logits).max() <= golden.tolerance.atol
    assert 0 < np.abs(golden.logits - bundle.golden("fp32").logits).max() < 0.1


def test_int8_may_be_as_far_off_as_it_is_from_fp32_on_any_study_it_was_made_with(made: Prepared) -> None:
    """On one study alone int8 may hit FP32 by luck, and then a right program is refused."""
    bundle = load_bundle(made.bundle)
    phantoms = PhantomSet(2, 0, 0.5, PreprocessingConfig(size=TINY.size), purpose="calibration")
    studies = [bundle.golden("fp32").study(0), *phantoms.studies()]
    fp32, int8 = (
        np.concatenate([session.run(["logits"], {"study": study})[0] for study in studies])
        for session in (cpu_session(bundle.read(bundle.models[name].file), optimize=False) for name in ("fp32", "int8"))
    )
    distances = np.abs(int8 - fp32).max(axis=1)
    assert bundle.golden("int8").tolerance.atol == pytest.approx(
        max(2 * distances.max(), 0.02 * np.abs(fp32).max()), rel=1e-3
    )


def test_the_second_time_it_is_in_the_cache(made: Prepared, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> Prepared:
        raise AssertionError("made again")

    monkeypatch.setattr(prepare_module, "_made", never)
    assert prepare("small", quick=True, work=work) == made == prepared_before("small", quick=True, work=work)
    assert prepared_before("small", quick=True, precisions=("fp32", "fp16"), work=work) is None
    (made.bundle / "manifest.json").rename(made.bundle / "gone")
    assert prepared_before("small", quick=True, work=work) is None
    (made.bundle / "gone").rename(made.bundle / "manifest.json")


def test_what_other_versions_made_goes_after_a_day(tmp_path: Path) -> None:
    now, ours = time.time(), tmp_path / f"small-tiny-fp32-{'a' * 16}"
    ages = {"small-tiny-fp32-" + "b" * 16: 2e5, "small-tiny-fp32-" + "c" * 16: 100.0, "stic-tiny-fp32-" + "d" * 16: 2e5,
            "small-tiny-fp32-int8-" + "e" * 16: 2e5, ours.name: 2e5}  # fmt: skip
    for name, age in ages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "prepared.json").touch()
        os.utime(tmp_path / name / "prepared.json", (now - age, now - age))
    prepare_module._remove_outdated(ours)
    assert {path.name for path in tmp_path.iterdir()} == set(ages) - {"small-tiny-fp32-" + "b" * 16}


def test_what_cannot_be_lowered_is_missing_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(model: Any, precisions: Any, data: Any) -> Any:
        if "int8" in precisions:
            raise ModelIncompatible("a value is not finite", "retrain")
        return lowered_steps(model, precisions, data)

    monkeypatch.setattr(prepare_module, "lowered_steps", refusing)
    made = prepare("small", quick=True, work=tmp_path)
    assert made.missing == {"int8": "it cannot be made: a value is not finite"}
    assert tuple(load_bundle(made.bundle).models) == ("fp32",)


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="unknown network 'vgg'"):
        prepare("vgg", quick=True)
    with pytest.raises(UsageError, match="unknown precision 'fp8'"):
        prepare("small", quick=True, precisions=("fp8",))
