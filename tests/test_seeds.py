import pytest
import torch
from torch import nn

from wgangp.seeds import draw_latent, initialize, rng_for


class Generator(nn.Module):
    """What draw_latent reads of a generator."""

    def __init__(self, latent_dim, classes=0):
        super().__init__()
        self.latent_dim = latent_dim
        if classes:
            self.classes = classes


def test_rng_is_a_function_of_seed_step_and_purpose():
    def draw(*key):
        return torch.rand(3, generator=rng_for(*key)).tolist()

    state = torch.get_rng_state()
    assert draw(0, 1, "z") == draw(0, 1, "z")
    keys = [(0, 1, "z"), (1, 1, "z"), (0, 2, "z"), (0, 1, "eps"), (1, 11, "z"), (11, 1, "z")]
    assert len({tuple(draw(*key)) for key in keys}) == 6
    assert torch.equal(torch.get_rng_state(), state)


def test_initial_weights_are_a_function_of_seed_and_name():
    def weights(seed, name):
        return initialize(lambda: nn.Linear(2, 3), seed, name).weight.detach()

    state = torch.get_rng_state()
    assert torch.equal(weights(0, "critic"), weights(0, "critic"))
    assert not torch.equal(weights(0, "critic"), weights(0, "generator"))
    assert not torch.equal(weights(0, "critic"), weights(1, "critic"))
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_that_of_torch_for_the_rng_of_seed_step_and_purpose():
    state = torch.get_rng_state()
    (z,) = draw_latent(Generator(5), 7, 3, 11, "purpose")
    assert torch.equal(z, torch.randn(7, 5, generator=rng_for(3, 11, "z/purpose")))
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_do_not_change_the_noise():
    z, y = draw_latent(Generator(5, classes=4), 7, 3, 11, "purpose")
    assert torch.equal(z, torch.randn(7, 5, generator=rng_for(3, 11, "z/purpose")))
    assert y.shape == (7,) and y.dtype == torch.int64


@pytest.mark.parametrize("classes", [1, 4, 10])
def test_labels_are_uniform_and_in_range(classes):
    size = 20_000
    _, y = draw_latent(Generator(2, classes), size, 0, 0, "purpose")
    counts = torch.bincount(y, minlength=classes)
    assert len(counts) == classes and y.min() >= 0  # no label is classes or larger
    expected = size / classes
    assert (counts - expected).abs().max() <= 4 * (expected * (1 - 1 / classes)) ** 0.5


def test_noise_and_labels_are_a_function_of_seed_step_and_purpose():
    def draw(*key):
        return draw_latent(Generator(2, classes=10), 50, *key)

    keys = [(0, 1, "critic"), (1, 1, "critic"), (0, 2, "critic"), (0, 1, "generator")]
    draws = [draw(*key) for key in keys]
    for key, (z, y) in zip(keys, draws, strict=True):
        z_again, y_again = draw(*key)
        assert torch.equal(z, z_again) and torch.equal(y, y_again)
    for first in range(4):
        for second in range(first):
            assert not torch.equal(draws[first][0], draws[second][0])
            assert not torch.equal(draws[first][1], draws[second][1])
