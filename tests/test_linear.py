"""Rules of linear maps and of pooling, compared with the norm of the matrix or of the Jacobian, in float64."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, bound_of, matrix
from torch import nn

from wgangp import linear
from wgangp.certify import certified_lipschitz


def exact_norm(function, shape):
    return torch.linalg.svdvals(matrix(function, shape)).max().item()


def weight(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def resize(size, mode, **options):
    return lambda x: F.interpolate(x, size, mode=mode, **options)


def scale(factor, mode, **options):
    return lambda x: F.interpolate(x, scale_factor=factor, mode=mode, **options)


# Maps whose bound is the norm of their matrix

EXACT = {
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), (4, 3, 2)),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), (1, 4, 6)),
    "channel_shuffle": (nn.ChannelShuffle(2), (4, 2, 3)),
    "roll": (lambda x: x.roll((1, 2), (1, 3)), (2, 3, 4)),
    "diagonal": (lambda x: x.diagonal(dim1=2, dim2=3), (2, 3, 4)),
    "tril": (lambda x: x.tril(), (2, 3, 4)),
    "index_select": (lambda x: x.index_select(1, torch.tensor([2, 0])), (3, 4)),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), (2, 4, 4, 4)),
    "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 2), (2, 4, 4, 4)),
    "global average": (nn.AdaptiveAvgPool3d(1), (2, 3, 4, 5)),
    "nearest 1d": (scale(3, "nearest"), (2, 5)),
    "nearest 3d": (scale(2, "nearest"), (1, 3, 2, 3)),
    "nearest-exact 2d": (scale(2, "nearest-exact"), (1, 3, 5)),
    "vector": (lambda x: x @ weight(5), (4, 5)),
    "vector of a point": (lambda x: x @ weight(5), (5,)),
    "addmv": (lambda x: torch.addmv(weight(1), x, weight(5), alpha=-3), (5,)),
    "baddbmm": (lambda x: torch.baddbmm(weight(1, 4, 3), x, weight(5, 3).expand(len(x), 5, 3), alpha=-2), (4, 5)),
    "tensordot": (lambda x: torch.tensordot(x, weight(3, 2), dims=([1], [0])), (3, 4)),
    "conv3d": (lambda x: F.conv3d(x, weight(2, 2, 3, 3, 3), stride=2, padding=1), (2, 4, 3, 5)),
    "bilinear, odd": (resize((7, 5), "bilinear"), (1, 4, 6)),
    "bilinear, antialias": (resize((3, 4), "bilinear", antialias=True), (1, 8, 7)),
    "bicubic, larger": (resize((7, 9), "bicubic"), (2, 5, 3)),
    "bicubic, smaller": (resize((3, 4), "bicubic"), (1, 7, 5)),
    "bicubic, one axis": (resize((5, 11), "bicubic"), (1, 5, 4)),
    "bicubic, corners": (resize((9, 4), "bicubic", align_corners=True), (1, 5, 7)),
    "bicubic, scale": (scale((1.7, 0.6), "bicubic"), (1, 5, 7)),
    "bicubic, one row": (resize((4, 3), "bicubic"), (1, 1, 2)),
    "bicubic, antialias": (resize((3, 9), "bicubic", antialias=True), (2, 8, 7)),
}


@pytest.mark.parametrize("function, shape", EXACT.values(), ids=EXACT)
def test_bound_of_a_linear_map_is_the_norm_of_its_matrix(function, shape):
    exact = exact_norm(function, shape)
    assert exact <= bound_of(function, shape) <= exact * (1 + 1e-8)


# Maps without negative entries, whose bound is Schur's: at least the norm, and close to it

CLOSE = {
    "replication 1d": (lambda x: F.pad(x, (2, 1), mode="replicate"), (2, 4)),
    "replication 2d": (lambda x: F.pad(x, (2, 1, 0, 3), mode="replicate"), (2, 4, 3)),
    "replication 3d": (lambda x: F.pad(x, (1, 1, 0, 2, 1, 0), mode="replicate"), (1, 3, 3, 4)),
    "reflection 1d": (lambda x: F.pad(x, (2, 1), mode="reflect"), (2, 4)),
    "reflection 3d": (lambda x: F.pad(x, (1, 1, 0, 2, 1, 0), mode="reflect"), (1, 3, 3, 4)),
    "avg_pool3d, overlap": (lambda x: F.avg_pool3d(x, 3, stride=1, padding=1), (1, 4, 3, 5)),
    "avg_pool3d, ceil": (lambda x: F.avg_pool3d(x, 2, stride=2, ceil_mode=True), (1, 3, 5, 3)),
    "adaptive_avg_pool3d, odd": (lambda x: F.adaptive_avg_pool3d(x, (2, 3, 4)), (1, 5, 4, 7)),
    "unfold": (lambda x: F.unfold(x, 2), (2, 4, 4)),
    "cumsum": (lambda x: x.cumsum(1), (5, 2)),
    "nearest 1d, odd": (resize(7, "nearest"), (2, 5)),
    "nearest-exact 1d, odd": (resize(7, "nearest-exact"), (2, 4)),
    "nearest-exact 3d, odd": (resize((4, 5, 7), "nearest-exact"), (1, 3, 4, 2)),
    "linear, larger": (resize(9, "linear"), (2, 4)),
    "linear, smaller": (resize(3, "linear"), (2, 8)),
    "linear, corners": (resize(7, "linear", align_corners=True), (2, 4)),
    "trilinear": (resize((5, 4, 7), "trilinear"), (1, 3, 4, 3)),
    "area": (resize((3, 4), "area"), (1, 7, 6)),
}


@pytest.mark.parametrize("function, shape", CLOSE.values(), ids=CLOSE)
def test_bound_of_a_map_without_negative_entries_is_close_to_the_norm_of_its_matrix(function, shape):
    entries = matrix(function, shape)
    assert entries.min() >= -1e-12
    exact = torch.linalg.svdvals(entries).max().item()
    assert exact <= bound_of(function, shape) <= exact * 2


@pytest.mark.parametrize("seed", range(8))
def test_bound_of_an_interpolation_is_above_the_norm_of_its_matrix_for_random_sizes(seed):
    rng = random.Random(seed)
    for mode, d in (("nearest", 2), ("nearest-exact", 1), ("linear", 1), ("bilinear", 2), ("bicubic", 2)):
        shape, size = [1, *rng.choices(range(1, 8), k=d)], rng.choices(range(2, 10), k=d)
        options = {} if mode.startswith("nearest") else {"align_corners": rng.random() < 0.3}
        if mode.startswith("bi") and not options["align_corners"] and rng.random() < 0.5:
            options["antialias"] = True
        exact = exact_norm(resize(size, mode, **options), shape)
        assert exact <= bound_of(resize(size, mode, **options), shape) <= 1.5 * exact


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialiasing_to_a_width_of_one_is_refused(mode):
    """There torch 2.14 returns something else for channels_last than for contiguous points."""
    with pytest.raises(ValueError, match="antialias with a result of width 1 depends on the memory format"):
        bound_of(resize((3, 1), mode, antialias=True), (1, 8, 7))


# Pooling

POOLS = {
    "max_pool1d": (lambda x: F.max_pool1d(x, 3, stride=2), (2, 9)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, stride=1, padding=1), (1, 4, 5)),
    "max_pool2d of a matrix": (lambda x: F.max_pool2d(x, 3, stride=2), (7, 5)),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), (1, 4, 4, 4)),
    "max_pool3d, overlap": (lambda x: F.max_pool3d(x, 3, stride=2, padding=1), (1, 5, 4, 5)),
    "max_pool3d, dilation": (lambda x: F.max_pool3d(x, 2, stride=1, dilation=2), (1, 4, 4, 3)),
    "max_pool3d, ceil": (lambda x: F.max_pool3d(x, 3, stride=2, ceil_mode=True), (1, 4, 4, 4)),
    "adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(x, 3), (2, 7)),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, (3, 5)), (1, 7, 7)),
    "adaptive_max_pool2d, larger": (lambda x: F.adaptive_max_pool2d(x, 5), (1, 3, 4)),
    "adaptive_max_pool3d": (lambda x: F.adaptive_max_pool3d(x, (2, 3, 4)), (1, 5, 4, 6)),
    "amax": (lambda x: x.amax((1, 3)), (2, 3, 4)),
    "amin": (lambda x: -(-x).amin(2), (2, 3)),
    "max": (lambda x: x.max(1)[0], (2, 3)),
    "sort": (lambda x: x.sort(1)[0], (4, 2)),
    "topk": (lambda x: x.topk(2, dim=1)[0], (4, 2)),
}


@pytest.mark.parametrize("function, shape", POOLS.values(), ids=POOLS)
def test_bound_of_a_maximum_is_the_largest_norm_of_its_jacobian(function, shape):
    """The Jacobian is largest where one entry is the maximum of all windows that it is in."""
    n = math.prod(shape)
    peaks = (torch.eye(n).double() + 0.01 * weight(n, n).abs()).view(n, *shape).requires_grad_()
    with torch.enable_grad():
        (largest,) = torch.autograd.grad(function(peaks).sum(), peaks)
    exact = math.sqrt(largest.max().item())  # how many windows have the entry as their maximum
    bound = bound_of(function, shape)
    assert exact <= bound
    # With a remainder some windows do not exist, and the bound counts them.
    assert bound <= exact * (1 + 1e-8) or bound**2 <= round(exact**2) + 4


# einsum

EQUATIONS = {
    "bi,io->bo": [(5,), (5, 3)],
    "io,bi->bo": [(5,), (5, 3)],
    "...i,io->...o": [(4, 5), (5, 3)],
    "b...i,io->b...o": [(2, 4, 5), (5, 3)],
    "bchw,co->bohw": [(3, 4, 5), (3, 2)],
    "bchw,co": [(3, 2, 2), (3, 2)],
    "bij,ij->b": [(3, 4), (3, 4)],
    "bij,ij->bij": [(3, 4), (3, 4)],
    "bij,jk->bi": [(3, 4), (4, 2)],
    "bij,kjl->bkil": [(3, 4), (2, 4, 3)],
    "bgi,gio->bgo": [(3, 4), (3, 4, 2)],
    "bij,jk,kl->bil": [(3, 4), (4, 2), (2, 5)],
    "bij->bji": [(3, 4)],
    "bij->b": [(3, 4)],
    "bii->bi": [(3, 3)],
    "bii,ik->bk": [(3, 3), (3, 2)],
    "b...,...->b...": [(3, 4), (3, 1)],
    "b..., ...->b...": [(3, 4), (4,)],
    "b...,...->b": [(1, 4), (3, 1)],
    "bhd,hde->bhe": [(2, 3), (2, 3, 4)],
}


def einsum(equation, sizes):
    """The map of einsum with random constants. The shape without the samples comes first."""
    constants = [weight(*size) for size in sizes[1:]]
    place = [term.startswith(("b", "...")) for term in equation.partition("->")[0].split(",")].index(True)
    if equation.startswith("io"):
        place = 1
    return lambda x: torch.einsum(equation, *constants[:place], x, *constants[place:])


@pytest.mark.parametrize("equation", EQUATIONS)
def test_bound_of_an_einsum_is_the_norm_of_its_matrix(equation, monkeypatch):
    shape, function = EQUATIONS[equation][0], einsum(equation, EQUATIONS[equation])
    exact = exact_norm(function, shape)
    assert exact <= bound_of(function, shape) <= exact * (1 + 1e-8)
    monkeypatch.setattr(linear, "EXPLICIT", 0)  # as for a matrix that is too large
    assert exact <= bound_of(function, shape) <= 10 * exact


def test_bound_of_an_einsum_uses_one_entry_of_the_axes_that_only_repeat_it():
    function = einsum("bchw,co->bohw", [(8, 64, 64), (8, 6)])  # a matrix of 2^15 x 24576 without it
    exact = torch.linalg.svdvals(weight(8, 6)).max().item()
    assert bound_of(function, (8, 64, 64)) == pytest.approx(exact, rel=1e-8)


def test_critic_with_einsum_layers_has_a_certificate():
    class Layer(nn.Module):
        def __init__(self, equation, *shape):
            super().__init__()
            self.equation, self.weight = equation, nn.Parameter(torch.randn(shape))

        def forward(self, x):
            return torch.einsum(self.equation, x, self.weight)

    critic = nn.Sequential(Layer("bci,co->boi", 3, 4), nn.Tanh(), Layer("boi,oi->b", 4, 5)).double()
    first, last = critic[0].weight, critic[2].weight
    expected = torch.linalg.svdvals(first).max().item() * last.norm().item()
    assert certified_lipschitz(critic, (3, 5)) == pytest.approx(expected, rel=1e-8)
    assert certified_lipschitz(critic, (3, 5)) == pytest.approx(
        certified_lipschitz(nn.Sequential(Function(lambda x: torch.einsum("bi...->b...i", x).mT), critic), (3, 5))
    )
