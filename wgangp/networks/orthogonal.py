"""A critic that is 1-Lipschitz by construction, for points in R^d. It needs no penalty: penalty.weight=0.

Every linear layer has an orthogonal weight (or orthonormal rows or columns), and MaxMin sorts pairs of activations. No
layer makes a vector longer, so no slope is above 1. Anil, Lucas and Grosse 2019, "Sorting out Lipschitz function
approximation".
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from wgangp.networks.layers import check_shape, check_sizes

__all__ = ["MaxMin", "OrthogonalCritic"]


class MaxMin(nn.Module):
    """x (B, 2 n) -> the n larger values of the pairs (x_i, x_{n+i}), then the n smaller ones: GroupSort with pairs."""

    lipschitz = 1.0  # for certified_lipschitz: the values are only moved

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)


class OrthogonalCritic(nn.Module):
    """x (B, d) -> scores (B,), 1-Lipschitz: `depth` layers of size `width`, which is even, then one score."""

    def __init__(self, shape: tuple[int, ...], width: int = 128, depth: int = 3) -> None:
        super().__init__()
        check_sizes(width=width, depth=depth)
        if len(shape) != 1:
            raise ValueError(f"this critic takes points in R^d, got points of shape {tuple(shape)}")
        if width % 2:
            raise ValueError(f"width = {width}: must be even, because MaxMin sorts pairs")
        self.shape = tuple(shape)
        layers = []
        for fan_in, fan_out in pairwise([shape[0], *[width] * depth]):
            layers += [orthogonal(nn.Linear(fan_in, fan_out)), MaxMin()]
        self.layers = nn.Sequential(*layers, orthogonal(nn.Linear(width, 1)))

    def forward(self, x: Tensor) -> Tensor:
        check_shape("this critic", self.shape, x.shape[1:])
        return self.layers(x).squeeze(1)
