"""Three distributions in the plane: 8 Gaussians on a ring, 25 on a grid, a Swiss roll.

Paper: figure 1a names them; the geometry is that of the released gan_toy.py, lines 174-226. Differs: in the released
code the 25 Gaussians are one set of 100,000 points, cycled in one order. Here every batch of all three is newly drawn,
and held-out batches are drawn independently.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wgangp.seeds import rng_for

__all__ = ["Gaussians", "SwissRoll", "gaussians8", "gaussians25"]


class Toy:
    """Points (B, d), newly drawn for every batch. A subclass defines draw(size, rng) -> (size, d)."""

    shape = (2,)
    span = (-3.0, 3.0)
    draw: Callable[[int, torch.Generator], Tensor]

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def batch(self, k: int, size: int, seed: int, split: str = "train", purpose: str = "data") -> tuple[Tensor]:
        """Return batch k of a split: (points (size, d),)."""
        return (self.draw(size, rng_for(seed, k, f"{purpose}/{split}", self.device)),)


class Gaussians(Toy):
    """An equal mixture of isotropic Gaussians in the plane.

    Args:
        centers: (M, 2).
        sd: standard deviation of each Gaussian, in the units of the plane.
    """

    def __init__(self, centers: Tensor, sd: float, device: torch.device | str = "cpu") -> None:
        super().__init__(device)
        self.centers, self.sd = centers.to(device), sd

    def draw(self, size: int, rng: torch.Generator) -> Tensor:
        mode = torch.randint(len(self.centers), (size,), generator=rng, device=self.device)
        noise = torch.randn(size, 2, generator=rng, device=self.device)
        return self.centers[mode] + self.sd * noise


def gaussians8(device: torch.device | str = "cpu") -> Gaussians:
    """8 Gaussians: centers on a ring of radius 2, sd 0.02, everything divided by 1.414."""
    angle = torch.arange(8) * (math.pi / 4)
    return Gaussians(2 * torch.stack([angle.cos(), angle.sin()], dim=1) / 1.414, 0.02 / 1.414, device)


def gaussians25(device: torch.device | str = "cpu") -> Gaussians:
    """25 Gaussians: centers on the grid {-4, -2, 0, 2, 4}^2, sd 0.05, everything divided by 2.828."""
    ticks = 2.0 * torch.arange(-2, 3)
    return Gaussians(torch.cartesian_prod(ticks, ticks) / 2.828, 0.05 / 2.828, device)


class SwissRoll(Toy):
    """(t cos t, t sin t) with t ~ U[1.5 pi, 4.5 pi], noise of sd 0.25 in both coordinates, everything divided by 7.5.

    Paper: released code, scikit-learn's make_swiss_roll(noise=0.25), its first and last column.
    """

    def draw(self, size: int, rng: torch.Generator) -> Tensor:
        t = 1.5 * math.pi * (1 + 2 * torch.rand(size, generator=rng, device=self.device))
        noise = torch.randn(size, 2, generator=rng, device=self.device)
        return (torch.stack([t * t.cos(), t * t.sin()], dim=1) + 0.25 * noise) / 7.5
