"""Everything that asks the critic to be 1-Lipschitz: the gradient penalty, and the weight clipping it replaced.

    penalty_i = weight * (||grad_x^ D(x^_i)||_2 - target)^2                 two-sided
    penalty_i = weight * max(0, ||grad_x^ D(x^_i)||_2 - target)^2           one-sided
    x^_i      = eps_i x_i + (1 - eps_i) x~_i,  eps_i ~ U[0, 1]              x real, x~ fake, one eps a sample

Weight clipping bounds the slope by a number that nobody knows; the penalty asks for a slope of 1.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wgangp.gradients import gradient_norm

__all__ = ["GradientPenalty", "check_per_sample", "clip_weights_", "gradient_penalty", "interpolate"]

SIDES = ("two", "one")
POINTS = ("interpolates", "real", "fake", "perturbed")


def interpolate(real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    """x^ = eps x + (1 - eps) x~ (B, *): a point on the segment between each real point and its fake partner.

    Args:
        real, fake: (B, *).
        eps: (B,), each in [0, 1]: one a sample, not one a batch and not one an element.

    Paper: Algorithm 1, line 6. Differs: from the released toy and image code in nothing but the letters,
    real + a (fake - real) with a = 1 - eps has the same law.
    """
    if real.shape != fake.shape:
        raise ValueError(f"real {tuple(real.shape)} and fake {tuple(fake.shape)} must have one shape to be paired")
    if eps.shape != real.shape[:1]:
        raise ValueError(f"eps is one number a sample, ({len(real)},): got {tuple(eps.shape)}")
    eps = eps.view(-1, *[1] * (real.ndim - 1))
    return eps * real + (1 - eps) * fake


@dataclass(frozen=True)
class GradientPenalty:
    """The weighted penalty of every sample: penalty(critic, real, fake, eps) -> (B,).

    Args:
        weight: lambda >= 0. 0 switches the penalty off, and the double backward with it.
        target: the slope that costs nothing, >= 0. 1 for WGAN-GP, 0 for the zero-centred family.
        sides: "two" penalises any other slope, "one" only steeper ones.
        points: where the slope is taken.
            "interpolates": between real and fake (WGAN-GP);
            "real", "fake": there (real with target 0 is R1);
            "perturbed": real + 0.5 std(real) a u, a ~ U[0, 1) a sample, u ~ U[0, 1) an element (DRAGAN).
        autocast: follow an enclosing torch.autocast; otherwise the slope is computed in the precision of the weights.

    Raises:
        ValueError: a setting outside of those.

    Paper: equation 3 (two-sided), appendix C (one-sided). Perturbed: Kodali et al. 2017. Differs: their text has
    N(0, c I) noise; this follows the code they released.
    """

    weight: float = 10.0
    target: float = 1.0
    sides: str = "two"
    points: str = "interpolates"
    autocast: bool = False

    def __post_init__(self) -> None:
        for name in ("weight", "target"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)}: must be >= 0 and finite")
        for name, known in (("sides", SIDES), ("points", POINTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be one of {', '.join(known)}")

    def draw(self, real: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """The random part of one call: eps (B,) for interpolates, 0.5 std(real) a u (B, *) for perturbed, else None."""
        like = {"generator": generator, "device": real.device, "dtype": real.dtype}
        if self.points == "interpolates":
            return torch.rand(len(real), **like)
        if self.points == "perturbed":
            a = torch.rand(len(real), *[1] * (real.ndim - 1), **like)
            return 0.5 * real.detach().std() * a * torch.rand(real.shape, **like)
        return None

    def at(self, real: Tensor, fake: Tensor, eps: Tensor | None) -> Tensor:
        """The points (B, *) where the slope is penalised."""
        if self.points == "interpolates":
            return interpolate(real, fake, eps)
        if self.points == "perturbed":
            if eps.shape != real.shape:
                raise ValueError(f"eps has the shape of the points here, {tuple(real.shape)}: got {tuple(eps.shape)}")
            return real + eps
        return real if self.points == "real" else fake

    def __call__(
        self, critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, eps: Tensor | None = None
    ) -> Tensor:
        """The weighted penalty of every sample (B,), differentiable with respect to the critic alone.

        Under torch.no_grad() the values are the same and no graph is kept.

        Args:
            critic: (B, *) -> (B,) or (B, 1); score i must depend on x_i alone (`check_per_sample`).
            real, fake: (B, *); detached, so that no penalty gradient reaches a generator.
            eps: what `draw` gives; drawn from the global generator when left out.
        """
        if self.weight == 0:
            return real.new_zeros(len(real))
        if eps is None:
            eps = self.draw(real)
        x_hat = self.at(real.detach(), fake.detach(), eps)
        kind = x_hat.device.type
        with torch.autocast(kind, enabled=self.autocast and torch.is_autocast_enabled(kind)):
            slope = gradient_norm(critic, x_hat, create_graph=torch.is_grad_enabled())
        excess = slope - self.target
        if self.sides == "one":
            excess = excess.clamp(min=0)
        return self.weight * excess.square()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    weight: float = 10.0,
    target: float = 1.0,
    sides: str = "two",
    points: str = "interpolates",
) -> Tensor:
    """The one line for anybody's training loop: critic_loss = fake_score.mean() - real_score.mean() + this.

    Returns the mean over the batch (), weighted, of `GradientPenalty(weight, target, sides, points)`.
    """
    return GradientPenalty(weight, target, sides, points)(critic, real, fake).mean()


def check_per_sample(critic: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Raise ValueError when the score of one sample depends on another, as it does behind a batch norm.

    The penalty is one of each sample's own gradient; with a critic that maps batches to batches it means nothing
    (Paper: section 4, "No critic batch normalization"). Found by looking: d score_i / d x_0 must be 0 for i > 0.

    Args:
        critic: (B, *) -> (B,) or (B, 1); a copy of it is used, so running statistics stay as they are.
        x: points (B, *), B >= 2: with one sample there is nothing to see.
    """
    if len(x) < 2:
        raise ValueError(f"whether scores depend on each other takes two samples to see, got {len(x)}")
    critic = copy.deepcopy(critic)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        others = critic(x)[1:].sum()
    if not others.requires_grad:
        raise ValueError("the critic's score carries no graph: remove no_grad(), detach() or .data from its forward")
    (gradient,) = torch.autograd.grad(others, x, materialize_grads=True)
    if gradient[0].ne(0).any():  # NaN counts as dependence
        raise ValueError(
            "the critic mixes the samples of a batch (batch norm?): score i changes with x_j, so a gradient penalty is"
            " not defined. Use a critic without it, a norm within each sample (layer norm), or penalty.weight=0"
        )


@torch.no_grad()
def clip_weights_(module: nn.Module, bound: float) -> None:
    """w <- clip(w, -bound, bound) for every parameter, in place: what WGAN did before the penalty.

    Paper: Arjovsky et al. 2017, Algorithm 1, line 7. Biases and norm scales too, as in the released code.
    """
    if not bound > 0:
        raise ValueError(f"bound = {bound}: weights are clipped to [-bound, bound], bound > 0")
    for p in module.parameters():
        p.clamp_(-bound, bound)
