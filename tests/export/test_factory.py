"""`--model package.module:factory`: found or refused in one sentence, and never named by a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fourphase.export.checkpoint import Checkpoint, load_checkpoint
from fourphase.export.factory import network_from_factory
from fourphase.export.module_outputs import run_once
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
    go_to(tmp_path, monkeypatch)
    assert network_from_factory("beside_me:make", {}).get_parameter("weight").shape == (7, 1)


def go_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a console command runs there: the folder is not searched by itself."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])


def test_a_factory_may_import_its_neighbours_when_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lazy_factory.py").write_text("def make():\n    import lazy_part\n\n    return lazy_part.network()\n")
    (tmp_path / "lazy_part.py").write_text("from torch import nn\n\n\ndef network():\n    return nn.Linear(2, 3)\n")
    go_to(tmp_path, monkeypatch)
    assert network_from_factory("lazy_factory:make", {}).get_parameter("weight").shape == (3, 2)


@pytest.mark.parametrize(
    ("name", "text", "kind", "key"),
    [
        ("exits_at_once", "raise SystemExit(0)\n", UsageError, "factory_unknown"),
        ("exits_later", "def make():\n    raise SystemExit(0)\n", ExportRefused, "factory_failed"),
    ],
)
def test_code_that_exits_is_an_error(
    name: str, text: str, kind: type[FourphaseError], key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    go_to(tmp_path, monkeypatch)
    with pytest.raises(kind, match="SystemExit: 0") as caught:
        network_from_factory(f"{name}:make", {})
    assert caught.value.key == key


def test_a_network_that_exits_is_an_error() -> None:
    class Exits(nn.Module):
        def forward(self, study: torch.Tensor) -> torch.Tensor:
            raise SystemExit(0)

    with pytest.raises(ExportRefused, match="SystemExit: 0"):
        run_once(Exits(), torch.zeros(1))


def test_what_a_factory_prints_goes_to_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "talks.py").write_text(
        "from torch import nn\n\nprint('imported')\n\n\nclass Talks(nn.Module):\n"
        "    def forward(self, study):\n        print('running')\n        return study\n\n\n"
        "def make():\n    print('made')\n    return Talks()\n"
    )
    go_to(tmp_path, monkeypatch)
    run_once(network_from_factory("talks:make", {}), torch.zeros(1))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.split() == ["imported", "made", "running"]


class Pooled(nn.Module):
    """A network whose part is called as DistributedDataParallel calls what it wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 2)

    def forward(self, study: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.module(study.mean(dim=(1, 2, 4, 5)))
        return found


def pooled_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, torch.Tensor], dtype: torch.dtype
) -> Checkpoint:
    """The weights `state` in a Pooled that its factory makes in `dtype`."""
    monkeypatch.setattr(f"{HERE}.tiny_baseline", lambda: Pooled().to(dtype))
    save_file(state, tmp_path / "pooled.safetensors")
    return load_checkpoint(tmp_path / "pooled.safetensors", None, f"{HERE}:tiny_baseline")


WEIGHTS = {"module.weight": torch.linspace(-1, 1, 6).reshape(2, 3) / 3, "module.bias": torch.tensor([0.1, -0.7])}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_part_called_module_is_no_wrapper(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {f"{prefix}{key}": value for key, value in WEIGHTS.items()}
    loaded = pooled_from(tmp_path, monkeypatch, state, torch.float32)
    assert torch.equal(loaded.network.get_parameter("module.weight"), WEIGHTS["module.weight"])
    assert loaded.notes == ((f"removed the prefix {prefix!r} from every key",) if prefix else ())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_factorys_dtype_does_not_round_the_weights(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = pooled_from(tmp_path, monkeypatch, WEIGHTS, dtype).network
    for name, value in WEIGHTS.items():
        assert torch.equal(network.get_parameter(name), value)


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
