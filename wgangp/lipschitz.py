"""Slopes of a critic: statistics, bounds of the Lipschitz constant, and estimates of the Wasserstein distance W1.

The penalty with weight lambda does not hold the slope at 1. Let D = a f, where f is the optimal 1-Lipschitz critic. The
objective -a W1 + lambda (a - 1)^2 has its minimum at a = 1 + W1 / (2 lambda), and the gap E D(real) - E D(fake) is then
K = W1 + W1^2 / (2 lambda). This is exact for a linear critic, and if the penalized points lie on optimally coupled
segments; otherwise it is an approximation. For every critic there is a proved interval for its Lipschitz constant L,
and K / L <= W1:

    largest_quotient, steepest_slope  <=  L  <=  certify.certified_lipschitz

All ends of the interval are those of the critic in eval mode. No function here changes a critic, its points or a random
state, and each refuses a critic that is random in eval mode.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wgangp.checks import SCORE, check_not_random, check_pairs, check_points, compute_scores, differentiate
from wgangp.gradients import gradient_norm
from wgangp.penalty import GradientPenalty, interpolate
from wgangp.state import convert_to_float64, find_state, use_eval_mode
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
    "summarize",
]

QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}
CHUNK = 500  # points per forward pass, to limit the memory
ROUNDING = 2**12  # times the rounding of one operation: what is allowed for all operations that one number depends on
Critic = Callable[..., Tensor]


def slope_statistics(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    eps: Tensor | None = None,
    *,
    y: tuple[Tensor, ...] = (),
    rng: torch.Generator | None = None,
    coupled: bool = False,
    float64: bool = False,
) -> dict[str, dict[str, float]]:
    """Summarize the critic's slope ||grad D|| at four kinds of points. A 1-Lipschitz critic has no slope above 1.

    The arguments and the errors are those of `critic_slopes`.

    Returns:
        {"real": ..., "fake": ..., "interpolates": ..., "perturbed": ...}, each with mean, std, the quantiles q05, q50
        and q95, max, and above_1 (the share of points with a slope above 1). With coupled also "coupled", which has
        cosine too: the mean cosine between the critic's gradient and the direction in which mass moves.

    Paper: Corollary 1: the optimal 1-Lipschitz critic has slope 1 almost everywhere under both distributions.
    """
    return summarize(*critic_slopes(critic, real, fake, eps, y=y, rng=rng, coupled=coupled, float64=float64))


def summarize(slopes: dict[str, Tensor], cosines: Tensor | None) -> dict[str, dict[str, float]]:
    """Compute `slope_statistics` from the result of `critic_slopes`."""
    statistics = {}
    for kind, slope in slopes.items():
        quantiles = slope.quantile(slope.new_tensor(list(QUANTILES.values())))
        above = (slope > 1).to(slope.dtype).masked_fill(slope.isnan(), math.nan).mean()
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
    y: tuple[Tensor, ...] = (),
    rng: torch.Generator | None = None,
    coupled: bool = False,
    float64: bool = False,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Compute the critic's slope at every point of every kind, and the cosines at the coupled points.

    Args:
        critic: (x, *y) -> (B,) or (B, 1), one score per sample. It is put in eval mode for this call.
        real, fake: points (B, *), paired by their order for the interpolates.
        eps: (B,) in [0, 1], the position on each segment: 1 is the real point, 0 the fake point. Drawn if left out.
        y: (labels (B,),) of the pairs, if the critic takes labels.
        rng: the random number generator for the draws. If it is left out, torch's global one is used, and its state is
            restored.
        coupled: also use points on the segments between optimally coupled pairs. It needs exact transport, which says
            something in low dimension only. Not with labels.
        float64: compute in double precision, on a copy of the critic.

    Returns:
        slopes (B,) by kind: real, fake, interpolates, perturbed (DRAGAN's points around real), and coupled.
        cos(grad D, x - y) (B,) at the coupled points, which is 1 for the optimal critic (Paper: Proposition 1); None
        if coupled is False.

    Raises:
        ValueError: the points do not have the same shape, are not finite or do not fit the critic; there are too many
            to couple; the critic draws random numbers.
    """
    check_pairs(real, fake, *y)
    if y and coupled:
        raise ValueError("coupled=True does not work with labels: optimal pairs may have different labels")
    with _open(critic, real, *y, float64=float64) as (critic, real, *y):
        _check_finite(fake)
        fake = fake.detach().to(real.dtype)
        eps = GradientPenalty().draw(real, rng) if eps is None else eps
        perturbed = GradientPenalty(points="perturbed")
        points = {"real": real, "fake": fake, "interpolates": interpolate(real, fake, eps)}
        points["perturbed"] = perturbed.at(real, fake, perturbed.draw(real, rng))
        cosines = None
        if coupled:
            partner = fake[optimal_pairs(real, fake)]
            points["coupled"] = interpolate(real, partner, eps)
            cosines = cosine(critic, points["coupled"], real - partner)
        return {kind: slope_at(critic, x, *y).double() for kind, x in points.items()}, cosines


def cosine(critic: Critic, x: Tensor, direction: Tensor) -> Tensor:
    """Compute cos(grad D(x_i), direction_i) (B,) at points x (B, *). It is 0 if one of the two vectors is 0."""
    dtype = torch.promote_types(x.dtype, torch.float32)  # squares leave the range of float16
    gradient, direction = (v.unsqueeze(-1).flatten(1).to(dtype) for v in (_gradient(critic, x), direction))
    return torch.nn.functional.cosine_similarity(gradient, direction, dim=1)


def slope_at(critic: Critic, x: Tensor, *y: Tensor) -> Tensor:
    """Compute `gradient_norm` (B,) in chunks; a ValueError explains if the points do not fit the critic."""
    slopes = []
    with _explain_misfit(x):
        for part in _chunks(x, *y):
            slopes.append(gradient_norm(critic, *part))
    return torch.cat(slopes)


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(each.split(CHUNK) for each in tensors), strict=True)


def largest_quotient(critic: Critic, x: Tensor, *, y: tuple[Tensor, ...] = ()) -> float:
    """Compute the largest |D(x_i) - D(x_j)| / ||x_i - x_j|| over all pairs: a lower bound of the Lipschitz constant.

    It is computed in float64, on a copy of the critic, and rounded down: each difference of scores is made smaller by
    what rounding can add to it. This is measured: how far scores move if the result of every operation is multiplied
    by random factors within 1 +- 1e-12. Two points that are so close that rounding explains the difference of their
    scores therefore have the quotient 0. Pairs of equal points are left out. For one point it is 0.

    Args:
        critic: (x, *y) -> (B,) or (B, 1).
        x: points (N, *).
        y: (labels (N,),), if the critic takes labels. Only points with equal labels are compared.

    Raises:
        ValueError: the points are not finite or do not fit the critic; the critic draws random numbers.
    """
    with _open(critic, x, *y, float64=True) as (critic, x, *y), torch.no_grad(), _explain_misfit(x):
        score = torch.cat([compute_scores(critic, *part) for part in _chunks(x, *y)])
        with _Perturbation(x.device):
            perturbed = [torch.cat([compute_scores(critic, *part) for part in _chunks(x, *y)]) for _ in range(2)]
    rounding = (torch.stack(perturbed) - score).abs().max() + ROUNDING * torch.finfo(score.dtype).eps * score.abs()
    flat = x.unsqueeze(-1).flatten(1)
    labels = torch.cat([x.new_zeros(len(x), 1), *(each.unsqueeze(-1).flatten(1) for each in y)], dim=1)
    groups, largest = labels.unique(dim=0, return_inverse=True)[1], []
    for x, scores, margin, group in _chunks(flat, score, rounding, groups):
        distance = torch.cdist(x, flat, compute_mode="donot_use_mm_for_euclid_dist")
        distance = distance.where(group.unsqueeze(1) == groups, 0)  # 0: left out
        rise = (scores.unsqueeze(1) - score).abs() - (margin.unsqueeze(1) + rounding)
        largest.append(torch.where(distance > 0, rise.clamp(min=0) / distance, 0).max())
    return torch.stack(largest).max().item()  # NaN if one of them is


class _Perturbation(TorchDispatchMode):
    """Multiply the result of every operation by a factor within 1 +- ROUNDING eps of its type, one per column."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.rng = torch.Generator(device).manual_seed(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **kwargs or {})
        rounds = not func.is_view and any(isinstance(value, Tensor) for value in tree_leaves((args, kwargs)))
        for value in tree_leaves(result) if rounds else ():
            if isinstance(value, Tensor) and value.is_floating_point() and value.device == self.rng.device:
                noise = torch.rand(value.shape[1:], generator=self.rng, dtype=value.dtype, device=value.device)
                value.mul_(1 + (2 * noise - 1) * ROUNDING * torch.finfo(value.dtype).eps)
        return result


def steepest_slope(critic: Critic, x: Tensor, steps: int = 100, *, y: tuple[Tensor, ...] = ()) -> float:
    """Search for the largest slope by an ascent from every point: a lower bound of the Lipschitz constant, in float64.

    The slope of a ReLU critic is constant on each of its linear pieces, so the gradient of the slope is 0 and cannot
    be followed. Instead the ascent increases the difference of D over a finite distance: v is the mean direction of
    the two gradients at x +- h v, and x moves along the difference of these gradients. h decreases from the standard
    deviation of the points to a hundredth of it.

    Args:
        critic: (x, *y) -> (B,) or (B, 1). A copy is used.
        x: the points (N, *) where the ascent starts, for example real samples, fake samples, and points between them.
        steps: of the ascent, >= 1.
        y: (labels (N,),) of the points, if the critic takes labels. They do not change.

    Raises:
        ValueError: steps < 1; the points are not finite or do not fit the critic; the critic draws random numbers.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}: must be >= 1")
    with _open(critic, x, *y, float64=True) as (critic, x, *y):
        steepest = slope_at(critic, x, *y)
        direction = _unit(_gradient(critic, x, *y))
        scale = x.std(correction=0).item() or 1.0
        for h in torch.logspace(0, -2, steps).tolist():
            ahead, behind = (_gradient(critic, x + sign * h * scale * direction, *y) for sign in (1, -1))
            for gradient in (ahead, behind):
                steepest = torch.maximum(steepest, gradient.unsqueeze(-1).flatten(1).norm(dim=1))
            direction = _unit(ahead + behind)
            x = x + h * scale * _unit(ahead - behind)
        return steepest.max().item()


def expected_slope(w1: float, weight: float) -> float:
    """Compute the slope of the critic that is optimal for the penalized loss: 1 + W1 / (2 lambda). It is not 1.

    Args:
        w1: the Wasserstein distance between real and fake, >= 0, in the units of the points.
        weight: lambda > 0, of a penalty with target 1.
    """
    _check(weight, w1=w1)
    return 1 + w1 / (2 * weight)


def corrected_wasserstein(gap: float, weight: float) -> float:
    """Compute W1 from the gap of a critic that has the expected slope: lambda (sqrt(1 + 2 K / lambda) - 1).

    Args:
        gap: K = E D(real) - E D(fake) >= 0. It is W1 times the critic's slope.
        weight: lambda > 0, of a penalty with target 1.
    """
    _check(weight, gap=gap)
    return 2 * gap / (1 + math.sqrt(1 + 2 * gap / weight))  # the same formula, without cancellation


def proved_wasserstein(
    score_real: Tensor, score_fake: Tensor, lipschitz: float, confidence: float = 0.95, seed: int = 0
) -> dict[str, float]:
    """Compute a lower bound of W1 from any critic, trained or not: (E D(real) - E D(fake)) / L <= W1.

    Args:
        score_real, score_fake: scores of held-out samples (N,) and (M,), N, M >= 2.
        lipschitz: L > 0, a certified upper bound of the critic's Lipschitz constant.
        confidence: level of the bootstrap interval (percentiles, over both samples).
        seed: of the bootstrap.

    Returns:
        bound, and the bootstrap interval low, high. bound <= W1 is proved for expectations; the interval
        shows the uncertainty, because expectations are estimated from samples. A bound at or below 0 says nothing.
    """
    for name, value, end in (("lipschitz", lipschitz, math.inf), ("confidence", confidence, 1)):
        if not 0 < value < end:
            raise ValueError(f"{name} = {value}: must be > 0 and < {end}")
    real, fake = (score.detach().double().flatten().cpu().numpy() / lipschitz for score in (score_real, score_fake))
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"{len(real)} real and {len(fake)} fake scores: an interval needs at least two of each")
    from scipy.stats import bootstrap  # here: the import takes seconds

    interval = bootstrap(
        (real, fake),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        confidence_level=confidence,
        method="percentile",
        batch=100,  # resamples at once, to limit the memory
        rng=seed,
    ).confidence_interval
    return {"bound": float(real.mean() - fake.mean()), "low": float(interval.low), "high": float(interval.high)}


@contextmanager
def _open(critic: Critic, x: Tensor, *y: Tensor, float64: bool) -> Iterator[tuple[Any, ...]]:
    """Yield the critic in eval mode with its points and labels, in float64 if asked for; see `use_eval_mode`."""
    check_points(x, *y)
    _check_finite(x)
    with torch.inference_mode(False):
        x, *y = (tensor.clone() if tensor.is_inference() else tensor.detach() for tensor in (x, *y))
        holders = find_state(critic, x[:2], *(labels[:2] for labels in y))
        with use_eval_mode(*holders):
            if float64:
                critic, x = convert_to_float64(critic, holders), x.double()
            with _explain_misfit(x):
                check_not_random(critic, x[:2], *(labels[:2] for labels in y))
            yield critic, x, *y


def _check_finite(x: Tensor) -> None:
    if not x.isfinite().all():
        raise ValueError("the points have NaN or inf in them: slopes and scores would say nothing. Remove these points")


def _gradient(critic: Critic, x: Tensor, *y: Tensor) -> Tensor:
    gradients = []
    for part, *labels in _chunks(x, *y):
        with torch.enable_grad(), _explain_misfit(x):
            part = part.detach().requires_grad_()
            gradients += differentiate(compute_scores(critic, part, *labels).sum(), [part], *SCORE)
    return torch.cat(gradients)


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.unsqueeze(-1).flatten(1), dim=1).view_as(x)


@contextmanager
def _explain_misfit(x: Tensor) -> Iterator[None]:
    """Turn an error in a forward into a ValueError that says that the points do not fit."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, LookupError, AssertionError) as error:
        hint = " (they are float64 here; a tensor that it makes itself may be float32)" * (x.dtype == torch.float64)
        shape = tuple(x.shape[1:])
        message = f"points of shape {shape} do not fit this critic{hint}: {str(error).removesuffix('.')}"
        raise ValueError(f"{message}. Labels are passed as y=(labels,)") from error


def _check(weight: float, **not_negative: float) -> None:
    if not weight > 0:
        raise ValueError(f"weight = {weight}: must be > 0; the formula is for a penalty with weight > 0")
    for name, value in not_negative.items():
        if not value >= 0:
            raise ValueError(
                f"{name} = {value}: must be >= 0, because it is a distance or a gap that estimates a distance"
            )
