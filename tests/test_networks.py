import importlib
import inspect
import math
import pkgutil
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import require_released_weights
from torch import nn

from wgangp import check_per_sample, networks
from wgangp.networks import layers, zoo, zoo_resnet
from wgangp.networks.dcgan import CIFARCritic, CIFARGenerator, MNISTCritic, MNISTGenerator
from wgangp.networks.deep_dcgan import DeepCritic
from wgangp.networks.language import LanguageCritic, LanguageGenerator
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.networks.resnet import ResNetCritic, ResNetGenerator
from wgangp.networks.stacked import StackedCritic

IMAGE, STACKED, COLOR = (1, 28, 28), (3, 28, 28), (3, 32, 32)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "network, parameters",
    [
        (lambda: MLPGenerator((2,)), 527_874),
        (lambda: MLPCritic((2,)), 527_361),
        (lambda: MNISTGenerator(IMAGE), 1_554_177),
        (lambda: MNISTGenerator(IMAGE, norm=True), 1_562_753),
        (lambda: MNISTCritic(IMAGE), 1_030_145),
        (lambda: MNISTCritic(IMAGE, norm=True), 1_030_913),
        (lambda: CIFARGenerator(COLOR), 5_179_907),
        (lambda: CIFARCritic(COLOR), 4_114_689),
        (lambda: CIFARCritic(COLOR, norm=True), 4_116_225),
        (lambda: ResNetGenerator(COLOR), 1_204_483),
        (lambda: ResNetCritic(COLOR), 1_053_825),
        (lambda: ResNetGenerator(COLOR, classes=10), 1_218_307),
        (lambda: ResNetCritic(COLOR, classes=10), 1_055_115),
    ],
)
def test_parameter_counts_are_those_of_the_released_code(network, parameters):
    assert count(network()) == parameters


def test_variants_of_the_paper_have_as_many_parameters_but_for_the_three_channels_of_the_first_block():
    assert count(ResNetGenerator(COLOR, upsample_second=True)) == 1_204_483
    assert count(ResNetCritic(COLOR, plain_first=True)) == 1_053_825 - 128 * (128 * 9 + 1) + 3 * (3 * 9 + 1)


@pytest.mark.parametrize("width", [4, 64])
def test_three_digits_are_the_channels_of_the_first_and_last_convolution_alone(width):
    """25 weights per filter and channel, and a bias per channel of the generator, are what three channels add."""
    for norm in (False, True):
        counts = [
            [count(network(shape, width=width, norm=norm)) for network in (MNISTGenerator, MNISTCritic)]
            for shape in (IMAGE, STACKED)
        ]
        assert counts[1][0] - counts[0][0] == 2 * 25 * width + 2
        assert counts[1][1] - counts[0][1] == 2 * 25 * width
    shapes = [{name: p.shape for name, p in MNISTCritic(shape).named_parameters()} for shape in (IMAGE, STACKED)]
    assert [name for name in shapes[0] if shapes[0][name] != shapes[1][name]] == ["layers.0.weight"]


@pytest.mark.parametrize("norm", [False, True])
def test_outputs_have_the_documented_shapes_and_ranges(norm):
    for shape in (IMAGE, STACKED):
        generator, critic = MNISTGenerator(shape, width=4, norm=norm), MNISTCritic(shape, width=4, norm=norm)
        image = generator(torch.randn(3, generator.latent_dim))
        assert image.shape == (3, *shape)
        assert image.min() >= 0
        assert image.max() <= 1
        assert critic(image).shape == (3,)
    for generator, critic in (
        (CIFARGenerator(COLOR, width=4, norm=norm), CIFARCritic(COLOR, width=4, norm=norm)),
        (ResNetGenerator(COLOR, width=4), ResNetCritic(COLOR, width=4)),
    ):
        image = generator(torch.randn(3, generator.latent_dim))
        assert image.shape == (3, *COLOR) and -1 <= image.min() < 0 < image.max() <= 1
        assert critic(image).shape == (3,)
    points = MLPGenerator((2,), latent_dim=5, width=8, depth=1)
    assert points(torch.randn(3, 5)).shape == (3, 2)
    assert MLPCritic((2,), width=8, depth=1)(torch.randn(3, 2)).shape == (3,)


@pytest.mark.parametrize(
    "make, width, shape",
    [
        (MLPCritic, 32, (2,)),
        (MNISTCritic, 4, IMAGE),
        (MNISTCritic, 4, STACKED),
        (CIFARCritic, 4, COLOR),
        (ResNetCritic, 4, COLOR),
        (partial(ResNetCritic, plain_first=True), 4, COLOR),
    ],
)
def test_score_of_a_sample_does_not_depend_on_other_samples(make, width, shape):
    critic, x = make(shape, width=width).double(), torch.randn(4, *shape).double()
    jacobian = torch.autograd.functional.jacobian(critic, x).flatten(2)  # (4, 4, P)
    own = torch.eye(4, dtype=torch.bool)
    assert jacobian[~own].eq(0).all() and jacobian[own].abs().amax(1).gt(0).all()


def reference_critic(critic, x, plain_first=False):
    """The ResNet critic with the operations of the released code, one by one: convolution first, pooling second."""

    def conv(layer, x):
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)

    first, *down, third, fourth = critic.blocks
    if plain_first:
        down = first, *down
    else:
        main = F.avg_pool2d(conv(first.main[2], conv(first.main[0], x).relu()), 2)
        x = main + conv(first.shortcut, F.avg_pool2d(x, 2))
    for block in down:
        main = F.avg_pool2d(conv(block.main[3], conv(block.main[1], x.relu()).relu()), 2)
        x = main + F.avg_pool2d(conv(block.shortcut, x), 2)
    for block in (third, fourth):
        x = x + conv(block.main[3], conv(block.main[1], x.relu()).relu())
    return critic.output(x.relu().mean(dim=(2, 3))).squeeze(1)


def reference_generator(generator, z, upsample_second=False):
    """The ResNet generator with the operations of the released code: a block upsamples, then it convolves."""

    def norm(layer, x):
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-5).sqrt() * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)

    def conv(layer, x):
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)

    def upsample(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    x = generator.input(z).view(len(z), -1, 4, 4)
    for block in generator.blocks:
        first, second = (lambda x: x, upsample) if upsample_second else (upsample, lambda x: x)
        main = conv(block.main[2], first(norm(block.main[0], x).relu()))
        x = conv(block.shortcut, upsample(x)) + conv(block.main[5], second(norm(block.main[3], main).relu()))
    return conv(generator.output[2], norm(generator.output[0], x).relu()).tanh()


@pytest.mark.parametrize("paper", [False, True])
def test_resnet_pair_equals_the_operations_of_the_released_code_or_of_the_paper(paper):
    generator = ResNetGenerator(COLOR, width=6, upsample_second=paper).double()
    critic = ResNetCritic(COLOR, width=6, plain_first=paper).double()
    for p in (*generator.parameters(), *critic.parameters()):
        nn.init.normal_(p, std=0.3)  # also biases and norms
    z, x = torch.randn(3, 128).double(), torch.randn(3, *COLOR).double()
    torch.testing.assert_close(generator(z), reference_generator(generator, z, paper), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(critic(x), reference_critic(critic, x, paper), atol=1e-12, rtol=1e-12)
    ours = torch.autograd.grad(critic(x).square().sum(), list(critic.parameters()))
    reference = torch.autograd.grad(reference_critic(critic, x, paper).square().sum(), list(critic.parameters()))
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("paper", [False, True])
def test_conditional_resnet_generator_equals_the_operations_class_by_class(paper):
    """With the scales and offsets of one class in plain batch norms it is the unconditional generator."""
    conditional, plain = (ResNetGenerator(COLOR, width=6, classes=n, upsample_second=paper).double() for n in (3, 0))
    for p in conditional.parameters():
        nn.init.normal_(p, std=0.3)
    z, y = torch.randn(4, 128).double(), torch.tensor([2, 2, 2, 2])
    tables = {f"blocks.{b}.main.{i}.{name}" for b in range(3) for i in (0, 3) for name in ("weight", "bias")}
    state = {name: value[2] if name in tables else value for name, value in conditional.state_dict().items()}
    plain.load_state_dict(state)
    torch.testing.assert_close(conditional(z, y), reference_generator(plain, z, paper), atol=1e-12, rtol=1e-12)
    assert not torch.equal(conditional(z, y), conditional(z, y - 1))


def test_scores_and_logits_come_from_the_same_features_and_not_from_the_labels():
    critic = ResNetCritic(COLOR, width=4, classes=3)
    x, y = torch.randn(5, *COLOR), torch.tensor([0, 1, 2, 0, 1])
    scores, logits = critic(x, y, logits=True)
    features = critic.blocks(x).relu().mean((2, 3))
    torch.testing.assert_close(logits, critic.classifier(features))
    assert torch.equal(scores, critic(x, y)) and torch.equal(scores, critic(x, (y + 1) % 3))


def test_labels_without_classes_and_classes_without_labels_raise():
    x, z, y = torch.randn(2, *COLOR), torch.randn(2, 128), torch.tensor([0, 1])
    for network, points, classes, given in (
        (ResNetGenerator, z, 0, (y,)),
        (ResNetGenerator, z, 3, ()),
        (ResNetCritic, x, 0, (y,)),
    ):
        with pytest.raises(ValueError, match=rf"has {classes} classes, got {len(given)} tensors of labels"):
            network(COLOR, width=4, classes=classes)(points, *given)
    critic = ResNetCritic(COLOR, width=4, classes=3)
    assert torch.equal(critic(x), critic(x, y)) and not critic.score_takes_labels
    with pytest.raises(ValueError, match=r"no classifier: loss=acgan needs networks\.critic\.classes"):
        ResNetCritic(COLOR, width=4)(x, logits=True)
    for classes in (-1, 1):
        with pytest.raises(ValueError, match=f"classes = {classes}: must be 0"):
            ResNetGenerator(COLOR, width=4, classes=classes)


@pytest.mark.parametrize("shape", [(6, 4, 3, 2), (6, 4)])
def test_conditional_batch_norm_has_the_statistics_of_the_batch_and_a_scale_per_class(shape):
    norm, x, y = layers.ConditionalBatchNorm(4, 3).double(), torch.randn(shape).double() * 3 + 1, torch.arange(6) % 3
    assert norm.weight.eq(1).all() and norm.bias.eq(0).all() and norm.weight.shape == norm.bias.shape == (3, 4)
    for p in norm.parameters():
        nn.init.normal_(p)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    mean, var = x.mean(axes, keepdim=True), x.var(axes, keepdim=True, unbiased=False)
    for i in range(6):
        scale, offset = (p[y[i]].view(-1, *[1] * (x.ndim - 2)) for p in (norm.weight, norm.bias))
        expected = ((x - mean) / (var + 1e-5).sqrt())[i] * scale + offset
        torch.testing.assert_close(norm(x, y)[i], expected)


def test_layer_norm_has_one_scale_per_channel():
    norm, x = layers.LayerNorm(4).double(), torch.randn(3, 4, 5, 6).double() * 3 + 1
    for p in norm.parameters():
        nn.init.normal_(p)
        assert p.shape == (4,)
    mean, var = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), keepdim=True, unbiased=False)
    expected = (x - mean) / (var + 1e-5).sqrt() * norm.weight.view(1, 4, 1, 1) + norm.bias.view(1, 4, 1, 1)
    torch.testing.assert_close(norm(x), expected)


def test_sequence_convolution_equals_a_direct_sum():
    layer, x = layers.Conv1d(2, 3, 5).double(), torch.randn(2, 2, 7).double()
    nn.init.normal_(layer.bias)
    expected = layer.bias.view(1, 3, 1).expand(2, 3, 7).clone()
    for i in range(7):
        for k in range(5):
            if 0 <= i + k - 2 < 7:
                expected[:, :, i] += x[:, :, i + k - 2] @ layer.weight[:, :, k].T
    torch.testing.assert_close(layer(x), expected)


def test_activation_of_a_residual_block_does_not_change_its_skip_connection():
    critic = ResNetCritic(COLOR, width=4)
    x, block = torch.randn(2, 4, 8, 8), critic.blocks[2]
    for p in block.parameters():
        nn.init.zeros_(p)
    before = x.clone()
    assert torch.equal(block(x), before) and torch.equal(x, before)


@pytest.mark.parametrize(
    "build, shape",
    [
        (MNISTCritic, IMAGE),
        (CIFARCritic, COLOR),
        (StackedCritic, STACKED),
        (DeepCritic, COLOR),
        (zoo.DCGANCritic, (3, 64, 64)),
    ],
)
def test_slope_of_leaky_relu_is_one_fifth(build, shape):
    critic = build(shape, width=4)
    assert {m.negative_slope for m in critic.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}


@pytest.mark.parametrize("size, stride, kernel", [(28, 2, 5), (14, 2, 5), (7, 2, 5), (32, 2, 5), (8, 2, 3), (7, 1, 3)])
def test_convolution_pads_as_tensorflow_does(size, stride, kernel):
    """out[i] = sum_k w[k] x[i stride + k - before] with before = total // 2, for ceil(n / stride) outputs."""
    layer = layers.Conv2d(2, 3, kernel, stride).double()
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 2, size, size).double()
    out = math.ceil(size / stride)
    before = max((out - 1) * stride + kernel - size, 0) // 2
    expected = layer.bias.view(1, 3, 1, 1).expand(2, 3, out, out).clone()
    for i in range(out):
        for j in range(out):
            for a in range(kernel):
                for b in range(kernel):
                    row, column = i * stride + a - before, j * stride + b - before
                    if 0 <= row < size and 0 <= column < size:
                        expected[:, :, i, j] += x[:, :, row, column] @ layer.weight[:, :, a, b].T
    torch.testing.assert_close(layer(x), expected)


def test_padding_of_an_even_image_is_one_before_and_two_after():
    """With a symmetric padding of 2, an impulse in the corner would be multiplied with another weight."""
    layer = layers.Conv2d(1, 1, 5, 2)
    x = torch.zeros(1, 1, 28, 28)
    x[0, 0, 0, 0] = 1
    torch.testing.assert_close(layer(x)[0, 0, 0, 0], layer.weight[0, 0, 1, 1])


@pytest.mark.parametrize("size", [4, 7])
def test_transposed_convolution_equals_a_direct_sum_on_a_grid_of_twice_the_size(size):
    """out[2 i + k - 1] += w[k] x[i] for k = 0 ... 4; terms outside of 0 ... 2H - 1 are left out."""
    layer = layers.ConvTranspose2d(2, 3).double()
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 2, size, size).double()
    expected = layer.bias.view(1, 3, 1, 1).expand(2, 3, 2 * size, 2 * size).clone()
    for i in range(size):
        for j in range(size):
            for a in range(5):
                for b in range(5):
                    row, column = 2 * i + a - 1, 2 * j + b - 1
                    if 0 <= row < 2 * size and 0 <= column < 2 * size:
                        expected[:, :, row, column] += x[:, :, i, j] @ layer.weight[:, :, a, b]
    torch.testing.assert_close(layer(x), expected)


def test_transposed_convolution_is_the_adjoint_of_the_convolution():
    down, up = layers.Conv2d(2, 3, 5, 2).double(), layers.ConvTranspose2d(3, 2).double()
    with torch.no_grad():
        up.weight.copy_(down.weight)  # (3, 2, 5, 5) is both (out, in, ..) and (in, out, ..)
    x, y = torch.randn(1, 2, 14, 14).double(), torch.randn(1, 3, 7, 7).double()
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y)).sum())


@pytest.mark.parametrize(
    "layer, std",
    [
        (lambda: layers.linear(128, 512), math.sqrt(2 / 640)),
        (lambda: layers.linear(128, 512, "he"), math.sqrt(2 / 128)),
        (lambda: layers.Conv2d(32, 64, 5, 2), math.sqrt(4 / (32 * 25 + 64 * 25 / 4))),
        (lambda: layers.Conv2d(32, 64, 3, gain=1.0), math.sqrt(2 / (32 * 9 + 64 * 9))),
        (lambda: layers.ConvTranspose2d(64, 32), math.sqrt(4 / (64 * 25 / 4 + 32 * 25))),
        (lambda: layers.Conv1d(64, 32, 5), math.sqrt(4 / (64 * 5 + 32 * 5))),
    ],
)
def test_initial_weights_are_uniform_with_the_released_std_and_biases_are_zero(layer, std):
    layer = layer()
    weight = layer.weight.detach().flatten()
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert weight.abs().max().item() == pytest.approx(math.sqrt(3) * std, rel=0.01)
    assert weight.abs().max() <= math.sqrt(3) * std
    assert layer.bias.eq(0).all()


@pytest.mark.parametrize(
    "network, glorot",
    [
        (lambda: MNISTGenerator(IMAGE, width=16), r"input\.0"),
        (lambda: MNISTCritic(IMAGE, width=16), r"layers\.7"),
        (lambda: CIFARGenerator(COLOR, width=16), r"input\.0"),
        (lambda: CIFARCritic(COLOR, width=16), r"layers\.7"),
        (lambda: ResNetGenerator(COLOR, width=32, classes=10), r"input|.*shortcut|output\.2"),
        (lambda: ResNetCritic(COLOR, width=32, classes=10), r".*shortcut|output|classifier"),
        (lambda: LanguageGenerator((20, 16), width=32), "input"),
        (lambda: LanguageCritic((20, 16), width=32), r"output\.1"),
    ],
)
def test_networks_have_the_released_initial_weights(network, glorot):
    """Paper: released tflib: linear layers, shortcuts and the last convolution of a ResNet generator have gain 1."""
    require_released_weights(network(), glorot)


def test_toy_critic_has_the_released_initial_weights():
    critic = MLPCritic((2,), width=512)
    linears = [m for m in critic.layers if isinstance(m, nn.Linear)]
    for layer, std in zip(linears, (math.sqrt(2 / 2), *[math.sqrt(2 / 512)] * 2, math.sqrt(2 / 513)), strict=True):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)


def test_batch_norm_always_uses_the_statistics_of_the_batch():
    norm = layers.BatchNorm(3)
    x = torch.randn(16, 3, 4, 4) * 5 + 2
    for mode in (norm.train(), norm.eval()):
        torch.testing.assert_close(mode(x), F.batch_norm(x, None, None, training=True, eps=1e-5))
    assert not list(norm.buffers())


def test_points_of_another_shape_raise():
    with pytest.raises(ValueError, match=r"\(1, 28, 28\), got \(1, 32, 32\)"):
        MNISTCritic((1, 32, 32))
    for network in (MNISTCritic, MNISTGenerator):
        with pytest.raises(ValueError, match=r"\(3, 28, 28\), got \(3, 32, 32\)"):
            network((3, 32, 32))
    with pytest.raises(ValueError, match="belong together"):
        MNISTGenerator((2,))
    with pytest.raises(ValueError, match=r"got \(1, 32, 32\)"):
        MNISTCritic(IMAGE, width=2)(torch.rand(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"\(3, 28, 28\), got \(1, 28, 28\)"):
        MNISTCritic(STACKED, width=2)(torch.rand(2, *IMAGE))
    with pytest.raises(ValueError, match="R\\^d"):
        MLPCritic(IMAGE)
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        MLPCritic((2,))(torch.rand(4, 3))
    with pytest.raises(ValueError, match="width = 0"):
        MLPGenerator((2,), width=0)


def test_mnist_generator_crops_the_last_row_and_column_of_8_x_8():
    generator = MNISTGenerator(IMAGE, width=2)
    outputs, inputs = [], []
    generator.to_8.register_forward_hook(lambda module, x, output: outputs.append(output))
    generator.to_14.register_forward_hook(lambda module, x, output: inputs.append(x[0]))
    generator(torch.randn(2, 128))
    assert outputs[0].shape[-2:] == (8, 8)
    assert torch.equal(inputs[0], outputs[0][..., :7, :7])


def test_synchronized_batch_norm_of_one_rank_equals_batch_norm():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)):
            norm = layers.BatchNorm(8).to(torch.promote_types(dtype, torch.float32))
            x = (3 + 0.5 * torch.randn(64, 8, 4, 4)).to(dtype)
            expected = norm(x)
            norm.synchronized = True
            assert norm(x).dtype == expected.dtype == dtype
            torch.testing.assert_close(norm(x), expected, atol=atol, rtol=0)
        conditional, y = layers.ConditionalBatchNorm(8, 3).double(), torch.arange(64) % 3
        for p in conditional.parameters():
            nn.init.normal_(p)
        expected = conditional(x.double(), y)
        conditional.synchronized = True
        torch.testing.assert_close(conditional(x.double(), y), expected, atol=1e-12, rtol=0)
    finally:
        torch.distributed.destroy_process_group()


NETWORKS = [
    getattr(module, name)
    for info in pkgutil.iter_modules(networks.__path__)
    for module in [importlib.import_module(f"wgangp.networks.{info.name}")]
    for name in module.__all__
    if name.endswith(("Generator", "Critic"))
]
SHAPES = ((2,), IMAGE, (3, 28, 28), COLOR, (3, 64, 64), (3, 128, 128), (5, 8))  # a network takes one of them


def build_any(network):
    for shape in SHAPES:
        try:
            return network(shape, width=4).double(), shape
        except ValueError:
            continue
    raise AssertionError(f"no shape fits {network}: add its shape to SHAPES")


VARIANTS = [
    (ResNetGenerator, {"upsample_second": True}),
    (ResNetCritic, {"plain_first": True}),
    *((network, {"activation": "tanh"}) for network in (zoo.DCGANGenerator, zoo.DCGANCritic)),
    *((network, {"norm": "batch"}) for network in (zoo.DCGANCritic, zoo.GatedCritic, zoo_resnet.GoodCritic)),
]
WITH_CLASSES = [network for network in NETWORKS if "classes" in inspect.signature(network).parameters]


@pytest.mark.parametrize(
    "network, options",
    [*((network, {}) for network in NETWORKS), *((network, {"classes": 3}) for network in WITH_CLASSES), *VARIANTS],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_no_module_of_a_network_changes_its_input_in_place(network, options):
    """An activation in place would overwrite the skip of a residual block."""
    module, shape = build_any(partial(network, **options))
    before, changed = {}, []

    def remember(part, inputs):
        before[part] = [x.clone() for x in inputs]

    def compare(part, inputs, output):
        if not all(torch.equal(x, old) for x, old in zip(inputs, before[part], strict=True)):
            changed.append(part)

    for part in module.modules():
        part.register_forward_pre_hook(remember)
        part.register_forward_hook(compare)
    x = torch.randn(3, getattr(module, "latent_dim", 0)) if hasattr(module, "latent_dim") else torch.randn(3, *shape)
    y = [torch.arange(3)] * bool(getattr(module, "classes", 0))
    module(x.double(), *y)
    assert len(before) > 3 and not changed


def test_scores_and_logits_of_a_critic_with_classes_belong_to_their_samples():
    critic, x = ResNetCritic(COLOR, width=4, classes=3).double(), torch.randn(4, *COLOR).double()
    check_per_sample(critic, x, y=(torch.tensor([0, 1, 2, 0]),))
    check_per_sample(lambda x: critic(x, logits=True)[1][:, 1], x)
