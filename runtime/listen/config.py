"""What `fp-listen` is told: flags and listen.toml (flags win), checked before anything is opened; its TLS contexts."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fourphase.runtime.errors import InputMissing, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["ListenOptions", "client_tls", "read_config", "resolve_options", "server_tls"]


@dataclass(frozen=True)
class ListenOptions:
    """The options of `fp-listen`; each field is a flag and a key of listen.toml, with dashes for underscores."""

    spool: Path
    bundle: Path | None = None
    aet: str = "FOURPHASE"
    port: int = 11112
    bind: str = "0.0.0.0"
    allow: tuple[str, ...] = ()
    send_to: str | None = None
    send_tls: bool = False
    quiet_seconds: float = 10.0
    boxes: Path | None = None
    label: int | None = None
    roi: str | None = None
    output: Path | None = None
    phases: Path | None = None
    backend: str = "auto"
    require_backend: str | None = None
    precision: str | None = None
    preprocess: str = "auto"
    plans: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    keep: bool = False
    keep_hours: float = 24.0
    remember_days: float = 90.0
    spool_limit_gb: float = 50.0
    max_instance_mb: float = 1024.0
    max_associations: int = 16
    idle_seconds: float = 60.0
    max_studies: int | None = None


_KINDS: Mapping[str, tuple[type, ...]] = {
    "Path": (str, Path), "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,), "tuple": (list, tuple),
}  # fmt: skip


def resolve_options(flags: Mapping[str, Any], config: Path | None) -> ListenOptions:
    """The options: a flag that is given, else the file's value, else the default.

    Args:
        flags: field name -> value; None or an empty list means not given.

    Raises: UsageError (2), InputMissing (10).
    """
    known = {field.name: str(field.type).partition(" ")[0].partition("[")[0] for field in fields(ListenOptions)}
    values: dict[str, Any] = dict(read_config(config)) if config else {}
    if unknown := sorted(set(values) - set(known)):
        raise _usage(f"the configuration has unknown keys: {', '.join(unknown[:5])}", "see fp-listen --help", "unknown")
    values |= {name: value for name, value in flags.items() if value is not None and value != []}
    for name, value in values.items():
        values[name] = _typed(name, value, known[name])
    if "spool" not in values:
        raise _usage("no spool is given", "give --spool DIR, on a local disk", "spool")
    options = ListenOptions(**values)
    _check(options)
    return options


def read_config(path: Path) -> dict[str, Any]:
    """The values of a listen.toml, by field name.

    Raises: InputMissing (10); UsageError (2) if it is not TOML.
    """
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputMissing(f"the configuration {path.name} cannot be read", "give --config FILE") from None
    except (ValueError, RecursionError):
        raise _usage(f"the configuration {path.name} is not valid TOML", "correct the file", "toml") from None
    return {name.replace("-", "_"): value for name, value in body.items()}


def server_tls(options: ListenOptions) -> ssl.SSLContext | None:
    """TLS 1.2 or newer, with client certificates of --tls-ca where that is given; None without --tls-cert.

    Raises: UsageError (2): the files do not fit together.
    """
    if options.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, options)
    if options.tls_ca:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_tls(options: ListenOptions) -> ssl.SSLContext | None:
    """For --send-tls: the archive's certificate is checked against --tls-ca and its host name; ours is shown if asked.

    Raises: UsageError (2): the files do not fit together.
    """
    if not options.send_tls:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if options.tls_ca is None:
        context.load_default_certs()
    _load(context, options)
    return context


def _load(context: ssl.SSLContext, options: ListenOptions) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if options.tls_cert:
            context.load_cert_chain(options.tls_cert, options.tls_key, password="")
        if options.tls_ca:
            context.load_verify_locations(options.tls_ca)
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        raise _usage(
            "the TLS files cannot be used",
            "give PEM files: --tls-cert with the chain, its --tls-key without a password, --tls-ca",
            "tls_files",
        ) from None


def _typed(name: str, value: Any, kind: str) -> Any:
    fits = isinstance(value, _KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))
    if not fits:
        raise _usage(f"{_flag(name)} has a value of the wrong type", "see fp-listen --help", name)
    if kind == "tuple":
        if not all(isinstance(one, str) for one in value):
            raise _usage(f"{_flag(name)} is not a list of texts", 'write allow = ["SCANNER1", "PACS"]', name)
        return tuple(value)
    return Path(value) if kind == "Path" else float(value) if kind == "float" else value


def _check(options: ListenOptions) -> None:
    for title in (options.aet, *options.allow):
        if not 0 < len(title.strip()) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
            raise _usage(
                "an AE title is not 1 to 16 printable ASCII characters", "correct --aet and --allow", "ae_title"
            )
    if not 0 <= options.port < 65536:
        raise _usage(f"--port {options.port} is no port", "give a number from 1 to 65535", "port")
    for name in ("quiet_seconds", "spool_limit_gb", "max_instance_mb", "max_associations", "idle_seconds"):
        if not 0 < getattr(options, name) < float("inf"):
            raise _usage(f"{_flag(name)} is not above 0", "give a larger number", name)
    for name in ("keep_hours", "remember_days"):
        if not getattr(options, name) >= 0:
            raise _usage(f"{_flag(name)} is negative", "give 0 or more", name)
    if options.max_studies is not None and options.max_studies < 1:
        raise _usage("--max-studies is not above 0", "give 1 or more, or leave it out", "max_studies")
    if options.send_tls and not options.send_to:
        raise _usage("--send-tls has nothing to send to", "give --send-to AET@HOST:PORT", "send_tls")
    if options.tls_key and not options.tls_cert:
        raise _usage("--tls-key has no --tls-cert", "give both", "tls_files")
    if options.tls_ca and not (options.tls_cert or options.send_tls):
        raise _usage("--tls-ca has nothing to check", "give --tls-cert and --tls-key, or --send-tls", "tls_files")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _usage(message: str, hint: str, key: str) -> UsageError:
    return UsageError(message, hint, key=f"listen_{key}")
