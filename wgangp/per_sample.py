"""The check that every score belongs to its own sample: without it a gradient penalty has no meaning."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wgangp.checks import (
    SCORE,
    call_derivative,
    check_not_wrapped,
    check_points,
    compute_scores,
    differentiate,
    refuse_constant_slope,
    use_math_attention,
)
from wgangp.precision import product_precision
from wgangp.state import digest_random_state, find_state, preserve_state

__all__ = ["check_per_sample"]


def check_per_sample(critic: Callable[..., Tensor], x: Tensor, *, y: tuple[Tensor, ...] = ()) -> None:
    """Raise ValueError if a gradient penalty is not defined for the critic: a score depends on another sample.

    The penalty has no meaning for a critic that maps a whole batch to a batch of scores (Paper: section 4, "No critic
    batch normalization"), and it needs second derivatives. For every pair i, j the check computes d score_i / d x_j,
    which must be 0, and score_i with another x_j, which must not change. Besides, score and gradient of each sample
    must be the same alone, in a small batch of its own copies, and in a batch twice as large (a step joins real and
    fake samples), unless the critic draws random numbers (dropout draws per sample). Other sizes are not tried.

    Args:
        critic: (x, *y) -> (B,) or (B, 1). Copies are used: its state does not change, nor do torch's random numbers.
        x: points (B, *), B >= 2.
        y: (labels (B,),), if the critic takes labels.

    Raises:
        ValueError: as above, and as in `gradients.gradient_norm`.
    """
    check_points(x, *y)
    if isinstance(critic, nn.Module):
        check_not_wrapped(critic)
    count = len(x)
    if count < 2:
        raise ValueError(f"x has {count} sample(s): at least two are needed to see if scores depend on each other")
    with torch.inference_mode(False):  # tensors that were made in it have no gradient, and clones of them have one
        x, *y = (tensor.detach().clone() for tensor in (x, *y))
        holders = find_state(critic, x, *y)
        _check(critic, holders, x, *y)


def _check(critic: Callable[..., Tensor], holders: list[Any], x: Tensor, *y: Tensor) -> None:
    count, evaluate = len(x), partial(_evaluate, critic, holders)
    scores, gradient, random = evaluate(x, *y, second=True)
    if not scores.isfinite().all():
        raise ValueError("the critic's score is NaN or infinite. Use finite points and weights")
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (x, scores))
    largest = scores.abs().max()
    if not (evaluate(x, *y)[0] - scores).abs().max() <= 1000 * eps * largest:
        raise ValueError(
            "the critic draws random numbers that the check cannot draw again, so that it cannot compare scores: draw"
            " them from torch's global generator, or from one that is an attribute of a module"
        )
    positions = torch.arange(count, device=x.device)
    for bit in range((count - 1).bit_length()):  # the numbers of two samples differ in at least one bit
        for own in (positions >> bit & 1 == 0, positions >> bit & 1 == 1):
            cross_gradient = evaluate(x, *y, rows=own)[1][~own]
            other_batch = [torch.where(own.view(-1, *[1] * (t.ndim - 1)), t, t.roll(1, 0)) for t in (x, *y)]
            change = (evaluate(*other_batch)[0] - scores)[own].abs().max()
            if cross_gradient.ne(0).any() or not change <= 1000 * eps * largest:  # NaN counts as dependence
                raise ValueError(
                    "the critic mixes the samples of a batch (batch norm?): score i changes with x_j, so a gradient"
                    " penalty is not defined. Use a norm within each sample (layer norm), or penalty.weight=0"
                )
    if random:
        return
    # Indices of a batch, and the samples to compare.
    batches = [(torch.full((size,), i), slice(i, i + 1)) for i in range(count) for size in (2 + (count == 2), 1)]
    batches.append((torch.arange(2 * count) % count, slice(0, count)))
    for indices, own in batches:
        alone = len(indices) == 1
        try:
            results = evaluate(*(t[indices.to(t.device)] for t in (x, *y)), alone=alone)
        except (RuntimeError, ValueError, LookupError) as error:
            if alone:  # a critic need not work for one sample
                continue
            raise ValueError(f"the critic works for batches of one size only: {error}") from error
        changes = (a[: own.stop - own.start] - b[own] for a, b in zip(results[:2], (scores, gradient), strict=True))
        change, turn, norm = (t.unsqueeze(-1).flatten(1).norm(dim=1) for t in (*changes, gradient[own]))
        wrong = ~((change <= eps**0.5 * largest) & (turn <= 0.05 * norm))  # NaN is wrong, too
        if wrong.any():
            raise ValueError(
                f"the score of sample {positions[own][wrong][0]}, or its gradient, depends on the size of the batch or"
                " the place in it, so a gradient penalty is not defined. Let the critic treat every sample by itself,"
                " or use penalty.weight=0"
            )


def _evaluate(
    critic: Callable[..., Tensor],
    holders: list[Any],
    x: Tensor,
    *y: Tensor,
    rows: Tensor | None = None,
    second: bool = False,
    alone: bool = False,
) -> tuple[Tensor, Tensor, bool]:
    """Evaluate the critic, always from the same state, and with the second derivative of a step.

    alone: of one sample, the score may be a tensor (), as squeeze() makes it.

    Returns:
        scores (B,); the gradient (B, *) of their sum, or of a weighted sum over rows (a mask); whether random numbers
        were drawn.
    """
    with (
        preserve_state(*holders),
        torch.enable_grad(),
        use_math_attention(True),
        product_precision("fp32"),
    ):
        before, x = digest_random_state(*holders), x.clone().requires_grad_()
        modules = [holder for holder in holders if isinstance(holder, nn.Module)]
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        scores = compute_scores((lambda *batch: critic(*batch).reshape(1)) if alone else critic, x, *y)
        if second:
            _watch_functions(scores)
        random = digest_random_state(*holders) != before
        weights = 1 / (1 + torch.arange(len(x), device=x.device) % 7)  # nothing cancels
        weights = torch.ones((), device=x.device, requires_grad=second) if rows is None else rows * weights
        (gradient,) = differentiate((weights * scores).sum(), [x], *SCORE, create_graph=second)
        if second:
            if not gradient.requires_grad:
                refuse_constant_slope()
            _, *of_weights = call_derivative(gradient.square().sum(), [x, *parameters], SCORE[0])
            if parameters and all(g is None for g in of_weights):
                refuse_constant_slope()
    return scores.detach(), gradient.detach(), random


def _watch_functions(scores: Tensor) -> None:
    """Let a backward pass raise ValueError where an autograd.Function returns a gradient without its graph.

    torch.autograd.grad leaves the second derivative of such a function out, without an error.
    """
    nodes, seen = [scores.grad_fn], {None}
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            nodes += [parent for parent, _ in node.next_functions]
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                node.register_hook(partial(_check_graph, node.name()))


def _check_graph(name: str, gradients: tuple[Tensor | None, ...], _: Any) -> None:
    for gradient in gradients:
        lost = gradient is not None and (gradient.grad_fn is None or gradient.grad_fn.name().endswith("::Error"))
        if lost and gradient.any():  # Error: once_differentiable
            raise ValueError(
                f"{name}, the backward of a torch.autograd.Function in the critic, cannot be differentiated, and the"
                " penalty needs its derivative: write it with differentiable operations, without once_differentiable"
            )
