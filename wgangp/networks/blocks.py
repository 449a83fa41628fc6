"""Blocks with a skip connection, which the residual networks share."""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PoolBlock", "Residual", "UpsampleBlock"]


class Residual(nn.Module):
    """x -> shortcut(x) + main(x); without a shortcut x + main(x)."""

    def __init__(self, *main: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.main, self.shortcut = nn.Sequential(*main), shortcut

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.shortcut is None else self.shortcut(x)) + self.main(x)


class UpsampleBlock(Residual):
    """x -> upsample(shortcut(x)) + main(x), with nearest-neighbor upsampling to 2H x 2W."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.shortcut(x), scale_factor=2) + self.main(x)


class PoolBlock(Residual):
    """x -> shortcut(pool(x)) + main(x), with 2x2 mean pooling."""

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(F.avg_pool2d(x, 2)) + self.main(x)
