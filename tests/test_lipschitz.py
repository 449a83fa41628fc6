import pytest
import torch
from conftest import Linear

from wgangp import slope_statistics


def test_slopes_of_half_the_squared_norm_are_the_norms_of_the_points():
    real, fake, eps = torch.randn(50, 2, 3).double(), torch.randn(50, 2, 3).double() * 3, torch.rand(50).double()
    statistics = slope_statistics(lambda x: x.flatten(1).square().sum(1) / 2, real, fake, eps)
    between = eps.view(-1, 1, 1) * real + (1 - eps.view(-1, 1, 1)) * fake
    for kind, x in (("real", real), ("fake", fake), ("interpolates", between)):
        norm = x.flatten(1).norm(dim=1)
        got = statistics[kind]
        assert got["mean"] == pytest.approx(norm.mean().item())
        assert got["std"] == pytest.approx(norm.std(correction=0).item())
        assert got["max"] == pytest.approx(norm.max().item())
        for name, q in (("q05", 0.05), ("q50", 0.5), ("q95", 0.95)):
            assert got[name] == pytest.approx(norm.quantile(q).item())


def test_a_linear_critic_has_one_slope_everywhere():
    critic = Linear((3,))
    for statistics in slope_statistics(critic, torch.randn(9, 3).double(), torch.randn(9, 3).double()).values():
        assert statistics["mean"] == pytest.approx(critic.w.detach().norm().item())
        assert statistics["std"] == pytest.approx(0, abs=1e-12)
