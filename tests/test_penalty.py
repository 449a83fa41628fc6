import math

import pytest
import torch
from conftest import Linear, smooth_critic
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wgangp import GradientPenalty, check_per_sample, clip_weights_, gradient_penalty, interpolate
from wgangp.networks.dcgan import MNISTCritic
from wgangp.penalty import POINTS, SIDES

SHAPES = [(), (3,), (2, 3), (2, 3, 4), (2, 3, 2, 2)]


def pair(*shape, n=6):
    return torch.randn(n, *shape, dtype=torch.float64), torch.randn(n, *shape, dtype=torch.float64)


class TestInterpolate:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_lies_on_the_segment_at_eps_one_a_sample(self, shape):
        real, fake = pair(*shape)
        eps = torch.rand(6, dtype=torch.float64)
        x_hat = interpolate(real, fake, eps)
        assert x_hat.shape == real.shape
        for i in range(6):
            torch.testing.assert_close(x_hat[i], eps[i] * real[i] + (1 - eps[i]) * fake[i])

    def test_ends_at_real_and_fake(self):
        real, fake = pair(3)
        assert torch.equal(interpolate(real, fake, torch.ones(6)), real)
        assert torch.equal(interpolate(real, fake, torch.zeros(6)), fake)

    def test_refuses_other_shapes_of_points_and_of_eps(self):
        real, fake = pair(3)
        with pytest.raises(ValueError, match="one shape"):
            interpolate(real, fake[:3], torch.rand(6))
        for eps in (torch.rand(()), torch.rand(1), torch.rand(6, 3), torch.rand(6, 1)):
            with pytest.raises(ValueError, match="one number a sample"):
                interpolate(real, fake, eps)


class TestGradientPenalty:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("points", POINTS)
    def test_of_a_linear_critic_is_known(self, shape, points):
        critic, (real, fake) = Linear(shape), pair(*shape)
        norm = critic.w.detach().norm()
        got = GradientPenalty(weight=7.0, target=0.5, points=points)(critic, real, fake)
        assert got.shape == (6,)
        torch.testing.assert_close(got.detach(), (7 * (norm - 0.5) ** 2).expand(6))

    @given(st.floats(0.01, 3.0))
    def test_one_side_costs_nothing_below_the_target(self, norm):
        critic, (real, fake) = Linear((3,)), pair(3)
        with torch.no_grad():
            critic.w.mul_(norm / critic.w.norm())
        one = GradientPenalty(sides="one")(critic, real, fake)
        two = GradientPenalty(sides="two")(critic, real, fake)
        torch.testing.assert_close(two.detach(), torch.full((6,), 10 * (norm - 1) ** 2, dtype=torch.float64))
        torch.testing.assert_close(one, two if norm > 1 else torch.zeros_like(two))

    def test_each_kind_of_points_is_where_it_says(self):
        real, fake = pair(2, 3, n=400)
        eps = torch.rand(400, dtype=torch.float64)
        assert GradientPenalty(points="real").at(real, fake, None) is real
        assert GradientPenalty(points="fake").at(real, fake, None) is fake
        assert torch.equal(GradientPenalty().at(real, fake, eps), interpolate(real, fake, eps))
        penalty = GradientPenalty(points="perturbed")
        drawn = penalty.draw(real)
        torch.testing.assert_close(penalty.at(real, fake, drawn) - real, drawn)
        noise = drawn / (0.5 * real.std())
        assert noise.min() >= 0 and noise.max() < 1
        assert noise.mean().item() == pytest.approx(0.25, abs=0.02)  # a u, both U[0, 1)
        assert noise.flatten(1).mean(1).std().item() > 0.1  # one a for a sample: its elements share it

    def test_draws_one_eps_a_sample_in_the_unit_interval(self):
        real, _ = pair(2, 3, n=4000)
        eps = GradientPenalty().draw(real)
        assert eps.shape == (4000,) and eps.dtype == real.dtype
        assert eps.min() >= 0 and eps.max() <= 1
        assert len(eps.unique()) > 3990
        assert eps.mean().item() == pytest.approx(0.5, abs=0.02) and eps.var().item() == pytest.approx(1 / 12, abs=0.01)
        assert GradientPenalty(points="real").draw(real) is None

    def test_draws_follow_the_generator(self):
        real, _ = pair(3)
        for penalty in (GradientPenalty(), GradientPenalty(points="perturbed")):
            a, b = (penalty.draw(real, torch.Generator().manual_seed(5)) for _ in range(2))
            assert torch.equal(a, b)

    @pytest.mark.parametrize("asked", [False, True])
    def test_stays_in_the_precision_of_the_weights_under_autocast_unless_asked(self, asked):
        critic, (real, fake) = smooth_critic(3).float(), [x.float() for x in pair(3)]
        eps = torch.rand(len(real))
        penalty = GradientPenalty(autocast=asked)
        right = penalty(critic, real, fake, eps)
        with torch.autocast("cpu", torch.bfloat16):
            assert critic(real).dtype == torch.bfloat16
            found = penalty(critic, real, fake, eps)
        assert torch.equal(found, right) != asked
        torch.testing.assert_close(found.float(), right, atol=0.1, rtol=0.1)  # bf16 has eight bits

    def test_perturbed_points_take_noise_of_their_own_shape(self):
        real, fake = pair(6)  # (6, 6): an eps of one a sample would be broadcast along the wrong axis
        with pytest.raises(ValueError, match="shape of the points"):
            GradientPenalty(points="perturbed").at(real, fake, torch.rand(6))

    @pytest.mark.parametrize("points", POINTS)
    def test_is_drawn_when_eps_is_left_out(self, points):
        critic, (real, fake) = smooth_critic(3), pair(3)
        penalty = GradientPenalty(points=points)
        torch.manual_seed(3)
        eps = penalty.draw(real)
        torch.manual_seed(3)
        assert torch.equal(penalty(critic, real, fake), penalty(critic, real, fake, eps))

    def test_does_not_change_with_the_order_or_the_size_of_the_batch(self):
        critic, (real, fake), eps = smooth_critic(6), pair(2, 3), torch.rand(6, dtype=torch.float64)
        whole = GradientPenalty()(critic, real, fake, eps)
        order = torch.randperm(6)
        torch.testing.assert_close(GradientPenalty()(critic, real[order], fake[order], eps[order]), whole[order])
        for i in range(6):
            alone = GradientPenalty()(critic, real[i : i + 1], fake[i : i + 1], eps[i : i + 1])
            torch.testing.assert_close(alone, whole[i : i + 1])

    @pytest.mark.parametrize("sides", SIDES)
    @pytest.mark.parametrize("target", [0.0, 1.0])
    def test_its_gradient_equals_finite_differences(self, sides, target):
        critic, (real, fake), eps = smooth_critic(6), pair(2, 3), torch.rand(6, dtype=torch.float64)
        for p in critic.parameters():
            nn.init.normal_(p)  # slopes on both sides of 1
        penalty = GradientPenalty(sides=sides, target=target)
        parameters = list(critic.parameters())
        gradients = torch.autograd.grad(penalty(critic, real, fake, eps).mean(), parameters, materialize_grads=True)
        assert any(g.abs().max() > 0.1 for g in gradients)
        for p, gradient in zip(parameters, gradients, strict=True):
            flat = p.detach().view(-1)  # shares its memory
            for i in range(len(flat)):
                value, h = flat[i].item(), 1e-6
                around = []
                for sign in (1, -1):
                    flat[i] = value + sign * h
                    around.append(penalty(critic, real, fake, eps).mean().item())
                flat[i] = value
                difference = (around[0] - around[1]) / (2 * h)
                assert gradient.view(-1)[i].item() == pytest.approx(difference, rel=1e-5, abs=1e-7)

    def test_of_a_flat_critic_is_finite_and_so_is_its_gradient(self):
        critic, (real, fake) = smooth_critic(3), pair(3)
        for p in critic.parameters():
            nn.init.zeros_(p)
        penalty = GradientPenalty()(critic, real, fake)
        torch.testing.assert_close(penalty.detach(), torch.full((6,), 10.0, dtype=torch.float64))
        gradients = torch.autograd.grad(penalty.mean(), list(critic.parameters()), materialize_grads=True)
        assert all(g.isfinite().all() for g in gradients)

    def test_reaches_the_critic_and_not_the_generator(self):
        generator, critic = nn.Linear(2, 3).double(), smooth_critic(3)
        real, _ = pair(3)
        for points in POINTS:
            fake = generator(torch.randn(6, 2, dtype=torch.float64))
            GradientPenalty(points=points)(critic, real, fake).mean().backward()
            assert all(p.grad is None for p in generator.parameters())
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in critic.parameters())

    def test_without_weight_the_critic_is_not_even_called(self):
        def never(x):
            raise AssertionError

        real, fake = pair(3)
        assert torch.equal(GradientPenalty(weight=0.0)(never, real, fake), torch.zeros(6, dtype=torch.float64))

    def test_under_no_grad_the_values_are_the_same_and_there_is_no_graph(self):
        critic, (real, fake), eps = smooth_critic(3), pair(3), torch.rand(6, dtype=torch.float64)
        with torch.no_grad():
            value = GradientPenalty()(critic, real, fake, eps)
        assert not value.requires_grad
        assert torch.equal(value, GradientPenalty()(critic, real, fake, eps).detach())

    def test_the_one_liner_is_its_mean(self):
        critic, (real, fake) = Linear((3,)), pair(3)
        norm = critic.w.detach().norm()
        torch.testing.assert_close(gradient_penalty(critic, real, fake).detach(), 10 * (norm - 1) ** 2)
        other = gradient_penalty(critic, real, fake, weight=2.0, target=0.0, sides="one", points="real")
        torch.testing.assert_close(other.detach(), 2 * norm**2)

    @pytest.mark.parametrize(
        "bad",
        [
            {"weight": -1.0},
            {"weight": math.nan},
            {"weight": math.inf},
            {"target": -1.0},
            {"sides": "three"},
            {"points": "nowhere"},
        ],
    )
    def test_refuses_settings_that_mean_nothing(self, bad):
        with pytest.raises(ValueError, match=next(iter(bad))):
            GradientPenalty(**bad)


class Mixing(nn.Module):
    """Mixes samples without a norm layer in sight."""

    def forward(self, x):
        return (x - x.mean(0)).square().flatten(1).sum(1)


class TestCheckPerSample:
    def test_passes_critics_whose_scores_stand_alone(self):
        check_per_sample(smooth_critic(3), torch.randn(4, 3, dtype=torch.float64))
        check_per_sample(MNISTCritic((1, 28, 28), width=2), torch.rand(4, 1, 28, 28))
        check_per_sample(nn.LayerNorm(1), torch.randn(4, 1))

    @pytest.mark.parametrize(
        "critic", [Mixing(), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))]
    )
    def test_finds_critics_that_mix_samples(self, critic):
        with pytest.raises(ValueError, match="mixes the samples"):
            check_per_sample(critic, torch.randn(4, 3))

    def test_finds_them_under_no_grad_too(self):
        with torch.no_grad(), pytest.raises(ValueError, match="mixes the samples"):
            check_per_sample(Mixing(), torch.randn(4, 3))

    def test_refuses_to_pass_what_it_cannot_see(self):
        with pytest.raises(ValueError, match="two samples"):
            check_per_sample(Mixing(), torch.randn(1, 3))
        with pytest.raises(ValueError, match="no graph"):
            check_per_sample(lambda x: x.detach().sum(1), torch.randn(4, 3))

    def test_goes_by_what_the_critic_does_and_not_by_its_name(self):
        critic = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).eval()
        check_per_sample(critic, torch.randn(4, 3))

    def test_leaves_running_statistics_alone(self):
        critic = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
        with pytest.raises(ValueError, match="batch norm"):
            check_per_sample(critic, torch.randn(4, 3) + 5)
        assert critic[0].running_mean.eq(0).all()


def test_clip_weights_bounds_every_parameter():
    critic = smooth_critic(3)
    before = [p.detach().clone() for p in critic.parameters()]
    clip_weights_(critic, 0.1)
    assert any(b.abs().max() > 0.1 for b in before)
    for p, b in zip(critic.parameters(), before, strict=True):
        assert torch.equal(p.detach(), b.clamp(-0.1, 0.1))


@pytest.mark.parametrize("bound", [0.0, -0.01])
def test_clip_weights_refuses_a_bound_that_is_none(bound):
    with pytest.raises(ValueError, match="bound"):
        clip_weights_(smooth_critic(3), bound)
