"""The models of a kit: a network and what is cut out of its graph, node for node, each with what it must compute.

What a GPU says of a part it therefore says of the product. References are the PyTorch modules' FP32 outputs, but for
the lowered models: theirs are the bundle's golden outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx.utils import Extractor
from torch import Tensor, nn

from fourphase.benchmarks.gpu.kit import BATCH, MODELS, decoded
from fourphase.benchmarks.latency.limits import network_cost
from fourphase.calibration.blocks import node_blocks
from fourphase.calibration.rounding import rounding_session
from fourphase.engine.bundle import BundleContents
from fourphase.export.golden import golden_codes
from fourphase.export.network import FourPhaseNet, Trunk
from fourphase.export.onnx_export import INPUT, OUTPUTS
from fourphase.export.pass_unroll_gru import unroll_gru
from fourphase.export.split import FEATURES

__all__ = ["Part", "network_parts", "torch_reference"]

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Arrays = dict[str, Floats]
TorchFunction = Callable[[Tensor], tuple[Tensor, ...]]

#: The gates after the first stage see the largest maps.
_GATES_INPUT, _GATES_OUTPUTS = "stage1/NC", ("gate1.channel/NC", "gate1.spatial/NC")
_GRU_INPUT, _GRU_OUTPUTS = "conv1d", ("gru",)
#: What an int8 trunk may differ by from the literal evaluation, as golden outputs may (`export.golden`).
_SPREAD_FACTOR, _INT8_FLOOR = 4.0, 1e-2
#: Edge of a block of equal values in a feature map: coarse enough to compress.
_GRAIN = 4


@dataclass(frozen=True, eq=False)
class Part:
    """A model to be: its graph, its input as codes, and what it must give.

    Attributes:
        reference: input float32 -> output name -> float32.
        rows, allowed, blocks, precisions, exempt, cost: as of a `KitModel`.
    """

    model: onnx.ModelProto
    input: str
    codes: Codes
    decode: str
    outputs: tuple[str, ...]
    reference: Callable[[Floats], Arrays]
    rows: int = 1
    precision: str = "fp32"
    allowed: Mapping[str, float] | None = None
    blocks: Mapping[str, str] = field(default_factory=dict)
    precisions: Mapping[str, str] = field(default_factory=dict)
    exempt: tuple[str, ...] = ()
    cost: Mapping[str, Any] | None = None


def network_parts(
    network: FourPhaseNet, model: onnx.ModelProto, contents: BundleContents, study: Tensor
) -> dict[str, Part]:
    """All of MODELS.

    Args:
        model: the network's FP32 export, of which `contents` is the bundle.
        study: one, for the cost.
    """
    parts = {**_cut_out(network, model, contents), **_halves(network, contents), **_wholes(network, model, contents)}
    parts["trunk-int8"] = _int8_trunk(contents)
    parts["network"] = _with_cost(parts["network"], network, study)
    parts["network-unrolled"] = _with_cost(parts["network-unrolled"], network, study)
    return {name: parts[name] for name in MODELS}


def torch_reference(function: TorchFunction, outputs: tuple[str, ...], rows: int = 1) -> Callable[[Floats], Arrays]:
    """PyTorch's outputs, one study (`rows` of the first axis) at a time, so that several need the memory of one."""

    def reference(inputs: Floats) -> Arrays:
        found: list[tuple[Tensor, ...]] = []
        with torch.no_grad():
            for start in range(0, len(inputs), rows):
                found.append(function(torch.from_numpy(inputs[start : start + rows])))
        return {name: torch.cat([row[i] for row in found]).numpy() for i, name in enumerate(outputs)}

    return reference


def _cut_out(network: FourPhaseNet, model: onnx.ModelProto, contents: BundleContents) -> dict[str, Part]:
    """The recurrence in both forms, and one pair of gates."""
    extractor = Extractor(model)
    trunk, spm = cast(Trunk, network.trunks["NC"]), network.spm
    assert spm is not None
    gru: nn.GRU = spm.gru
    slices, rows, columns = contents.preprocessing.size
    channels = network.config.stage_channels[0]
    loop = _fp32_part(
        extractor.extract_model([_GRU_INPUT], list(_GRU_OUTPUTS)),
        _GRU_INPUT,
        _drawn((BATCH, gru.input_size, slices)),
        "features",
        _GRU_OUTPUTS,
        lambda x: (gru(x.transpose(1, 2))[0],),
    )
    gates = _fp32_part(
        extractor.extract_model([_GATES_INPUT], list(_GATES_OUTPUTS)),
        _GATES_INPUT,
        _drawn_maps((BATCH * slices, channels, rows // 4, columns // 4)),  # the stem halves twice
        "features",
        _GATES_OUTPUTS,
        trunk.gates["1"],
        slices,
    )
    return {"gru": loop, "gru-unrolled": _with_model(loop, _unrolled(loop.model)), "gates": gates}


def _halves(network: FourPhaseNet, contents: BundleContents) -> dict[str, Part]:
    """Trunk and tail of the split network in FP32."""
    split = contents.models["fp32"].split
    assert split is not None
    config, preprocessing = network.config, contents.preprocessing
    codes = golden_codes(BATCH, config.count, preprocessing)
    features = (BATCH, config.count, preprocessing.size[0], config.stage_channels[-1])
    return {
        "trunk": _fp32_part(
            onnx.load_from_string(split.trunk),
            INPUT,
            np.ascontiguousarray(codes[:, :, : split.slices]),
            "study",
            (FEATURES,),
            lambda x: (network.features(x),),
        ),
        "tail": _fp32_part(
            onnx.load_from_string(split.tail), FEATURES, _drawn(features), "features", OUTPUTS, network.predict
        ),
    }


def _int8_trunk(contents: BundleContents) -> Part:
    """The trunk in int8 on the golden inputs. An untrained network's logits say little of it, its features do."""
    model, golden = contents.models["int8"], contents.golden
    assert model.split is not None
    trunk = onnx.load_from_string(model.split.trunk)
    codes = np.ascontiguousarray(golden.codes[:, :, : model.split.slices])
    inputs = decoded(codes, "study")
    literal, unrounded = (_one_by_one(rounding_session(trunk, rounds=rounds), inputs) for rounds in (True, False))
    spread = float(np.abs(literal[FEATURES] - unrounded[FEATURES]).max())
    floor = _INT8_FLOOR * float(np.abs(literal[FEATURES]).max())
    return Part(
        model=trunk,
        input=INPUT,
        codes=codes,
        decode="study",
        outputs=(FEATURES,),
        reference=lambda _: literal,
        precision="int8",
        allowed={FEATURES: max(_SPREAD_FACTOR * spread, floor)},
        blocks=model.split.trunk_nodes,
        precisions=model.blocks,
        exempt=model.exempt,
    )


def _one_by_one(run: Callable[[Floats], Mapping[str, Floats]], inputs: Floats) -> Arrays:
    found = [run(inputs[index : index + 1]) for index in range(len(inputs))]
    return {name: np.concatenate([outputs[name] for outputs in found]) for name in found[0]}


def _wholes(network: FourPhaseNet, model: onnx.ModelProto, contents: BundleContents) -> dict[str, Part]:
    """The network in every precision, and with its GRU written out."""
    codes = golden_codes(BATCH, network.config.count, contents.preprocessing)
    whole = _fp32_part(model, INPUT, codes, "study", OUTPUTS, network)
    lowered = {f"network-{precision}": _lowered(contents, precision) for precision in contents.models}
    del lowered["network-fp32"]
    return {"network": whole, "network-unrolled": _with_model(whole, _unrolled(model)), **lowered}


def _lowered(contents: BundleContents, precision: str) -> Part:
    """A lowered network on the golden inputs."""
    model, golden = contents.models[precision], contents.golden.outputs[precision]
    phases = {} if golden.phase_logits is None else {"phase_logits": golden.phase_logits}
    wanted = {"logits": golden.logits, **phases}
    tolerances = (golden.tolerance.atol, golden.tolerance.phase_atol)
    return Part(
        model=onnx.load_from_string(model.onnx),
        input=INPUT,
        codes=contents.golden.codes,
        decode="study",
        outputs=OUTPUTS,
        reference=lambda _: wanted,
        precision=precision,
        allowed=dict(zip(OUTPUTS, tolerances, strict=True)),
        blocks=model.nodes,
        precisions=model.blocks,
        exempt=model.exempt,
    )


def _fp32_part(
    model: onnx.ModelProto,
    source: str,
    codes: Codes,
    decode: str,
    outputs: tuple[str, ...],
    function: TorchFunction,
    rows: int = 1,
) -> Part:
    blocks = node_blocks(model)
    return Part(
        model=model,
        input=source,
        codes=codes,
        decode=decode,
        outputs=outputs,
        reference=torch_reference(function, outputs, rows),
        rows=rows,
        blocks=blocks,
        precisions=dict.fromkeys(blocks.values(), "fp32"),
    )


def _with_model(part: Part, model: onnx.ModelProto) -> Part:
    """The same to be computed by another graph."""
    return replace(part, model=model, blocks=node_blocks(model))


def _with_cost(part: Part, network: FourPhaseNet, study: Tensor) -> Part:
    return replace(part, cost=network_cost(network, study).to_dict())


def _unrolled(model: onnx.ModelProto) -> onnx.ModelProto:
    graph, changed = unroll_gru(ir.serde.deserialize_model(model))
    assert changed
    return ir.serde.serialize_model(graph)


def _drawn(shape: tuple[int, ...]) -> Codes:
    """Random codes, the same everywhere."""
    return np.random.Generator(np.random.PCG64(0)).integers(0, 256, shape, dtype=np.uint8)


def _drawn_maps(shape: tuple[int, int, int, int]) -> Codes:
    """Random maps (N, C, H, W) with blocks of equal value."""
    rows, columns = shape[2:]
    coarse = _drawn((*shape[:2], -(-rows // _GRAIN), -(-columns // _GRAIN)))
    return np.ascontiguousarray(coarse.repeat(_GRAIN, axis=2).repeat(_GRAIN, axis=3)[:, :, :rows, :columns])
