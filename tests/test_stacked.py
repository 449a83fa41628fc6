"""Stacked MNIST: the images that are put together from digits, and the published networks."""

import os

import pytest
import torch
import torch.nn.functional as F
from helpers import train_run

from wgangp import GradientPenalty, check_per_sample
from wgangp.compiled import build_computation
from wgangp.data.images import Images, mnist
from wgangp.data.stacked import StackedImages, combine_digits, stacked_mnist
from wgangp.losses import Wasserstein
from wgangp.networks.layers import BatchNorm
from wgangp.networks.stacked import StackedCritic, StackedGenerator
from wgangp.step import critic_gradients, generator_gradients

SHAPE = (3, 28, 28)


def gray_digits():
    """20 digits of 2 x 2 for training, 10 held out. All pixels of a digit have one level; its label is level % 10."""
    levels = {"train": torch.arange(20), "heldout": torch.arange(103, 113)}
    pictures = {split: x.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2) for split, x in levels.items()}
    return Images(pictures, {split: x % 10 for split, x in levels.items()})


class TestData:
    def test_every_image_has_three_digits_and_their_mode(self):
        data = StackedImages(gray_digits(), count=500)
        data.labeled = True
        for split, levels in (("train", range(20)), ("heldout", range(103, 113))):
            x, y = data.batch(0, 100, seed=0, split=split)
            assert x.shape == (100, 3, 2, 2) and y.shape == (100,) and x.dtype == torch.float32
            level = ((x + 1) / 2 * 255).round().long()
            assert level.eq(level[:, :, :1, :1]).all() and set(level.unique().tolist()) == set(levels)
            digit = level[:, :, 0, 0] % 10
            assert torch.equal(y, 100 * digit[:, 0] + 10 * digit[:, 1] + digit[:, 2])

    def test_mode_of_digits_is_read_from_left_to_right(self):
        assert combine_digits(torch.tensor([[0, 0, 0], [1, 2, 3], [9, 9, 9], [0, 0, 7]])).tolist() == [0, 123, 999, 7]

    def test_modes_and_channels_are_uniform_and_independent(self):
        """Every digit of the 20 is equally likely, so that every mode has 1 / 1000 of the images."""
        data = StackedImages(gray_digits(), count=128_000)
        modes = torch.bincount(data.labels["train"], minlength=data.classes).double()
        assert len(modes) == 1_000 and len(data.labels["heldout"]) == 25_600
        chi_square = ((modes - 128) ** 2 / 128).sum().item()  # 999 degrees of freedom: mean 999, sd 44.7
        assert abs(chi_square - 999) < 4 * 44.7
        digits = data.channels["train"].double()
        assert (digits.mean(0) - 9.5).abs().max() < 0.1
        assert (torch.corrcoef(digits.T) - torch.eye(3)).abs().max() < 0.02

    def test_batch_is_a_function_of_all_its_arguments_and_the_set_is_fixed(self):
        data, again = StackedImages(gray_digits(), count=200), StackedImages(gray_digits(), count=200)
        (x,) = data.batch(3, 16, seed=1)
        assert torch.equal(x, again.batch(3, 16, seed=1)[0])
        others = data.batch(4, 16, 1), data.batch(3, 16, 2), data.batch(3, 16, 1, purpose="report")
        assert not any(torch.equal(x, other) for (other,) in others)
        data.labeled = True
        for seed in (0, 1):  # an epoch has every image once, for every seed
            labels = torch.cat([data.batch(k, 50, seed)[1] for k in range(4)])
            assert torch.equal(labels.sort().values, data.labels["train"].sort().values)

    def test_only_digits_and_indices_are_kept(self):
        data = StackedImages(gray_digits(), count=1_000)
        kept = [x for part in (data.pictures, data.channels, data.labels) for x in part.values()]
        assert {tuple(x.shape) for x in kept} == {(20, 2, 2), (10, 2, 2), (1_000, 3), (200, 3), (1_000,), (200,)}

    def test_fingerprint_names_digits_and_count(self):
        prints = {StackedImages(gray_digits(), count).fingerprint for count in (10, 20, 20)}
        assert len(prints) == 2
        digits = gray_digits()
        digits.fingerprint = "others"
        assert StackedImages(digits, 20).fingerprint not in prints

    def test_count_below_one_raises(self):
        with pytest.raises(ValueError, match=r"count = 0: must be >= 1"):
            StackedImages(gray_digits(), 0)

    def test_files_and_remedies_are_those_of_mnist(self, small_mnist, tmp_path):
        data = stacked_mnist(str(small_mnist))
        assert data.shape == SHAPE and len(data.labels["train"]) == 128_000
        assert torch.equal(data.pictures["train"], mnist(str(small_mnist)).pictures["train"][:, 0])
        with pytest.raises(ValueError, match=r"(?s)MNIST.*Two remedies"):
            stacked_mnist(str(tmp_path))

    def test_images_have_the_span_of_the_generator(self, configure, tmp_path, small_mnist, quick_pictures, monkeypatch):
        sizes = ("train.batch_size=4", "train.report_size=4", "train.steps=1", "device=cpu", "data.count=100")
        cfg = configure("experiment=stacked_mnist", f"data.root={small_mnist}", *sizes)
        for network in (cfg.networks.generator, cfg.networks.critic):
            network.width = 2
        assert train_run(cfg, tmp_path / "a").data.span == (-1.0, 1.0)
        monkeypatch.setattr(StackedGenerator, "span", (0.0, 1.0), raising=False)
        run = train_run(cfg, tmp_path / "b")
        (x,) = run.data.batch(0, 50, 0)
        assert run.data.span == (0.0, 1.0) and x.min() == 0 and x.max() == 1

    @pytest.mark.data
    def test_real_digits_cover_all_modes_with_the_frequencies_of_mnist(self):
        data = stacked_mnist(os.environ["WGANGP_DATA"])
        share = torch.bincount(data.labels["train"], minlength=1_000) / 128_000
        assert share.min() > 0.4e-3 and share.max() < 1.9e-3  # a digit has 9 % to 11.4 % of the images


class TestNetworks:
    def test_parameter_counts_are_those_of_the_published_layers(self):
        """Counted by hand: weights and biases of the layers, scales and offsets of the norms."""
        generator = 128 * 2048 + 2048
        generator += (512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) * 25 + 256 + 128 + 64 + 3
        generator += 2 * (512 + 256 + 128 + 64)
        critic = (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512) * 25 + 64 + 128 + 256 + 512 + 2048 + 1
        assert sum(p.numel() for p in StackedGenerator(SHAPE).parameters()) == generator == 4_572_163
        assert sum(p.numel() for p in StackedCritic(SHAPE).parameters()) == critic == 4_308_609

    def test_pair_equals_the_published_layers_of_torch(self):
        generator, critic = StackedGenerator(SHAPE, width=3).double(), StackedCritic(SHAPE, width=3).double()
        z, x = torch.randn(4, 128).double(), torch.rand(4, *SHAPE).double()
        h = generator.input(z).view(4, 24, 2, 2)
        convolutions = [m for m in generator.layers if isinstance(m, torch.nn.ConvTranspose2d)]
        norms = [m for m in generator.layers if isinstance(m, BatchNorm)]
        for norm, conv, extra, size in zip(norms, convolutions, (1, 0, 1, 1), (4, 7, 14, 28), strict=True):
            mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), keepdim=True, unbiased=False)
            h = (h - mean) / (var + 1e-5).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
            h = F.conv_transpose2d(h.relu(), conv.weight, conv.bias, 2, 2, extra)
            assert h.shape[2:] == (size, size)
        torch.testing.assert_close(generator(z), h.tanh(), atol=1e-12, rtol=1e-12)
        h = x
        for conv in (m for m in critic.layers if isinstance(m, torch.nn.Conv2d)):
            h = F.leaky_relu(F.conv2d(h, conv.weight, conv.bias, 2, 2), 0.2)
        torch.testing.assert_close(critic(x), critic.layers[-1](h.flatten(1)).squeeze(1), atol=1e-12, rtol=1e-12)

    def test_initial_weights_are_those_of_the_published_code(self):
        generator, critic = StackedGenerator(SHAPE), StackedCritic(SHAPE)
        for layer in (*generator.layers, *critic.layers):
            if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d) and layer.weight.numel() > 10_000:
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
                assert layer.weight.abs().max() > 0.06  # not uniform
                assert layer.bias.abs().max() > 0  # as torch draws it
            if isinstance(layer, BatchNorm):
                assert layer.weight.mean().item() == pytest.approx(1, abs=0.01) and layer.bias.eq(0).all()
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.3)

    def test_scores_are_per_sample_and_the_critic_has_no_norm(self):
        critic = StackedCritic(SHAPE, width=2)
        check_per_sample(critic.double(), torch.rand(3, *SHAPE).double())
        assert not any("Norm" in type(module).__name__ for module in critic.modules())

    def test_points_of_another_shape_raise(self):
        for make in (StackedGenerator, StackedCritic):
            with pytest.raises(ValueError, match=r"\(3, 28, 28\), got \(1, 28, 28\)"):
                make((1, 28, 28))
            with pytest.raises(ValueError, match="width = 0"):
                make(SHAPE, width=0)
        with pytest.raises(ValueError, match=r"got \(3, 32, 32\)"):
            StackedCritic(SHAPE, width=1)(torch.rand(2, 3, 32, 32))

    @pytest.mark.slow
    def test_compiled_gradients_are_the_eager_ones(self, quick_compile):
        generator, critic = StackedGenerator(SHAPE, width=2).double(), StackedCritic(SHAPE, width=2).double()
        real, z, eps = torch.rand(4, *SHAPE).double(), torch.randn(4, 128).double(), torch.rand(4).double()
        fake, loss, penalty = generator(z).detach(), Wasserstein(), GradientPenalty()
        fast = build_computation(generator, critic, loss, penalty, compile=True)
        pairs = [
            (fast.critic_gradients(real, fake, eps), critic_gradients(critic, real, fake, eps, penalty=penalty)),
            (fast.generator_gradients(z), generator_gradients(generator, critic, z)),
        ]
        assert not fast.problems
        for compiled, eager in pairs:
            for a, b in zip(compiled[1], eager[1], strict=True):
                torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


def test_experiment_has_the_published_settings(configure):
    cfg = configure("experiment=stacked_mnist")
    assert (cfg.train.steps, cfg.train.batch_size, cfg.train.critic_steps, cfg.penalty.weight) == (100_000, 64, 5, 10)
    assert (cfg.optim.lr, list(cfg.optim.betas), cfg.data.count) == (1e-4, [0.5, 0.9], 128_000)
    assert {cfg.networks.generator.width, cfg.networks.critic.width} == {
        64
    } and cfg.networks.generator.latent_dim == 128
    assert configure("experiment=stacked_mnist", "budget=cpu").networks.critic.width == 16
