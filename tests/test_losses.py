"""Losses and labels: how the outputs of labeled networks become terms, gradients, and a trained run."""

import copy
import json

import pytest
import torch
from labeled import CLASSES, LabeledCritic, WithClassifier, labeled_run
from torch import nn
from torch.nn import functional as F

from wgangp import GradientPenalty, critic_step, generator_step
from wgangp.compiled import build_computation
from wgangp.losses import ACGAN, LeastSquares, NonSaturating, Wasserstein
from wgangp.networks.mlp import MLPCritic
from wgangp.report import report
from wgangp.seeds import draw_latent, rng_for
from wgangp.step import critic_gradients, critic_objective, generator_gradients, generator_objective
from wgangp.train import train, update


@pytest.fixture
def _float64():
    """Networks, data and noise are in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def labeled_batch(run, size=12):
    """real (B, 2), fake (B, 2) of the same labels, eps (B,), y (B,), as in a critic step."""
    real, y = run.data.batch(0, size, 0)
    z, _ = draw_latent(run.generator, size, 0, 0, "critic")
    with torch.no_grad():
        fake = run.generator(z, y)
    return real, fake, torch.rand(size), y


def written_out(critic, real, fake, eps, y):
    """Equation 3 with labels: E D(x~, y) - E D(x, y), and 10 E (||grad_x D(x^, y)|| - 1)^2."""
    x_hat = (eps[:, None] * real + (1 - eps[:, None]) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x_hat, y).sum(), x_hat, create_graph=True)
    gap = critic(real, y).mean() - critic(fake, y).mean()
    return gap, 10 * ((gradient.norm(dim=1) - 1) ** 2).mean()


def test_wasserstein_loss_is_equation_2_per_sample():
    real, fake = torch.randn(5), torch.randn(5)
    terms = Wasserstein().critic(real, fake)
    assert terms.keys() == {"wasserstein", "critic_loss"}
    assert torch.equal(terms["critic_loss"], fake - real) and torch.equal(terms["wasserstein"], real - fake)
    terms = Wasserstein().generator(fake)
    assert terms.keys() == {"generator_loss"} and torch.equal(terms["generator_loss"], -fake)


def test_non_saturating_loss_is_the_cross_entropy_of_the_released_code():
    """gan_mnist.py: sigmoid cross-entropy with targets 1 for real and 0 for fake, halved; 1 for the generator."""
    real, fake = torch.randn(5).double() * 3, torch.randn(5).double() * 3
    one, zero = torch.ones(5).double(), torch.zeros(5).double()

    def entropy(scores, target):
        return -(target * scores.sigmoid().log() + (1 - target) * (1 - scores.sigmoid()).log())

    terms = NonSaturating().critic(real, fake[:, None])
    assert terms.keys() == {"critic_loss"}
    torch.testing.assert_close(terms["critic_loss"], (entropy(real, one) + entropy(fake, zero)) / 2)
    terms = NonSaturating().generator(fake)
    assert terms.keys() == {"generator_loss"}
    torch.testing.assert_close(terms["generator_loss"], entropy(fake, one))


def test_non_saturating_loss_and_its_gradient_are_finite_for_every_score():
    for score in (-1e4, 0.0, 1e4):
        x = torch.tensor([score], requires_grad=True)
        for value in (NonSaturating().critic(x, x)["critic_loss"], NonSaturating().generator(x)["generator_loss"]):
            (gradient,) = torch.autograd.grad(value.sum(), x)
            assert value.isfinite().all() and gradient.isfinite().all()
    x = torch.tensor([-1e4], requires_grad=True)  # a fake that the critic is sure of: the generator still learns
    assert torch.autograd.grad(NonSaturating().generator(x)["generator_loss"].sum(), x)[0].item() == -1


def test_least_squares_loss_is_that_of_the_released_code():
    real, fake = torch.randn(5), torch.randn(5)
    terms = LeastSquares().critic(real, fake)
    assert terms.keys() == {"critic_loss"}
    torch.testing.assert_close(terms["critic_loss"], ((real - 1) ** 2 + fake**2) / 2)
    terms = LeastSquares().generator(fake[:, None])
    assert terms.keys() == {"generator_loss"}
    torch.testing.assert_close(terms["generator_loss"], (fake - 1) ** 2)


@pytest.mark.parametrize(
    "loss, of_real, of_fake, of_generator",  # the derivative of each loss with respect to a score s
    [
        (Wasserstein(), lambda s: -1 + 0 * s, lambda s: 1 + 0 * s, lambda s: -1 + 0 * s),
        (NonSaturating(), lambda s: -(-s).sigmoid() / 2, lambda s: s.sigmoid() / 2, lambda s: -(-s).sigmoid()),
        (LeastSquares(), lambda s: s - 1, lambda s: s, lambda s: 2 * (s - 1)),
    ],
    ids=["Wasserstein", "NonSaturating", "LeastSquares"],
)
def test_gradients_of_the_losses_are_the_formulas_and_reach_the_weights(loss, of_real, of_fake, of_generator):
    """The gradient of a weight is the sum over samples of (derivative of the loss) * (gradient of the score)."""
    critic, generator = nn.Linear(3, 1).double(), nn.Linear(2, 3).double()
    real, fake, z = (torch.randn(6, size).double() for size in (3, 3, 2))
    _, (weight, bias) = critic_gradients(critic, real, fake, penalty=GradientPenalty(weight=0.0), loss=loss)
    slopes_real, slopes_fake = of_real(critic(real)), of_fake(critic(fake))
    torch.testing.assert_close(weight, (slopes_real * real + slopes_fake * fake).mean(0, keepdim=True))
    torch.testing.assert_close(bias, (slopes_real + slopes_fake).mean(0))
    _, (weight, bias) = generator_gradients(generator, critic, z, loss=loss)
    slopes = of_generator(critic(generator(z))) * critic.weight  # with respect to the generated samples
    torch.testing.assert_close(weight, slopes.T @ z / 6)
    torch.testing.assert_close(bias, slopes.mean(0))


@pytest.mark.parametrize("loss", [NonSaturating(), LeastSquares()], ids=["NonSaturating", "LeastSquares"])
def test_weights_are_clipped_with_every_loss(loss):
    critic = MLPCritic((2,), width=8)
    adam, real, fake = torch.optim.Adam(critic.parameters(), lr=1.0), torch.randn(6, 2), torch.randn(6, 2)
    critic_step(critic, adam, real, fake, penalty=GradientPenalty(weight=0.0), loss=loss, clip_weights=0.01)
    assert max(p.abs().max().item() for p in critic.parameters()) == pytest.approx(0.01)


@pytest.mark.parametrize("loss", [Wasserstein(), NonSaturating(), LeastSquares()], ids=lambda loss: type(loss).__name__)
def test_acgan_adds_a_classifier_to_every_loss(loss):
    real, fake, y = torch.randn(6), torch.randn(6), torch.tensor([0, 1, 2, 0, 1, 2])
    real_logits, fake_logits = torch.randn(6, 3), torch.randn(6, 3)
    acgan = ACGAN(loss, critic_weight=0.7, generator_weight=0.3)

    def entropy(logits):
        return -logits.log_softmax(1)[torch.arange(6), y]

    terms, plain = acgan.critic((real, real_logits), (fake, fake_logits), y), loss.critic(real, fake)
    assert terms.keys() == plain.keys() | {"class_loss_real", "accuracy_real", "accuracy_fake"}
    torch.testing.assert_close(terms["class_loss_real"], entropy(real_logits))
    torch.testing.assert_close(terms["critic_loss"], plain["critic_loss"] + 0.7 * entropy(real_logits))
    assert torch.equal(terms["accuracy_fake"], (fake_logits.argmax(1) == y).float())
    assert torch.equal(terms["accuracy_real"], (real_logits.argmax(1) == y).float())
    terms, plain = acgan.generator((fake, fake_logits), y), loss.generator(fake)
    assert terms.keys() == {"generator_loss", "class_loss_fake"}
    torch.testing.assert_close(terms["generator_loss"], plain["generator_loss"] + 0.3 * entropy(fake_logits))


def test_critic_of_acgan_learns_nothing_from_the_logits_of_fake_samples():
    """Released gan_cifar_resnet.py: the classifier learns from real images alone."""
    score, y = torch.zeros(4), torch.tensor([0, 1, 2, 0])
    real_logits, fake_logits = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    loss = ACGAN(Wasserstein()).critic((score, real_logits), (score, fake_logits), y)["critic_loss"].mean()
    gradients = torch.autograd.grad(loss, [real_logits, fake_logits], allow_unused=True)
    assert gradients[0].abs().sum() > 0 and gradients[1] is None


def test_acgan_without_labels_and_with_weights_out_of_range_is_refused():
    outputs = (torch.zeros(2), torch.zeros(2, 3))
    for call in (
        lambda: ACGAN(Wasserstein()).critic(outputs, outputs),
        lambda: ACGAN(Wasserstein()).generator(outputs),
    ):
        with pytest.raises(ValueError, match="loss=acgan needs networks with classes"):
            call()
    for name in ("critic_weight", "generator_weight"):
        with pytest.raises(ValueError, match=f"{name} = -1: must be >= 0 and finite"):
            ACGAN(Wasserstein(), **{name: -1})


def test_wasserstein_loss_does_not_depend_on_labels():
    real, fake, y = torch.randn(5), torch.randn(5), torch.arange(5)
    for with_labels, without in (
        (Wasserstein().critic(real, fake, y), Wasserstein().critic(real, fake)),
        (Wasserstein().generator(fake, y), Wasserstein().generator(fake)),
    ):
        assert with_labels.keys() == without.keys()
        assert all(torch.equal(with_labels[name], without[name]) for name in without)


@pytest.mark.usefixtures("_float64")
def test_critic_objective_with_labels_is_the_formula():
    run = labeled_run()
    real, fake, eps, y = labeled_batch(run)
    terms = critic_objective(run.critic, real, fake, eps, y)
    gap, penalty = written_out(run.critic, real, fake, eps, y)
    assert list(terms) == ["wasserstein", "penalty", "critic_loss"]
    torch.testing.assert_close(terms["wasserstein"], gap)
    torch.testing.assert_close(terms["penalty"], penalty)
    torch.testing.assert_close(terms["critic_loss"], penalty - gap)
    other = critic_objective(run.critic, real, fake, eps, (y + 1) % CLASSES)
    assert all((other[name] - terms[name]).abs() > 1e-6 for name in terms)  # the labels matter to every term


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("weight, batches", [(10.0, [24, 12]), (0.0, [12, 12])])
def test_critic_passes_have_the_labels_of_the_real_batch(weight, batches):
    """With a penalty: one pass over the doubled batch, and one for the penalty. Without: real, then fake samples."""
    run = labeled_run()
    real, fake, eps, y = labeled_batch(run)
    seen = []
    run.critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    critic_objective(run.critic, real, fake, eps, y, penalty=GradientPenalty(weight))
    assert [len(x) for x, _ in seen] == batches
    assert all(torch.equal(labels, torch.cat([y, y])[: len(x)]) for x, labels in seen)
    assert torch.equal(torch.cat([x for x, _ in seen])[:24], torch.cat([real, fake]))


@pytest.mark.usefixtures("_float64")
def test_critic_gradient_with_labels_is_that_of_the_formula():
    run = labeled_run()
    real, fake, eps, y = labeled_batch(run)
    terms, gradients = critic_gradients(run.critic, real, fake, eps, y)
    gap, penalty = written_out(run.critic, real, fake, eps, y)
    expected = torch.autograd.grad(penalty - gap, list(run.critic.parameters()), materialize_grads=True)
    assert not any(term.requires_grad for term in terms.values())
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("_float64")
def test_generator_objective_with_labels_is_the_formula():
    run = labeled_run()
    z, y = draw_latent(run.generator, 12, 0, 0, "generator")
    terms = generator_objective(run.generator, run.critic, z, y)
    assert list(terms) == ["generator_loss"]
    torch.testing.assert_close(terms["generator_loss"], -run.critic(run.generator(z, y), y).mean())


@pytest.mark.usefixtures("_float64")
def test_penalty_is_on_the_score_alone():
    """The loss reads class logits from the pass over real and fake samples; the penalty asks for the score only."""
    run = labeled_run(loss=WithClassifier())
    real, fake, eps, y = labeled_batch(run)
    passes = []
    run.critic.register_forward_pre_hook(lambda _, inputs, options: passes.append(options), with_kwargs=True)
    terms = critic_objective(run.critic, real, fake, eps, y, loss=run.loss)
    assert passes == [{"logits": True}, {}]
    gap, penalty = written_out(run.critic, real, fake, eps, y)
    entropy = F.cross_entropy(run.critic(real, y, logits=True)[1], y)
    assert list(terms) == ["real_entropy", "penalty", "critic_loss"]
    torch.testing.assert_close(terms["penalty"], penalty)
    torch.testing.assert_close(terms["real_entropy"], entropy)
    torch.testing.assert_close(terms["critic_loss"], penalty - gap + entropy)


@pytest.mark.usefixtures("_float64")
def test_steps_work_with_a_loss_that_reads_more_than_the_score():
    run = labeled_run(loss=WithClassifier())
    real, fake, eps, y = labeled_batch(run)
    before = copy.deepcopy(run.critic)
    optimizer = torch.optim.SGD(run.critic.parameters(), lr=0.1)
    terms = critic_step(run.critic, optimizer, real, fake, eps, y, loss=run.loss)
    gap, penalty = written_out(before, real, fake, eps, y)
    loss = penalty - gap + F.cross_entropy(before(real, y, logits=True)[1], y)
    torch.testing.assert_close(terms["critic_loss"], loss.detach())
    gradients = torch.autograd.grad(loss, list(before.parameters()))
    for new, old, gradient in zip(run.critic.parameters(), before.parameters(), gradients, strict=True):
        torch.testing.assert_close(new, old - 0.1 * gradient)

    z, y = draw_latent(run.generator, 12, 0, 0, "generator")
    before = copy.deepcopy(run.generator)
    optimizer = torch.optim.SGD(run.generator.parameters(), lr=0.1)
    terms = generator_step(run.generator, run.critic, optimizer, z, y, loss=run.loss)
    assert terms.keys() == {"generator_loss", "fake_entropy"}
    score, logits = run.critic(before(z, y), y, logits=True)
    gradients = torch.autograd.grad(F.cross_entropy(logits, y) - score.mean(), list(before.parameters()))
    for new, old, gradient in zip(run.generator.parameters(), before.parameters(), gradients, strict=True):
        torch.testing.assert_close(new, old - 0.1 * gradient)


def train_by_hand(run, steps, critic_steps, size):
    """Algorithm 1 with labels, with the two steps of wgangp.step."""
    for step in range(steps):
        for k in range(step * critic_steps, (step + 1) * critic_steps):
            real, y = run.data.batch(k, size, run.seed)
            z, _ = draw_latent(run.generator, size, run.seed, k, "critic")
            with torch.no_grad():
                fake = run.generator(z, y)
            eps = torch.rand(size, generator=rng_for(run.seed, k, "eps"))
            critic_step(run.critic, run.optim_critic, real, fake, eps, y, loss=run.loss, penalty=run.penalty)
        z, y = draw_latent(run.generator, size, run.seed, step, "generator")
        terms = generator_step(run.generator, run.critic, run.optim_generator, z, y, loss=run.loss)
    return terms


@pytest.mark.usefixtures("_float64", "quick_compile")
@pytest.mark.parametrize(
    "loss",
    # Without a classifier the same steps are compared in tests/test_compiled.py.
    [pytest.param(Wasserstein(), marks=pytest.mark.slow), WithClassifier(), ACGAN(NonSaturating(), 1.0, 0.1)],
    ids=lambda loss: type(loss).__name__,
)
def test_update_trains_labeled_networks_the_same_eagerly_and_compiled(loss, recwarn):
    by_hand, eager, compiled = (labeled_run(loss=loss) for _ in range(3))
    untrained = copy.deepcopy(by_hand.critic.state_dict())
    expected = train_by_hand(by_hand, steps=2, critic_steps=2, size=8)
    for run, compile in ((eager, False), (compiled, True)):
        computation = build_computation(run.generator, run.critic, run.loss, run.penalty, compile=compile)
        for step in range(2):
            terms = update(step, run, computation, critic_steps=2, batch_size=8)
        assert terms["generator_loss"].item() == pytest.approx(expected["generator_loss"].item(), rel=1e-9)
        assert ("wasserstein" in terms) == isinstance(loss, Wasserstein) and "penalty" in terms
        assert ("accuracy_real" in terms) == isinstance(loss, ACGAN)
    assert not [w for w in recwarn if "not used" in str(w.message)]
    for name in ("generator", "critic"):
        states = [getattr(run, name).state_dict() for run in (by_hand, eager, compiled)]
        for key, value in states[0].items():
            assert value.dtype == torch.float64 and torch.equal(value, states[1][key])
            torch.testing.assert_close(value, states[2][key], atol=1e-9, rtol=1e-9)
    moved = {key: not torch.equal(value, untrained[key]) for key, value in by_hand.critic.state_dict().items()}
    classifier = {"classifier.weight", "classifier.bias"}
    assert all(moved[key] for key in moved.keys() - classifier)
    assert all(moved[key] == (type(loss) is not Wasserstein) for key in classifier)


@pytest.mark.parametrize("loss", [Wasserstein(), WithClassifier()], ids=lambda loss: type(loss).__name__)
def test_train_logs_the_terms_of_the_loss(loss, tmp_path):
    run = labeled_run(shape=(1, 2, 2), loss=loss)
    options = dict.fromkeys(("log_every", "sample_every", "checkpoint_every", "lipschitz_every"), 10)
    assert train(tmp_path, run, steps=1, critic_steps=2, batch_size=8, report_size=8, **options) == 1
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 1]
    for record in records:
        names = {"penalty", "critic_loss", "generator_loss", "critic_param_grad_norm", "slope_real_mean"}
        assert record.keys() >= names | {"heldout_penalty", "heldout_critic_loss"}
        for name in ("wasserstein", "heldout_wasserstein"):
            assert (name in record) == (type(loss) is Wasserstein)
        for name in ("real_entropy", "heldout_real_entropy", "fake_entropy"):
            assert (name in record) == (type(loss) is WithClassifier)


def test_labels_of_a_generator_step_are_uniform_and_a_function_of_seed_step_and_purpose():
    generator = labeled_run().generator
    z, y = draw_latent(generator, 3000, 0, 7, "generator")
    assert z.shape == (3000, 2) and y.shape == (3000,) and y.dtype == torch.int64
    counts = y.bincount(minlength=CLASSES)
    assert len(counts) == CLASSES and (counts - 1000).abs().max() < 120  # sd is 26
    again = draw_latent(generator, 3000, 0, 7, "generator")
    assert torch.equal(z, again[0]) and torch.equal(y, again[1])
    for seed, step, purpose in ((1, 7, "generator"), (0, 8, "generator"), (0, 7, "critic")):
        other = draw_latent(generator, 3000, seed, step, purpose)
        assert not torch.equal(z, other[0]) and not torch.equal(y, other[1])


def test_generator_without_classes_gets_no_labels():
    generator = torch.nn.Linear(3, 2)
    generator.latent_dim = 3
    assert [x.shape for x in draw_latent(generator, 5, 0, 0, "generator")] == [(5, 3)]


def test_labeled_critic_of_the_tests_depends_on_its_labels():
    critic, x = LabeledCritic(), torch.randn(4, 2)
    y = torch.tensor([0, 1, 2, 0])
    assert (critic(x, y) - critic(x, (y + 1) % CLASSES)).abs().min() > 0
    assert torch.equal(critic(x, y, logits=True)[1], critic(x, (y + 1) % CLASSES, logits=True)[1])


def test_term_name_that_both_networks_use_is_refused():
    class OneName(Wasserstein):
        def generator(self, fake, *y):
            return {"generator_loss": -fake, "wasserstein": fake}

    run = labeled_run(loss=OneName())
    computation = build_computation(run.generator, run.critic, run.loss, run.penalty)
    for compute in (lambda: update(0, run, computation, critic_steps=1, batch_size=4), lambda: report(run, 0, 4)):
        with pytest.raises(ValueError, match="same name for a term of the critic and of the generator: wasserstein"):
            compute()
