"""Pairs of distributions with a known W1, in any dimension.

A potential u that is 1-Lipschitz, and mass that moves down its rays by a length s: T(x) = x - s grad u(x), where
u(T(x)) = u(x) - s. Then W1 = s: the move costs s, and no 1-Lipschitz function sees more than u does,
E u(x) - E u(T(x)) = s. And u is the optimal critic, its gradient known wherever mass moves.

    shift      u(x) = x_1
    funnels    u(x) = min_n (||x - a_n|| + b_n)       Korotin et al. 2022, "Kantorovich Strikes Back"
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wgangp.seeds import generator_for

__all__ = ["Pair", "funnels", "shift"]


class Pair:
    """Two distributions of points (B, dim): the high side, which is the data, and the low side, distance below it.

    Args:
        draw: (size, generator) -> points (size, dim) of the high side.
        potential: (B, dim) -> (B,), the u that is 1-Lipschitz: an optimal critic.
        gradient: (B, dim) -> (B, dim), the gradient of the potential: the direction in which mass would have to move.
        distance: W1 between the sides, in the units of the points.
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

    def batch(self, k: int, size: int, seed: int, split: str = "train", purpose: str = "data") -> tuple[Tensor, None]:
        """Batch k of the high side: points (size, dim), no labels."""
        return self.draw(size, generator_for(seed, k, f"{purpose}/{split}", self.device)), None

    def low(self, k: int, size: int, seed: int, split: str = "train", purpose: str = "data") -> Tensor:
        """Batch k of the low side (size, dim), drawn independently of the batch of the high side."""
        return self.moved(self.draw(size, generator_for(seed, k, f"{purpose}/low/{split}", self.device)))

    def moved(self, x: Tensor) -> Tensor:
        """Where the mass at x (B, dim) of the high side goes: the optimal transport map to the low side."""
        return x - self.distance * self.gradient(x)


def shift(dim: int = 2, distance: float = 1.0, device: torch.device | str = "cpu") -> Pair:
    """N(0, I) in R^dim and the same, moved by distance against the first axis."""
    _check(dim=dim, distance=distance)
    axis = torch.zeros(dim, device=device)
    axis[0] = 1

    def draw(size: int, generator: torch.Generator) -> Tensor:
        return torch.randn(size, dim, generator=generator, device=device)

    return Pair(dim, distance, draw, lambda x: x[:, 0], lambda x: axis.to(x.dtype).expand_as(x), device)


def funnels(
    dim: int = 2, distance: float = 1.0, count: int = 4, layout: int = 0, device: torch.device | str = "cpu"
) -> Pair:
    """N(0, I) in R^dim outside of balls of radius distance around count centres a_n, and the same moved towards them.

    Towards its centre a point stays in its funnel: u falls by the length of the way, since it is 1-Lipschitz and
    ||x - a_n|| + b_n falls so. Past the centre it would rise again; hence no mass within distance of its own centre.

    Args:
        layout: which centres a_n ~ N(0, I) and offsets b_n ~ U[0, 0.5).

    Raises:
        ValueError: a size that is not positive, or balls that leave hardly any mass.
    """
    _check(dim=dim, distance=distance, count=count)
    random = generator_for(layout, 0, f"funnels/{dim}/{count}")
    centres = torch.randn(count, dim, generator=random, dtype=torch.float64)
    offsets = 0.5 * torch.rand(count, generator=random, dtype=torch.float64)

    def own(x: Tensor) -> Tensor:  # x - a_n for the funnel that x is in, (B, dim)
        a, b = centres.to(x), offsets.to(x)
        away = x.unsqueeze(1) - a
        nearest = (away.norm(dim=2) + b).argmin(dim=1)
        return away[torch.arange(len(x), device=x.device), nearest]

    def draw(size: int, generator: torch.Generator) -> Tensor:
        kept = torch.empty(0, dim, device=device)
        while len(kept) < size:
            x = torch.randn(2 * size + 64, dim, generator=generator, device=device)
            kept = torch.cat([kept, x[own(x).norm(dim=1) > distance]])
        return kept[:size]

    trial = torch.randn(10_000, dim, generator=random)
    share = (own(trial).norm(dim=1) > distance).double().mean().item()
    if share < 0.01:
        raise ValueError(f"distance = {distance}: only {share:.1%} of N(0, I) lies that far from its centre; take less")

    def potential(x: Tensor) -> Tensor:
        return ((x.unsqueeze(1) - centres.to(x)).norm(dim=2) + offsets.to(x)).min(dim=1).values

    return Pair(dim, distance, draw, potential, lambda x: torch.nn.functional.normalize(own(x), dim=1), device)


def _check(**sizes: float) -> None:
    for name, size in sizes.items():
        if not 0 < size < math.inf:
            raise ValueError(f"{name} = {size}: must be > 0 and finite")
