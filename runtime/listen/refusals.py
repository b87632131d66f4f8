"""Which instances senders were just told "out of resources" for: their studies are not complete, whatever else came.

In memory only: a sender that was refused tries again, and after a restart nobody knows. Only salted hashes are held.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

__all__ = ["Refusal", "Refusals"]

#: Of all studies; beyond it the study that was refused longest ago is forgotten, so that memory stays bounded.
_MOST = 100_000


@dataclass
class Refusal:
    """What is missing of one study.

    Attributes:
        sops: hashes of the instances that were refused and have not come since.
        last: when the last of them was refused, by the monotonic clock.
        told: the log has it.
    """

    sops: set[str] = field(default_factory=set)
    last: float = 0.0
    told: bool = False


class Refusals:
    """Refused instances by study, both as the spool's hashes; for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._studies: dict[str, Refusal] = {}  # the one refused longest ago comes first
        self._count = 0

    def add(self, key: str, sop: str) -> None:
        with self._lock:
            refusal = self._studies.pop(key, None) or Refusal()
            self._count += sop not in refusal.sops
            refusal.sops.add(sop)
            refusal.last = time.monotonic()
            self._studies[key] = refusal
            while self._count > _MOST and len(self._studies) > 1:
                self._drop(next(iter(self._studies)))

    def stored(self, key: str, sop: str) -> None:
        """The instance came after all; with the last one the study is as any other."""
        with self._lock:
            refusal = self._studies.get(key)
            if refusal is not None and sop in refusal.sops:
                refusal.sops.remove(sop)
                self._count -= 1
                if not refusal.sops:
                    del self._studies[key]

    def of(self, key: str) -> Refusal | None:
        """None while nothing of the study is missing."""
        return self._studies.get(key)

    def forget(self, key: str) -> None:
        with self._lock:
            self._drop(key)

    def _drop(self, key: str) -> None:
        refusal = self._studies.pop(key, None)
        self._count -= len(refusal.sops) if refusal else 0
