"""The toy pair: ReLU multilayer perceptrons on points in R^d.

Paper: released gan_toy.py lines 46-58: three hidden layers of 512, uniform He initial weights, Glorot in the last
layer, no normalization.
"""

from itertools import pairwise

from torch import Tensor, nn

from wgangp.networks.layers import check_shape, check_sizes, linear

__all__ = ["MLPCritic", "MLPGenerator", "build_mlp"]


class MLPGenerator(nn.Module):
    """z (B, latent_dim) -> points (B, d): `depth` ReLU layers of size `width`, then a linear layer."""

    def __init__(self, shape: tuple[int, ...], latent_dim: int = 2, width: int = 512, depth: int = 3) -> None:
        super().__init__()
        _check_points(shape)
        check_sizes(latent_dim=latent_dim, width=width, depth=depth)
        self.latent_dim = latent_dim
        self.layers = build_mlp([latent_dim, *[width] * depth, shape[0]])

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class MLPCritic(nn.Module):
    """x (B, d) -> scores (B,): `depth` ReLU layers of size `width`, then a linear layer."""

    def __init__(self, shape: tuple[int, ...], width: int = 512, depth: int = 3) -> None:
        super().__init__()
        _check_points(shape)
        check_sizes(width=width, depth=depth)
        self.shape = tuple(shape)
        self.layers = build_mlp([shape[0], *[width] * depth, 1])

    def forward(self, x: Tensor) -> Tensor:
        check_shape("this critic", self.shape, x.shape[1:])
        return self.layers(x).squeeze(1)


def build_mlp(sizes: list[int]) -> nn.Sequential:
    """Build linear layers of these sizes, with a ReLU between them."""
    layers = []
    for fan_in, fan_out in pairwise(sizes[:-1]):
        layers += [linear(fan_in, fan_out, init="he"), nn.ReLU()]
    return nn.Sequential(*layers, linear(*sizes[-2:]))


def _check_points(shape: tuple[int, ...]) -> None:
    if len(shape) != 1:
        raise ValueError(f"a multilayer perceptron takes points in R^d, got points of shape {tuple(shape)}")
