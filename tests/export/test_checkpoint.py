from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from fourphase.export.checkpoint import CONFIG_KEY, load_checkpoint, save_checkpoint
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import FourphaseError, InputMissing, ModelIncompatible, UsageError
from tests.support.networks import SMALL, random_study, small_network

CONFIG = "[network]\nwidth = 4\ngru_hidden = 8\ngate_reduction = 2\n[preprocessing]\nsize = [8, 32, 32]\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "net.toml"
    path.write_text(CONFIG)
    return path


def test_safetensors_carries_its_configuration(tmp_path: Path) -> None:
    network = small_network(lambda_aux=0.25)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, network, SMALL, {"auc": 0.97})
    loaded = load_checkpoint(path)
    assert loaded.network.config == network.config
    assert loaded.preprocessing == SMALL
    study = torch.from_numpy(random_study())
    assert torch.equal(loaded.network(study)[0], network(study)[0])
    assert not loaded.network.training


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        save_checkpoint(path, small_network(), SMALL, {"seed": 0, "steps": 3})
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
def test_pt_needs_and_takes_a_configuration(tmp_path: Path, config: Path, wrap: Any) -> None:
    network = small_network()
    path = tmp_path / "model.pt"
    torch.save(wrap(network.state_dict()), path)
    with pytest.raises(UsageError, match="no network configuration"):
        load_checkpoint(path)
    study = torch.from_numpy(random_study())
    loaded = load_checkpoint(path, config)
    assert torch.equal(loaded.network(study)[0], network(study)[0])
    assert loaded.preprocessing.size == (8, 32, 32)


def test_prefixes_and_half_precision_are_undone_and_noted(tmp_path: Path, config: Path) -> None:
    network = small_network()
    state = {
        f"module.{key}": value.half() if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    path = tmp_path / "model.pth"
    torch.save(state, path)
    loaded = load_checkpoint(path, config)
    assert any("module." in note for note in loaded.notes)
    assert any("float16" in note for note in loaded.notes)
    assert all(value.dtype == torch.float32 for value in loaded.network.parameters())


class Evil:
    """Unpickled without weights_only, it would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_never_runs(tmp_path: Path, config: Path, writer: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    if writer == "torch":
        torch.save({"state_dict": Evil(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"a": Evil(marker)}))
    with pytest.raises(ModelIncompatible) as caught:
        load_checkpoint(path, config)
    assert caught.value.code == 20
    assert not marker.exists()
    # The attack is real: plain unpickling runs it.
    if writer == "pickle":
        pickle.loads(path.read_bytes())
        assert marker.exists()


def test_missing_unexpected_misshapen_and_nan_keys_are_named(tmp_path: Path, config: Path) -> None:
    state = small_network().state_dict()
    del state["heads.NC.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["spm.head.bias"] = torch.zeros(7)
    state["heads.DL.bias"] = torch.full((2,), float("nan"))
    path = tmp_path / "model.pt"
    torch.save(state, path)
    with pytest.raises(ModelIncompatible) as caught:
        load_checkpoint(path, config)
    message = caught.value.message
    for expected in ("missing: heads.NC.weight", "unexpected: extra.weight", "spm.head.bias (7,) instead of (2,)"):
        assert expected in message
    assert "not finite: heads.DL.bias" in message


def test_batch_norm_counters_may_be_absent(tmp_path: Path, config: Path) -> None:
    state = {k: v for k, v in small_network().state_dict().items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "model.pt"
    torch.save(state, path)
    assert load_checkpoint(path, config).notes == ()


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("absent.safetensors", None, InputMissing),
        ("model.bin", b"x", UsageError),
        ("model.safetensors", b"", ModelIncompatible),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0not json at all!", ModelIncompatible),
        ("model.pt", b"", ModelIncompatible),
        ("model.pt", b"PK\x03\x04 truncated", ModelIncompatible),
        ("model.pt", b"hello", ModelIncompatible),
    ],
)
def test_files_that_are_no_checkpoints(
    tmp_path: Path, config: Path, name: str, data: bytes | None, kind: type[FourphaseError]
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(kind):
        load_checkpoint(path, config)


def test_a_truncated_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, small_network(), PreprocessingConfig())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelIncompatible, match="cannot be read"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "text", ["[networks]\n", "network = 3\n", "not toml", "[network]\nwidth = 'four'\n", "[preprocessing]\nsizes = 3\n"]
)
def test_a_wrong_configuration_is_an_error(tmp_path: Path, text: str) -> None:
    path, config = tmp_path / "model.safetensors", tmp_path / "net.toml"
    save_checkpoint(path, small_network(), SMALL)
    config.write_text(text)
    with pytest.raises(FourphaseError) as caught:
        load_checkpoint(path, config)
    assert caught.value.code in (2, 20)


def test_the_configuration_in_the_file_is_json_of_two_tables(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tmp_path / "model.safetensors"
    save_checkpoint(path, small_network(), SMALL)
    with safe_open(path, framework="pt") as file:
        sections = json.loads(file.metadata()[CONFIG_KEY])
    assert sections["network"]["width"] == 4
    assert sections["preprocessing"]["size"] == [8, 32, 32]
