"""Algorithm 1: the terms of a step, its two halves, and its options."""

import copy
import inspect
from types import SimpleNamespace

import pytest
import torch
from helpers import Function, Linear, smooth_critic
from labeled import LabeledCritic, LabeledGenerator
from torch import nn

from wgangp import (
    GradientPenalty,
    check_per_sample,
    clip_weights_,
    critic_step,
    generator_step,
    gradient_penalty,
    slope_statistics,
    total_norm,
)
from wgangp.losses import Wasserstein
from wgangp.networks.dcgan import MNISTCritic
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.step import critic_gradients, critic_objective, descend, generator_gradients, generator_objective

NO_PENALTY = GradientPenalty(weight=0.0)


def build_networks(width=16):
    return MLPGenerator((2,), width=width).double(), MLPCritic((2,), width=width).double()


def draw_batch(size=32):
    """real, fake (B, 2)"""
    return torch.randn(size, 2, dtype=torch.float64) + 2, torch.randn(size, 2, dtype=torch.float64)


def copy_weights(network):
    return [p.detach().clone() for p in network.parameters()]


def has_weights(network, weights):
    return all(torch.equal(p.detach(), w) for p, w in zip(network.parameters(), weights, strict=True))


def test_critic_objective_is_equation_3():
    _, critic = build_networks()
    real, fake = draw_batch()
    eps = torch.rand(32, dtype=torch.float64)
    terms = critic_objective(critic, real, fake, eps)
    torch.testing.assert_close(terms["wasserstein"], critic(real).mean() - critic(fake).mean())
    torch.testing.assert_close(terms["penalty"], GradientPenalty()(critic, real, fake, eps).mean())
    torch.testing.assert_close(terms["critic_loss"], terms["penalty"] - terms["wasserstein"])


def test_critic_objective_reaches_the_critic_and_not_the_generator():
    generator, critic = build_networks()
    real, _ = draw_batch()
    critic_objective(critic, real, generator(torch.randn(32, 2, dtype=torch.float64)))["critic_loss"].backward()
    assert all(p.grad is None for p in generator.parameters())
    assert all(p.grad is not None for p in critic.parameters())


@pytest.mark.parametrize("penalty", [GradientPenalty(), NO_PENALTY], ids=["penalty", "no penalty"])
def test_terms_come_in_a_fixed_order(penalty):
    generator, critic = build_networks()
    (real, fake), z = draw_batch(), torch.randn(32, 2, dtype=torch.float64)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (generator, critic)]
    for terms in (
        critic_objective(critic, real, fake, penalty=penalty),
        critic_gradients(critic, real, fake, penalty=penalty)[0],
        critic_step(critic, optimizers[1], real, fake, penalty=penalty),
    ):
        assert list(terms) == ["wasserstein", "penalty", "critic_loss"]
        assert all(term.shape == () for term in terms.values())
    for terms in (
        generator_objective(generator, critic, z),
        generator_gradients(generator, critic, z)[0],
        generator_step(generator, critic, optimizers[0], z),
    ):
        assert list(terms) == ["generator_loss"] and terms["generator_loss"].shape == ()


def test_steps_follow_the_gradient_of_their_objective():
    """One plain gradient step, against autograd on the formula: the gradient is compared, not the loss."""
    generator, critic = build_networks()
    (real, fake), z = draw_batch(), torch.randn(32, 2, dtype=torch.float64)
    eps = torch.rand(32, dtype=torch.float64)
    old_critic, old_generator = copy.deepcopy(critic), copy.deepcopy(generator)
    critic_step(critic, torch.optim.SGD(critic.parameters(), lr=0.1), real, fake, eps)
    generator_step(generator, old_critic, torch.optim.SGD(generator.parameters(), lr=0.1), z)

    x_hat = (eps[:, None] * real + (1 - eps[:, None]) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(old_critic(x_hat).sum(), x_hat, create_graph=True)
    loss = old_critic(fake).mean() - old_critic(real).mean() + 10 * ((gradient.norm(dim=1) - 1) ** 2).mean()
    expected = torch.autograd.grad(loss, list(old_critic.parameters()), materialize_grads=True)
    for new, old, g in zip(critic.parameters(), old_critic.parameters(), expected, strict=True):
        torch.testing.assert_close(new, old - 0.1 * g)
    expected = torch.autograd.grad(-old_critic(old_generator(z)).mean(), list(old_generator.parameters()))
    for new, old, g in zip(generator.parameters(), old_generator.parameters(), expected, strict=True):
        torch.testing.assert_close(new, old - 0.1 * g)


OPTIONS = {
    "plain": {},
    "gradient clipped": {"clip_gradient_norm": 0.1},
    "regularized": {"regularize_gradient_norm": 0.05},
    "both": {"clip_gradient_norm": 0.1, "regularize_gradient_norm": 0.05},
}


def split(options):
    """The options of the gradients, and the positional arguments after the optimizer of descend."""
    options = dict(options)
    clip = options.pop("clip_gradient_norm", None)
    return options, [] if clip is None else [clip]


@pytest.mark.parametrize("clip_weights", [None, 0.05])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_critic_step_is_its_two_halves_and_weight_clipping_bit_for_bit(options, clip_weights):
    _, critic = build_networks()
    other = copy.deepcopy(critic)
    optimizers = [torch.optim.Adam(c.parameters(), lr=0.01, betas=(0.0, 0.9)) for c in (critic, other)]
    gradient_options, clip = split(options)
    for _ in range(3):
        (real, fake), eps = draw_batch(), torch.rand(32, dtype=torch.float64)
        terms = critic_step(critic, optimizers[0], real, fake, eps, clip_weights=clip_weights, **options)
        expected, gradients = critic_gradients(other, real, fake, eps, **gradient_options)
        descend(other, gradients, optimizers[1], *clip)
        if clip_weights is not None:
            clip_weights_(other, clip_weights)
        assert list(terms) == list(expected)
        assert all(torch.equal(terms[name], expected[name]) for name in terms)
        assert has_weights(critic, copy_weights(other))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_generator_step_is_its_two_halves_bit_for_bit(options):
    generator, critic = build_networks()
    other = copy.deepcopy(generator)
    optimizers = [torch.optim.Adam(g.parameters(), lr=0.01, betas=(0.0, 0.9)) for g in (generator, other)]
    gradient_options, clip = split(options)
    for _ in range(3):
        z = torch.randn(32, 2, dtype=torch.float64)
        terms = generator_step(generator, critic, optimizers[0], z, **options)
        expected, gradients = generator_gradients(other, critic, z, **gradient_options)
        descend(other, gradients, optimizers[1], *clip)
        assert list(terms) == list(expected) == ["generator_loss"]
        assert torch.equal(terms["generator_loss"], expected["generator_loss"])
        assert has_weights(generator, copy_weights(other))


@pytest.mark.parametrize("step", [critic_step, generator_step])
def test_steps_do_not_take_gradients(step):
    """Such an argument would silently override penalty and loss. Use `descend` for gradients of your own."""
    assert "gradients" not in inspect.signature(step).parameters


def test_critic_step_raises_wasserstein_and_updates_only_the_critic():
    generator, critic = build_networks()
    real, _ = draw_batch()
    fake = generator(torch.randn(32, 2, dtype=torch.float64))  # with its graph, on purpose
    before = copy_weights(critic), copy_weights(generator)
    optimizer = torch.optim.SGD(critic.parameters(), lr=1e-3)
    first = critic_step(critic, optimizer, real, fake, penalty=NO_PENALTY)
    second = critic_objective(critic, real, fake, penalty=NO_PENALTY)
    assert second["wasserstein"] > first["wasserstein"]
    assert not has_weights(critic, before[0]) and has_weights(generator, before[1])
    assert all(p.grad is None for p in generator.parameters())
    assert all(not term.requires_grad for term in first.values())


def test_critic_step_with_the_penalty_lowers_its_objective():
    _, critic = build_networks()
    (real, fake), eps = draw_batch(), torch.rand(32, dtype=torch.float64)
    first = critic_step(critic, torch.optim.SGD(critic.parameters(), lr=1e-3), real, fake, eps)
    assert critic_objective(critic, real, fake, eps)["critic_loss"] < first["critic_loss"]


def test_generator_step_raises_the_score_and_updates_only_the_generator():
    generator, critic = build_networks()
    z = torch.randn(32, 2, dtype=torch.float64)
    before = copy_weights(critic), copy_weights(generator)
    first = generator_step(generator, critic, torch.optim.SGD(generator.parameters(), lr=1e-3), z)
    assert generator_objective(generator, critic, z)["generator_loss"] < first["generator_loss"]
    assert has_weights(critic, before[0]) and not has_weights(generator, before[1])
    assert all(p.grad is None for p in critic.parameters())  # not even computed


def test_weights_are_within_the_bound_after_every_critic_step():
    _, critic = build_networks()
    optimizer = torch.optim.RMSprop(critic.parameters(), lr=0.05)
    for _ in range(5):
        critic_step(critic, optimizer, *draw_batch(), penalty=NO_PENALTY, clip_weights=0.01)
        assert max(p.abs().max() for p in critic.parameters()) <= 0.01


def test_clip_gradient_norm_bounds_the_length_of_a_step():
    generator, critic = build_networks()
    before = copy_weights(critic), copy_weights(generator)
    real, fake = draw_batch()
    critic_step(critic, torch.optim.SGD(critic.parameters(), lr=1.0), real, fake, clip_gradient_norm=1e-3)
    z = torch.randn(32, 2, dtype=torch.float64)
    generator_step(generator, critic, torch.optim.SGD(generator.parameters(), lr=1.0), z, clip_gradient_norm=1e-3)
    for network, old in zip((critic, generator), before, strict=True):
        length = total_norm(p.detach() - b for p, b in zip(network.parameters(), old, strict=True))
        torch.testing.assert_close(length.item(), 1e-3, rtol=1e-9, atol=0)


def test_regularize_gradient_norm_adds_the_squared_norm_of_the_gradient():
    """The step, against finite differences of J + weight ||grad J||^2 on a smooth critic."""
    critic = smooth_critic(2, width=4)
    (real, fake), eps, weight = draw_batch(8), torch.rand(8, dtype=torch.float64), 0.05
    before = copy.deepcopy(critic)
    critic_step(critic, torch.optim.SGD(critic.parameters(), lr=1.0), real, fake, eps, regularize_gradient_norm=weight)

    def regularized_objective():
        parameters = list(before.parameters())
        terms = critic_objective(before, real, fake, eps)
        gradients = torch.autograd.grad(terms["critic_loss"], parameters, materialize_grads=True)
        return (terms["critic_loss"] + weight * total_norm(gradients) ** 2).item()

    for old, new in zip(before.parameters(), critic.parameters(), strict=True):
        gradient = (old - new).detach().view(-1)
        flat = old.detach().view(-1)
        for i in range(len(flat)):
            value, h = flat[i].item(), 1e-6
            values = []
            for sign in (1, -1):
                flat[i] = value + sign * h
                values.append(regularized_objective())
            flat[i] = value
            assert gradient[i].item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4, abs=1e-6)


def test_batches_of_two_sizes_are_named_and_not_their_parts():
    critic, (real, fake) = smooth_critic(2), draw_batch(8)
    with pytest.raises(ValueError, match=r"\(8, 2\).*\(4, 2\)"):
        critic_step(critic, torch.optim.SGD(critic.parameters()), real, fake[:4], accumulate=2)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_fused_attention_is_replaced_only_for_second_derivatives(weight):
    fused = []

    def note(x):
        fused.append(torch.backends.cuda.flash_sdp_enabled())
        return x

    generator, critic = nn.Sequential(Function(note), nn.Linear(2, 2)).double(), smooth_critic(2)
    generator_gradients(generator, critic, draw_batch(8)[0], regularize_gradient_norm=weight)
    assert fused == [weight == 0]
    fused.clear()
    critic = nn.Sequential(Function(note), smooth_critic(2))
    no_penalty = GradientPenalty(weight=0.0)
    critic_gradients(critic, *draw_batch(8), None, penalty=no_penalty, regularize_gradient_norm=weight)
    assert set(fused) == {weight == 0}


@pytest.mark.parametrize("mu, weight", [((0.6, -0.8), 10.0), ((3.0, 4.0), 10.0), ((0.5, 0.0), 0.5)])
def test_linear_critic_of_a_shifted_distribution_converges_to_the_closed_form(mu, weight):
    """||w|| = 1 + ||mu|| / (2 weight), along mu: the optimum of -w.mu + weight (||w|| - 1)^2."""
    mu = torch.tensor(mu, dtype=torch.float64)
    critic = Linear((2,))
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.5 / weight)
    for _ in range(500):
        fake = torch.randn(16, 2, dtype=torch.float64)
        critic_step(critic, optimizer, fake + mu, fake, penalty=GradientPenalty(weight))
    torch.testing.assert_close(critic.w.detach(), mu / mu.norm() * (1 + mu.norm() / (2 * weight)))


def test_fused_optimizer_gives_the_same_convolutions_as_the_plain_one():
    """The gradient of a convolution has other strides than its weight. Fused Adam would misread it."""
    real, fake, eps = torch.rand(4, 1, 28, 28).double(), torch.rand(4, 1, 28, 28).double(), torch.rand(4).double()
    critics = [MNISTCritic((1, 28, 28), width=4).double()]
    critics.append(copy.deepcopy(critics[0]))
    for critic, fused in zip(critics, (False, True), strict=True):
        optimizer = torch.optim.Adam(critic.parameters(), lr=0.01, betas=(0.0, 0.9), fused=fused)
        for _ in range(5):
            critic_step(critic, optimizer, real, fake, eps)
    for a, b in zip(*(critic.parameters() for critic in critics), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    _, gradients = critic_gradients(critics[0], real, fake)
    strides_differ = (p.stride() != g.stride() for p, g in zip(critics[0].parameters(), gradients, strict=True))
    assert any(strides_differ), "all strides are equal, so this test does not test the copy in descend any more"


@pytest.mark.parametrize("weight, batches", [(10.0, [64, 32]), (0.0, [32, 32])])
def test_real_and_fake_samples_share_a_pass_only_if_there_is_a_penalty(weight, batches):
    _, critic = build_networks()
    sizes = []
    critic.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    real, fake = draw_batch()
    terms = critic_objective(critic, real, fake, penalty=GradientPenalty(weight))
    assert sizes == batches
    gap = critic(real).mean() - critic(fake).mean()
    torch.testing.assert_close(terms["wasserstein"], gap, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("penalty", [GradientPenalty(), GradientPenalty(points="real"), NO_PENALTY])
def test_batches_of_different_sizes_or_without_samples_raise_before_anything_moves(penalty):
    _, critic = build_networks()
    (real, fake), before = draw_batch(), copy_weights(critic)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    for batch, message in (((real, fake[:10]), r"real \(32, 2\) and fake \(10, 2\)"), ((real[:0],) * 2, "one sample")):
        with pytest.raises(ValueError, match=message):
            critic_step(critic, optimizer, *batch, penalty=penalty)
    assert has_weights(critic, before)
    with pytest.raises(ValueError, match="one sample"):
        generator_step(build_networks()[0], critic, optimizer, real[:0])


@pytest.mark.parametrize("step", ["critic", "generator"])
def test_labels_come_after_eps_or_as_the_keyword_y(step):
    labels, (real, fake), updated = torch.tensor([0, 1, 2, 0]), draw_batch(4), []
    networks = LabeledGenerator().double(), LabeledCritic().double()
    for positional, keyword in (((labels,), {}), ((), {"y": (labels,)})):
        generator, critic = copy.deepcopy(networks)
        optimizer = torch.optim.SGD((critic if step == "critic" else generator).parameters(), lr=0.1)
        if step == "critic":
            critic_step(critic, optimizer, real, fake, torch.ones(4), *positional, **keyword)
        else:
            z = torch.ones(4, 2, dtype=torch.float64)
            generator_step(generator, critic, optimizer, z, *positional, **keyword)
        updated.append([*generator.parameters(), *critic.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*updated, strict=True))
    with pytest.raises(ValueError, match=r"Pass labels as y, as in y=\(labels,\), not as eps"):
        critic_step(networks[1], None, real, fake, labels)
    with pytest.raises(ValueError, match=r"eps must have one value per sample.*int64\. Labels come after eps"):
        critic_step(build_networks()[1], None, real, fake, labels)
    with pytest.raises(ValueError, match=r"y is a tensor: write y=\(labels,\)"):
        critic_step(networks[1], None, real, fake, y=labels)


def make_loss(critic, generator):
    return SimpleNamespace(critic=critic, generator=generator, critic_options={})


LOSSES = {  # wrong losses, and what the error names
    "no critic_loss": (make_loss(lambda r, f: {"loss": r}, Wasserstein().generator), "critic_loss.* got loss"),
    "no generator_loss": (make_loss(Wasserstein().critic, lambda f: {"a": f, "b": f}), "generator_loss.* got a, b"),
    "a number": (make_loss(lambda r, f: r.mean(), lambda f: f.mean()), "critic_loss.* got Tensor"),
}


@pytest.mark.parametrize("loss, message", LOSSES.values(), ids=LOSSES)
def test_loss_without_the_term_that_is_minimized_is_refused(loss, message):
    (generator, critic), (real, fake) = build_networks(), draw_batch(4)
    with pytest.raises(ValueError, match=f"the loss returns a dict of terms, one of them {message}"):
        critic_objective(critic, real, fake, loss=loss)
        generator_objective(generator, critic, real, loss=loss)


def test_noise_of_another_type_than_the_weights_of_the_generator_is_named():
    generator, critic = build_networks()
    z = draw_batch(4)[0].float()
    with pytest.raises(ValueError, match=r"generator gets torch\.float32.*float64.*Use noise of the type"):
        generator_step(generator, critic, torch.optim.SGD(generator.parameters()), z)


GENERATORS = {  # wrong generators, and what the error says of their results
    "tuple": (lambda z: (z, z), "a value of type tuple"),
    "too few": (lambda z: z[1:], r"\(3, 2\), torch.float64 for 4 rows"),
    "integers": (lambda z: z.long(), r"\(4, 2\), torch.int64"),
}


@pytest.mark.parametrize("function, message", GENERATORS.values(), ids=GENERATORS)
def test_generator_that_does_not_return_one_sample_per_row_is_named(function, message):
    generator, critic, z = Function(lambda z, _: function(z), nn.Linear(2, 2)), build_networks()[1], draw_batch(4)[0]
    with pytest.raises(ValueError, match=f"a generator returns one sample per row of z.* got {message}"):
        generator_step(generator, critic, torch.optim.SGD(generator.parameters()), z)


def test_critic_that_keeps_the_labels_of_one_batch_is_explained():
    (real, fake), labels = draw_batch(4), torch.ones(4, 2, dtype=torch.float64)
    critic = Function(lambda x, layer: layer(x + labels), nn.Linear(2, 1).double())
    with pytest.raises(ValueError, match=r"works for 4 samples, and not for 8: .*pass labels as y"):
        critic_step(critic, torch.optim.SGD(critic.parameters()), real, fake)


def test_other_error_of_a_critic_is_its_own():
    def fail(x, layer):
        if x.requires_grad:
            raise RuntimeError("the critic's own error")
        return layer(x)

    (real, fake), critic = draw_batch(4), Function(fail, nn.Linear(2, 1).double())
    with pytest.raises(RuntimeError, match=r"^the critic's own error"):
        gradient_penalty(critic, real, fake)


def test_inference_mode_is_named_where_a_step_cannot_work():
    critic, (real, fake) = build_networks()[1], draw_batch(4)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"remove no_grad\(\), inference_mode\(\)"):
        critic_step(critic, torch.optim.SGD(critic.parameters()), real, fake)


@pytest.mark.parametrize("real, eps", [("float32", "float64"), ("float64", "float64"), ("float64", "float32")])
def test_points_and_eps_of_numpy_work_or_are_explained(real, eps):
    critic, x, weights = nn.Linear(2, 1), draw_batch(4)[0].to(getattr(torch, real)), torch.rand(4).double()
    weights = weights.to(getattr(torch, eps))
    if real == "float32":
        expected = gradient_penalty(critic, x, x + 1, eps=weights.float())
        assert torch.equal(gradient_penalty(critic, x, x + 1, eps=weights), expected)
        return
    for call in (
        lambda: gradient_penalty(critic, x, x + 1, eps=weights),
        lambda: gradient_penalty(critic, x.float(), x, eps=weights),
        lambda: critic_step(critic, None, x, x.float(), weights),
    ):
        with pytest.raises(ValueError, match=r"float64, and its weights are torch\.float32: .*real\.float\(\)"):
            call()


def test_optimizer_of_another_model_is_refused():
    generator, critic = build_networks()
    (real, fake), z = draw_batch(), torch.randn(32, 2, dtype=torch.float64)
    before = copy_weights(generator), copy_weights(critic)
    message = r"does not have 8 trainable parameter\(s\) of the network: layers\.0\.weight, layers\.0\.bias, layers\.2"
    with pytest.raises(ValueError, match=message):
        critic_step(critic, torch.optim.Adam(generator.parameters()), real, fake)
    with pytest.raises(ValueError, match=message):
        generator_step(generator, critic, torch.optim.Adam(critic.parameters()), z)
    assert has_weights(generator, before[0]) and has_weights(critic, before[1])
    optimizer = torch.optim.Adam(critic.parameters())
    critic.layers[0].weight = nn.Parameter(critic.layers[0].weight.detach().clone())
    with pytest.raises(ValueError, match=r"1 trainable parameter\(s\) of the network: layers\.0\.weight\. Make it"):
        critic_step(critic, optimizer, real, fake)


def test_optimizer_that_needs_a_closure_is_refused_and_changes_nothing():
    critic = MLPCritic((2,), width=8)
    before = copy.deepcopy(critic.state_dict())
    with pytest.raises(ValueError, match="LBFGS computes gradients several times per step: use an optimizer that does"):
        critic_step(critic, torch.optim.LBFGS(critic.parameters()), torch.randn(4, 2), torch.randn(4, 2))
    assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())
    assert all(p.grad is None for p in critic.parameters())


def test_error_of_an_optimizer_is_raised_as_it_is_and_leaves_no_gradients():
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise TypeError("broken")

    critic = MLPCritic((2,), width=8)
    with pytest.raises(TypeError, match=r"^broken$"):
        critic_step(critic, Broken(critic.parameters(), lr=0.1), torch.randn(4, 2), torch.randn(4, 2))
    assert all(p.grad is None for p in critic.parameters())


def test_one_optimizer_of_both_networks_updates_one_of_them():
    """Also with momentum, and with zeros in the .grad of the other network."""
    generator, critic = build_networks()
    optimizer = torch.optim.Adam([*generator.parameters(), *critic.parameters()], lr=0.1)
    z = torch.randn(32, 2, dtype=torch.float64)
    generator_step(generator, critic, optimizer, z)
    optimizer.zero_grad(set_to_none=False)
    for p in generator.parameters():
        p.grad = torch.zeros_like(p)
    before = copy_weights(generator), copy_weights(critic)
    critic_step(critic, optimizer, *draw_batch())
    assert has_weights(generator, before[0]) and not has_weights(critic, before[1])


def test_gradients_that_would_be_lost_are_refused():
    _, critic = build_networks()
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    (real, fake), before = draw_batch(), copy_weights(critic)
    critic(real).sum().backward()
    with pytest.raises(
        ValueError, match=r"a \.grad that is not 0, which the step would lose: call optimizer\.zero_grad"
    ):
        critic_step(critic, optimizer, real, fake)
    assert has_weights(critic, before)
    for set_to_none in (False, True):  # zeros, None
        optimizer.zero_grad(set_to_none=set_to_none)
        critic_step(critic, optimizer, real, fake)
    with pytest.raises(ValueError, match="7 gradients for 8 trainable parameters"):
        descend(critic, critic_gradients(critic, real, fake)[1][1:], optimizer)


def test_wrapped_networks_are_refused():
    generator, critic = build_networks()
    (real, fake), z = draw_batch(), torch.randn(32, 2, dtype=torch.float64)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (generator, critic)]
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for wrap in (nn.parallel.DistributedDataParallel, nn.DataParallel):
            message = f"wrapped in {wrap.__name__}.* Pass the module itself. .*average the results of critic_gradients"
            with pytest.raises(ValueError, match=message):
                critic_step(wrap(critic), optimizers[1], real, fake)
            for networks in ((wrap(generator), critic), (generator, wrap(critic))):
                with pytest.raises(ValueError, match=f"wrapped in {wrap.__name__}"):
                    generator_step(*networks, optimizers[0], z)
    finally:
        torch.distributed.destroy_process_group()


def test_objective_without_a_graph_is_refused():
    generator, critic = build_networks()
    real, fake = draw_batch()
    optimizer = torch.optim.SGD([*critic.parameters(), *generator.parameters()], lr=0.1)
    with torch.no_grad(), pytest.raises(ValueError, match="critic_loss has no graph back to a trainable parameter"):
        critic_step(critic, optimizer, real, fake, penalty=NO_PENALTY)
    for cut in (lambda z: generator(z).detach(), torch.no_grad()(generator.forward)):
        network = copy.copy(generator)
        network.forward = cut
        with pytest.raises(ValueError, match="generator_loss has no graph back to a trainable parameter"):
            generator_step(network, critic, optimizer, real)
    critic.requires_grad_(False)
    with pytest.raises(ValueError, match="no graph back to"):
        critic_step(critic, optimizer, real, fake)


def test_terms_and_penalty_of_half_precision_networks_are_in_float32():
    critic = nn.Linear(2, 1).half()
    with torch.no_grad():
        critic.weight.copy_(torch.tensor([[3000.0, 4000.0]]))
    real, fake = (x.half() for x in draw_batch())
    terms, gradients = critic_gradients(critic, real, fake)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    assert terms["penalty"].item() == pytest.approx(10 * 4999**2, rel=1e-3)
    assert all(g.dtype == torch.float16 for g in gradients)


def test_gradients_are_freed_after_a_step():
    generator, critic = build_networks()
    critic_step(critic, torch.optim.SGD(critic.parameters(), lr=0.1), *draw_batch())
    generator_step(generator, critic, torch.optim.SGD(generator.parameters(), lr=0.1), draw_batch()[0])
    assert all(p.grad is None for p in (*critic.parameters(), *generator.parameters()))


def test_frozen_parameters_are_not_updated():
    _, critic = build_networks()
    critic.layers[0].weight.requires_grad_(False)
    before = critic.layers[0].weight.clone()
    critic_step(critic, torch.optim.SGD(critic.parameters(), lr=0.1), *draw_batch())
    assert torch.equal(critic.layers[0].weight, before)


def test_steps_work_with_samples_of_any_shape():
    """Here: one-hot text (B, length, letters)."""
    generator = nn.Sequential(nn.Linear(3, 20), nn.Unflatten(1, (4, 5)), nn.Softmax(-1))
    critic = nn.Sequential(nn.Flatten(), nn.Linear(20, 1), nn.Flatten(0))
    real, fake = torch.eye(5)[torch.randint(5, (6, 4))], generator(torch.randn(6, 3))
    assert critic_step(critic, torch.optim.SGD(critic.parameters(), lr=0.1), real, fake)["penalty"] > 0
    generator_step(generator, critic, torch.optim.SGD(generator.parameters(), lr=0.1), torch.randn(6, 3))


def test_generator_that_changes_its_labels_changes_a_copy():
    class Shift(nn.Linear):
        latent_dim = 3

        def forward(self, z, y):
            y += 1
            return super().forward(z) + y.unsqueeze(1)

    seen, z, labels = [], torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    critic = LabeledCritic()
    critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].clone()))
    generator = Shift(3, 2)
    generator_step(generator, critic, torch.optim.SGD(generator.parameters(), lr=0.1), z, labels)
    assert labels.tolist() == [0, 1, 2, 0] == seen[0].tolist()


@pytest.mark.parametrize("options", [{"clip_weights": 0.0}, {"clip_gradient_norm": 0.0}])
def test_wrong_bound_raises_before_anything_moves(options):
    critic, x = smooth_critic(2).float(), torch.randn(4, 2)
    before = copy.deepcopy(critic.state_dict())
    with pytest.raises(ValueError, match="must be > 0"):
        critic_step(critic, torch.optim.SGD(critic.parameters(), lr=0.1), x, x + 1, **options)
    assert all(p.grad is None for p in critic.parameters())
    torch.testing.assert_close(dict(critic.state_dict()), dict(before), rtol=0, atol=0)


def test_sparse_gradients_and_buffers_work():
    class Graph(nn.Module):
        def __init__(self, sparse):
            super().__init__()
            edges = torch.eye(4) + torch.ones(4, 4) / 9
            self.register_buffer("edges", edges.to_sparse() if sparse else edges)
            self.names, self.output = nn.Embedding(3, 2, sparse=sparse), nn.Linear(6, 1)

        def forward(self, x, y):
            return self.output(torch.cat([(self.edges @ x.T).T, self.names(y)], 1)).square()

    results = []
    x, labels, eps = torch.randn(6, 4), torch.arange(6) % 3, torch.rand(6)
    for sparse in (False, True):
        torch.manual_seed(0)
        critic = Graph(sparse)
        check_per_sample(critic, x, y=(labels,))
        slopes = slope_statistics(critic, x, x + 1, eps, y=(labels,))["interpolates"]["mean"]
        optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
        critic_step(critic, optimizer, x, x + 1, eps, labels, clip_gradient_norm=0.5)
        results.append([torch.tensor(slopes), *critic.parameters()])
    torch.testing.assert_close(*results)
