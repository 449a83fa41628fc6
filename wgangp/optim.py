"""Optimizers that torch does not have."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from wgangp.gradients import check_positive, total_norm

__all__ = ["NormalizedGradientDescent"]


class NormalizedGradientDescent(torch.optim.Optimizer):
    """theta <- theta - lr * g / ||g||_2: every step has the length lr. A zero gradient moves nothing.

    g is the gradient of all parameters of all parameter groups together. Steps do not get shorter near a minimum: the
    optimizer ends up circling it within O(lr), unless lr decays.

    Args:
        params: as for any torch optimizer.
        lr: length of a step, in the units of theta, > 0.

    Paper: Hazan, Levy and Shalev-Shwartz 2015 (quasi-convex functions; the stochastic form needs large batches).
    """

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        check_positive("lr", lr)
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Take one step. A closure, if given, first computes the loss and its gradients."""
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
