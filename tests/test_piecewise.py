"""torch's piecewise-linear functions have no second derivative inside of the penalty, and nothing else changes."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import Function
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils.checkpoint import checkpoint

from bench.floor import count_gflop
from wgangp import GradientPenalty, gradient_norm, gradient_penalty
from wgangp.compiled import build_computation
from wgangp.losses import Wasserstein
from wgangp.piecewise import TRACED, skip_second_derivatives

LAYERS = {  # each takes (B, 4, 8, 8); the critic below puts two of them between convolutions
    "relu": lambda: nn.ReLU(),
    "relu, in place": lambda: nn.ReLU(inplace=True),
    "torch.relu": lambda: Function(torch.relu),
    "Tensor.relu": lambda: Function(lambda x: x.relu()),
    "Tensor.relu_": lambda: Function(lambda x: x.relu_()),
    "torch.relu_": lambda: Function(torch.relu_),
    "keyword": lambda: Function(lambda x: F.relu(x, inplace=True)),
    "leaky relu": lambda: nn.LeakyReLU(0.2),
    "leaky relu, in place": lambda: nn.LeakyReLU(0.2, inplace=True),
    "leaky_relu_": lambda: Function(lambda x: F.leaky_relu_(x, 0.2)),
    "leaky relu, negative": lambda: nn.LeakyReLU(-0.2),
    "leaky relu, zero": lambda: nn.LeakyReLU(0.0),
    "relu6": lambda: nn.ReLU6(),
    "relu6, in place": lambda: nn.ReLU6(inplace=True),
    "hardtanh": lambda: nn.Hardtanh(-0.1, 0.2),
    "hardtanh_": lambda: Function(lambda x: F.hardtanh_(x, -0.1, 0.2)),
    "abs": lambda: Function(torch.abs),
    "Tensor.abs": lambda: Function(lambda x: abs(x) - x.abs() / 2),
    "threshold": lambda: nn.Threshold(0.1, 0.0),
    "prelu": lambda: nn.PReLU(4),
    "average pool": lambda: nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2)),
    "average pool, overlap": lambda: nn.AvgPool2d(3, 1, 1),
    "maximum pool": lambda: nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2)),
    "adaptive pool": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Upsample(scale_factor=2)),
    "leaky relu, its value in place": lambda: Function(lambda x: F.leaky_relu(x, 0.2).mul_(2).add_(x)),
    "relu6, its value in place": lambda: Function(lambda x: F.relu6(x).mul_(2).add_(x)),
    "relu6, in place twice": lambda: Function(lambda x: F.relu6(x, inplace=True).mul_(2)),
    "threshold, in place": lambda: nn.Threshold(0.1, 0.1, inplace=True),
    "abs of complex": lambda: Function(lambda x: torch.complex(x, x.flip(1) ** 2 + 1).abs()),
    "clamp": lambda: Function(lambda x: x.clamp(min=0)),
    "where": lambda: Function(lambda x: torch.where(x > 0, x, 0.1 * x)),
    "tanh": lambda: nn.Tanh(),
    "softplus, relu": lambda: nn.Sequential(nn.Softplus(), nn.ReLU(inplace=True)),
    "residual": lambda: Residual(),
    "unflatten": lambda: nn.Sequential(nn.Unflatten(-3, (2, -1)), nn.Flatten(1, 2), nn.ReLU()),
    "checkpoint, relu": lambda: Checkpointed(nn.ReLU()),
    "checkpoint, leaky relu": lambda: Checkpointed(nn.LeakyReLU(0.2, inplace=True)),
    "checkpoint, pool": lambda: Checkpointed(nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2))),
    "vmap": lambda: Function(torch.func.vmap(F.relu)),
    "script": lambda: torch.jit.trace(nn.ReLU(), torch.zeros(2, 4, 8, 8)),
    "compiled part": lambda: torch.compile(nn.ReLU(), backend="eager"),
}
# They have a second derivative, or cannot be replaced.
NOT_REPLACED = {
    "abs of complex",
    "threshold, in place",
    "tanh",
    "softplus, relu",
    "leaky relu, negative",
    "vmap",
    "script",
    "compiled part",
}
LINEAR_IN_TORCH = {"clamp", "where"}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = x + 0
        return x + self.conv(F.relu(x, inplace=True))  # what is added is changed, too


class Checkpointed(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), activation)

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=False)


def build_critic(layer, dtype=torch.float32, second=None):
    """Build a critic that has the layer twice, or another second one."""
    conv = lambda channels: nn.Conv2d(channels, 4, 3, padding=1)  # noqa: E731
    parts = (conv(3), LAYERS[layer](), conv(4), LAYERS[second or layer](), conv(4), nn.Flatten(), nn.Linear(256, 1))
    return nn.Sequential(*parts).to(dtype)


def compute_gradients(critic, x, replaced=True):
    """Return slopes and the gradients of the penalty."""
    if replaced:
        slopes = gradient_norm(critic, x, create_graph=True)
    else:  # what torch computes
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        slopes = gradient.flatten(1).square().sum(1).sqrt()
    gradients = torch.autograd.grad((slopes - 1).square().mean(), list(critic.parameters()), materialize_grads=True)
    return [slopes.detach(), *gradients]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:The .grad attribute")
@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_are_those_of_torch_bit_for_bit(layer):
    critic, x = build_critic(layer), torch.randn(5, 3, 8, 8)
    actual, expected = compute_gradients(critic, x), compute_gradients(critic, x, replaced=False)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert sum(g.abs().sum() for g in actual[1:]) > 0


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer not in NOT_REPLACED])
def test_no_zeros_go_through_the_critic(layer):
    """A pass forward, one back to x, and two for the second derivatives, which torch makes four."""
    critic, x = build_critic(layer), torch.randn(5, 3, 8, 8)
    forward = count_gflop(lambda: critic(x))
    products = count_gflop(lambda: compute_gradients(critic, x)) / forward
    assert products <= 4.01 or layer.startswith("checkpoint")  # which calls a part of the critic again
    assert layer in LINEAR_IN_TORCH or count_gflop(lambda: compute_gradients(critic, x, False)) / forward > products


@pytest.mark.parametrize("layer", ["relu", "leaky relu", "relu6", "hardtanh", "abs"])
def test_derivative_at_a_kink_is_that_of_torch(layer):
    module, points = LAYERS[layer](), torch.tensor([-0.1, -0.0, 0.0, 0.2, 6.0])
    for x in (points, points.double(), points.bfloat16()):
        gradients = []
        for function in (module, skip_second_derivatives(module)):
            y = x.clone().requires_grad_()
            gradients += [function(y), *torch.autograd.grad(function(y).sum(), y)]
        assert torch.equal(gradients[0], gradients[2]) and torch.equal(gradients[1], gradients[3])


def test_not_a_number_and_infinity_are_those_of_torch():
    x = torch.tensor([float("nan"), float("inf"), -float("inf")])
    for function in (F.relu, F.leaky_relu, F.hardtanh, torch.abs):
        for traced in (False, True):
            y = x.clone().requires_grad_()
            replaced = TRACED[function](y) if traced else skip_second_derivatives(function)(y)
            assert torch.equal(replaced.detach().nan_to_num(7), function(x).nan_to_num(7))


def test_nothing_changes_outside_of_the_penalty():
    critic, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), torch.randn(5, 3)
    name = type(critic(x).grad_fn.next_functions[1][0]).__name__
    gradient_penalty(critic, x, x + 1).backward()
    gradient_norm(critic, x)
    with pytest.raises(RuntimeError, match="broken"):
        gradient_norm(lambda _: _raise(RuntimeError("broken")), x, create_graph=True)
    assert type(critic(x).grad_fn.next_functions[1][0]).__name__ == name == "ReluBackward0"
    assert not torch.overrides._get_current_function_mode_stack()


def _raise(error):
    raise error


@pytest.mark.parametrize(
    "layer, second",
    [
        ("relu, in place", "unflatten"),
        ("Tensor.relu_", "leaky relu, in place"),
        ("hardtanh_", "abs"),
        ("abs", "relu6"),
    ],
)
def test_traced_gradients_are_those_of_torch(layer, second, quick_compile):
    """Two layers per critic, because a compilation takes more than a second. Each layer alone is in the slow tests."""
    require_traced(layer, second)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch looks at a copy's .grad
@pytest.mark.parametrize("layer", [layer for layer in LAYERS if not layer.startswith(("checkpoint", "script"))])
def test_traced_gradients_are_those_of_torch_for_every_layer(layer, quick_compile):
    require_traced(layer)


def require_traced(layer, second=None):
    critic, generator = build_critic(layer, torch.float64, second), nn.Linear(2, 2).double()
    critic.append(nn.Flatten(0))
    real, fake, eps = torch.randn(4, 3, 8, 8).double(), torch.randn(4, 3, 8, 8).double(), torch.rand(4).double()
    step = build_computation(generator, critic, Wasserstein(), GradientPenalty(), compile=True).critic_gradients
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the compiled .* is not used")
        _, gradients = step(real, fake, eps)
    objective = critic(fake).mean() - critic(real).mean()
    x_hat = torch.lerp(fake, real, eps.view(-1, 1, 1, 1)).requires_grad_()
    (slope,) = torch.autograd.grad(critic(x_hat).sum(), x_hat, create_graph=True)
    objective = objective + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
    for a, b in zip(gradients, torch.autograd.grad(objective, list(critic.parameters())), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "layer", ["leaky relu, in place", *(pytest.param(x, marks=SLOW) for x in ("relu", "average pool"))]
)
def test_no_zeros_go_through_a_compiled_critic(layer, monkeypatch):
    """Counted in the graph that the compiler gets."""
    counts = {}

    def count(function, **options):
        def compiler(graph, _):
            counts[name] = sum("convolution" in str(node.target) for node in graph.graph.nodes)
            return graph.forward

        return original(function, backend=aot_autograd(fw_compiler=compiler), fullgraph=True, dynamic=False)

    original = torch.compile
    monkeypatch.setattr(torch, "compile", count)
    for name in (layer, "where"):
        torch._dynamo.reset()
        require_traced(name)
    assert counts[layer] == counts["where"]  # torch itself has no second derivative for where
