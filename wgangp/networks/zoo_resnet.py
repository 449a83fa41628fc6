"""Two of the eight pairs for 64 x 64 images in [-1, 1], those with residual blocks: "good" and ResNet-101.

Paper: released gan_64x64.py, lines 123-218, 294-319, 354-366 and 395-417; figure 2, appendix E. "Good" is the code's
default, which it recommends for decent samples. The norm of a generator is batch norm. The norm of a critic (lines
84-90) is layer norm if the critic is penalized, and batch norm otherwise. Mean pooling and nearest-neighbor upsampling
are computed as in wgangp/networks/resnet.py, in less arithmetic.
"""

from torch import Tensor, nn

from wgangp.networks.blocks import PoolBlock, build_upsample_blocks
from wgangp.networks.layers import (
    Conv2d,
    ConvMeanPool,
    ConvTranspose2d,
    SubpixelConv,
    build_norm,
    check_shape,
    linear,
)

__all__ = ["GoodCritic", "GoodGenerator", "ResNet101Critic", "ResNet101Generator"]

SHAPE = (3, 64, 64)


class GoodGenerator(nn.Module):
    """z (B, latent_dim) -> images (B, 3, 64, 64) in [-1, 1]: four residual blocks, each doubles the resolution."""

    def __init__(self, shape: tuple[int, ...], latent_dim: int = 128, width: int = 64) -> None:
        super().__init__()
        check_shape("the 64 x 64 residual generator", SHAPE, shape, latent_dim=latent_dim, width=width)
        self.latent_dim, self.width = latent_dim, width
        self.input = linear(latent_dim, 8 * width * 4 * 4)
        self.blocks = build_upsample_blocks(width, bias=False)
        self.output = nn.Sequential(*build_norm("batch", width), nn.ReLU(), Conv2d(width, 3, kernel=3), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.output(self.blocks(self.input(z).view(-1, 8 * self.width, 4, 4)))


class GoodCritic(nn.Module):
    """images (B, 3, 64, 64) -> scores (B,): four residual blocks, then a linear layer on the last block's output.

    Args:
        norm: layer, batch or none.
    """

    def __init__(self, shape: tuple[int, ...], width: int = 64, norm: str = "layer") -> None:
        super().__init__()
        check_shape("the 64 x 64 residual critic", SHAPE, shape, width=width)
        self.input = Conv2d(3, width, kernel=3, gain=1.0)
        self.blocks = nn.Sequential(
            _down(width, 2 * width, norm),  # 32 x 32
            _down(2 * width, 4 * width, norm),  # 16 x 16
            _down(4 * width, 8 * width, norm),  # 8 x 8
            _down(8 * width, 8 * width, norm),  # 4 x 4
        )
        self.output = nn.Sequential(nn.Flatten(), linear(8 * width * 4 * 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        check_shape("the 64 x 64 residual critic", SHAPE, x.shape[1:])
        return self.output(self.blocks(self.input(x))).squeeze(1)


class ResNet101Generator(nn.Module):
    """z (B, latent_dim) -> images (B, 3, 64, 64) in [-1, 1]: a linear layer, 33 bottleneck blocks, a 1x1 convolution.

    The width is a multiple of 4.
    """

    def __init__(self, shape: tuple[int, ...], latent_dim: int = 128, width: int = 64) -> None:
        super().__init__()
        check_shape("the 101-layer generator", SHAPE, shape, latent_dim=latent_dim, width=width)
        _check_multiple(width)
        self.latent_dim, self.width = latent_dim, width
        self.input = linear(latent_dim, 8 * width * 4 * 4)
        channels, blocks = 8 * width, []
        for repeats in (6, 6, 6, 6):  # 4 x 4, 8 x 8, 16 x 16, 32 x 32
            blocks += [_Bottleneck(channels, channels, "batch") for _ in range(repeats)]
            blocks += [_Bottleneck(channels, channels // 2, "batch", resample="up")]
            channels //= 2
        blocks += [_Bottleneck(channels, channels, "batch") for _ in range(5)]  # 64 x 64
        self.blocks = nn.Sequential(*blocks)
        self.output = Conv2d(channels, 3, kernel=1, gain=1.0)

    def forward(self, z: Tensor) -> Tensor:
        x = self.output(self.blocks(self.input(z).view(-1, 8 * self.width, 4, 4)))
        return (x / 5).tanh()


class ResNet101Critic(nn.Module):
    """images (B, 3, 64, 64) -> scores (B,): a 1x1 convolution, 33 bottleneck blocks, a linear layer.

    Args:
        width: a multiple of 4.
        norm: layer, batch or none.
    """

    def __init__(self, shape: tuple[int, ...], width: int = 64, norm: str = "layer") -> None:
        super().__init__()
        check_shape("the 101-layer critic", SHAPE, shape, width=width)
        _check_multiple(width)
        channels = width // 2
        self.input = Conv2d(3, channels, kernel=1, gain=1.0)
        blocks = []
        for repeats in (5, 6, 6, 6):  # 64 x 64, 32 x 32, 16 x 16, 8 x 8
            blocks += [_Bottleneck(channels, channels, norm) for _ in range(repeats)]
            blocks += [_Bottleneck(channels, 2 * channels, norm, resample="down")]
            channels *= 2
        blocks += [_Bottleneck(channels, channels, norm) for _ in range(6)]  # 4 x 4
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Sequential(nn.Flatten(), linear(channels * 4 * 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        check_shape("the 101-layer critic", SHAPE, x.shape[1:])
        return self.output(self.blocks(self.input(x))).squeeze(1) / 5


def _down(in_channels: int, out_channels: int, norm: str) -> nn.Module:
    """x -> conv1(pool(x)) + pool(conv(relu(norm(conv(relu(norm(x)))))))."""
    return PoolBlock(
        *(*build_norm(norm, in_channels), nn.ReLU(), Conv2d(in_channels, in_channels, kernel=3, bias=False)),
        *(*build_norm(norm, in_channels), nn.ReLU(), ConvMeanPool(in_channels, out_channels)),
        shortcut=Conv2d(in_channels, out_channels, kernel=1, gain=1.0),
    )


class _Bottleneck(nn.Module):
    """x -> shortcut(x) + 0.3 norm(conv1(relu(conv3(relu(conv1(relu(x))))))), with half of the channels inside.

    Args:
        resample: None: the shortcut is the identity. "down" or "up": the 3x3 convolution has stride 2, or is a
            transposed convolution; the shortcut is a 1x1 convolution with stride 2, or to the four pixels of a square.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str, resample: str | None = None) -> None:
        super().__init__()
        before, after = in_channels // 2, out_channels // 2
        if resample == "up":
            middle = ConvTranspose2d(before, after, kernel=3)
            self.shortcut = SubpixelConv(in_channels, out_channels, kernel=1, gain=1.0)
        elif resample == "down":
            middle = Conv2d(before, after, kernel=3, stride=2)
            self.shortcut = Conv2d(in_channels, out_channels, kernel=1, stride=2, gain=1.0)
        else:
            middle = Conv2d(before, after, kernel=3)
            self.shortcut = nn.Identity()
        self.main = nn.Sequential(
            *(nn.ReLU(), Conv2d(in_channels, before, kernel=1)),
            *(nn.ReLU(), middle),
            *(nn.ReLU(), Conv2d(after, out_channels, kernel=1, bias=False), *build_norm(norm, out_channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + 0.3 * self.main(x)


def _check_multiple(width: int) -> None:
    if width % 4:
        raise ValueError(f"width = {width}: must be a multiple of 4, for a bottleneck of width / 4 channels")
