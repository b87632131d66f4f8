from __future__ import annotations

from pathlib import Path

import pytest

from fourphase.runtime import cpu
from fourphase.runtime.cpu import int8_instructions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_vnni amx_int8 avx_vnni\n", "AMX"),
        ("flags : fpu avx512_vnni avx_vnni\n", "AVX512-VNNI"),
        ("flags : fpu avx2 avx_vnni\n", "AVX-VNNI"),
        ("flags : fpu avx2 avx512f\n", None),
        ("processor : 0\nFeatures : fp asimd asimddp\n", None),
        ("", None),
    ],
)
def test_the_best_instructions_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str | None
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    assert int8_instructions() == expected


def test_no_such_file_means_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "nowhere")
    assert int8_instructions() is None
