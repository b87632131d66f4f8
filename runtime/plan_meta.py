"""What a serialized engine (plan) says of itself, and whether it fits a machine: the key, and the reasons against it.

It reads no plan; `plan_store` does.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fourphase.runtime.config import canonical_json
from fourphase.runtime.cuda import Device, Probe, probe
from fourphase.runtime.errors import FourphaseError, ModelIncompatible
from fourphase.runtime.flavour import FLAVOURS, load_flavour

__all__ = ["ENGINE_SCHEMA", "KEY_FIELDS", "Machine", "check_meta", "misfits", "plan_key", "this_machine"]

ENGINE_SCHEMA = "fourphase.engine/2"
#: What decides whether one plan can replace another, all known before it is built.
KEY_FIELDS: Mapping[str, type | tuple[type, ...]] = MappingProxyType(
    {
        "onnx_sha256": str,
        "part": str,
        "slices": (int, type(None)),
        "precision": str,
        "flavour": str,
        "version": str,
        "cuda": (str, type(None)),
        "driver": (str, type(None)),
        "gpu": (dict, type(None)),
        "compute_capabilities": list,
        "os": str,
        "arch": str,
        "batch": list,
        "flags": dict,
    }
)
_AMPERE = (8, 0)
_PARTS = ("whole", "trunk", "tail")


def plan_key(meta: Mapping[str, Any]) -> str:
    """16 hex digits that are equal for two plans if one can replace the other."""
    return hashlib.sha256(canonical_json({name: meta[name] for name in KEY_FIELDS}).encode()).hexdigest()[:16]


def check_meta(meta: object) -> dict[str, Any]:
    """The meta data of a plan, as far as anything here relies on it.

    Raises: ModelIncompatible (20) naming what is missing or of the wrong type.
    """
    if not isinstance(meta, dict) or meta.get("schema") != ENGINE_SCHEMA:
        found = meta.get("schema") if isinstance(meta, dict) else None
        raise _invalid(f"its schema is {found!r}, this version reads {ENGINE_SCHEMA!r}")
    for name, kinds in {**KEY_FIELDS, "plan_sha256": str}.items():
        if name not in meta or not isinstance(meta[name], kinds) or isinstance(meta[name], bool):
            raise _invalid(f"its {name} is missing or of the wrong type")
    batch = meta["batch"]
    if len(batch) != 3 or not all(type(size) is int for size in batch) or not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise _invalid("its batch is not [min, opt, max]")
    if meta["part"] not in _PARTS or (meta["part"] == "trunk") != (meta["slices"] is not None):
        raise _invalid("its part and slices do not belong together")
    return meta


@dataclass(frozen=True)
class Machine:
    """What plans are held against.

    Attributes:
        versions: flavour -> the installed TensorRT's full version; absent if it cannot be imported.
        gpu: the first CUDA device, or why there is none.
        os, arch: "linux", "x86_64".
    """

    versions: Mapping[str, str]
    gpu: Probe
    os: str
    arch: str


def this_machine() -> Machine:
    """Looks; creates nothing of TensorRT."""
    gpu = probe()
    versions = {}
    for name in FLAVOURS:
        try:
            versions[name] = load_flavour(name).version
        except FourphaseError:
            continue
    return Machine(versions, gpu, platform.system().lower(), platform.machine())


def misfits(
    meta: Mapping[str, Any], machine: Machine, onnx_sha256s: Collection[str], *, host_code: bool = False
) -> tuple[str, ...]:
    """Why a plan must not be loaded on a machine, one phrase per reason; empty if it fits.

    Args:
        onnx_sha256s: of the bundle's models; a plan of another model is stale.
        host_code: whether plans with a run time of their own inside may run it.

    A plan of TensorRT proper fits the GPU model, CUDA and driver it was built with; one of TensorRT for RTX every GPU
    of its compute capabilities. Both fit exactly one version, unless the plan is version-compatible.
    """
    reasons = []
    if meta["onnx_sha256"] not in onnx_sha256s:
        reasons.append("built from another model")
    if (meta["os"], meta["arch"]) != (machine.os, machine.arch):
        reasons.append(f"for {meta['os']} {meta['arch']}, this is {machine.os} {machine.arch}")
    reasons += _version_misfit(meta, machine)
    device = machine.gpu.device
    reasons += [machine.gpu.reason] if device is None else _device_misfits(meta, device)
    if meta["batch"][0] > 1:
        reasons.append(f"it takes {meta['batch'][0]} studies at least, fp-run gives it one")
    if meta["flags"].get("version_compatible") and not host_code:
        reasons.append("it carries a run time of its own, and host code from plans is not allowed")
    return tuple(reasons)


def _version_misfit(meta: Mapping[str, Any], machine: Machine) -> list[str]:
    flavour, version = meta["flavour"], meta["version"]
    installed = machine.versions.get(flavour)
    if installed is None:
        return [f"{flavour} is not installed or cannot be loaded"]
    if installed == version:
        return []
    same_major = installed.split(".")[0] == version.split(".")[0]
    if meta["flags"].get("version_compatible") and same_major and _numbers(installed) > _numbers(version):
        return []
    return [f"built with {flavour} {version}, installed is {installed}"]


def _device_misfits(meta: Mapping[str, Any], device: Device) -> list[str]:
    hardware = meta["flags"].get("hardware_compatibility", "none")
    capability = device.compute_capability
    is_ampere = hardware == "ampere-plus" and _numbers(capability) >= _AMPERE
    if not is_ampere and (hardware == "ampere-plus" or capability not in meta["compute_capabilities"]):
        return [
            f"for compute capability {', '.join(map(str, meta['compute_capabilities']))}, this GPU has {capability}"
        ]
    if meta["flavour"] == "tensorrt-rtx":
        return []
    moves_on = meta["flags"].get("version_compatible")  # with its TensorRT come another CUDA and driver
    reasons = []
    built_on = (meta["gpu"] or {}).get("name")
    if hardware == "none" and built_on != device.name:
        reasons.append(f"built on {built_on or 'an unknown GPU'}, this is {device.name}")
    for name, here in (("cuda", device.cuda), ("driver", device.driver)):
        if meta[name] != here and not moves_on:
            reasons.append(f"built with {name} {meta[name] or 'unknown'}, this is {here or 'unknown'}")
    return reasons


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _invalid(problem: str) -> ModelIncompatible:
    return ModelIncompatible(
        f"the description of an engine cannot be used: {problem}",
        "build the engine again with fp-export build-plan",
        key="plan_meta_invalid",
    )
