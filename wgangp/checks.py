"""Checks of a critic before it is trained with a penalty."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["check_per_sample"]


def check_per_sample(critic: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Raise ValueError if the score of one sample depends on another sample, as it does with batch norm.

    The penalty is on the gradient of each score with respect to its own sample. It has no meaning for a critic that
    maps a whole batch to a batch of scores (Paper: section 4, "No critic batch normalization"). The check computes
    d score_i / d x_0, which must be 0 for every i > 0.

    Args:
        critic: (B, *) -> (B,) or (B, 1). A copy is used, so its running statistics do not change.
        x: points (B, *), B >= 2.
    """
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} sample(s): at least two are needed to see if scores depend on each other")
    critic = copy.deepcopy(critic)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        others = critic(x)[1:].sum()
    if not others.requires_grad:
        raise ValueError("the critic's score has no graph: remove no_grad(), detach() or .data from its forward")
    (gradient,) = torch.autograd.grad(others, x, materialize_grads=True)
    if gradient[0].ne(0).any():  # NaN counts as dependence
        raise ValueError(
            "the critic mixes the samples of a batch (batch norm?): score i changes with x_j, so a gradient penalty is"
            " not defined. Use a critic without batch norm, a norm within each sample (layer norm), or"
            " penalty.weight=0"
        )
