"""What is known of versions: JetPack releases, TensorRT releases and their verdicts, drivers, compute capabilities.

Tables and look-ups only, each entry with the public page it rests on; nothing is probed here. Where no page was found
the source is OURS, and the wording is careful. Versions are compared as tuples of numbers; what cannot be read as a
version is ().
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType

__all__ = [
    "CAPABILITIES",
    "DRIVER_FLOORS",
    "JETPACKS",
    "OLDEST_CAPABILITY",
    "OURS",
    "REPORTS",
    "RTX_CAPABILITIES",
    "SELF_CHECK",
    "SOURCES",
    "TENSORRT_DRIVER_FLOOR",
    "TENSORRT_FLOOR",
    "TENSORRT_NEWEST",
    "JetPack",
    "Report",
    "at_least",
    "cuda_of_wheel",
    "is_of_jetpack",
    "jetpack_of",
    "numbers",
    "reports_on",
]

Version = tuple[int, ...]

#: The source of what was established in this project and is not known from a public page.
OURS = "this project's own reading of the packages"
_ISSUES = "https://github.com/NVIDIA/TensorRT/issues/"
_TENSORRT_DOCS = "https://docs.nvidia.com/deeplearning/tensorrt/"

#: Below, the ONNX parser builds FP32 constants into an FP16 GRU (source: OURS); JetPack 6.1 has 10.3.
TENSORRT_FLOOR: Version = (10, 3)
#: What this version was written against; newer ones are not known to be good or bad.
TENSORRT_NEWEST: Version = (11, 4)
#: The kernel driver every TensorRT 10 and 11 needs; wheels for CUDA 13 need more, see DRIVER_FLOORS.
TENSORRT_DRIVER_FLOOR = 535
#: CUDA major version -> the oldest driver its programs run on (minor version compatibility). A toolkit's own driver is
#: newer: CUDA 12.6 comes with 560.
DRIVER_FLOORS = MappingProxyType({12: 525, 13: 580})
#: Turing: what TensorRT 11 and TensorRT for RTX begin with.
OLDEST_CAPABILITY: Version = (7, 5)
#: What TensorRT for RTX 1.7 builds for, read off the module; its support matrix leaves 8.0 out.
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
#: Compute capability -> GPUs people know it by.
CAPABILITIES = MappingProxyType(
    {
        "7.0": "V100",
        "7.2": "Jetson Xavier",
        "7.5": "T4, RTX 20",
        "8.0": "A100, A30",
        "8.6": "A10, A40, RTX 30",
        "8.7": "Jetson Orin",
        "8.9": "L4, L40, RTX 40",
        "9.0": "H100, H200",
        "10.0": "B200",
        "11.0": "Jetson Thor",
        "12.0": "RTX 50, RTX PRO Blackwell",
        "12.1": "GB10",
    }
)
#: What the numbers above rest on.
SOURCES = MappingProxyType(
    {
        "DRIVER_FLOORS": "https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html",
        "TENSORRT_DRIVER_FLOOR": _TENSORRT_DOCS + "11.4.0/installing-tensorrt/prerequisites.html",
        "OLDEST_CAPABILITY": _TENSORRT_DOCS + "11.4.0/installing-tensorrt/prerequisites.html",
        "RTX_CAPABILITIES": "https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix-1/1.5.html",
        "TENSORRT_FLOOR": OURS,
        "onnxruntime": "https://github.com/microsoft/onnxruntime/issues/26996",
        "openvino_int8": "https://docs.openvino.ai/latest/pot_saturation_issue.html",
        "pip_on_jetson": _ISSUES + "4176",
        "system_site_packages": "https://forums.developer.nvidia.com/t/installation-of-tensorrt-in-venv-on-jetson-nano-b01/217108/2",
    }
)
#: What guards against wrong results that were reported for networks other than this one.
SELF_CHECK = "every start compares the engine with the golden outputs, and stops (23) if they differ"


@dataclass(frozen=True)
class JetPack:
    """A family of JetPack releases.

    Attributes:
        title: "6.1 to 6.2.2".
        versions: the first one, and the first one past the family.
        l4t: likewise of Jetson Linux, for machines that do not have the package nvidia-jetpack.
        tensorrt: what it comes with first, then what else it takes; (version, first JetPack that takes it).
        python: the Python that apt's tensorrt module is for.
    """

    title: str
    versions: tuple[Version, Version]
    l4t: tuple[Version, Version]
    tensorrt: tuple[tuple[Version, Version], ...]
    cuda: str
    python: str
    source: str


JETPACKS = (
    JetPack(
        "6.1 to 6.2.2",
        ((6, 1), (7,)),
        ((36, 4), (37,)),
        (((10, 3), (6, 1)), ((10, 7), (6, 1))),
        "12.6",
        "3.10",
        "https://github.com/pytorch/TensorRT/pull/3453; 10.7: "
        + _TENSORRT_DOCS
        + "latest/getting-started/support-matrix-10/10.10.0.html",
    ),
    JetPack(
        "7.0 and 7.1",
        ((7, 0), (7, 2)),
        ((38,), (39,)),
        (((10, 13), (7, 0)),),
        "13.0",
        "3.12",
        "https://developer.nvidia.com/embedded/jetpack/downloads/archive-7.1.md; Python: " + _ISSUES + "4590",
    ),
    JetPack(
        "7.2",
        ((7, 2), (8,)),
        ((39,), (40,)),
        (((10, 16), (7, 2)), ((11, 4, 1), (7, 2, 2))),
        "13.2",
        "3.12",
        "https://github.com/OE4T/meta-tegra/pull/2224; 11.4.1: "
        + _TENSORRT_DOCS
        + "11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html",
    ),
)


@dataclass(frozen=True)
class Report:
    """What the public says of some TensorRT releases.

    Attributes:
        versions: the first one, and the first one past those meant.
        verdict: "bad" (wrong answers, or shunned for a bug), "unsupported", or "watch" (wrong answers are reported for
            other networks).
        what: half a sentence for "bad" and "unsupported"; for "watch" the network concerned.
        cure: what to do.
        source: the page.
        capabilities: only on these GPUs; empty: on all.
        jetson_only: only on a Jetson.
    """

    versions: tuple[Version, Version]
    verdict: str
    what: str
    cure: str
    source: str
    capabilities: tuple[str, ...] = ()
    jetson_only: bool = False


REPORTS = (
    Report(
        ((10, 2), (10, 3)),
        "bad",
        "another project shuns 10.2.0 for a bug that it does not name, and this one refuses it as too old",
        "install TensorRT 10.3 or newer",
        "https://github.com/ultralytics/ultralytics/pull/14240",
    ),
    Report(
        ((10, 13), (10, 15)),
        "bad",
        "on Thor, wrong results are reported for engines whose largest batch is 1, and for FP16",
        "update to JetPack 7.2; until then use --backend onnxruntime and --target none",
        "https://github.com/NVIDIA/TensorRT-Edge-LLM/issues/151 and " + _ISSUES + "4820",
        capabilities=("11.0",),
    ),
    Report(
        ((11,), (11, 4, 1)),
        "unsupported",
        "NVIDIA does not support 11.0 to 11.4.0 on a Jetson",
        "use the TensorRT that came with JetPack, or 11.4.1 on JetPack 7.2.2",
        _TENSORRT_DOCS + "11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html",
        jetson_only=True,
    ),
    Report(((10, 3), (10, 4)), "watch", "a transformer with dynamic sizes", SELF_CHECK, _ISSUES + "4419"),
    Report(((10, 4), (10, 5)), "watch", "a vision transformer, FP32 too", SELF_CHECK, _ISSUES + "4742"),
    Report(((10, 11), (11, 2)), "watch", "SegFormer above batch 1 (10.11, 11.1)", SELF_CHECK, _ISSUES + "4853"),
    Report(
        ((10, 14), (11, 2)),
        "watch",
        "FastConformer on RTX 50 (10.14, 11.1)",
        SELF_CHECK,
        _ISSUES + "4822",
        capabilities=("12.0",),
    ),
    Report(
        ((10, 15), (12,)),
        "watch",
        "language models whose largest batch is 1",
        SELF_CHECK,
        "https://github.com/NVIDIA/TensorRT-Edge-LLM/issues/151",
    ),
    Report(((11, 1), (11, 2)), "watch", "detection transformers, FP32 too", SELF_CHECK, _ISSUES + "4813"),
    Report(((11, 1), (11, 3)), "watch", "a branch before a resize", SELF_CHECK, _ISSUES + "4846"),
)


def numbers(version: str | None) -> Version:
    """The leading numbers of a version: "10.13.3.9" -> (10, 13, 3, 9), "6.2.1+b38" -> (6, 2, 1), "abc" -> ()."""
    found = re.match(r"\s*v?(\d{1,9}(?:\.\d{1,9}){0,5})", version or "", flags=re.ASCII)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def at_least(version: str | None, floor: str) -> bool | None:
    """Whether a version is `floor` or newer; None where one of the two is no version."""
    found, wanted = numbers(version), numbers(floor)
    return None if not (found and wanted) else _padded(found) >= _padded(wanted)


def jetpack_of(jetpack: str | None, l4t: str | None) -> JetPack | None:
    """The family of a JetPack version, or else of a Jetson Linux version; None if it is in no table."""
    if release := numbers(jetpack):
        return next((family for family in JETPACKS if _within(release, family.versions)), None)
    return next((family for family in JETPACKS if _within(numbers(l4t), family.l4t)), None)


def is_of_jetpack(version: str | None, family: JetPack, jetpack: str | None) -> bool:
    """Whether that TensorRT is one that this JetPack comes with or takes; an unknown JetPack is the family's last."""
    found, release = _padded(numbers(version)), numbers(jetpack)
    for tensorrt, since in family.tensorrt:
        fits = found[: len(tensorrt)] == tensorrt if len(tensorrt) < 3 else found >= _padded(tensorrt)
        if fits and (not release or _padded(release) >= _padded(since)):
            return True
    return False


def reports_on(version: str | None, capability: str | None, *, jetson: bool) -> tuple[Report, ...]:
    """What is known of that TensorRT on that GPU, the worst first."""
    found = numbers(version)
    return tuple(
        report
        for report in REPORTS
        if _within(found, report.versions)
        and (not report.capabilities or capability in report.capabilities)
        and (jetson or not report.jetson_only)
    )


def cuda_of_wheel(distribution: str) -> int | None:
    """The CUDA major version in a wheel's name: "tensorrt-cu13-libs" -> 13."""
    found = re.search(r"-cu(\d{2})(?:-|$)", distribution)
    return int(found[1]) if found else None


def _padded(version: Version) -> Version:
    return (*version, 0, 0, 0, 0, 0, 0)[:6]


def _within(version: Version, ends: tuple[Version, Version]) -> bool:
    return bool(version) and _padded(ends[0]) <= _padded(version) < _padded(ends[1])
