"""Pairs of distributions with a known W1, in any dimension.

Let u be a 1-Lipschitz function, the potential. All mass moves down along its gradient by a length s:
T(x) = x - s grad u(x), where u(T(x)) = u(x) - s. Then W1 = s, because the move costs s and E u(x) - E u(T(x)) = s, and
no 1-Lipschitz function has a larger difference. So u is an optimal critic, and its gradient is known wherever mass
moves.

    shift      u(x) = x_1
    funnels    u(x) = min_n (||x - a_n|| + b_n)       Korotin et al. 2022, "Kantorovich Strikes Back"
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wgangp.seeds import rng_for

__all__ = ["Pair", "funnels", "shift"]


class Pair:
    """Two distributions of points (B, dim): the high side, which is the data, and the low side, moved by `distance`.

    Args:
        draw: (size, rng) -> points (size, dim) of the high side.
        potential: (B, dim) -> (B,), the 1-Lipschitz function u, an optimal critic.
        gradient: (B, dim) -> (B, dim), the gradient of the potential. Mass moves in the opposite direction.
        distance: W1 between the two sides, in the units of the points.
    """

    span = (-4.0, 4.0)

    def __init__(
        self,
        dim: int,
        distance: float,
        draw: Callable[[int, torch.Generator], Tensor],
        potential: Callable[[Tensor], Tensor],
        gradient: Callable[[Tensor], Tensor],
        device: torch.device | str,
    ) -> None:
        self.shape, self.distance, self.device = (dim,), distance, torch.device(device)
        self.draw, self.potential, self.gradient = draw, potential, gradient

    def batch(self, k: int, size: int, seed: int, split: str = "train", purpose: str = "data") -> tuple[Tensor]:
        """Return batch k of the high side: (points (size, dim),)."""
        return (self.draw(size, rng_for(seed, k, f"{purpose}/{split}", self.device)),)

    def low(self, k: int, size: int, seed: int, split: str = "train", purpose: str = "data") -> Tensor:
        """Return batch k of the low side (size, dim), drawn independently of the batch of the high side."""
        return self.transport(self.draw(size, rng_for(seed, k, f"{purpose}/low/{split}", self.device)))

    def transport(self, x: Tensor) -> Tensor:
        """Map points x (B, dim) of the high side to the low side: the optimal transport map."""
        return x - self.distance * self.gradient(x)


def shift(dim: int = 2, distance: float = 1.0, device: torch.device | str = "cpu") -> Pair:
    """Return the pair of N(0, I) in R^dim and its copy, moved by `distance` against the first axis."""
    _check(dim=dim, distance=distance)
    axis = torch.zeros(dim, device=device)
    axis[0] = 1

    def draw(size: int, rng: torch.Generator) -> Tensor:
        return torch.randn(size, dim, generator=rng, device=device)

    return Pair(dim, distance, draw, lambda x: x[:, 0], lambda x: axis.to(x.dtype).expand_as(x), device)


def funnels(
    dim: int = 2, distance: float = 1.0, count: int = 4, layout: int = 0, device: torch.device | str = "cpu"
) -> Pair:
    """Return the pair of N(0, I) in R^dim, without balls around `count` centers a_n, and its copy moved to the centers.

    Every point moves towards the center of its own funnel (the n that attains the minimum of u). On the way u
    decreases by the length of the way: it is 1-Lipschitz, and ||x - a_n|| + b_n decreases by this length. Beyond the
    center it would increase again, so there is no mass within `distance` of its own center.

    Args:
        layout: seed of the centers a_n ~ N(0, I) and of the offsets b_n ~ U[0, 0.5).

    Raises:
        ValueError: a size is not positive, or the balls leave less than 1 % of the mass.
    """
    _check(dim=dim, distance=distance, count=count)
    rng = rng_for(layout, 0, f"funnels/{dim}/{count}")
    centers = torch.randn(count, dim, generator=rng, dtype=torch.float64)
    offsets = 0.5 * torch.rand(count, generator=rng, dtype=torch.float64)

    def from_center(x: Tensor) -> Tensor:  # x - a_n for the funnel that x is in, (B, dim)
        a, b = centers.to(x), offsets.to(x)
        away = x.unsqueeze(1) - a
        nearest = (away.norm(dim=2) + b).argmin(dim=1)
        return away[torch.arange(len(x), device=x.device), nearest]

    def draw(size: int, rng: torch.Generator) -> Tensor:
        kept = torch.empty(0, dim, device=device)
        while len(kept) < size:
            x = torch.randn(2 * size + 64, dim, generator=rng, device=device)
            kept = torch.cat([kept, x[from_center(x).norm(dim=1) > distance]])
        return kept[:size]

    trial = torch.randn(10_000, dim, generator=rng)
    share = (from_center(trial).norm(dim=1) > distance).double().mean().item()
    if share < 0.01:
        raise ValueError(
            f"distance = {distance}: only {share:.1%} of N(0, I) is so far from its center, and at least 1 % is needed."
            " Use a smaller one"
        )

    def potential(x: Tensor) -> Tensor:
        return ((x.unsqueeze(1) - centers.to(x)).norm(dim=2) + offsets.to(x)).min(dim=1).values

    return Pair(dim, distance, draw, potential, lambda x: torch.nn.functional.normalize(from_center(x), dim=1), device)


def _check(**sizes: float) -> None:
    for name, size in sizes.items():
        if not 0 < size < math.inf:
            raise ValueError(f"{name} = {size}: must be > 0 and finite")
