"""The gradient norm and what is done with it. No GAN in here.

    slope           ||grad_x f(x_i)||_2           one number a sample         gradient_norm
    gradient norm   ||g||_p, g all tensors as one vector                      total_norm
    clipping        g <- g * min(1, tau / ||g||)                              clip_by_norm_
    normalised      theta <- theta - lr * g / ||g||                           NormalizedGradientDescent
    penalty         J + weight * ||grad_theta J||^2                           gradient_norm_penalty

The first is with respect to the *input* (what WGAN-GP penalises), the others with respect to the *parameters*.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

__all__ = ["NormalizedGradientDescent", "clip_by_norm_", "gradient_norm", "gradient_norm_penalty", "total_norm"]


def gradient_norm(critic: Callable[[Tensor], Tensor], x: Tensor, *, create_graph: bool = False) -> Tensor:
    """The slope of the critic at every point: ||grad_x D(x_i)||_2, over all axes of x_i together.

    Args:
        critic: any differentiable function (B, *) -> (B,), or (B, 1). Score i must depend on x_i alone: the gradient
            of the summed scores is then the B gradients at once (see `penalty.check_per_sample`).
        x: points (B, *), of any rank. Detached: nothing flows back to what made them.
        create_graph: keep the graph, so that the slopes can be differentiated with respect to the critic.

    Returns:
        slopes (B,). Where the critic is flat they are 0, and so are their derivatives of every order: never NaN.

    Raises:
        ValueError: not one score a sample, or scores that were computed without a graph.

    Paper: ||grad_x^ D(x^)||_2, section 4.
    """
    if torch.compiler.is_compiling():  # the only form that a compiler differentiates again, and only as a whole step
        return _root(torch.func.grad(lambda x: critic(x).sum())(x.detach()))
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        score = critic(x)
        if score.ndim == 0 or len(score) != len(x) or score.numel() != len(x):
            raise ValueError(
                f"a critic gives one score a sample, (B,) or (B, 1): got {tuple(score.shape)} for x {tuple(x.shape)}."
                " Reduce everything but the first axis, e.g. score.flatten(1).mean(1)"
            )
        if not score.requires_grad:
            raise ValueError(
                "the critic's score carries no graph, so it has no gradient: remove no_grad(), detach() or .data from"
                " the critic's forward"
            )
        (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=create_graph, materialize_grads=True)
    return _root(gradient)


def _root(gradient: Tensor) -> Tensor:
    squared = gradient.unsqueeze(-1).flatten(1).square().sum(dim=1)
    flat = squared == 0  # kept away from the root, whose derivatives there are not finite (vector_norm's second is NaN)
    return torch.where(flat, 1, squared).sqrt().masked_fill(flat, 0)


def total_norm(tensors: Iterable[Tensor | None], ord: float = 2.0) -> Tensor:
    """||g||_p of all tensors together, as one long vector (), 0 for none: of a vector, or of a gradient, p.grad.

    Args:
        tensors: any shapes; None (a parameter that got no gradient) counts as zeros.
        ord: p >= 1, or inf for the largest entry.
    """
    if not ord >= 1:
        raise ValueError(f"ord = {ord}: a norm needs p >= 1 (or inf)")
    return get_total_norm([t for t in tensors if t is not None], norm_type=ord)


@torch.no_grad()
def clip_by_norm_(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Clip the gradient J of all parameters together by its norm, in place.

    J stays as it is, bit for bit, when ||J||_2 <= max_norm; else J becomes max_norm / ||J||_2 * J.

    Args:
        parameters: an iterable of parameters; their .grad is changed.
        max_norm: the threshold tau > 0.

    Returns:
        the norm before clipping (), on the device: nothing is synchronised.

    Paper: Pascanu, Mikolov and Bengio 2013, Algorithm 1. Differs: from torch.nn.utils.clip_grad_norm_, which divides
    by ||J|| + 1e-6, so that its result is always a little short of the threshold.
    """
    _positive("max_norm", max_norm)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = total_norm(gradients)
    scale = torch.where(norm > max_norm, max_norm / norm, torch.ones_like(norm))
    for gradient in gradients:
        gradient.mul_(scale.to(gradient.device))
    return norm


class NormalizedGradientDescent(torch.optim.Optimizer):
    """theta <- theta - lr * g / ||g||_2: every step has length lr, a zero gradient moves nothing.

    g is the gradient of all parameters of all groups together. Steps do not shrink near a minimum: it ends up going
    around it within O(lr) unless lr decays.

    Args:
        params: as for any torch optimiser.
        lr: the length of a step, in the units of theta, > 0.

    Paper: Hazan, Levy and Shalev-Shwartz 2015 (quasi-convex functions; the stochastic form wants large batches).
    """

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        _positive("lr", lr)
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step; closure, if there is one, computes the loss and its gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        norm = total_norm(p.grad for group in self.param_groups for p in group["params"])
        norm = torch.where(norm > 0, norm, torch.ones_like(norm))
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad / norm.to(p.device) * group["lr"])
        return loss


def gradient_norm_penalty(loss: Tensor, params: Iterable[Tensor], weight: float) -> Tensor:
    """weight * ||grad_params loss||_2^2 (), differentiable: minimise loss + this to prefer flat regions.

    Its own gradient is 2 * weight * H grad, H the Hessian. Parameters that the loss does not use count as zeros.

    Args:
        loss: (), with its graph; the graph is kept.
        params: what to differentiate by.
        weight: >= 0.

    Paper: Barrett and Dherin 2021, explicit gradient regularisation.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight = {weight}: the weight of a penalty is >= 0 and finite")
    gradients = torch.autograd.grad(loss, list(params), create_graph=True, materialize_grads=True)
    return weight * sum(g.square().sum() for g in gradients)


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} = {value}: must be > 0")
