"""The Lipschitz constant of a piecewise-linear critic on a box of R^1, R^2 or R^3, to within a tolerance.

    lower <= largest slope of D on the box <= upper          lipschitz_on_box(critic, low, high) -> (lower, upper)

Branch and bound. The box is divided into cells, and affine forms (form.py) tell which units are linear on a cell. If
all units are, the gradient of D is constant there. The gradient is affine in the derivative of each other unit (each
kink), and the norm is convex, so the norm is largest where all these derivatives are at one of their two ends.
    up to CORNERS kinks       the gradients at all ends are computed: 2^k of them
    up to GENERATORS kinks    the gradient is its middle, plus one vector per kink with a factor in [-1, 1], plus a rest
                              from products of two factors: a zonotope, whose norm is bounded
    more                      all kinks are a part of the rest: a poor bound
A cell whose bound is too large is divided.

`certified_lipschitz` multiplies the norms of the layers instead. It holds in every dimension and on all of R^n, but it
can be a hundred times too large.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wgangp.affine import ROUNDING, Cells, Form
from wgangp.certify import SIZES, certified_lipschitz, check_batch_sizes, open_network
from wgangp.checks import check_not_random, check_positive
from wgangp.linear import NoRuleError

__all__ = ["find_box", "lipschitz_on_box"]

CORNERS, GENERATORS = 4, 16
BATCH = 512  # cells per pass
NEGLIGIBLE = 1e-9  # of the product of norms: a smaller upper bound also ends the search
SMALLEST = 2.0**-16  # of the box: a smaller cell is not divided. In it too many kinks meet, perhaps in one point
DIRECTIONS = 32  # in which the norm of a zonotope is measured


def lipschitz_on_box(
    critic: nn.Module,
    low: float | Sequence[float] | Tensor,
    high: float | Sequence[float] | Tensor,
    *,
    tolerance: float = 0.01,
    max_cells: int = 200_000,
) -> tuple[float, float]:
    """Compute an interval (lower, upper) that contains the critic's largest slope on a box.

    Both ends are proved, for the critic in eval mode and exact arithmetic with its weights: the rounding of the
    computation is covered. For points in the box, (E D(real) - E D(fake)) / upper <= W1.

    Args:
        critic: (B, d) -> (B,) or (B, 1), d = 1, 2 or 3, of linear layers and piecewise-linear functions: ReLU,
            LeakyReLU, PReLU, abs, hardtanh, clamp, maximum, minimum, sort, sums, concatenation, batch norm in eval
            mode. A copy in float64 on the CPU is used; the critic itself is not changed.
        low, high: the corners of the box, (d,) or one number for each dimension.
        tolerance: the search ends if upper <= (1 + tolerance) lower, or if upper <= 1e-9 certified_lipschitz.
        max_cells: the search also ends after this number of cells. The interval is proved then, too, but it is wider.
            It is also wider if many kinks meet in one point, as those of a critic without biases do at 0.

    Raises:
        ValueError: an operation that is not piecewise linear; low >= high; more than 3 dimensions; a weight that is
            not finite. The message says what to use instead.
    """
    d = _find_dimension(low, high)
    low, high = (torch.as_tensor(x, dtype=torch.float64).detach().cpu().expand(d) for x in (low, high))
    if not (low.isfinite() & high.isfinite() & (low < high)).all():
        raise ValueError(f"low = {low.tolist()}, high = {high.tolist()}: low must be below high, and both finite")
    check_positive("tolerance", tolerance)
    with open_network(critic, "lipschitz_on_box", "no interval") as network:
        try:
            check_not_random(network, torch.stack([low, high]))
        except (RuntimeError, LookupError, AssertionError) as error:
            raise ValueError(f"points of R^{d} do not fit the critic: {error}") from error
        try:
            bound = torch.tensor([certified_lipschitz(critic, (d,))], dtype=torch.float64)
        except ValueError:
            bound = torch.tensor([math.inf], dtype=torch.float64)
        # An operation without a rule is named here.
        _propagate(network, torch.stack([low, high]), torch.zeros(2, d, dtype=torch.float64))
        share = torch.rand(SIZES[-1], d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        check_batch_sizes(network, low + share * (high - low), "no interval")
        return _search(network, low, high, bound, tolerance, max_cells)


def _search(
    network: nn.Module, low: Tensor, high: Tensor, bound: Tensor, tolerance: float, max_cells: int
) -> tuple[float, float]:
    """Divide the box until its bound is close to the largest slope that was found. bound: of the whole box (1,)."""
    center = ((low + high) / 2)[None]
    half = ((high - low) / 2 + (low.abs() + high.abs()) * ROUNDING)[None]
    smallest = half.amax() * SMALLEST
    lower = upper = 0.0  # upper: the largest bound of the cells that are finished
    bound = bound.nan_to_num(nan=math.inf, posinf=math.inf)
    negligible = NEGLIGIBLE * bound.item() if bound.isfinite() else 0.0
    count = 0
    while len(bound) and count < max_cells:
        order = bound.argsort(descending=True, stable=True)
        center, half, bound = center[order], half[order], bound[order]
        new_center, new_half = _divide(center[: BATCH // 2], half[: BATCH // 2])
        slope, new_bound = _bound_cells(network, new_center, new_half)
        # A bound is not a number where numbers are too large: then nothing is known.
        new_bound = torch.minimum(new_bound.nan_to_num(nan=math.inf, posinf=math.inf), bound[: BATCH // 2].repeat(2))
        lower, count = max(lower, slope), count + len(new_bound)
        center = torch.cat([center[BATCH // 2 :], new_center])
        half = torch.cat([half[BATCH // 2 :], new_half])
        bound = torch.cat([bound[BATCH // 2 :], new_bound])
        done = (bound <= max((1 + tolerance) * lower, negligible, upper)) | (half.amax(1) <= smallest)
        upper = max([upper, *bound[done].tolist()])
        center, half, bound = center[~done], half[~done], bound[~done]
    return lower, max([lower, upper, *bound.tolist()])


def find_box(*points: Tensor) -> tuple[list[float], list[float]]:
    """Return the corners low, high of the smallest box that has all points, each (N, d)."""
    all_points = torch.cat(points)
    return all_points.amin(0).tolist(), all_points.amax(0).tolist()


def _find_dimension(low: Any, high: Any) -> int:
    sizes = {torch.as_tensor(x).numel() for x in (low, high) if torch.as_tensor(x).ndim}
    if len(sizes) != 1 or not sizes <= {1, 2, 3}:
        raise ValueError(
            f"a box has low and high of the same length, 1, 2 or 3: got {low} and {high}. For points of a higher"
            " dimension use certified_lipschitz"
        )
    return sizes.pop()


def _divide(center: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each cell in two across its longest side: (C, d) -> (2 C, d). The halves overlap by their rounding."""
    longest = F.one_hot(half.argmax(1), half.shape[1]).to(half)
    shift = longest * half / 2
    smaller = (half - shift) * (1 + ROUNDING) + longest * center.abs() * ROUNDING
    return torch.cat([center - shift, center + shift]), smaller.repeat(2, 1)


def _bound_cells(network: nn.Module, center: Tensor, half: Tensor) -> tuple[float, Tensor]:
    """Return the largest slope at the centers, and an upper bound of the slope on each cell (C,)."""
    points = _propagate(network, center, torch.zeros_like(half))
    slopes = points.gradient.norm(dim=1) - points.bound_gradient_rounding()
    slope = torch.where(points.cells.kinks == 0, slopes, 0.0).max().item()
    form = _propagate(network, center, half, 0)
    kinks = form.cells.kinks
    rest = form.rest * (1 + form.cells.operations * ROUNDING)
    bound = form.gradients[:, 0].norm(dim=1) + rest + form.bound_gradient_rounding()
    fewest = 0
    for k in [*range(1, CORNERS + 1), *range(2 * CORNERS, GENERATORS + 1, CORNERS)]:
        (chosen,) = torch.nonzero((kinks > fewest) & (kinks <= k), as_tuple=True)
        fewest = k
        for some in chosen.split(4 * BATCH // (2**k if k <= CORNERS else k)) if len(chosen) else ():
            form = _propagate(network, center[some], half[some], k)
            better = form.gradients.norm(dim=2).amax(1) if k <= CORNERS else _bound_zonotope(form)
            better = torch.where(form.cells.kinks <= k, better + form.bound_gradient_rounding(), math.inf)
            bound[some] = torch.minimum(bound[some], better)
    return slope, bound


def _bound_zonotope(form: Form) -> Tensor:
    """Return an upper bound of ||middle + sum_j t_j generator_j|| + rest over |t_j| <= 1 (C,)."""
    if form.gradients.shape[2] != 2:
        return form.gradients.norm(dim=2).sum(1) + form.rest
    angle = torch.arange(DIRECTIONS).to(form.center) * (math.pi / DIRECTIONS)
    extent = (form.gradients @ torch.stack([angle.cos(), angle.sin()])).abs().sum(1).amax(1)  # the largest projection
    return extent / math.cos(math.pi / (2 * DIRECTIONS)) * (1 + ROUNDING) + form.rest


def _propagate(network: nn.Module, center: Tensor, half: Tensor, k: int | None = None) -> Form:
    """Return the form of the scores (C,) on the cells. k: see `Cells.k`; up to CORNERS the form has all corners."""
    n, d = center.shape
    identity, corners = torch.eye(d).to(center), k is not None and 0 < k <= CORNERS
    gradients = rest = None
    if corners:
        gradients = identity.expand(n, 2**k, d, d)
    elif k is not None:
        gradients, rest = identity.expand(n, 1, d, d), torch.zeros_like(center)
    cells = Cells(half, k, corners)
    with torch.no_grad():
        try:
            score = network(
                Form(cells, center, identity.expand(n, d, d), gradients, torch.zeros_like(center), rest, identity[None])
            )
        except NoRuleError as error:
            raise ValueError(f"no interval: {error}") from None
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"points of R^{d} do not fit the critic: {error}") from error
    if not isinstance(score, Form):
        raise ValueError("no interval: the score is not computed from the points by torch's operations")
    if score.ndim == 0 or len(score) != n or score.numel() != n:
        raise ValueError(f"a critic returns one score per sample, (B,) or (B, 1): got {tuple(score.shape)} for {n}")
    return score.map(lambda x: x.reshape(len(x)))
