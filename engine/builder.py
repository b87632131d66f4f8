"""Typed ONNX -> serialized engine (plan) in this process, by NVIDIA's own parser and builder.

One code path for TensorRT 10.3 to 11.4 and TensorRT for RTX. Precision lives in the ONNX (strongly typed network);
no builder flag changes it. `build_engine` is what others call: it runs this in a process of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourphase.engine.audit import audit_engine, require_precision
from fourphase.engine.capabilities import capabilities_for, set_capabilities
from fourphase.engine.options import BuildOptions, EngineSource
from fourphase.engine.parse import build_error, parse_onnx
from fourphase.engine.timing_cache import CacheUse, attach_cache, keep_cache
from fourphase.runtime.errors import EngineBuildFailed, UsageError
from fourphase.runtime.flavour import Flavour
from fourphase.runtime.trt_logger import BuildLog, logger_of

__all__ = ["OUT_OF_MEMORY", "WORKSPACE_TOO_SMALL", "Built", "build_plan", "check_options"]

#: `key` of the two failures that another workspace may cure.
OUT_OF_MEMORY = "build_out_of_memory"
WORKSPACE_TOO_SMALL = "workspace_too_small"
#: What TensorRT says then (TensorRT for RTX 1.7.1; "Error Code 2" is OutOfMemory in all versions).
_MEMORY_WORDS = ("outofmemory", "out of memory", "error code 2:", "bad_alloc")
_REQUESTED = re.compile(r"requested size was (\d+) bytes")
_WORKSPACE_WORDS = ("within workspace limit", "insufficient workspace")
_NO_SAME_CAPABILITY = "hardware compatibility same-compute-capability needs TensorRT 10.9"


@dataclass(frozen=True, eq=False)
class Built:
    """A plan, and what is known only after it was built.

    Attributes:
        profile: input -> {"min", "opt", "max"} shapes.
        audit: the precision audit as JSON types, or a sentence that says why there is none.
        notes: what the builder did not do as asked, and why.
        warnings: TensorRT's.
    """

    plan: bytes
    profile: dict[str, dict[str, list[int]]]
    timing_cache: CacheUse
    audit: dict[str, Any] | str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def build_plan(flavour: Flavour, source: EngineSource, options: BuildOptions, cache: Path | None = None) -> Built:
    """Builds the engine of one ONNX model.

    Args:
        cache: the timing cache's file; None for none.

    Raises: EngineBuildFailed (26), naming the node and its block where the parser does, with the key OUT_OF_MEMORY or
        WORKSPACE_TOO_SMALL where that is the reason; UsageError (2) for options that this flavour does not have.
    """
    logger = logger_of(flavour)
    logger.lines.clear()
    trt = flavour.trt
    builder = trt.Builder(logger)
    # Needed on 10, where the default is weakly typed; the only mode, and ignored, on 11.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parse_onnx(parser, source.onnx, flavour, source.blocks)
    if network.num_outputs == 0:
        raise build_error("the ONNX model has no outputs", "export the model again")
    config = builder.create_builder_config()
    capabilities, notes = capabilities_for(flavour, options.compute_capabilities)
    profile = _add_profile(builder, network, config, options)
    notes += _configure(flavour, config, options, source, builder.num_DLA_cores)
    set_capabilities(flavour, config, options.compute_capabilities, capabilities)
    use = CacheUse("off") if flavour.is_rtx else attach_cache(config, cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _build_failed(flavour, logger, capabilities, options)
    use = use if flavour.is_rtx else keep_cache(config, cache, use)
    data = bytes(plan)
    audit = _audited(flavour, logger, source, capabilities, data, host_code=options.version_compatible)
    warnings = tuple(dict.fromkeys(logger.texts("warning")))
    return Built(data, profile, use, audit, notes, warnings)


def _add_profile(builder: Any, network: Any, config: Any, options: BuildOptions) -> dict[str, dict[str, list[int]]]:
    """One optimisation profile with the dynamic axis 0 of every input at (min, opt, max)."""
    profile = builder.create_optimization_profile()
    shapes: dict[str, dict[str, list[int]]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        first, *rest = tuple(tensor.shape)
        if -1 in rest:
            raise build_error(
                f"input {tensor.name} has a dynamic axis besides the batch",
                "export the model with a dynamic batch only",
            )
        sizes = [[size if first == -1 else first, *rest] for size in options.batch]
        shapes[tensor.name] = dict(zip(("min", "opt", "max"), sizes, strict=True))
        if options.dla_core is not None:
            tensor.shape = sizes[0]  # the accelerator takes no dynamic shape
        profile.set_shape(tensor.name, *sizes)
    config.add_optimization_profile(profile)
    return shapes


def _configure(
    flavour: Flavour, config: Any, options: BuildOptions, source: EngineSource, cores: int
) -> tuple[str, ...]:
    """Everything of the configuration but profile and GPUs; returns notes."""
    trt = flavour.trt
    # On by default: 10 bits of mantissa in what calls itself FP32.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.dla_core is not None:
        _use_dla(flavour, config, options, source, cores)
    if options.hardware_compatibility != "none":
        config.hardware_compatibility_level = _hardware_level(flavour, options)
    if options.optimization_level is None:
        return ()
    if flavour.is_rtx:
        return ("the builder optimisation level is not used: TensorRT for RTX has none",)
    config.builder_optimization_level = options.optimization_level
    return ()


def check_options(flavour: Flavour, options: BuildOptions, precision: str | None = None) -> None:
    """Raises: UsageError (2) for options that this flavour cannot build with, before work is spent on a model."""
    capabilities_for(flavour, options.compute_capabilities)
    if options.hardware_compatibility != "none":
        _hardware_level(flavour, options)
    if options.dla_core is not None:
        _check_dla(flavour, "trunk", precision)
    if options.version_compatible and flavour.is_rtx:
        raise UsageError(
            "TensorRT for RTX builds no version-compatible engines (it lacks the lean run time they need)",
            "leave --version-compatible out, and build again after an update",
            key="version_compatible_impossible",
        )


def _hardware_level(flavour: Flavour, options: BuildOptions) -> Any:
    if flavour.is_rtx:
        raise UsageError(
            "TensorRT for RTX has no hardware compatibility levels",
            "name every GPU with --compute-capability instead; it may be repeated",
            key="hardware_compatibility_unknown",
        )
    trt = flavour.trt
    if options.hardware_compatibility == "ampere-plus":
        return trt.HardwareCompatibilityLevel.AMPERE_PLUS
    # Not in every supported version, so looked up among the members there are.
    members = trt.HardwareCompatibilityLevel.__members__
    found = {str(name): value for name, value in members.items()}.get("SAME_COMPUTE_CAPABILITY")
    if found is None:
        raise UsageError(
            f"{_NO_SAME_CAPABILITY}, this is {flavour.version}", "leave it out", key="hardware_compatibility_unknown"
        )
    return found


def _use_dla(flavour: Flavour, config: Any, options: BuildOptions, source: EngineSource, cores: int) -> None:
    trt = flavour.trt
    _check_dla(flavour, source.part, source.precision)
    if options.dla_core not in range(cores):
        # With the fallback to the GPU it would build all the same, and only be called what it is not.
        raise UsageError(
            f"this TensorRT finds {cores} deep learning accelerators here, so there is no core {options.dla_core}",
            "leave --dla out, or see docs/jetson.md for the boards and versions that have them",
            key="dla_impossible",
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = options.dla_core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _check_dla(flavour: Flavour, part: str, precision: str | None) -> None:
    """Raises: UsageError (2) where the deep learning accelerator cannot compute what it is asked to."""
    cure = "give --split SLICES with --precision fp16 or int8: it then takes the trunk alone"
    if flavour.is_rtx:
        cause, cure = "TensorRT for RTX does not know the deep learning accelerator", "leave --dla out"
    elif part != "trunk":
        cause = "the deep learning accelerator cannot run the GRU (no loops there)"
    elif precision == "fp32":
        cause = "the deep learning accelerator computes in FP16 and INT8 only"
    else:
        return
    raise UsageError(cause, cure, key="dla_impossible")


def _audited(
    flavour: Flavour,
    logger: BuildLog,
    source: EngineSource,
    built_for: Sequence[str],
    plan: bytes,
    *,
    host_code: bool,
) -> dict[str, Any] | str:
    """The audit of a plan as JSON types, or why there is none: it needs the engine, and the engine needs its GPU.

    Raises: EngineBuildFailed (26) for an engine that does not hold the precision asked for, or that cannot be loaded.
    """
    device = flavour.gpu.device
    if device is None:
        return "not audited: there is no GPU here to load the engine on"
    if device.compute_capability not in built_for:
        return f"not audited: the engine is for compute capability {', '.join(built_for)}, this GPU has another"
    runtime = flavour.trt.Runtime(logger)
    if host_code:  # of the plan that was built a moment ago
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise build_error(
            f"the engine was built, but cannot be loaded: {'; '.join(logger.texts('error')) or 'no reason given'}",
            "update the driver and TensorRT, see fp-doctor",
            key="plan_not_loadable",
        )
    present = set(source.blocks.values())
    wanted = {block: precision for block, precision in source.precisions.items() if block in present}
    try:
        audit = audit_engine(flavour.trt, engine, source.blocks)
        require_precision(audit, wanted, source.exempt)
    except EngineBuildFailed as fault:
        # TensorRT for RTX compiles kernels when it runs, and may not tell their types before.
        if flavour.is_rtx and fault.key != "precision_not_held":
            return f"not audited: {fault.message}"
        raise
    return audit.to_dict()


def _build_failed(
    flavour: Flavour, logger: BuildLog, capabilities: Sequence[str], options: BuildOptions
) -> EngineBuildFailed:
    lines = logger.texts("error")
    key = _reason_key(lines, options.workspace_bytes)
    cures: Mapping[str | None, str] = {
        OUT_OF_MEMORY: "free memory, or give a smaller --workspace or --split",
        WORKSPACE_TOO_SMALL: f"give a larger --workspace; it was {options.workspace_bytes >> 20} MiB",
        None: "use another --compute-capability, --precision or --target, or a machine with more memory",
    }
    return build_error(
        f"{flavour.name} {flavour.version} could not build the engine for compute capability"
        f" {', '.join(capabilities)}: {lines[0] if lines else 'no reason given'}",
        cures[key],
        key=key,
        table=[{"TensorRT says": line} for line in lines],
    )


def _reason_key(lines: Sequence[str], workspace_bytes: int) -> str | None:
    text = "\n".join(lines).lower()
    # TensorRT calls it "out of memory" too if a single request is larger than the workspace it may use.
    asked = [int(size) for size in _REQUESTED.findall(text)]
    if any(words in text for words in _WORKSPACE_WORDS) or any(size > workspace_bytes for size in asked):
        return WORKSPACE_TOO_SMALL
    return OUT_OF_MEMORY if any(words in text for words in _MEMORY_WORDS) else None
