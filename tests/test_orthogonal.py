"""The critic that is 1-Lipschitz by construction, before and after training."""

import pytest
import torch

from wgangp import GradientPenalty, certified_lipschitz, critic_step, gradient_norm, lipschitz_on_box
from wgangp.networks.orthogonal import MaxMin, OrthogonalCritic


def train_critic(steps=20, width=16):
    torch.manual_seed(0)
    critic = OrthogonalCritic((2,), width=width)
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.01)
    real, fake = torch.randn(64, 2) + 2, torch.randn(64, 2)
    terms = [critic_step(critic, optimizer, real, fake, penalty=GradientPenalty(weight=0)) for _ in range(steps)]
    return critic, [term["wasserstein"].item() for term in terms]


@pytest.mark.parametrize("steps", [0, 20])
def test_no_slope_is_above_1(steps):
    critic, _ = train_critic(steps)
    assert gradient_norm(critic, 3 * torch.randn(2_000, 2)).max() <= 1 + 1e-5
    assert certified_lipschitz(critic, (2,)) == pytest.approx(1, abs=1e-5)
    _, upper = lipschitz_on_box(critic, -3.0, [3.0, 3.0])
    assert upper <= 1 + 1e-5


def test_gap_rises_toward_w1():
    """W1 of the two samples is about |(2, 2)| = 2.83."""
    _, gaps = train_critic(200)
    assert 2.4 < gaps[-1] < 3.0


def test_maxmin_sorts_pairs():
    assert MaxMin()(torch.tensor([[1.0, 5.0, 3.0, 2.0]])).tolist() == [[3.0, 5.0, 1.0, 2.0]]


@pytest.mark.parametrize(("shape", "options", "message"), [((2, 2), {}, "R\\^d"), ((2,), {"width": 7}, "even")])
def test_wrong_sizes_are_named(shape, options, message):
    with pytest.raises(ValueError, match=message):
        OrthogonalCritic(shape, **options)
