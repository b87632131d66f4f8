"""What follows from a request before any work: int8 that would change nothing is no int8."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fourphase.calibration.blocks import Policy
from fourphase.export.build_request import policies_of
from fourphase.export.interface import Interface
from fourphase.export.onnx_export import onnx_from_module
from fourphase.runtime.errors import ExportRefused
from tests.support.networks import SMALL


class Phases(nn.Module):
    """A shared layer on every phase: one phase after the other, or all as one batch."""

    def __init__(self, *, loop: bool) -> None:
        super().__init__()
        self.loop = loop
        self.first, self.second, self.head = nn.Conv3d(3, 8, 3, padding=1), nn.Conv3d(8, 8, 3), nn.Linear(8, 2)

    def trunk(self, phase: torch.Tensor) -> torch.Tensor:
        """(N, T, C, H, W) -> (N, 8)."""
        found: torch.Tensor = self.second(self.first(phase.transpose(1, 2)).relu()).relu().mean(dim=(2, 3, 4))
        return found

    def forward(self, study: torch.Tensor) -> torch.Tensor:
        if self.loop:
            features = torch.stack([self.trunk(study[:, phase]) for phase in range(4)], dim=1)
        else:
            features = self.trunk(study.flatten(0, 1)).reshape(-1, 4, 8)
        logits: torch.Tensor = self.head(features.mean(dim=1))
        return logits


def test_int8_that_would_quantize_nothing_is_refused() -> None:
    interface = Interface(outputs=("logits",))
    looped, batched = (onnx_from_module(Phases(loop=loop), interface, SMALL) for loop in (True, False))
    for given in (None, Policy.of({"*": "int8"})):
        with pytest.raises(ExportRefused, match="int8 would change nothing") as caught:
            policies_of("int8", given, looped)
        assert (caught.value.code, caught.value.key) == (25, "int8_empty")
        assert list(policies_of("int8", given, batched)) == ["fp16", "int8"]
    assert list(policies_of("fp16", None, looped)) == ["fp16"]
