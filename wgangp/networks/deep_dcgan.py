"""A DCGAN pair for 32 x 32 images with a free depth, nonlinearity and norm: the random architectures of the paper.

The networks have four weight layers, or more: further 3x3 convolutions, each with norm and nonlinearity, are inserted
where the images are 8 x 8 and have 2 width channels.

Paper: section 5.1 and appendix B, which do not say where layers are inserted. Layers and depth are those of the
authors' working repository, igul222/nn (commit d54aafd), experiments/wgan/wgan_imagenet32_stab.py, lines 240-290, with
EXTRA_DEPTH 0, 4, 8 and 16 for the depths 4, 8, 12 and 20. Differs: line 279 gives the convolutions of the critic the
width of the generator; here it is that of the critic.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from wgangp.networks.layers import Conv2d, ConvTranspose2d, build_norm, check_shape, linear

__all__ = ["DeepCritic", "DeepGenerator", "ShiftedSoftplus"]

SHAPE = (3, 32, 32)
BASE = 4  # weight layers of the shallowest networks


class ShiftedSoftplus(nn.Module):
    """softplus(2 x + 2) / 2 - 1: smooth, and near to the ELU, with which the penalty does not train.

    Paper: appendix D.
    """

    lipschitz = 1.0  # for certified_lipschitz: the derivative is sigmoid(2 x + 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x + 1, beta=2, threshold=40) - 1  # from 2 x + 2 = 40 on it is linear in float64, too


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.2),
    "softplus": ShiftedSoftplus,
    "tanh": nn.Tanh,
}


class DeepGenerator(nn.Module):
    """z (B, latent_dim) -> images (B, 3, 32, 32) in [-1, 1].

    Args:
        width: number of channels at 16 x 16.
        depth: number of weight layers, 4 or more.
        activation: relu, leaky_relu (slope 0.2), softplus (`ShiftedSoftplus`) or tanh.
        norm: batch norm.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        latent_dim: int = 128,
        width: int = 64,
        depth: int = 4,
        activation: str = "relu",
        norm: bool = True,
    ) -> None:
        super().__init__()
        check_shape("this generator", SHAPE, shape, latent_dim=latent_dim, width=width)
        _check_options(depth, activation)
        self.latent_dim, self.width = latent_dim, width

        def activate(features: int) -> list[nn.Module]:
            return [*build_norm("batch" if norm else "none", features), ACTIVATIONS[activation]()]

        self.input = linear(latent_dim, 4 * width * 4 * 4)
        self.layers = nn.Sequential(
            *(*activate(4 * width), ConvTranspose2d(4 * width, 2 * width), *activate(2 * width)),  # 8 x 8
            *_repeat(depth - BASE, 2 * width, activate),
            *(ConvTranspose2d(2 * width, width), *activate(width)),  # 16 x 16
            *(ConvTranspose2d(width, 3), nn.Tanh()),  # 32 x 32
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.input(z).view(-1, 4 * self.width, 4, 4))


class DeepCritic(nn.Module):
    """images (B, 3, 32, 32) -> scores (B,). The first layer has no norm.

    Args:
        width: number of channels at 16 x 16.
        depth: number of weight layers, 4 or more.
        activation: as in `DeepGenerator`.
        norm: layer, none, or batch, which is allowed only without a penalty.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 64,
        depth: int = 4,
        activation: str = "leaky_relu",
        norm: str = "none",
    ) -> None:
        super().__init__()
        check_shape("this critic", SHAPE, shape, width=width)
        _check_options(depth, activation)

        def activate(features: int) -> list[nn.Module]:
            return [*build_norm(norm, features), ACTIVATIONS[activation]()]

        self.layers = nn.Sequential(
            *(Conv2d(3, width, kernel=5, stride=2), ACTIVATIONS[activation]()),  # 16 x 16
            *(Conv2d(width, 2 * width, kernel=5, stride=2), *activate(2 * width)),  # 8 x 8
            *_repeat(depth - BASE, 2 * width, activate),
            *(Conv2d(2 * width, 4 * width, kernel=5, stride=2), *activate(4 * width)),  # 4 x 4
            nn.Flatten(),
            linear(4 * width * 4 * 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_shape("this critic", SHAPE, x.shape[1:])
        return self.layers(x).squeeze(1)


def _repeat(count: int, features: int, activate: Callable[[int], list[nn.Module]]) -> list[nn.Module]:
    """Return `count` 3x3 convolutions, each with norm and activation."""
    return [layer for _ in range(count) for layer in (Conv2d(features, features, kernel=3), *activate(features))]


def _check_options(depth: int, activation: str) -> None:
    if depth < BASE:
        raise ValueError(f"depth = {depth}: must be >= {BASE}, the number of weight layers without further ones")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation = {activation}: must be one of {', '.join(ACTIVATIONS)}")
