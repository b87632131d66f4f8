"""Judges a machine by its `Facts`: what works, what is worth knowing, what would give wrong answers, and the cure.

Pure functions: nothing is probed here, so every rule is tested without the hardware. "problem" is kept for what makes
`fp-run` unusable or an answer wrong; a missing GPU is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fourphase.runtime import known_versions as known
from fourphase.runtime.doctor_tensorrt import DRIVER_CURE, family_of, tensorrt_checks
from fourphase.runtime.doctor_types import SECTIONS, Backend, Check, Facts, Gpu, Module, check, gib
from fourphase.runtime.known_versions import numbers

__all__ = ["Verdict", "checks_of", "verdict_of"]

#: In the order in which fp-run looks for an engine.
_GPU_BACKENDS = ("tensorrt", "tensorrt-rtx")
#: Plans, timing cache and ONNX models of the full-size network fit several times.
_DISK_BYTES = 2 << 30
#: The smallest Jetsons have 8 GB, of which a little less is told.
_SMALL_JETSON_BYTES = 9 << 30
#: The short names of transfer syntaxes (DICOM PS3.6, table A-1).
_SYNTAXES = MappingProxyType(
    {
        "1.2.840.10008.1.2.5": "RLE",
        "1.2.840.10008.1.2.4.57": "JPEG Lossless",
        "1.2.840.10008.1.2.4.70": "JPEG Lossless SV1",
        "1.2.840.10008.1.2.4.80": "JPEG-LS",
        "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
        "1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless",
        "1.2.840.10008.1.2.4.91": "JPEG 2000",
        "1.2.840.10008.1.2.4.201": "HTJ2K Lossless",
        "1.2.840.10008.1.2.4.202": "HTJ2K Lossless RPCL",
        "1.2.840.10008.1.2.4.203": "HTJ2K",
    }
)
#: Probe -> the section that lacks its facts.
_SECTION_OF = MappingProxyType(
    {"gpu": "gpu", "target": "tensorrt", "apt": "tensorrt", "backends": "backends", "decoders": "decoders"}
    | {"modules": "packages", "distributions": "packages"}
)


@dataclass(frozen=True)
class Verdict:
    """What the commands would do here, a sentence each; `code` is fp-doctor's exit code, 0 or 24."""

    fp_run: str
    build_engine: str
    code: int


def checks_of(facts: Facts) -> tuple[Check, ...]:
    """Every judgement, in the order of SECTIONS; no key comes twice."""
    rules = (_jetson, _machine, _gpu, tensorrt_checks, _backends, _decoders, _packages, _onnxruntimes, _unknown)
    found = [judgement for rule in rules for judgement in rule(facts)]
    return tuple(sorted(found, key=lambda judgement: SECTIONS.index(judgement.section)))


def verdict_of(facts: Facts, checks: Sequence[Check]) -> Verdict:
    """What fp-run and fp-export build-engine would do on this machine."""
    code = 24 if any(judgement.status == "problem" for judgement in checks) else 0
    return Verdict(_fp_run(facts, checks), _build_engine(facts, checks), code)


def _machine(facts: Facts) -> Iterator[Check]:
    venv = f", venv ({facts.venv})" if facts.venv else ""
    if "python" not in facts.unknown:
        yield check("machine.python", "ok", f"Python {facts.python} on {facts.system}{venv}")
    if facts.memory_bytes is not None:
        yield check("machine.memory", "ok", f"{gib(facts.memory_bytes)} of memory")
    if facts.int8 is not None:
        yield check("machine.int8", "ok", f"the CPU computes int8 with {facts.int8}")
    elif "int8" not in facts.unknown:
        yield check("machine.int8", "note", "the CPU is not known to have instructions for int8 (VNNI, AMX)")
    for disk in facts.disks:
        yield _disk(disk.purpose, disk.free_bytes, disk.writable)


def _disk(purpose: str, free: int, writable: bool) -> Check:
    key = "machine.disk_" + purpose.partition(" ")[0]
    cure = f"set {'FOURPHASE_CACHE' if purpose == 'cache' else 'TMPDIR'} to a folder on a larger disk"
    if not writable:
        return check(key, "warning", f"{purpose}: the folder cannot be written", cure)
    if free < _DISK_BYTES:
        return check(key, "warning", f"{purpose}: only {gib(free)} free", f"free space, or {cure}")
    return check(key, "ok", f"{purpose}: {gib(free)} free")


def _jetson(facts: Facts) -> Iterator[Check]:
    jetson, family = facts.jetson, family_of(facts)
    if jetson is None:
        return
    release = jetson.jetpack or (family.title if family else "not known")
    text = f"{jetson.model}, JetPack {release}, Jetson Linux {jetson.l4t or 'not known'}"
    jetpack, l4t = numbers(jetson.jetpack), numbers(jetson.l4t)
    if family is not None:
        yield check("machine.jetson", "ok", text)
    elif (jetpack < (6, 1)) if jetpack else (() < l4t < (36, 4)):
        yield check("machine.jetson", "warning", f"{text}: too old for the GPU", "update to JetPack 6.1 or newer")
    else:
        yield check("machine.jetson", "note", f"{text}: in no table of this version")
    if jetson.power_mode:
        yield check("machine.power", "note", f"power mode {jetson.power_mode}; every measured time depends on it")
    if facts.memory_bytes is not None and facts.memory_bytes < _SMALL_JETSON_BYTES:
        yield check("machine.memory_small", "note", "GPU and CPU share this memory; split engines need less of it")


def _gpu(facts: Facts) -> Iterator[Check]:
    gpu = facts.gpu
    if gpu is None:
        if "gpu" not in facts.unknown:
            yield _no_gpu(facts)
        return
    yield check("gpu.device", "ok", _gpu_text(gpu))
    capability = numbers(gpu.compute_capability)
    if capability and capability < known.OLDEST_CAPABILITY:
        text = f"compute capability {gpu.compute_capability} is older than Turing: TensorRT 11 does not run on it"
        yield check("gpu.capability", "warning", text, "use the CPU, or a GPU of compute capability 7.5 or newer")
    yield _driver(facts, gpu)


def _no_gpu(facts: Facts) -> Check:
    if facts.jetson is None:
        return check("gpu.device", "note", f"{facts.gpu_reason}; fp-run works on the CPU")
    hint = "start a container with --runtime nvidia; elsewhere, put the user into the groups video and render"
    return check("gpu.device", "warning", f"{facts.gpu_reason}, although this is a Jetson", hint)


def _gpu_text(gpu: Gpu) -> str:
    kin = known.CAPABILITIES.get(gpu.compute_capability)
    parts = [f"{gpu.name}, compute capability {gpu.compute_capability}" + (f" ({kin})" if kin else "")]
    if gpu.memory_bytes:
        parts.append(gib(gpu.memory_bytes) + (" shared with the CPU" if gpu.integrated else ""))
    if gpu.integrated is not None:
        parts.append("integrated" if gpu.integrated else "discrete")
    return ", ".join(parts) + (f"; {gpu.count} devices, the first is used" if gpu.count > 1 else "")


def _driver(facts: Facts, gpu: Gpu) -> Check:
    text = f"driver {gpu.driver or 'of unknown version'}" + (f", for CUDA up to {gpu.cuda}" if gpu.cuda else "")
    driver, floor = numbers(gpu.driver), known.TENSORRT_DRIVER_FLOOR
    # A Jetson's driver belongs to JetPack and is numbered otherwise.
    if facts.jetson is None and () < driver < (floor,):
        return check("gpu.driver", "warning", f"{text}: TensorRT needs {floor} or newer", DRIVER_CURE)
    return check("gpu.driver", "ok", text)


def _backends(facts: Facts) -> Iterator[Check]:
    for backend in facts.backends:
        name, key = backend.name, f"backends.{backend.name}"
        if not backend.built:
            yield check(key, "note", f"{name}: not part of this version of fourphase")
        elif name in _GPU_BACKENDS:
            yield _gpu_backend(facts, backend)
        else:
            yield _cpu_backend(facts, backend)


def _cpu_backend(facts: Facts, backend: Backend) -> Check:
    name, key, module = backend.name, f"backends.{backend.name}", facts.modules.get(backend.name)
    needed = name == "onnxruntime"
    if module is not None and module.error is not None:
        text = f"{name} cannot be loaded: {module.error}"
        return check(key, "problem" if needed else "warning", text, f"pip install --force-reinstall {name}")
    if not backend.available:
        cure = f"pip install {name}" if needed else ""
        return check(key, "problem" if needed else "note", f"{name} is not installed", cure)
    if name == "openvino" and facts.int8 is None and "int8" not in facts.unknown:
        text = "openvino refuses int8 on this CPU, where its sums would saturate and be silently wrong"
        return check(key, "warning", text, "use --precision fp32 or fp16, or a CPU with VNNI or AMX")
    return check(key, "ok", f"{name} {(module and module.version) or ''}".strip())


def _gpu_backend(facts: Facts, backend: Backend) -> Check:
    name, key = backend.name, f"backends.{backend.name}"
    if facts.gpu is None:
        return check(key, "note", f"{name}: needs a GPU")
    flavour, pycuda = facts.modules.get(name.replace("-", "_")), facts.modules.get("pycuda", Module())
    if flavour is None or flavour.error is not None:
        return check(
            key, "note", f"{name}: its module is {'not installed' if flavour is None else 'broken, see above'}"
        )
    if name == "tensorrt" and numbers(flavour.version) < known.TENSORRT_FLOOR:
        return check(key, "note", f"{name}: {flavour.version or 'its version'} is refused, see above")
    if not backend.available or pycuda.error is not None:
        trouble = f"cannot be loaded: {pycuda.error}" if pycuda.error else "is not installed"
        text = f"{name}: the GPU is not used, because {backend.needs or 'pycuda'} {trouble}"
        return check(key, "warning", text, "pip install 'fourphase[gpu]'")
    return check(key, "ok", f"{name} {flavour.version or ''}, for bundles with an engine that fits")


def _decoders(facts: Facts) -> Iterator[Check]:
    for decoder in facts.decoders:
        names = ", ".join(_SYNTAXES.get(syntax, syntax) for syntax in decoder.syntaxes)
        key, text = f"decoders.{decoder.package}", f"{names}: {decoder.package}"
        if decoder.error is None:
            yield check(key, "ok", f"{text} decodes a test picture")
        else:
            hint = f"pip install --force-reinstall {decoder.package}"
            yield check(key, "problem", f"{text}: {decoder.error}", hint)
    if facts.decoders:
        yield check(
            "decoders.refused", "note", "12-bit JPEG Extended and the retired JPEG processes are always refused"
        )


def _packages(facts: Facts) -> Iterator[Check]:
    elsewhere = {decoder.package for decoder in facts.decoders} | {backend.name for backend in facts.backends}
    good = []
    for name, (module_name, floor) in facts.requirements.items():
        module, key = facts.modules.get(module_name), f"packages.{name}"
        hint = f"pip install '{name}{f'>={floor}' if floor else ''}'"
        if module is None or module.error is not None:
            trouble = "is not installed" if module is None else f"cannot be loaded: {module.error}"
            if name not in elsewhere:
                yield check(key, "problem", f"{name} {trouble}", hint)
        elif floor and known.at_least(module.version, floor) is False:
            yield check(key, "problem", f"{name} {module.version} is older than {floor}", hint)
        else:
            good.append(f"{name} {module.version or '(version not told)'}")
    if good:
        yield check("packages.required", "ok", ", ".join(good))


def _onnxruntimes(facts: Facts) -> Iterator[Check]:
    found = [name for name in facts.distributions if name.startswith("onnxruntime") and name != "onnxruntime-genai"]
    if len(found) > 1:
        text = f"{' and '.join(found)} overwrite each other's files: which one runs is chance"
        hint = f"pip uninstall {' '.join(found)}, then pip install onnxruntime; see {known.SOURCES['onnxruntime']}"
        yield check("packages.onnxruntimes", "warning", text, hint)
    elif found and found != ["onnxruntime"]:
        text = f"{found[0]} stands in for onnxruntime; fourphase uses its CPU part only"
        yield check("packages.onnxruntimes", "note", text)


def _unknown(facts: Facts) -> Iterator[Check]:
    for probe, reason in facts.unknown.items():
        key = f"{_SECTION_OF.get(probe, 'machine')}.unknown_{probe}"
        hint = "run fp-doctor again; if it stays, report it with this line"
        yield check(key, "warning", f"{probe} could not be found out: {reason}", hint)


def _fp_run(facts: Facts, checks: Sequence[Check]) -> str:
    if "backends" in facts.unknown:
        return "what fp-run would use here could not be found out"
    fine = [c.key.partition(".")[2] for c in checks if c.section == "backends" and c.status == "ok"]
    if "onnxruntime" not in fine:
        return "fp-run does not work here: onnxruntime is missing or broken"
    text, engines = "fp-run would use onnxruntime on the CPU", [name for name in _GPU_BACKENDS if name in fine]
    if facts.gpu is None:
        text += f": {facts.gpu_reason}"
    elif engines:
        text = f"fp-run would use {' or '.join(engines)} if the bundle has an engine that fits, else the CPU"
    else:
        text += f": it has no working backend for the {facts.gpu.name}"
    if facts.int8 is not None and "openvino" in fine:
        text += f"; openvino ({facts.int8}) for bundles with int8"
    bars = [c for c in checks if c.status == "problem" and (engines or c.section != "tensorrt")]
    return f"{text}. But: {bars[0].message}" if bars else text


def _build_engine(facts: Facts, checks: Sequence[Check]) -> str:
    if facts.target is None:
        return "what fp-export build-engine --target auto would choose could not be found out"
    name, reason = facts.target
    text = f"fp-export build-engine --target auto would choose {name}: {reason}"
    keys = (f"tensorrt.{name.replace('-', '_')}", "tensorrt.cuda")
    bars = [judgement for judgement in checks if judgement.key in keys and judgement.status in ("warning", "problem")]
    return f"{text}. But: {bars[0].message}" if bars and name != "none" else text
