"""Algorithm 1 as functions of tensors: no config, no logging, no device, no randomness of its own.

    repeat
        n_critic times:  critic_step(real, fake = G(z), eps)       lines 4-9
        once:            generator_step(z)                         lines 10-11

Who calls them draws the numbers, so that a resumed, a compiled and a spread-out run see the same ones.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wgangp.gradients import clip_by_norm_, gradient_norm_penalty
from wgangp.losses import Wasserstein
from wgangp.penalty import GradientPenalty, clip_weights_

__all__ = ["critic_objective", "critic_step", "differentiate", "generator_objective", "generator_step"]

Gradients = Callable[..., tuple[dict[str, Tensor], list[Tensor]]]  # a batch -> terms (), gradients by the parameters
PENALTY, LOSS = GradientPenalty(), Wasserstein()  # the paper's


def critic_objective(
    critic: nn.Module,
    real: Tensor,
    fake: Tensor,
    eps: Tensor | None = None,
    *,
    penalty: GradientPenalty = PENALTY,
    loss: Wasserstein = LOSS,
) -> dict[str, Tensor]:
    """What the critic minimises on one batch, and its parts, each a mean over the batch ().

    wasserstein     E D(x) - E D(x~), without the penalty: the critic's estimate, times its Lipschitz constant
    penalty         E weight (||grad D(x^)|| - target)^2
    critic_loss     E loss + penalty; -wasserstein + penalty for the Wasserstein loss. Paper: equation 3

    Args:
        real, fake: (B, *), as many of each; no gradient reaches what made them.
        eps: what penalty.draw gives; (B,) in [0, 1] for interpolates.
    """
    real, fake = real.detach(), fake.detach()
    # One pass where each score is of its own sample; without a penalty there may be a batch norm: a kind a batch.
    batches = [torch.cat([real, fake])] if penalty.weight > 0 else [real, fake]
    scores = torch.cat([critic(batch) for batch in batches]).to(real.dtype)  # in fp32, also under autocast
    score_real, score_fake = scores.split([len(real), len(fake)])
    penalised = penalty(critic, real, fake, eps).mean()
    return {
        "wasserstein": (score_real - score_fake).mean(),
        "penalty": penalised,
        "critic_loss": loss.critic(score_real, score_fake).mean() + penalised,
    }


def generator_objective(
    generator: nn.Module, critic: nn.Module, z: Tensor, *, loss: Wasserstein = LOSS
) -> dict[str, Tensor]:
    """What the generator minimises on noise z (B, latent_dim): generator_loss (), the mean over the batch."""
    return {"generator_loss": loss.generator(critic(generator(z)).to(z.dtype)).mean()}


def critic_step(
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    fake: Tensor,
    eps: Tensor | None = None,
    *,
    penalty: GradientPenalty = PENALTY,
    loss: Wasserstein = LOSS,
    clip_weights: float | None = None,
    clip_gradient_norm: float | None = None,
    regularize_gradient_norm: float = 0.0,
    gradients: Gradients | None = None,
) -> dict[str, Tensor]:
    """One update of the critic. Paper: Algorithm 1, lines 4-9.

    Args:
        optimizer: over the critic's parameters; nothing else moves.
        real, fake: (B, *); fake = G(z), with or without its graph.
        eps: what penalty.draw gives.
        clip_weights, clip_gradient_norm: bound of every weight after the step, threshold of the gradient's norm.
        regularize_gradient_norm: adds this times ||grad_theta critic_loss||^2 to what is minimised.
        gradients: what computes (real, fake, eps) -> terms, gradients instead (see compiled.py).

    Returns:
        the terms of `critic_objective` before the step, detached ().
    """
    if gradients is None:
        terms = critic_objective(critic, real, fake, eps, penalty=penalty, loss=loss)
        found = differentiate(terms["critic_loss"], critic, regularize_gradient_norm)
    else:
        terms, found = gradients(real, fake, eps)
    _descend(critic, found, optimizer, clip_gradient_norm)
    if clip_weights is not None:
        clip_weights_(critic, clip_weights)
    return {name: term.detach() for name, term in terms.items()}


def generator_step(
    generator: nn.Module,
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    z: Tensor,
    *,
    loss: Wasserstein = LOSS,
    clip_gradient_norm: float | None = None,
    regularize_gradient_norm: float = 0.0,
    gradients: Gradients | None = None,
) -> dict[str, Tensor]:
    """One update of the generator; generator_loss before it, detached (). Paper: Algorithm 1, lines 10-11.

    Args:
        optimizer: over the generator's parameters; nothing else moves, and the critic's gradients are not computed.
        z: noise (B, latent_dim).
        clip_gradient_norm, regularize_gradient_norm: as in `critic_step`, for the generator's gradient.
        gradients: what computes (z) -> terms, gradients instead.
    """
    if gradients is None:
        terms = generator_objective(generator, critic, z, loss=loss)
        found = differentiate(terms["generator_loss"], generator, regularize_gradient_norm)
    else:
        terms, found = gradients(z)
    _descend(generator, found, optimizer, clip_gradient_norm)
    return {name: term.detach() for name, term in terms.items()}


def differentiate(objective: Tensor, player: nn.Module, regularize_gradient_norm: float = 0.0) -> list[Tensor]:
    """grad_theta (objective + weight ||grad_theta objective||^2), for each trainable parameter of the player."""
    parameters = [p for p in player.parameters() if p.requires_grad]
    if regularize_gradient_norm:
        objective = objective + gradient_norm_penalty(objective, parameters, regularize_gradient_norm)
    return list(torch.autograd.grad(objective, parameters, materialize_grads=True))


def _descend(
    player: nn.Module, gradients: list[Tensor], optimizer: torch.optim.Optimizer, clip_gradient_norm: float | None
) -> None:
    """theta <- optimizer(theta, gradient), for the player's parameters and no others."""
    parameters = [p for p in player.parameters() if p.requires_grad]
    for p, gradient in zip(parameters, gradients, strict=True):
        # A fused optimiser reads the gradient with the parameter's strides; a convolution's comes with its own.
        p.grad = gradient if gradient.stride() == p.stride() else torch.empty_like(p).copy_(gradient)
    if clip_gradient_norm is not None:
        clip_by_norm_(parameters, clip_gradient_norm)
    optimizer.step()
    optimizer.zero_grad()  # freed, so that they do not lie beside the next ones
