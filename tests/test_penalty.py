import inspect
import math

import pytest
import torch
from helpers import Linear, smooth_critic
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wgangp import GradientPenalty, clip_weights_, gradient_penalty, interpolate
from wgangp.penalty import POINTS, SIDES

SHAPES = [(), (3,), (2, 3), (2, 3, 4), (2, 3, 2, 2)]


def draw_pair(*shape, n=6):
    """n real and n fake points of a shape."""
    return torch.randn(n, *shape, dtype=torch.float64), torch.randn(n, *shape, dtype=torch.float64)


class TestInterpolate:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_is_on_the_segment_with_one_eps_per_sample(self, shape):
        real, fake = draw_pair(*shape)
        eps = torch.rand(6, dtype=torch.float64)
        x_hat = interpolate(real, fake, eps)
        assert x_hat.shape == real.shape
        for i in range(6):
            torch.testing.assert_close(x_hat[i], eps[i] * real[i] + (1 - eps[i]) * fake[i])

    def test_is_real_for_eps_one_and_fake_for_eps_zero(self):
        real, fake = draw_pair(3)
        assert torch.equal(interpolate(real, fake, torch.ones(6)), real)
        assert torch.equal(interpolate(real, fake, torch.zeros(6)), fake)

    def test_raises_if_the_shapes_of_points_or_eps_do_not_fit(self):
        real, fake = draw_pair(3)
        with pytest.raises(ValueError, match="must have the same shape"):
            interpolate(real, fake[:3], torch.rand(6))
        with pytest.raises(ValueError, match=r"must have the same shape$"):  # another number of samples is no remedy
            interpolate(real, fake[:, :2], torch.rand(6))
        for eps in (torch.rand(()), torch.rand(1), torch.rand(6, 3), torch.rand(6, 1), 0.5, [0.5] * 6, None):
            with pytest.raises(ValueError, match="one value per sample"):
                interpolate(real, fake, eps)
            if eps is not None:  # None: it is drawn
                with pytest.raises(ValueError, match="one value per sample"):
                    gradient_penalty(torch.nn.Linear(3, 1), real.float(), fake.float(), eps=eps)


class TestGradientPenalty:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("points", POINTS)
    def test_of_a_linear_critic_has_the_known_value(self, shape, points):
        critic, (real, fake) = Linear(shape), draw_pair(*shape)
        norm = critic.w.detach().norm()
        penalty = GradientPenalty(weight=7.0, target=0.5, points=points)(critic, real, fake)
        assert penalty.shape == (6,)
        torch.testing.assert_close(penalty.detach(), (7 * (norm - 0.5) ** 2).expand(6))

    @given(st.floats(0.01, 3.0))
    def test_one_sided_is_zero_below_the_target(self, norm):
        critic, (real, fake) = Linear((3,)), draw_pair(3)
        with torch.no_grad():
            critic.w.mul_(norm / critic.w.norm())
        one = GradientPenalty(sides="one")(critic, real, fake)
        two = GradientPenalty(sides="two")(critic, real, fake)
        torch.testing.assert_close(two.detach(), torch.full((6,), 10 * (norm - 1) ** 2, dtype=torch.float64))
        torch.testing.assert_close(one, two if norm > 1 else torch.zeros_like(two))

    def test_points_of_each_kind_are_the_documented_ones(self):
        real, fake = draw_pair(2, 3, n=400)
        eps = torch.rand(400, dtype=torch.float64)
        assert GradientPenalty(points="real").at(real, fake, None) is real
        assert GradientPenalty(points="fake").at(real, fake, None) is fake
        assert torch.equal(GradientPenalty().at(real, fake, eps), interpolate(real, fake, eps))
        penalty = GradientPenalty(points="perturbed")
        noise = penalty.draw(real)
        torch.testing.assert_close(penalty.at(real, fake, noise) - real, noise)
        scaled = noise / (0.5 * real.std())
        assert scaled.min() >= 0 and scaled.max() < 1
        assert scaled.mean().item() == pytest.approx(0.25, abs=0.02)  # a u, both U[0, 1)
        assert scaled.flatten(1).mean(1).std().item() > 0.1  # one a per sample, so means differ between samples

    def test_draws_one_eps_per_sample_in_the_unit_interval(self):
        real, _ = draw_pair(2, 3, n=4000)
        eps = GradientPenalty().draw(real)
        assert eps.shape == (4000,) and eps.dtype == real.dtype
        assert eps.min() >= 0 and eps.max() <= 1
        assert len(eps.unique()) > 3990
        assert eps.mean().item() == pytest.approx(0.5, abs=0.02) and eps.var().item() == pytest.approx(1 / 12, abs=0.01)
        assert GradientPenalty(points="real").draw(real) is None

    def test_draws_are_a_function_of_the_rng(self):
        real, _ = draw_pair(3)
        for penalty in (GradientPenalty(), GradientPenalty(points="perturbed")):
            a, b = (penalty.draw(real, torch.Generator().manual_seed(5)) for _ in range(2))
            assert torch.equal(a, b)

    @pytest.mark.parametrize("autocast", [False, True])
    def test_is_computed_in_the_precision_of_the_weights_unless_autocast_is_set(self, autocast):
        critic, (real, fake) = smooth_critic(3).float(), [x.float() for x in draw_pair(3)]
        eps = torch.rand(len(real))
        penalty = GradientPenalty(autocast=autocast)
        expected = penalty(critic, real, fake, eps)
        with torch.autocast("cpu", torch.bfloat16):
            assert critic(real).dtype == torch.bfloat16
            value = penalty(critic, real, fake, eps)
        assert torch.equal(value, expected) != autocast
        torch.testing.assert_close(value.float(), expected, atol=0.1, rtol=0.1)  # bf16 has eight bits of precision

    def test_perturbed_points_raise_if_the_noise_has_another_shape(self):
        real, fake = draw_pair(6)  # (6, 6): one eps per sample would be broadcast along the wrong axis
        with pytest.raises(ValueError, match="shape of the points"):
            GradientPenalty(points="perturbed").at(real, fake, torch.rand(6))

    @pytest.mark.parametrize("points", POINTS)
    def test_draws_eps_if_it_is_left_out(self, points):
        critic, (real, fake) = smooth_critic(3), draw_pair(3)
        penalty = GradientPenalty(points=points)
        torch.manual_seed(3)
        eps = penalty.draw(real)
        torch.manual_seed(3)
        assert torch.equal(penalty(critic, real, fake), penalty(critic, real, fake, eps))

    def test_does_not_depend_on_the_order_or_the_size_of_the_batch(self):
        critic, (real, fake), eps = smooth_critic(6), draw_pair(2, 3), torch.rand(6, dtype=torch.float64)
        whole = GradientPenalty()(critic, real, fake, eps)
        order = torch.randperm(6)
        torch.testing.assert_close(GradientPenalty()(critic, real[order], fake[order], eps[order]), whole[order])
        for i in range(6):
            alone = GradientPenalty()(critic, real[i : i + 1], fake[i : i + 1], eps[i : i + 1])
            torch.testing.assert_close(alone, whole[i : i + 1])

    @pytest.mark.parametrize("sides", SIDES)
    @pytest.mark.parametrize("target", [0.0, 1.0])
    def test_gradient_equals_finite_differences(self, sides, target):
        critic, (real, fake), eps = smooth_critic(6), draw_pair(2, 3), torch.rand(6, dtype=torch.float64)
        for p in critic.parameters():
            nn.init.normal_(p)  # slopes on both sides of 1
        penalty = GradientPenalty(sides=sides, target=target)
        parameters = list(critic.parameters())
        gradients = torch.autograd.grad(penalty(critic, real, fake, eps).mean(), parameters, materialize_grads=True)
        assert any(g.abs().max() > 0.1 for g in gradients)
        for p, gradient in zip(parameters, gradients, strict=True):
            flat = p.detach().view(-1)  # shares the memory of p
            for i in range(len(flat)):
                value, h = flat[i].item(), 1e-6
                values = []
                for sign in (1, -1):
                    flat[i] = value + sign * h
                    values.append(penalty(critic, real, fake, eps).mean().item())
                flat[i] = value
                difference = (values[0] - values[1]) / (2 * h)
                assert gradient.view(-1)[i].item() == pytest.approx(difference, rel=1e-5, abs=1e-7)

    def test_of_a_flat_critic_is_finite_with_a_finite_gradient(self):
        critic, (real, fake) = smooth_critic(3), draw_pair(3)
        for p in critic.parameters():
            nn.init.zeros_(p)
        penalty = GradientPenalty()(critic, real, fake)
        torch.testing.assert_close(penalty.detach(), torch.full((6,), 10.0, dtype=torch.float64))
        gradients = torch.autograd.grad(penalty.mean(), list(critic.parameters()), materialize_grads=True)
        assert all(g.isfinite().all() for g in gradients)

    def test_has_gradients_for_the_critic_and_none_for_the_generator(self):
        generator, critic = nn.Linear(2, 3).double(), smooth_critic(3)
        real, _ = draw_pair(3)
        for points in POINTS:
            fake = generator(torch.randn(6, 2, dtype=torch.float64))
            GradientPenalty(points=points)(critic, real, fake).mean().backward()
            assert all(p.grad is None for p in generator.parameters())
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in critic.parameters())

    @pytest.mark.parametrize("name", ["real", "fake", "eps"])
    def test_complex_points_and_eps_are_refused(self, name):
        batch = dict(zip(["real", "fake"], draw_pair(3), strict=True)) | {"eps": torch.rand(6, dtype=torch.float64)}
        batch[name] = batch[name] + 0j
        with pytest.raises(ValueError, match="complex"):
            GradientPenalty()(lambda x: x.abs().sum(1), **batch)
        with pytest.raises(ValueError, match="complex"):
            interpolate(**batch)

    def test_perturbed_points_of_one_number_are_refused(self):
        x = torch.ones(1, 1)
        with pytest.raises(ValueError, match="standard deviation of at least two numbers"):
            GradientPenalty(points="perturbed")(nn.Linear(1, 1), x, x)

    @pytest.mark.parametrize("points", ["real", "fake", "perturbed"])
    def test_numbers_of_real_and_fake_points_may_differ_without_interpolates(self, points):
        critic, (real, fake) = Linear((3,)), draw_pair(3)
        penalty = GradientPenalty(points=points)
        assert penalty(critic, real[:4], fake).shape == ((6,) if points == "fake" else (4,))

    def test_nan_points_give_a_nan_penalty(self):
        critic, (real, fake) = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).double(), draw_pair(3)
        real[0] = math.nan
        assert GradientPenalty()(critic, real, fake).isnan().tolist() == [True] + [False] * 5

    def test_with_weight_zero_does_not_call_the_critic(self):
        def never_called(x):
            raise AssertionError

        real, fake = draw_pair(3)
        assert torch.equal(GradientPenalty(weight=0.0)(never_called, real, fake), torch.zeros(6, dtype=torch.float64))

    def test_under_no_grad_has_the_same_values_and_no_graph(self):
        critic, (real, fake), eps = smooth_critic(3), draw_pair(3), torch.rand(6, dtype=torch.float64)
        with torch.no_grad():
            value = GradientPenalty()(critic, real, fake, eps)
        assert not value.requires_grad
        assert torch.equal(value, GradientPenalty()(critic, real, fake, eps).detach())

    @pytest.mark.parametrize(
        "invalid",
        [
            {"weight": -1.0},
            {"weight": math.nan},
            {"weight": math.inf},
            {"target": -1.0},
            {"sides": "three"},
            {"points": "nowhere"},
        ],
    )
    def test_raises_if_a_setting_is_invalid(self, invalid):
        with pytest.raises(ValueError, match=next(iter(invalid))):
            GradientPenalty(**invalid)


class TestGradientPenaltyFunction:
    def test_of_a_linear_critic_has_the_known_value(self):
        critic, (real, fake) = Linear((3,)), draw_pair(3)
        norm = critic.w.detach().norm()
        torch.testing.assert_close(gradient_penalty(critic, real, fake).detach(), 10 * (norm - 1) ** 2)
        other = gradient_penalty(critic, real, fake, weight=2.0, target=0.0, sides="one", points="real")
        torch.testing.assert_close(other.detach(), 2 * norm**2)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"weight": 3.0, "target": 0.5, "sides": "one"},
            {"points": "real", "target": 0.0},
            {"points": "fake"},
            {"points": "perturbed"},
        ],
    )
    def test_is_the_mean_of_the_class_for_the_given_eps(self, options):
        critic, (real, fake) = smooth_critic(3), draw_pair(3)
        penalty = GradientPenalty(**options)
        eps = penalty.draw(real)
        mean = penalty(critic, real, fake, eps).mean()
        assert torch.equal(gradient_penalty(critic, real, fake, **options, eps=eps), mean)

    def test_uses_the_given_eps(self):
        critic, (real, fake) = smooth_critic(3), draw_pair(3)
        at_real, at_fake = (gradient_penalty(critic, real, fake, eps=eps) for eps in (torch.ones(6), torch.zeros(6)))
        assert torch.equal(at_real, gradient_penalty(critic, real, fake, points="real"))
        assert torch.equal(at_fake, gradient_penalty(critic, real, fake, points="fake"))
        assert at_real != at_fake

    def test_options_after_the_weight_are_keyword_only(self):
        critic, (real, fake) = smooth_critic(3), draw_pair(3)
        with pytest.raises(TypeError, match="positional"):
            gradient_penalty(critic, real, fake, 10.0, 1.0)
        kinds = {name: p.kind for name, p in inspect.signature(gradient_penalty).parameters.items()}
        keyword_only = {name for name, kind in kinds.items() if kind is inspect.Parameter.KEYWORD_ONLY}
        assert keyword_only == {"target", "sides", "points", "eps", "y"}


def test_clip_weights_bounds_every_parameter():
    critic = smooth_critic(3)
    before = [p.detach().clone() for p in critic.parameters()]
    clip_weights_(critic, 0.1)
    assert any(b.abs().max() > 0.1 for b in before)
    for p, b in zip(critic.parameters(), before, strict=True):
        assert torch.equal(p.detach(), b.clamp(-0.1, 0.1))


@pytest.mark.parametrize("bound", [0.0, -0.01])
def test_clip_weights_raises_if_the_bound_is_not_positive(bound):
    with pytest.raises(ValueError, match="bound"):
        clip_weights_(smooth_critic(3), bound)


@pytest.mark.parametrize(("points", "weight"), [("real", 10.0), ("fake", 10.0), ("real", 0.0), ("interpolates", 0.0)])
def test_labels_in_the_place_of_eps_are_refused_also_where_no_eps_is_used(points, weight):
    x, labels = torch.randn(3, 2), torch.tensor([0, 1, 2])
    critic = lambda x, y=None: x.sum(1)  # noqa: E731 - it would work without labels
    penalty = GradientPenalty(weight, points=points)
    with pytest.raises(ValueError, match="Labels come after eps, which may be None"):
        penalty(critic, x, x + 1, labels)
    assert penalty(critic, x, x + 1, None, labels).shape == (3,)
