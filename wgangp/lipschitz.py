"""What a critic's slopes are, and what they should be.

The penalty does not hold the slope at 1. A critic D = a f, f the optimal 1-Lipschitz one, has the least of
-a W + lambda (a - 1)^2 at a = 1 + W / (2 lambda); its gap E D(real) - E D(fake) is then K = W + W^2 / (2 lambda). Exact
where the penalised points lie on optimally coupled segments, and for a linear critic; else an approximation.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wgangp.gradients import gradient_norm
from wgangp.penalty import interpolate

__all__ = ["corrected_wasserstein", "expected_slope", "slope_statistics"]

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


def expected_slope(w1: float, weight: float) -> float:
    """1 + W1 / (2 lambda): the slope of the critic that is best for the penalty, not 1.

    Args:
        w1: the Wasserstein distance between real and fake, >= 0, in the units of the points.
        weight: lambda > 0, of a penalty with target 1.
    """
    _check(weight, w1=w1)
    return 1 + w1 / (2 * weight)


def corrected_wasserstein(gap: float, weight: float) -> float:
    """W1 from the gap of a critic with the expected slope: lambda (sqrt(1 + 2 K / lambda) - 1).

    Args:
        gap: K = E D(real) - E D(fake) >= 0, which is larger than W1 by the critic's slope.
        weight: lambda > 0, of a penalty with target 1.
    """
    _check(weight, gap=gap)
    return 2 * gap / (1 + math.sqrt(1 + 2 * gap / weight))  # the same, without a difference that cancels


def _check(weight: float, **not_negative: float) -> None:
    if not weight > 0:
        raise ValueError(f"weight = {weight}: without a penalty (> 0) no slope is expected")
    for name, value in not_negative.items():
        if not value >= 0:
            raise ValueError(f"{name} = {value}: must be >= 0; a critic that prefers the fakes measures no distance")
