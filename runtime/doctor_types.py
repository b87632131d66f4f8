"""What fp-doctor passes from its probes to its rules and on to its output: facts and checks.

Data only: `doctor_facts` fills the facts, `doctor` judges them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "SECTIONS",
    "STATUSES",
    "Backend",
    "Check",
    "Decoder",
    "Disk",
    "Facts",
    "Gpu",
    "Jetson",
    "Module",
    "check",
    "gib",
]

SECTIONS = ("machine", "gpu", "tensorrt", "backends", "decoders", "packages")
STATUSES = ("ok", "note", "warning", "problem")


@dataclass(frozen=True)
class Gpu:
    """The first CUDA device; `cuda` is the newest version its driver supports, `memory_bytes` shared if integrated."""

    name: str
    compute_capability: str
    cuda: str = ""
    driver: str | None = None
    count: int = 1
    memory_bytes: int | None = None
    integrated: bool | None = None


@dataclass(frozen=True)
class Jetson:
    """A Jetson; `l4t` is the release of Jetson Linux, "36.4.3"; what cannot be read is None."""

    model: str = "Jetson"
    l4t: str | None = None
    jetpack: str | None = None
    power_mode: str | None = None


@dataclass(frozen=True)
class Module:
    """An installed Python module; `error` says why it cannot be imported."""

    version: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Decoder:
    """A package, the transfer syntaxes it is for, and why it did not decode the test picture (None: it did)."""

    package: str
    syntaxes: tuple[str, ...]
    error: str | None = None


@dataclass(frozen=True)
class Backend:
    """A name that fp-run's --backend takes; `built`: part of this version; `available`: `needs` was found."""

    name: str
    built: bool
    available: bool
    needs: str = ""


@dataclass(frozen=True)
class Disk:
    """Free space where a purpose needs it."""

    purpose: str
    free_bytes: int
    writable: bool


@dataclass(frozen=True)
class Facts:
    """What was found; the defaults say "nothing found".

    Attributes:
        system: kernel and architecture, "linux x86_64".
        venv: "" outside a virtual environment, else "isolated" or "system packages visible".
        memory_bytes: what this process may use; a container's limit counts.
        int8: the CPU's instructions for int8, None where there are none or they are not known.
        gpu_reason: why there is no `gpu`.
        modules: module -> what importing it said; absent means not installed.
        distributions: name -> version of those of interest.
        requirements: distribution -> (module, floor or "") of the run time's own packages.
        apt_tensorrt: Python versions for which apt installed TensorRT's module, "3.10".
        target: (name, reason) of --target auto, None if not known.
        unknown: probe -> why it could not be found out.
    """

    python: str = "3.10"
    system: str = "linux x86_64"
    venv: str = ""
    memory_bytes: int | None = None
    int8: str | None = None
    disks: tuple[Disk, ...] = ()
    jetson: Jetson | None = None
    gpu: Gpu | None = None
    gpu_reason: str = "no CUDA device"
    modules: Mapping[str, Module] = field(default_factory=dict)
    distributions: Mapping[str, str] = field(default_factory=dict)
    requirements: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    apt_tensorrt: tuple[str, ...] = ()
    target: tuple[str, str] | None = None
    backends: tuple[Backend, ...] = ()
    decoders: tuple[Decoder, ...] = ()
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One judgement.

    Attributes:
        key: stable, "section.name".
        section: one of SECTIONS.
        status: one of STATUSES.
        message: the fact, one sentence without a full stop.
        hint: the cure; never empty for a warning or problem.
    """

    key: str
    section: str
    status: str
    message: str
    hint: str = ""


def check(key: str, status: str, message: str, hint: str = "") -> Check:
    """A check in the section that its key begins with."""
    return Check(key, key.partition(".")[0], status, message, hint)


def gib(size: int) -> str:
    """Bytes for a person: "31.2 GiB"."""
    return f"{size / (1 << 30):.1f} GiB"
