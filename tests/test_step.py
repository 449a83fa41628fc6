import copy

import pytest
import torch
from conftest import Linear, smooth_critic
from torch import nn

from wgangp import GradientPenalty, critic_step, generator_step, total_norm
from wgangp.losses import Wasserstein
from wgangp.networks.dcgan import MNISTCritic
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.step import critic_objective, generator_objective

OFF = GradientPenalty(weight=0.0)


def players(width=16):
    return MLPGenerator((2,), width=width).double(), MLPCritic((2,), width=width).double()


def batch(n=32):
    return torch.randn(n, 2, dtype=torch.float64) + 2, torch.randn(n, 2, dtype=torch.float64)


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def same(module, before):
    return all(torch.equal(p.detach(), b) for p, b in zip(module.parameters(), before, strict=True))


def test_the_wasserstein_loss_is_equation_2_one_value_a_sample():
    real, fake = torch.randn(5), torch.randn(5)
    assert torch.equal(Wasserstein().critic(real, fake), fake - real)
    assert torch.equal(Wasserstein().generator(fake), -fake)


def test_the_critic_objective_is_equation_3():
    _, critic = players()
    real, fake = batch()
    eps = torch.rand(32, dtype=torch.float64)
    terms = critic_objective(critic, real, fake, eps)
    torch.testing.assert_close(terms["wasserstein"], critic(real).mean() - critic(fake).mean())
    torch.testing.assert_close(terms["penalty"], GradientPenalty()(critic, real, fake, eps).mean())
    torch.testing.assert_close(terms["critic_loss"], terms["penalty"] - terms["wasserstein"])


def test_the_critic_objective_reaches_the_critic_and_not_the_generator():
    generator, critic = players()
    real, _ = batch()
    critic_objective(critic, real, generator(torch.randn(32, 2, dtype=torch.float64)))["critic_loss"].backward()
    assert all(p.grad is None for p in generator.parameters())
    assert all(p.grad is not None for p in critic.parameters())


def test_the_steps_follow_the_gradient_of_their_objective():
    """One plain gradient step, against autograd on the formula: the gradient is compared, not the loss."""
    generator, critic = players()
    (real, fake), z = batch(), torch.randn(32, 2, dtype=torch.float64)
    eps = torch.rand(32, dtype=torch.float64)
    before = copy.deepcopy(critic), copy.deepcopy(generator)
    critic_step(critic, torch.optim.SGD(critic.parameters(), lr=0.1), real, fake, eps)
    generator_step(generator, before[0], torch.optim.SGD(generator.parameters(), lr=0.1), z)

    x_hat = (eps[:, None] * real + (1 - eps[:, None]) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(before[0](x_hat).sum(), x_hat, create_graph=True)
    loss = before[0](fake).mean() - before[0](real).mean() + 10 * ((gradient.norm(dim=1) - 1) ** 2).mean()
    expected = torch.autograd.grad(loss, list(before[0].parameters()), materialize_grads=True)
    for new, old, g in zip(critic.parameters(), before[0].parameters(), expected, strict=True):
        torch.testing.assert_close(new, old - 0.1 * g)
    expected = torch.autograd.grad(-before[0](before[1](z)).mean(), list(before[1].parameters()))
    for new, old, g in zip(generator.parameters(), before[1].parameters(), expected, strict=True):
        torch.testing.assert_close(new, old - 0.1 * g)


def test_a_critic_step_raises_wasserstein_and_moves_only_the_critic():
    generator, critic = players()
    real, _ = batch()
    fake = generator(torch.randn(32, 2, dtype=torch.float64))  # with its graph, on purpose
    before = weights(critic), weights(generator)
    optimizer = torch.optim.SGD(critic.parameters(), lr=1e-3)
    first = critic_step(critic, optimizer, real, fake, penalty=OFF)
    second = critic_objective(critic, real, fake, penalty=OFF)
    assert second["wasserstein"] > first["wasserstein"]
    assert not same(critic, before[0]) and same(generator, before[1])
    assert all(p.grad is None for p in generator.parameters())
    assert all(not term.requires_grad for term in first.values())


def test_a_critic_step_lowers_its_objective_with_the_penalty():
    _, critic = players()
    (real, fake), eps = batch(), torch.rand(32, dtype=torch.float64)
    first = critic_step(critic, torch.optim.SGD(critic.parameters(), lr=1e-3), real, fake, eps)
    assert critic_objective(critic, real, fake, eps)["critic_loss"] < first["critic_loss"]


def test_a_generator_step_raises_its_score_and_moves_only_the_generator():
    generator, critic = players()
    z = torch.randn(32, 2, dtype=torch.float64)
    before = weights(critic), weights(generator)
    first = generator_step(generator, critic, torch.optim.SGD(generator.parameters(), lr=1e-3), z)
    assert generator_objective(generator, critic, z)["generator_loss"] < first["generator_loss"]
    assert same(critic, before[0]) and not same(generator, before[1])
    assert all(p.grad is None for p in critic.parameters())  # not even computed


def test_the_clip_bound_holds_after_every_step():
    _, critic = players()
    optimizer = torch.optim.RMSprop(critic.parameters(), lr=0.05)
    for _ in range(5):
        critic_step(critic, optimizer, *batch(), penalty=OFF, clip_weights=0.01)
        assert max(p.abs().max() for p in critic.parameters()) <= 0.01


def test_clipping_the_gradient_bounds_the_step():
    generator, critic = players()
    before = weights(critic), weights(generator)
    real, fake = batch()
    critic_step(critic, torch.optim.SGD(critic.parameters(), lr=1.0), real, fake, clip_gradient_norm=1e-3)
    z = torch.randn(32, 2, dtype=torch.float64)
    generator_step(generator, critic, torch.optim.SGD(generator.parameters(), lr=1.0), z, clip_gradient_norm=1e-3)
    for module, old in zip((critic, generator), before, strict=True):
        moved = total_norm(p.detach() - b for p, b in zip(module.parameters(), old, strict=True))
        torch.testing.assert_close(moved.item(), 1e-3, rtol=1e-9, atol=0)


def test_regularising_adds_the_squared_norm_of_the_gradient():
    """The step with it, against finite differences of J + weight ||grad J||^2 on a smooth critic."""
    critic = smooth_critic(2, width=4)
    (real, fake), eps, weight = batch(8), torch.rand(8, dtype=torch.float64), 0.05
    before = copy.deepcopy(critic)
    critic_step(critic, torch.optim.SGD(critic.parameters(), lr=1.0), real, fake, eps, regularize_gradient_norm=weight)

    def total():
        parameters = list(before.parameters())
        terms = critic_objective(before, real, fake, eps)
        gradients = torch.autograd.grad(terms["critic_loss"], parameters, materialize_grads=True)
        return (terms["critic_loss"] + weight * total_norm(gradients) ** 2).item()

    for old, new in zip(before.parameters(), critic.parameters(), strict=True):
        taken = (old - new).detach().view(-1)
        flat = old.detach().view(-1)
        for i in range(len(flat)):
            value, h = flat[i].item(), 1e-6
            around = []
            for sign in (1, -1):
                flat[i] = value + sign * h
                around.append(total())
            flat[i] = value
            assert taken[i].item() == pytest.approx((around[0] - around[1]) / (2 * h), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("mu, weight", [((0.6, -0.8), 10.0), ((3.0, 4.0), 10.0), ((0.5, 0.0), 0.5)])
def test_a_linear_critic_trained_against_a_shift_has_the_norm_in_closed_form(mu, weight):
    """||w|| = 1 + ||mu|| / (2 weight), along mu: the optimum of -w.mu + weight (||w|| - 1)^2."""
    mu = torch.tensor(mu, dtype=torch.float64)
    critic = Linear((2,))
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.02 / weight * 5)
    for _ in range(2000):
        fake = torch.randn(16, 2, dtype=torch.float64)
        critic_step(critic, optimizer, fake + mu, fake, penalty=GradientPenalty(weight))
    torch.testing.assert_close(critic.w.detach(), mu / mu.norm() * (1 + mu.norm() / (2 * weight)))


def test_the_fused_optimiser_takes_the_same_path_on_convolutions():
    """autograd.grad hands a convolution's weight gradient over with strides of its own, which fused Adam misreads."""
    real, fake, eps = torch.rand(4, 1, 28, 28).double(), torch.rand(4, 1, 28, 28).double(), torch.rand(4).double()
    critics = [MNISTCritic((1, 28, 28), width=4).double()]
    critics.append(copy.deepcopy(critics[0]))
    for critic, fused in zip(critics, (False, True), strict=True):
        optimizer = torch.optim.Adam(critic.parameters(), lr=0.01, betas=(0.0, 0.9), fused=fused)
        for _ in range(5):
            critic_step(critic, optimizer, real, fake, eps)
    for a, b in zip(*(critic.parameters() for critic in critics), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert any(p.stride() != g.stride() for p, g in _raw_gradients(critics[0], real, fake)), "the trap is gone"


def _raw_gradients(critic, real, fake):
    loss = critic_objective(critic, real, fake)["critic_loss"]
    parameters = list(critic.parameters())
    return zip(parameters, torch.autograd.grad(loss, parameters, materialize_grads=True), strict=True)


@pytest.mark.parametrize("weight, batches", [(10.0, [64, 32]), (0.0, [32, 32])])
def test_a_penalised_critic_scores_both_kinds_in_one_pass_and_another_a_kind_a_batch(weight, batches):
    _, critic = players()
    seen = []
    critic.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    real, fake = batch()
    terms = critic_objective(critic, real, fake, penalty=GradientPenalty(weight))
    assert seen == batches
    gap = critic(real).mean() - critic(fake).mean()
    torch.testing.assert_close(terms["wasserstein"], gap, rtol=1e-12, atol=1e-12)


def test_batches_of_two_sizes_are_not_mixed_up():
    _, critic = players()
    real, fake = batch()
    with pytest.raises((RuntimeError, ValueError)):
        critic_objective(critic, real, fake[:10], penalty=GradientPenalty(points="real"))


def test_gradients_are_freed_after_a_step():
    generator, critic = players()
    critic_step(critic, torch.optim.SGD(critic.parameters(), lr=0.1), *batch())
    generator_step(generator, critic, torch.optim.SGD(generator.parameters(), lr=0.1), batch()[0])
    assert all(p.grad is None for p in (*critic.parameters(), *generator.parameters()))


def test_frozen_parameters_stay():
    _, critic = players()
    critic.layers[0].weight.requires_grad_(False)
    before = critic.layers[0].weight.clone()
    critic_step(critic, torch.optim.SGD(critic.parameters(), lr=0.1), *batch())
    assert torch.equal(critic.layers[0].weight, before)


def test_any_critic_and_any_points_do():
    """The steps know nothing of a point's shape: here, one-hot text."""
    generator = nn.Sequential(nn.Linear(3, 20), nn.Unflatten(1, (4, 5)), nn.Softmax(-1))
    critic = nn.Sequential(nn.Flatten(), nn.Linear(20, 1), nn.Flatten(0))
    real, fake = torch.eye(5)[torch.randint(5, (6, 4))], generator(torch.randn(6, 3))
    assert critic_step(critic, torch.optim.SGD(critic.parameters(), lr=0.1), real, fake)["penalty"] > 0
    generator_step(generator, critic, torch.optim.SGD(generator.parameters(), lr=0.1), torch.randn(6, 3))
