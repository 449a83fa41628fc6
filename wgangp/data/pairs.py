"""Pairs of distributions with a known W1, in any dimension.

Let u be a 1-Lipschitz function, the potential. All mass moves down along its gradient by a length s:
T(x) = x - s grad u(x), where u(T(x)) = u(x) - s. Then W1 = s, because the move costs s and E u(x) - E u(T(x)) = s, and
no 1-Lipschitz function has a larger difference. So u is an optimal critic, and its gradient is known wherever mass
moves.

    shift      u(x) = x_1
    funnels    u(x) = min_n (||x - a_n|| + b_n)       Korotin et al. 2022, "Kantorovich Strikes Back"
    korotin    the same potential with the parameters of their benchmark, and their map, which moves points by different
               lengths
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wgangp.data.toy import Toy
from wgangp.seeds import rng_for

__all__ = ["Pair", "funnels", "korotin", "shift"]


class Pair(Toy):
    """Two distributions of points (B, dim): the high side, which is the data, and the low side, where the map ends.

    Args:
        draw: (size, rng) -> points (size, dim) of the high side.
        potential: (B, dim) -> (B,), the 1-Lipschitz function u, an optimal critic.
        gradient: (B, dim) -> (B, dim), the gradient of the potential. Mass moves in the opposite direction.
        distance: W1 between the two sides, in the units of the points.
        transport: (B, dim) of the high side -> (B, dim) of the low side, the optimal map. None: all mass moves by
            `distance`.
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
        transport: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(device)
        self.shape, self.distance = (dim,), distance
        self.draw, self.potential, self.gradient = draw, potential, gradient
        self.transport = transport or (lambda x: x - distance * gradient(x))

    def low(self, k: int, size: int, seed: int, split: str = "train", purpose: str = "data") -> Tensor:
        """Return batch k of the low side (size, dim), drawn independently of the batch of the high side."""
        return self.transport(self.draw(size, rng_for(seed, k, f"{purpose}/low/{split}", self.device)))


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

    Every point moves toward the center of its own funnel (the n that attains the minimum of u). On the way u
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
        points = torch.empty(0, dim, device=device)
        while len(points) < size:
            x = torch.randn(2 * size + 64, dim, generator=rng, device=device)
            points = torch.cat([points, x[from_center(x).norm(dim=1) > distance]])
        return points[:size]

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


CUBE, DEGREE = 2.5, 8  # half of the side of the cube; the power of the map along a ray
TRUTH_SIZE = 2**16  # points from which the known distance is computed


def korotin(root: str, dim: int = 2, funnels: int = 4, device: torch.device | str = "cpu") -> Pair:
    """Return a pair of the benchmark of Korotin et al. 2022: uniform points in a cube, moved toward `funnels` centers.

    A point y moves along its ray, from the nearest center a through y to `end`, where the ray leaves the cube or the
    funnel: y -> a + t^8 (end - a) with t = ||y - a|| / ||end - a||. The distance is E u(y) - E u(moved y), with a
    standard error below 0.003.

    Args:
        root: a folder with pairs.npz: the arrays d{dim}_n{funnels}_centers (N, dim) and d{dim}_n{funnels}_bias (N,).
        dim: 2, 4, 8, ... 128. funnels: 4, 16, 64 or 256.

    Raises:
        ValueError: the file cannot be read, or the pair is not there.

    Paper: the authors' released benchmark (justkolesov/Wasserstein1Benchmark).
    """
    path, name = Path(root) / "pairs.npz", f"d{dim}_n{funnels}"
    try:
        with path.open("rb") as file:
            arrays = dict(np.load(file))
    except Exception as error:  # a damaged file raises many types
        raise ValueError(
            f"data.root: cannot read {path} ({error}). Set it to the folder that has pairs.npz (docs/lipschitz.md)"
        ) from error
    known = {key.removesuffix("_bias") for key in arrays} & {key.removesuffix("_centers") for key in arrays}
    if name not in known:
        raise ValueError(f"{path} has no pair {name} (dim, funnels). It has: {', '.join(sorted(known))}")
    a, b = (torch.from_numpy(arrays[f"{name}_{part}"]).to(device) for part in ("centers", "bias"))

    def find(y: Tensor) -> tuple[Tensor, Tensor]:
        return (torch.cdist(y, a.to(y), compute_mode="donot_use_mm_for_euclid_dist") + b.to(y)).min(dim=1)

    def point_away(y: Tensor) -> Tensor:
        return torch.nn.functional.normalize(y - a.to(y)[find(y)[1]], dim=1)

    def transport(y: Tensor) -> Tensor:
        u, nearest = find(y)
        center, away = a.to(y)[nearest], point_away(y)
        to_wall = ((CUBE - y * away.sign()) / away.abs()).min(dim=1).values
        d = u.unsqueeze(1) - b.to(y)
        product = (y * away).sum(1, keepdim=True) - away @ a.to(y).T  # (y - a_n) away
        squared = torch.cdist(y, a.to(y), compute_mode="donot_use_mm_for_euclid_dist").square()
        r = 0.5 * (squared - d.square()) / (d - product)
        r = torch.where((r > 0) & (r > -d), r, math.inf)
        r = r.scatter(1, nearest.unsqueeze(1), math.inf).min(dim=1).values
        end = y + torch.minimum(r, to_wall).unsqueeze(1) * away
        t = (y - center).norm(dim=1) / (end - center).norm(dim=1)
        return center + t.pow(DEGREE).unsqueeze(1) * (end - center)

    def draw(size: int, rng: torch.Generator) -> Tensor:
        return CUBE * (2 * torch.rand(size, dim, generator=rng, device=device) - 1)

    def potential(y: Tensor) -> Tensor:
        return find(y)[0]

    y = draw(TRUTH_SIZE, rng_for(0, 0, f"korotin/{name}", device)).double()
    distance = sum((potential(part) - potential(transport(part))).sum() for part in y.split(2**14)).item() / len(y)
    return Pair(dim, distance, draw, potential, point_away, device, transport)


def _check(**sizes: float) -> None:
    for name, size in sizes.items():
        if not 0 < size < math.inf:
            raise ValueError(f"{name} = {size}: must be > 0 and finite")
