"""The rules of fp-doctor on TensorRT: installed and loadable, its version, its JetPack, its Python, its CUDA.

Pure functions over `Facts`; the tables are in `known_versions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType

from fourphase.runtime import known_versions as known
from fourphase.runtime.doctor_types import Check, Facts, Module, check
from fourphase.runtime.known_versions import JetPack, Report, numbers

__all__ = ["DRIVER_CURE", "family_of", "tensorrt_checks"]

DRIVER_CURE = "update the NVIDIA driver"
_TITLES = MappingProxyType({"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"})
_APT_CURE = "install it from JetPack (apt) and make the venv with --system-site-packages"
_VERSION_CURE = "install TensorRT 10.3 or newer (JetPack 6.1), or use --target tensorrt-rtx or none"


def tensorrt_checks(facts: Facts) -> Iterator[Check]:
    """Every judgement of the section "tensorrt"."""
    for name in _TITLES:
        module = facts.modules.get(name)
        if module is None:
            if "modules" not in facts.unknown:
                yield _absent(facts, name)
        elif module.error is not None:
            yield _broken(facts, name, module)
        elif name == "tensorrt":
            yield from _version(facts, module.version)
        else:
            yield _rtx(facts, module.version)
    yield from _python_of_jetpack(facts)
    yield from _cuda_of_wheels(facts)
    yield from _pip_on_jetson(facts)


def family_of(facts: Facts) -> JetPack | None:
    """The family of the machine's JetPack; None if it is no Jetson, or one that no table knows."""
    return known.jetpack_of(facts.jetson.jetpack, facts.jetson.l4t) if facts.jetson else None


def _absent(facts: Facts, name: str) -> Check:
    key = f"tensorrt.{name}"
    if name == "tensorrt_rtx":
        return check(key, "note", "TensorRT for RTX is not installed (extra [rtx]; it builds without a GPU)")
    if facts.apt_tensorrt and facts.venv == "isolated":
        text = f"apt's TensorRT (Python {', '.join(facts.apt_tensorrt)}) is not visible in this venv"
        return check(key, "warning", text, "make the venv again with --system-site-packages")
    parts = [part for part in ("lean", "dispatch") if any(f"tensorrt-{part}" in name for name in facts.distributions)]
    text = f"TensorRT is not installed{f', only its {parts[0]} run time, which cannot build' if parts else ''}"
    if facts.jetson is not None and facts.gpu is not None:
        return check(key, "warning", text, _APT_CURE)
    return check(key, "note", text)


def _broken(facts: Facts, name: str, module: Module) -> Check:
    hint = "pip uninstall it and install TensorRT from NVIDIA's repository: what pip found may be an empty shell"
    if name == "tensorrt_rtx":
        hint = "pip install --force-reinstall 'fourphase[rtx]'"
    elif facts.jetson is not None:
        hint = f"pip uninstall it, {_APT_CURE}"
    return check(f"tensorrt.{name}", "warning", f"{_TITLES[name]} cannot be loaded: {module.error}", hint)


def _version(facts: Facts, version: str | None) -> Iterator[Check]:
    title = f"TensorRT {version or 'of unknown version'}"
    capability = facts.gpu.compute_capability if facts.gpu else None
    reports = known.reports_on(version, capability, jetson=facts.jetson is not None)
    yield _judged(facts, title, numbers(version), next((r for r in reports if r.verdict != "watch"), None))
    watched = [report.what for report in reports if report.verdict == "watch"]
    if watched:
        text = f"{title}: wrong results are reported for other networks: {', '.join(watched)}"
        yield check("tensorrt.reports", "note", text, known.SELF_CHECK)
    yield from _other_than_jetpack(facts, version, title)


def _judged(facts: Facts, title: str, version: tuple[int, ...], report: Report | None) -> Check:
    key = "tensorrt.tensorrt"
    if report is not None:
        status = "problem" if report.verdict == "bad" and _would_be_used(facts) else "warning"
        return check(key, status, f"{title}: {report.what}", f"{report.cure}; see {report.source}")
    if not version:
        return check(key, "warning", f"{title} is in no table", _VERSION_CURE)
    if version < known.TENSORRT_FLOOR:
        return check(key, "warning", f"{title} is too old and is refused", _VERSION_CURE)
    if version[: len(known.TENSORRT_NEWEST)] > known.TENSORRT_NEWEST:
        newest = ".".join(map(str, known.TENSORRT_NEWEST))
        return check(key, "note", f"{title} is newer than any that was looked at ({newest})", known.SELF_CHECK)
    return check(key, "ok", title)


def _would_be_used(facts: Facts) -> bool:
    return facts.gpu is not None if facts.target is None else facts.target[0] == "tensorrt"


def _other_than_jetpack(facts: Facts, version: str | None, title: str) -> Iterator[Check]:
    family, jetson = family_of(facts), facts.jetson
    if jetson is None or family is None or known.is_of_jetpack(version, family, jetson.jetpack):
        return
    usual = ".".join(map(str, family.tensorrt[0][0]))
    text = f"{title} is not that of JetPack {jetson.jetpack or family.title}, which has {usual}"
    yield check("tensorrt.jetpack", "warning", text, f"remove it; {_APT_CURE}")


def _rtx(facts: Facts, version: str | None) -> Check:
    key, title = "tensorrt.tensorrt_rtx", f"TensorRT for RTX {version or 'of unknown version'}"
    targets = ", ".join(known.RTX_CAPABILITIES)
    if facts.gpu is None or facts.gpu.compute_capability in known.RTX_CAPABILITIES:
        return check(key, "ok", f"{title}, builds for compute capability {targets}")
    text = f"{title} does not build for this GPU ({facts.gpu.compute_capability}), only for {targets}"
    if facts.target is not None and facts.target[0] == "tensorrt":
        return check(key, "note", text)
    return check(key, "warning", text, "install TensorRT, or use --target none")


def _python_of_jetpack(facts: Facts) -> Iterator[Check]:
    family = family_of(facts)
    if family is not None and numbers(facts.python)[:2] != numbers(family.python):
        text = f"JetPack {family.title} has TensorRT for Python {family.python}, this is {facts.python}"
        hint = f"make the venv with python{family.python} -m venv --system-site-packages"
        yield check("tensorrt.python", "warning", text, hint)


def _cuda_of_wheels(facts: Facts) -> Iterator[Check]:
    """Wheels name their CUDA, and the driver must be new enough for it."""
    supported = numbers(facts.gpu.cuda) if facts.gpu else ()
    wheels = [known.cuda_of_wheel(name) for name in facts.distributions if name.startswith("tensorrt")]
    newest = max((cuda for cuda in wheels if cuda is not None), default=0)
    if facts.gpu is not None and supported and newest > supported[0]:
        text = f"the TensorRT that pip installed is for CUDA {newest}, the driver supports {facts.gpu.cuda}"
        floor = known.DRIVER_FLOORS.get(newest)
        yield check("tensorrt.cuda", "warning", text, f"{DRIVER_CURE}{f' to {floor} or newer' if floor else ''}")


def _pip_on_jetson(facts: Facts) -> Iterator[Check]:
    jetpack = numbers(facts.jetson.jetpack) if facts.jetson else ()
    by_pip = {"tensorrt-cu12", "tensorrt-cu13"} & set(facts.distributions)
    if jetpack and jetpack < (7, 2) and by_pip:
        text = "TensorRT was installed by pip, which has none for this JetPack"
        yield check("tensorrt.pip", "warning", text, f"pip uninstall {' '.join(sorted(by_pip))}; {_APT_CURE}")
