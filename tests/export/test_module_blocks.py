"""Which parts of a module tree are blocks, and that what is recorded of them is what PyTorch computed."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import Tensor, nn

from fourphase.calibration.blocks import block_names, node_blocks
from fourphase.export.build import verified_onnx
from fourphase.export.checkpoint import checkpoint_of_module
from fourphase.export.module_blocks import OUTSIDE, module_blocks
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import ExportRefused, ParityFailed

SMALL = PreprocessingConfig(size=(4, 16, 16))
PHASES, CLASSES = ("A", "B"), ("X", "Y", "Z")


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.conv(x)
        return added


class Inner(nn.Module):
    """Everything at once: a wrapper, activations in place, a child named as an output, one that gives its input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(6, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(inplace=True))
        self.layer1 = nn.Sequential(Residual(4), Residual(4), nn.Dropout())
        self.bn = nn.BatchNorm3d(4)
        self.relu = nn.ReLU(inplace=True)
        self.flat = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.norm = nn.LayerNorm(8)
        self.logits = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, study: Tensor) -> Tensor:
        x = self.stem(study.transpose(2, 3).flatten(1, 2))
        x = self.relu(self.bn(self.layer1(x))).mean(dim=(2, 3, 4))
        result: Tensor = self.logits(self.norm(self.flat(x)))
        return result


class Wrapper(nn.Module):
    """`both`: phase logits as well."""

    def __init__(self, *, both: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.both = Inner(), both

    def forward(self, study: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.net(study)
        return (logits, torch.stack([logits, -logits], dim=1)) if self.both else logits


def test_blocks_are_children_of_containers_and_runs_of_flat_ones() -> None:
    found = module_blocks(Inner())
    assert list(found.outputs.items()) == [
        ("stem", "stem"), ("layer1.0", "layer1.0"), ("layer1.2", "layer1.1"), ("bn", "bn"), ("relu", "relu"),
        ("flat.1", "flat.0"), ("flat.3", "flat.2"), ("norm", "norm"), ("logits", "block.logits"),
        ("unused", "unused"),
    ]  # fmt: skip
    assert found.of_scopes(["", "layer1", "layer1.1", "layer1.1.conv", "conv3d"]) == "layer1.1"
    assert found.of_scopes(["", "flat", "flat.1", "relu"]) == "flat.0"
    assert found.of_scopes(["", "mean"]) == OUTSIDE


def test_a_wrapper_is_looked_into() -> None:
    assert list(module_blocks(Wrapper()).outputs.values())[:3] == ["net.stem", "net.layer1.0", "net.layer1.1"]


@pytest.mark.parametrize("both", [False, True])
def test_a_network_of_odd_parts_passes_parity_block_by_block(both: bool) -> None:
    network = Wrapper(both=both)
    verified = verified_onnx(checkpoint_of_module(network, SMALL, phases=PHASES, classes=CLASSES))
    outputs = ("logits", "phase_logits") if both else ("logits",)
    assert verified.checkpoint.interface.outputs == outputs
    assert tuple(value.name for value in verified.model.graph.output) == outputs
    names = block_names(verified.model)
    assert {"net.stem", "net.layer1.0", "net.layer1.1", "net.flat.0", "net.flat.2", "net.norm"} <= set(names)
    assert "net.unused" not in names
    assert set(verified.parity.reference) == set(outputs)
    assert {row.block for row in verified.parity.rows} == {*outputs, *names}
    blocks = set(node_blocks(verified.model).values())
    assert {"net.stem/input", "net.norm/norm"} <= blocks
    assert sum(block.endswith("/logits") for block in blocks) >= 1
    onnx.checker.check_model(verified.model, full_check=True)


class Returning(nn.Module):
    """Gives whatever it was made with."""

    def __init__(self, what: object) -> None:
        super().__init__()
        self.linear, self.what = nn.Linear(1, 1), what

    def forward(self, study: Tensor) -> object:
        if isinstance(self.what, Exception):
            raise self.what
        return self.what


@pytest.mark.parametrize(
    ("what", "key", "cause"),
    [
        (torch.zeros(1, 2), "model_output", r"logits are float32 \(1, 2\) instead of float32 \(1, 3\)"),
        (torch.zeros(1, 3, dtype=torch.float64), "model_output", "logits are float64"),
        ((torch.zeros(1, 3), torch.zeros(1, 3)), "model_output", "phase_logits are float32"),
        ((torch.zeros(1, 3),) * 3, "model_output", "returns Tensor, Tensor, Tensor"),
        ({"logits": torch.zeros(1, 3)}, "model_output", "returns dict"),
        (ValueError("five axes only"), "model_input", "ValueError: five axes only"),
    ],
)
def test_what_is_no_classifier_of_studies_is_refused(what: object, key: str, cause: str) -> None:
    with pytest.raises(ExportRefused, match=cause) as caught:
        checkpoint_of_module(Returning(what), SMALL, phases=PHASES, classes=CLASSES)
    assert caught.value.key == key
    assert caught.value.code == 25


def test_a_batch_that_is_baked_in_is_refused() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, study: Tensor) -> Tensor:
            result: Tensor = self.linear(study.mean(dim=(1, 2, 4, 5)))
            return result[:2] + torch.zeros(2 if len(study) == 2 else 1, 3)

    with pytest.raises(ParityFailed, match=r"its shape is \[2, 2, 4, 3, 16, 16\]") as caught:
        verified_onnx(checkpoint_of_module(Fixed(), SMALL, phases=PHASES, classes=CLASSES))
    assert "a batch of any size" in caught.value.hint


def test_the_same_weights_have_the_same_hash() -> None:
    made = [checkpoint_of_module(Wrapper(), SMALL, phases=PHASES, classes=CLASSES) for _ in range(2)]
    other = Wrapper()
    with torch.no_grad():
        other.net.bn.get_parameter("weight").add_(1)
    assert made[0].sha256 == made[1].sha256
    assert checkpoint_of_module(other, SMALL, phases=PHASES, classes=CLASSES).sha256 != made[0].sha256
