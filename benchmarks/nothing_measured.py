"""A benchmark in which everything failed is an error, after its result was printed; one that lacks runtimes is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fourphase.runtime.errors import SelfCheckFailed

__all__ = ["require_some"]


def require_some(rows: Iterable[Mapping[str, Any]]) -> None:
    """To be called when the result is on stdout, which then holds every reason.

    Args:
        rows: with "status" and "reason".

    Raises: SelfCheckFailed (23) if rows failed and none is ok.
    """
    found = list(rows)
    failed = [row["reason"] for row in found if row["status"] == "failed"]
    if not failed or any(row["status"] == "ok" for row in found):
        return
    raise SelfCheckFailed(
        f"all of the {len(failed)} that were tried failed, the first with: {failed[0]}",
        "see the reasons in the result; fp-doctor says what this machine can run",
        key="nothing_measured",
    )
