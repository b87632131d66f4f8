from __future__ import annotations

from pathlib import Path

import pytest

from fourphase.calibration.policy_file import read_policy
from fourphase.runtime.errors import InputMissing, UsageError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("policy.toml", '"*" = "fp16"\ngru = "fp32"\n'),
        ("policy.toml", '[policy]\n"*" = "fp16"\ngru = "fp32"\n'),
        ("search.json", '{"schema": "fourphase.search/1", "policy": {"*": "fp16", "gru": "fp32"}, "held": []}'),
    ],
)
def test_it_is_read_from_toml_and_from_a_search(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    policy = read_policy(tmp_path / name)
    assert policy.precision_of("gru") == "fp32"
    assert policy.precision_of("stage1/NC") == "fp16"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.toml", ""),
        ("p.toml", "gru ="),
        ("p.toml", "gru = 16"),
        ("p.toml", 'gru = "fp8"'),
        ("p.json", "[]"),
        ("p.json", "{"),
        ("p.json", '{"policy": []}'),
    ],
)
def test_what_is_no_policy_is_a_usage_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as caught:
        read_policy(tmp_path / name)
    assert (caught.value.code, caught.value.key) == (2, "policy_invalid")


def test_a_missing_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no-such"):
        read_policy(tmp_path / "no-such.toml")
