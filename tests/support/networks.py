"""Small networks and inputs for tests: full structure, tiny size."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from fourphase.export.config import NetworkConfig
from fourphase.export.network import FourPhaseNet
from fourphase.export.onnx_export import onnx_from_network
from fourphase.runtime.config import PreprocessingConfig

SMALL = PreprocessingConfig(size=(8, 32, 32))


def small_network(seed: int = 0, **keys: Any) -> FourPhaseNet:
    """An untrained network of width 4 with batch-norm statistics that are not the identity, in eval mode."""
    torch.manual_seed(seed)
    network = FourPhaseNet(NetworkConfig(**{"width": 4, "gru_hidden": 8, "gate_reduction": 2, **keys}))
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


@functools.cache
def exported_small() -> bytes:
    """The ONNX of `small_network()`, once per session: the exporter takes some ten seconds whatever the size."""
    return bytes(exported_once(small_network(), SMALL).SerializeToString())


_exports: dict[bytes, bytes] = {}


def exported_once(network: FourPhaseNet, preprocessing: PreprocessingConfig, gru: str = "loop") -> onnx.ModelProto:
    """`onnx_from_network`, remembered by weights and form: for tests of what comes after it."""
    digest = hashlib.sha256(repr((network.config, preprocessing, gru)).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    key = digest.digest()
    if key not in _exports:
        _exports[key] = onnx_from_network(network, preprocessing, gru).SerializeToString()
    return onnx.load_model_from_string(_exports[key])


def random_study(batch: int = 1, phases: int = 4, seed: int = 0) -> NDArray[np.float32]:
    """Normalised-looking input float32 (batch, phases, 8, 3, 32, 32)."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(batch, phases, 8, 3, 32, 32)).astype(np.float32)
