"""The CIFAR-10 ResNet pair, without labels: images with values in [-1, 1].

Paper: released gan_cifar_resnet.py lines 66-179 with CONDITIONAL False, NORMALIZATION_D False; appendix F.
Differs: the paper upsamples before a block's second convolution, the code (followed here) before its first. A 1x1
convolution commutes with mean pooling and with nearest-neighbor upsampling, so the shortcuts are computed at the lower
resolution: the same function, in a quarter of the arithmetic. Batch norm uses the whole batch; in the released code
each of two devices uses its half.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from wgangp.networks.layers import (
    BatchNorm,
    Conv2d,
    ConvMeanPool,
    ReLU,
    UpsampleConv,
    check_shape,
    check_sizes,
    linear,
)

__all__ = ["ResNetCritic", "ResNetGenerator"]

SHAPE = (3, 32, 32)


class ResNetGenerator(nn.Module):
    """z (B, latent_dim) -> images (B, 3, 32, 32) in [-1, 1]: three blocks, each doubles the resolution."""

    def __init__(self, shape: tuple[int, ...], latent_dim: int = 128, width: int = 128) -> None:
        super().__init__()
        check_shape("the CIFAR ResNet generator", SHAPE, shape)
        check_sizes(latent_dim=latent_dim, width=width)
        self.latent_dim, self.width = latent_dim, width
        self.input = linear(latent_dim, width * 4 * 4)
        self.blocks = nn.Sequential(*(_Up(width) for _ in range(3)))  # 8 x 8, 16 x 16, 32 x 32
        self.output = nn.Sequential(BatchNorm(width), nn.ReLU(), Conv2d(width, 3, kernel=3, gain=1.0), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.output(self.blocks(self.input(z).view(-1, self.width, 4, 4)))


class ResNetCritic(nn.Module):
    """images (B, 3, 32, 32) -> scores (B,): four blocks, mean over all pixels, linear layer."""

    def __init__(self, shape: tuple[int, ...], width: int = 128) -> None:
        super().__init__()
        check_shape("the CIFAR ResNet critic", SHAPE, shape)
        check_sizes(width=width)
        self.blocks = nn.Sequential(_First(width), _Down(width), _Same(width), _Same(width))  # 16, 8, 8, 8
        self.activation = ReLU()
        self.output = linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_shape("the CIFAR ResNet critic", SHAPE, x.shape[1:])
        return self.output(self.activation(self.blocks(x)).mean(dim=(2, 3))).squeeze(1)


class _Up(nn.Module):
    """x -> upsample(conv1(x)) + conv(relu(norm(conv(upsample(relu(norm(x)))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *(BatchNorm(width), nn.ReLU(), UpsampleConv(width, width)),
            *(BatchNorm(width), nn.ReLU(), Conv2d(width, width, kernel=3)),
        )
        self.shortcut = Conv2d(width, width, kernel=1, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.shortcut(x), scale_factor=2) + self.main(x)


class _First(nn.Module):
    """x -> conv1(pool(x)) + pool(conv(relu(conv(x)))): there is no activation on the image itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(Conv2d(3, width, kernel=3), ReLU(), ConvMeanPool(width, width))
        self.shortcut = Conv2d(3, width, kernel=1, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(F.avg_pool2d(x, 2)) + self.main(x)


class _Down(nn.Module):
    """x -> conv1(pool(x)) + pool(conv(relu(conv(relu(x)))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(ReLU(), Conv2d(width, width, kernel=3), ReLU(), ConvMeanPool(width, width))
        self.shortcut = Conv2d(width, width, kernel=1, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(F.avg_pool2d(x, 2)) + self.main(x)


class _Same(nn.Module):
    """x -> x + conv(relu(conv(relu(x)))); the activation does not change the x of the skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [ReLU(), Conv2d(width, width, kernel=3), ReLU(), Conv2d(width, width, kernel=3)]
        self.main = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)
