"""What this CPU can do for INT8. It reads /proc/cpuinfo; where there is none, it says it does not know."""

from __future__ import annotations

from pathlib import Path

__all__ = ["int8_instructions"]

_CPUINFO = Path("/proc/cpuinfo")
#: Linux's names of the instructions that multiply int8 and add in int32, best first, and what people call them.
_NAMES = (("amx_int8", "AMX"), ("avx512_vnni", "AVX512-VNNI"), ("avx_vnni", "AVX-VNNI"))


def int8_instructions() -> str | None:
    """The best int8 instructions of this x86 CPU; None where there are none or they are not known."""
    try:
        text = _CPUINFO.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return next((name for flag, name in _NAMES if flag in flags), None)
