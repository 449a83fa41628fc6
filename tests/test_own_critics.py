"""Every row of docs/your-own-critic.md is a test: of the values of a critic that works, of the error of another one.

The reference is plain autograd with create_graph, in float64, on a second critic with the same weights.
"""

import re

import pytest
import torch
from helpers import ROOT
from labeled import LabeledCritic, WithClassifier
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn import utils
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from wgangp import check_per_sample, critic_step, gradient_norm, gradient_penalty, slope_statistics

B = 4
LABELS = torch.tensor([0, 1, 2, 1])
SHOWN = {}  # row of the page -> its result
ROW = re.compile(r"^\| ([^|]+) \| (works|wrap|refused) \| ([^|]*)\|$", re.MULTILINE)
PAGE = (ROOT / "docs" / "your-own-critic.md").read_text()


def shows(row, result):
    """Mark a test as that of a row of the page."""
    assert row not in SHOWN
    SHOWN[row] = result
    return lambda test: test


class Critic(nn.Module):
    """A module whose forward is a function of the module, the points and the labels."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x, *y):
        return self.function(self, x, *y)


def dense(*middle, features=6):
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 8), *middle, nn.Tanh(), nn.Linear(8, 1))


def convolutional(*middle):
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *middle, nn.Tanh(), nn.Flatten(), nn.Linear(64, 1))


def normalized(norm):
    return nn.Sequential(norm(nn.Linear(6, 8)), nn.Tanh(), norm(nn.Linear(8, 1)))


def with_head(forward, features=8, **layers):
    return Critic(forward, head=nn.Linear(features, 1), **layers)


def recurrent(kind, **options):
    options = {"batch_first": True, **options}
    return with_head(lambda self, x: self.head(self.layer(x)[0][:, -1]), layer=kind(4, 8, **options))


def read_packed(self, x, lengths):
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    states, _ = pad_packed_sequence(self.layer(packed)[0], batch_first=True, total_length=x.shape[1])
    return self.head(states.sum(1))


def transformer(**options):
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, **options)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return with_head(lambda self, x: self.head(self.body(x).mean(1)), 4, body=body)


def attend(self, x):
    q, k, v = self.layer(x).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
    return self.head(F.scaled_dot_product_attention(q, k, v).flatten(1))


def attend_masked(self, x, padding):
    states, _ = self.layer(x, x, x, key_padding_mask=padding, need_weights=False)
    return self.head(states.mean(1))


def project(self, x, labels):
    features = self.body(x)
    return self.head(features).squeeze(1) + (self.embedding(labels) * features).sum(1)


def with_checkpoint(use_reentrant):
    def forward(self, x):
        features = self.body(x) if use_reentrant is None else checkpoint(self.body, x, use_reentrant=use_reentrant)
        return self.head(features)

    return with_head(forward, body=nn.Sequential(nn.Linear(6, 8), nn.Tanh()))


def frozen_features():
    critic = dense()
    critic[1].requires_grad_(False)
    return critic


def with_hooks():
    critic = dense()
    critic[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    critic[3].register_full_backward_hook(lambda module, grad_input, grad_output: None)
    return critic


def lazy():
    critic = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(1)).double()
    critic(torch.zeros(1, 6).double())
    return critic


class Tanh(torch.autograd.Function):
    """A tanh whose backward is differentiable, or not, by the class that is used."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].tanh().square())


class TanhOnce(Tanh):
    backward = staticmethod(torch.autograd.function.once_differentiable(Tanh.backward))


class TanhNumPy(Tanh):
    @staticmethod
    def backward(ctx, gradient):
        return torch.from_numpy(Tanh.backward(ctx, gradient).detach().numpy())


def with_function(function):
    return with_head(lambda self, x: self.head(function.apply(self.layer(x))), layer=nn.Linear(6, 8))


ONE_HOT = F.one_hot(LABELS, 3).double()
PADDING = torch.arange(5) >= torch.tensor([5, 4, 3, 2]).unsqueeze(1)
SEQUENCE, IMAGE = (5, 4), (2, 4, 4)

# Row -> function that builds the critic, shape of a sample, labels.
WORKS = {
    "LSTM": (lambda: recurrent(nn.LSTM), SEQUENCE),
    "GRU": (lambda: recurrent(nn.GRU, num_layers=2), SEQUENCE),
    "packed sequences of several lengths": (
        lambda: with_head(read_packed, layer=nn.LSTM(4, 8, batch_first=True)),
        SEQUENCE,
        torch.tensor([5, 3, 2, 4]),
    ),
    "`nn.TransformerEncoder`": (transformer, SEQUENCE),
    "`F.scaled_dot_product_attention`": (lambda: with_head(attend, 20, layer=nn.Linear(4, 12)), SEQUENCE),
    "attention with a padding mask": (
        lambda: with_head(attend_masked, 4, layer=nn.MultiheadAttention(4, 2, batch_first=True)),
        SEQUENCE,
        PADDING,
    ),
    "tokens as one-hot vectors": (
        lambda: Critic(
            lambda self, x: self.body((x @ self.embedding.weight).tanh()),
            embedding=nn.Embedding(4, 2),
            body=dense(features=10),
        ),
        SEQUENCE,
    ),
    "1-D convolution": (
        lambda: nn.Sequential(nn.Conv1d(5, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 1)),
        SEQUENCE,
    ),
    "3-D convolution": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1)),
        (1, 3, 3, 3),
    ),
    "projection of a class embedding": (
        lambda: with_head(project, body=nn.Sequential(nn.Linear(6, 8), nn.Tanh()), embedding=nn.Embedding(3, 8)),
        (6,),
        LABELS,
    ),
    "concatenated class embedding": (
        lambda: Critic(
            lambda self, x, y: self.body(torch.cat([x, self.embedding(y)], 1)),
            embedding=nn.Embedding(3, 4),
            body=dense(features=10),
        ),
        (6,),
        LABELS,
    ),
    "one-hot labels or other conditions": (
        lambda: Critic(lambda self, x, y: self.body(torch.cat([x, y], 1)), body=dense(features=9)),
        (6,),
        ONE_HOT,
    ),
    "batch norm in eval mode": (lambda: convolutional(nn.BatchNorm2d(4)).eval(), IMAGE),
    "instance norm": (lambda: convolutional(nn.InstanceNorm2d(4, affine=True)), IMAGE),
    "layer norm, RMS norm": (lambda: dense(nn.LayerNorm(8), nn.RMSNorm(8)), (6,)),
    "group norm": (lambda: convolutional(nn.GroupNorm(2, 4)), IMAGE),
    "`nn.utils.spectral_norm`": (lambda: normalized(utils.spectral_norm), (6,)),
    "`parametrizations.spectral_norm`": (lambda: normalized(parametrizations.spectral_norm), (6,)),
    "`nn.utils.weight_norm`": (lambda: normalized(utils.weight_norm), (6,)),
    "`parametrizations.weight_norm`": (lambda: normalized(parametrizations.weight_norm), (6,)),
    "dropout": (lambda: dense(nn.Dropout(0.5)), (6,)),
    "noise on the points or activations": (
        lambda: Critic(lambda self, x: self.body(x + 0.1 * torch.randn_like(x)), body=dense()),
        (6,),
    ),
    "`checkpoint(use_reentrant=False)`": (lambda: with_checkpoint(False), (6,)),
    "in-place activations": (
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 8), nn.LeakyReLU(0.2, inplace=True), nn.Linear(8, 1)),
        (6,),
    ),
    "in-place scaling of the points": (
        lambda: Critic(lambda self, x: self.body(x.div_(2).sub_(0.5)), body=dense()),
        (6,),
    ),
    "frozen layers": (frozen_features, (6,)),
    "hooks": (with_hooks, (6,)),
    "lazy layers": (lazy, (6,)),
    "`torch.autograd.Function`, differentiable": (lambda: with_function(Tanh), (6,)),
    "`torch.vmap` of a critic for one sample": (
        lambda: with_head(
            lambda self, x: torch.vmap(lambda x: self.head(self.body(x)).squeeze())(x),
            body=nn.Sequential(nn.Linear(6, 8), nn.Tanh()),
        ),
        (6,),
    ),
    "`torch.jit.script`": (lambda: torch.jit.script(dense()), (6,)),
    "`torch.jit.trace`": (lambda: torch.jit.trace(dense(), torch.randn(2, 6)), (6,)),
    "`torch.fx`": (lambda: torch.fx.symbolic_trace(dense()), (6,)),
}
SHOWN |= dict.fromkeys(WORKS, "works")
PLAIN = {  # row -> the same critic, written without what the row is about
    "`checkpoint(use_reentrant=False)`": lambda: with_checkpoint(None),
    "in-place activations": lambda: nn.Sequential(nn.ReLU(), nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1)),
    "in-place scaling of the points": lambda: Critic(lambda self, x: self.body(x / 2 - 0.5), body=dense()),
    "`torch.autograd.Function`, differentiable": lambda: with_head(
        lambda self, x: self.head(self.layer(x).tanh()), layer=nn.Linear(6, 8)
    ),
    **dict.fromkeys(["`torch.jit.script`", "`torch.jit.trace`", "`torch.fx`"], dense),
}

# Row -> function that builds the critic, shape of a sample, forward of the wrapper, reason.
ONE_SCORE = "one score per sample"
WRAPPED = {
    "tuple or list": (
        lambda: with_head(lambda self, x: (self.head(self.body(x)), x), body=nn.Sequential(nn.Linear(6, 8), nn.Tanh())),
        (6,),
        lambda self, x: self.critic(x)[0],
        ONE_SCORE,
    ),
    "dict": (
        lambda: with_head(lambda self, x: {"score": self.head(x.tanh())}, 6),
        (6,),
        lambda self, x: self.critic(x)["score"],
        ONE_SCORE,
    ),
    "patch map (B, 1, H, W)": (
        lambda: nn.Sequential(nn.Conv2d(2, 1, 3), nn.Tanh()),
        IMAGE,
        lambda self, x: self.critic(x).flatten(1).mean(1),
        ONE_SCORE,
    ),
    "score (1, B)": (
        lambda: with_head(lambda self, x: self.head(x.tanh()).T, 6),
        (6,),
        lambda self, x: self.critic(x).flatten(),
        ONE_SCORE,
    ),
    "logits (B, classes)": (
        lambda: nn.Sequential(nn.Tanh(), nn.Linear(6, 3)),
        (6,),
        lambda self, x: self.critic(x)[:, 0],
        ONE_SCORE,
    ),
    "keyword arguments": (
        lambda: KeywordCritic(),
        (6,),
        lambda self, x: self.critic(pictures=x),
        "called as critic(x, *y)",
    ),
    "several inputs": (
        lambda: nn.Bilinear(3, 3, 1),
        (6,),
        lambda self, x: self.critic(*x.chunk(2, dim=1)),
        "called as critic(x, *y)",
    ),
}
SHOWN |= dict.fromkeys(WRAPPED, "wrap")


class KeywordCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = dense()

    def forward(self, *, pictures):
        return self.body(pictures)


MIXES = "mixes the samples of a batch"
CUT = "no graph back to its points"
# Row -> function that builds the critic, points, reason.
POINTS = torch.randn(B, 6, generator=torch.Generator().manual_seed(0))
REFUSED = {
    "batch norm": (lambda: dense(nn.BatchNorm1d(8)), POINTS, MIXES),
    "minibatch standard deviation": (
        lambda: Critic(lambda self, x: self.body(x) + x.std(0).mean(), body=dense()),
        POINTS,
        MIXES,
    ),
    "sequences along the first axis": (lambda: recurrent(nn.LSTM, batch_first=False), torch.randn(B, *SEQUENCE), MIXES),
    "mean score of the batch": (
        lambda: Critic(lambda self, x: self.body(x).mean(), body=dense()),
        POINTS,
        ONE_SCORE,
    ),
    "tokens as integers": (
        lambda: Critic(lambda self, x: self.body(self.embedding(x)), embedding=nn.Embedding(4, 2), body=dense()),
        torch.zeros(B, 3, dtype=torch.int64),
        "real numbers in floating point",
    ),
    "`no_grad()`, `detach()` or NumPy in the forward": (
        lambda: Critic(lambda self, x: self.body(torch.from_numpy(x.detach().numpy())), body=dense()),
        POINTS,
        CUT,
    ),
    "`round()`, `floor()`, `sign()` in front of the layers": (
        lambda: Critic(lambda self, x: self.body(x.round()), body=dense()),
        POINTS,
        "does not depend on any of its trainable weights",
    ),
    "`checkpoint(use_reentrant=True)`": (lambda: with_checkpoint(True), POINTS, "no second derivative"),
    "`torch.autograd.Function`, once differentiable": (
        lambda: with_function(TanhOnce),
        POINTS,
        "cannot be differentiated",
    ),
    "`torch.autograd.Function`, computed outside of torch": (
        lambda: with_function(TanhNumPy),
        POINTS,
        "cannot be differentiated",
    ),
    "`torch.compile(critic)`": (
        lambda: torch.compile(dense(), backend="aot_eager"),
        POINTS,
        "no second derivative",
    ),
    "`nn.DataParallel`": (lambda: nn.DataParallel(dense()), POINTS, "wrapped in DataParallel"),
}
SHOWN |= dict.fromkeys(REFUSED, "refused")
REASONS = {row: case[3] for row, case in WRAPPED.items()} | {row: case[2] for row, case in REFUSED.items()}
REASONS["score and class logits (AC-GAN)"] = ONE_SCORE
REASONS["`DistributedDataParallel`"], REASONS["FSDP"] = "wrapped in DistributedDataParallel", "sharded"


def draw_batch(shape, dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    real, fake = (torch.randn(B, *shape, generator=rng, dtype=torch.float64).to(dtype) for _ in range(2))
    return real, fake + 0.5, torch.rand(B, generator=rng, dtype=torch.float64).to(dtype)


def build(function):
    """Build a critic in float64. Its weights are the same at every call."""
    torch.manual_seed(0)
    return function().double()


def gradients(critic):
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in critic.parameters() if p.requires_grad]


def compute_slopes(critic, x, *y):
    """Compute slopes (B,) by plain autograd. The fused attention has no second derivative."""
    x = x.detach().clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        scores = critic(1 * x, *(labels.clone() for labels in y)).flatten()
        return torch.autograd.grad(scores.sum(), x, create_graph=True)[0].flatten(1).norm(dim=1)


def compute_penalty(critic, real, fake, eps, *y):
    eps = eps.view(-1, *[1] * (real.ndim - 1))
    return (10 * (compute_slopes(critic, eps * real + (1 - eps) * fake, *y) - 1) ** 2).mean()


def assert_gradients_are_close(actual, expected, rtol=1e-9):
    size = max(gradient.abs().max().item() for gradient in expected)
    assert size > 1e-3
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * size, check_dtype=False)


def assert_right(function, shape, *y, plain=None):
    """Compare penalty, step and slopes of a critic, and the gradients of its parameters, with plain autograd."""
    real, fake, eps = draw_batch(shape)
    check_per_sample(build(function), real, y=y)
    critics = build(function), build(plain or function)
    values = []
    for critic, compute in zip(
        critics, (lambda *a: gradient_penalty(*a[:3], eps=a[3], y=y), compute_penalty), strict=True
    ):
        torch.manual_seed(2)
        values.append(compute(critic, real, fake, eps, *y))
        values[-1].backward()
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-12)
    assert_gradients_are_close(*map(gradients, critics))

    critic, twin = build(function), build(plain or function)
    before = [p.detach().clone() for p in critic.parameters() if p.requires_grad]
    torch.manual_seed(2)
    critic_step(critic, torch.optim.SGD(critic.parameters(), lr=1.0), real, fake, eps, *y)
    torch.manual_seed(2)
    scores = twin(torch.cat([real, fake]), *(torch.cat([labels, labels]) for labels in y)).flatten()
    (scores[B:].mean() - scores[:B].mean() + compute_penalty(twin, real, fake, eps, *y)).backward()
    after = [p.detach() for p in critic.parameters() if p.requires_grad]
    assert_gradients_are_close([a - b for a, b in zip(before, after, strict=True)], gradients(twin))

    critic, twin = build(function).eval(), build(plain or function).eval()
    if not critic(1 * real, *y).equal(critic(1 * real, *y)):
        with pytest.raises(ValueError, match="random"):
            slope_statistics(critic, real, fake, eps, y=y)
        return
    mean = slope_statistics(critic, real, fake, eps, y=y)["real"]["mean"]
    assert mean == pytest.approx(compute_slopes(twin, real, *y).mean().item(), rel=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.(jit|nn.utils)", "ignore::FutureWarning")  # deprecated, and still in use
@pytest.mark.parametrize("row", WORKS)
def test_critic_that_works_has_the_values_of_plain_autograd(row):
    assert_right(*WORKS[row], plain=PLAIN.get(row))


@pytest.mark.parametrize("row", WRAPPED)
def test_critic_that_does_not_fit_is_refused_and_works_in_a_wrapper(row):
    function, shape, forward, reason = WRAPPED[row]
    real, fake, eps = draw_batch(shape)
    critic = build(function)
    for call in (
        lambda: check_per_sample(critic, real),
        lambda: gradient_penalty(critic, real, fake),
        lambda: critic_step(critic, torch.optim.SGD(critic.parameters()), real, fake, eps),
        lambda: slope_statistics(critic, real, fake),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)):
            call()
    assert_right(lambda: Critic(forward, critic=function()), shape)
    wrapper = Critic(forward, critic=critic)  # a function needs no module
    assert torch.equal(*(gradient_penalty(c, real, fake, eps=eps) for c in (wrapper, lambda x: forward(wrapper, x))))


@pytest.mark.parametrize(
    "score, remedy",
    [
        (lambda x: x.sum(1).unsqueeze(0), "Return score.flatten()"),
        (lambda x: x.sum(1).mean(), "Return the scores, not their mean"),
        (lambda x: x, "Reduce all axes but the first, for example score.flatten(1).mean(1)"),
    ],
)
def test_error_says_how_to_get_one_score_per_sample(score, remedy):
    with pytest.raises(ValueError, match=f"{ONE_SCORE}.*{re.escape(remedy)}"):
        check_per_sample(score, POINTS)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch.compile itself
@pytest.mark.parametrize("row", REFUSED)
def test_critic_that_does_not_work_is_refused_with_the_reason(row):
    function, x, reason = REFUSED[row]
    with pytest.raises(ValueError, match=re.escape(reason)):
        check_per_sample(function(), x)


@shows("score and class logits (AC-GAN)", "wrap")
def test_critic_with_class_logits_is_penalized_on_its_score_alone():
    """The forward returns both with logits=True, which the loss asks for, and the score alone without it."""
    real, fake, eps = draw_batch((6,))
    critic, twin = (build(lambda: LabeledCritic((6,))) for _ in range(2))
    pair = lambda x: critic(x, LABELS, logits=True)  # noqa: E731
    with pytest.raises(ValueError, match=ONE_SCORE):
        gradient_penalty(pair, real, fake)
    before = [p.detach().clone() for p in critic.parameters()]
    expected = compute_penalty(twin, real, fake, eps, LABELS)
    assert gradient_penalty(lambda x: pair(x)[0], real, fake, eps=eps).item() == pytest.approx(expected.item())
    terms = critic_step(
        critic, torch.optim.SGD(critic.parameters(), 1.0), real, fake, eps, LABELS, loss=WithClassifier()
    )
    assert terms["penalty"].item() == pytest.approx(expected.item())
    (score, logits), (fake_score, _) = (twin(x, LABELS, logits=True) for x in (real, fake))
    (fake_score.mean() - score.mean() + F.cross_entropy(logits, LABELS) + expected).backward()
    after = [p.detach() for p in critic.parameters()]
    assert_gradients_are_close([a - b for a, b in zip(before, after, strict=True)], gradients(twin))


def compute_expected(function, shape=(6,)):
    """Return the penalty and the gradients of a critic by plain autograd."""
    critic = build(function)
    penalty = compute_penalty(critic, *draw_batch(shape))
    penalty.backward()
    return penalty.item(), gradients(critic)


def assert_penalty(critic, points, expected, rtol=1e-5):
    real, fake, eps = points
    assert_penalty_is(gradient_penalty(critic, real, fake, eps=eps), critic, expected, rtol)


def assert_penalty_is(penalty, critic, expected, rtol):
    penalty.backward()
    assert penalty.item() == pytest.approx(expected[0], rel=rtol)
    assert_gradients_are_close(gradients(critic), expected[1], rtol)


@shows("channels_last", "works")
def test_channels_last_has_the_values_of_contiguous_points():
    expected = compute_expected(convolutional, IMAGE)
    *points, eps = draw_batch(IMAGE)
    critic = build(convolutional).to(memory_format=torch.channels_last)
    points = [x.to(memory_format=torch.channels_last) for x in points]
    check_per_sample(critic, points[0])
    assert_penalty(critic, [*points, eps], expected, rtol=1e-12)


@shows("`torch.autocast` around the loss", "works")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_penalty_under_autocast_is_in_the_precision_of_the_weights(dtype):
    critic, (real, fake, eps) = build(dense).float(), draw_batch((6,), torch.float32)
    with torch.autocast("cpu", dtype):
        check_per_sample(critic, real)
        penalty = gradient_penalty(critic, real, fake, eps=eps)
    assert_penalty_is(penalty, critic, compute_expected(dense), rtol=1e-5)


@shows("`torch.autocast` in the forward", "works")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_penalty_of_autocast_in_the_forward_has_the_precision_of_autocast(dtype):
    critic = Critic(lambda self, x: torch.autocast("cpu", dtype)(self.body)(x), body=build(dense).float())
    points = draw_batch((6,), torch.float32)
    check_per_sample(critic, points[0])
    assert_penalty(critic, points, compute_expected(dense), rtol=0.02)


@shows("weights in bfloat16 or float16", "works")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_penalty_of_weights_in_half_precision_has_their_precision(dtype):
    critic, points = build(dense).to(dtype), draw_batch((6,), dtype)
    check_per_sample(critic, points[0])
    assert_penalty(critic, points, compute_expected(dense), rtol=0.02)


@shows("`torch.amp.GradScaler`", "works")
def test_scaled_penalty_has_the_same_gradients_after_unscaling():
    _, expected = compute_expected(dense)
    critic, (real, fake, eps) = build(dense).float(), draw_batch((6,), torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(critic.parameters(), lr=1.0)
    scaler.scale(gradient_penalty(critic, real, fake, eps=eps)).backward()
    scaler.unscale_(optimizer)
    assert_gradients_are_close(gradients(critic), expected, rtol=1e-5)


@shows("`torch.compile` of your loss or step", "works")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch.compile itself
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_loss_with_a_penalty_has_the_same_gradients(backend):
    torch._dynamo.reset()
    critic, points = build(dense), draw_batch((6,))
    penalize = torch.compile(lambda *batch: gradient_penalty(critic, *batch[:2], eps=batch[2]), backend=backend)
    assert_penalty_is(penalize(*points), critic, compute_expected(dense), rtol=1e-9)


NOT_COMPILED = {  # rows that work in eager mode only, as the page says
    "packed sequences of several lengths": "data pointer",
    "`nn.utils.spectral_norm`": "storage",
    "`nn.utils.weight_norm`": "storage",
    "`checkpoint(use_reentrant=False)`": "saved tensor hooks",
    "hooks": "setup_context",
    "`torch.autograd.Function`, differentiable": "Tensor-likes are not close",  # silently
    "`torch.jit.script`": "double backward",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", WORKS)
def test_critic_that_works_does_so_in_a_compiled_loss_if_the_page_says_so(row):
    if row in NOT_COMPILED:
        with pytest.raises((AssertionError, RuntimeError), match=NOT_COMPILED[row]):
            assert_compiled_is_right(row)
    else:
        assert_compiled_is_right(row)
    assert (
        "in eager mode only" in dict(re.findall(r"^\| ([^|]+) \| works \| ([^|]*)\|$", PAGE, re.MULTILINE))[row]
    ) == (row in NOT_COMPILED)


def assert_compiled_is_right(row):
    """Compare a loss that torch.compile made with the same loss in eager mode."""
    function, shape, *y = WORKS[row]
    real, fake, eps = draw_batch(shape)
    torch._dynamo.reset()
    critics, values = (build(function), build(function)), []
    penalize = lambda critic, *batch: gradient_penalty(critic, *batch[:2], eps=batch[2], y=batch[3:])  # noqa: E731
    for critic, call in zip(critics, (torch.compile(penalize, backend="aot_eager"), penalize), strict=True):
        torch.manual_seed(0)
        values.append(call(critic, real, fake, eps, *y))
        values[-1].backward()
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-9)
    assert_gradients_are_close(*map(gradients, critics))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor", "ignore:Profiler function")  # of torch.compile
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_step_updates_as_the_step_does(backend):
    torch._dynamo.reset()
    compiled, eager = build(dense), build(dense)
    for step, critic in ((torch.compile(critic_step, backend=backend), compiled), (critic_step, eager)):
        step(critic, torch.optim.SGD(critic.parameters(), lr=0.1), *draw_batch((6,)))
    torch.testing.assert_close(list(compiled.parameters()), list(eager.parameters()), rtol=1e-9, atol=1e-12)


@shows("`torch.func`: `functional_call`, `grad`, `vmap` over critics", "works")
def test_penalty_under_the_transforms_of_torch_func_has_the_same_gradients():
    real, fake, eps = draw_batch((6,))
    value, expected = compute_expected(dense)
    critic = build(dense)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in critic.named_parameters()}

    def penalize(parameters):
        called = lambda x: torch.func.functional_call(critic, parameters, (x,))  # noqa: E731
        return gradient_penalty(called, real, fake, eps=eps)

    penalize(parameters).backward()
    assert_gradients_are_close([torch.zeros(1) if p.grad is None else p.grad for p in parameters.values()], expected)
    stacked = {name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in parameters.items()}  # two critics
    by_name, penalties = torch.vmap(torch.func.grad_and_value(penalize))(stacked)
    assert penalties[0].item() == pytest.approx(value, rel=1e-12) and penalties[1] != penalties[0]
    assert_gradients_are_close([gradient[0] for gradient in by_name.values()], expected)


@shows("`torch.export`", "works")
@pytest.mark.slow
def test_exported_critic_has_the_same_gradients():
    real, fake, eps = draw_batch((6,))
    batch = ({0: torch.export.Dim("batch", min=2)},)
    critic = torch.export.export(build(dense), (real,), dynamic_shapes=batch).module()
    check_per_sample(critic, real)
    assert_penalty(critic, (real, fake, eps), compute_expected(dense), rtol=1e-9)


@pytest.fixture
def one_rank():
    """A process group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def wrap_ddp(critic):
    return nn.parallel.DistributedDataParallel(critic)


def wrap_fsdp(critic):
    from torch.distributed.fsdp import fully_shard

    return fully_shard(critic, mesh=distributed.init_device_mesh("cpu", (1,)))


@shows("`DistributedDataParallel`", "refused")
@shows("FSDP", "refused")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row, wrap", [("`DistributedDataParallel`", wrap_ddp), ("FSDP", wrap_fsdp)])
def test_critic_that_is_wrapped_for_several_processes_is_refused(one_rank, row, wrap):
    real, fake, eps = draw_batch((6,))
    critic, reason = wrap(build(dense)), REASONS[row]
    with pytest.raises(ValueError, match=reason):
        check_per_sample(critic, real)
    with pytest.raises(ValueError, match=reason):
        critic_step(critic, torch.optim.SGD(critic.parameters()), real, fake, eps)


@pytest.mark.filterwarnings("ignore")
def test_penalty_refuses_a_static_graph_of_distributed_data_parallel(one_rank):
    real, fake, eps = draw_batch((6,))
    critic = nn.parallel.DistributedDataParallel(build(dense), static_graph=True)
    with pytest.raises(ValueError, match="static_graph=True does not average"):
        gradient_penalty(critic, real, fake, eps=eps)
    assert gradient_penalty(wrap_ddp(build(dense)), real, fake, eps=eps) > 0
    assert gradient_norm(critic, real).shape == (len(real),)  # without a second derivative it is right


def penalize_on_a_rank(rank, folder):
    """Compute the gradients of a rank's half of the batch with DistributedDataParallel, which averages them."""
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    critic = wrap_ddp(build(dense))
    real, fake, eps = (x[2 * rank : 2 * rank + 2] for x in draw_batch((6,)))
    (critic(fake).mean() - critic(real).mean() + gradient_penalty(critic, real, fake, eps=eps)).backward()
    torch.save(gradients(critic.module), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_penalty_and_backward_with_distributed_data_parallel_have_the_gradients_of_one_process(tmp_path):
    torch.multiprocessing.spawn(penalize_on_a_rank, (str(tmp_path),), nprocs=2)
    critic, (real, fake, eps) = build(dense), draw_batch((6,))
    (critic(fake).mean() - critic(real).mean() + compute_penalty(critic, real, fake, eps)).backward()
    for rank in range(2):
        assert_gradients_are_close(torch.load(tmp_path / f"{rank}.pt"), gradients(critic))


@shows("accelerate, one process", "works")
@pytest.mark.filterwarnings("ignore")
def test_critic_of_accelerate_has_the_same_gradients():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not a dependency")
    accelerator = accelerate.Accelerator(cpu=True)
    critic, points = build(dense).float(), draw_batch((6,), torch.float32)
    critic, optimizer = accelerator.prepare(critic, torch.optim.SGD(critic.parameters(), lr=1.0))
    check_per_sample(critic, points[0])
    accelerator.backward(gradient_penalty(critic, *points[:2], eps=points[2]))
    assert_gradients_are_close(gradients(critic), compute_expected(dense)[1], rtol=1e-5)
    assert_step_is_right(critic, optimizer, critic_step, points)


def assert_step_is_right(critic, optimizer, step, points):
    """Compare one step with the same step without the library."""
    optimizer.zero_grad()
    twin = build(dense).float()
    step(critic, optimizer, *points)
    critic_step(twin, torch.optim.SGD(twin.parameters(), lr=1.0), *points)
    torch.testing.assert_close(list(critic.parameters()), list(twin.parameters()))


@shows("Lightning, manual optimization", "works")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("with_step", [False, True])
def test_lightning_with_manual_optimization_makes_the_same_steps(with_step, tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not a dependency")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.critic = build(dense).float()

        def configure_optimizers(self):
            return torch.optim.SGD(self.critic.parameters(), lr=0.1)

        def training_step(self, batch, index):
            real, fake, eps = batch
            if with_step:
                critic_step(self.critic, self.optimizers(), real, fake, eps)
                return
            loss = self.critic(fake).mean() - self.critic(real).mean()
            self.optimizers().zero_grad()
            self.manual_backward(loss + gradient_penalty(self.critic, real, fake, eps=eps))
            self.optimizers().step()

    points = draw_batch((6,), torch.float32)
    module, twin = Module(), build(dense).float()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=2, default_root_dir=tmp_path, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*points), batch_size=B))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(2):
        critic_step(twin, optimizer, *points)
    assert trainer.global_step == 2
    torch.testing.assert_close(list(module.critic.parameters()), list(twin.parameters()))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:RNN module weights are not part")  # those of a copy
@pytest.mark.parametrize("row", ["LSTM", "GRU"])
def test_rnn_on_cuda_needs_cudnn_to_be_off(row):
    function, shape = WORKS[row]
    critic, points = build(function).cuda(), [x.cuda() for x in draw_batch(shape)]
    with pytest.raises(ValueError, match="no second derivative"):
        check_per_sample(critic, points[0])
    with torch.backends.cudnn.flags(enabled=False):
        check_per_sample(critic, points[0])
        value, expected = compute_expected(function, shape)
        assert_penalty(critic, points, (value, [gradient.cuda() for gradient in expected]), rtol=1e-9)


def test_page_shows_every_row_with_its_result_and_reason():
    rows = {row.strip(): (result, text) for row, result, text in ROW.findall(PAGE)}
    assert len(rows) == len(ROW.findall(PAGE))
    assert {row: result for row, (result, _) in rows.items()} == SHOWN
    shown = {row: re.findall(r"\*(.+?[^\\])\*", text) for row, (result, text) in rows.items() if result != "works"}
    assert {row: [text.replace("\\", "") for text in texts] for row, texts in shown.items()} == {
        row: [reason] for row, reason in REASONS.items()
    }
