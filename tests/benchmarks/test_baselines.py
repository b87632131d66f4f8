"""The paper's baselines: costs against the published table, their parts against independent formulations, and ONNX.

The table (four phases of 64 x 128 x 128, one window of each) is rounded to 0.1.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fourphase.benchmarks.baselines.densenet3d import DenseNet3d, DenseNet3dConfig
from fourphase.benchmarks.baselines.mexpale import MexPale, MexPaleConfig
from fourphase.benchmarks.baselines.resnet3d import ResNet3d, ResNet3dConfig, phases_as_channels
from fourphase.benchmarks.baselines.stic import Stic, SticConfig
from fourphase.benchmarks.baselines.tdn import LongTermDifference, Tdn, TdnConfig, TemporalShift
from fourphase.benchmarks.baselines.transmed import Encoder, TransMed, TransMedConfig
from fourphase.benchmarks.latency.limits import network_cost
from fourphase.benchmarks.networks import BASELINES, NETWORKS, OURS, TINY, Scale
from fourphase.calibration.cpu_session import cpu_session
from fourphase.engine.build import build_engine
from fourphase.engine.options import BuildOptions, EngineSource
from fourphase.export.onnx_export import INPUT, OPSET, OUTPUTS
from fourphase.runtime import flavour
from fourphase.runtime.cuda import Probe

Doubles = NDArray[np.float64]
#: Millions of parameters, GMAC per study.
TABLE = {
    # The table has one linear layer as head; the published head has a hidden one of 512 x 512 + 512 more.
    "resnet3d-18-s122": (33.2 + 0.262656, 215.1),
    "resnet3d-18-s222": (33.2 + 0.262656, 107.5),
    "resnet3d-18-medicalnet": (33.2, 24.3),
    "densenet3d-121": (11.3, 30.1),
    "stic": (17.9, 61.4),
    "mexpale": (33.2, 24.3),
    "transmed": (16.6, 50.2),
    # The table's is for three channels and 1000 classes: see `test_tdn_has_the_tables_cost_...`.
    "tdn": (26.1 - 998 * 2049e-6 + 64 * 49 * 5e-6, 71.3 + 16 * 64 * 49 * (112**2 + 4 * 56**2) * 1e-9),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny layers on several threads wait for each other most of the time, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unsettled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in eval mode, with batch norms that are not the identity."""
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for name, bounds in (("weight", (0.5, 1.5)), ("bias", (-0.3, 0.3))):
                nn.init.uniform_(part.get_parameter(name), *bounds)
            part.get_buffer("running_mean").normal_(0, 0.2)
            part.get_buffer("running_var").uniform_(0.5, 1.5)
    return module.eval()


def with_weights_of(target: nn.Module, source: nn.Module) -> nn.Module:
    """The target in eval mode with the source's weights and statistics, which both make in the same order."""
    values, wanted = list(source.state_dict().values()), target.state_dict()
    assert [value.shape for value in values] == [value.shape for value in wanted.values()]
    target.load_state_dict(dict(zip(wanted, values, strict=True)))
    return target.eval()


@pytest.mark.parametrize("name", TABLE)
def test_costs_are_the_tables(name: str) -> None:
    with torch.device("meta"):
        module, study = BASELINES[name](Scale(), 1)
    assert study.shape == (1, 4, 64, 3, 128, 128)
    cost = network_cost(module, study)
    parameters, gmac = TABLE[name]
    assert cost.parameters / 1e6 == pytest.approx(parameters, abs=0.05)
    assert cost.gmac == pytest.approx(gmac, abs=0.05)


def test_every_baseline_is_in_the_table() -> None:
    assert set(BASELINES) == set(TABLE)
    assert dict(NETWORKS) == {**OURS, **BASELINES}


def test_tdn_has_the_tables_cost_with_three_channels_and_imagenets_classes() -> None:
    with torch.device("meta"):
        cost = network_cost(Tdn(TdnConfig(phases=3, classes=1000)), torch.empty(1, 3, 64, 3, 128, 128))
    assert cost.parameters / 1e6 == pytest.approx(26.1, abs=0.05)
    assert cost.gmac == pytest.approx(71.3, abs=0.05)


def test_the_head_is_all_that_the_cov3d_form_has_more_parameters_for() -> None:
    with torch.device("meta"):
        linear = ResNet3d(ResNet3dConfig(head_hidden=False))
    assert sum(parameter.numel() for parameter in linear.parameters()) / 1e6 == pytest.approx(33.2, abs=0.05)


@functools.cache
def ours(name: str) -> tuple[int, float]:
    with torch.device("meta"):
        module, study = OURS[name](Scale(), 1)
    cost = network_cost(module, study)
    return cost.parameters, cost.gmac * 1e9


def test_the_ablation_rows_are_the_network_without_the_parts_they_lack() -> None:
    """Gates: per trunk and stage, an MLP C -> C/16 -> C twice, a 7x7 convolution of two maps. SPM: by its layers."""
    gates = macs = 0
    for channels, edge in zip((64, 128, 256, 512), (32, 16, 8, 4), strict=True):
        gates += 4 * (2 * channels * channels // 16 + channels // 16 + channels + 98 + 2)
        macs += 4 * 64 * (2 * 2 * channels * channels // 16 + 98 * edge**2)
    convolutions = 2048 * 512 * 3 + 3 * 512 * 512 * 3 + 2048 * 512
    gru = 3 * 256 * (512 + 256)
    spm = convolutions + 5 * 2 * 512 + gru + 2 * 3 * 256 + 256 * 2 + 2
    full, without = ours("four-phase"), ours("four-phase-backbone")
    assert ours("four-phase-spm")[0] == without[0] + spm
    assert ours("four-phase-miff")[0] == without[0] + gates
    assert full[0] == without[0] + spm + gates
    assert ours("four-phase-miff")[1] - without[1] == macs
    assert ours("four-phase-spm")[1] - without[1] == pytest.approx(64 * (convolutions + gru) + 256 * 2, rel=1e-6)
    assert full[1] == ours("four-phase-spm")[1] + macs


@pytest.mark.parametrize("name", ["four-phase-nc-art-pv", "four-phase-nc-art-dl"])
def test_a_phase_subset_has_three_quarters_of_the_trunks(name: str) -> None:
    """Of all that is done per phase: trunks with gates and heads; the SPM's first block has 512 channels less."""
    full, miff, subset = ours("four-phase"), ours("four-phase-miff"), ours(name)
    spm = full[0] - miff[0] - 512 * 512 * (3 + 1)
    assert subset[0] == miff[0] * 3 // 4 + spm
    assert subset[1] == pytest.approx(miff[1] * 3 / 4 + full[1] - miff[1] - 64 * 512 * 512 * 4, rel=1e-6)
    module, study = NETWORKS[name](TINY, 1)
    assert cast(Any, module).config.phases == tuple(name.upper().split("-")[2:])
    assert study.shape[1] == 3


def monai() -> Any:
    return pytest.importorskip("monai.networks.nets", reason="MONAI is not installed (pip install --no-deps monai)")


def test_densenet_is_monais() -> None:
    reference = unsettled(
        monai().DenseNet(3, 4, 2, init_features=16, growth_rate=8, block_config=(2, 3, 2, 1), bn_size=4)
    )
    network = with_weights_of(DenseNet3d(DenseNet3dConfig(growth=8, blocks=(2, 3, 2, 1))), reference)
    study = random(2, 4, 32, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(study), reference(study[:, :, :, 1]), rtol=1e-4, atol=1e-5)


def test_densenet_121_is_monais_layer_by_layer() -> None:
    nets = monai()
    with torch.device("meta"):
        reference, network = nets.DenseNet121(3, 4, 2), DenseNet3d(DenseNet3dConfig())
    assert shapes(network) == shapes(reference)


@pytest.mark.parametrize(
    "config",
    [
        ResNet3dConfig.medicalnet(width=8),
        ResNet3dConfig(width=8, stem_kernel=(3, 7, 7), stem_stride=(1, 2, 2), head_hidden=False),
    ],
)
def test_the_3d_resnet_is_monais(config: ResNet3dConfig) -> None:
    """MONAI's has one kernel size and stride for all axes but the first, MedicalNet's layout and r3d_18's alike."""
    reference = monai_resnet(config)
    network = with_weights_of(ResNet3d(config), unsettled(reference))
    study = random(2, 4, 16, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(study), reference(study[:, :, :, 1]), rtol=1e-4, atol=1e-5)


def test_the_full_size_3d_resnet_is_monais_layer_by_layer() -> None:
    config = ResNet3dConfig.medicalnet()
    with torch.device("meta"):
        assert shapes(ResNet3d(config)) == shapes(monai_resnet(config))


def monai_resnet(config: ResNet3dConfig) -> nn.Module:
    module: nn.Module = monai().ResNet(
        "basic", [2, 2, 2, 2], [config.width << number for number in range(4)], n_input_channels=4, num_classes=2,
        conv1_t_size=list(config.stem_kernel), conv1_t_stride=list(config.stem_stride),
        no_max_pool=not config.stem_pool, bias_downsample=False,
    )  # fmt: skip
    return module


def shapes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in module.state_dict().values()]


def test_phases_are_channels_phase_by_phase() -> None:
    study = torch.arange(2 * 4 * 2 * 3, dtype=torch.float32).reshape(2, 4, 2, 3, 1, 1)
    expected = np.concatenate([study.numpy()[:, p, None, :, c] for p in range(4) for c in (2, 0)], axis=1)
    assert np.array_equal(phases_as_channels(study, (2, 0)), expected)


def test_the_windows_are_the_only_ones_that_count() -> None:
    network, study = BASELINES["resnet3d-18-s222"](TINY, 1)
    both = ResNet3d(ResNet3dConfig(width=4, windows=(0, 1))).eval()
    other = study.clone()
    other[:, :, :, [0, 2]] = 7
    with torch.no_grad():
        assert torch.equal(network(study), network(other))
        assert not torch.equal(both(study), both(other))


@pytest.mark.parametrize(("growth", "blocks"), [(32, (6, 12, 24, 16)), (4, (1, 5))])
def test_densenet_grows_by_as_many_channels_per_layer(growth: int, blocks: tuple[int, ...]) -> None:
    """Every layer adds `growth` channels, every transition halves them."""
    with torch.device("meta"):
        network = DenseNet3d(DenseNet3dConfig(growth=growth, blocks=blocks))
    channels = 2 * growth
    for number, count in enumerate(blocks):
        channels = channels // (2 if number else 1) + count * growth
    assert network.head.in_features == channels
    assert channels == (1024 if growth == 32 else 2 * 4 // 1 + 4 - 6 + 20)


def test_stic_looks_at_the_middle_slice_and_reads_the_phases_in_order() -> None:
    """Against ONNX's formulas of the GRU, step by step in NumPy; VGG16's convolutions one by one."""
    torch.manual_seed(3)
    network = Stic(SticConfig(width=4, hidden=5, pixels=64)).eval()
    study = random(2, 4, 8, 3, 32, 32)
    elsewhere = study.clone()
    elsewhere[:, :, [0, 1, 2, 3, 5, 6, 7]] = 9
    images = network.images(study)
    assert images.shape == (8, 3, 64, 64)
    assert torch.equal(images[:, 0], images[:, 2])
    enlarged = nn.Upsample(size=(64, 64), mode="bilinear")(study[1, 3, 4, 1][None, None])
    torch.testing.assert_close(images[7, 1], enlarged[0, 0])
    with torch.no_grad():
        logits = network(study)
        assert torch.equal(network(elsewhere), logits)
        assert not torch.allclose(network(study.flip(1)), logits, rtol=1e-4)
        sequence = network.whole(network.features(images)).reshape(2, 4, 8).double().numpy()
        state = last_state(network.gru, sequence)
        weight, bias = (network.head.get_parameter(name).numpy() for name in ("weight", "bias"))
        np.testing.assert_allclose(logits, state @ weight.T + bias, rtol=1e-4, atol=1e-5)


def last_state(gru: nn.GRU, sequence: Doubles) -> Doubles:
    inputs, states, bias_inputs, bias_states = (
        gru.get_parameter(name).double().numpy()
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    )

    def sigmoid(x: Doubles) -> Doubles:
        return np.asarray(1 / (1 + np.exp(-x)))

    state = np.zeros((len(sequence), gru.hidden_size))
    for step in range(sequence.shape[1]):
        x = np.split(sequence[:, step] @ inputs.T + bias_inputs, 3, axis=1)
        h = np.split(state @ states.T + bias_states, 3, axis=1)
        reset, update = sigmoid(x[0] + h[0]), sigmoid(x[1] + h[1])
        state = (1 - update) * np.tanh(x[2] + reset * h[2]) + update * state
    return state


def test_vgg16_has_thirteen_convolutions_and_halves_five_times() -> None:
    with torch.device("meta"):
        network = Stic(SticConfig())
        features = network.features(torch.empty(1, 3, 224, 224))
    assert features.shape == (1, 512, 7, 7)
    assert network.whole(features).shape == (1, 128, 1, 1)
    widths = [layer.out_channels for layer in network.features if isinstance(layer, nn.Conv2d)]
    assert widths == [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    # 14 714 688 parameters: VGG16 without its three linear layers (138 357 544 - 123 642 856).
    assert sum(p.numel() for p in network.features.parameters()) == 138_357_544 - 123_642_856


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: Stic(SticConfig(width=4, hidden=5, pixels=32, clinical=20)), 20),
        (lambda: MexPale(MexPaleConfig(ResNet3dConfig.medicalnet(width=4))), 4),
    ],
)
def test_clinical_values_count_and_without_them_everyone_is_average(make: Callable[[], nn.Module], count: int) -> None:
    network, study = make().eval(), random(2, 4, 8, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(study), network(study, torch.zeros(2, count)))
        first, second = network(study, torch.eye(2, count)) - network(study)
        assert first.abs().max() > 1e-4
        assert second.abs().max() > 1e-4


def test_mexpale_is_the_resnets_features_beside_the_mlps() -> None:
    torch.manual_seed(0)
    network = MexPale(MexPaleConfig(ResNet3dConfig.medicalnet(width=4), hidden=6)).eval()
    alone = ResNet3d(ResNet3dConfig.medicalnet(width=4)).eval()
    alone.load_state_dict(network.image.state_dict(), strict=False)
    study, values = random(2, 4, 8, 3, 32, 32), random(2, 4)
    first, second = (cast(nn.Linear, network.mlp[at]) for at in (0, 2))
    with torch.no_grad():
        hidden = (values @ first.weight.T + first.bias).clamp(min=0)
        hidden = (hidden @ second.weight.T + second.bias).clamp(min=0)
        weight = network.head.weight
        expected = alone.features(study) @ weight[:, :32].T + hidden @ weight[:, 32:].T + network.head.bias
        torch.testing.assert_close(network(study, values), expected, rtol=1e-4, atol=1e-5)


def test_transmeds_tokens_are_three_slices_of_a_phase_phase_by_phase() -> None:
    """Slice t of phase p holds 100 p + t in the abdominal window; 8 slices make two tokens and leave two."""
    network = TransMed(TransMedConfig(slices=8, width=2, layers=1))
    values = 100 * torch.arange(4.0)[:, None] + torch.arange(8.0)
    study = torch.full((2, 4, 8, 3, 2, 2), -1.0)
    study[0, :, :, 1] = values[:, :, None, None]
    images = network.images(study)
    assert images.shape == (16, 3, 2, 2)
    firsts = [[base, base + 1, base + 2] for phase in range(4) for base in (100 * phase, 100 * phase + 3)]
    assert images[:8, :, 0, 0].tolist() == firsts
    assert (images[8:] == -1).all()


def test_transmed_puts_the_tokens_behind_the_class_token_and_adds_positions() -> None:
    torch.manual_seed(0)
    network = TransMed(TransMedConfig(slices=8, width=2, layers=2)).eval()
    nn.init.normal_(network.class_token)
    nn.init.normal_(network.positions)
    study = random(2, 4, 8, 3, 32, 32)
    seen: list[Tensor] = []
    network.layers.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        logits = network(study)
        features = network.trunk(network.images(study)[9:10]).mean(dim=(2, 3))
        expected = network.project(features)[0] + network.positions[0, 2]
        torch.testing.assert_close(seen[0][1, 2], expected)  # the second study's second token
        torch.testing.assert_close(seen[0][:, 0], (network.class_token + network.positions[:, :1])[0].expand(2, -1))
        torch.testing.assert_close(logits, network.head(network.norm(network.layers(seen[0])[:, 0])))


def test_transmeds_layers_are_pytorchs_pre_norm_transformer() -> None:
    torch.manual_seed(1)
    reference = nn.TransformerEncoderLayer(
        12, 3, dim_feedforward=48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    layer, attention = Encoder(12, heads=3), reference.self_attn
    pairs = (
        (layer.norm1, reference.norm1), (layer.out, attention.out_proj), (layer.norm2, reference.norm2),
        (layer.mlp[0], reference.linear1), (layer.mlp[2], reference.linear2),
    )  # fmt: skip
    for mine, theirs in pairs:
        mine.load_state_dict(theirs.state_dict())
    layer.joint.load_state_dict({"weight": attention.in_proj_weight, "bias": attention.in_proj_bias})
    x = random(2, 7, 12)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), reference(x), rtol=1e-4, atol=1e-5)


def test_tdns_temporal_shift_is_an_explicit_shift_at_first() -> None:
    shift = TemporalShift(16, segments=3)
    shift.reset()
    x = random(6, 16, 2, 5)
    sequence = x.numpy().reshape(2, 3, 16, 2, 5)
    expected = sequence.copy()
    expected[:, :, :4] = 0
    expected[:, :-1, :2] = sequence[:, 1:, :2]
    expected[:, 1:, 2:4] = sequence[:, :-1, 2:4]
    with torch.no_grad():
        np.testing.assert_allclose(shift(x).reshape(2, 3, 16, 2, 5), expected, atol=1e-6)


def test_tdns_temporal_convolution_is_a_1d_convolution_along_the_segments() -> None:
    shift, along = TemporalShift(4, segments=5), nn.Conv1d(4, 4, 3, padding=1, groups=4, bias=False)
    along.load_state_dict({"weight": shift.conv.weight[..., 0]})
    x = random(10, 4, 3, 2)
    with torch.no_grad():
        lines = x.reshape(2, 5, 4, 3, 2).permute(0, 3, 4, 2, 1).reshape(12, 4, 5)
        expected = along(lines).reshape(2, 3, 2, 4, 5).permute(0, 4, 3, 1, 2).flatten(0, 1)
        torch.testing.assert_close(shift(x), expected)


def test_tdns_long_term_difference_is_its_formula() -> None:
    """Segment by segment, with torch's functions; odd edges, of which pooling drops the last row and column."""
    torch.manual_seed(2)
    module = cast(LongTermDifference, unsettled(LongTermDifference(32, segments=3, reduction=16)))
    x = random(6, 32, 5, 7)
    with torch.no_grad():
        reduced = module.reduce(x).reshape(2, 3, 2, 5, 7)
        smooth = nn.functional.conv2d(reduced.flatten(0, 1), module.smooth.weight, padding=1, groups=2)
        smooth = smooth.reshape_as(reduced)
        expected = torch.empty(2, 3, 32, 5, 7)
        for study in range(2):
            for at in range(3):
                own = x.reshape(2, 3, 32, 5, 7)[study, at]
                weights = [gate(module, smooth[study], reduced[study], at, at + step) for step in (1, -1)]
                expected[study, at] = own + own * (sum(weights) / 2 - 0.5)
        torch.testing.assert_close(module(x), expected.flatten(0, 1), rtol=1e-4, atol=1e-5)


def gate(module: LongTermDifference, smooth: Tensor, reduced: Tensor, at: int, other: int) -> Tensor:
    outside = other not in range(len(reduced))
    difference = (torch.zeros_like(reduced[at]) if outside else smooth[other] - reduced[at])[None]
    small = module.coarse[2](module.coarse[1](difference[..., :4, :6].unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))))
    rows, columns = (torch.arange(edge) * half // edge for edge, half in ((5, 2), (7, 3)))
    parts = difference + small[:, :, rows][..., columns] + module.fine(difference)
    return torch.sigmoid(module.restore(parts / 3))[0]


def test_tdns_long_term_difference_is_the_identity_at_zero_weights() -> None:
    module = LongTermDifference(32, segments=4, reduction=16).eval()
    x = random(8, 32, 6, 6)
    with torch.no_grad():
        assert not torch.equal(module(x), x)
        nn.init.zeros_(module.restore[0].get_parameter("weight"))
        assert torch.equal(module(x), x)


def test_tdns_segments_are_five_slices_around_the_middle() -> None:
    """Slice t of phase p holds 100 p + t; of 16 slices in 4 segments the middles are 2, 6, 10 and 14."""
    network = Tdn(TdnConfig(width=4, blocks=(1, 1, 1, 1), segments=4, pixels=8))
    values = 100 * torch.arange(4.0)[:, None] + torch.arange(16.0)
    study = values[None, :, :, None, None, None].expand(2, -1, -1, 3, 4, 4)
    frames = network.frames(study)
    assert [frame[:4, 0, 0, 0].tolist() for frame in frames] == [
        [0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15], [4, 8, 12, 15],
    ]  # fmt: skip
    assert frames[2][5, :, 3, 3].tolist() == [6, 106, 206, 306]
    assert frames[0].shape == (8, 4, 8, 8)


def test_tdn_without_its_temporal_parts_is_a_resnet_50_of_the_middle_frames() -> None:
    """Zero gain of both stems' differences, no L-TDM, no shift: the mean of a 2D ResNet's scores, built from layers."""
    torch.manual_seed(0)
    config = TdnConfig(width=4, blocks=(2, 1, 1, 1), segments=2, pixels=64, own=1.0, moving=0.0)
    network = cast(Tdn, unsettled(Tdn(config)))
    for module in network.modules():
        if isinstance(module, TemporalShift):
            module.conv.weight.data = torch.tensor([0.0, 1.0, 0.0])[None, None, :, None].expand_as(module.conv.weight)
        if isinstance(module, LongTermDifference):
            for name in ("weight", "bias"):
                nn.init.zeros_(module.restore[1].get_parameter(name))
            module.restore[1].get_buffer("running_mean").zero_()
    study = random(2, 4, 8, 3, 32, 32)
    with torch.no_grad():
        x = network.pool(network.stem(network.frames(study)[2]))
        for stage in network.stages:
            for block in cast(Sequence[Any], stage):
                x = torch.relu(block.after(block.before(x)) + block.skip(x))
        scores = network.head(x.mean(dim=(2, 3))).reshape(2, 2, 2).mean(dim=1)
        torch.testing.assert_close(network(study), scores, rtol=1e-4, atol=1e-5)


def test_tdn_fuses_the_differences_after_the_stem_and_after_stage_1() -> None:
    """0.75 of the frame's map and 0.25 of the differences' map, each of whose values stands for 2 x 2."""
    module, study = BASELINES["tdn"](TINY, 2)
    network, entering = cast(Tdn, module), {}
    for number in (0, 1):
        hook = functools.partial(lambda at, _, arguments: entering.update({at: arguments[0]}), number)
        network.stages[number].register_forward_pre_hook(hook)
    with torch.no_grad():
        network(study)
        frames = network.frames(study)
        moving = network.pool(network.moving_stem(torch.cat([frames[i + 1] - frames[i] for i in range(4)], dim=1)))
        own = network.pool(network.stem(frames[2]))
        torch.testing.assert_close(entering[0], 0.75 * own + 0.25 * doubled(moving), rtol=1e-4, atol=1e-5)
        own, moving = network.stages[0](entering[0]), network.moving_stage(moving)
        torch.testing.assert_close(entering[1], 0.75 * own + 0.25 * doubled(moving), rtol=1e-4, atol=1e-5)


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_tdn_sees_what_changes_between_slices() -> None:
    """A study that stands still: its differences are zero, so the moving branch says the same of any such study."""
    network, study = BASELINES["tdn"](TINY, 1)
    seen: list[Tensor] = []
    cast(Tdn, network).moving_stem.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        network(study[:, :, :1].expand(-1, -1, 8, -1, -1, -1))
        network(study)
    still, moving = seen
    assert not still.any()
    frames = cast(Tdn, network).frames(study)
    torch.testing.assert_close(moving[:, 4:8], frames[2] - frames[1])


@functools.cache
def exported(name: str) -> tuple[nn.Module, Tensor, bytes]:
    """A tiny baseline, three studies, and its ONNX: once per session, the exporter takes seconds whatever the size."""
    module, studies = BASELINES[name](TINY, 3)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (studies[:2],), dynamo=True, input_names=[INPUT], output_names=[OUTPUTS[0]],
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}}, opset_version=OPSET, verbose=False,
        )  # fmt: skip
    assert program is not None
    return module, studies, program.model_proto.SerializeToString()


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_exported_with_a_dynamic_batch_and_computes_the_same(name: str) -> None:
    module, studies, data = exported(name)
    graph = onnx.load_model_from_string(data).graph
    (source,), (target,) = graph.input, graph.output
    assert (source.name, target.name) == ("study", "logits")
    sizes = source.type.tensor_type.shape.dim
    assert [size.dim_value for size in sizes] == [0, 4, 8, 3, 32, 32]
    assert sizes[0].dim_param
    session = cpu_session(data)
    for batch in (1, 2, 3):
        with torch.no_grad():
            wanted = module(studies[:batch]).numpy()
        (found,) = session.run(["logits"], {"study": studies[:batch].numpy()})
        assert found.shape == (batch, 2)
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.rtx
@pytest.mark.parametrize("name", BASELINES)
def test_nvidias_parser_and_builder_take_a_baseline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavour, "probe", lambda: Probe(None, "no CUDA device (no NVIDIA driver)"))
    options = BuildOptions(batch=(1, 2, 4), compute_capabilities=("8.9",))
    built = build_engine(EngineSource(exported(name)[2], "fp32"), "tensorrt-rtx", options)
    assert len(built.plan) > 10_000
    profile = built.meta["profile"]["study"]
    assert (profile["min"], profile["max"]) == ([1, 4, 8, 3, 32, 32], [4, 4, 8, 3, 32, 32])
