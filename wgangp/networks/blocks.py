"""Blocks with a skip connection, which the residual networks share."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from wgangp.networks.layers import BatchNorm, ConditionalBatchNorm, Conv2d, UpsampleConv

__all__ = ["PoolBlock", "Residual", "UpsampleBlock", "build_upsample_blocks"]


class Residual(nn.Module):
    """x -> shortcut(x) + main(x); without a shortcut x + main(x)."""

    def __init__(self, *main: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.main, self.shortcut = nn.Sequential(*main), shortcut

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.shortcut is None else self.shortcut(x)) + self.main(x)


class UpsampleBlock(Residual):
    """(x, *y) -> upsample(shortcut(x)) + main(x), with nearest-neighbor upsampling to 2H x 2W.

    Conditional norms in main take the labels y, too.
    """

    def forward(self, x: Tensor, *y: Tensor) -> Tensor:
        main = x
        for layer in self.main:
            main = layer(main, *y) if isinstance(layer, ConditionalBatchNorm) else layer(main)
        return F.interpolate(self.shortcut(x), scale_factor=2) + main


class PoolBlock(Residual):
    """x -> shortcut(pool(x)) + main(x), with 2x2 mean pooling."""

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(F.avg_pool2d(x, 2)) + self.main(x)


def build_upsample_blocks(
    width: int, bias: bool = True, gain: float = 2.0, shortcut_gain: float = 1.0
) -> nn.Sequential:
    """Return four blocks from (8 width, 4, 4) to (width, 64, 64).

    x -> upsample(conv1(x)) + conv(relu(norm(conv(upsample(relu(norm(x))))))), with batch norm

    Args:
        bias, gain: of the convolution after upsampling.
        shortcut_gain: of the 1x1 convolution.
    """
    return nn.Sequential(
        *(
            UpsampleBlock(
                *(BatchNorm(before), nn.ReLU(), UpsampleConv(before, after, gain=gain, bias=bias)),
                *(BatchNorm(after), nn.ReLU(), Conv2d(after, after, kernel=3)),
                shortcut=Conv2d(before, after, kernel=1, gain=shortcut_gain),
            )
            for before, after in pairwise(factor * width for factor in (8, 8, 4, 2, 1))
        )
    )
