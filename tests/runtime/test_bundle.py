from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourphase.engine.bundle import GoldenFile, OnnxModel
from fourphase.runtime.bundle import Bundle, is_safe_name, load_bundle, manifest_digest
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import IntegrityError, ModelIncompatible
from fourphase.runtime.golden import Tolerance, golden_from_bytes, study_from_codes
from tests.support.logits_alone import write_logits_alone
from tests.support.tiny_bundle import PREPROCESSING, SHAPE, tiny_contents, tiny_model, write_tiny


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny(tmp_path / "bundle")


def edit_manifest(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> Path:
    path = bundle.path / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    manifest["digest"] = manifest_digest(manifest)
    path.write_text(json.dumps(manifest))
    return bundle.path


@pytest.mark.parametrize(
    ("before", "after"),
    [("-160.0", "-960.0"), ('"HCC",', '"ICC",'), ('"margin_mm": 10.0', '"margin_mm": 90.0'), ('"1.0"', '"1.1"')],
)
def test_an_edited_manifest_is_damage(bundle: Bundle, before: str, after: str) -> None:
    path = bundle.path / "manifest.json"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(IntegrityError, match=r"manifest\.json") as caught:
        load_bundle(bundle.path)
    assert caught.value.code == 21


def test_what_was_written_is_read_back(bundle: Bundle) -> None:
    again = load_bundle(bundle.path)
    assert again.classes == ("HCC", "ICC")
    assert again.phases == ("NC", "ART", "PV", "DL")
    assert again.preprocessing == PREPROCESSING
    assert again.input_shape == SHAPE
    assert again.models["fp32"].file == "model.fp32.onnx"
    assert again.models["fp32"].blocks == {"stem": "fp32", "head": "fp32"}
    assert again.read("model.fp32.onnx") == tiny_model()
    assert again.sha256 == hashlib.sha256((bundle.path / "manifest.json").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["model.fp32.onnx", "golden.npz", "report.json"])
def test_one_flipped_bit_is_found(bundle: Bundle, name: str) -> None:
    path = bundle.path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=name) as caught:
        bundle.read(name)
    assert caught.value.code == 21
    assert "again" in caught.value.hint


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_another_length_is_found(bundle: Bundle, change: Callable[[bytes], bytes]) -> None:
    path = bundle.path / "model.fp32.onnx"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(IntegrityError, match=r"model\.fp32\.onnx .* bytes"):
        bundle.read("model.fp32.onnx")


def test_a_missing_file_is_an_integrity_error(bundle: Bundle) -> None:
    (bundle.path / "golden.npz").unlink()
    with pytest.raises(IntegrityError, match=r"golden\.npz"):
        bundle.golden()


@pytest.mark.parametrize("name", ["unlisted.onnx", "../secret", "manifest.json"])
def test_only_listed_files_are_read(bundle: Bundle, name: str) -> None:
    (bundle.path / "unlisted.onnx").write_bytes(b"x")
    (bundle.path.parent / "secret").write_bytes(b"x")
    with pytest.raises(IntegrityError):
        bundle.read(name)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "a//b", "", "a\\b", "./a", "a\0b"])
def test_a_manifest_that_names_files_outside_is_refused(bundle: Bundle, name: str) -> None:
    record = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    with pytest.raises(ModelIncompatible) as caught:
        load_bundle(edit_manifest(bundle, lambda manifest: manifest["files"].update({name: record})))
    assert caught.value.key == "manifest_invalid"


@given(st.text(alphabet="ab./\\\0", max_size=8))
def test_a_safe_name_never_leaves_the_directory(name: str) -> None:
    if is_safe_name(name):
        assert "\0" not in name
        assert Path("/bundle", name).resolve().is_relative_to("/bundle")
        assert Path("/bundle", name) != Path("/bundle")


@pytest.mark.parametrize("missing", ["nowhere", "bundle"])
def test_no_manifest_means_no_bundle(tmp_path: Path, bundle: Bundle, missing: str) -> None:
    (bundle.path / "manifest.json").unlink()
    with pytest.raises(ModelIncompatible, match="not a bundle") as caught:
        load_bundle(tmp_path / missing)
    assert (caught.value.code, caught.value.key) == (20, "bundle_missing")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": "fourphase.bundle/2"}', "[" * 100_000, "\xff"])
def test_a_manifest_of_another_kind_is_refused(bundle: Bundle, text: str) -> None:
    (bundle.path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelIncompatible):
        load_bundle(bundle.path)


KEYS = ["classes", "phases", "network", "preprocessing", "models", "engines", "files", "golden", "tools", "parity"]


FREE_OBJECTS = ("network", "tools", "parity")
WRONG = [(key, value) for key in KEYS for value in (None, 1, True, "text", [None], {"x": None})]


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, value in WRONG if not (key in FREE_OBJECTS and isinstance(value, dict))]
)
def test_a_section_of_the_wrong_type_is_refused(bundle: Bundle, key: str, value: object) -> None:
    with pytest.raises(ModelIncompatible):
        load_bundle(edit_manifest(bundle, lambda manifest: manifest.update({key: value})))


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_section_is_refused_by_name(bundle: Bundle, key: str) -> None:
    with pytest.raises(ModelIncompatible, match=key):
        load_bundle(edit_manifest(bundle, lambda manifest: manifest.pop(key)))


def test_every_file_spoken_of_needs_a_hash(bundle: Bundle) -> None:
    with pytest.raises(ModelIncompatible, match=r"no hash for model\.fp32\.onnx"):
        load_bundle(edit_manifest(bundle, lambda manifest: manifest["files"].pop("model.fp32.onnx")))


@pytest.mark.parametrize("record", [{"bytes": True}, {"bytes": -1}, {"bytes": 1.0}, {"sha256": "ab"}, {"sha256": None}])
def test_a_record_without_a_valid_hash_or_size_is_refused(bundle: Bundle, record: dict[str, Any]) -> None:
    with pytest.raises(ModelIncompatible):
        load_bundle(edit_manifest(bundle, lambda manifest: manifest["files"]["golden.npz"].update(record)))


@pytest.mark.parametrize("value", [-1, "1", None, True])
def test_a_tolerance_is_a_number_of_at_least_zero(bundle: Bundle, value: object) -> None:
    with pytest.raises(ModelIncompatible, match="atol"):
        load_bundle(edit_manifest(bundle, lambda manifest: manifest["golden"].update(atol=value)))


def test_unknown_keys_of_a_manifest_are_left_alone(bundle: Bundle) -> None:
    again = load_bundle(edit_manifest(bundle, lambda manifest: manifest.update(later="something")))
    assert (again.classes, again.files) == (bundle.classes, bundle.files)


def test_golden_inputs_come_one_at_a_time(bundle: Bundle) -> None:
    golden = bundle.golden()
    assert len(golden) == 2
    for index in range(2):
        study = golden.study(index)
        assert study.shape == (1, *SHAPE)
        assert study.dtype == np.float32
        # In float64 and per channel, as the contract's step 4 has it.
        for channel in range(3):
            value = golden.codes[index : index + 1, :, :, channel] / 255.0
            expected = (value - PREPROCESSING.mean[channel]) / PREPROCESSING.std[channel]
            np.testing.assert_allclose(study[:, :, :, channel], expected, atol=1e-6)
    np.testing.assert_array_equal(golden.logits, tiny_contents().golden.outputs["fp32"].logits)


LOOSE, NONE = Tolerance(0.25, 0.0, 0.5), Tolerance(0.0, 0.0, 0.0)


def test_each_precision_has_golden_outputs_and_a_tolerance_of_its_own(tmp_path: Path) -> None:
    fp32 = tiny_contents().golden
    lowered = replace(fp32.outputs["fp32"], logits=fp32.outputs["fp32"].logits + np.float32(0.5), tolerance=LOOSE)
    models = {name: OnnxModel(tiny_model(), {"stem": name}) for name in ("fp32", "int8")}
    golden = GoldenFile(fp32.codes, {**fp32.outputs, "int8": lowered})
    bundle = write_tiny(tmp_path / "b", models=models, golden=golden)
    np.testing.assert_array_equal(bundle.golden("int8").logits, bundle.golden().logits + np.float32(0.5))
    assert (bundle.golden("int8").tolerance, bundle.golden().tolerance) == (LOOSE, Tolerance(1e-5, 1e-4, 1e-5))
    with pytest.raises(ModelIncompatible, match="no golden outputs for fp16"):
        bundle.golden("fp16")


def test_codes_span_the_window() -> None:
    config = PreprocessingConfig(windows_hu=((0.0, 1.0),), mean=(0.5,), std=(0.25,))
    codes = np.array([0, 255], np.uint8).reshape(1, 1, 2)
    np.testing.assert_array_equal(study_from_codes(codes, config).ravel(), [-2.0, 2.0])


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def golden_arrays() -> dict[str, Any]:
    golden = tiny_contents().golden
    outputs = golden.outputs["fp32"]
    return {"inputs_u8": golden.codes, "logits": outputs.logits, "phase_logits": outputs.phase_logits}


BAD_GOLDEN = [
    b"",
    b"not a zip",
    npz(),
    npz(**{**golden_arrays(), "inputs_u8": np.zeros((0, *SHAPE), np.uint8)}),
    npz(**{**golden_arrays(), "inputs_u8": np.uint8(3)}),
    npz(**{**golden_arrays(), "inputs_u8": golden_arrays()["inputs_u8"].astype(np.float32)}),
    npz(**{**golden_arrays(), "logits": golden_arrays()["logits"][:1]}),
    npz(**{**golden_arrays(), "logits": golden_arrays()["logits"].astype(np.float64)}),
    npz(**{**golden_arrays(), "phase_logits": golden_arrays()["phase_logits"][:, :3]}),
]


@pytest.mark.parametrize("data", BAD_GOLDEN)
def test_a_golden_file_of_another_shape_type_or_kind_is_refused(data: bytes) -> None:
    with pytest.raises(ModelIncompatible) as caught:
        golden_from_bytes(data, SHAPE, 2, tolerance=NONE, preprocessing=PREPROCESSING)
    assert caught.value.key == "golden_invalid"


class Pickled:
    """Creates a directory when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_in_a_golden_file_never_runs(tmp_path: Path) -> None:
    attack = npz(**{**golden_arrays(), "logits": np.array([Pickled(tmp_path / "attacked")], dtype=object)})
    with pytest.raises(ModelIncompatible):
        golden_from_bytes(attack, SHAPE, 2, tolerance=NONE, preprocessing=PREPROCESSING)
    assert not (tmp_path / "attacked").exists()


def test_a_golden_file_that_unpacks_to_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourphase.runtime.golden._MAX_BYTES", 1000)
    with pytest.raises(ModelIncompatible, match="unpacks"):
        golden_from_bytes(npz(**golden_arrays()), SHAPE, 2, tolerance=NONE, preprocessing=PREPROCESSING)


# ---- a network without phase logits


def test_a_manifest_that_names_no_outputs_speaks_of_both(bundle: Bundle) -> None:
    assert "outputs" not in json.loads((bundle.path / "manifest.json").read_bytes())
    assert load_bundle(bundle.path).outputs == ("logits", "phase_logits")
    named = edit_manifest(bundle, lambda manifest: manifest.update(outputs=["logits", "phase_logits"]))
    assert load_bundle(named).outputs == ("logits", "phase_logits")


def test_a_bundle_of_logits_alone_is_read_back(tmp_path: Path) -> None:
    bundle = load_bundle(write_logits_alone(tmp_path / "alone").path)
    assert bundle.outputs == ("logits",)
    assert bundle.golden().phase_logits is None
    np.testing.assert_array_equal(bundle.golden().logits, tiny_contents().golden.outputs["fp32"].logits)
    assert bundle.phases == ("NC", "ART", "PV", "DL")


@pytest.mark.parametrize(
    "outputs",
    [["phase_logits"], ["phase_logits", "logits"], ["logits", "logits"], ["logits", "mask"], [], "logits", None],
)
def test_other_outputs_are_refused(bundle: Bundle, outputs: Any) -> None:
    with pytest.raises(ModelIncompatible, match="output") as caught:
        load_bundle(edit_manifest(bundle, lambda manifest: manifest.update(outputs=outputs)))
    assert (caught.value.code, caught.value.key) == (20, "manifest_invalid")


def test_golden_phase_logits_must_be_there_exactly_if_the_network_has_them(tmp_path: Path, bundle: Bundle) -> None:
    less = edit_manifest(bundle, lambda manifest: manifest.update(outputs=["logits"]))
    with pytest.raises(ModelIncompatible, match="phase_logits is there") as caught:
        load_bundle(less).golden()
    assert caught.value.key == "golden_invalid"
    alone = write_logits_alone(tmp_path / "alone")
    more = edit_manifest(alone, lambda manifest: manifest.pop("outputs"))
    with pytest.raises(ModelIncompatible, match="phase_logits is missing"):
        load_bundle(more).golden()
