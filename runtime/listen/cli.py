"""`fp-listen`: DICOM receiver that runs each complete study and sends the SR back. Nothing heavy is imported early."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from fourphase.runtime.console import be_quiet, run_app, stdout_checked
from fourphase.runtime.errors import UsageError

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(no_args_is_help=True)
def listen(
    bundle: Annotated[Path | None, typer.Option(help="The bundle that fp-export build-engine wrote.")] = None,
    spool: Annotated[Path | None, typer.Option(metavar="DIR", help="Received studies, on a local disk.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="AET", help="A calling AE title that is served. Repeatable, required.")
    ] = None,
    aet: Annotated[str | None, typer.Option(help="Our AE title. Default: FOURPHASE.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: 11112. 0: any; the log says which.")] = None,
    bind: Annotated[str | None, typer.Option(help="Address to listen on. Default: 0.0.0.0, all of them.")] = None,
    send_to: Annotated[
        str | None, typer.Option(metavar="AET@HOST:PORT", help="Send each SR there. Default: only write it.")
    ] = None,
    send_tls: Annotated[bool | None, typer.Option("--send-tls", help="Send with TLS; checked by --tls-ca.")] = None,
    quiet_seconds: Annotated[
        float | None, typer.Option(help="A study without a new instance for so long is complete. Default: 10.")
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Lesion boxes: <StudyInstanceUID>.json or .nii.gz.")
    ] = None,
    label: Annotated[int | None, typer.Option(help="Which label or segment is the lesion.")] = None,
    roi: Annotated[str | None, typer.Option(help="Name of the lesion's segment or ROI in SEG or RTSTRUCT.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Results. Default: SPOOL/results.")] = None,
    phases: Annotated[Path | None, typer.Option(metavar="FILE", help="The site's phases.toml.")] = None,
    backend: Annotated[str | None, typer.Option(help="As for fp-run. Default: auto.")] = None,
    require_backend: Annotated[str | None, typer.Option(help="Fail (22) rather than fall back to another.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or int8; default: what the bundle has.")] = None,
    preprocess: Annotated[str | None, typer.Option(help="auto, cpu or gpu. Default: auto.")] = None,
    plans: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Engines built for this machine; default: in the bundle.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Receive with TLS only: our certificate.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key, PEM, no password.")] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Require client certificates of this authority.")
    ] = None,
    keep: Annotated[bool | None, typer.Option("--keep", help="Never delete instances of done studies.")] = None,
    keep_hours: Annotated[float | None, typer.Option(help="Delete them after so long. Default: 24.")] = None,
    remember_days: Annotated[float | None, typer.Option(help="Know them as done for so long. Default: 90.")] = None,
    spool_limit_gb: Annotated[
        float | None, typer.Option(help="Most that received studies may take. Default: 50.")
    ] = None,
    max_instance_mb: Annotated[float | None, typer.Option(help="Largest multi-frame instance. Default: 1024.")] = None,
    max_associations: Annotated[int | None, typer.Option(help="At once. Default: 16.")] = None,
    idle_seconds: Annotated[float | None, typer.Option(help="Close what is silent for so long. Default: 60.")] = None,
    max_studies: Annotated[int | None, typer.Option(metavar="N", help="End after N studies, for trying out.")] = None,
    once: Annotated[bool, typer.Option("--once", help="The same as --max-studies 1.")] = False,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="listen.toml with these names; flags win.")
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Print what is in the spool as JSON, and end.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run failed studies again; without --bundle, asks who listens to.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log only what needs attention.")] = False,
) -> None:
    """Receive four-phase CT studies over DICOM, run each when it is complete, send the SR. Not a diagnosis.

    Example: fp-listen --bundle liver.bundle --spool /var/lib/fourphase --allow SCANNER1 --send-to PACS@10.0.0.7:104
    """
    flags = {name: value for name, value in locals().items() if name not in _NO_OPTIONS}
    be_quiet(True)  # progress bars are for people; events are logged
    from fourphase.runtime.listen.config import resolve_options

    if once:
        flags["max_studies"] = 1
    options = resolve_options(flags, config)
    if status:
        _print_status(options.spool)
        return
    if retry_failed:
        _ask_for_retry(options.spool)
        if options.bundle is None:
            return
    from fourphase.runtime.listen.service import serve

    serve(options, quiet)


_NO_OPTIONS = ("once", "config", "status", "retry_failed", "quiet")


def main() -> None:
    """Entry point of `fp-listen`; ends also when another thread does not."""
    try:
        run_app(app, "fp-listen")
    except SystemExit as end:
        if threading.active_count() == 1:
            raise
        # A run, or a connection, that did not end in time: the interpreter would wait for it, or take its memory away.
        if copies := sys.modules.get("fourphase.runtime.private_copy"):
            copies.remove_copies()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)


def _print_status(spool: Path) -> None:
    from fourphase.runtime.listen.status import spool_status

    with stdout_checked():
        print(json.dumps(spool_status(spool)))


def _ask_for_retry(spool: Path) -> None:
    from fourphase.runtime.atomic import write_file
    from fourphase.runtime.listen.worker import RETRY_MARK

    if not (spool / "studies").is_dir():
        raise UsageError("there is no spool", "give the --spool DIR of fp-listen", key="listen_spool")
    write_file(spool / RETRY_MARK, b"")


if __name__ == "__main__":
    main()
