"""The MNIST pair: 5x5 convolutions of stride 2 on 28x28 images with values in [0, 1].

Paper: released gan_mnist.py lines 55-101 (the paper itself trains on MNIST for figure 5b only and gives no layers).
Batch norm is off in both for WGAN-GP; norm=True is the released "wgan" mode (clipping), in which both have it.
"""

from torch import Tensor, nn

from wgangp.networks.layers import BatchNorm, Conv2d, ConvTranspose2d, LeakyReLU, ReLU, check_shape, check_sizes, linear

__all__ = ["MNISTCritic", "MNISTGenerator"]

SHAPE = (1, 28, 28)


class MNISTGenerator(nn.Module):
    """z (B, latent_dim) -> images (B, 1, 28, 28) in [0, 1]."""

    def __init__(self, shape: tuple[int, ...], latent_dim: int = 128, width: int = 64, norm: bool = False) -> None:
        super().__init__()
        check_shape("the MNIST generator", SHAPE, shape)
        check_sizes(latent_dim=latent_dim, width=width)
        self.latent_dim, self.width = latent_dim, width
        self.input = nn.Sequential(linear(latent_dim, 4 * width * 4 * 4), *_norm(norm, 4 * width * 4 * 4), ReLU())
        self.to_8 = nn.Sequential(ConvTranspose2d(4 * width, 2 * width), *_norm(norm, 2 * width), ReLU())
        self.to_14 = nn.Sequential(ConvTranspose2d(2 * width, width), *_norm(norm, width), ReLU())
        self.to_28 = nn.Sequential(ConvTranspose2d(width, 1), nn.Sigmoid())

    def forward(self, z: Tensor) -> Tensor:
        x = self.input(z).view(-1, 4 * self.width, 4, 4)
        x = self.to_8(x)[..., :7, :7]
        return self.to_28(self.to_14(x))


class MNISTCritic(nn.Module):
    """images (B, 1, 28, 28) -> scores (B,)."""

    def __init__(self, shape: tuple[int, ...], width: int = 64, norm: bool = False) -> None:
        super().__init__()
        check_shape("the MNIST critic", SHAPE, shape)
        check_sizes(width=width)
        self.layers = nn.Sequential(
            *(Conv2d(1, width, kernel=5, stride=2), LeakyReLU()),  # 14 x 14
            *(Conv2d(width, 2 * width, kernel=5, stride=2), *_norm(norm, 2 * width), LeakyReLU()),  # 7 x 7
            *(Conv2d(2 * width, 4 * width, kernel=5, stride=2), *_norm(norm, 4 * width), LeakyReLU()),  # 4 x 4
            nn.Flatten(),
            linear(4 * width * 4 * 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_shape("the MNIST critic", SHAPE, x.shape[1:])
        return self.layers(x).squeeze(1)


def _norm(norm: bool, features: int) -> list[nn.Module]:
    return [BatchNorm(features)] if norm else []
