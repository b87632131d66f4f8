"""What the commands share: progress and errors on stderr, and the exit code.

stdout belongs to results. Progress is shown only to a person: stderr is a terminal and --quiet was not given.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from fourphase.runtime.errors import EnvironmentFault, FourphaseError, OutputNotWritable, UsageError

if TYPE_CHECKING:
    import typer

__all__ = [
    *("be_quiet", "note", "print_bug", "print_error", "progress", "run_app"),
    *("say_errors_as_json", "stdout_checked"),
]

Advance = Callable[[int], None]

#: What typer makes of Ctrl-C.
_INTERRUPTED = 130

#: Which extra installs a package that the run time does without.
_EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "google"), "export"),
    "tensorrt_rtx": "rtx",
    "pycuda": "gpu",
    "matplotlib": "report",
    "highdicom": "sr",
    "PIL": "preview",
    "pynetdicom": "listen",
    "SimpleITK": "dev",
    "ray": "ray",
}

_quiet = False
_errors_as_json = False
_bar_shown = False


def be_quiet(quiet: bool) -> None:
    """Sets whether progress and notes are left out (--quiet)."""
    global _quiet
    _quiet = quiet


def say_errors_as_json(enabled: bool) -> None:
    """Sets whether an error is also printed on stdout as one JSON object (--json)."""
    global _errors_as_json
    _errors_as_json = enabled


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Advance]:
    """A progress bar on stderr (a spinner if `total` is None); yields a function that advances it.

    Within another one's context nothing is shown: the outer bar stands for the whole.

    >>> with progress("reading", 3) as advance:
    ...     advance(1)
    """
    global _bar_shown
    if _quiet or _bar_shown or not sys.stderr.isatty():
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn()]
    counted = [MofNCompleteColumn()] if total is not None else []
    console = Console(stderr=True)
    with Progress(*columns, *counted, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)
        _bar_shown = True
        try:
            yield lambda steps: bar.advance(task, steps)
        finally:
            _bar_shown = False


def note(text: str) -> None:
    """One line for a person on stderr; left out with --quiet."""
    if not _quiet:
        print(text, file=sys.stderr)


def print_error(error: FourphaseError) -> None:
    """The cause and the cure, one line each, and the table a person needs to decide, on stderr."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.table:
        _print_table(error.table)
    print(f"  fix: {error.hint}", file=sys.stderr)
    if _errors_as_json:
        print(json.dumps({"schema": "fourphase.error/1", "error": error.to_dict()}, indent=1))


def run_app(app: typer.Typer, name: str) -> NoReturn:
    """Runs a command and exits with the contract's code; a traceback is shown for bugs (code 1) only."""
    signal.signal(signal.SIGTERM, _on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means to go on
        signal.signal(signal.SIGHUP, _on_signal)
    try:
        code = app(prog_name=name, standalone_mode=False)
    except FourphaseError as error:
        print_error(error)
        sys.exit(error.code)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _EXTRAS:
            _exit_with_bug(error)
        fault = _missing_package(error)
        print_error(fault)
        sys.exit(fault.code)
    except Exception as error:
        if not hasattr(error, "exit_code"):
            _exit_with_bug(error)
        _exit_with_usage(error, name)
    if code == _INTERRUPTED:
        print("error: interrupted\n  fix: run the command again", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _missing_package(error: ModuleNotFoundError) -> FourphaseError:
    package = (error.name or "").split(".")[0]
    cure = f"pip install 'fourphase[{_EXTRAS[package]}]'"
    return EnvironmentFault(f"the package {package} is not installed", cure, key="extra_missing")


def print_bug(error: BaseException) -> None:
    """The traceback of an exception nobody expected, on stderr: places in the code and types, what led to it first.

    Its text is left out: exceptions quote paths, file names and header values, which name patients.
    """
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and not any(one is known for known in chain):
        chain.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    for one in reversed(chain):
        print("Traceback (most recent call last, texts left out):", file=sys.stderr)
        for frame in traceback.extract_tb(one.__traceback__):
            print(f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}', file=sys.stderr)
        print(type(one).__qualname__, file=sys.stderr)


def _exit_with_bug(error: Exception) -> NoReturn:
    print_bug(error)
    print("error: this is a bug in fourphase", file=sys.stderr)
    print("  fix: report it with the lines above and the output of pip list", file=sys.stderr)
    sys.exit(1)


def _exit_with_usage(error: Exception, name: str) -> NoReturn:
    """Typer's own errors (an unknown option, a missing argument) in the form of ours; no arguments at all: the help."""
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(text)
        sys.exit(UsageError.code)
    # The command itself never ran, so it could not say so.
    say_errors_as_json("--json" in sys.argv)
    print_error(UsageError(" ".join(text.split()).rstrip("."), f"see {name} --help"))
    sys.exit(UsageError.code)


@contextmanager
def stdout_checked() -> Iterator[None]:
    """Within the context, a stdout that cannot be written (full disk, closed pipe) is code 30, not a bug."""
    try:
        yield
        sys.stdout.flush()
    except (OSError, SystemExit) as ended:
        # rich ends the process with code 1 when the pipe of a table is closed.
        error = ended.__context__ if isinstance(ended, SystemExit) else ended
        if not isinstance(error, OSError):
            raise
        # What is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        cause = (error.strerror or "error").lower()
        raise OutputNotWritable(
            f"the result cannot be written to stdout: {cause}", "free disk space, or use --output"
        ) from None


def _on_signal(number: int, frame: FrameType | None) -> NoReturn:
    with suppress(OSError):  # after a hang-up there may be no terminal to write to
        print("error: terminated\n  fix: run the command again", file=sys.stderr)
    sys.exit(128 + number)


def _print_table(rows: tuple[dict[str, str], ...]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(escape, row.values()))
    Console(stderr=True).print(table)
