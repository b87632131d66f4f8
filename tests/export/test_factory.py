"""`--model package.module:factory`: found or refused in one sentence, and never named by a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fourphase.export.checkpoint import load_checkpoint
from fourphase.export.factory import network_from_factory
from fourphase.export.source import load_source
from fourphase.runtime.errors import ExportRefused, FourphaseError, ModelIncompatible, UsageError
from tests.support.any_network import tiny_baseline, write_weights

HERE = "tests.support.any_network"
NET = '[network]\nname = "resnet3d-18-s222"\n[preprocessing]\nsize = [8, 32, 32]\n'


@pytest.mark.parametrize(
    ("name", "kind", "key"),
    [
        ("tests.support.any_network", UsageError, "factory_unknown"),
        (":tiny_baseline", UsageError, "factory_unknown"),
        ("no such module:x", UsageError, "factory_unknown"),
        ("fourphase_absent.module:x", UsageError, "factory_unknown"),
        (f"{HERE}:absent", UsageError, "factory_unknown"),
        (f"{HERE}:FACTORY", UsageError, "factory_unknown"),
        (f"{HERE}:tiny_baseline", ExportRefused, "factory_failed"),
        ("builtins:dict", ExportRefused, "factory_kind"),
    ],
)
def test_what_is_no_factory(name: str, kind: type[FourphaseError], key: str) -> None:
    with pytest.raises(kind) as caught:
        network_from_factory(name, {} if key != "factory_failed" else {"name": "absent"})
    assert caught.value.key == key


def test_a_factory_gets_the_network_table() -> None:
    made = network_from_factory("torch.nn:Linear", {"in_features": 3, "out_features": 5})
    assert isinstance(made, nn.Linear)
    assert made.weight.shape == (5, 3)


def test_a_factory_beside_the_checkpoint_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_me.py").write_text("from torch import nn\n\n\ndef make():\n    return nn.Linear(1, 7)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    assert network_from_factory("beside_me:make", {}).get_parameter("weight").shape == (7, 1)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "weights.safetensors", tiny_baseline("resnet3d-18-s222"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "net.toml").write_text(NET)
    return tmp_path / "net.toml"


def test_weights_are_loaded_key_by_key(weights: Path, config: Path) -> None:
    loaded = load_checkpoint(weights, config, f"{HERE}:tiny_baseline")
    study = torch.randn(1, 4, 8, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.network(study), tiny_baseline("resnet3d-18-s222")(study))
    assert loaded.interface.outputs == ("logits",)
    config.write_text(NET.replace("s222", "medicalnet"))
    with pytest.raises(ModelIncompatible, match=r"unexpected: .*head\.2\.weight.*stem\.0\.weight"):
        load_checkpoint(weights, config, f"{HERE}:tiny_baseline")


@pytest.mark.parametrize(
    ("added", "cause"),
    [
        ('[model]\nclasses = ["HCC"]\n', "classes are not two or more different names"),
        ('[model]\nphases = ["NC", "NC"]\n', "phases are not"),
        ('[model]\nclasses = "HCC"\n', "classes are not"),
        ("[model]\nfactory = 'os:system'\n", r"unknown keys in \[model\]: factory"),
    ],
)
def test_a_wrong_model_table(weights: Path, config: Path, added: str, cause: str) -> None:
    config.write_text(NET + added)
    with pytest.raises(UsageError, match=cause):
        load_checkpoint(weights, config, f"{HERE}:tiny_baseline")


def test_a_model_table_is_not_for_our_network(weights: Path, config: Path) -> None:
    config.write_text('[model]\nclasses = ["A", "B"]\n')
    with pytest.raises(UsageError, match=r"\[model\] speaks of another network"):
        load_checkpoint(weights, config)


def test_a_file_never_names_a_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that asks for code gets an error about its tables, and nothing is imported."""
    import json

    from safetensors.torch import save_file

    def forbidden(*arguments: Any) -> None:
        raise AssertionError("a factory was imported")

    monkeypatch.setattr("fourphase.export.checkpoint.network_from_factory", forbidden)
    path = tmp_path / "evil.safetensors"
    for sections in ({"model": {"factory": "os:system"}}, {"network": {"factory": "os:system"}}):
        save_file({"x": torch.zeros(1)}, path, metadata={"fourphase.config": json.dumps(sections)})
        with pytest.raises(UsageError):
            load_checkpoint(path)


def test_an_onnx_needs_no_factory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a whole model"):
        load_source(tmp_path / "model.onnx", None, "a:b")
