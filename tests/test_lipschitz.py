import math

import pytest
import torch
from conftest import Linear, smooth_critic
from hypothesis import given
from hypothesis import strategies as st

from wgangp import (
    corrected_wasserstein,
    expected_slope,
    largest_quotient,
    proved_wasserstein,
    slope_statistics,
    steepest_slope,
)
from wgangp.lipschitz import cosine, critic_slopes
from wgangp.networks.mlp import MLPCritic
from wgangp.transport import LIMIT, optimal_pairs


def test_slopes_of_half_the_squared_norm_are_the_norms_of_the_points():
    real, fake, eps = torch.randn(50, 2, 3).double(), torch.randn(50, 2, 3).double() * 3, torch.rand(50).double()
    statistics = slope_statistics(lambda x: x.flatten(1).square().sum(1) / 2, real, fake, eps)
    between = eps.view(-1, 1, 1) * real + (1 - eps.view(-1, 1, 1)) * fake
    assert set(statistics) == {"real", "fake", "interpolates", "perturbed"}
    for kind, x in (("real", real), ("fake", fake), ("interpolates", between)):
        norm = x.flatten(1).norm(dim=1)
        got = statistics[kind]
        assert got["mean"] == pytest.approx(norm.mean().item())
        assert got["std"] == pytest.approx(norm.std(correction=0).item())
        assert got["max"] == pytest.approx(norm.max().item())
        for name, q in (("q05", 0.05), ("q50", 0.5), ("q95", 0.95)):
            assert got[name] == pytest.approx(norm.quantile(q).item())
        assert got["above_1"] == (norm > 1).double().mean()


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


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def half_square(x):
    return x.flatten(1).square().sum(1) / 2


def test_perturbed_points_are_within_half_a_standard_deviation_of_the_real_ones():
    real, fake = torch.full((400, 1), 5.0).double(), torch.zeros(400, 1).double()
    real[::2] += 2  # sd 1
    at_real, at_perturbed = (critic_slopes(half_square, real, fake)[0][kind] for kind in ("real", "perturbed"))
    rise = at_perturbed - at_real
    assert rise.min() >= 0 and 0.4 < rise.max() < 0.501


def test_coupled_points_lie_between_optimal_pairs_and_the_cosine_is_to_their_direction():
    real, fake, eps = torch.randn(60, 2).double(), torch.randn(60, 2).double() + 3, torch.rand(60).double()
    partner = fake[optimal_pairs(real, fake)]
    between = eps.unsqueeze(1) * real + (1 - eps.unsqueeze(1)) * partner
    slopes, cosines = critic_slopes(half_square, real, fake, eps, coupled=True)
    assert slopes["coupled"].numpy() == pytest.approx(between.norm(dim=1).numpy())
    expected = ((real - partner) * between).sum(1) / (real - partner).norm(dim=1) / between.norm(dim=1)
    assert cosines.numpy() == pytest.approx(expected.numpy())
    assert slope_statistics(half_square, real, fake, eps, coupled=True)["coupled"]["cosine"] == pytest.approx(
        expected.mean().item()
    )


def test_the_cosine_says_whether_the_critic_rises_the_way_mass_moves():
    x = torch.randn(7, 3, 2)
    assert cosine(half_square, x, x).numpy() == pytest.approx(1)
    assert cosine(half_square, x, -x).numpy() == pytest.approx(-1)
    assert cosine(half_square, x, 0 * x).numpy() == pytest.approx(0)


def test_draws_come_from_the_generator_alone():
    real, fake = torch.randn(20, 2), torch.randn(20, 2)
    before = torch.random.get_rng_state()
    one, two, other = (slope_statistics(half_square, real, fake, generator=random(seed)) for seed in (0, 0, 1))
    assert one == two and one["interpolates"] != other["interpolates"]
    assert torch.random.get_rng_state().equal(before)


def test_float64_is_computed_in_double_precision_and_leaves_the_critic_as_it_is():
    critic, real, fake = MLPCritic((2,), width=64), torch.randn(30, 2), torch.randn(30, 2)
    single = slope_statistics(critic, real, fake, torch.rand(30))
    double, reference = (
        slope_statistics(c, *points, torch.zeros(30), generator=random(), float64=is_single)
        for c, points, is_single in (
            (critic, (real, fake), True),
            (MLPCritic((2,), width=64).double(), (real.double(), fake.double()), False),
        )
        if c.load_state_dict(critic.state_dict())
    )
    assert next(critic.parameters()).dtype == torch.float32
    assert double["real"] == reference["real"] and double["real"]["mean"] != single["real"]["mean"]
    assert double["real"]["mean"] == pytest.approx(single["real"]["mean"], rel=1e-5)


def test_the_largest_quotient_is_that_of_the_steepest_pair():
    x = torch.randn(40, 2, 3)
    score = half_square(x).double()
    by_hand = max(
        ((score[i] - score[j]).abs() / (x[i] - x[j]).double().norm()).item()
        for i in range(40)
        for j in range(40)
        if i != j
    )
    assert largest_quotient(half_square, x) == pytest.approx(by_hand, rel=1e-5)
    assert largest_quotient(half_square, x.repeat(2, 1, 1)) == pytest.approx(by_hand, rel=1e-5)  # not 0 / 0
    assert largest_quotient(Linear((3,)), torch.randn(1, 3)) == 0


def test_the_steepest_slope_of_a_linear_critic_is_its_norm_and_no_quotient_is_above_it():
    critic, x = Linear((3,)), torch.randn(20, 3)
    assert steepest_slope(critic, x, steps=3) == pytest.approx(critic.w.detach().norm().item())
    assert largest_quotient(critic, x) <= critic.w.detach().norm().item() * (1 + 1e-12)


def test_the_ascent_climbs_to_the_steep_part_of_a_piecewise_linear_critic():
    """D rises by 1 along x_1, and by 5 beyond 3.5: none of the starts is there, some are within their own sd of it."""

    def critic(x):
        return x[:, 0] + 4 * (x[:, 0] - 3.5).clamp(min=0)

    x = torch.rand(50, 2) * 3
    assert critic_slopes(critic, x, x)[0]["real"].max() == 1
    assert steepest_slope(critic, x, steps=100) == pytest.approx(5)


def test_the_ascent_follows_the_gradient_of_the_slope():
    """For D = x A x / 2 the slope is ||A x||, and rises along A (A x) / ||A x||: two steps by hand."""
    a = torch.tensor([[1.0, 0.5], [0.5, 3.0]]).double()
    x = torch.tensor([2.0, 0.3]).double()
    scale, v = x.std(correction=0), torch.nn.functional.normalize(a @ x, dim=0)
    met = [a @ (x + scale * v), a @ (x - scale * v)]
    x = x + scale * torch.nn.functional.normalize(a @ v, dim=0)
    met += [a @ (x + 0.01 * scale * v), a @ (x - 0.01 * scale * v)]
    start = torch.tensor([[2.0, 0.3]]).double()
    found = steepest_slope(lambda x: ((x @ a) * x).sum(1) / 2, start, steps=2)
    assert found == pytest.approx(max(g.norm().item() for g in met)) == met[2].norm().item()


def test_the_ascent_finds_more_than_the_points_show_on_smooth_and_on_relu_critics():
    found = []
    for critic, points in ((smooth_critic(2, width=64), 100), (MLPCritic((2,), width=64, depth=4), 100)):
        x = torch.randn(points, 2, generator=random())
        plane = torch.cartesian_prod(*[torch.linspace(-4, 4, 200).double()] * 2)
        there = critic_slopes(critic.double(), plane, plane)[0]["real"].max().item()
        at_starts = critic_slopes(critic, x.double(), x.double())[0]["real"].max().item()
        found.append((steepest_slope(critic, x, steps=100) - at_starts) / (there - at_starts))
    assert min(found) > 0.9  # of the way to the steepest of 40,000 points


def test_the_proved_distance_of_a_shift_is_the_shift_and_its_interval_covers_it():
    real, fake = torch.randn(4000, 1).double() + 1, torch.randn(4000, 1).double()
    got = proved_wasserstein(3 * real, 3 * fake, lipschitz=3.0)
    assert got["bound"] == pytest.approx((real.mean() - fake.mean()).item())
    error = math.sqrt(2 / 4000)
    assert got["bound"] - got["low"] == pytest.approx(1.96 * error, rel=0.1)
    assert got["high"] - got["bound"] == pytest.approx(1.96 * error, rel=0.1)
    assert got["low"] < 1 < got["high"] and got == proved_wasserstein(3 * real, 3 * fake, lipschitz=3.0)
    assert proved_wasserstein(3 * real, 3 * fake, lipschitz=6.0)["bound"] == pytest.approx(got["bound"] / 2)
    assert proved_wasserstein(fake, real, lipschitz=1.0)["bound"] < 0


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda c, x: slope_statistics(c, torch.randn(5, 3), torch.randn(5, 3)), r"\(3,\).*data="),
        (lambda c, x: steepest_slope(nn_critic(), torch.randn(5, 3)), r"shape \(3,\) do not fit"),
        (lambda c, x: largest_quotient(nn_critic(), torch.randn(5, 3)), r"shape \(3,\) do not fit"),
        (lambda c, x: slope_statistics(nn_critic(), torch.randn(5, 3), torch.randn(5, 3)), r"\(3,\) do not fit"),
        (lambda c, x: slope_statistics(c, x, x[:3]), "as many real as fake"),
        (lambda c, x: slope_statistics(c, x[:0], x[:0]), "at least one"),
        (lambda c, x: slope_statistics(c, *torch.zeros(2, LIMIT + 1, 2), coupled=True), f"at most {LIMIT}.*randperm"),
        (lambda c, x: steepest_slope(c, x, steps=0), "steps = 0"),
        (lambda c, x: proved_wasserstein(x, x, lipschitz=0.0), "lipschitz = 0"),
        (lambda c, x: proved_wasserstein(x[:1], x[:1, 0], lipschitz=1.0), "two of each"),
    ],
)
def test_what_has_no_answer_is_an_error_in_words(call, said):
    with pytest.raises(ValueError, match=said):
        call(MLPCritic((2,), width=4), torch.randn(6, 2))


def test_a_function_that_does_not_compute_in_float64_is_told_so():
    net = torch.nn.Linear(2, 1)
    with pytest.raises(ValueError, match=r"give the nn\.Module"):
        steepest_slope(lambda x: net(x), torch.randn(5, 2))


def nn_critic():
    return torch.nn.Linear(2, 1)


def test_a_quotient_that_is_not_a_number_is_seen():
    assert math.isnan(largest_quotient(lambda x: x[:, 0] * math.nan, torch.randn(600, 2)))
