"""A batch in equal parts gives the terms, gradients and updates of the whole batch, to rounding."""

import copy
from functools import partial

import pytest
import torch
from helpers import TINY, smooth_critic, train_run
from labeled import WithClassifier, labeled_run
from torch import nn

from wgangp import GradientPenalty, config, critic_step, generator_step
from wgangp.accumulate import accumulate_gradients, split_batch
from wgangp.compiled import build_computation
from wgangp.logs import read_lines
from wgangp.losses import Wasserstein
from wgangp.networks.layers import BatchNorm
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.penalty import POINTS
from wgangp.step import critic_gradients, descend
from wgangp.train import compute_in_parts, train

SIZE = 12


def draw(*shape):
    return torch.randn(SIZE, *shape, dtype=torch.float64)


def require_close(result, expected):
    terms, gradients = result
    assert list(terms) == list(expected[0])
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[0][name], rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients, expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parts", [2, 3, 12])
@pytest.mark.parametrize("points", POINTS)
def test_parts_of_a_critic_batch_have_its_terms_and_gradients(points, parts):
    critic, real, fake, penalty = smooth_critic(3), draw(3), draw(3), GradientPenalty(points=points)
    batch = real, fake, penalty.draw(real)
    compute = partial(critic_gradients, critic, penalty=penalty)
    require_close(accumulate_gradients(compute, parts, *batch), compute(*batch))
    whole = accumulate_gradients(compute, 1, *batch)
    assert all(torch.equal(a, b) for a, b in zip(whole[1], compute(*batch)[1], strict=True))


@pytest.mark.parametrize(
    "compiled, loss",
    [
        (False, Wasserstein()),
        (False, WithClassifier()),
        (True, WithClassifier()),
        pytest.param(True, Wasserstein(), marks=pytest.mark.slow),  # a compilation takes seconds
    ],
    ids=lambda value: value if isinstance(value, bool) else type(value).__name__,
)
def test_parts_of_labeled_batches_have_their_terms_and_gradients(compiled, loss, quick_compile):
    run = labeled_run(loss=loss)
    generator, critic = run.generator.double(), run.critic.double()
    y = torch.arange(SIZE) % 3
    whole, in_parts = (build_computation(generator, critic, loss, run.penalty, compile=c) for c in (False, compiled))
    batch = draw(2), draw(2), torch.rand(SIZE, dtype=torch.float64), y
    for _ in range(2):  # the first batch is compared with the eager result, the second one is not
        require_close(accumulate_gradients(in_parts.critic_gradients, 3, *batch), whole.critic_gradients(*batch))
        latent = draw(2), y
        require_close(
            accumulate_gradients(in_parts.generator_gradients, 3, *latent), whole.generator_gradients(*latent)
        )


@pytest.mark.parametrize("some", [2, 4])
@pytest.mark.parametrize("points", POINTS)
def test_steps_in_parts_are_the_steps_of_the_whole_batch(points, some):
    """eps is drawn for the whole batch: the noise of perturbed points depends on its standard deviation."""
    generator = MLPGenerator((2,), width=8).double()
    critics = [MLPCritic((2,), width=8).double()]
    critics.append(copy.deepcopy(critics[0]))
    real, fake, z, penalty = draw(2), draw(2), draw(2), GradientPenalty(points=points)
    generators = [generator, copy.deepcopy(generator)]
    for g, critic, parts in zip(generators, critics, (1, some), strict=True):
        torch.manual_seed(0)
        sgd = (torch.optim.SGD(network.parameters(), lr=0.1) for network in (critic, g))
        critic_step(critic, next(sgd), real, fake, penalty=penalty, accumulate=parts)
        generator_step(g, critic, next(sgd), z, accumulate=parts)
    for networks in (generators, critics):
        for a, b in zip(*(network.parameters() for network in networks), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_of_micro_batches_add_up_by_hand():
    critic, real, fake, eps = smooth_critic(3), draw(3), draw(3), torch.rand(SIZE, dtype=torch.float64)
    other = copy.deepcopy(critic)
    parts = [critic_gradients(critic, *part)[1] for part in split_batch(3, real, fake, eps)]
    mean = [sum(gradients) / 3 for gradients in zip(*parts, strict=True)]
    descend(critic, mean, torch.optim.SGD(critic.parameters(), lr=0.1))
    in_parts = copy.deepcopy(other)
    critic_step(other, torch.optim.SGD(other.parameters(), lr=0.1), real, fake, eps)
    critic_step(in_parts, torch.optim.SGD(in_parts.parameters(), lr=0.1), real, fake, eps, accumulate=3)
    for a, b, c in zip(critic.parameters(), other.parameters(), in_parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(c, b, rtol=1e-12, atol=1e-12)


def test_batch_norm_of_a_generator_has_the_statistics_of_each_part():
    """With two parts: as on the two devices of the released gan_cifar_resnet.py."""
    generator = nn.Sequential(nn.Linear(4, 3), BatchNorm(3)).double()
    critic, z = smooth_critic(3), draw(4)
    one, two = (
        compute_in_parts(build_computation(generator, critic, Wasserstein(), GradientPenalty()), n) for n in (1, 2)
    )
    halves = [generator[0](half) for half in (z[:6], z[6:])]
    expected = torch.cat([(h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt() for h in halves])
    torch.testing.assert_close(two.sample(z), expected.detach())
    assert (one.sample(z) - expected).abs().max() > 0.01
    loss = -critic(expected).mean()
    gradients = torch.autograd.grad(loss, tuple(generator[0].parameters()), materialize_grads=True)
    found = two.generator_gradients(z)[1]
    assert len(found) == len(tuple(generator.parameters()))
    for a, b in zip(found[:2], gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_parts_that_do_not_fit_are_refused():
    critic, real = nn.Linear(3, 1).double(), draw(3)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    for parts in (0, 5, 24):
        with pytest.raises(ValueError, match=f"12 rows cannot be split into {parts} equal parts"):
            critic_step(critic, optimizer, real, real, accumulate=parts)
    with pytest.raises(
        ValueError, match=r"real \(12, 3\) and fake \(6, 3\) must have the same shape: take the same number"
    ):
        critic_step(critic, optimizer, real, real[:6], accumulate=2)
    with pytest.raises(ValueError, match=r"gradient_norm does not work .* accumulate > 1"):
        critic_step(critic, optimizer, real, real, accumulate=2, regularize_gradient_norm=0.1)
    with pytest.raises(ValueError, match=r"gradient_norm does not work .* accumulate > 1"):
        generator_step(nn.Linear(3, 3), critic, optimizer, real, accumulate=2, regularize_gradient_norm=0.1)


@pytest.fixture
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("quick_pictures", "_float64")
def test_train_in_parts_is_train_with_whole_batches(configure, tmp_path):
    records, weights = [], []
    for name, parts in (("whole", 1), ("parts", 4)):
        cfg = configure(*TINY, "train.steps=3", f"train.accumulate={parts}")
        run = train_run(cfg, tmp_path / name)
        records.append(read_lines(tmp_path / name / "metrics.jsonl")[-1])
        weights.append([p.detach() for p in (*run.generator.parameters(), *run.critic.parameters())])
    assert records[0] == pytest.approx(records[1], rel=1e-6, abs=1e-9)  # the certificate and the sums of a report
    assert all((a - b).abs().max() < 1e-11 for a, b in zip(*weights, strict=True))


def test_train_refuses_parts_that_do_not_divide_a_batch(configure, tmp_path, monkeypatch):
    monkeypatch.setattr("wgangp.config.try_run", lambda *_: None)  # it would refuse them first
    for overrides in (("train.batch_size=10",), ("train.generator_batch_size=6",)):
        cfg = configure(*TINY, "train.accumulate=4", *overrides)
        with pytest.raises(ValueError, match=r"multiple of the number of ranks times train\.accumulate, 1 \* 4"):
            train(tmp_path, config.build_run(cfg), **config.train_options(cfg))
    with pytest.raises(ValueError, match=r"train\.accumulate = 0: must be >= 1"):
        config.train_options(configure("train.accumulate=0"))
