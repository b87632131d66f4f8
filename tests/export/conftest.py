"""One exported small network for the whole session: the exporter takes some ten seconds whatever the size."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from fourphase.export.network import FourPhaseNet
from fourphase.export.onnx_export import onnx_from_network
from tests.support.networks import SMALL, small_network


@pytest.fixture(scope="session")
def network() -> FourPhaseNet:
    return small_network()


@pytest.fixture(scope="session")
def exported(network: FourPhaseNet) -> bytes:
    return bytes(onnx_from_network(network, SMALL).SerializeToString())


@pytest.fixture
def model(exported: bytes) -> onnx.ModelProto:
    """A fresh copy, free to be doctored."""
    return onnx.load_model_from_string(exported)


@pytest.fixture
def node_of(model: onnx.ModelProto) -> Callable[[str], onnx.NodeProto]:
    """The first node of an operator type."""
    return lambda op_type: next(node for node in model.graph.node if node.op_type == op_type)
