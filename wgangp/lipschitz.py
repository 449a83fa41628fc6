"""What a critic's slopes are, and what they should be.

The penalty does not hold the slope at 1. A critic D = a f, f the optimal 1-Lipschitz one, has the least of
-a W + lambda (a - 1)^2 at a = 1 + W / (2 lambda); its gap E D(real) - E D(fake) is then K = W + W^2 / (2 lambda). Exact
where the penalised points lie on optimally coupled segments, and for a linear critic; else an approximation. What is
proved of any critic is an interval of its Lipschitz constant L, and K / L <= W1:

    largest_quotient, steepest_slope  <=  L  <=  certify.certified_lipschitz
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wgangp.certify import in_float64
from wgangp.gradients import gradient_norm
from wgangp.penalty import GradientPenalty, interpolate
from wgangp.transport import optimal_pairs

__all__ = [
    "corrected_wasserstein",
    "cosine",
    "critic_slopes",
    "expected_slope",
    "largest_quotient",
    "proved_wasserstein",
    "slope_statistics",
    "steepest_slope",
    "summary",
]

QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}
CHUNK = 500  # points at once, for the memory
Critic = Callable[[Tensor], Tensor]


def slope_statistics(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    eps: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    coupled: bool = False,
    float64: bool = False,
) -> dict[str, dict[str, float]]:
    """The critic's slope ||grad D|| at kinds of points, in numbers: a 1-Lipschitz critic has none above 1.

    Args:
        critic, real, fake, eps, generator, coupled, float64: as in `critic_slopes`.

    Returns:
        {"real": ..., "fake": ..., "interpolates": ..., "perturbed": ...}, each with mean, std, q05, q50, q95
        (quantiles), max and above_1 (the share of points); "coupled" too, with cosine, the mean of that between the
        critic's gradient and the direction in which mass moves.

    Raises:
        ValueError: as in `critic_slopes`.

    Paper: Corollary 1: the optimal critic has slope 1 almost everywhere under both distributions.
    """
    return summary(*critic_slopes(critic, real, fake, eps, generator=generator, coupled=coupled, float64=float64))


def summary(slopes: dict[str, Tensor], cosines: Tensor | None) -> dict[str, dict[str, float]]:
    """`slope_statistics` of what `critic_slopes` gives."""
    statistics = {}
    for kind, slope in slopes.items():
        quantiles = slope.quantile(slope.new_tensor(list(QUANTILES.values())))
        above = (slope > 1).double().mean()
        values = torch.stack([slope.mean(), slope.std(correction=0), *quantiles, slope.max(), above]).tolist()
        statistics[kind] = dict(zip(["mean", "std", *QUANTILES, "max", "above_1"], values, strict=True))
    if cosines is not None:
        statistics["coupled"]["cosine"] = cosines.mean().item()
    return statistics


def critic_slopes(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    eps: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    coupled: bool = False,
    float64: bool = False,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The critic's slope at every point of every kind (float64, (B,) each), and the cosines at coupled ones.

    Args:
        critic: (B, *) -> (B,) or (B, 1), one score a sample.
        real, fake: points (B, *), paired by their order for the interpolates.
        eps: (B,) in [0, 1], where on the segments; drawn when left out.
        generator: what draws; the global one when left out.
        coupled: points on segments between optimally coupled pairs as well. Exact transport: low dimension only.
        float64: compute in double precision, on a copy of the critic.

    Returns:
        slopes by kind: real, fake, interpolates, perturbed (DRAGAN's points around real) and coupled;
        cos(grad D, x - y) (B,) at the coupled points, where Paper: Proposition 1 says 1; None without them.

    Raises:
        ValueError: points that are not of one shape or do not fit the critic; too many to couple.
    """
    if real.shape != fake.shape or len(real) == 0:
        raise ValueError(f"as many real as fake points, at least one: {tuple(real.shape)} and {tuple(fake.shape)}")
    if float64:
        critic, real, fake = _double(critic), real.double(), fake.double()
    eps = _uniform(real, generator) if eps is None else eps.to(real.dtype)
    perturbed = GradientPenalty(points="perturbed")
    points = {"real": real, "fake": fake, "interpolates": interpolate(real, fake, eps)}
    points["perturbed"] = perturbed.at(real, fake, perturbed.draw(real, generator))
    cosines = None
    if coupled:
        partner = fake[optimal_pairs(real, fake)]
        points["coupled"] = interpolate(real, partner, eps)
        cosines = cosine(critic, points["coupled"], real - partner)
    return {kind: slope_at(critic, x).double() for kind, x in points.items()}, cosines


def cosine(critic: Critic, x: Tensor, direction: Tensor) -> Tensor:
    """cos(grad D(x_i), direction_i) (B,) at points x (B, *); 0 where one of the two is 0."""
    gradient = _gradient(critic, x).unsqueeze(-1).flatten(1)
    return torch.nn.functional.cosine_similarity(gradient, direction.unsqueeze(-1).flatten(1), dim=1)


def slope_at(critic: Critic, x: Tensor) -> Tensor:
    """`gradient_norm` (B,), with a ValueError in words where the points do not fit the critic."""
    with _fitting(critic, x):
        return torch.cat([gradient_norm(critic, part) for part in x.split(CHUNK)])


def largest_quotient(critic: Critic, x: Tensor) -> float:
    """The largest |D(x_i) - D(x_j)| / ||x_i - x_j|| over all pairs of points x (N, *): the constant is no less.

    In float64, on a copy of the critic; coinciding points are left out; 0 for one point.

    Raises:
        ValueError: points that do not fit the critic.
    """
    x = x.detach().double()
    with torch.no_grad(), _fitting(critic, x):
        critic = _double(critic)
        score = torch.cat([critic(part).flatten() for part in x.split(CHUNK)])
    flat = x.unsqueeze(-1).flatten(1)
    largest = []
    for x, rises in zip(flat.split(CHUNK), score.split(CHUNK), strict=True):
        distance = torch.cdist(x, flat, compute_mode="donot_use_mm_for_euclid_dist")
        rise = (rises.unsqueeze(1) - score).abs()
        largest.append(torch.where(distance > 0, rise / distance, 0).max())
    return torch.stack(largest).max().item()  # NaN where one is


def steepest_slope(critic: nn.Module, x: Tensor, steps: int = 100) -> float:
    """The largest slope met while every point of x (N, *) climbs: a lower bound of the constant, in float64.

    A ReLU critic's slope is constant on each of its linear pieces, so the gradient of the slope is 0 and shows no way
    up. Instead the difference of D over a finite span is raised: v is the mean direction of the two gradients at
    x +- h v, and x moves along their difference. h falls from the points' own scale to a hundredth of it.

    Args:
        critic: (B, *) -> (B,) or (B, 1); a copy of it is used.
        x: starts, of any kind; real, fake and between are good ones.

    Raises:
        ValueError: steps < 1; points that do not fit the critic.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}: the ascent takes at least one")
    critic, x = _double(critic), x.detach().double()
    steepest = slope_at(critic, x)
    direction = _unit(_gradient(critic, x))
    scale = x.std(correction=0).item() or 1.0
    for h in torch.logspace(0, -2, steps).tolist():
        ahead, behind = (_gradient(critic, x + sign * h * scale * direction) for sign in (1, -1))
        for gradient in (ahead, behind):
            steepest = torch.maximum(steepest, gradient.unsqueeze(-1).flatten(1).norm(dim=1))
        direction = _unit(ahead + behind)
        x = x + h * scale * _unit(ahead - behind)
    return steepest.max().item()


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


def proved_wasserstein(
    score_real: Tensor, score_fake: Tensor, lipschitz: float, confidence: float = 0.95, seed: int = 0
) -> dict[str, float]:
    """(E D(real) - E D(fake)) / L <= W1, from any critic, however badly trained; with a bootstrap interval.

    Args:
        score_real, score_fake: D at held-out samples (N,) and (M,), N, M >= 2: the ones that it was not trained on.
        lipschitz: L > 0, a certified upper bound of its Lipschitz constant.
        confidence: of the percentile interval, over both samples.
        seed: of the resampling.

    Returns:
        bound, low and high. That bound <= W1 is proved of the expectations; of the samples it holds within the
        interval. At or below 0 it says nothing.
    """
    if not 0 < lipschitz < math.inf:
        raise ValueError(f"lipschitz = {lipschitz}: a certified constant is > 0 and finite")
    real, fake = (score.detach().double().flatten().cpu().numpy() / lipschitz for score in (score_real, score_fake))
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"{len(real)} and {len(fake)} scores: an interval takes two of each")
    from scipy.stats import bootstrap  # here: it takes seconds to import

    interval = bootstrap(
        (real, fake),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        confidence_level=confidence,
        method="percentile",
        batch=100,  # resamples at once, for the memory
        rng=seed,
    ).confidence_interval
    return {"bound": float(real.mean() - fake.mean()), "low": float(interval.low), "high": float(interval.high)}


def _double(critic: Critic) -> Critic:
    return in_float64(critic) if isinstance(critic, nn.Module) else critic


def _uniform(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype)


def _gradient(critic: Critic, x: Tensor) -> Tensor:
    gradients = []
    for part in x.detach().split(CHUNK):
        with torch.enable_grad(), _fitting(critic, x):
            part = part.requires_grad_()
            gradients += torch.autograd.grad(critic(part).sum(), part, materialize_grads=True)
    return torch.cat(gradients)


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.unsqueeze(-1).flatten(1), dim=1).view_as(x)


@contextmanager
def _fitting(critic: Critic, x: Tensor) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        hint = f" (they are {x.dtype}, and a function is not converted: give the nn.Module)" * (
            x.dtype == torch.float64
        )
        raise ValueError(f"points of shape {tuple(x.shape[1:])} do not fit this critic{hint}: {error}") from error


def _check(weight: float, **not_negative: float) -> None:
    if not weight > 0:
        raise ValueError(f"weight = {weight}: without a penalty (> 0) no slope is expected")
    for name, value in not_negative.items():
        if not value >= 0:
            raise ValueError(f"{name} = {value}: must be >= 0; a critic that prefers the fakes measures no distance")
