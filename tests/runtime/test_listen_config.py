"""Flags win over listen.toml, which wins over the defaults; what is not understood is refused."""

from __future__ import annotations

import ssl
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from fourphase.runtime.errors import FourphaseError, InputMissing, UsageError
from fourphase.runtime.listen.box import find_box
from fourphase.runtime.listen.cli import app
from fourphase.runtime.listen.config import ListenOptions, client_tls, read_config, resolve_options, server_tls
from fourphase.runtime.listen.log import plain


def config(folder: Path, text: str) -> Path:
    path = folder / "listen.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = config(
        tmp_path, 'spool = "/s"\nquiet-seconds = 3\nport = 104\nallow = ["A", "B"]\nkeep = true\nspool_limit_gb = 2.5\n'
    )
    none: dict[str, Any] = dict.fromkeys(field.name for field in fields(ListenOptions))
    options = resolve_options(none | {"port": 4242, "allow": []}, path)
    assert options == ListenOptions(
        Path("/s"), quiet_seconds=3.0, port=4242, allow=("A", "B"), keep=True, spool_limit_gb=2.5
    )
    assert resolve_options({"allow": ["C"]}, path).allow == ("C",)


def test_every_option_is_a_flag_and_a_key() -> None:
    command = typer.main.get_command(app)
    flags = {one.name for one in command.params}
    assert {field.name for field in fields(ListenOptions)} <= flags
    assert flags - {field.name for field in fields(ListenOptions)} == {
        "once", "config", "status", "retry_failed", "quiet",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('spool = "s"\nprot = 104', "listen_unknown"),
        ('spool = "s"\nport = "104"', "listen_port"),
        ('spool = "s"\nport = 65536', "listen_port"),
        ('spool = "s"\nport = true', "listen_port"),
        ('spool = "s"\nkeep = 1', "listen_keep"),
        ('spool = "s"\nallow = "PACS"', "listen_allow"),
        ('spool = "s"\nallow = [1]', "listen_allow"),
        ('spool = "s"\nallow = [""]', "listen_ae_title"),
        ('spool = "s"\naet = "SEVENTEENCHARACTR"', "listen_ae_title"),
        ('spool = "s"\nquiet-seconds = 0', "listen_quiet_seconds"),
        ('spool = "s"\nquiet-seconds = nan', "listen_quiet_seconds"),
        ('spool = "s"\nspool-limit-gb = inf', "listen_spool_limit_gb"),
        ('spool = "s"\nkeep-hours = -1', "listen_keep_hours"),
        ('spool = "s"\ntls-key = "k"', "listen_tls_files"),
        ('spool = "s"\ntls-ca = "k"', "listen_tls_files"),
        ('spool = "s"\nmax-studies = 0', "listen_max_studies"),
        ('spool = "s"\nsend-tls = true', "listen_send_tls"),
        ("port = 104", "listen_spool"),
        ("port = ", "listen_toml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_options({}, config(tmp_path, text))
    assert (caught.value.code, caught.value.key) == (2, key)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputMissing):
        read_config(tmp_path / "none.toml")


@given(st.binary(max_size=200))
def test_any_file_is_options_or_an_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("config") / "listen.toml"
    path.write_bytes(data)
    try:
        outcome: object = resolve_options({"spool": Path("s")}, path)
    except FourphaseError as error:
        outcome = error
    assert isinstance(outcome, ListenOptions | UsageError)


def test_tls_files_that_do_not_fit_are_told_without_asking_for_a_password(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    options = ListenOptions(tmp_path, tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "none.key")
    with pytest.raises(UsageError) as caught:
        server_tls(options)
    assert caught.value.key == "listen_tls_files"


def test_sending_with_tls_checks_the_archive() -> None:
    context = client_tls(ListenOptions(Path("s"), send_tls=True))
    assert context is not None
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert client_tls(ListenOptions(Path("s"))) is None


@given(st.text())
def test_a_logged_value_is_one_harmless_word(text: str) -> None:
    word = plain(text)
    assert 0 < len(word) <= 64
    assert word.isascii()
    assert word.isprintable()
    assert not set(word) & set(" =\"'\n\\")


def test_a_box_file_is_found_by_the_uid_only(tmp_path: Path) -> None:
    import os

    for name in ("1.2.3.json", "1.2.34.nii.gz", "x1.2.3.json"):
        (tmp_path / name).write_bytes(b"{}")
        os.utime(tmp_path / name, (1, 1))
    names = ["aa-bb.ct.dcm", "aa-cc.seg.dcm"]
    first = find_box(tmp_path, "1.2.3", names)
    assert first is not None
    assert (first.path, first.kind) == (tmp_path / "1.2.3.json", "json")
    second = find_box(tmp_path, "1.2.34", [])
    assert second is not None
    assert (second.path.name, second.kind) == ("1.2.34.nii.gz", "nifti")
    received = find_box(tmp_path, "1.2", names)
    assert received is not None
    assert (received.path, received.kind, received.signature) == (Path("aa-cc.seg.dcm"), "seg", "")
    assert find_box(None, "1.2", names[:1]) is None
