"""Compiled computations give the eager results. If they do not, a warning is printed and the eager ones are used."""

import copy
import math

import pytest
import torch
from foreign import BatchNormGenerator, BreakingCritic, CheckpointedCritic, Counter, Critic, PythonCounterCritic
from labeled import WithClassifier, labeled_run
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from wgangp import GradientPenalty, clip_weights_, critic_step, generator_step
from wgangp.compiled import build_computation, verify
from wgangp.data.toy import gaussians8
from wgangp.losses import ACGAN, LeastSquares, NonSaturating, Wasserstein
from wgangp.networks.dcgan import CIFARCritic, CIFARGenerator, MNISTCritic, MNISTGenerator
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.networks.resnet import ResNetCritic, ResNetGenerator
from wgangp.seeds import draw_latent, initialize, rng_for
from wgangp.step import critic_gradients, descend, generator_gradients

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
    "regularized": (GradientPenalty(), 0.01),
}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build_mlp(width, **options):
    return MLPGenerator((2,), width=width, **options), MLPCritic((2,), width=width, **options)


def require_compiled_is_eager(pair, setting, loss=None, steps=("critic", "generator", "sample"), **options):
    """Compare the compiled terms and gradients of both networks with eager ones, in float64.

    A fallback to the eager ones would warn, and a warning fails a test.

    Args:
        steps: what is compared.
        options: of both networks, for example classes.
    """
    make_generator, make_critic, shape = PAIRS[pair]
    penalty, weight = SETTINGS[setting]
    generator, critic = (make(shape, width=6, **options).double() for make in (make_generator, make_critic))
    real, z = torch.randn(4, *shape).double(), torch.randn(4, generator.latent_dim).double()
    y = (torch.tensor([0, 1, 2, 0]),) if options.get("classes") else ()
    fake, eps, loss = generator(z, *y).detach(), penalty.draw(real), loss or Wasserstein()
    fast = build_computation(generator, critic, loss, penalty, weight, compile=True)
    for repeat in range(2):  # the first batch is also compared by build_computation; later ones are not
        for p in critic.parameters():
            p.data.mul_(1 + 0.1 * repeat)  # the compiled step must use the current parameters
        options = {"loss": loss, "regularize_gradient_norm": weight}
        eager = critic_gradients(critic, real, fake, eps, *y, penalty=penalty, **options)
        if "critic" in steps:
            require_close(fast.critic_gradients(real, fake, eps, *y), eager)
        if "generator" in steps:
            require_close(fast.generator_gradients(z, *y), generator_gradients(generator, critic, z, *y, **options))
        if "sample" in steps:
            require_close(({}, [fast.sample(z, *y)]), ({}, [generator(z, *y).detach()]))
    assert all(p.grad is None for p in (*critic.parameters(), *generator.parameters()))


def require_close(compiled, eager):
    """Compare two pairs (terms, gradients)."""
    assert compiled[0].keys() == eager[0].keys()
    for name, value in compiled[0].items():
        torch.testing.assert_close(value, eager[0][name], atol=1e-12, rtol=1e-10)
    for a, b in zip(compiled[1], eager[1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    assert sum(g.abs().sum() for g in eager[1]) > 0
    assert not any(g.requires_grad for g in compiled[1])  # no graph is kept for a backward pass that never comes


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_compiled_gradients_are_the_eager_ones_for_every_penalty(setting):
    require_compiled_is_eager("mlp", setting)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair != "mlp"])
def test_compiled_gradients_are_the_eager_ones_for_every_penalty_and_network(pair, setting, quick_compile):
    require_compiled_is_eager(pair, setting)


@pytest.mark.slow
def test_compiled_convolutions_are_the_eager_ones_with_the_whole_compiler():
    require_compiled_is_eager("mnist", "two")


@pytest.mark.slow
def test_compiled_gradients_are_the_eager_ones_for_labels_and_acgan(quick_compile):
    require_compiled_is_eager("cifar_resnet", "two", ACGAN(Wasserstein()), classes=3)


@pytest.mark.parametrize("loss", [NonSaturating(), LeastSquares()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("setting", ["two", pytest.param("none", marks=pytest.mark.slow)])
def test_traced_gradients_are_the_eager_ones_for_every_loss(loss, setting, quick_compile):
    """The generator's step does not depend on the penalty, and its samples depend on neither."""
    steps = ("critic", "generator") if setting == "two" else ("critic",)
    require_compiled_is_eager("mlp", setting, loss, steps, depth=2)


@pytest.mark.parametrize("setting", [name for name in SETTINGS if name not in ("one", "target 0")])
def test_traced_gradients_are_the_eager_ones_for_every_penalty(setting, quick_compile):
    """The generator's step depends on no penalty, but on the regularization.

    "one, perturbed" has one side and R1 has the target 0; each of them alone is in the slow tests.
    """
    steps = {"two": ("critic", "generator", "sample"), "regularized": ("critic", "generator")}
    require_compiled_is_eager("mlp", setting, None, steps.get(setting, ("critic",)), depth=2)


@pytest.mark.slow
def test_float32_products_use_onednn_and_are_right():
    generator, critic = build_mlp(width=64)
    batch = torch.randn(64, 2), torch.randn(64, 2), torch.rand(64)
    _, exact = critic_gradients(critic, *batch)
    fast = build_computation(generator, critic, Wasserstein(), GradientPenalty(), compile=True).critic_gradients
    fast(*batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        _, gradients = fast(*batch)
    names = {event.key for event in profile.key_averages()}
    assert "mkldnn::_linear_pointwise" in names
    for a, b in zip(gradients, exact, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_many_runs_can_be_compiled_in_one_process(quick_compile, recwarn):
    for width in range(2, 7):  # ten graphs
        networks = build_mlp(width, depth=1)
        fast = build_computation(*networks, Wasserstein(), GradientPenalty(weight=0.0), compile=True)
        for _ in range(2):
            fast.critic_gradients(torch.randn(4, 2), torch.randn(4, 2), torch.rand(4))
            fast.generator_gradients(torch.randn(4, 2))
    assert not [str(w.message) for w in recwarn if "not used" in str(w.message)]


@pytest.mark.slow
def test_compiled_trajectory_is_the_eager_one():
    def train(compile):
        generator = initialize(lambda: MLPGenerator((2,), width=32), 0, "generator").double()
        critic = initialize(lambda: MLPCritic((2,), width=32), 0, "critic").double()
        optim_generator, optim_critic = (
            torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.0, 0.9)) for network in (generator, critic)
        )
        fast = build_computation(generator, critic, Wasserstein(), GradientPenalty(), compile=True)
        for k in range(60):
            real = gaussians8().batch(k, 64, seed=0)[0].double()
            with torch.no_grad():
                (z,) = draw_latent(generator, 64, 0, k, "critic")
                fake = generator(z.double())
            eps = GradientPenalty().draw(real, rng_for(0, k, "eps"))
            if compile:
                descend(critic, fast.critic_gradients(real, fake, eps)[1], optim_critic)
            else:
                critic_step(critic, optim_critic, real, fake, eps)
            if k % 3 == 2:
                (z,) = draw_latent(generator, 64, 0, k, "generator")
                if compile:
                    descend(generator, fast.generator_gradients(z.double())[1], optim_generator)
                else:
                    generator_step(generator, critic, optim_generator, z.double())
        return [*critic.parameters(), *generator.parameters()]

    for a, b in zip(train(compile=True), train(compile=False), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("loss", [Wasserstein(), WithClassifier()], ids=lambda loss: type(loss).__name__)
def test_compiled_halves_of_labeled_networks_are_the_eager_steps(loss, quick_compile):
    """Also with a loss that reads class logits beside the score."""
    run = labeled_run(loss=loss)
    generator, critic = run.generator.double(), run.critic.double()
    others = copy.deepcopy((generator, critic))
    z, y = draw_latent(generator, 12, 0, 0, "critic")
    real, fake, eps = torch.randn(12, 2).double(), torch.randn(12, 2).double(), torch.rand(12).double()
    fast = build_computation(generator, critic, loss, run.penalty, compile=True)
    torch.testing.assert_close(fast.sample(z.double(), y), generator(z.double(), y).detach())
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (generator, critic, *others)]
    for _ in range(2):
        terms, gradients = fast.critic_gradients(real, fake, eps, y)
        descend(critic, gradients, optimizers[1])
        clip_weights_(critic, 0.9)
        options = {"loss": loss, "penalty": run.penalty, "clip_weights": 0.9}
        eager_terms = critic_step(others[1], optimizers[3], real, fake, eps, y, **options)
        assert list(terms) == list(eager_terms)
        for name, term in terms.items():
            torch.testing.assert_close(term, eager_terms[name], atol=1e-12, rtol=1e-10)

        terms, gradients = fast.generator_gradients(z.double(), y)
        descend(generator, gradients, optimizers[0])
        eager_terms = generator_step(*others, optimizers[2], z.double(), y, loss=loss)
        assert list(terms) == list(eager_terms)
        for name, term in terms.items():
            torch.testing.assert_close(term, eager_terms[name], atol=1e-12, rtol=1e-10)
    for network, other in zip((generator, critic), others, strict=True):
        for a, b in zip(network.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("wrong", [torch.tensor([3.0, 4.2]), torch.tensor([3.0, math.nan]), torch.zeros(2)])
def test_wrong_gradient_is_noticed_and_the_eager_one_is_used(wrong):
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([1.0])]
    step = verify("critic", lambda: ({}, [wrong, gradients[1]]), lambda: ({}, gradients))
    message = (
        r"^the compiled critic step is not used: its gradients differ from the eager ones by \S+ \(relative, tensor 1"
        r" of 2\)\. The step is computed in eager mode$"
    )
    with pytest.warns(UserWarning, match=message):
        assert step()[1] is gradients
    assert step()[1] is gradients


def test_wrong_samples_are_noticed_and_the_eager_ones_are_used(monkeypatch):
    def compile_wrongly(function, **options):
        return lambda *batch: tree_map(lambda x: 2 * x, function(*batch))

    monkeypatch.setattr(torch, "compile", compile_wrongly)
    generator, critic = build_mlp(width=4)
    z = torch.randn(4, 2)
    sample = build_computation(generator, critic, Wasserstein(), GradientPenalty(), compile=True).sample
    with pytest.warns(
        UserWarning, match=r"not used: its samples differ from the eager ones by 1 \(relative, tensor 1 of 1\)"
    ):
        assert torch.equal(sample(z), generator(z))
    assert torch.equal(sample(z), generator(z))


def test_gradient_that_agrees_up_to_rounding_is_used_from_the_first_batch_on(capsys):
    compiled, gradients = [torch.tensor([3.0, 4.00001])], [torch.tensor([3.0, 4.0])]
    eager_calls = []
    step = verify("critic", lambda: ({}, compiled), lambda: eager_calls.append(1) or ({}, gradients))
    assert step()[1] is compiled and step()[1] is compiled and eager_calls == [1]
    assert "compiled the critic step in 0 s" in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["two", "one", "weak"])
@pytest.mark.parametrize("pair", PAIRS)
def test_lost_penalty_is_noticed_even_if_initial_slopes_are_small(pair, setting):
    make_generator, make_critic, shape = PAIRS[pair]
    penalty = {"two": GradientPenalty(), "one": GradientPenalty(sides="one"), "weak": GradientPenalty(0.1)}[setting]
    generator, critic = make_generator(shape, width=8), make_critic(shape, width=8)
    batch = torch.rand(8, *shape), torch.rand(8, *shape), torch.rand(8)
    before = [p.clone() for p in critic.parameters()]
    right, lost = (
        build_computation(generator, critic, Wasserstein(), p).critic_gradients for p in (penalty, GradientPenalty(0.0))
    )
    with pytest.warns(UserWarning, match="critic step is not used: its gradients differ from the eager ones by"):
        verify("critic", lost, right, "bf16", critic)(*batch)
    assert all(torch.equal(a, b) for a, b in zip(critic.parameters(), before, strict=True))


def test_gradients_are_verified_until_a_cuda_graph_is_replayed(monkeypatch):
    monkeypatch.setattr("wgangp.compiled.VERIFIED", {"cpu": 3})
    right, calls = [torch.ones(2)], []

    def wrong_at_the_replay():
        calls.append(1)
        return {}, [torch.ones(2) if len(calls) < 5 else torch.zeros(2)]  # two calls per batch: compared, then used

    step = verify("critic", wrong_at_the_replay, lambda: ({}, right))
    step(), step()
    with pytest.warns(UserWarning, match="not used"):
        assert step()[1] is right
    assert step()[1] is right and len(calls) == 5


def test_unknown_precision_raises():
    with pytest.raises(ValueError, match=r"precision = fp16: must be one of fp32, tf32, bf16"):
        build_computation(*build_mlp(width=2), Wasserstein(), GradientPenalty(), precision="fp16")


def test_gradient_that_is_zero_in_both_is_no_error(capsys):
    step = verify("critic", lambda: ({}, [torch.zeros(2)]), lambda: ({}, [torch.zeros(2)]))
    assert step()[1][0].eq(0).all() and "compiled" in capsys.readouterr().out


def test_a_small_gradient_that_is_lost_is_noticed():
    """All gradients together differ by 0.005, which is less than the tolerance."""
    right = [torch.full((100,), 1.0), torch.full((10,), 0.005)]
    step = verify("generator", lambda: ({}, [right[0], torch.zeros(10)]), lambda: ({}, right))
    with pytest.warns(UserWarning, match=r"differ from the eager ones by 0.16 \(relative, tensor 2 of 2\)"):
        assert step()[1] is right


@pytest.mark.parametrize("norm", ["body.1", "body.5"])
def test_a_lost_scale_of_batch_norm_is_noticed(norm):
    generator, critic = BatchNormGenerator(), Critic()
    right = build_computation(generator, critic, Wasserstein(), GradientPenalty()).generator_gradients
    lost = [name for name, _ in generator.named_parameters()].index(f"{norm}.weight")

    def lose(*batch):
        terms, gradients = right(*batch)
        return terms, [torch.zeros_like(g) if i == lost else g for i, g in enumerate(gradients)]

    with pytest.warns(UserWarning, match=f"by 1 .relative, tensor {lost + 1} of"):
        verify("generator", lose, right, networks=(generator, critic))(torch.randn(8, 8))


def test_a_gradient_that_is_nothing_but_rounding_is_no_error(capsys):
    """Batch norm after a linear layer: the gradient of its bias is 0, and computed as 1e-9 or so."""
    right, rounded = ([torch.ones(100), torch.full((10,), noise)] for noise in (1e-9, -1e-9))
    step = verify("generator", lambda: ({}, rounded), lambda: ({}, right))
    assert step()[1] is rounded and "compiled" in capsys.readouterr().out


CRITICS = {  # that can be compiled, with everything that a forward pass may change
    "batch norm, counters": lambda: Critic(layer=Counter),
    "dropout": lambda: Critic(layer=lambda: nn.Dropout(0.5)),
    "spectral norm": lambda: Critic(nn.utils.parametrizations.spectral_norm),
    "weight norm": lambda: Critic(nn.utils.parametrizations.weight_norm),
    "instance norm": lambda: Critic(layer=lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
    "batch norm, no penalty": lambda: Critic(layer=lambda: nn.BatchNorm2d(4)),
}
REFUSED = {  # that cannot be compiled
    "checkpoint": (CheckpointedCritic, "saved tensor hooks"),
    "graph break": (BreakingCritic, "graph_break"),
    "old spectral norm": (lambda: Critic(nn.utils.spectral_norm), "TensorWrapper"),
}


def train_foreign(make_critic, weight, compile, steps=3, make_generator=BatchNormGenerator, device="cpu"):
    """Train networks that are not ours. Returns everything that they hold, the next random number, and the problems."""
    torch.manual_seed(0)
    generator, critic = make_generator().to(device), make_critic().to(device)
    computation = build_computation(generator, critic, Wasserstein(), GradientPenalty(weight), compile=compile)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (generator, critic)]
    for k in range(steps):
        rng = torch.Generator().manual_seed(k)
        real, z, eps = (torch.randn(*shape, generator=rng).to(device) for shape in ((8, 1, 8, 8), (8, 8), (8,)))
        fake = computation.sample(z)
        descend(critic, computation.critic_gradients(real, fake, eps.sigmoid())[1], optimizers[1])
        descend(generator, computation.generator_gradients(z)[1], optimizers[0])
    state = {**generator.state_dict(), **{f"critic.{name}": value for name, value in critic.state_dict().items()}}
    state |= dict(critic.named_buffers()) | {"random": torch.rand(2)}
    return state, computation.problems


def require_equal_states(actual, expected, equal=torch.equal):
    assert actual.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not equal(actual[name], value)]


def close_in_float32(a, b):
    return torch.allclose(a, b, atol=1e-5, rtol=1e-4)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "critic", [name if i < 1 else pytest.param(name, marks=SLOW) for i, name in enumerate(CRITICS)]
)
def test_networks_with_buffers_are_compiled_and_train_as_in_eager_mode(critic, quick_compile):
    """Also running statistics, counters, and the random numbers that are drawn afterwards."""
    weight = 0.0 if critic == "batch norm, no penalty" else 10.0
    eager, _ = train_foreign(CRITICS[critic], weight, compile=False)
    compiled, problems = train_foreign(CRITICS[critic], weight, compile=True)
    # The traced formula of weight norm is another one. Its rounding grows in float32, as in the test below.
    close = close_in_float32 if critic == "weight norm" else torch.equal
    require_equal_states(compiled, eager, close)
    assert not problems and not eager["body.1.running_mean"].eq(0).any()


@pytest.mark.slow
def test_networks_with_buffers_train_as_in_eager_mode_with_the_whole_compiler():
    for name in ("batch norm, counters", "dropout"):
        (eager, _), (compiled, problems) = (train_foreign(CRITICS[name], 10.0, compile) for compile in (False, True))
        require_equal_states(compiled, eager, close_in_float32)
        assert not problems


@pytest.mark.parametrize(
    "critic", ["checkpoint", *(pytest.param(n, marks=SLOW) for n in ("graph break", "old spectral norm"))]
)
def test_a_run_that_falls_back_is_the_eager_run(critic, quick_compile):
    make, reason = REFUSED[critic]
    eager, _ = train_foreign(make, 10.0, compile=False)
    with pytest.warns(UserWarning, match="step is not used: .*The step is computed in eager mode"):
        state, problems = train_foreign(make, 10.0, compile=True)
    require_equal_states(state, eager)
    assert set(problems) == {"critic", "generator"} and reason in problems["critic"]
    assert not torch.overrides._get_current_function_mode_stack() and torch.is_grad_enabled()


def test_a_run_that_falls_back_later_is_the_eager_run(quick_compile):
    eager, _ = train_foreign(PythonCounterCritic, 10.0, compile=False)
    with torch._dynamo.config.patch(recompile_limit=2), pytest.warns(UserWarning, match="compiled too often"):
        state, problems = train_foreign(PythonCounterCritic, 10.0, compile=True)
    require_equal_states(state, eager)
    assert set(problems) == {"critic", "generator"} and "keep it in a buffer" in problems["critic"]


def test_a_network_that_cannot_be_compiled_for_another_batch_trains_on_in_eager_mode(quick_compile):
    """Saved-tensor hooks, with which torch.utils.checkpoint works, are not left disabled."""

    class Late(CheckpointedCritic):
        def forward(self, x):
            return super().forward(x) if len(x) > 16 else Critic.forward(self, x)

    critic = Late()
    step = build_computation(BatchNormGenerator(), critic, Wasserstein(), GradientPenalty(), compile=True)
    small, large = ((torch.randn(n, 1, 8, 8), torch.randn(n, 1, 8, 8), torch.rand(n)) for n in (8, 16))
    step.critic_gradients(*small)  # real and fake samples go through the critic together: 16
    with pytest.warns(UserWarning, match=r"critic step is not used: .*saved tensor hooks"):
        step.critic_gradients(*large)
    for batch in (large, small):
        expected = critic_gradients(critic, *batch, penalty=GradientPenalty())[1]
        assert all(torch.equal(a, b) for a, b in zip(step.critic_gradients(*batch)[1], expected, strict=True))
    assert "critic" in step.problems


@torch.library.custom_op("wgangp_tests::negate", mutates_args=())
def negate(gradient: Tensor) -> Tensor:
    """Return -gradient. The second call fails: the first is that of the eager step."""
    negate.calls += 1
    if negate.calls == 2:
        raise RuntimeError("a kernel that fails")
    return -gradient


negate.register_fake(torch.empty_like)


class Negate(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return -x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return negate(gradient)


class FailingGenerator(BatchNormGenerator):
    def forward(self, z):
        return Negate.apply(super().forward(z))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_kernel_that_fails_in_one_compiled_step_leaves_the_others_compiled(device, request):
    """On a GPU the failure leaves a CUDA graph behind that is not finished."""
    if device == "cpu":
        request.getfixturevalue("quick_compile")
    options = {"make_critic": CRITICS["spectral norm"], "weight": 10.0, "make_generator": FailingGenerator}
    negate.calls = 2
    eager, _ = train_foreign(**options, compile=False, device=device)
    negate.calls = 0
    with pytest.warns(UserWarning, match="the compiled generator step is not used: RuntimeError: a kernel that fails"):
        state, problems = train_foreign(**options, compile=True, device=device)
    assert set(problems) == {"generator"} and negate.calls > 2
    require_equal_states(state, eager, torch.equal if device == "cpu" else close_in_float32)


def fail_to_compile():
    raise torch._dynamo.exc.BackendCompilerFailed(len, RuntimeError("no space"), None)


@pytest.mark.parametrize(
    ("failure", "gpu", "resets"), [(lambda: 1 / 0, True, 1), (lambda: 1 / 0, False, 0), (fail_to_compile, True, 0)]
)
def test_after_a_failed_kernel_on_a_gpu_everything_is_compiled_and_compared_again(failure, gpu, resets, monkeypatch):
    calls, right = [], [torch.ones(2)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: gpu)
    monkeypatch.setattr(torch.compiler, "reset", lambda: calls.append("reset"))
    factor = [1.0]
    step, other = (
        verify("critic", lambda: ({}, [factor[0] * right[0]]), lambda: calls.append("eager") or ({}, right))
        for _ in range(2)  # the second is never wrong
    )
    step(), step(), other()
    assert calls == ["eager", "eager"]  # once per step
    with pytest.warns(UserWarning, match="generator step is not used"):
        verify("generator", failure, lambda: ({}, right))()
    assert calls[2:] == ["reset"] * resets
    for _ in range(3):
        other()
    assert calls[2:] == ["reset", "eager"] * resets  # not at every batch
    factor[0] = 2.0
    if resets:
        with pytest.warns(UserWarning, match="critic step is not used: its gradients differ"):
            assert step()[1] is right
    assert step()[1][0].tolist() == ([1.0, 1.0] if resets else [2.0, 2.0])


def verify_and_fail(error):
    """Return a verified step whose compiled form raises the error from its third call on, and the compiled result."""
    gradients, calls = [torch.ones(2)], []

    def fast():
        calls.append(None)
        if len(calls) > 2:  # the first call is a comparison, the second is used
            raise error
        return {}, gradients

    return verify("generator", fast, lambda: ({}, [gradients[0].clone()])), gradients


def test_a_compiler_failure_at_a_later_batch_warns_and_the_run_continues():
    step, gradients = verify_and_fail(torch._dynamo.exc.BackendCompilerFailed(len, RuntimeError("no space"), None))
    assert step()[1] is gradients
    with pytest.warns(UserWarning, match="generator step is not used: BackendCompilerFailed: .*The step is computed"):
        assert step()[1] is not gradients
    assert step()[1] is not gradients  # without another warning, which would fail the test


def test_an_error_that_is_not_of_the_compiler_is_raised():
    step, gradients = verify_and_fail(ZeroDivisionError())
    assert step()[1] is gradients
    with pytest.raises(ZeroDivisionError):
        step()


def test_a_lost_penalty_is_noticed_in_spite_of_dropout():
    generator, critic = BatchNormGenerator(), CRITICS["dropout"]()
    right, lost = (
        build_computation(generator, critic, Wasserstein(), GradientPenalty(weight)).critic_gradients
        for weight in (10.0, 0.0)
    )
    batch = torch.randn(8, 1, 8, 8), torch.randn(8, 1, 8, 8), torch.rand(8)
    with pytest.warns(UserWarning, match="critic step is not used: its gradients differ"):
        verify("critic", lost, right, "bf16", critic, (generator, critic))(*batch)


QUOTED = """An exception occurred in a subprocess:

Traceback (most recent call last):
  File "worker.py", line 1, in job
ptxas.PTXASError: too many registers

Set TORCHDYNAMO_VERBOSE=1 for more"""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("no C++ compiler\nand more\nand much more", r"no C\+\+ compiler and more"),
        (QUOTED, "An exception occurred in a subprocess: ptxas.PTXASError: too many registers"),
        ("BackendError: no compiler", "BackendError: no compiler"),
        ("", ""),
    ],
)
def test_compiler_failure_warns_and_the_run_continues(error, reason):
    def fail():
        raise RuntimeError(error)

    gradients = [torch.ones(2)]
    step = verify("generator", fail, lambda: ({}, gradients))
    message = rf"^the compiled generator step is not used: RuntimeError: {reason}\. The step is computed in eager mode$"
    with pytest.warns(UserWarning, match=message):
        assert step()[1] is gradients
