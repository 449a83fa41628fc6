import pytest
import torch
from conftest import Linear
from hypothesis import given
from hypothesis import strategies as st

from wgangp import corrected_wasserstein, expected_slope, slope_statistics


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


@given(st.floats(0, 100), st.floats(0.01, 100))
def test_the_expected_slope_and_the_corrected_distance_are_the_optimum_of_the_penalised_objective(w1, weight):
    a = expected_slope(w1, weight)
    least = -a * w1 + weight * (a - 1) ** 2
    for other in (a - 1e-3, a + 1e-3):
        assert -other * w1 + weight * (other - 1) ** 2 > least
    assert corrected_wasserstein(a * w1, weight) == pytest.approx(w1, abs=1e-9, rel=1e-9)  # gap K = a W


@pytest.mark.parametrize("gap, w1", [(66.25, 27.75), (36.16, 18.69), (214.13, 56.20), (64.39, 27.25)])
def test_the_corrected_distance_of_published_gaps(gap, w1):
    """Gaps that Korotin et al. measured on pairs with a known distance, lambda 10."""
    assert corrected_wasserstein(gap, 10.0) == pytest.approx(w1, abs=0.006)


def test_a_penalty_without_end_leaves_the_gap_as_it_is():
    for weight in (1e12, 1e16, 1e18):
        assert corrected_wasserstein(2.0, weight) == pytest.approx(2.0, rel=1e-11)


def test_without_a_penalty_or_with_a_critic_the_wrong_way_round_there_is_no_answer():
    for call in (lambda: expected_slope(1.0, 0.0), lambda: corrected_wasserstein(1.0, -1.0)):
        with pytest.raises(ValueError, match="weight"):
            call()
    with pytest.raises(ValueError, match=r"gap = -0\.1"):
        corrected_wasserstein(-0.1, 10.0)
    with pytest.raises(ValueError, match="w1"):
        expected_slope(float("nan"), 10.0)
