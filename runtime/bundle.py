"""A bundle read back: the manifest checked, every file's bytes verified before anyone uses them.

It runs no model and writes nothing; `engine.bundle` writes. The format is described in docs/bundle.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from fourphase.runtime.backend import LOGITS_ALONE, OUTPUTS
from fourphase.runtime.config import PreprocessingConfig, canonical_json
from fourphase.runtime.errors import IntegrityError, ModelIncompatible
from fourphase.runtime.golden import Golden, Tolerance, golden_from_bytes

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "Bundle",
    "EngineFiles",
    "FileRecord",
    "ModelFile",
    "SplitFiles",
    "is_safe_name",
    "load_bundle",
    "manifest_digest",
]

SCHEMA = "fourphase.bundle/1"
MANIFEST = "manifest.json"
#: Far above any real manifest: a wrong file is refused before it fills the memory.
_MAX_MANIFEST_BYTES = 16 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says about one file: its sha256 (hex) and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class SplitFiles:
    """A model in two: the trunk for chunks of slices, and the tail that takes the features of all of them."""

    slices: int
    trunk: str
    tail: str


@dataclass(frozen=True)
class ModelFile:
    """An ONNX of the bundle, the precision of each of its named blocks, and the same model split, if it was."""

    file: str
    blocks: Mapping[str, str]
    split: SplitFiles | None = None


@dataclass(frozen=True)
class EngineFiles:
    """A serialized engine (plan) of the bundle and the JSON that says where it fits."""

    plan: str
    meta: str


@dataclass(frozen=True, eq=False)
class Bundle:
    """A checked manifest; the files are read and verified one by one with `read`.

    Attributes:
        path: the bundle's directory.
        sha256: of the manifest's bytes; it identifies the bundle because the manifest holds the hash of every file.
        network: the network's configuration, or what is known of a model brought along.
        models: precision -> ONNX. engines: the serialized engines, possibly none.
        outputs: what the models give, `backend.OUTPUTS` or `backend.LOGITS_ALONE`.
        tolerances: precision -> what its golden outputs allow; fp32 always has some.
    """

    path: Path
    sha256: str
    classes: tuple[str, ...]
    phases: tuple[str, ...]
    network: Mapping[str, Any]
    preprocessing: PreprocessingConfig
    models: Mapping[str, ModelFile]
    engines: tuple[EngineFiles, ...]
    files: Mapping[str, FileRecord]
    golden_file: str
    tolerances: Mapping[str, Tolerance]
    tools: Mapping[str, str]
    calibration: Mapping[str, Any] | None
    parity: Mapping[str, Any]
    outputs: tuple[str, ...] = OUTPUTS

    @property
    def input_shape(self) -> tuple[int, int, int, int, int]:
        """(P, T, C, H, W) of one study."""
        slices, rows, columns = self.preprocessing.size
        return (len(self.phases), slices, self.preprocessing.channels, rows, columns)

    def read(self, name: str) -> bytes:
        """The bytes of a file, read once and verified: what is returned is what was hashed.

        Raises: IntegrityError if the file is not in the manifest, missing, or not what the manifest says.
        """
        record = self.files.get(name)
        if record is None or not is_safe_name(name):
            raise _damaged(f"{name} is not a file of the bundle's manifest")
        try:
            with (self.path / name).open("rb") as handle:
                size = os.fstat(handle.fileno()).st_size
                data = handle.read(record.bytes) if size == record.bytes else b""
        except OSError as error:
            raise _damaged(f"{name} of the bundle cannot be read: {(error.strerror or 'error').lower()}") from error
        if size != record.bytes:
            raise _damaged(f"{name} of the bundle has {size} bytes, its manifest says {record.bytes}")
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise _damaged(f"{name} of the bundle differs from its manifest (sha256)")
        return data

    def golden(self, precision: str = "fp32") -> Golden:
        """The golden inputs, and the outputs of the model of that precision.

        Raises: IntegrityError; ModelIncompatible if the bundle has none, or the arrays are not those of this bundle.
        """
        if precision not in self.tolerances:
            raise _incompatible(f"the bundle has no golden outputs for {precision}", "golden_missing")
        return golden_from_bytes(
            self.read(self.golden_file),
            self.input_shape,
            len(self.classes),
            tolerance=self.tolerances[precision],
            preprocessing=self.preprocessing,
            suffix="" if precision == "fp32" else f".{precision}",
            outputs=self.outputs,
        )


def is_safe_name(name: str) -> bool:
    """True for a relative name that stays inside the bundle ("engines/ab12.plan")."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and part.isprintable() for part in parts)
    return plain and "\\" not in name and not PurePosixPath(name).is_absolute()


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of the manifest's canonical JSON without its key `digest`: finds damage, proves no author."""
    try:
        content = canonical_json({key: value for key, value in manifest.items() if key != "digest"})
    except ValueError as error:
        raise _incompatible(
            "the bundle's manifest.json holds a number that is not finite", "manifest_invalid"
        ) from error
    return hashlib.sha256(content.encode()).hexdigest()


def load_bundle(path: Path) -> Bundle:
    """Reads and checks the manifest of the bundle in the directory `path`; the other files are read when needed.

    Raises: ModelIncompatible if there is no bundle, or one this version cannot read; IntegrityError if the manifest was
        changed after it was written.
    """
    data = _manifest_bytes(path)
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _incompatible("the bundle's manifest.json is not valid JSON", "manifest_invalid") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        raise _incompatible(f"the bundle's schema is {found!r}, this version reads {SCHEMA!r}", "schema_unknown")
    if manifest.get("digest") != manifest_digest(manifest):
        raise _damaged("manifest.json of the bundle differs from its own digest")
    return _bundle(path, hashlib.sha256(data).hexdigest(), manifest)


def _bundle(path: Path, sha256: str, manifest: Mapping[str, Any]) -> Bundle:
    golden = _value(manifest, "golden", dict)
    calibration = manifest.get("calibration")
    bundle = Bundle(
        path=path,
        sha256=sha256,
        classes=_names(manifest, "classes"),
        phases=_names(manifest, "phases"),
        network=_value(manifest, "network", dict),
        preprocessing=PreprocessingConfig.from_dict(_value(manifest, "preprocessing", dict)),
        models={name: _model(section) for name, section in _value(manifest, "models", dict).items()},
        engines=tuple(_engine(section) for section in _value(manifest, "engines", list)),
        files={name: _record(name, section) for name, section in _value(manifest, "files", dict).items()},
        golden_file=_value(golden, "file", str),
        tolerances=_tolerances(golden),
        tools=_value(manifest, "tools", dict),
        calibration=None if calibration is None else _value(manifest, "calibration", dict),
        parity=_value(manifest, "parity", dict),
        outputs=_outputs(manifest),
    )
    _check_references(bundle)
    return bundle


def _manifest_bytes(path: Path) -> bytes:
    try:
        with (path / MANIFEST).open("rb") as handle:
            data = handle.read(_MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise _incompatible(
            f"{path} is not a bundle: {MANIFEST} cannot be read ({(error.strerror or 'error').lower()})",
            "bundle_missing",
        ) from error
    if len(data) > _MAX_MANIFEST_BYTES:
        raise _incompatible("the bundle's manifest.json is too large to be one", "manifest_invalid")
    return data


def _check_references(bundle: Bundle) -> None:
    """Every file the manifest speaks of has a record, so that none is ever used unverified."""
    named = [model.file for model in bundle.models.values()]
    named += [name for model in bundle.models.values() if (split := model.split) for name in (split.trunk, split.tail)]
    named += [name for engine in bundle.engines for name in (engine.plan, engine.meta)]
    for name in [*named, bundle.golden_file]:
        if name not in bundle.files:
            raise _incompatible(f"the bundle's manifest has no hash for {name}", "manifest_invalid")
    for name in bundle.files:
        if not is_safe_name(name):
            raise _incompatible(f"the bundle's manifest names {name!r}, a file outside the bundle", "manifest_invalid")


def _model(section: Any) -> ModelFile:
    split = section.get("split") if isinstance(section, dict) else None
    return ModelFile(
        _value(section, "file", str), _value(section, "blocks", dict), None if split is None else _split(split)
    )


def _split(section: Any) -> SplitFiles:
    return SplitFiles(_value(section, "slices", int), _value(section, "trunk", str), _value(section, "tail", str))


def _engine(section: Any) -> EngineFiles:
    return EngineFiles(_value(section, "plan", str), _value(section, "meta", str))


def _record(name: str, section: Any) -> FileRecord:
    record = FileRecord(_value(section, "sha256", str), _value(section, "bytes", int))
    if record.bytes < 0 or len(record.sha256) != 64:
        raise _incompatible(f"the bundle's manifest has no valid hash for {name}", "manifest_invalid")
    return record


def _names(manifest: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = _value(manifest, key, list)
    if not names or len(set(map(str, names))) != len(names) or not all(isinstance(name, str) for name in names):
        raise _incompatible(f"the bundle's manifest has no valid list of {key}", "manifest_invalid")
    return tuple(names)


def _outputs(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """A manifest that says nothing speaks of a network with both outputs."""
    if "outputs" not in manifest:
        return OUTPUTS
    names = _names(manifest, "outputs")
    if names not in (OUTPUTS, LOGITS_ALONE):
        raise _incompatible(
            f"the bundle's outputs are {', '.join(names)}; this version reads logits, phase_logits, or logits alone",
            "manifest_invalid",
        )
    return names


def _tolerances(golden: Mapping[str, Any]) -> dict[str, Tolerance]:
    """FP32's own stand beside the file's name, the others' under `lowered`."""
    sections = {"fp32": golden, **(_value(golden, "lowered", dict) if "lowered" in golden else {})}
    return {name: _tolerance_of(section) for name, section in sections.items()}


def _tolerance_of(section: Any) -> Tolerance:
    atol, rtol = _tolerance(section, "atol"), _tolerance(section, "rtol")
    return Tolerance(atol, rtol, _tolerance(section, "phase_atol") if "phase_atol" in section else atol)


def _tolerance(golden: Any, key: str) -> float:
    value = golden.get(key) if isinstance(golden, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise _incompatible(f"the bundle's golden {key} is not a number of at least 0", "manifest_invalid")
    return float(value)


def _value(section: Any, key: str, kind: type[T]) -> T:
    value = section.get(key) if isinstance(section, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _incompatible(f"the bundle's manifest has no valid {key!r}", "manifest_invalid")
    return value


def _damaged(cause: str) -> IntegrityError:
    return IntegrityError(cause, "copy the bundle again from its source, or build it again with fp-export build-engine")


def _incompatible(cause: str, key: str) -> ModelIncompatible:
    return ModelIncompatible(cause, "give a bundle written by fp-export build-engine of this version", key=key)
