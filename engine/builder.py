"""Typed ONNX -> serialized engine (plan), by NVIDIA's own parser and builder.

One code path for TensorRT 10.3 to 11.4 and TensorRT for RTX. Precision lives in the ONNX (strongly typed network);
no builder flag changes it. It does not run an engine and keeps no timing cache.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fourphase.runtime.config import canonical_json
from fourphase.runtime.console import progress
from fourphase.runtime.errors import EngineBuildFailed, UsageError
from fourphase.runtime.flavour import Flavour, load_flavour
from fourphase.runtime.trt_logger import BuildLog, logger_of

__all__ = ["DEFAULT_COMPUTE_CAPABILITY", "BuildOptions", "EnginePlan", "build_engine", "check_build", "plan_key"]

#: What an RTX engine is built for where there is no GPU and none was named: L4, L40, RTX 40.
DEFAULT_COMPUTE_CAPABILITY = "8.9"
#: What decides whether a plan fits; build time and warnings do not.
_KEY_FIELDS = (
    "onnx_sha256", "flavour", "version", "cuda", "driver", "gpu", "compute_capabilities", "os", "arch", "precision",
    "profile", "flags",
)  # fmt: skip
_WARNINGS_KEPT = 20
_NO_BLOCKS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        batch: (min, opt, max) studies per run of the optimisation profile.
        workspace_bytes: scratch memory a layer may take; 4 GiB leaves half of the smallest Jetson (8 GB).
        compute_capabilities: "8.9", ...: the GPUs an RTX engine is for; empty means the GPU at hand, or 8.9.
    """

    batch: tuple[int, int, int] = (1, 1, 2)
    workspace_bytes: int = 4 << 30
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        low, opt, high = self.batch
        if not 1 <= low <= opt <= high:
            raise UsageError(
                f"the batch profile {self.batch} is not 1 <= min <= opt <= max", "correct it", key="profile_invalid"
            )


@dataclass(frozen=True, eq=False)
class EnginePlan:
    """A built engine.

    Attributes:
        plan: the serialized engine. It is native code: deserialize it only after checking its hash.
        meta: what it was built from, with and for; JSON types only, the content of `engines/<key>.json`.
    """

    plan: bytes
    meta: Mapping[str, Any]

    @property
    def key(self) -> str:
        return plan_key(self.meta)


def plan_key(meta: Mapping[str, Any]) -> str:
    """16 hex digits that are equal for two plans if one can replace the other."""
    return hashlib.sha256(canonical_json({name: meta[name] for name in _KEY_FIELDS}).encode()).hexdigest()[:16]


def check_build(target: str, options: BuildOptions | None = None) -> None:
    """Raises what `build_engine` would raise for this machine and these options, before work is spent on a model.

    Raises: EnvironmentFault, GPUUnavailable, UsageError.
    """
    _capabilities(load_flavour(target), (options or BuildOptions()).compute_capabilities)


def build_engine(
    onnx: bytes,
    target: str,
    *,
    precision: str,
    options: BuildOptions | None = None,
    blocks: Mapping[str, str] = _NO_BLOCKS,
) -> EnginePlan:
    """Builds the engine of one ONNX model.

    Args:
        onnx: the model's bytes, types and Q/DQ already in the graph, no external data.
        target: "tensorrt" or "tensorrt-rtx".
        precision: the policy the graph was typed with ("fp32"); recorded and part of the key, it changes nothing here.
        options: None for the defaults.
        blocks: ONNX node name -> the network's block, for error messages.

    Raises: EngineBuildFailed, naming the node and its block where the parser does; EnvironmentFault and
        GPUUnavailable as `load_flavour`; UsageError for a compute capability this flavour does not know.
    """
    options = options or BuildOptions()
    flavour = load_flavour(target)
    logger = logger_of(flavour)
    logger.lines.clear()
    started = time.monotonic()
    with progress(f"building {precision} engine with {target} {flavour.version}", None):
        built = _build(flavour, logger, onnx, options, blocks)
    meta = {
        "schema": "fourphase.engine/1",
        "flavour": flavour.name,
        "version": flavour.version,
        **_machine(flavour),
        "compute_capabilities": list(built.compute_capabilities),
        "precision": precision,
        "flags": {"strongly_typed": True, "tf32": False, "workspace_bytes": options.workspace_bytes},
        "profile": built.profile,
        "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
        "plan_sha256": hashlib.sha256(built.plan).hexdigest(),
        "build_seconds": round(time.monotonic() - started, 2),
        "warnings": [*built.notes, *dict.fromkeys(logger.texts("warning"))][:_WARNINGS_KEPT],
    }
    return EnginePlan(built.plan, MappingProxyType(meta))


@dataclass(frozen=True, eq=False)
class _Built:
    plan: bytes
    compute_capabilities: tuple[str, ...]
    profile: dict[str, dict[str, list[int]]]
    notes: tuple[str, ...]


def _build(flavour: Flavour, logger: BuildLog, onnx: bytes, options: BuildOptions, blocks: Mapping[str, str]) -> _Built:
    trt = flavour.trt
    builder = trt.Builder(logger)
    # Needed on 10, where the default is weakly typed; the only mode, and ignored, on 11.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    _parse(parser, onnx, flavour, blocks)
    if network.num_outputs == 0:
        raise _failed("the ONNX model has no outputs", "export the model again")
    config = builder.create_builder_config()
    # On by default: 10 bits of mantissa in what calls itself FP32.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = _add_profile(builder, network, config, options.batch)
    capabilities, notes = _capabilities(flavour, options.compute_capabilities)
    if flavour.is_rtx:
        _rtx_set(flavour, config, options.compute_capabilities, capabilities)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _build_failed(flavour, logger, capabilities)
    return _Built(bytes(plan), capabilities, profile, notes)


def _parse(parser: Any, onnx: bytes, flavour: Flavour, blocks: Mapping[str, str]) -> None:
    """Feeds the parser; whatever it objects to is an error, also where it returns True."""
    if parser.parse(onnx) and parser.num_errors == 0:
        return
    rows = [_parser_error(parser.get_error(index), blocks) for index in range(parser.num_errors)]
    if not rows:
        raise _failed(f"the ONNX parser of {flavour.name} {flavour.version} refused the model without a reason")
    first = rows[0]
    where = f" at node {first['node']} ({first['operator']})" if first["operator"] else ""
    where += f" of block {first['block']}" if first["block"] else ""
    raise _failed(
        f"the ONNX parser of {flavour.name} {flavour.version} refused the model{where}: {first['reason']}",
        "change the named operator in the model, or use another --target; --target none keeps the ONNX only",
        key="parser_refused",
        table=rows,
    )


def _parser_error(error: Any, blocks: Mapping[str, str]) -> dict[str, str]:
    node = error.node_name()
    return {
        "node": node or (f"number {error.node()}" if error.node() >= 0 else "none"),
        "operator": error.node_operator(),
        "block": blocks.get(node, ""),
        "reason": f"{error.code().name}: {' '.join(error.desc().split())}",
    }


def _add_profile(
    builder: Any, network: Any, config: Any, batch: tuple[int, int, int]
) -> dict[str, dict[str, list[int]]]:
    """One optimisation profile with the dynamic axis 0 of every input at (min, opt, max)."""
    profile = builder.create_optimization_profile()
    shapes: dict[str, dict[str, list[int]]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        first, *rest = tuple(tensor.shape)
        if -1 in rest:
            raise _failed(
                f"input {tensor.name} has a dynamic axis besides the batch",
                "export the model with a dynamic batch only",
            )
        sizes = [[size if first == -1 else first, *rest] for size in batch]
        shapes[tensor.name] = dict(zip(("min", "opt", "max"), sizes, strict=True))
        profile.set_shape(tensor.name, *sizes)
    config.add_optimization_profile(profile)
    return shapes


def _capabilities(flavour: Flavour, wanted: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The compute capabilities the engine is for (those wanted, the GPU at hand, the default), and notes on them."""
    device = flavour.gpu.device
    if flavour.is_rtx:
        _rtx_check(flavour, wanted)
    elif wanted:
        raise UsageError(
            "TensorRT builds only for the GPU at hand",
            "leave --compute-capability out, or use --target tensorrt-rtx",
            key="compute_capability_unknown",
        )
    if wanted:
        return tuple(dict.fromkeys(wanted)), ()
    if device is not None:
        return (device.compute_capability,), ()
    note = f"built for compute capability {DEFAULT_COMPUTE_CAPABILITY}, the default: {flavour.gpu.reason}"
    return (DEFAULT_COMPUTE_CAPABILITY,), (note,)


def _rtx_known(flavour: Flavour) -> dict[str, Any]:
    """The GPUs this version builds for: "8.9" -> ComputeCapability.SM89."""
    members = flavour.trt.ComputeCapability.__members__
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name[2:].isdigit()}


def _rtx_check(flavour: Flavour, wanted: Sequence[str]) -> None:
    known = _rtx_known(flavour)
    for capability in wanted:
        if capability not in known:
            raise UsageError(
                f"TensorRT for RTX {flavour.version} does not build for compute capability {capability}",
                f"choose from {', '.join(known)}",
                key="compute_capability_unknown",
            )


def _rtx_set(flavour: Flavour, config: Any, wanted: Sequence[str], chosen: Sequence[str]) -> None:
    known, device = _rtx_known(flavour), flavour.gpu.device
    at_hand = device is not None and not wanted
    values = [flavour.trt.ComputeCapability.CURRENT] if at_hand else [known[capability] for capability in chosen]
    config.num_compute_capabilities = len(values)
    for index, value in enumerate(values):
        config.set_compute_capability(value, index)


def _machine(flavour: Flavour) -> dict[str, Any]:
    """The machine's part of the meta data; without a GPU nothing is claimed about one."""
    device = flavour.gpu.device
    gpu = device and {"name": device.name, "compute_capability": device.compute_capability}
    return {
        "gpu": gpu,
        "cuda": device and device.cuda,
        "driver": device and device.driver,
        "os": platform.system().lower(),
        "arch": platform.machine(),
    }


def _build_failed(flavour: Flavour, logger: BuildLog, capabilities: Sequence[str]) -> EngineBuildFailed:
    lines = logger.texts("error")
    return _failed(
        f"{flavour.name} {flavour.version} could not build the engine for compute capability"
        f" {', '.join(capabilities)}: {lines[0] if lines else 'no reason given'}",
        "use another --compute-capability, --precision or --target, or a machine with more memory",
        table=[{"TensorRT says": line} for line in lines],
    )


def _failed(
    cause: str,
    cure: str = "use another --target; --target none keeps the ONNX only",
    *,
    key: str | None = None,
    table: Sequence[dict[str, str]] = (),
) -> EngineBuildFailed:
    return EngineBuildFailed(cause, cure, key=key, table=table)
