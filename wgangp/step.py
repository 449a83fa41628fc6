"""Algorithm 1 as functions of tensors: no config, no logging, no device, no random numbers of its own.

    repeat
        n_critic times:  critic_step(real, fake = G(z), eps)       lines 4-9
        once:            generator_step(z)                         lines 10-11

A step has two halves: `critic_gradients` or `generator_gradients` computes, `descend` (optim.py) updates. The training
loop calls the halves, because the first may be compiled or averaged over ranks. The two steps are for your own loop.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from wgangp import checks
from wgangp.accumulate import accumulate_gradients, check_parts
from wgangp.gradients import gradient_norm_penalty
from wgangp.losses import Wasserstein
from wgangp.optim import descend
from wgangp.penalty import GradientPenalty, clip_weights_

__all__ = [
    "critic_gradients",
    "critic_objective",
    "critic_step",
    "descend",
    "generator_gradients",
    "generator_objective",
    "generator_step",
]

PENALTY, LOSS = GradientPenalty(), Wasserstein()  # those of the paper
Terms = dict[str, Tensor]  # name -> mean over the batch ()


def critic_objective(
    critic: Callable[..., Any],
    real: Tensor,
    fake: Tensor,
    eps: Tensor | None = None,
    *y: Tensor,
    penalty: GradientPenalty = PENALTY,
    loss: Wasserstein = LOSS,
) -> Terms:
    """Compute the terms of the critic on one batch: those of the loss, the penalty, and the objective critic_loss.

        critic_loss = E loss + E weight (||grad D(x^)|| - target)^2           Paper: equation 3

    For the Wasserstein loss there is also wasserstein = E D(x) - E D(x~), without the penalty.

    Args:
        critic: (x, *y) -> scores (B,), or what the loss reads.
        real, fake: (B, *), the same number of each. No gradient reaches the network that made them.
        eps: the result of penalty.draw; (B,) in [0, 1] for interpolates.
        y: labels (B,), of both the real and the fake samples, if the critic has classes.

    Returns:
        the terms, each a mean over the batch (), in the precision of real, and at least in float32.

    Raises:
        ValueError: as in `checks.compute_scores`; real and fake do not have the same shape.
    """
    checks.check_pairs(real, fake, *y)
    real, fake = real.detach(), fake.detach()
    # With a penalty each score depends on its own sample alone, so that one pass over both is exact. Without one the
    # critic may have batch norm, and real and fake samples must go through it separately.
    if penalty.weight > 0:
        labels = (torch.cat([each, each]) for each in y)
        outputs = checks.call_critic(critic, torch.cat([real, fake]), *labels, **loss.critic_options)
        halves = tree_map(lambda x: x[: len(real)], outputs), tree_map(lambda x: x[len(real) :], outputs)
    else:
        halves = tuple(checks.call_critic(critic, x, *y, **loss.critic_options) for x in (real, fake))
    means = checks.average_terms(loss.critic(*_convert(halves, real.dtype), *y), "critic_loss")
    means["penalty"] = penalty(critic, real, fake, eps, *y).mean()
    means["critic_loss"] = means.pop("critic_loss") + means["penalty"]  # pop: it stands last
    return means


def generator_objective(
    generator: Callable[..., Tensor], critic: Callable[..., Any], z: Tensor, *y: Tensor, loss: Wasserstein = LOSS
) -> Terms:
    """Compute the terms of the generator on noise z (B, latent_dim) and labels y (B,): means over the batch ()."""
    outputs = checks.call_critic(critic, checks.call_generator(generator, z, *y), *y, **loss.critic_options)
    return checks.average_terms(loss.generator(_convert(outputs, z.dtype), *y), "generator_loss")


def critic_gradients(
    critic: nn.Module,
    real: Tensor,
    fake: Tensor,
    eps: Tensor | None = None,
    *y: Tensor,
    penalty: GradientPenalty = PENALTY,
    loss: Wasserstein = LOSS,
    regularize_gradient_norm: float = 0.0,
) -> tuple[Terms, list[Tensor]]:
    """The first half of a critic step: the terms of `critic_objective`, and the gradient of critic_loss.

    Args:
        regularize_gradient_norm: weight of ||grad_theta critic_loss||^2, which is added to critic_loss.

    Returns:
        the terms (), detached; one gradient per trainable parameter of the critic.
    """
    checks.check_not_wrapped(critic)
    with checks.use_math_attention(regularize_gradient_norm > 0):
        terms = critic_objective(critic, real, fake, eps, *y, penalty=penalty, loss=loss)
    return _differentiate(terms, "critic_loss", critic, regularize_gradient_norm)


def generator_gradients(
    generator: nn.Module,
    critic: nn.Module,
    z: Tensor,
    *y: Tensor,
    loss: Wasserstein = LOSS,
    regularize_gradient_norm: float = 0.0,
) -> tuple[Terms, list[Tensor]]:
    """The first half of a generator step, as `critic_gradients`. The critic gets no gradients."""
    checks.check_not_wrapped(generator, critic)
    with checks.use_math_attention(regularize_gradient_norm > 0):
        terms = generator_objective(generator, critic, z, *y, loss=loss)
    return _differentiate(terms, "generator_loss", generator, regularize_gradient_norm)


def critic_step(
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    fake: Tensor,
    eps: Tensor | None = None,
    *labels: Tensor,
    y: tuple[Tensor, ...] = (),
    penalty: GradientPenalty = PENALTY,
    loss: Wasserstein = LOSS,
    clip_weights: float | None = None,
    clip_gradient_norm: float | None = None,
    regularize_gradient_norm: float = 0.0,
    accumulate: int = 1,
) -> Terms:
    """Update the critic once. Paper: Algorithm 1, lines 4-9.

    Args:
        optimizer: of the critic's parameters. Nothing else is updated.
        real, fake, eps: as in `critic_objective`; fake = G(z), with or without its graph.
        labels, y: (B,), of both the real and the fake samples, after eps or as y=(labels,).
        clip_weights: bound of every weight after the update.
        clip_gradient_norm, regularize_gradient_norm: as in `descend` and `critic_gradients`.
        accumulate: parts in which the batch is computed, one after another, to need less memory: a divisor of B.

    Returns:
        the terms of `critic_objective` before the update, detached ().
    """
    y = (*labels, *y)
    checks.check_pairs(real, fake, *y)
    check_parts(accumulate, regularize_gradient_norm)
    checks.check_positive("clip_weights", 1 if clip_weights is None else clip_weights)
    if accumulate > 1 and eps is None:
        eps = penalty.draw(real)  # of the whole batch, as with one part
    objective = {"penalty": penalty, "loss": loss, "regularize_gradient_norm": regularize_gradient_norm}
    compute = partial(critic_gradients, critic, **objective)
    terms, gradients = accumulate_gradients(compute, accumulate, real, fake, eps, *y)
    descend(critic, gradients, optimizer, clip_gradient_norm)
    if clip_weights is not None:
        clip_weights_(critic, clip_weights)
    return terms


def generator_step(
    generator: nn.Module,
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    z: Tensor,
    *labels: Tensor,
    y: tuple[Tensor, ...] = (),
    loss: Wasserstein = LOSS,
    clip_gradient_norm: float | None = None,
    regularize_gradient_norm: float = 0.0,
    accumulate: int = 1,
) -> Terms:
    """Update the generator once, as `critic_step` does the critic. Paper: Algorithm 1, lines 10-11.

    Args:
        optimizer: of the generator's parameters. Nothing else is updated.
        z, labels, y: noise (B, latent_dim), labels (B,).
    """
    check_parts(accumulate, regularize_gradient_norm)
    objective = {"loss": loss, "regularize_gradient_norm": regularize_gradient_norm}
    compute = partial(generator_gradients, generator, critic, **objective)
    terms, gradients = accumulate_gradients(compute, accumulate, z, *labels, *y)
    descend(generator, gradients, optimizer, clip_gradient_norm)
    return terms


def _differentiate(
    terms: Terms, minimized: str, network: nn.Module, regularize_gradient_norm: float
) -> tuple[Terms, list[Tensor]]:
    """The terms, detached, and grad_theta (objective + weight ||grad_theta objective||^2), one per parameter."""
    parameters, objective = [p for p in network.parameters() if p.requires_grad], terms[minimized]
    if regularize_gradient_norm:
        objective = objective + gradient_norm_penalty(objective, parameters, regularize_gradient_norm)
    gradients = checks.differentiate(objective, parameters, minimized, "a trainable parameter of the network")
    return {name: term.detach() for name, term in terms.items()}, gradients


def _convert(outputs: Any, dtype: torch.dtype) -> Any:
    dtype = torch.promote_types(dtype, torch.float32)  # means are in float32 at least, also under autocast
    return tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, outputs)
