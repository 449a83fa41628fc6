"""The ResNet pair for 128 x 128 images: its layers against plain torch functions, and one update."""

import pytest
import torch
from helpers import require_uniform, std_of
from test_zoo import SMALL, conv, count, find, linear, norm, pool, randomize, upsample
from torch import nn

from wgangp import GradientPenalty, check_per_sample, critic_step, generator_step
from wgangp.config import build_run
from wgangp.networks import layers
from wgangp.networks.resnet128 import ResNet128Critic, ResNet128Generator

SHAPE = (3, 128, 128)


def count_up(a, b):
    """Norm, 3x3 convolution, norm, 3x3 convolution; 1x1 convolution of the shortcut."""
    return 2 * a + (9 * a * b + b) + 2 * b + (9 * b * b + b) + (a * b + b)


def count_down(a, b):
    return 2 * a + (9 * a * a + a) + 2 * a + (9 * a * b + b) + (a * b + b)


def count_same(a):
    return 2 * (2 * a + 9 * a * a + a)


def test_parameter_counts_are_the_sums_over_the_layers():
    blocks = count_up(512, 512) + count_up(512, 256) + count_up(256, 128) + count_up(128, 64)
    generator = (128 * 8192 + 8192) + blocks + 2 * 64 + (25 * 64 * 3 + 3)
    blocks = count_down(128, 256) + count_down(256, 512) + count_down(512, 1024) + 2 * count_same(1024)
    critic = (25 * 3 * 128 + 128) + blocks + (1024 + 1)
    assert (generator, critic) == (8_544_515, 47_757_697)
    with torch.device("meta"):
        assert (count(ResNet128Generator(SHAPE)), count(ResNet128Critic(SHAPE))) == (generator, critic)


def reference_generator(network, z):
    x = linear(z, network.input).view(len(z), -1, 4, 4)
    for block in network.blocks:
        norm1, _, conv1, norm2, _, conv2 = block.main
        main = conv(upsample(norm(x, norm1).relu()), conv1)
        x = conv(upsample(x), block.shortcut) + conv(norm(main, norm2).relu(), conv2)
    return conv(upsample(norm(x, network.output[0]).relu()), network.output[2]).tanh()


def reference_critic(network, x):
    x = conv(x, network.input, stride=2)
    for i, block in enumerate(network.blocks):
        norm1, _, conv1, norm2, _, conv2 = block.main
        main = norm(conv(norm(x, norm1).relu(), conv1), norm2).relu()
        x = conv(pool(x), block.shortcut) + conv(main, conv2, stride=2) if i < 3 else x + conv(main, conv2)
    return linear(x.mean((2, 3)), network.output)[:, 0]


def test_pair_equals_the_operations_of_the_authors_code():
    generator, critic = randomize(ResNet128Generator(SHAPE, width=2)), randomize(ResNet128Critic(SHAPE, width=2))
    z, x = torch.randn(2, 128).double(), torch.randn(2, *SHAPE).double()
    images, scores = generator(z), critic(x)
    assert images.shape == (2, *SHAPE) and images.abs().max() <= 1 and scores.shape == (2,)
    torch.testing.assert_close(images, reference_generator(generator, z), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(scores, reference_critic(critic, x), atol=1e-10, rtol=1e-10)
    assert all(type(module) is layers.LayerNorm for module in find(critic, layers.BatchNorm, nn.GroupNorm))


def test_initial_weights_behind_an_upsampling_are_halved():
    generator = ResNet128Generator(SHAPE, width=8)
    halved = [*find(generator, layers.UpsampleConv), *(block.shortcut for block in generator.blocks)]
    assert len(halved) == 9
    for name, layer in generator.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            glorot = name in ("input", "output.2") or name.endswith("shortcut")
            require_uniform(name, layer, std_of(layer, 1 if glorot else 2) * (0.5 if layer in halved else 1))
    for name, layer in ResNet128Critic(SHAPE, width=8).named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            require_uniform(name, layer, std_of(layer, 1 if name == "output" or name.endswith("shortcut") else 2))


def test_critic_scores_every_sample_by_itself():
    check_per_sample(ResNet128Critic(SHAPE, width=2).double(), torch.randn(2, *SHAPE).double())


def test_images_of_another_size_are_refused():
    for make in (ResNet128Generator, ResNet128Critic):
        with pytest.raises(ValueError, match=r"\(3, 128, 128\), got \(3, 64, 64\): choose data= and networks= that"):
            make((3, 64, 64))
    with pytest.raises(ValueError, match=r"got \(1, 128, 128\)"):
        ResNet128Critic(SHAPE, width=2)(torch.randn(1, 1, 128, 128))


def test_experiment_has_the_settings_of_the_authors_code(configure):
    cfg = configure("experiment=resnet128")
    assert (cfg.train.steps, cfg.train.decay_steps, cfg.train.batch_size, cfg.train.critic_steps) == (
        *(200_000, 200_000, 64),
        5,
    )
    assert cfg.optim.lr == 1e-4 and list(cfg.optim.betas) == [0.0, 0.9] and cfg.penalty.weight == 10
    assert cfg.networks.generator.width == 64 and cfg.networks.critic.width == 128 and cfg.data.size == 128


def test_experiment_makes_an_update_at_batch_2(configure, small_pictures):
    """`build_run` tries a report and an update."""
    cfg = configure("experiment=resnet128", *SMALL, "train.batch_size=2", f"data.root={small_pictures}")
    run = build_run(cfg)
    (real,), z = run.data.batch(0, 2, 0), torch.randn(2, 128)
    before = [p.clone() for p in (*run.critic.parameters(), *run.generator.parameters())]
    terms = critic_step(run.critic, run.optim_critic, real, run.generator(z).detach(), penalty=GradientPenalty())
    terms |= generator_step(run.generator, run.critic, run.optim_generator, z)
    assert all(term.isfinite() for term in terms.values())
    after = [*run.critic.parameters(), *run.generator.parameters()]
    assert sum(not torch.equal(a, b) for a, b in zip(after, before, strict=True)) > 0.9 * len(after)


@pytest.mark.slow
def test_an_update_of_the_full_size_at_batch_2_is_finite():
    generator, critic = ResNet128Generator(SHAPE), ResNet128Critic(SHAPE)
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.0, 0.9)) for network in (generator, critic)]
    real, z = torch.rand(2, *SHAPE) * 2 - 1, torch.randn(2, 128)
    terms = critic_step(critic, optimizers[1], real, generator(z).detach(), penalty=GradientPenalty())
    terms |= generator_step(generator, critic, optimizers[0], z)
    assert all(term.isfinite() for term in terms.values())
    assert all(p.isfinite().all() for p in (*critic.parameters(), *generator.parameters()))
