"""Modes: which of them a generator covers, and how evenly. For mixtures of Gaussians and for stacked digits."""

import math

import torch
from torch import Tensor

__all__ = ["count_modes", "mode_coverage"]


def mode_coverage(x: Tensor, centers: Tensor, sd: float) -> dict[str, float]:
    """Count the modes of a Gaussian mixture that the samples x (N, 2) cover.

    A sample is of high quality if it lies within 3 sd of the nearest center. A 2-D Gaussian has 98.9 % of its mass
    there. A mode is covered if at least one high-quality sample is nearest to it. The definition is that of VEEGAN
    (Srivastava et al. 2017), where N is 2,500. The number of covered modes grows with N, so report N with it.

    Args:
        x: samples (N, 2).
        centers: centers of the modes (M, 2).
        sd: standard deviation of each mode, in the units of the plane.

    Returns:
        modes: the number of covered modes, 0 to M.
        high_quality: the share of high-quality samples, 0 to 1.
    """
    distance, nearest = torch.cdist(x, centers).min(dim=1)
    good = distance < 3 * sd
    return {"modes": len(nearest[good].unique()), "high_quality": good.double().mean().item()}


def count_modes(modes: Tensor, total: int) -> dict[str, float]:
    """Count which of `total` equally probable modes occur among those of the samples, (N,) in 0 ... total - 1.

    Returns:
        modes: the number of modes that occur, 0 to total.
        reverse_kl: KL(p | uniform) = sum_i p_i log(p_i total), in nats, where p are the shares of the samples. 0 if all
            modes are equally frequent. For N samples of a perfect generator it is about (total - 1) / (2 N).

    Paper: Metz et al. 2017, Srivastava et al. 2017.
    """
    share = modes.bincount(minlength=total).double() / len(modes)
    kl = torch.special.xlogy(share, share).sum().item() + math.log(total)
    return {"modes": int((share > 0).sum()), "reverse_kl": max(0.0, kl)}  # rounding can make it negative
