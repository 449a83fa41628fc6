"""Two DCGAN pairs with 5x5 convolutions of stride 2: for MNIST in [0, 1], and for CIFAR-10 in [-1, 1].

The pair for MNIST also takes three digits as the channels of one image. Differs: the released code has one digit.

Paper: released gan_mnist.py, lines 55-101 (the paper uses MNIST for figure 5b only, and does not give the layers);
gan_cifar.py, lines 47-89. For WGAN-GP the critics have no norm. norm=True is the released "wgan" mode (clipping), with
batch norm. The CIFAR generator has batch norm in every mode, the MNIST generator in "wgan" mode only.
"""

from torch import Tensor, nn

from wgangp.networks.layers import BatchNorm, Conv2d, ConvTranspose2d, check_shape, linear

__all__ = ["CIFARCritic", "CIFARGenerator", "MNISTCritic", "MNISTGenerator"]

MNIST, STACKED, CIFAR = (1, 28, 28), (3, 28, 28), (3, 32, 32)


class MNISTGenerator(nn.Module):
    """z (B, latent_dim) -> images (B, C, 28, 28) in [0, 1], C = 1 or 3."""

    span = (0.0, 1.0)  # images are scaled to it: see wgangp/data/__init__.py

    def __init__(self, shape: tuple[int, ...], latent_dim: int = 128, width: int = 64, norm: bool = False) -> None:
        super().__init__()
        check_shape("the MNIST generator", _expect_digits(shape), shape, latent_dim=latent_dim, width=width)
        self.latent_dim, self.width = latent_dim, width
        self.input = nn.Sequential(linear(latent_dim, 4 * width * 4 * 4), *_norm(norm, 4 * width * 4 * 4), nn.ReLU())
        self.to_8 = nn.Sequential(ConvTranspose2d(4 * width, 2 * width), *_norm(norm, 2 * width), nn.ReLU())
        self.to_14 = nn.Sequential(ConvTranspose2d(2 * width, width), *_norm(norm, width), nn.ReLU())
        self.to_28 = nn.Sequential(ConvTranspose2d(width, shape[0]), nn.Sigmoid())

    def forward(self, z: Tensor) -> Tensor:
        x = self.input(z).view(-1, 4 * self.width, 4, 4)
        x = self.to_8(x)[..., :7, :7]
        return self.to_28(self.to_14(x))


class CIFARGenerator(nn.Module):
    """z (B, latent_dim) -> images (B, 3, 32, 32) in [-1, 1]."""

    def __init__(self, shape: tuple[int, ...], latent_dim: int = 128, width: int = 128, norm: bool = True) -> None:
        super().__init__()
        check_shape("the CIFAR generator", CIFAR, shape, latent_dim=latent_dim, width=width)
        self.latent_dim, self.width = latent_dim, width
        self.input = nn.Sequential(linear(latent_dim, 4 * width * 4 * 4), *_norm(norm, 4 * width * 4 * 4), nn.ReLU())
        self.layers = nn.Sequential(
            *(ConvTranspose2d(4 * width, 2 * width), *_norm(norm, 2 * width), nn.ReLU()),  # 8 x 8
            *(ConvTranspose2d(2 * width, width), *_norm(norm, width), nn.ReLU()),  # 16 x 16
            *(ConvTranspose2d(width, 3), nn.Tanh()),  # 32 x 32
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.input(z).view(-1, 4 * self.width, 4, 4))


class _Critic(nn.Module):
    """images (B, *shape) -> scores (B,): three convolutions down to 4 x 4, then a linear layer."""

    NAME: str

    def __init__(self, expected: tuple[int, ...], shape: tuple[int, ...], width: int, norm: bool) -> None:
        super().__init__()
        check_shape(self.NAME, expected, shape, width=width)
        self.shape = expected
        self.layers = nn.Sequential(
            *(Conv2d(shape[0], width, kernel=5, stride=2), nn.LeakyReLU(0.2)),  # 14 x 14 or 16 x 16
            *(Conv2d(width, 2 * width, kernel=5, stride=2), *_norm(norm, 2 * width), nn.LeakyReLU(0.2)),  # 7 x 7, 8 x 8
            *(Conv2d(2 * width, 4 * width, kernel=5, stride=2), *_norm(norm, 4 * width), nn.LeakyReLU(0.2)),  # 4 x 4
            nn.Flatten(),
            linear(4 * width * 4 * 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_shape(self.NAME, self.shape, x.shape[1:])
        return self.layers(x).squeeze(1)


class MNISTCritic(_Critic):
    """images (B, C, 28, 28), C = 1 or 3 -> scores (B,)."""

    NAME = "the MNIST critic"

    def __init__(self, shape: tuple[int, ...], width: int = 64, norm: bool = False) -> None:
        super().__init__(_expect_digits(shape), shape, width, norm)


class CIFARCritic(_Critic):
    """images (B, 3, 32, 32) -> scores (B,)."""

    NAME = "the CIFAR critic"

    def __init__(self, shape: tuple[int, ...], width: int = 128, norm: bool = False) -> None:
        super().__init__(CIFAR, shape, width, norm)


def _norm(norm: bool, features: int) -> list[nn.Module]:
    return [BatchNorm(features)] if norm else []


def _expect_digits(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape that the networks for MNIST are built for: that of one digit, or of three in three channels."""
    return STACKED if shape[0] == 3 else MNIST
