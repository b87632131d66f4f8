from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fourphase.engine import bundle as writer
from fourphase.engine.build import EnginePlan
from fourphase.engine.bundle import check_target, contents_of, write_bundle
from fourphase.runtime.bundle import load_bundle
from fourphase.runtime.errors import ModelIncompatible, OutputNotWritable
from tests.support.logits_alone import LOGITS_ALONE_MODEL, write_logits_alone
from tests.support.plans import META
from tests.support.tiny_bundle import tiny_contents, tiny_golden, tiny_model, write_tiny

ENGINE = EnginePlan(b"plan", META)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_manifest_holds_every_file_with_its_hash(tmp_path: Path) -> None:
    bundle = write_tiny(tmp_path / "bundle", engines=(ENGINE,))
    files = tree(bundle.path)
    manifest = json.loads(files.pop("manifest.json"))
    assert set(files) == {
        "model.fp32.onnx",
        "golden.npz",
        "report.json",
        f"engines/{ENGINE.key}.plan",
        f"engines/{ENGINE.key}.json",
    }
    expected = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    assert manifest["files"] == expected
    assert manifest["schema"] == "fourphase.bundle/1"
    assert manifest["engines"] == [{"plan": f"engines/{ENGINE.key}.plan", "meta": f"engines/{ENGINE.key}.json"}]
    assert manifest["models"] == {"fp32": {"file": "model.fp32.onnx", "blocks": {"stem": "fp32", "head": "fp32"}}}
    assert json.loads(files["report.json"]) == {"note": "tiny"}
    assert json.loads(files[f"engines/{ENGINE.key}.json"]) == META


def test_the_same_contents_give_the_same_bundle(tmp_path: Path) -> None:
    first, second = write_tiny(tmp_path / "a", engines=(ENGINE,)), write_tiny(tmp_path / "b", engines=(ENGINE,))
    assert first.sha256 == second.sha256
    assert tree(first.path) == tree(second.path)


def test_what_is_returned_lies_at_the_target(tmp_path: Path) -> None:
    bundle = write_tiny(tmp_path / "deep" / "bundle")
    assert bundle.path == tmp_path / "deep" / "bundle"
    assert bundle.sha256 == load_bundle(bundle.path).sha256
    assert [path.name for path in bundle.path.parent.iterdir()] == ["bundle"]


def test_an_older_bundle_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_tiny(tmp_path / "bundle", engines=(ENGINE,))
    bundle = write_tiny(tmp_path / "bundle", classes=("A", "B"))
    assert bundle.classes == ("A", "B")
    assert not (bundle.path / "engines").exists()


def test_a_directory_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "manifest.json").write_text('{"name": "somebody else\'s"}')
    with pytest.raises(OutputNotWritable, match="not a bundle") as caught:
        write_tiny(tmp_path)
    assert caught.value.key == "target_not_a_bundle"
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_new_empty_and_bundle_targets_are_fine(tmp_path: Path) -> None:
    check_target(tmp_path / "new")
    check_target(tmp_path)
    check_target(write_tiny(tmp_path / "bundle").path)


def test_a_file_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(OutputNotWritable):
        check_target(tmp_path / "file")


def test_contents_that_cannot_be_read_back_are_not_written(tmp_path: Path) -> None:
    old = write_tiny(tmp_path / "bundle")
    logits = tiny_contents().golden.outputs["fp32"].logits
    with pytest.raises(ModelIncompatible, match="golden"):
        write_tiny(tmp_path / "bundle", golden=tiny_golden(logits=logits[:, :1]))
    assert load_bundle(tmp_path / "bundle").sha256 == old.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_exception_in_the_middle_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(write_tiny(tmp_path / "bundle").path)

    def interrupted(folder: Path, name: str, data: bytes) -> None:
        (folder / name).write_bytes(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "bundle", tiny_contents(inputs=1))
    assert tree(tmp_path / "bundle") == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_process_killed_in_the_middle_leaves_the_old_bundle(tmp_path: Path) -> None:
    before = tree(write_tiny(tmp_path / "bundle").path)
    script = (
        "import os, sys; from pathlib import Path; from fourphase.engine import bundle\n"
        "from tests.support.tiny_bundle import tiny_contents\n"
        "bundle._manifest = lambda *_: os._exit(9)\n"
        "bundle.write_bundle(Path(sys.argv[1]), tiny_contents(inputs=1))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "bundle")], cwd=root, check=False)
    assert done.returncode == 9
    assert tree(tmp_path / "bundle") == before
    assert load_bundle(tmp_path / "bundle").read("model.fp32.onnx") == tiny_model()


def test_a_full_disk_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, name: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_write", full)
    with pytest.raises(OutputNotWritable, match="no space left"):
        write_tiny(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_golden_inputs_take_their_place_as_bytes(tmp_path: Path) -> None:
    """Smooth windowed images compress; four-byte floats would not be a few megabytes."""
    bundle = write_tiny(tmp_path / "bundle")
    with np.load(bundle.path / "golden.npz", allow_pickle=False) as arrays:
        assert {name: str(arrays[name].dtype) for name in arrays.files} == {
            "inputs_u8": "uint8",
            "logits": "float32",
            "phase_logits": "float32",
        }


def test_a_manifest_with_both_outputs_is_that_of_earlier_versions(tmp_path: Path) -> None:
    """Bundles are known by the hash of its bytes: no key more, none less, in this order."""
    manifest = json.loads((write_tiny(tmp_path / "bundle").path / "manifest.json").read_bytes())
    assert " ".join(manifest) == (
        "schema tools classes phases network preprocessing models engines golden calibration parity files digest"
    )
    assert list(manifest["golden"]) == ["file", "atol", "rtol", "phase_atol", "lowered"]


def test_a_bundle_of_logits_alone_holds_nothing_of_phase_logits(tmp_path: Path) -> None:
    bundle = write_logits_alone(tmp_path / "bundle")
    manifest = json.loads((bundle.path / "manifest.json").read_bytes())
    assert manifest["outputs"] == ["logits"]
    assert set(manifest["golden"]) == {"file", "lowered", "atol", "rtol"}
    with np.load(bundle.path / "golden.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {"inputs_u8", "logits"}


def test_a_bundle_of_logits_alone_is_the_same_when_written_again(tmp_path: Path) -> None:
    bundle = write_logits_alone(tmp_path / "bundle")
    again = write_bundle(tmp_path / "again", contents_of(bundle))
    assert again.outputs == ("logits",)
    assert tree(again.path) == tree(bundle.path)


def test_golden_outputs_that_do_not_fit_the_outputs_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ModelIncompatible, match="phase_logits is there"):
        write_logits_alone(tmp_path / "more", golden=tiny_golden())
    with pytest.raises(ModelIncompatible, match="phase_logits is missing"):
        write_tiny(tmp_path / "less", tiny_model(LOGITS_ALONE_MODEL), golden=tiny_golden(phase_logits=None))
    assert list(tmp_path.iterdir()) == []
