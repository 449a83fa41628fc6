"""The gradient penalty, which pushes the critic to be 1-Lipschitz, and the weight clipping that it replaced.

penalty_i = weight * (||grad_x^ D(x^_i)||_2 - target)^2                 two-sided
penalty_i = weight * max(0, ||grad_x^ D(x^_i)||_2 - target)^2           one-sided
x^_i      = eps_i x_i + (1 - eps_i) x~_i,  eps_i ~ U[0, 1]              x real, x~ fake, one eps per sample
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wgangp.checks import check_eps, check_no_eps, check_pairs, check_points, check_positive, check_slope
from wgangp.gradients import gradient_norm

__all__ = ["GradientPenalty", "clip_weights_", "gradient_penalty", "interpolate"]

SIDES = ("two", "one")
POINTS = ("interpolates", "real", "fake", "perturbed")


def interpolate(real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    """Return x^ = eps x + (1 - eps) x~ (B, *): one point on the segment between each real point and its fake point.

    Args:
        real, fake: points (B, *), paired by their order.
        eps: (B,), each value in [0, 1]: one eps per sample, not one per batch and not one per element.

    Paper: Algorithm 1, line 6. Differs: the released code writes real + a (fake - real) with a = 1 - eps, which has
    the same distribution.
    """
    check_pairs(real, fake)
    check_eps(eps, real.shape[:1], "one value per sample")
    eps = eps.to(real.dtype).view(-1, *[1] * (real.ndim - 1))
    return eps * real + (1 - eps) * fake


@dataclass(frozen=True)
class GradientPenalty:
    """The weighted gradient penalty, one value per sample: penalty(critic, real, fake, eps) -> (B,).

    Args:
        weight: lambda >= 0. With 0 the penalty and its second derivatives are not computed.
        target: the slope at which the penalty is 0, >= 0. 1 for WGAN-GP, 0 for zero-centered penalties.
        sides: "two" penalizes slopes below and above the target, "one" only slopes above it.
        points: where the slope is computed.
            "interpolates": between real and fake points (WGAN-GP);
            "real", "fake": at these points ("real" with target 0 is R1);
            "perturbed": at real + 0.5 std(real) a u, a ~ U[0, 1) per sample, u ~ U[0, 1) per element (DRAGAN).
        autocast: follow an enclosing torch.autocast. Otherwise the slope is computed in the precision of the weights.

    Raises:
        ValueError: a setting is not one of the values above.

    Paper: equation 3 (two-sided), appendix C (one-sided). Perturbed points: Kodali et al. 2017. Differs: their text
    has N(0, c I) noise; this follows their released code.
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
        for name, choices in (("sides", SIDES), ("points", POINTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be one of {', '.join(choices)}")

    def draw(self, real: Tensor, rng: torch.Generator | None = None) -> Tensor | None:
        """Draw the random numbers of one call.

        Returns:
            eps (B,) for interpolates, the noise 0.5 std(real) a u (B, *) for perturbed points, None otherwise.
        """
        check_points(real)
        like = {"generator": rng, "device": real.device, "dtype": real.dtype}
        if self.points == "interpolates":
            return torch.rand(len(real), **like)
        if self.points == "perturbed":
            if real.numel() < 2:
                raise ValueError("perturbed points need the standard deviation of at least two numbers: real has one")
            a = torch.rand(len(real), *[1] * (real.ndim - 1), **like)
            return 0.5 * real.detach().std() * a * torch.rand(real.shape, **like)
        return None

    def at(self, real: Tensor, fake: Tensor, eps: Tensor | None) -> Tensor:
        """Return the points (B, *) where the slope is penalized."""
        if self.points == "interpolates":
            return interpolate(real, fake, eps)
        if self.points == "perturbed":
            check_eps(eps, real.shape, "the shape of the points")
            return real + eps.to(real.dtype)
        check_no_eps(eps, self.points)
        return real if self.points == "real" else fake

    def __call__(
        self, critic: Callable[..., Tensor], real: Tensor, fake: Tensor, eps: Tensor | None = None, *y: Tensor
    ) -> Tensor:
        """Compute the weighted penalty (B,), differentiable with respect to the critic's parameters alone.

        Under torch.no_grad() or torch.inference_mode() the values are the same and no graph is kept.

        Args:
            critic: (x, *y) -> (B,) or (B, 1). Score i must depend on x_i alone (`check_per_sample`).
            real, fake: points (B, *). They are detached: no gradient of the penalty reaches the generator.
            eps: the result of `draw`. If it is left out, it is drawn from torch's global generator.
            y: labels (B,) of the pairs, if the critic takes labels.

        Raises:
            ValueError: as in `gradient_norm`; points and eps do not have the shapes above.
        """
        check_points(real, *y)
        check_points(fake)
        if self.weight == 0 and eps is None:
            return real.new_zeros(len(real))
        x_hat = self.at(real.detach(), fake.detach(), self.draw(real) if eps is None else eps)
        if self.weight == 0:
            return real.new_zeros(len(real))
        device_type = x_hat.device.type
        with torch.autocast(device_type, enabled=self.autocast and torch.is_autocast_enabled(device_type)):
            slope = gradient_norm(critic, x_hat, *y, create_graph=torch.is_grad_enabled())
        check_slope(slope, critic)
        excess = slope - self.target
        return self.weight * (excess.clamp(min=0) if self.sides == "one" else excess).square()


def gradient_penalty(
    critic: Callable[..., Tensor],
    real: Tensor,
    fake: Tensor,
    weight: float = 10.0,
    *,
    target: float = 1.0,
    sides: str = "two",
    points: str = "interpolates",
    eps: Tensor | None = None,
    y: tuple[Tensor, ...] = (),
) -> Tensor:
    """Compute the mean weighted gradient penalty () of a batch, for any training loop.

        critic_loss = critic(fake).mean() - critic(real).mean() + gradient_penalty(critic, real, fake)

    Args:
        critic, real, fake, eps, y: as in `GradientPenalty.__call__`; y is (labels,), or () without labels.
        weight, target, sides, points: as in `GradientPenalty`.
    """
    return GradientPenalty(weight, target, sides, points)(critic, real, fake, eps, *y).mean()


@torch.no_grad()
def clip_weights_(module: nn.Module, bound: float) -> None:
    """Clip every parameter in place: w <- clip(w, -bound, bound), as WGAN did before the penalty.

    Paper: Arjovsky et al. 2017, Algorithm 1, line 7. Biases and norm scales are clipped too, as in the released code.
    """
    check_positive("bound", bound)
    for p in module.parameters():
        p.clamp_(-bound, bound)
