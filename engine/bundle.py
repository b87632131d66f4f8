"""Writes a bundle: models, engines, golden outputs and reports, hashed into one manifest, complete or absent.

It builds and checks nothing; `runtime.bundle` reads. The format is described in docs/bundle.md.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.engine.build import EnginePlan
from fourphase.runtime.atomic import new_directory
from fourphase.runtime.backend import OUTPUTS
from fourphase.runtime.bundle import MANIFEST, SCHEMA, Bundle, load_bundle, manifest_digest
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import OutputNotWritable
from fourphase.runtime.golden import GOLDEN, Golden, Tolerance

__all__ = [
    "NODES",
    "BundleContents",
    "GoldenFile",
    "GoldenOutputs",
    "OnnxModel",
    "SplitOnnx",
    "check_target",
    "contents_of",
    "model_of",
    "write_bundle",
]

#: What is known of nodes, for machines without onnx: {"blocks": {file: {node: block}}, "exempt": {precision: [node]}}.
NODES = "nodes.json"


@dataclass(frozen=True, eq=False)
class SplitOnnx:
    """A model in two: the trunk for `slices` slices, the tail for the features of all; and their nodes' blocks."""

    slices: int
    trunk: bytes
    tail: bytes
    trunk_nodes: Mapping[str, str] = field(default_factory=dict)
    tail_nodes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A typed ONNX, `model.<precision>.onnx`.

    Attributes:
        blocks: the precision of each of its named blocks.
        nodes: node name -> block. exempt: nodes of int8 blocks that were not quantized.
        split: the same model in two, if it was asked for.
    """

    onnx: bytes
    blocks: Mapping[str, str]
    nodes: Mapping[str, str] = field(default_factory=dict)
    exempt: tuple[str, ...] = ()
    split: SplitOnnx | None = None


@dataclass(frozen=True, eq=False)
class GoldenOutputs:
    """A model's outputs for the golden inputs.

    Attributes:
        logits: float32 (N, K). phase_logits: float32 (N, P, K); None for a network that has none.
        tolerance: what a backend may differ by.
    """

    logits: NDArray[np.float32]
    phase_logits: NDArray[np.float32] | None
    tolerance: Tolerance


@dataclass(frozen=True, eq=False)
class GoldenFile:
    """Inputs, and what the model of each precision says of them.

    Attributes:
        codes: windowed values times 255, uint8 (N, P, T, C, H, W); the input is `study_from_codes(codes, ...)`.
        outputs: precision -> outputs; fp32 is always there.
    """

    codes: NDArray[np.uint8]
    outputs: Mapping[str, GoldenOutputs]


@dataclass(frozen=True, eq=False)
class BundleContents:
    """Everything a bundle holds.

    Attributes:
        classes, phases: in the order of the logits and of the input's phase axis.
        network: JSON types; the network's configuration.
        models: precision -> ONNX.
        engines: the plans built from those models.
        parity, report: JSON types; the manifest's parity record and the content of report.json.
        tools: package -> version.
        calibration: JSON types; None for a bundle without INT8.
        extra: further files, name -> bytes: the INT8 scales, the page of the report.
        outputs: what the models give, `backend.OUTPUTS` or `backend.LOGITS_ALONE`.
    """

    classes: tuple[str, ...]
    phases: tuple[str, ...]
    network: Mapping[str, Any]
    preprocessing: PreprocessingConfig
    models: Mapping[str, OnnxModel]
    golden: GoldenFile
    engines: tuple[EnginePlan, ...] = ()
    parity: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    extra: Mapping[str, bytes] = field(default_factory=dict)
    outputs: tuple[str, ...] = OUTPUTS


def check_target(target: Path) -> None:
    """Refuses a target that is neither new nor empty nor a bundle, before work is spent on it.

    Raises: OutputNotWritable. Writing a bundle replaces the whole directory, which must not be somebody's home.
    """
    try:
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except OSError as error:
        raise _refused(target, f"cannot be read ({(error.strerror or 'error').lower()})") from error
    if taken and not _is_bundle(target):
        raise _refused(target, "exists and is not a bundle")


def contents_of(bundle: Bundle) -> BundleContents:
    """A bundle's contents, verified, to be written again with something replaced. Raises: as `Bundle.read`."""
    golden = {name: bundle.golden(name) for name in bundle.tolerances}
    models = {name: model_of(bundle, name) for name in bundle.models}
    engines = tuple(
        EnginePlan(bundle.read(found.plan), json.loads(bundle.read(found.meta))) for found in bundle.engines
    )
    written = {GOLDEN, NODES, "report.json", *(found.file for found in bundle.models.values())}
    written |= {name for found in bundle.engines for name in (found.plan, found.meta)}
    splits = [found.split for found in bundle.models.values() if found.split]
    written |= {name for split in splits for name in (split.trunk, split.tail)}
    return BundleContents(
        classes=bundle.classes,
        phases=bundle.phases,
        network=bundle.network,
        preprocessing=bundle.preprocessing,
        models=models,
        golden=GoldenFile(golden["fp32"].codes, {name: _outputs_of(found) for name, found in golden.items()}),
        engines=engines,
        parity=bundle.parity,
        report=json.loads(bundle.read("report.json")),
        tools=bundle.tools,
        calibration=bundle.calibration,
        extra={name: bundle.read(name) for name in bundle.files if name not in written},
        outputs=bundle.outputs,
    )


def model_of(bundle: Bundle, precision: str) -> OnnxModel:
    """A bundle's model with everything an engine is built from, verified. Raises: IntegrityError (21)."""
    found = bundle.models[precision]
    known: dict[str, Any] = json.loads(bundle.read(NODES)) if NODES in bundle.files else {"blocks": {}, "exempt": {}}
    nodes: dict[str, dict[str, str]] = known["blocks"]
    split = None
    if found.split is not None:
        trunk, tail = found.split.trunk, found.split.tail
        halves = (bundle.read(trunk), bundle.read(tail), nodes.get(trunk, {}), nodes.get(tail, {}))
        split = SplitOnnx(found.split.slices, *halves)
    exempt = tuple(known["exempt"].get(precision, ()))
    return OnnxModel(bundle.read(found.file), dict(found.blocks), nodes.get(found.file, {}), exempt, split)


def _outputs_of(golden: Golden) -> GoldenOutputs:
    return GoldenOutputs(golden.logits, golden.phase_logits, golden.tolerance)


def write_bundle(target: Path, contents: BundleContents) -> Bundle:
    """Writes the bundle to the directory `target`; a bundle already there is replaced as a whole.

    Returns: the bundle as a reader finds it.

    Raises: OutputNotWritable; ModelIncompatible if the contents do not make a bundle that can be read.
    """
    check_target(target)
    with new_directory(target) as folder:
        records = {name: _write(folder, name, data) for name, data in _files(contents).items()}
        manifest = _manifest(contents, records)
        (folder / MANIFEST).write_bytes(manifest)
        written = load_bundle(folder)
        for precision in contents.models:
            written.golden(precision)
    return load_bundle(target)


def _files(contents: BundleContents) -> dict[str, bytes]:
    """Relative name -> bytes of every file but the manifest."""
    files: dict[str, bytes] = {}
    nodes: dict[str, Mapping[str, str]] = {}
    for precision, model in contents.models.items():
        for name, (data, blocks) in _onnx_files(precision, model).items():
            files[name], nodes[name] = data, blocks
    if any(nodes.values()):
        exempt = {precision: list(model.exempt) for precision, model in contents.models.items()}
        files[NODES] = _json({"blocks": {name: dict(blocks) for name, blocks in nodes.items()}, "exempt": exempt})
    files |= contents.extra
    for engine in contents.engines:
        files[f"engines/{engine.key}.plan"] = engine.plan
        files[f"engines/{engine.key}.json"] = _json(dict(engine.meta))
    files[GOLDEN] = _npz(contents.golden)
    files["report.json"] = _json(dict(contents.report))
    return files


def _manifest(contents: BundleContents, records: Mapping[str, Mapping[str, object]]) -> bytes:
    calibration = contents.calibration
    manifest = json.loads(
        _json(
            {
                "schema": SCHEMA,
                "tools": dict(contents.tools),
                "classes": list(contents.classes),
                "phases": list(contents.phases),
                **({} if contents.outputs == OUTPUTS else {"outputs": list(contents.outputs)}),
                "network": dict(contents.network),
                "preprocessing": contents.preprocessing.to_dict(),
                "models": {precision: _model_section(precision, model) for precision, model in contents.models.items()},
                "engines": [
                    {"plan": f"engines/{engine.key}.plan", "meta": f"engines/{engine.key}.json"}
                    for engine in contents.engines
                ],
                "golden": _golden_section(contents.golden),
                "calibration": None if calibration is None else dict(calibration),
                "parity": dict(contents.parity),
                "files": records,
            }
        )
    )
    return _json({**manifest, "digest": manifest_digest(manifest)})


def _model_name(precision: str, part: str = "") -> str:
    return f"model.{precision}{part}.onnx"


def _onnx_files(precision: str, model: OnnxModel) -> dict[str, tuple[bytes, Mapping[str, str]]]:
    """File name -> bytes and blocks of the nodes."""
    files = {_model_name(precision): (model.onnx, model.nodes)}
    if model.split is not None:
        files[_model_name(precision, ".trunk")] = (model.split.trunk, model.split.trunk_nodes)
        files[_model_name(precision, ".tail")] = (model.split.tail, model.split.tail_nodes)
    return files


def _model_section(precision: str, model: OnnxModel) -> dict[str, Any]:
    section: dict[str, Any] = {"file": _model_name(precision), "blocks": dict(model.blocks)}
    if model.split is not None:
        names = {part: _model_name(precision, f".{part}") for part in ("trunk", "tail")}
        section["split"] = {"slices": model.split.slices, **names}
    return section


def _write(folder: Path, name: str, data: bytes) -> dict[str, object]:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _golden_section(golden: GoldenFile) -> dict[str, Any]:
    tolerances = {name: _tolerance_section(found) for name, found in golden.outputs.items()}
    return {"file": GOLDEN, **tolerances.pop("fp32"), "lowered": tolerances}


def _tolerance_section(found: GoldenOutputs) -> dict[str, float]:
    """A network without phase logits has no tolerance for them."""
    section: dict[str, float] = asdict(found.tolerance)
    return section if found.phase_logits is not None else {key: section[key] for key in ("atol", "rtol")}


def _npz(golden: GoldenFile) -> bytes:
    """Arrays `inputs_u8`, `logits`, `phase_logits`, and `logits.int8`, ... for every other precision."""
    arrays: dict[str, NDArray[Any]] = {"inputs_u8": golden.codes}
    for precision, found in golden.outputs.items():
        suffix = "" if precision == "fp32" else f".{precision}"
        arrays[f"logits{suffix}"] = found.logits
        if found.phase_logits is not None:
            arrays[f"phase_logits{suffix}"] = found.phase_logits
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _is_bundle(target: Path) -> bool:
    try:
        manifest = json.loads((target / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and str(manifest.get("schema")).startswith("fourphase.bundle/")


def _refused(target: Path, problem: str) -> OutputNotWritable:
    return OutputNotWritable(
        f"{target} {problem}", "choose a new directory, an empty one, or a bundle to replace", key="target_not_a_bundle"
    )
