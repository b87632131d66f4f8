"""What is in a spool, counted for `fp-listen --status`; it reads only, also while another process receives."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from fourphase.runtime.errors import InputMissing
from fourphase.runtime.listen.files import listing
from fourphase.runtime.listen.state import STATES, read_state

__all__ = ["spool_status"]


def spool_status(spool: Path) -> dict[str, Any]:
    """The JSON object of `--status`: studies per state, instances, bytes, SRs to be sent, and the failed ones' errors.

    A study whose state is done or failed but that holds newer instances counts as receiving.

    Raises: InputMissing (10): there is no spool.
    """
    if not (spool / "studies").is_dir():
        raise InputMissing("there is no spool", "give the --spool DIR of fp-listen")
    states: Counter[str] = Counter(dict.fromkeys(STATES, 0))
    failed: list[dict[str, Any]] = []
    instances = size = damaged = 0
    for folder in sorted(listing(spool / "studies")):
        files = listing(folder / "instances")
        instances += len(files)
        size += sum(_size(path) for path in files)
        state = read_state(folder / "state.json")
        if state is None:
            damaged += 1
            continue
        news = not {path.name for path in files} <= set(state.content)
        name = "receiving" if news and state.state in ("done", "failed", "waiting") else state.state
        states[name] += 1
        if name == "failed" and state.error:
            failed.append({"study": folder.name[:12], "code": state.error.get("code"), "key": state.error.get("key")})
    unsent = sum(path.suffix == ".dcm" and path.name[0] != "." for path in listing(spool / "outbox"))
    return {
        "schema": "fourphase.spool_status/1",
        "states": dict(states),
        "damaged": damaged,
        "unsent": unsent,
        "instances": instances,
        "bytes": size,
        "failed": failed,
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
