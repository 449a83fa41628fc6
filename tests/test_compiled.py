import math

import pytest
import torch

from wgangp import GradientPenalty
from wgangp.compiled import checked, gradients_of
from wgangp.data.toy import gaussians8
from wgangp.losses import Wasserstein
from wgangp.networks.dcgan import CIFARCritic, CIFARGenerator, MNISTCritic, MNISTGenerator
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.networks.resnet import ResNetCritic, ResNetGenerator
from wgangp.seeds import generator_for, initialised, noise
from wgangp.step import critic_objective, critic_step, differentiate, generator_objective, generator_step

PAIRS = {
    "mlp": (MLPGenerator, MLPCritic, (2,)),
    "mnist": (MNISTGenerator, MNISTCritic, (1, 28, 28)),
    "cifar_dcgan": (CIFARGenerator, CIFARCritic, (3, 32, 32)),
    "cifar_resnet": (ResNetGenerator, ResNetCritic, (3, 32, 32)),
}
SETTINGS = {
    "two": (GradientPenalty(), 0.0),
    "one": (GradientPenalty(sides="one"), 0.0),
    "target 0": (GradientPenalty(target=0.0), 0.0),
    "one, perturbed": (GradientPenalty(sides="one", points="perturbed"), 0.0),
    "R1": (GradientPenalty(target=0.0, points="real"), 0.0),
    "at fake": (GradientPenalty(points="fake"), 0.0),
    "none": (GradientPenalty(weight=0.0), 0.0),
    "regularised": (GradientPenalty(), 0.01),
}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compare(pair, setting):
    """Compiled terms and gradients of both players against eager ones, in float64; nothing may fall back."""
    make_generator, make_critic, shape = PAIRS[pair]
    penalty, weight = SETTINGS[setting]
    generator, critic = make_generator(shape, width=6).double(), make_critic(shape, width=6).double()
    real, z = torch.randn(4, *shape).double(), torch.randn(4, generator.latent_dim).double()
    fake, eps, loss = generator(z).detach(), penalty.draw(real), Wasserstein()
    fast = gradients_of(generator, critic, loss, penalty, weight, compile=True)
    for repeat in range(2):  # the first batch is also checked; the second is what a run sees
        for p in critic.parameters():
            p.data.mul_(1 + 0.1 * repeat)  # the compiled step must see parameters as they are now
        terms = critic_objective(critic, real, fake, eps, penalty=penalty, loss=loss)
        close(fast["critic"](real, fake, eps), terms, differentiate(terms["critic_loss"], critic, weight))
        terms = generator_objective(generator, critic, z, loss=loss)
        close(fast["generator"](z), terms, differentiate(terms["generator_loss"], generator, weight))
        close(fast["fake"](z), {}, [generator(z).detach()])
    assert all(p.grad is None for p in (*critic.parameters(), *generator.parameters()))


def close(ours, terms, gradients):
    for name, value in ours[0].items():
        torch.testing.assert_close(value, terms[name].detach(), atol=1e-12, rtol=1e-10)
    for a, b in zip(ours[1], gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    assert sum(g.abs().sum() for g in gradients) > 0
    assert not any(g.requires_grad for g in ours[1])  # no graph is kept for a backward that never comes


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_compiled_gradients_are_the_eager_ones_for_every_penalty(setting):
    compare("mlp", setting)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair != "mlp"])
def test_compiled_gradients_are_the_eager_ones_for_every_penalty_and_network(pair, setting, quick_compile):
    compare(pair, setting)


@pytest.mark.slow
def test_compiled_gradients_are_the_eager_ones_through_the_whole_compiler():
    compare("mnist", "two")


@pytest.mark.slow
def test_float32_products_go_to_onednn_and_are_right():
    generator, critic = MLPGenerator((2,), width=64), MLPCritic((2,), width=64)
    batch = torch.randn(64, 2), torch.randn(64, 2), torch.rand(64)
    terms = critic_objective(critic, *batch)
    exact = differentiate(terms["critic_loss"], critic)
    fast = gradients_of(generator, critic, Wasserstein(), GradientPenalty(), compile=True)["critic"]
    fast(*batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        found = fast(*batch)[1]
    names = {event.key for event in profile.key_averages()}
    assert "mkldnn::_linear_pointwise" in names
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_many_runs_can_be_compiled_in_one_process(quick_compile, recwarn):
    for width in range(2, 7):  # ten graphs
        generator, critic = MLPGenerator((2,), width=width), MLPCritic((2,), width=width)
        fast = gradients_of(generator, critic, Wasserstein(), GradientPenalty(), compile=True)
        for _ in range(2):
            fast["critic"](torch.randn(4, 2), torch.randn(4, 2), torch.rand(4))
            fast["generator"](torch.randn(4, 2))
    assert not [str(w.message) for w in recwarn if "not used" in str(w.message)]


@pytest.mark.slow
def test_a_compiled_trajectory_is_the_eager_one():
    def trained(fast):
        generator = initialised(lambda: MLPGenerator((2,), width=32), 0, "generator").double()
        critic = initialised(lambda: MLPCritic((2,), width=32), 0, "critic").double()
        optim_generator, optim_critic = (
            torch.optim.Adam(player.parameters(), lr=1e-3, betas=(0.0, 0.9)) for player in (generator, critic)
        )
        steps = gradients_of(generator, critic, Wasserstein(), GradientPenalty(), compile=True) if fast else {}
        for k in range(60):
            real = gaussians8().batch(k, 64, seed=0)[0].double()
            with torch.no_grad():
                fake = generator(noise(generator, 64, 0, k, "critic").double())
            eps = GradientPenalty().draw(real, generator_for(0, k, "eps"))
            critic_step(critic, optim_critic, real, fake, eps, gradients=steps.get("critic"))
            if k % 3 == 2:
                z = noise(generator, 64, 0, k, "generator").double()
                generator_step(generator, critic, optim_generator, z, gradients=steps.get("generator"))
        return [*critic.parameters(), *generator.parameters()]

    for a, b in zip(trained(fast=True), trained(fast=False), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("wrong", [torch.tensor([3.0, 4.2]), torch.tensor([3.0, math.nan]), torch.zeros(2)])
def test_a_gradient_that_was_tampered_with_is_noticed_and_the_eager_one_used(wrong):
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([1.0])]
    step = checked("critic", lambda: ({}, [wrong, gradients[1]]), lambda: ({}, gradients))
    with pytest.warns(UserWarning, match=r"compiled critic step is not used: its gradients are .* off.*eager mode"):
        assert step()[1] is gradients
    assert step()[1] is gradients


def test_a_gradient_that_agrees_to_rounding_is_used_from_the_first_batch_on(capsys):
    ours, gradients = [torch.tensor([3.0, 4.00001])], [torch.tensor([3.0, 4.0])]
    calls = []
    step = checked("critic", lambda: ({}, ours), lambda: calls.append(1) or ({}, gradients))
    assert step()[1] is ours and step()[1] is ours and calls == [1]
    assert "compiled the critic step in 0 s" in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["two", "one", "weak"])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_penalty_that_is_lost_is_noticed_also_where_initial_slopes_are_small(pair, setting):
    make_generator, make_critic, shape = PAIRS[pair]
    penalty = {"two": GradientPenalty(), "one": GradientPenalty(sides="one"), "weak": GradientPenalty(0.1)}[setting]
    generator, critic = make_generator(shape, width=8), make_critic(shape, width=8)
    batch = torch.rand(8, *shape), torch.rand(8, *shape), torch.rand(8)
    before = [p.clone() for p in critic.parameters()]
    right, lost = (gradients_of(generator, critic, Wasserstein(), p)["critic"] for p in (penalty, GradientPenalty(0.0)))
    with pytest.warns(UserWarning, match="critic step is not used: its gradients are .* off"):
        checked("critic", lost, right, "bf16", critic)(*batch)
    assert all(torch.equal(a, b) for a, b in zip(critic.parameters(), before, strict=True))


def test_as_many_batches_are_checked_as_a_cuda_graph_takes_to_be_replayed(monkeypatch):
    monkeypatch.setattr("wgangp.compiled.CHECKED", {"cpu": 3})
    right, calls = [torch.ones(2)], []

    def wrong_when_replayed():
        calls.append(1)
        return {}, [torch.ones(2) if len(calls) < 3 else torch.zeros(2)]

    step = checked("critic", wrong_when_replayed, lambda: ({}, right))
    step(), step()
    with pytest.warns(UserWarning, match="not used"):
        assert step()[1] is right
    assert step()[1] is right and len(calls) == 3


def test_a_precision_that_is_not_there_is_refused():
    players = MLPGenerator((2,), width=2), MLPCritic((2,), width=2)
    with pytest.raises(ValueError, match=r"precision = fp16: must be one of fp32, tf32, bf16"):
        gradients_of(*players, Wasserstein(), GradientPenalty(), precision="fp16")


def test_a_gradient_that_is_zero_in_both_is_no_error(capsys):
    step = checked("critic", lambda: ({}, [torch.zeros(2)]), lambda: ({}, [torch.zeros(2)]))
    assert step()[1][0].eq(0).all() and "compiled" in capsys.readouterr().out


def test_a_compiler_that_fails_is_said_loudly_and_the_run_goes_on():
    def fails():
        raise RuntimeError("no C++ compiler\nand more\nand much more")

    gradients = [torch.ones(2)]
    step = checked("generator", fails, lambda: ({}, gradients))
    with pytest.warns(UserWarning, match=r"generator step is not used: RuntimeError: no C\+\+ compiler and more\. The"):
        assert step()[1] is gradients
