"""TensorRT's messages, kept instead of printed, so that an error can say what the builder said.

It judges nothing; `builder` decides what is an error.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

from fourphase.runtime.flavour import Flavour

__all__ = ["BuildLog", "logger_of"]


class BuildLog(Protocol):
    """A TensorRT logger that keeps every (severity, line) of severity "error" or "warning"."""

    lines: list[tuple[str, str]]

    def texts(self, severity: str) -> list[str]: ...


def logger_of(flavour: Flavour) -> BuildLog:
    """The flavour's logger, one for the process's life: TensorRT keeps a pointer to the first one it is given."""
    logger: BuildLog = _logger(flavour.trt.ILogger)
    return logger


@functools.cache
def _logger(base: Any) -> Any:
    severities = {base.INTERNAL_ERROR: "error", base.ERROR: "error", base.WARNING: "warning"}

    class CapturingLogger(base):  # type: ignore[misc]  # the base is known only at run time
        def __init__(self) -> None:
            base.__init__(self)  # not super(): TensorRT's bindings demand the explicit call
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in severities:
                self.lines.append((severities[severity], " ".join(message.split())))

        def texts(self, severity: str) -> list[str]:
            return [text for kind, text in self.lines if kind == severity]

    return CapturingLogger()
