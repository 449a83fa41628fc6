"""What a critic's slopes are: ||grad D|| at real, fake and interpolated points."""

from collections.abc import Callable

import torch
from torch import Tensor

from wgangp.gradients import gradient_norm
from wgangp.penalty import interpolate

__all__ = ["slope_statistics"]

QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


def slope_statistics(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, eps: Tensor | None = None
) -> dict[str, dict[str, float]]:
    """The critic's slope at real, fake and interpolated points: a 1-Lipschitz critic has none above 1.

    Args:
        critic: (B, *) -> (B,) or (B, 1), one score a sample.
        real, fake: points (B, *), paired by their order for the interpolates.
        eps: (B,) in [0, 1], where on the segments; drawn when left out.

    Returns:
        {"real": ..., "fake": ..., "interpolates": ...}, each with mean, std, q05, q50, q95 (quantiles) and max.

    Paper: Corollary 1: the optimal critic has slope 1 almost everywhere under both distributions.
    """
    if eps is None:
        eps = torch.rand(len(real), device=real.device, dtype=real.dtype)
    points = {"real": real, "fake": fake, "interpolates": interpolate(real, fake, eps)}
    statistics = {}
    for kind, x in points.items():
        slope = gradient_norm(critic, x).double()
        quantiles = slope.quantile(slope.new_tensor(list(QUANTILES.values())))
        values = torch.stack([slope.mean(), slope.std(correction=0), *quantiles, slope.max()]).tolist()
        statistics[kind] = dict(zip(["mean", "std", *QUANTILES, "max"], values, strict=True))
    return statistics
