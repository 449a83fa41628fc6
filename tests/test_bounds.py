"""Rules of functions that are not linear, and random critics: no bound is below a slope."""

import random

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, bound_of
from torch import nn

from wgangp.certify import certified_lipschitz
from wgangp.gradients import gradient_norm
from wgangp.networks import layers

MASK = torch.tensor([True, False, True])


@pytest.mark.parametrize(
    "function, slope",
    [
        (F.mish, 1.0885),
        (F.hardswish, 1.5),
        (F.hardsigmoid, 1 / 6),
        (F.softshrink, 1),
        (F.logsigmoid, 1),
        (torch.erf, 1.1284),
        (torch.atan, 1),
        (F.celu, 1),
        (lambda x: F.celu(x, 3.0), 1),
        (lambda x: torch.ops.aten.elu(x, 2, -1.5, 0.7), 2.1),
        (lambda x: torch.ops.aten.elu(x, -2, 1, 3), 6),
        (lambda x: torch.ops.aten.elu(x, 2, 1, 0), 1),
        (lambda x: F.softplus(x, beta=-2), 1),
    ],
)
def test_bound_of_an_activation_is_its_largest_slope(function, slope):
    x = torch.linspace(-9, 9, 900_001, dtype=torch.float64)
    largest = (function(x).diff() / x.diff()).abs().max().item()
    assert slope * (1 - 2e-4) <= largest <= bound_of(function, (3,)) * (1 + 1e-9) <= largest * 1.002


# The exact constants are those of two linear maps: the norm of the matrix that takes each entry from its argument.


@pytest.mark.parametrize(
    "function, constant",
    [
        (lambda x: torch.where(MASK, x, 0.0), 1),
        (lambda x: torch.where(MASK, 5.0, x), 1),
        (lambda x: torch.where(MASK, 3 * x, -4 * x), 5),  # the exact constant is 4: the mask is not used
        (lambda x: torch.where(MASK[:, None].expand(3, 3), x.unsqueeze(1), 0.0), 3**0.5),  # exact: sqrt(2)
        (lambda x: x.masked_fill(MASK, 7.0), 1),
        (lambda x: (2 * x).masked_fill_(MASK, 7.0), 2),
        (lambda x: torch.maximum(3 * x, 4 * x.flip(1)), 5),
        (lambda x: torch.minimum(x, torch.zeros(3).double()), 1),
        (lambda x: torch.max(3 * x, -4 * x), 5),
    ],
)
def test_bound_of_a_choice_between_two_activations_is_the_root_of_the_sum_of_squares(function, constant):
    assert bound_of(function, (3,)) == pytest.approx(constant, rel=1e-8)
    x = torch.randn(500, 3, dtype=torch.float64)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: function(x[None])[0].flatten()))(x)
    assert torch.linalg.svdvals(jacobians).max() <= constant * (1 + 1e-9)


def test_maximum_of_two_activations_reaches_its_bound():
    """Where 4 a is above 3 b, and 3 a above 4 b, both entries of (max(3 b, 4 a), max(4 b, 3 a)) move with a alone."""
    jacobian = torch.func.jacrev(lambda x: torch.maximum(3 * x, 4 * x.flip(0)))(torch.tensor([1.0, -1.0]).double())
    assert torch.linalg.svdvals(jacobian).max().item() == pytest.approx(5)


# Random critics


def draw_layer(rng, c, d):
    """A random layer for points (c, *) with d spatial axes. It need not fit."""
    conv, transposed = (getattr(nn, f"{kind}{d}d") for kind in ("Conv", "ConvTranspose"))
    average, maximum = (getattr(F, f"{kind}_pool{d}d") for kind in ("avg", "max"))
    adaptive_average, adaptive_maximum = (getattr(F, f"adaptive_{kind}_pool{d}d") for kind in ("avg", "max"))
    n, k, stride, padding, dilation = (rng.randint(low, high) for low, high in ((1, 4), (1, 3), (1, 2), (0, 1), (1, 2)))
    size, pads = [rng.randint(2, 5) for _ in range(d)], [rng.randint(0, 1) for _ in range(2 * d)]
    mode = {1: "linear", 2: rng.choice(["bilinear", "bicubic"]), 3: "trilinear"}[d]
    pad, plain, corners = rng.choice(["replicate", "reflect"]), rng.choice(["nearest", "nearest-exact", "area"]), n > 2
    weight, mask = torch.randn(n, c, dtype=torch.float64), torch.rand(4) < 0.5
    functions = {
        "average": lambda x: average(x, 2, stride=stride),
        "maximum": lambda x: maximum(x, k, stride=stride, dilation=dilation),
        "adaptive average": lambda x: adaptive_average(x, size),
        "adaptive maximum": lambda x: adaptive_maximum(x, size),
        "pad": lambda x: F.pad(x, pads, mode=pad),
        "resize": lambda x: F.interpolate(x, size, mode=mode, align_corners=corners),
        "antialias": lambda x: F.interpolate(x, size, mode=mode, antialias=True),
        "repeat": lambda x: F.interpolate(x, size, mode=plain),
        "einsum": lambda x: torch.einsum("bc...,oc->bo...", x, weight),
        "where": lambda x: torch.where(mask[: x.shape[-1]], x, 0.5),
        "masked_fill": lambda x: x.masked_fill(mask[: x.shape[-1]], 1.0),
        "cat": lambda x: torch.cat([x, 0.5 * x.flip(2)], 1),
        "sum": lambda x: x + torch.tanh(x.roll(1, 2)),
        "larger": lambda x: torch.maximum(x, -0.5 * x.flip(1)),
        "sort": lambda x: x.sort(1)[0],
        "amax": lambda x: x.amax(-1, keepdim=True),
        "cumsum": lambda x: x.cumsum(1),
    }
    modules = {
        "convolution": lambda: conv(c, n, k, stride=stride, padding=padding, dilation=dilation),
        "transposed convolution": lambda: transposed(c, n, k, stride=stride),
        "batch norm": lambda: getattr(nn, f"BatchNorm{d}d")(c),
    }
    if d == 2:
        modules |= {
            "our convolution": lambda: layers.Conv2d(c, n, k, 1),
            "pixel_shuffle": lambda: nn.PixelShuffle(2),
            "pixel_unshuffle": lambda: nn.PixelUnshuffle(2),
        }
    name = rng.choice([*functions, *modules, "convolution", "transposed convolution"])
    return name, modules[name]() if name in modules else Function(functions[name])


ACTIVATIONS = (
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.SiLU, nn.GELU, nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid),
    *(nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.PReLU, nn.Softshrink, nn.Hardtanh),
)


def draw_critic(seed):
    """A critic of 2 to 5 random layers with activations, the shape of its points, and the names of its layers."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    d = rng.choice([1, 2, 2, 3])
    shape = (rng.randint(1, 4), *(rng.randint(2, 6 if d < 3 else 4) for _ in range(d)))
    parts, names, x = [], [], torch.randn(3, *shape, dtype=torch.float64)
    for _ in range(60):
        name, layer = draw_layer(rng, x.shape[1], d)
        try:
            y = layer.double().eval()(x).detach()
        except (RuntimeError, ValueError, IndexError, NotImplementedError):
            continue  # it does not fit
        if y.ndim == x.ndim and 1 <= y[0].numel() <= 300 and not (name == "antialias" and y.shape[-1] == 1):
            activation = rng.choice(ACTIVATIONS)().double()
            parts, names, x = [*parts, layer, activation], [*names, name], activation(y).detach()
        if len(names) == 2 + seed % 4:
            break
    critic = nn.Sequential(*parts, nn.Flatten(), nn.Linear(x[0].numel(), 1)).double()
    for parameter in critic.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    for name, buffer in critic.named_buffers():
        if "running" in name:
            buffer.copy_(0.1 + torch.rand_like(buffer))
    return critic.eval(), shape, names


def check_critics(seeds):
    """Compare each bound with the slopes at 90 points at three scales; return the layers, and bound / largest slope."""
    used, ratios = set(), []
    for seed in seeds:
        critic, shape, names = draw_critic(seed)
        points = torch.cat([scale * torch.randn(30, *shape, dtype=torch.float64) for scale in (0.1, 1, 10)])
        slope, bound = gradient_norm(critic, points).max().item(), certified_lipschitz(critic, shape)
        assert slope <= bound, (seed, names, slope, bound)
        used.update(names)
        ratios.append(bound / max(slope, 1e-300))
    return used, ratios


def test_bound_of_random_critics_is_above_every_slope():
    used, ratios = check_critics(range(100))
    assert len(used) == 23  # every layer is in one of them
    assert min(ratios) < 1.1  # so that a bound that is a little too small is seen


@pytest.mark.slow
def test_bound_of_a_thousand_random_critics_is_above_every_slope():
    check_critics(range(100, 1200))
