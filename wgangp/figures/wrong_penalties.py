"""Penalties of other public code, which take several norms per sample. For comparison in figures only.

    python scripts/train.py penalty._target_=wgangp.figures.wrong_penalties.ChannelPenalty "trust=[wgangp.figures]"

The package's penalty is wgangp/penalty.py. textbook.py has these mistakes, and others, in a loop of its own.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from wgangp.checks import check_eps
from wgangp.penalty import GradientPenalty

__all__ = ["ChannelPenalty", "ColumnPenalty"]


class _AxisPenalty(GradientPenalty):
    """weight * mean (||g||_2 - target)^2, (B,), where the norms of the gradient g (B, C, H, W) are over one axis."""

    AXIS: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.sides, self.points) != ("two", "interpolates"):
            raise ValueError(
                f"sides={self.sides}, points={self.points}: this penalty has sides=two and points=interpolates"
            )

    def __call__(
        self, critic: Callable[..., Tensor], real: Tensor, fake: Tensor, eps: Tensor | None = None, *y: Tensor
    ) -> Tensor:
        eps = self.draw(real) if eps is None else eps
        x = self.at(real.detach(), fake.detach(), eps)
        with torch.enable_grad():
            if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None:
                gradient = torch.func.grad(lambda x: critic(x, *y).sum())(x)
            else:
                x.requires_grad_()
                (gradient,) = torch.autograd.grad(critic(x, *y).sum(), x, create_graph=True)
        # A small number keeps the second derivative finite where a norm is 0, as at pixels that the critic ignores.
        norm = (gradient.square().sum(self.AXIS) + 1e-16).sqrt()
        return self.weight * (norm - self.target).square().flatten(1).mean(1)


class ChannelPenalty(_AxisPenalty):
    """A norm per pixel, over the channels, and one eps per element.

    Paper: the released code of Kumar et al. 2019 (commit b4a8d82), networks/regularizers.py.
    """

    AXIS = 1

    def draw(self, real: Tensor, rng: torch.Generator | None = None) -> Tensor:
        return torch.rand(real.shape, generator=rng, device=real.device, dtype=real.dtype)

    def at(self, real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
        check_eps(eps, real.shape, "one value per element")
        return eps * real + (1 - eps) * fake


class ColumnPenalty(_AxisPenalty):
    """A norm per column and channel, over the rows.

    Paper: the released code of Binkowski et al. 2018 (commit fdbed37), gan/core/wgan_gp.py, line 21: axis 1 of a
    gradient (B, H, W, C).
    """

    AXIS = 2
