"""The ResNet pair for 128 x 128 images in [-1, 1].

Paper: figure 4, LSUN bedrooms. The paper does not give the layers, and the released code does not have them. They are
in the authors' working repository, igul222/nn (commit d54aafd), experiments/wgan/wgan_imagenet128.py lines 33-43 and
66-202, for ImageNet. Differs: batch norm uses the whole batch; there each of eight devices uses its eighth. Nearest-
neighbor upsampling and a convolution are computed as one transposed convolution, and a 1x1 convolution at the lower
resolution: the same function, in less arithmetic.
"""

from torch import Tensor, nn

from wgangp.networks.blocks import PoolBlock, Residual, build_upsample_blocks
from wgangp.networks.layers import BatchNorm, Conv2d, LayerNorm, UpsampleConv, check_shape, linear

__all__ = ["ResNet128Critic", "ResNet128Generator"]

SHAPE = (3, 128, 128)
# The code multiplies the initial weights of a convolution after upsampling with 0.5, which is a quarter of the gain.
UPSAMPLED = 0.25


class ResNet128Generator(nn.Module):
    """z (B, latent_dim) -> images (B, 3, 128, 128) in [-1, 1]: four residual blocks to 64 x 64, then a convolution.

    Args:
        width: number of channels at 64 x 64. At 4 x 4 and 8 x 8 there are 8 times as many.
    """

    def __init__(self, shape: tuple[int, ...], latent_dim: int = 128, width: int = 64) -> None:
        super().__init__()
        check_shape("the 128 x 128 generator", SHAPE, shape, latent_dim=latent_dim, width=width)
        self.latent_dim, self.width = latent_dim, width
        self.input = linear(latent_dim, 8 * width * 4 * 4)
        self.blocks = build_upsample_blocks(width, gain=2 * UPSAMPLED, shortcut_gain=UPSAMPLED)
        last = UpsampleConv(width, 3, kernel=5, gain=UPSAMPLED)  # 128 x 128
        self.output = nn.Sequential(BatchNorm(width), nn.ReLU(), last, nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.output(self.blocks(self.input(z).view(-1, 8 * self.width, 4, 4)))


class ResNet128Critic(nn.Module):
    """images (B, 3, 128, 128) -> scores (B,): a convolution, five residual blocks, mean over all pixels, linear layer.

    Args:
        width: number of channels at 64 x 64. At 8 x 8 there are 8 times as many.
    """

    def __init__(self, shape: tuple[int, ...], width: int = 128) -> None:
        super().__init__()
        check_shape("the 128 x 128 critic", SHAPE, shape, width=width)
        self.input = Conv2d(3, width, kernel=5, stride=2)  # 64 x 64
        self.blocks = nn.Sequential(
            _down(width, 2 * width),  # 32 x 32
            _down(2 * width, 4 * width),  # 16 x 16
            _down(4 * width, 8 * width),  # 8 x 8
            _same(8 * width),
            _same(8 * width),
        )
        self.output = linear(8 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_shape("the 128 x 128 critic", SHAPE, x.shape[1:])
        return self.output(self.blocks(self.input(x)).mean(dim=(2, 3))).squeeze(1)


def _down(in_channels: int, out_channels: int) -> nn.Module:
    """x -> conv1(pool(x)) + conv(relu(norm(conv(relu(norm(x)))))), with layer norm. The second conv has stride 2."""
    return PoolBlock(
        *(LayerNorm(in_channels), nn.ReLU(), Conv2d(in_channels, in_channels, kernel=3)),
        *(LayerNorm(in_channels), nn.ReLU(), Conv2d(in_channels, out_channels, kernel=3, stride=2)),
        shortcut=Conv2d(in_channels, out_channels, kernel=1, gain=1.0),
    )


def _same(channels: int) -> nn.Module:
    """x -> x + conv(relu(norm(conv(relu(norm(x)))))), with layer norm."""
    return Residual(
        *(LayerNorm(channels), nn.ReLU(), Conv2d(channels, channels, kernel=3)),
        *(LayerNorm(channels), nn.ReLU(), Conv2d(channels, channels, kernel=3)),
    )
