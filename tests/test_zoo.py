"""The eight 64 x 64 pairs: their layers against plain torch functions, and the experiment `architectures`."""

import math
import re
import shlex

import pytest
import test_compiled
import torch
import torch.nn.functional as F
from helpers import ROOT, require_released_weights, require_uniform, train_run
from test_compiled import _fresh  # noqa: F401 - a fixture
from torch import nn

from wgangp import check_per_sample
from wgangp.networks import layers
from wgangp.networks.zoo import (
    ConstantFiltersGenerator,
    DCGANCritic,
    DCGANGenerator,
    GatedCritic,
    GatedGenerator,
    ImageMLPGenerator,
)
from wgangp.networks.zoo_resnet import GoodCritic, GoodGenerator, ResNet101Critic, ResNet101Generator

SHAPE = (3, 64, 64)
PAIRS = ("good", "dcgan", "constant_filters", "mlp", "no_norm", "gated", "tanh", "resnet101")
CRITICS = (DCGANCritic, GatedCritic, GoodCritic, ResNet101Critic)
GENERATORS = (
    *(DCGANGenerator, ConstantFiltersGenerator, ImageMLPGenerator),
    *(GatedGenerator, GoodGenerator, ResNet101Generator),
)
HEADER = (ROOT / "conf" / "experiment" / "architectures.yaml").read_text().split("defaults:")[0]
OVERRIDES = re.findall(r"^# (\w+): (\w+=.*)$", HEADER, re.MULTILINE)
LOSSES = {"wgan-gp": [], **{name: shlex.split(overrides) for name, overrides in OVERRIDES}}
SMALL = (
    *("networks.generator.width=4", "networks.critic.width=4", "train.batch_size=4", "train.report_size=4"),
    *("train.steps=2", "device=cpu"),
)


def count(module):
    return sum(p.numel() for p in module.parameters())


def randomize(network):
    """The network in float64, with random weights, biases and norms."""
    for p in network.double().parameters():
        nn.init.normal_(p, std=0.3)
    return network


def find(network, *kinds):
    return [module for module in network.modules() if isinstance(module, kinds)]


def find_norms(network, number):
    norms = find(network, layers.BatchNorm, nn.GroupNorm) or [None] * number
    assert len(norms) == number
    return norms


# ---- plain functions


def linear(x, layer):
    return x @ layer.weight.T + layer.bias


def conv(x, layer, stride=1):
    """TensorFlow's SAME padding for images of even sizes, written out: (before, after)."""
    before, after = {(1, 1): (0, 0), (1, 2): (0, 0), (3, 1): (1, 1), (3, 2): (0, 1), (5, 1): (2, 2), (5, 2): (1, 2)}[
        layer.weight.shape[-1], stride
    ]
    return F.conv2d(F.pad(x, (before, after, before, after)), layer.weight, layer.bias, stride)


def deconv(x, layer):
    """The whole transposed convolution, of which SAME keeps 2H rows and columns after the first (k - 2) // 2."""
    height, width = x.shape[-2:]
    first = (layer.weight.shape[-1] - 2) // 2
    x = F.conv_transpose2d(x, layer.weight, layer.bias, stride=2)
    return x[..., first : first + 2 * height, first : first + 2 * width]


def norm(x, layer):
    """Batch norm, layer norm, or nothing for None."""
    if layer is None:
        return x
    axes = (0, 2, 3) if isinstance(layer, layers.BatchNorm) else (1, 2, 3)
    x = (x - x.mean(axes, keepdim=True)) / (x.var(axes, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return x * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)


def gate(x):
    a, b = x.unflatten(1, (-1, 2)).unbind(2)
    return torch.sigmoid(a) * torch.tanh(b)


def leaky_relu(x):
    return torch.maximum(x, 0.2 * x)


def upsample(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def pool(x):
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def dcgan_generator(network, z, activate):
    x = linear(z, find(network, nn.Linear)[0]).view(len(z), -1, 4, 4)
    for layer, normalization in zip(find(network, layers.ConvTranspose2d), find_norms(network, 4), strict=True):
        x = deconv(activate(norm(x, normalization)), layer)
    return x.tanh()


def dcgan_critic(network, x, activate):
    norms = [None, *find_norms(network, 3)]
    for layer, normalization in zip(find(network, layers.Conv2d), norms, strict=True):
        x = activate(norm(conv(x, layer, stride=2), normalization))
    return linear(x.flatten(1), find(network, nn.Linear)[0])[:, 0]


def mlp_generator(network, z):
    *hidden, last = find(network, nn.Linear)
    for layer in hidden:
        z = linear(z, layer).relu()
    assert len(hidden) == 4
    return linear(z, last).tanh().view(-1, *SHAPE)


def good_generator(network, z):
    x = linear(z, network.input).view(len(z), -1, 4, 4)
    for block in network.blocks:
        (norm1, norm2), (conv1, conv2) = find_norms(block, 2), find(block.main, nn.Conv2d)
        main = conv(upsample(norm(x, norm1).relu()), conv1)
        x = conv(upsample(x), block.shortcut) + conv(norm(main, norm2).relu(), conv2)
        assert conv1.bias is None and conv2.bias is not None
    return conv(norm(x, network.output[0]).relu(), network.output[2]).tanh()


def good_critic(network, x):
    x = conv(x, network.input)
    for block in network.blocks:
        (norm1, norm2), (conv1, conv2) = find_norms(block, 2), find(block.main, nn.Conv2d)
        main = conv(norm(x, norm1).relu(), conv1)
        x = conv(pool(x), block.shortcut) + pool(conv(norm(main, norm2).relu(), conv2))
        assert conv1.bias is None and conv2.bias is not None
    return linear(x.flatten(1), network.output[1])[:, 0]


def bottleneck(block, x, resample):
    convs, (normalization,) = find(block.main, nn.Conv2d, nn.ConvTranspose2d), find_norms(block, 1)
    main = conv(x.relu(), convs[0]).relu()
    main = deconv(main, convs[1]) if resample == "up" else conv(main, convs[1], stride=2 if resample == "down" else 1)
    main = norm(conv(main.relu(), convs[2]), normalization)
    if resample == "up":
        squares = conv(x, block.shortcut).unflatten(1, (-1, 2, 2))  # (B, C, row, column, H, W)
        x = squares.permute(0, 1, 4, 2, 5, 3).flatten(2, 3).flatten(3, 4)
    elif resample == "down":
        x = conv(x, block.shortcut, stride=2)
    assert [layer.bias is None for layer in convs] == [False, False, True]
    return x + 0.3 * main


def resnet101_generator(network, z):
    x = linear(z, network.input).view(len(z), -1, 4, 4)
    ups = (6, 13, 20, 27)
    for i, block in enumerate(network.blocks):
        x = bottleneck(block, x, "up" if i in ups else None)
    assert i == 32
    return (conv(x, network.output) / 5).tanh()


def resnet101_critic(network, x):
    x = conv(x, network.input)
    downs = (5, 12, 19, 26)
    for i, block in enumerate(network.blocks):
        x = bottleneck(block, x, "down" if i in downs else None)
    assert i == 32
    return linear(x.flatten(1), network.output[1])[:, 0] / 5


# ---- networks


@pytest.mark.parametrize(
    "network, parameters",
    [
        (lambda: GoodGenerator(SHAPE), 8_540_483),
        (lambda: GoodCritic(SHAPE), 7_491_841),
        (lambda: DCGANGenerator(SHAPE), 5_364_739),
        (lambda: DCGANGenerator(SHAPE, norm=False), 5_362_819),
        (lambda: DCGANCritic(SHAPE), 4_316_545),
        (lambda: DCGANCritic(SHAPE, norm="batch"), 4_316_545),
        (lambda: DCGANCritic(SHAPE, norm="none"), 4_314_753),
        (lambda: ConstantFiltersGenerator(SHAPE), 444_291),
        (lambda: ImageMLPGenerator(SHAPE), 7_157_760),
        (lambda: GatedGenerator(SHAPE), 10_724_675),
        (lambda: GatedCritic(SHAPE), 8_624_897),
        (lambda: ResNet101Generator(SHAPE), 9_189_587),
        (lambda: ResNet101Critic(SHAPE), 7_618_801),
    ],
)
def test_parameter_counts_are_those_of_the_released_code(network, parameters):
    with torch.device("meta"):
        assert count(network()) == parameters


@pytest.mark.parametrize(
    "make, reference",
    [
        (DCGANGenerator, lambda g, z: dcgan_generator(g, z, torch.relu)),
        (lambda *a, **k: DCGANGenerator(*a, norm=False, **k), lambda g, z: dcgan_generator(g, z, torch.relu)),
        (lambda *a, **k: DCGANGenerator(*a, activation="tanh", **k), lambda g, z: dcgan_generator(g, z, torch.tanh)),
        (ConstantFiltersGenerator, lambda g, z: dcgan_generator(g, z, torch.relu)),
        (ImageMLPGenerator, mlp_generator),
        (GatedGenerator, lambda g, z: dcgan_generator(g, z, gate)),
        (GoodGenerator, good_generator),
        (ResNet101Generator, resnet101_generator),
    ],
    ids=["dcgan", "no_norm", "tanh", "constant_filters", "mlp", "gated", "good", "resnet101"],
)
def test_generators_equal_the_released_operations(make, reference):
    generator, z = randomize(make(SHAPE, width=4)), torch.randn(2, 128).double()
    images = generator(z)
    assert images.shape == (2, *SHAPE) and images.abs().max() <= 1
    torch.testing.assert_close(images, reference(generator, z), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", ["layer", "batch", "none"])
@pytest.mark.parametrize(
    "make, reference",
    [
        (DCGANCritic, lambda c, x: dcgan_critic(c, x, leaky_relu)),
        (lambda *a, **k: DCGANCritic(*a, activation="tanh", **k), lambda c, x: dcgan_critic(c, x, torch.tanh)),
        (GatedCritic, lambda c, x: dcgan_critic(c, x, gate)),
        (GoodCritic, good_critic),
        (ResNet101Critic, resnet101_critic),
    ],
    ids=["dcgan", "tanh", "gated", "good", "resnet101"],
)
def test_critics_equal_the_released_operations(make, reference, kind):
    critic, x = randomize(make(SHAPE, width=4, norm=kind)), torch.randn(2, *SHAPE).double()
    scores = critic(x)
    assert scores.shape == (2,)
    torch.testing.assert_close(scores, reference(critic, x), atol=1e-9, rtol=1e-9)
    kinds = {"layer": layers.LayerNorm, "batch": layers.BatchNorm}
    assert all(type(module) is kinds[kind] for module in find(critic, layers.BatchNorm, nn.GroupNorm))


@pytest.mark.parametrize("make", [*CRITICS[:-1], pytest.param(CRITICS[-1], marks=pytest.mark.slow)])
def test_penalized_critics_score_every_sample_by_itself(make):
    x = torch.randn(2, *SHAPE).double()
    check_per_sample(make(SHAPE, width=4).double(), x)
    with pytest.raises(ValueError, match="mixes the samples"):
        check_per_sample(make(SHAPE, width=4, norm="batch").double(), x)


@pytest.mark.parametrize(
    "make, glorot",
    [
        (ConstantFiltersGenerator, r"input\.0"),
        (GatedGenerator, "input"),
        (GatedCritic, r"layers\.12"),
        (GoodGenerator, r"input|.*shortcut"),
        (GoodCritic, r"input|.*shortcut|output\.1"),
        (ResNet101Generator, r"input|.*shortcut|output"),
        (ResNet101Critic, r"input|.*shortcut|output\.1"),
    ],
)
def test_initial_weights_are_those_of_the_released_code(make, glorot):
    require_released_weights(make(SHAPE, width=16), glorot)


@pytest.mark.parametrize("make", [DCGANGenerator, DCGANCritic])
def test_initial_weights_of_dcgan_have_one_standard_deviation_in_every_layer(make):
    network = make(SHAPE, width=16)
    found = find(network, nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    assert len(found) == 5
    for layer in found:
        require_uniform(str(layer), layer, 0.02)


def test_initial_weights_of_the_mlp_are_he_but_for_the_last():
    *hidden, last = find(ImageMLPGenerator(SHAPE, width=8), nn.Linear)
    for layer in hidden:
        require_uniform(str(layer), layer, math.sqrt(2 / layer.in_features))
    require_uniform("last", last, math.sqrt(2 / (64 + 12_288)))


@pytest.mark.parametrize("make", [*CRITICS, *GENERATORS])
def test_images_of_another_size_are_refused(make):
    with pytest.raises(ValueError, match=r"\(3, 64, 64\), got \(3, 32, 32\): choose data= and networks= that belong"):
        make((3, 32, 32))
    with pytest.raises(ValueError, match="width = 0"):
        make(SHAPE, width=0)
    if make in CRITICS:
        with pytest.raises(ValueError, match=r"got \(3, 128, 128\)"):
            make(SHAPE, width=4)(torch.randn(1, 3, 128, 128))
        with pytest.raises(ValueError, match="norm = instance: must be one of batch, layer, none"):
            make(SHAPE, width=4, norm="instance")


def test_unknown_activations_and_widths_are_refused():
    with pytest.raises(ValueError, match="activation = elu: must be relu or tanh"):
        DCGANGenerator(SHAPE, width=4, activation="elu")
    with pytest.raises(ValueError, match="activation = relu: must be leaky_relu or tanh"):
        DCGANCritic(SHAPE, width=4, activation="relu")
    for make in (ResNet101Generator, ResNet101Critic):
        with pytest.raises(ValueError, match="width = 6: must be a multiple of 4"):
            make(SHAPE, width=6)


# ---- layers


def test_gate_multiplies_the_sigmoid_of_even_channels_with_the_tanh_of_odd_ones():
    x = torch.randn(2, 6, 3, 3)
    out = layers.Gate()(x)
    assert out.shape == (2, 3, 3, 3)
    for c in range(3):
        torch.testing.assert_close(out[:, c], torch.sigmoid(x[:, 2 * c]) * torch.tanh(x[:, 2 * c + 1]))


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_upsampling_convolution_equals_its_two_steps(kernel):
    layer, x = randomize(layers.UpsampleConv(2, 3, kernel)), torch.randn(2, 2, 5, 4).double()
    torch.testing.assert_close(layer(x), conv(upsample(x), layer), atol=1e-12, rtol=1e-12)
    assert layers.UpsampleConv(2, 3, bias=False).bias is None


def test_subpixel_convolution_puts_four_channels_into_a_square():
    layer, x = randomize(layers.SubpixelConv(2, 3, kernel=1)), torch.randn(2, 2, 4, 5).double()
    out, channels = layer(x), conv(x, layer)
    assert channels.shape == (2, 12, 4, 5) and out.shape == (2, 3, 8, 10)
    for c in range(3):
        for row in range(2):
            for column in range(2):
                torch.testing.assert_close(out[:, c, row::2, column::2], channels[:, 4 * c + 2 * row + column])


@pytest.mark.parametrize("kernel", [3, 5])
def test_transposed_convolution_is_the_adjoint_of_the_same_convolution(kernel):
    down, up = layers.Conv2d(2, 3, kernel, stride=2).double(), layers.ConvTranspose2d(3, 2, kernel=kernel).double()
    with torch.no_grad():
        up.weight.copy_(down.weight)
    x, y = torch.randn(1, 2, 8, 8).double(), torch.randn(1, 3, 4, 4).double()
    torch.testing.assert_close((conv(x, down, 2) * y).sum() - (y * down.bias.view(3, 1, 1)).sum(), (x * up(y)).sum())


# ---- the experiment


def compose_cell(configure, pair, loss, *overrides):
    """The config of a cell of figure 2, with the overrides of the header of the experiment."""
    kept = [o for o in LOSSES[loss] if pair != "no_norm" or not o.startswith("networks.critic.norm")]
    return configure("experiment=architectures", f"networks=zoo/{pair}", *kept, *overrides)


@pytest.mark.parametrize("loss", ["wgan-gp", "clip", "dcgan", "lsgan"])
@pytest.mark.parametrize("pair", PAIRS)
def test_every_cell_of_figure_2_has_its_settings(configure, pair, loss):
    cfg = compose_cell(configure, pair, loss)
    assert LOSSES.keys() == {"wgan-gp", "clip", "dcgan", "lsgan"}
    penalized = {"weight": 10.0, "norm": "layer"} if loss == "wgan-gp" else {"weight": 0.0, "norm": "batch"}
    assert cfg.penalty.weight == penalized["weight"] and cfg.clip.weights == (0.01 if loss == "clip" else None)
    assert cfg.networks.critic.norm == ("none" if pair == "no_norm" else penalized["norm"])
    assert cfg.train.critic_steps == (5 if loss in ("wgan-gp", "clip") else 1)
    assert (cfg.train.steps, cfg.train.batch_size, cfg.train.decay_steps) == (200_000, 64, None)
    assert cfg.networks.generator.width == cfg.networks.critic.width == 64 and cfg.data.size == 64
    rates = {"wgan-gp": 1e-4, "clip": 5e-5, "dcgan": 2e-4, "lsgan": 1e-4}
    betas = {"wgan-gp": [0.0, 0.9], "dcgan": [0.5, 0.999]}
    assert cfg.optim.lr == rates[loss] and cfg.optim.get("betas") == betas.get(loss)
    assert cfg.optim._target_ == ("torch.optim.Adam" if loss in betas else "wgangp.optim.RMSProp")
    losses = {"dcgan": "NonSaturating", "lsgan": "LeastSquares"}
    assert cfg.loss._target_ == f"wgangp.losses.{losses.get(loss, 'Wasserstein')}"


@pytest.mark.parametrize(
    "pair, loss",
    [
        pytest.param(pair, loss, marks=() if pair == "dcgan" else pytest.mark.slow)
        for pair in PAIRS
        for loss in (("wgan-gp", "clip", "dcgan", "lsgan") if pair == "dcgan" else ("wgan-gp",))
    ],
)
def test_every_row_and_column_of_figure_2_trains(
    configure, small_pictures, tmp_path, quick_pictures, quick_reports, pair, loss
):
    train_run(compose_cell(configure, pair, loss, *SMALL, f"data.root={small_pictures}"), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") >= 2


COMPILED = {
    "good": (GoodGenerator, GoodCritic, SHAPE),
    "gated": (GatedGenerator, GatedCritic, SHAPE),
    "tanh": (
        lambda *a, **k: DCGANGenerator(*a, activation="tanh", **k),
        lambda *a, **k: DCGANCritic(*a, activation="tanh", **k),
        SHAPE,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("pair", COMPILED)
def test_compiled_gradients_are_the_eager_ones(pair, quick_compile, monkeypatch):
    monkeypatch.setitem(test_compiled.PAIRS, pair, COMPILED[pair])
    test_compiled.require_compiled_is_eager(pair, "two")
