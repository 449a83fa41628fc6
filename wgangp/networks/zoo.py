"""Six of the eight pairs for 64 x 64 images in [-1, 1], those without residual blocks: DCGAN and its variants.

Paper: released gan_64x64.py, lines 220-292 and 322-350 (generators), 368-392 and 428-460 (critics), chosen in lines
44-64; figure 2, appendix E. The norm of a generator is batch norm. The norm of a critic (lines 84-90) is layer norm if
the critic is penalized, and batch norm otherwise. A DCGAN network has initial weights with a standard deviation of 0.02
in every layer (lines 235-237, 431-433), uniform, not normal. The others have those of wgangp/networks/layers.py.
"""

from functools import partial

from torch import Tensor, nn

from wgangp.networks.layers import Conv2d, ConvTranspose2d, Gate, build_norm, check_shape, linear, set_std_
from wgangp.networks.mlp import build_mlp

__all__ = [
    "ConstantFiltersGenerator",
    "DCGANCritic",
    "DCGANGenerator",
    "GatedCritic",
    "GatedGenerator",
    "ImageMLPGenerator",
]

SHAPE = (3, 64, 64)
STD = 0.02
ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": partial(nn.LeakyReLU, 0.2), "tanh": nn.Tanh}


class DCGANGenerator(nn.Module):
    """z (B, latent_dim) -> images (B, 3, 64, 64) in [-1, 1]: a linear layer, four transposed convolutions.

    Args:
        norm: use batch norm.
        activation: relu or tanh.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        latent_dim: int = 128,
        width: int = 64,
        norm: bool = True,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        check_shape("the 64 x 64 DCGAN generator", SHAPE, shape, latent_dim=latent_dim, width=width)
        activate, kind = _choose(activation, "relu", "tanh"), "batch" if norm else "none"
        self.latent_dim, self.width = latent_dim, width
        self.input = linear(latent_dim, 8 * width * 4 * 4)
        self.layers = nn.Sequential(
            *(*build_norm(kind, 8 * width), activate()),
            *(ConvTranspose2d(8 * width, 4 * width), *build_norm(kind, 4 * width), activate()),  # 8 x 8
            *(ConvTranspose2d(4 * width, 2 * width), *build_norm(kind, 2 * width), activate()),  # 16 x 16
            *(ConvTranspose2d(2 * width, width), *build_norm(kind, width), activate()),  # 32 x 32
            *(ConvTranspose2d(width, 3), nn.Tanh()),  # 64 x 64
        )
        set_std_(self, STD)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.input(z).view(-1, 8 * self.width, 4, 4))


class DCGANCritic(nn.Module):
    """images (B, 3, 64, 64) -> scores (B,): four convolutions down to 4 x 4, then a linear layer.

    Args:
        norm: layer, batch or none. The first convolution has no norm.
        activation: leaky_relu or tanh.
    """

    def __init__(
        self, shape: tuple[int, ...], width: int = 64, norm: str = "layer", activation: str = "leaky_relu"
    ) -> None:
        super().__init__()
        check_shape("the 64 x 64 DCGAN critic", SHAPE, shape, width=width)
        activate = _choose(activation, "leaky_relu", "tanh")
        self.layers = nn.Sequential(
            *(Conv2d(3, width, kernel=5, stride=2), activate()),  # 32 x 32
            *(Conv2d(width, 2 * width, kernel=5, stride=2), *build_norm(norm, 2 * width), activate()),  # 16 x 16
            *(Conv2d(2 * width, 4 * width, kernel=5, stride=2), *build_norm(norm, 4 * width), activate()),  # 8 x 8
            *(Conv2d(4 * width, 8 * width, kernel=5, stride=2), *build_norm(norm, 8 * width), activate()),  # 4 x 4
            nn.Flatten(),
            linear(8 * width * 4 * 4, 1),
        )
        set_std_(self, STD)

    def forward(self, x: Tensor) -> Tensor:
        check_shape("the 64 x 64 DCGAN critic", SHAPE, x.shape[1:])
        return self.layers(x).squeeze(1)


class ConstantFiltersGenerator(nn.Module):
    """z (B, latent_dim) -> images (B, 3, 64, 64) in [-1, 1]: a DCGAN with width channels everywhere, without a norm."""

    def __init__(self, shape: tuple[int, ...], latent_dim: int = 128, width: int = 64) -> None:
        super().__init__()
        check_shape("the generator with a constant number of filters", SHAPE, shape, latent_dim=latent_dim, width=width)
        self.latent_dim, self.width = latent_dim, width
        self.input = nn.Sequential(linear(latent_dim, width * 4 * 4), nn.ReLU())
        self.layers = nn.Sequential(
            *(ConvTranspose2d(width, width), nn.ReLU()),  # 8 x 8
            *(ConvTranspose2d(width, width), nn.ReLU()),  # 16 x 16
            *(ConvTranspose2d(width, width), nn.ReLU()),  # 32 x 32
            *(ConvTranspose2d(width, 3), nn.Tanh()),  # 64 x 64
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.input(z).view(-1, self.width, 4, 4))


class ImageMLPGenerator(nn.Module):
    """z (B, latent_dim) -> images (B, 3, 64, 64) in [-1, 1]: a ReLU MLP with four hidden layers of 8 width units.

    Paper: 512 units, which is width 64, that of the other pairs.
    """

    def __init__(self, shape: tuple[int, ...], latent_dim: int = 128, width: int = 64) -> None:
        super().__init__()
        check_shape("the MLP generator of images", SHAPE, shape, latent_dim=latent_dim, width=width)
        self.latent_dim = latent_dim
        self.layers = nn.Sequential(*build_mlp([latent_dim, *[8 * width] * 4, 3 * 64 * 64]), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z).view(-1, *SHAPE)


class GatedGenerator(nn.Module):
    """z (B, latent_dim) -> images (B, 3, 64, 64) in [-1, 1]: the DCGAN with gates (layers.Gate) in place of ReLU.

    A gate halves the number of channels, so the layer before it has twice as many as that of the DCGAN.
    """

    def __init__(self, shape: tuple[int, ...], latent_dim: int = 128, width: int = 64) -> None:
        super().__init__()
        check_shape("the gated generator", SHAPE, shape, latent_dim=latent_dim, width=width)
        self.latent_dim, self.width = latent_dim, width
        self.input = linear(latent_dim, 16 * width * 4 * 4)
        self.layers = nn.Sequential(
            *(*build_norm("batch", 16 * width), Gate()),
            *(ConvTranspose2d(8 * width, 8 * width), *build_norm("batch", 8 * width), Gate()),  # 8 x 8
            *(ConvTranspose2d(4 * width, 4 * width), *build_norm("batch", 4 * width), Gate()),  # 16 x 16
            *(ConvTranspose2d(2 * width, 2 * width), *build_norm("batch", 2 * width), Gate()),  # 32 x 32
            *(ConvTranspose2d(width, 3), nn.Tanh()),  # 64 x 64
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.input(z).view(-1, 16 * self.width, 4, 4))


class GatedCritic(nn.Module):
    """images (B, 3, 64, 64) -> scores (B,): the DCGAN critic with gates (layers.Gate) in place of LeakyReLU.

    Args:
        norm: layer, batch or none. The first convolution has no norm.
    """

    def __init__(self, shape: tuple[int, ...], width: int = 64, norm: str = "layer") -> None:
        super().__init__()
        check_shape("the gated critic", SHAPE, shape, width=width)
        self.layers = nn.Sequential(
            *(Conv2d(3, 2 * width, kernel=5, stride=2), Gate()),  # 32 x 32
            *(Conv2d(width, 4 * width, kernel=5, stride=2), *build_norm(norm, 4 * width), Gate()),  # 16 x 16
            *(Conv2d(2 * width, 8 * width, kernel=5, stride=2), *build_norm(norm, 8 * width), Gate()),  # 8 x 8
            *(Conv2d(4 * width, 16 * width, kernel=5, stride=2), *build_norm(norm, 16 * width), Gate()),  # 4 x 4
            nn.Flatten(),
            linear(8 * width * 4 * 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_shape("the gated critic", SHAPE, x.shape[1:])
        return self.layers(x).squeeze(1)


def _choose(activation: str, *names: str) -> type[nn.Module]:
    if activation not in names:
        raise ValueError(f"activation = {activation}: must be {' or '.join(names)}")
    return ACTIVATIONS[activation]
