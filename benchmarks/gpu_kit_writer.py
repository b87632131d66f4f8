"""Writes a kit for `gpu_check`: the exported network, and its GRU and one pair of its gates cut out of the same graph.

The parts are those that ship, node for node, so what a GPU says of them it says of the product. References are the
PyTorch modules' FP32 outputs; each model is first held against them in ONNX Runtime, so that a difference on a GPU is
the GPU's.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.utils import Extractor
from torch import Tensor, nn

from fourphase.benchmarks.differences import FP32_RTOL, difference
from fourphase.benchmarks.gpu_kit import BATCH, MANIFEST, MODELS, SCHEMA, decoded
from fourphase.benchmarks.limits import network_cost
from fourphase.benchmarks.networks import NETWORKS, Scale
from fourphase.export.golden import golden_codes
from fourphase.export.network import FourPhaseNet, Trunk
from fourphase.export.onnx_export import INPUT, OUTPUTS, onnx_from_network
from fourphase.runtime.atomic import new_directory
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.console import progress
from fourphase.runtime.errors import ParityFailed

__all__ = ["write_kit"]

Codes = NDArray[np.uint8]
Arrays = dict[str, NDArray[np.float32]]

#: The gates after the first stage see the largest maps.
_GATES_INPUT, _GATES_OUTPUTS = "stage1/NC", ("gate1.channel/NC", "gate1.spatial/NC")
_GRU_INPUT, _GRU_OUTPUTS = "conv1d", ("gru",)
#: Edge of a block of equal values in a feature map: coarse enough to compress.
_GRAIN = 4


@dataclass(frozen=True, eq=False)
class _Part:
    """A model to be: its graph, its input as codes, and the PyTorch function it must equal."""

    model: onnx.ModelProto
    input: str
    codes: Codes
    decode: str
    outputs: tuple[str, ...]
    torch_function: Callable[[Tensor], tuple[Tensor, ...]]
    rows: int
    cost: Mapping[str, Any] | None = None


def write_kit(target: Path, scale: Scale) -> dict[str, Any]:
    """Writes (or replaces) the kit of one network scale; returns its manifest.

    Raises: ExportRefused, ParityFailed, OutputNotWritable.
    """
    with progress("exporting the network", None):
        parts = _parts(scale)
    files: dict[str, bytes] = {}
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
    }
    with new_directory(target) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _parts(scale: Scale) -> dict[str, _Part]:
    module, study = NETWORKS["four-phase"](scale, 1)
    network = cast(FourPhaseNet, module)
    preprocessing = PreprocessingConfig(size=scale.size)
    model = onnx_from_network(network, preprocessing)
    extractor = Extractor(model)
    trunk, spm, config = cast(Trunk, network.trunks["NC"]), network.spm, network.config
    assert spm is not None
    gru: nn.GRU = spm.gru
    slices, rows, columns = scale.size
    edges = (rows // 4, columns // 4)  # the stem halves twice
    parts = (
        _Part(
            model=extractor.extract_model([_GRU_INPUT], list(_GRU_OUTPUTS)),
            input=_GRU_INPUT,
            codes=_feature_codes((BATCH, gru.input_size, slices)),
            decode="features",
            outputs=_GRU_OUTPUTS,
            torch_function=lambda x: (gru(x.transpose(1, 2))[0],),
            rows=1,
        ),
        _Part(
            model=extractor.extract_model([_GATES_INPUT], list(_GATES_OUTPUTS)),
            input=_GATES_INPUT,
            codes=_feature_codes((BATCH * slices, config.stage_channels[0], *edges)),
            decode="features",
            outputs=_GATES_OUTPUTS,
            torch_function=trunk.gates["1"],
            rows=slices,
        ),
        _Part(
            model=model,
            input=INPUT,
            codes=golden_codes(BATCH, config.count, preprocessing),
            decode="study",
            outputs=OUTPUTS,
            torch_function=network,
            rows=1,
            cost=network_cost(network, study).to_dict(),
        ),
    )
    return dict(zip(MODELS, parts, strict=True))


def _feature_codes(shape: tuple[int, ...]) -> Codes:
    """Random codes, the same everywhere; maps (N, C, H, W) have blocks of equal value, sequences (B, F, T) do not."""
    generator = np.random.Generator(np.random.PCG64(0))
    if len(shape) == 3:
        return generator.integers(0, 256, shape, dtype=np.uint8)
    rows, columns = shape[2:]
    coarse = generator.integers(0, 256, (*shape[:2], -(-rows // _GRAIN), -(-columns // _GRAIN)), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(_GRAIN, axis=2).repeat(_GRAIN, axis=3)[:, :, :rows, :columns])


def _packed(name: str, part: _Part, files: dict[str, bytes]) -> dict[str, Any]:
    """Adds one model's files to `files`; returns its entry of the manifest."""
    inputs = decoded(part.codes, part.decode)
    reference = _reference(part, inputs)
    data = part.model.SerializeToString()
    measured = _checked(name, part, data, inputs, reference)
    arrays = io.BytesIO()
    outputs = {f"output{index}": value for index, value in enumerate(reference.values())}
    np.savez_compressed(arrays, codes=part.codes, **outputs)  # type: ignore[arg-type]  # numpy's stub of **kwds
    entry: dict[str, Any] = {}
    for kind, file, content in (("onnx", f"{name}.onnx", data), ("arrays", f"{name}.npz", arrays.getvalue())):
        files[file] = content
        entry[kind] = {"file": file, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {
        **entry,
        "input": part.input,
        "outputs": list(part.outputs),
        "decode": part.decode,
        "rows_per_study": part.rows,
        "cost": part.cost,
        "onnxruntime_difference": measured,
    }


def _reference(part: _Part, inputs: NDArray[np.float32]) -> Arrays:
    """PyTorch's outputs, one study at a time, so that four full-size studies need the memory of one."""
    rows: list[tuple[Tensor, ...]] = []
    with torch.no_grad():
        for start in range(0, len(inputs), part.rows):
            rows.append(part.torch_function(torch.from_numpy(inputs[start : start + part.rows])))
    return {name: torch.cat([row[i] for row in rows]).numpy() for i, name in enumerate(part.outputs)}


def _checked(name: str, part: _Part, model: bytes, inputs: NDArray[np.float32], reference: Arrays) -> dict[str, Any]:
    """Holds ONNX Runtime, at one study and at BATCH, against the reference; returns the worse difference."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found = []
    for rows in (part.rows, len(inputs)):
        outputs = session.run(list(part.outputs), {part.input: inputs[:rows]})
        wanted = {output: value[:rows] for output, value in reference.items()}
        found.append(difference(dict(zip(part.outputs, outputs, strict=True)), wanted))
    worst = max(found, key=lambda one: np.inf if one["relative"] is None else one["relative"])
    if worst["relative"] is None or worst["relative"] > FP32_RTOL:
        raise ParityFailed(
            f"the kit's model {name} does not compute what PyTorch does: {worst}",
            "report it; a kit with this model would blame the GPU",
        )
    return worst
