"""Where slow results are kept, and that nothing kept there is ever believed without proof."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fourphase.calibration.cached_scales import cached_scales
from fourphase.calibration.scales import collect_histograms, scales_from
from fourphase.runtime.cache import CACHE_VARIABLE, cache_folder
from tests.support.quantizable import quantizable_model, studies, write_set


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_place_is_the_variable_else_the_users_cache(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder("scales") == place / "scales"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("scales") == tmp_path / "xdg" / "fourphase" / "scales"


def test_without_a_place_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert cache_folder("scales") is None
    model, data = quantizable_model().SerializeToString(), write_set(tmp_path / "set", studies(1))
    assert cached_scales(model, data, "minmax").from_cache is False


def test_scales_are_read_back_and_are_what_would_be_computed(tmp_path: Path, place: Path) -> None:
    model, data = quantizable_model().SerializeToString(), write_set(tmp_path / "set", studies(2))
    first, second = cached_scales(model, data, "minmax"), cached_scales(model, data, "minmax")
    assert (first.from_cache, second.from_cache) == (False, True)
    names = list(first.scales.values)
    assert second.scales == first.scales == scales_from(collect_histograms(model, names, data), "minmax")


def test_another_model_set_or_algorithm_finds_nothing(tmp_path: Path) -> None:
    model, data = quantizable_model().SerializeToString(), write_set(tmp_path / "set", studies(2))
    cached_scales(model, data, "minmax")
    other = write_set(tmp_path / "other", studies(2, seed=9))
    assert not cached_scales(quantizable_model(seed=1).SerializeToString(), data, "minmax").from_cache
    assert not cached_scales(model, other, "minmax").from_cache
    assert not cached_scales(model, data, "mse").from_cache


def test_an_altered_file_is_replaced_and_not_used(tmp_path: Path, place: Path) -> None:
    model, data = quantizable_model().SerializeToString(), write_set(tmp_path / "set", studies(1))
    right = cached_scales(model, data, "minmax").scales
    (path,) = (place / "scales").iterdir()
    document = json.loads(path.read_text())
    document["values"] = dict.fromkeys(document["values"], 1.0)
    path.write_text(json.dumps(document))
    again = cached_scales(model, data, "minmax")
    assert again.from_cache is False
    assert again.scales == right
    assert cached_scales(model, data, "minmax").from_cache is True
