"""The small network and its exported graph."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch

from fourphase.export.network import FourPhaseNet
from tests.support.networks import exported_small, small_network

#: On layers this small, two threads wait for each other longer than they work.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def network() -> FourPhaseNet:
    return small_network()


@pytest.fixture(scope="session")
def exported() -> bytes:
    return exported_small()


@pytest.fixture
def model(exported: bytes) -> onnx.ModelProto:
    """A fresh copy, free to be doctored."""
    return onnx.load_model_from_string(exported)


@pytest.fixture
def node_of(model: onnx.ModelProto) -> Callable[[str], onnx.NodeProto]:
    """The first node of an operator type."""
    return lambda op_type: next(node for node in model.graph.node if node.op_type == op_type)
