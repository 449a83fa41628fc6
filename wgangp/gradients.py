"""The gradient norm and its uses. There is no GAN in this file.

    slope                  ||grad_x f(x_i)||_2, one value per sample             gradient_norm
    norm of a gradient     ||g||_p, all tensors taken as one vector              total_norm
    clipping by norm       g <- g * min(1, tau / ||g||)                          clip_by_norm_
    gradient norm penalty  J + weight * ||grad_theta J||^2                       gradient_norm_penalty

The slope uses the gradient with respect to the *input*, the other three that with respect to the *parameters*.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from wgangp import checks
from wgangp.piecewise import skip_second_derivatives

__all__ = ["clip_by_norm_", "gradient_norm", "gradient_norm_penalty", "total_norm"]


def gradient_norm(critic: Callable[..., Tensor], x: Tensor, *y: Tensor, create_graph: bool = False) -> Tensor:
    """Compute the slope of the critic at every point: ||grad_x D(x_i)||_2, taken over all axes of x_i together.

    Args:
        critic: any differentiable function (x, *y) -> (B,) or (B, 1). Score i must depend on x_i alone: then the
            gradient of the sum of the scores holds the B gradients (see `check_per_sample`).
        x: points (B, *), of any rank. They are detached: no gradient flows back to the network that made them.
        y: labels of the points, if the critic takes labels.
        create_graph: keep the graph, so that the slopes can be differentiated with respect to the critic's parameters.

    Returns:
        slopes (B,), in float32 or, for points in float64, float64. Where the critic is flat, the slope and all its
        derivatives are 0. Where the score is NaN or infinite, the slope is NaN.

    Raises:
        ValueError: as in `checks.compute_scores`; the graph from x to the score is cut.

    Paper: ||grad_x^ D(x^)||_2, section 4.
    """

    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        scores = checks.compute_scores(skip_second_derivatives(critic) if create_graph else critic, x, *y)
        checks.check_graph(scores, *checks.SCORE)
        return scores.sum(), scores

    checks.check_points(x, *y)
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None:
        # the only form that torch.compile and the transforms of torch.func can differentiate again
        with checks.use_math_attention(create_graph):
            gradient, scores = torch.func.grad(total, has_aux=True)(x.detach())
    else:
        with torch.inference_mode(False), torch.enable_grad(), checks.use_math_attention(create_graph):
            x = (x.clone() if x.is_inference() else x).detach().requires_grad_()
            value, scores = total(x)
            (gradient,) = checks.differentiate(value, [x], *checks.SCORE, create_graph=create_graph)
    return _norm_per_sample(gradient, scores.detach())


def _norm_per_sample(gradient: Tensor, scores: Tensor) -> Tensor:
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))  # squares leave the range of float16
    squared = gradient.unsqueeze(-1).flatten(1).square().sum(dim=1)
    flat = squared == 0  # the derivatives of the root are not finite at 0; the second one of vector_norm is NaN there
    slopes = torch.where(flat, 1, squared).sqrt().masked_fill(flat, 0)
    return slopes + (0 * scores).to(slopes.dtype)  # NaN where a score is: a ReLU has the slope 0 at NaN


def total_norm(tensors: Iterable[Tensor | None], ord: float = 2.0) -> Tensor:
    """Compute ||g||_p () of all tensors together, taken as one long vector. In float32 or float64; 0 without tensors.

    Args:
        tensors: of any shape, for example the .grad of parameters. None (no gradient) counts as zeros.
        ord: p >= 1, or inf for the largest absolute value.
    """
    if not ord >= 1:
        raise ValueError(f"ord = {ord}: a norm needs p >= 1 (or inf)")
    return get_total_norm([t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors if t is not None], ord)


@torch.no_grad()
def clip_by_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    """Clip the gradient g of all parameters together by its norm, in place.

    If ||g||_2 <= max_norm, g stays as it is, bit for bit. Otherwise g becomes max_norm / ||g||_2 * g.

    Args:
        parameters: an iterable of parameters, or one; their .grad is changed.
        max_norm: the threshold tau > 0.

    Returns:
        the norm before clipping (), on the device of the gradients. The call does not wait for the device.

    Paper: Pascanu, Mikolov and Bengio 2013, Algorithm 1. Differs: torch.nn.utils.clip_grad_norm_ divides by
    ||g|| + 1e-6, so its result is always slightly below the threshold.
    """
    checks.check_positive("max_norm", max_norm)
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = total_norm(gradients)
    scale = torch.where(norm > max_norm, max_norm / norm, torch.ones_like(norm))
    for gradient in gradients:
        gradient.mul_(scale.to(gradient.device))
    return norm


def gradient_norm_penalty(loss: Tensor, params: Tensor | Iterable[Tensor], weight: float) -> Tensor:
    """Compute weight * ||grad_params loss||_2^2 (), differentiable. Add it to the loss to prefer flat regions.

    Its own gradient is 2 * weight * H grad, with the Hessian H. Unused parameters count as 0; ValueError if all are.

    Args:
        loss: (), with its graph; the graph is kept.
        params: the parameters to differentiate with respect to, or one.
        weight: >= 0.

    Paper: Barrett and Dherin 2021, explicit gradient regularization.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight = {weight}: the weight of a penalty must be >= 0 and finite")
    params = [params] if isinstance(params, Tensor) else list(params)
    gradients = checks.differentiate(loss, params, "the loss", "params", create_graph=True)
    return weight * sum(g.to(torch.promote_types(g.dtype, torch.float32)).square().sum() for g in gradients)
