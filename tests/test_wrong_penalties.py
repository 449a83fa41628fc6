"""The penalties of other public code against their formulas, which are written out."""

import pytest
import torch
from helpers import Linear, smooth_critic
from torch import nn

from wgangp import GradientPenalty
from wgangp.config import build_run
from wgangp.figures.wrong_penalties import ChannelPenalty, ColumnPenalty
from wgangp.report import report

PENALTIES = {ChannelPenalty: 1, ColumnPenalty: 2}  # class -> the axis of (B, C, H, W) that its norms are over
CASES = [(penalty, channels) for penalty in PENALTIES for channels in (1, 3)]


def draw_pairs(channels, count=3, rows=4, columns=5):
    rng = torch.Generator().manual_seed(channels)
    return [torch.rand(count, channels, rows, columns, generator=rng, dtype=torch.float64) for _ in range(2)]


def write_out(critic, points, axis, weight, target=1.0):
    """weight * mean over all norms of (norm - target)^2, one point after another, with a graph to the parameters."""
    values = []
    for point in points:
        x = point.clone().requires_grad_()
        (g,) = torch.autograd.grad(critic(x.unsqueeze(0)).sum(), x, create_graph=True)  # (C, H, W)
        norms = [sum(part**2 for part in parts) ** 0.5 for parts in zip(*g.unbind(axis - 1), strict=True)]
        values.append(weight * torch.stack([((norm - target) ** 2).mean() for norm in norms]).mean())
    return torch.stack(values)


@pytest.mark.parametrize(("penalty", "channels"), CASES)
def test_values_and_parameter_gradients_are_those_of_the_formula(penalty, channels):
    real, fake = draw_pairs(channels)
    critic, p = smooth_critic(channels * 20), penalty(weight=3.0)
    eps = p.draw(real, torch.Generator().manual_seed(0))
    points = torch.stack([e * x + (1 - e) * y for e, x, y in zip(eps, real, fake, strict=True)])
    values, expected = p(critic, real, fake, eps), write_out(critic, points, PENALTIES[penalty], 3.0)
    assert values.shape == (3,)
    torch.testing.assert_close(values, expected, atol=1e-12, rtol=1e-10)
    parameters = [q for name, q in critic.named_parameters() if name != "3.bias"]  # which moves no gradient
    ours, direct = (torch.autograd.grad(v.mean(), parameters) for v in (values, expected))
    for a, b in zip(ours, direct, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-8)
    assert not torch.allclose(values, GradientPenalty(3.0)(critic, real, fake, torch.full((3,), 0.5).double()))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_parameter_gradients_are_finite_differences_of_the_values(penalty):
    real, fake = draw_pairs(3)
    critic, p = smooth_critic(60, width=3), penalty()
    eps = p.draw(real, torch.Generator().manual_seed(0))
    weight = critic[1].weight
    (gradient,) = torch.autograd.grad(p(critic, real, fake, eps).sum(), weight)
    for place in ((0, 0), (2, 31), (1, 59)):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[place] += step
                values.append(p(critic, real, fake, eps).sum().item())
                weight[place] -= step
        assert gradient[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_eps_is_per_element_where_the_norms_are_over_the_channels_and_per_sample_otherwise():
    real, _ = draw_pairs(3)
    for penalty, shape in ((ChannelPenalty, real.shape), (ColumnPenalty, (3,))):
        eps = penalty().draw(real, torch.Generator().manual_seed(0))
        assert eps.shape == shape
        assert eps.dtype == real.dtype
        assert 0 <= eps.min() < 0.5 < eps.max() <= 1
        assert torch.equal(eps, penalty().draw(real, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(("penalty", "channels"), CASES)
def test_linear_critic_is_best_where_the_norms_of_the_parts_are_1_in_the_mean(penalty, channels):
    """D(x) = a w . x has the norms a n_k: mean (a n_k - 1)^2 is smallest at a = sum n_k / sum n_k^2."""
    real, fake = draw_pairs(channels)
    critic, p = Linear(real.shape[1:]), penalty()
    norms = critic.w.detach().square().sum(PENALTIES[penalty] - 1).sqrt().flatten()
    best = (norms.sum() / norms.square().sum()).item()

    def compute_value(scale):
        return p(lambda x: scale * critic(x), real, fake).mean()

    assert compute_value(best) < min(compute_value(best * 0.99), compute_value(best * 1.01))
    scale = torch.tensor(best, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(compute_value(scale), scale)
    assert abs(slope.item()) < 1e-10


@pytest.mark.parametrize(("penalty", "channels", "slope"), [(ChannelPenalty, 3, 20**0.5), (ColumnPenalty, 3, 15**0.5)])
def test_penalty_is_0_where_the_slope_is_the_root_of_the_number_of_norms(penalty, channels, slope):
    """20 pixels, or 3 x 5 columns: each norm is 1. The right penalty of this critic is large."""
    real, fake = draw_pairs(channels)
    critic, w = Linear(real.shape[1:]), torch.ones(real.shape[1:], dtype=torch.float64)
    critic.w.data = w / w.square().sum(PENALTIES[penalty] - 1, keepdim=True).sqrt()
    assert critic.w.norm().item() == pytest.approx(slope)
    assert penalty()(critic, real, fake).max() < 1e-12
    torch.testing.assert_close(
        GradientPenalty()(critic, real, fake), torch.full((3,), 10 * (slope - 1) ** 2, dtype=torch.float64)
    )


@pytest.mark.parametrize("penalty", PENALTIES)
def test_options_that_would_be_ignored_are_refused(penalty):
    for options in ({"sides": "one"}, {"points": "real"}):
        with pytest.raises(ValueError, match="this penalty has sides=two and points=interpolates"):
            penalty(**options)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_derivatives_are_finite_where_the_gradient_is_zero(penalty):
    """A critic that ignores the upper half of the picture: the norms there are 0, and cost target^2 each."""
    real, fake = draw_pairs(1)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(20, 1)).double()
    critic[1].weight.data[:, :10] = 0
    columns = penalty is ColumnPenalty
    if columns:  # all rows of two columns
        critic[1].weight.data.view(4, 5)[:, :2] = 0
    value = penalty()(critic, real, fake).mean()
    (first,) = torch.autograd.grad(value, critic[1].weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), critic[1].weight)
    assert first.isfinite().all()
    assert second.isfinite().all()
    w = critic[1].weight.detach().view(4, 5)
    norms = w.square().sum(0).sqrt() if columns else w.abs().flatten()
    assert (norms == 0).sum() == (2 if columns else 10)
    assert value.item() == pytest.approx(10 * (norms - 1).square().mean().item())


def test_labels_in_the_place_of_eps_are_refused():
    real, fake = draw_pairs(3)
    for penalty in PENALTIES:
        with pytest.raises(ValueError, match="Labels come after eps"):
            penalty()(smooth_critic(60), real, fake, torch.zeros(5))  # as long as a row of pixels


def test_values_are_the_same_without_a_graph():
    real, fake = draw_pairs(3)
    critic, p = smooth_critic(60), ChannelPenalty()
    eps = p.draw(real, torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = p(critic, real, fake, eps)
    assert not values.requires_grad
    assert torch.equal(values, p(critic, real, fake, eps).detach())


@pytest.mark.parametrize("penalty", PENALTIES)
def test_parameter_gradients_are_the_same_inside_of_a_transform_as_in_compiled_steps(penalty):
    real, fake = draw_pairs(3)
    critic, p = smooth_critic(60), penalty()
    eps = p.draw(real, torch.Generator().manual_seed(0))

    def compute_value(parameters):
        return p(lambda x: torch.func.functional_call(critic, parameters, (x,)), real, fake, eps).mean()

    parameters = dict(critic.named_parameters())
    expected = torch.autograd.grad(compute_value(parameters), [*parameters.values()], materialize_grads=True)
    gradients = torch.func.grad(compute_value)({name: q.detach() for name, q in parameters.items()})
    torch.testing.assert_close([*gradients.values()], [*expected])


def test_run_is_built_and_reported_only_with_trust(configure, small_mnist):
    name = "wgangp.figures.wrong_penalties.ColumnPenalty"
    tiny = ("networks.generator.width=2", "networks.critic.width=2", "train.batch_size=4", "train.report_size=4")
    cfg = configure("experiment=mnist", f"data.root={small_mnist}", *tiny, f"penalty._target_={name}")
    with pytest.raises(ValueError, match="only names under"):
        build_run(cfg)
    run = build_run(cfg, trust=["wgangp.figures"])
    assert type(run.penalty) is ColumnPenalty
    assert report(run, 0, 4)["penalty"] > 0
