"""The textbook loop of WGAN-GP in plain torch, with one mistake at a time. The figure `mistakes` measures what they do.

The mistakes are in VERSIONS; results/mistakes/README.md says where they were seen. None of this is used for anything
else: the penalty of this package is wgangp/penalty.py. All samples are pictures (B, C, H, W). A point of the plane is a
picture of one channel, one row and two columns, so that a line that is wrong for pictures is wrong for points, too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wgangp.figures.common import build_optimizer
from wgangp.seeds import draw_latent, rng_for

__all__ = ["LAMBDA", "VERSIONS", "Version", "insert_batch_norm", "penalize", "to_pictures", "train_pair"]

LAMBDA = 10.0


@dataclass(frozen=True)
class Version:
    """One version of the code: right, or with one mistake. The defaults are right.

    Args:
        norm: gradients (B, C, H, W) -> norms.
        count_norms: (C, H, W) -> k, the number of norms per sample. If all of them are 1, the slope over all axes is
            sqrt(k). None: the slope is not pulled to a number.
        shape_eps: samples (B, C, H, W) -> the shape of eps.
        create_graph: of torch.autograd.grad. Without it the derivative of the penalty with respect to the weights is 0.
        mix_scores: eps mixes scores, not points. Their derivative with respect to themselves is 1, and the penalty 0.
        sum_loss: the loss is the sum over the batch, while the penalty is a mean.
        batch_norm: there is batch norm in the critic.
        in_generator: the penalty is also a part of the generator's loss.
    """

    norm: Callable[[Tensor], Tensor] = lambda gradient: gradient.flatten(1).norm(2, dim=1)
    count_norms: Callable[[tuple[int, ...]], int] | None = lambda shape: 1
    shape_eps: Callable[[Tensor], tuple[int, ...]] = lambda x: (len(x), 1, 1, 1)
    create_graph: bool = True
    mix_scores: bool = False
    sum_loss: bool = False
    batch_norm: bool = False
    in_generator: bool = False

    def expect_slope(self, shape: tuple[int, ...], batch_size: int, distance: float) -> float | None:
        """Compute the best slope of a linear critic, sqrt(k) + k W1 / (2 lambda); for k = 1 see `expected_slope`.

        The mean of k penalties has the weight lambda / k for each of them. A loss that is summed over the batch is
        batch_size times as large, as if lambda were divided by batch_size.
        """
        if self.count_norms is None:
            return None
        k, weight = self.count_norms(shape), LAMBDA / batch_size if self.sum_loss else LAMBDA
        return math.sqrt(k) + k * distance / (2 * weight)


VERSIONS = {
    "right": Version(),
    "norm over axis 1": Version(lambda gradient: gradient.norm(2, dim=1), lambda shape: shape[1] * shape[2]),
    "norm per column": Version(lambda gradient: gradient.norm(2, dim=2), lambda shape: shape[0] * shape[2]),
    "root of the mean square": Version(lambda gradient: gradient.flatten(1).square().mean(1).sqrt(), math.prod),
    "root without care at 0": Version(lambda gradient: gradient.flatten(1).square().sum(1).sqrt()),
    "one eps per batch": Version(shape_eps=lambda x: (1, 1, 1, 1)),
    "one eps per element": Version(shape_eps=lambda x: x.shape),
    "no create_graph": Version(create_graph=False, count_norms=None),
    "mixed scores": Version(mix_scores=True, count_norms=None),
    "batch norm in the critic": Version(batch_norm=True, count_norms=None),
    "loss summed over the batch": Version(sum_loss=True),
    "penalty in the generator's loss": Version(in_generator=True),
}


def penalize(version: Version, critic: nn.Module, real: Tensor, fake: Tensor, rng: torch.Generator) -> Tensor:
    """Compute the penalty () of a version of the code."""
    eps = torch.rand(version.shape_eps(real), generator=rng, device=real.device)
    if version.mix_scores:
        x = (eps.flatten() * critic(real) + (1 - eps.flatten()) * critic(fake)).detach()[:, None].requires_grad_()
        score = x
    else:
        x = (eps * real + (1 - eps) * fake).requires_grad_()
        score = critic(x)
    (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=version.create_graph)
    return LAMBDA * (version.norm(gradient) - 1).square().mean()


def insert_batch_norm(layers: nn.Sequential) -> nn.Sequential:
    """Return the layers with batch norm after every linear or convolutional layer but the last."""
    result: list[nn.Module] = []
    for layer in layers[:-1]:
        result.append(layer)
        if isinstance(layer, nn.Linear):
            result.append(nn.BatchNorm1d(layer.out_features))
        elif isinstance(layer, nn.Conv2d):
            result.append(nn.BatchNorm2d(layer.out_channels))
    return nn.Sequential(*result, layers[-1])


def train_pair(
    version: Version, generator: nn.Module, critic: nn.Module, data: Any, steps: int, lr: float, size: int, seed: int
) -> int | None:
    """Train both networks for `steps` generator updates, with five critic updates each and batches of `size`.

    Training stops at a loss that is not finite.

    Args:
        critic: pictures (B, C, H, W) -> scores (B,).
        data: as in wgangp/data/__init__.py.

    Returns:
        the number of updates after which a loss or a weight is not finite; None if all are finite.
    """
    device = next(critic.parameters()).device
    optim_generator, optim_critic = (build_optimizer(network, lr, clipping=False) for network in (generator, critic))
    for step in range(steps):
        for k in range(5 * step, 5 * step + 5):
            real = to_pictures(*data.batch(k, size, seed))
            fake = to_pictures(generator(*draw_latent(generator, size, seed, k, "critic", device)).detach())
            gap = critic(real) - critic(fake)
            penalty = penalize(version, critic, real, fake, rng_for(seed, k, "eps", device))
            critic_loss = -(gap.sum() if version.sum_loss else gap.mean()) + penalty
            optim_critic.zero_grad()
            critic_loss.backward()
            optim_critic.step()
        fake = to_pictures(generator(*draw_latent(generator, size, seed, step, "generator", device)))
        generator_loss = -critic(fake).mean()
        if version.in_generator:
            rng = rng_for(seed, step, "eps/generator", device)
            generator_loss = generator_loss + penalize(version, critic, real, fake, rng)
        optim_generator.zero_grad()
        generator_loss.backward()
        optim_generator.step()
        if not (critic_loss.isfinite() and generator_loss.isfinite()):
            return step + 1
    finite = all(p.isfinite().all() for network in (generator, critic) for p in network.parameters())
    return None if finite else steps


def to_pictures(x: Tensor) -> Tensor:
    """Return samples as pictures (B, C, H, W): points (B, 2) as (B, 1, 1, 2)."""
    return x if x.ndim == 4 else x.view(-1, 1, 1, x.shape[1])
