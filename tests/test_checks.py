"""How a critic is called and checked: what goes in, what comes out, and whether each score is of its own sample."""

import copy
import functools
import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import smooth_critic
from labeled import LabeledCritic
from torch import nn
from torch.nn import functional as F

from wgangp import (
    GradientPenalty,
    certified_lipschitz,
    check_per_sample,
    critic_step,
    generator_step,
    gradient_norm,
    gradient_penalty,
    largest_quotient,
    lipschitz_on_box,
    slope_statistics,
    steepest_slope,
)
from wgangp.checks import compute_scores
from wgangp.networks.dcgan import MNISTCritic
from wgangp.plots import save_value_surface
from wgangp.state import digest_random_state
from wgangp.step import critic_objective

NO_PENALTY = GradientPenalty(weight=0.0)
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Wrapped(nn.Module):
    """A module whose forward is a function of its first layer, the points and the labels."""

    def __init__(self, forward, layer=None):
        super().__init__()
        self.layer, self.function = layer or small_critic(), forward

    def forward(self, x, *y):
        return self.function(self.layer, x, *y)


class Attention(nn.Module):
    """A transformer on sequences (B, length, 4)."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=dropout, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = kind(4, 5, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0][:, -1, 0]


def small_critic():
    return nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))


def mix(layer, x):
    return layer(x - x.mean(0))


# What a critic returns, and the words in the error for it.
WRONG_SCORES = {
    "tuple": (lambda x: (x.sum(1), x), r"value of type tuple.*lambda x: critic\(x\)\[0\]"),
    "list": (lambda x: [x.sum(1)], "value of type list"),
    "dict": (lambda x: {"logits": x.sum(1)}, r"value of type dict.*critic\(x\)\['logits'\]"),
    "none": (lambda x: None, "value of type NoneType"),
    "one row": (lambda x: x.sum(1)[None], r"got \(1, \d\) for \d samples"),
    "scalar": (lambda x: x.sum(), r"got \(\) for \d samples"),
    "map": (lambda x: x[:, None], r"got \(\d, 1, 3\) for \d samples"),
    "too few": (lambda x: x[1:].sum(1), r"got \(\d,\) for \d samples"),
    "integers": (lambda x: x.sum(1).long(), "a real number in floating point: got torch.int64"),
    "complex": (lambda x: x.sum(1) + 0j, "a real number in floating point: got torch.complex"),
}
# Every public function that calls a critic.
CALLS = {
    "gradient_norm": gradient_norm,
    "gradient_penalty": lambda critic, x: gradient_penalty(critic, x, torch.zeros_like(x)),
    "penalty at real": lambda critic, x: GradientPenalty(points="real")(critic, x, torch.zeros_like(x)),
    "critic_objective": lambda critic, x: critic_objective(critic, x, torch.zeros_like(x)),
    "without penalty": lambda critic, x: critic_objective(critic, x, torch.zeros_like(x), penalty=NO_PENALTY),
    "generator": lambda critic, x: generator_step(nn.Linear(3, 3), critic_module(critic), None, x),
    "check_per_sample": check_per_sample,
}
MEASURES = {  # the same, of functions that see the critic in eval mode
    "slope_statistics": lambda critic, x: slope_statistics(critic, x, x + 1),
    "largest_quotient": largest_quotient,
    "steepest_slope": lambda critic, x: steepest_slope(critic, x, steps=1),
    "certified_lipschitz": lambda critic, x: certified_lipschitz(critic_module(critic), tuple(x.shape[1:])),
    "lipschitz_on_box": lambda critic, x: lipschitz_on_box(critic_module(critic), -1.0, [1.0] * x.shape[1]),
    "save_value_surface": lambda critic, x: save_value_surface(
        None, lambda x: critic(F.pad(x, (0, 1))), x[:, :2], x[:, :2], (-1.0, 1.0), resolution=2
    ),
}


def critic_module(critic):
    return Wrapped(lambda _, x: critic(x))


@pytest.mark.parametrize("call", (CALLS | MEASURES).values(), ids=CALLS | MEASURES)
@pytest.mark.parametrize("critic, message", WRONG_SCORES.values(), ids=WRONG_SCORES)
def test_everything_that_calls_a_critic_refuses_what_is_no_score_per_sample(critic, message, call):
    with pytest.raises(ValueError, match=f"a critic returns one score per sample.*{message}|{message}"):
        call(critic, X)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, after a graph break
@pytest.mark.parametrize("name", ["tuple", "one row", "map"])
def test_a_compiled_function_refuses_what_is_no_score_per_sample(name):
    critic, _ = WRONG_SCORES[name]
    torch._dynamo.reset()
    for fullgraph, kind in ((True, Exception), (False, ValueError)):
        penalty = torch.compile(lambda x: gradient_penalty(critic, x, x + 1), backend="eager", fullgraph=fullgraph)
        with pytest.raises(kind, match="a critic returns one score per sample"):
            penalty(X)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_scores_with_axes_of_length_one_are_scores(shape):
    critic = small_critic()
    scores = critic(X).flatten()
    assert torch.equal(compute_scores(lambda x: critic(x).view(-1, *shape), X), scores)
    value, expected = (
        gradient_penalty(c, X, X + 1, eps=torch.ones(4)) for c in (lambda x: critic(x).view(-1, *shape), critic)
    )
    assert torch.equal(value, expected)


WRONG_POINTS = {
    "integers": (torch.ones(4, 3, dtype=torch.int64), "floating point: got torch.int64"),
    "complex": (X + 0j, "floating point: got torch.complex"),
    "sparse": (X.to_sparse(), "got torch.float32, torch.sparse_coo"),
    "empty": (X[:0], r"at least one sample: got \(0, 3\)"),
    "one number": (X[0, 0], r"at least one sample: got \(\)"),
}


# Functions that take points and do not call the critic, or not at these points.
TAKE_POINTS = CALLS | {
    "real, weight 0": lambda critic, x: gradient_penalty(critic, x, X, weight=0.0),
    "fake, weight 0": lambda critic, x: gradient_penalty(critic, X, x, weight=0.0),
    "fake, penalty at real": lambda critic, x: GradientPenalty(points="real")(critic, X, x),
}


@pytest.mark.parametrize("call", TAKE_POINTS.values(), ids=TAKE_POINTS)
@pytest.mark.parametrize("x, message", WRONG_POINTS.values(), ids=WRONG_POINTS)
def test_everything_that_calls_a_critic_refuses_what_are_no_points(x, message, call):
    with pytest.raises(ValueError, match=message):
        call(lambda x: x.sum(1), x)


CUT = {
    "detach": lambda layer, x: layer(x.detach()),
    "data": lambda layer, x: layer(x.data),
    "no_grad": lambda layer, x: torch.no_grad()(layer)(x),
    "ignored points": lambda layer, x: layer[0].bias.sum().expand(len(x)),
}


@pytest.mark.parametrize("name", ["gradient_norm", "gradient_penalty", "critic_objective", "check_per_sample"])
@pytest.mark.parametrize("forward", CUT.values(), ids=CUT)
def test_a_gradient_that_is_cut_in_front_of_trainable_layers_is_refused(forward, name):
    with pytest.raises(ValueError, match=r"no graph back to its points.* inference_mode\(\), detach\(\) or \.data"):
        CALLS[name](Wrapped(forward), X)


def penalize_in_func(critic, x):
    """The penalty of a critic whose weights are those of a transform of torch.func."""
    weights = {name: p.detach() for name, p in critic.named_parameters()}
    call = lambda weights, x: torch.func.functional_call(critic, weights, (x,))  # noqa: E731
    return torch.func.grad_and_value(lambda w: gradient_penalty(partial(call, w), x, x + 1))(weights)[1]


def compile_call(call, **options):
    """Return the function as torch.compile makes it, without what other tests left in its caches."""

    def compiled(critic, x):
        torch._dynamo.reset()
        return torch.compile(call, **options)(critic, x)

    return compiled


TRANSFORMS = {
    "compiled": compile_call(CALLS["gradient_penalty"], backend="eager"),
    "fullgraph": compile_call(CALLS["gradient_penalty"], backend="aot_eager", fullgraph=True),
    "compiled objective": compile_call(CALLS["critic_objective"], backend="eager"),
    "torch.func": penalize_in_func,
}
PROBLEMS = (ValueError, torch._dynamo.exc.Unsupported)  # with fullgraph=True the second one, with the same text


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, after a graph break
@pytest.mark.parametrize("name", ["detach"])
@pytest.mark.parametrize("call", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_gradient_that_is_cut_is_refused_in_compiled_functions_and_transforms(call, name):
    with pytest.raises(PROBLEMS, match="no graph back to its points"):
        call(Wrapped(CUT[name]), X)
    assert call(small_critic(), X) is not None


STEPS = {
    "round": lambda layer, x: layer(x.round()),
    "floor": lambda layer, x: layer((255 * x).floor() / 255),
    "sign": lambda layer, x: layer(x.sign()),
    "detach, and a graph": lambda layer, x: layer(x.detach()).flatten() + 0 * x.sum(1),
}
TRAINING_CALLS = {name: CALLS[name] for name in ("gradient_penalty", "critic_objective", "check_per_sample")}
TRAINING_CALLS["function"] = lambda critic, x: gradient_penalty(lambda x: critic(x), x, x + 1)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, after a graph break
@pytest.mark.parametrize("name", ["compiled", "fullgraph"])
def test_a_slope_that_trains_nothing_is_refused_in_compiled_functions(name):
    with pytest.raises(PROBLEMS, match="does not depend on any of its trainable weights"):
        TRANSFORMS[name](Wrapped(STEPS["round"]), X)


@pytest.mark.parametrize("call", TRAINING_CALLS.values(), ids=TRAINING_CALLS)
@pytest.mark.parametrize("forward", STEPS.values(), ids=STEPS)
def test_a_slope_that_trains_nothing_is_refused(forward, call):
    with pytest.raises(PROBLEMS, match="does not depend on any of its trainable weights"):
        call(Wrapped(forward), X)
    assert not gradient_penalty(Wrapped(forward).requires_grad_(False), X, X + 1).requires_grad
    with torch.no_grad():
        assert gradient_penalty(Wrapped(forward), X, X + 1) == pytest.approx(10)


IN_PLACE = {
    "div_": lambda layer, x: layer(x.div_(255)),
    "relu": lambda layer, x: layer(F.relu(x, inplace=True)),
    "normalized": lambda layer, x: layer(x.sub_(0.5).mul_(2)),
}
OUT_OF_PLACE = {
    "div_": lambda layer, x: layer(x / 255),
    "relu": lambda layer, x: layer(F.relu(x)),
    "normalized": lambda layer, x: layer((x - 0.5) * 2),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_critic_that_works_in_place_changes_no_points_and_no_result(name):
    layer, real, fake, eps = small_critic(), X.clone(), X + 1, torch.rand(4)
    critics = Wrapped(IN_PLACE[name], layer), Wrapped(OUT_OF_PLACE[name], layer)
    for compute in (
        lambda critic: gradient_norm(critic, real),
        lambda critic: gradient_penalty(critic, real, fake, eps=eps),
        lambda critic: GradientPenalty(points="real")(critic, real, fake),
        lambda critic: critic_objective(critic, real, fake, eps)["critic_loss"],
        lambda critic: critic_objective(critic, real, fake, penalty=NO_PENALTY)["critic_loss"],
    ):
        assert torch.equal(*(compute(critic) for critic in critics))
    check_per_sample(critics[0], real)
    assert torch.equal(real, X) and torch.equal(fake, X + 1) and not real.requires_grad


def test_call_that_does_not_fit_the_forward_is_explained():
    class KeywordOnly(nn.Module):
        def forward(self, *, pictures):
            return pictures.sum(1)

    with pytest.raises(ValueError, match=r"called as critic\(x, \*y\), here with 1 argument.*lambda x: critic\("):
        gradient_norm(KeywordOnly(), X)
    with pytest.raises(ValueError, match=r"missing 1 required positional argument: 'y'. Pass labels as y"):
        gradient_norm(LabeledCritic((3,)), X)
    for call in (
        lambda critic: largest_quotient(critic, X),
        lambda critic: steepest_slope(critic, X, steps=1),
        lambda critic: certified_lipschitz(critic, (3,)),
        lambda critic: lipschitz_on_box(critic, [-1.0] * 3, [1.0] * 3),
    ):
        with pytest.raises(ValueError, match=r"Where there is no y, wrap the critic, for example `lambda x: critic\(x"):
            call(LabeledCritic((3,)))
    with pytest.raises(TypeError, match="unsupported operand"):  # an error inside of the critic is its own
        gradient_norm(lambda x: x.sum(1) + "1", X)


def test_labels_reach_the_critic_and_are_checked():
    critic, y = LabeledCritic((3,)), torch.tensor([0, 1, 2, 0])
    closure = lambda x: critic(x, y)  # noqa: E731
    assert torch.equal(compute_scores(critic, X, y), critic(X, y))
    assert torch.equal(gradient_norm(critic, X, y), gradient_norm(closure, X))
    eps = torch.rand(4)
    penalties = gradient_penalty(critic, X, X + 1, eps=eps, y=(y,)), gradient_penalty(closure, X, X + 1, eps=eps)
    assert torch.equal(*penalties)
    assert torch.equal(*(GradientPenalty()(c, X, X + 1, eps, *z).mean() for c, z in ((critic, (y,)), (closure, ()))))
    check_per_sample(critic, X, y=(y,))
    for labels in ((y[:3],), (0,), y[:, None]):
        with pytest.raises(ValueError, match=r"labels for 4 samples: y is a tuple of tensors"):
            gradient_penalty(critic, X, X + 1, y=labels)
    for call in (gradient_penalty, slope_statistics, lambda critic, x, _, y: check_per_sample(critic, x, y=y)):
        with pytest.raises(ValueError, match=r"y is a tensor: write y=\(labels,\)"):
            call(critic, X, X + 1, y=y)
    with pytest.raises(ValueError, match=r"\(3,\) labels for 4 samples"):
        critic_objective(critic, X, X + 1, None, y[:3])


SINGLE = {  # critics that treat every sample by itself
    "smooth": (smooth_critic(3), X.double()),
    "layer norm": (nn.LayerNorm(1), X[:, :1]),
    "convolutions": (MNISTCritic((1, 28, 28), width=2), torch.rand(4, 1, 28, 28)),
    "instance norm": (
        nn.Sequential(nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten(), nn.Linear(9, 1)),
        torch.randn(4, 3, 3),
    ),
    "spectral_norm, old": (nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 8)), nn.Tanh(), nn.Linear(8, 1)), X),
    "spectral_norm": (nn.utils.parametrizations.spectral_norm(nn.Linear(3, 1)), X),
    "dropout": (nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 1)), X),
    "transformer": (Attention(), torch.randn(4, 3, 4)),
    "transformer with dropout": (Attention(0.1), torch.randn(4, 3, 4)),
    "LSTM": (Recurrent(nn.LSTM), torch.randn(4, 3, 4)),
    "GRU": (Recurrent(nn.GRU), torch.randn(4, 3, 4)),
    "squeeze": (Wrapped(lambda layer, x: layer(x).squeeze()), X),
    "float64 scores": (Wrapped(lambda layer, x: layer(x).double()), X),
    "bfloat16": (small_critic().bfloat16(), X.bfloat16()),
    "two samples": (small_critic(), X[:2]),
    "nine samples": (small_critic(), torch.randn(9, 3)),
    "checkpoint": (Wrapped(lambda f, x: torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False)), X),
    "batch norm, eval": (nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).eval(), X),
}


class Caller:
    """An object that is called as a critic."""

    def __init__(self, critic):
        self.networks = {"critic": critic}

    def __call__(self, x):
        return self.networks["critic"](x)


def call_attribute(holder):
    return lambda x: holder.critic(x)


NETWORKS = {}  # a dict of a file
FORMS = {  # ways to pass a critic
    "module": lambda critic: critic,
    "function": lambda critic: lambda x: critic(x),
    "forward": lambda critic: critic.forward,
    "call": lambda critic: critic.__call__,
    "partial": lambda critic: functools.partial(lambda network, x: network(x), critic),
    "object": Caller,
    "attribute of an object": lambda critic, holder=SimpleNamespace: call_attribute(holder(critic=critic)),
    "dict of a file": lambda critic: NETWORKS.update(critic=critic) or (lambda x: NETWORKS["critic"](x)),
}


# Critics whose forward pass changes them, draws random numbers or runs twice: passed in every form by default.
CHANGING = {
    "spectral_norm, old",
    "spectral_norm",
    "dropout",
    "transformer with dropout",
    "checkpoint",
    "LSTM",
    "instance norm",
}
PASSED = [
    pytest.param(name, form, marks=[] if form == "module" or name in CHANGING else pytest.mark.slow)
    for name in SINGLE
    for form in FORMS
]


@pytest.mark.parametrize("name, form", PASSED)
def test_critics_with_independent_scores_pass_and_keep_their_state(name, form):
    (critic, x), form = SINGLE[name], FORMS[form]
    critic(x)  # the old spectral_norm keeps a weight with its graph
    state, random_state = copy.deepcopy(critic.state_dict()), torch.get_rng_state()
    check_per_sample(form(critic), x)
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in critic.state_dict().items())


def add_std(layer, x):
    """Minibatch standard deviation, as in ProGAN."""
    return layer(x) + x.std(0).mean()


MIXING = {
    "mean": mix,
    "last": lambda layer, x: layer(x) + layer(x)[-1],
    "last, a little and detached": lambda layer, x: layer(x) + 1e-3 * layer(x)[-1].detach(),
    "minibatch std": add_std,
    "neighbor": lambda layer, x: layer(x.roll(1, 0)),
    "mean, with dropout": lambda layer, x: mix(layer, F.dropout(x)),
}


@pytest.mark.parametrize("forward", MIXING.values(), ids=MIXING)
def test_critics_that_mix_samples_are_refused(forward):
    layer = small_critic()
    for critic in (Wrapped(forward), lambda x: forward(layer, x)):
        for x in (X, X[:2]):
            with torch.no_grad(), pytest.raises(ValueError, match="mixes the samples"):
                check_per_sample(critic, x)


def divide_gradient(layer, x):
    x.register_hook(lambda gradient: gradient / len(gradient))
    return layer(x)


DEPENDING = {
    "size": lambda layer, x: layer(x) * len(x),
    "one sample": lambda layer, x: layer(x) * (1 + (len(x) == 1)),
    "gradient of one sample": lambda layer, x: (
        layer(x) + (1e-6 * torch.sin(1e6 * x).sum(1, True) if len(x) == 1 else 0)
    ),
    "real and fake": lambda layer, x: layer(x) * (1 + (len(x) == 8)),
    "place": lambda layer, x: layer(x) + torch.arange(len(x)).unsqueeze(1),
    "gradient": divide_gradient,
}


@pytest.mark.parametrize("forward", DEPENDING.values(), ids=DEPENDING)
def test_critics_that_depend_on_the_size_of_the_batch_are_refused(forward):
    with pytest.raises(ValueError, match=r"sample \d, or its gradient, depends on the size of the batch or the place"):
        check_per_sample(Wrapped(forward), X)
    with pytest.raises(ValueError, match="works for batches of one size only"):
        check_per_sample(lambda x: x.view(4, -1).sum(1), X)


def test_critics_that_squeeze_or_that_fail_for_one_sample_pass():
    layer = small_critic()
    check_per_sample(lambda x: layer(x).squeeze(), X)
    with pytest.raises(ValueError, match="depends on the size of the batch"):
        check_per_sample(lambda x: layer(x).squeeze() * (1 + (len(x) == 1)), X)
    check_per_sample(lambda x: layer(x) if len(x) > 1 else layer(x)[5], X)


NOISE = {  # where a critic can draw its random numbers from, and what is added to the points
    "numpy": (None, lambda x: torch.from_numpy(np.random.randn(*x.shape)).to(x)),
    "python": (None, lambda x: random.random()),
    "generator": (lambda: torch.Generator().manual_seed(0), lambda x, rng: torch.randn(x.shape, generator=rng)),
    "numpy generator": (lambda: np.random.default_rng(0), lambda x, rng: float(rng.normal())),
    "python generator": (lambda: random.Random(0), lambda x, rng: rng.random()),
}


@pytest.mark.parametrize("make, draw", NOISE.values(), ids=NOISE)
def test_noise_of_every_source_is_no_dependence(make, draw):
    layer, rng = small_critic(), [make()] if make else []
    module = Wrapped(lambda layer, x: layer(x + 0.1 * draw(x, *rng)), layer)
    held = Wrapped(lambda layer, x: layer(x + 0.1 * draw(x, *held.rng)), layer)
    held.rng = rng
    generators = [lambda x, rng=rng: layer(x + 0.1 * draw(x, *rng)), held] if make else [module]
    for critic in generators:
        state = digest_random_state(*rng)
        check_per_sample(critic, X)
        assert digest_random_state(*rng) == state


def test_noise_that_cannot_be_drawn_again_is_named():
    hidden = SimpleNamespace(rng=torch.Generator())
    with pytest.raises(ValueError, match="draws random numbers that the check cannot draw again"):
        check_per_sample(lambda x: x.sum(1) + torch.randn(len(x), generator=hidden.rng), X)


def test_labels_of_other_samples_are_a_dependence():
    critic, y = LabeledCritic((3,)), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match="mixes the samples"):
        check_per_sample(Wrapped(lambda _, x, y: critic(x, y) + y.max()), X, y=(y,))


def test_batch_norm_is_refused_and_its_running_statistics_are_not_changed():
    critic = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    for each in (critic, lambda x: critic(x)):
        with pytest.raises(ValueError, match="batch norm"):
            check_per_sample(each, X)
    assert critic[1].running_mean.eq(0).all() and critic[1].num_batches_tracked == 0


def test_critic_without_second_derivative_is_refused():
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with pytest.raises(ValueError, match=r"no second derivative.* is not implemented"):
        check_per_sample(lambda x: attention(x, x, x)[0].sum((1, 2, 3)), torch.randn(4, 2, 3, 4))


@pytest.mark.parametrize("compiled", [False, True])
def test_penalty_of_attention_has_the_gradient_of_the_formula(compiled):
    critic, (real, fake), eps = Attention().double(), torch.randn(2, 4, 3, 4).double(), torch.rand(4).double()
    penalty = gradient_penalty
    if compiled:
        torch._dynamo.reset()
        penalty = torch.compile(gradient_penalty, backend="aot_eager", fullgraph=True)
    parameters = list(critic.parameters())
    gradients = torch.autograd.grad(penalty(critic, real, fake, eps=eps), parameters, materialize_grads=True)
    direction = [torch.randn_like(p) for p in parameters]
    values, h = [], 1e-6
    for sign in (1, -1):
        moved = copy.deepcopy(critic)
        for p, d in zip(moved.parameters(), direction, strict=True):
            p.data += sign * h * d
        values.append(gradient_penalty(moved, real, fake, eps=eps).item())
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)).item()
    assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5) and abs(slope) > 1e-3


def test_step_of_attention_works_with_a_regularized_gradient():
    critic = Attention()
    real, fake = torch.randn(2, 4, 3, 4)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    assert critic_step(critic, optimizer, real, fake, regularize_gradient_norm=0.1)["penalty"] > 0


def test_one_sample_or_a_score_that_is_not_finite_raises():
    with pytest.raises(ValueError, match="at least two are needed"):
        check_per_sample(small_critic(), X[:1])
    with pytest.raises(ValueError, match="NaN or infinite"):
        check_per_sample(small_critic(), X * torch.nan)


def test_inference_mode_gives_the_values_of_no_grad():
    critic, fake, eps = small_critic(), X + 1, torch.rand(4)
    with torch.no_grad():
        expected = gradient_norm(critic, X), gradient_penalty(critic, X, fake, eps=eps)
    with torch.inference_mode():
        for real in (X, X.clone()):  # the clone is an inference tensor
            assert torch.equal(gradient_norm(critic, real), expected[0])
            assert torch.equal(gradient_penalty(critic, real, real + 1, eps=eps.clone()), expected[1])
            check_per_sample(critic, real)
        untrainable = small_critic()
    with pytest.raises(ValueError, match=r"weights that were made under torch\.inference_mode"):
        gradient_norm(untrainable, X)
