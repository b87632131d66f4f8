"""Which HU a calibration set holds, per phase: one look tells contrast phases and bad windows apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.config import PreprocessingConfig

__all__ = ["HUHistograms"]

#: 25 HU each with the contract's widest window.
_BINS = 80


class HUHistograms:
    """Counts per phase of the sampled region's HU, read back from the widest window's channel.

    What lies outside that window was clipped to its edges, and is counted in the first and the last bin.
    """

    def __init__(self, config: PreprocessingConfig, phases: Sequence[str]) -> None:
        self._config = config
        self._channel = max(range(config.channels), key=lambda index: np.ptp(config.windows_hu[index]))
        self._counts = {phase: np.zeros(_BINS, dtype=np.int64) for phase in phases}

    def add(self, study: NDArray[np.float32]) -> None:
        """Counts one study, float32 (P, T, C, H, W), normalised."""
        config, channel = self._config, self._channel
        for counts, array in zip(self._counts.values(), study[:, :, channel], strict=True):
            share = array * np.float32(config.std[channel]) + np.float32(config.mean[channel])
            counts += np.histogram(np.clip(share, 0, 1), bins=_BINS, range=(0, 1))[0]

    def to_dict(self) -> dict[str, Any]:
        """Lowest and highest HU of the bins, and the counts per phase."""
        low, high = self._config.windows_hu[self._channel]
        counts = {phase: counts.tolist() for phase, counts in self._counts.items()}
        return {"low": low, "high": high, "phases": counts}
