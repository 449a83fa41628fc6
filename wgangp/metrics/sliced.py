"""Sliced Wasserstein distance: the mean over directions of the exact W1 of projections to a line."""

import torch
from torch import Tensor

__all__ = ["sliced_wasserstein"]


def sliced_wasserstein(x: Tensor, y: Tensor, directions: int = 512, rng: torch.Generator | None = None) -> float:
    """Compute the mean of W1(w . x, w . y) over random unit vectors w.

    For images it is in the units of a pixel's value: |w . (x - y)| is about the root mean square of x - y over pixels.
    It is a number about means and covariances, and about little else: Gaussian noise with the mean and covariance of
    real images is hardly farther from them than other real images are. Measured in results/LOG.md.

    Args:
        x, y: samples (N, *), the same number of each.
        directions: number of vectors w.
        rng: for the vectors, on the device of x; None: torch's global one.

    Raises:
        ValueError: x and y do not have the same shape.

    Paper: Rabin et al. 2011.
    """
    if x.shape != y.shape:
        raise ValueError(f"x and y have the shapes {tuple(x.shape)} and {tuple(y.shape)}: they must be equal")
    x, y = x.flatten(1), y.flatten(1)
    w = torch.randn(x.shape[1], directions, generator=rng, device=x.device, dtype=x.dtype)
    w = w / w.norm(dim=0)
    return ((x @ w).sort(dim=0).values - (y @ w).sort(dim=0).values).abs().mean().item()
