"""Phantom sets: seeds that never meet, kinds that are what their labels say, phases in the model's order."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fourphase.benchmarks.phantoms.phantom_set import PURPOSES, PhantomSet, check_fits, first_seed
from fourphase.calibration.evaluation import Studies, positives_of
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import ModelIncompatible

SMALL = PreprocessingConfig(size=(4, 16, 16))
SET = PhantomSet(6, 0, 0.0, SMALL)


def test_two_purposes_never_share_a_phantom() -> None:
    starts = sorted(first_seed(purpose, seed) for purpose in PURPOSES for seed in range(20))
    assert all(after - before >= 1_000_000 for before, after in pairwise(starts))
    assert starts[0] > 1_000_000, "the seeds that people type are nobody's"


def test_trained_networks_stay_what_they_were() -> None:
    """The seeds under which every checkpoint so far was trained and validated."""
    assert [first_seed(purpose, 0) for purpose in PURPOSES[:3]] == [10_000_000, 11_000_000, 12_000_000]
    assert first_seed("training", 7) == 80_000_000


def test_kinds_alternate_and_look_like_it() -> None:
    """The centre of a textbook HCC lights up in the arterial phase, that of an ICC does not."""
    studies: Studies = SET
    assert studies.labels == ("HCC", "ICC") * 3
    assert positives_of(studies, ("HCC", "ICC")) is not None
    uptake: dict[str, list[float]] = {"HCC": [], "ICC": []}
    for index, label in enumerate(SET.labels):
        study = SET.study(index)
        assert study.shape == (1, 4, 4, 3, 16, 16)
        assert study.dtype == np.float32
        before, arterial, *_ = study[0, :, 1:3, 1, 7:9, 7:9].mean(axis=(1, 2, 3))
        uptake[label].append(float(arterial - before))
    assert min(uptake["HCC"]) > max(uptake["ICC"])


def test_a_number_always_gives_the_same_phantom_and_another_number_another() -> None:
    np.testing.assert_array_equal(SET.study(2), PhantomSet(3, 0, 0.0, SMALL).study(2))
    for other in (SET.study(4), replace(SET, seed=1).study(2), replace(SET, purpose="calibration").study(2)):
        assert np.abs(SET.study(2) - other).max() > 0.1
    first, second, *_ = SET.studies()
    np.testing.assert_array_equal(first, SET.study(0))
    np.testing.assert_array_equal(second, SET.study(1))


def test_the_study_is_its_hu_in_windows() -> None:
    """The second channel by hand: level 40, width 400, then ImageNet's mean and deviation."""
    expected = (np.clip((SET.hu(2) + 160) / 400, 0, 1) - 0.456) / 0.224
    np.testing.assert_allclose(SET.study(2)[0, :, :, 1], expected, atol=1e-5)
    np.testing.assert_array_equal(replace(SET, phases=("DL", "NC")).hu(2), SET.hu(2)[[3, 0]])


def test_phases_come_in_the_models_order() -> None:
    swapped = replace(SET, phases=("DL", "NC"))
    np.testing.assert_array_equal(swapped.study(0), SET.study(0)[:, [3, 0]])


def test_the_hash_is_of_all_that_the_phantoms_follow_from() -> None:
    changes: list[dict[str, object]] = [
        {}, {"count": 7}, {"seed": 1}, {"difficulty": 0.1}, {"config": PreprocessingConfig()}, {"phases": ("NC",)},
        {"purpose": "calibration"},
    ]  # fmt: skip
    assert len({replace(SET, **change).hash for change in changes}) == len(changes)  # type: ignore[arg-type]
    assert replace(SET).hash == SET.hash


def test_a_model_of_other_classes_or_phases_is_refused() -> None:
    check_fits(("ICC", "HCC"), ("NC", "ART", "PV"))
    with pytest.raises(ModelIncompatible, match="FNH"):
        check_fits(("HCC", "FNH"), ("NC",))
    with pytest.raises(ModelIncompatible, match="HBP"):
        check_fits(("HCC", "ICC"), ("NC", "HBP"))
