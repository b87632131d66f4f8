"""Writes a kit for `gpu_check`: models with inputs and references, and the bundles that the run time loads.

Each model is first held against its reference in ONNX Runtime, so that a difference on a GPU is the GPU's.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fourphase.benchmarks.gpu.kit import BATCH, BUNDLE, MANIFEST, SCHEMA, SMALL, decoded, judged
from fourphase.benchmarks.gpu.kit_bundle import DrawnStudies, bundle_contents
from fourphase.benchmarks.gpu.kit_parts import Arrays, Part, network_parts
from fourphase.benchmarks.networks import NETWORKS, TINY, Scale, settled
from fourphase.engine.bundle import BundleContents, write_bundle
from fourphase.export.network import BasicBlock, FourPhaseNet
from fourphase.export.onnx_export import onnx_from_network
from fourphase.runtime.atomic import new_directory
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.console import progress
from fourphase.runtime.errors import InputMissing, ParityFailed

__all__ = ["write_kit"]

#: Studies that the batch-norm statistics are of, and their seed: not those that anything is compared on.
_SETTLED_ON, _SETTLED_SEED = 2, 1
#: Of the last batch norm of every residual branch, as in `networks`: at 1, rounding grows from stage to stage until
#: int8 is allowed any answer.
_RESIDUAL_GAIN = 0.25


@dataclass(frozen=True, eq=False)
class _Made:
    """A network of one scale, exported and lowered."""

    network: FourPhaseNet
    model: onnx.ModelProto
    contents: BundleContents
    study: Tensor


@dataclass(frozen=True, eq=False)
class _Files:
    """What will be written beside the manifest; equal contents are kept once."""

    content: dict[str, bytes] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, data: bytes) -> dict[str, Any]:
        """Its record; the file's name is that of an equal one, if there is one."""
        digest = hashlib.sha256(data).hexdigest()
        name = self.names.setdefault(digest, name)
        self.content[name] = data
        return {"file": name, "bytes": len(data), "sha256": digest}


def write_kit(target: Path, scale: Scale, wheels: Sequence[Path] = ()) -> dict[str, Any]:
    """Writes (or replaces) the kit of one network scale; returns its manifest.

    Args:
        wheels: files that the kit carries along.

    Raises: InputMissing, ExportRefused, ParityFailed, OutputNotWritable.
    """
    files = _Files()
    carried = [files.add(f"wheels/{wheel.name}", _read(wheel)) for wheel in wheels]
    made = _made(scale)
    small = made if scale == TINY else _made(TINY)
    parts = network_parts(made.network, made.model, made.contents, made.study)
    models = {}
    with progress("computing references", len(parts)) as advance:
        for name, part in parts.items():
            models[name] = _packed(name, part, files)
            advance(1)
    manifest = {
        "schema": SCHEMA,
        "width": scale.width,
        "size": list(scale.size),
        "batch": BATCH,
        "tools": {name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")},
        "models": models,
        "wheels": carried,
    }
    with new_directory(target) as folder:
        for name, data in files.content.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        write_bundle(folder / BUNDLE, made.contents)
        write_bundle(folder / SMALL, small.contents)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _read(wheel: Path) -> bytes:
    try:
        return wheel.read_bytes()
    except OSError as error:
        raise InputMissing(f"the wheel {wheel.name} cannot be read", "give --wheel the path of a file") from error


def _made(scale: Scale) -> _Made:
    with progress(f"exporting the network of width {scale.width}", None):
        module, study = NETWORKS["four-phase"](scale, 1)
        network, preprocessing = cast(FourPhaseNet, module), PreprocessingConfig(size=scale.size)
        drawn = DrawnStudies(_SETTLED_ON, network.config.count, preprocessing, _SETTLED_SEED)
        for block in network.modules():
            if isinstance(block, BasicBlock):
                nn.init.constant_(block.bn2.get_parameter("weight"), _RESIDUAL_GAIN)
        settled(network, torch.cat([torch.from_numpy(one) for one in drawn.studies()]))
        model = onnx_from_network(network, preprocessing)
        return _Made(network, model, bundle_contents(network, preprocessing, model, scale.size[0] // 2), study)


def _packed(name: str, part: Part, files: _Files) -> dict[str, Any]:
    """Adds one model's files to `files`; returns its entry of the manifest."""
    inputs = decoded(part.codes, part.decode)
    reference = part.reference(inputs)
    data = part.model.SerializeToString()
    measured = _checked(name, part, data, inputs, reference)
    outputs = {f"output{index}": reference[output] for index, output in enumerate(part.outputs)}
    return {
        "onnx": files.add(f"{name}.onnx", data),
        "inputs": files.add(f"{name}.inputs.npz", _npz({"codes": part.codes})),
        "outputs": files.add(f"{name}.outputs.npz", _npz(outputs)),
        "input": part.input,
        "output_names": list(part.outputs),
        "decode": part.decode,
        "rows_per_study": part.rows,
        "precision": part.precision,
        "allowed": part.allowed,
        "blocks": dict(part.blocks),
        "precisions": dict(part.precisions),
        "exempt": list(part.exempt),
        "cost": part.cost,
        "onnxruntime_difference": measured,
    }


def _npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub of **kwds
    return buffer.getvalue()


def _checked(name: str, part: Part, model: bytes, inputs: NDArray[np.float32], reference: Arrays) -> dict[str, Any]:
    """Holds ONNX Runtime, at one study and at all of them, against the reference; returns the worse difference."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found = []
    for rows in (part.rows, len(inputs)):
        outputs = session.run(list(part.outputs), {part.input: inputs[:rows]})
        wanted = {output: value[:rows] for output, value in reference.items()}
        found.append(judged(dict(zip(part.outputs, outputs, strict=True)), wanted, part.allowed))
    worst = max(found, key=lambda one: np.inf if one["relative"] is None else one["relative"])
    if not all(one["passed"] for one in found):
        raise ParityFailed(
            f"the kit's model {name} does not compute what it must: {worst}",
            "report it; a kit with this model would blame the GPU",
        )
    return worst
