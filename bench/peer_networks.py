"""Networks of other implementations of WGAN-GP, written anew from their published sizes. No code was copied.

Each pair names repository and file. Generators have the attribute latent_dim, which `wgangp.train.update` reads;
nothing else is added for this project. Initial weights are torch's own: they do not change how long a step takes.
"""

from collections.abc import Callable
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["build_caogang_cifar", "build_caogang_mnist", "build_collections", "build_mimicry", "build_pytorch_gan"]

Pair = tuple[nn.Module, nn.Module]


def build_pytorch_gan(_width: int) -> Pair:
    """eriklindernoren/PyTorch-GAN, implementations/wgan_gp/wgan_gp.py: an MLP for MNIST, with one size only."""
    sizes = (128, 256, 512, 1024)
    layers = [nn.Linear(100, sizes[0]), nn.LeakyReLU(0.2, inplace=True)]
    for fan_in, fan_out in pairwise(sizes):
        # 0.8 is passed as eps there, not as momentum.
        layers += [nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out, eps=0.8), nn.LeakyReLU(0.2, inplace=True)]
    generator = _Generator(100, *layers, nn.Linear(sizes[-1], 784), nn.Tanh(), nn.Unflatten(1, (1, 28, 28)))
    hidden = [
        nn.Linear(784, 512),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Linear(512, 256),
        nn.LeakyReLU(0.2, inplace=True),
    ]
    return generator, nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 1))


def build_caogang_mnist(width: int) -> Pair:
    """caogang/wgan-gp, gan_mnist.py: width 64. Images are rows of 784 numbers outside of the networks."""
    body = [_CroppedBlock(4 * width, 2 * width), nn.ConvTranspose2d(2 * width, width, 5), nn.ReLU(True)]
    first = [nn.Linear(128, 64 * width), nn.ReLU(True), nn.Unflatten(1, (4 * width, 4, 4))]
    generator = _Generator(128, *first, *body, nn.ConvTranspose2d(width, 1, 8, stride=2), nn.Sigmoid(), nn.Flatten())
    convolutions = _strided(1, width, kernel=5, activation=lambda: nn.ReLU(True))
    return generator, nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), *convolutions, nn.Linear(64 * width, 1), nn.Flatten(0)
    )


def build_caogang_cifar(width: int) -> Pair:
    """caogang/wgan-gp, gan_cifar10.py: width 128."""
    # The first norm is nn.BatchNorm2d there, which torch no longer allows after a linear layer.
    layers: list[nn.Module] = [nn.Linear(128, 64 * width), nn.BatchNorm1d(64 * width), nn.ReLU(True)]
    layers.append(nn.Unflatten(1, (4 * width, 4, 4)))
    for channels in (2 * width, width):
        layers += [nn.ConvTranspose2d(2 * channels, channels, 2, 2), nn.BatchNorm2d(channels), nn.ReLU(True)]
    generator = _Generator(128, *layers, nn.ConvTranspose2d(width, 3, 2, 2), nn.Tanh())
    return generator, nn.Sequential(*_strided(3, width, kernel=3, activation=nn.LeakyReLU), nn.Linear(64 * width, 1))


def build_collections(width: int) -> Pair:
    """w86763777/pytorch-gan-collections, source/models/wgangp.py, ResGenerator32 and ResDiscriminator32: width 128."""
    upsample = lambda x: F.interpolate(x, scale_factor=2)  # noqa: E731
    return _build_resnets(width, upsample, inplace=False, pool=lambda x: x.sum(dim=(2, 3)))


def build_mimicry(width: int) -> Pair:
    """kwotsin/mimicry, torch_mimicry/nets/wgan_gp/wgan_gp_32.py and its blocks: width 128, without layer norm."""
    upsample = lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)  # noqa: E731
    return _build_resnets(width, upsample, inplace=True, pool=lambda x: x.mean(dim=(2, 3)))


def _build_resnets(width: int, upsample: Callable[..., Tensor], inplace: bool, pool: Callable[..., Tensor]) -> Pair:
    wide = 2 * width
    blocks = [_UpBlock(wide, upsample, inplace) for _ in range(3)]
    last = [nn.BatchNorm2d(wide), nn.ReLU(True), nn.Conv2d(wide, 3, 3, padding=1), nn.Tanh()]
    generator = _Generator(128, nn.Linear(128, 16 * wide), nn.Unflatten(1, (wide, 4, 4)), *blocks, *last)
    down = [_FirstBlock(width), _Block(width, inplace, down=True), _Block(width, inplace), _Block(width, inplace)]
    return generator, nn.Sequential(*down, nn.ReLU(inplace), _Call(pool), nn.Linear(width, 1))


def _strided(channels: int, width: int, kernel: int, activation: Callable[[], nn.Module]) -> list[nn.Module]:
    """Three convolutions of stride 2, with width, 2 width and 4 width channels."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((channels, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(fan_in, fan_out, kernel, stride=2, padding=kernel // 2), activation()]
    return [*layers, nn.Flatten()]


class _Generator(nn.Sequential):
    def __init__(self, latent_dim: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.latent_dim = latent_dim


class _Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class _CroppedBlock(nn.Module):
    """A transposed convolution, ReLU, and the first 7 x 7 of 8 x 8 pixels."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ConvTranspose2d(fan_in, fan_out, 5), nn.ReLU(True))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[:, :, :7, :7]


class _UpBlock(nn.Module):
    """A residual block that doubles height and width: BN, ReLU, upsampling, conv, BN, ReLU, conv; and the shortcut."""

    def __init__(self, channels: int, upsample: Callable[..., Tensor], inplace: bool) -> None:
        super().__init__()
        self.upsample, self.inplace = upsample, inplace
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.shortcut = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs[0](self.upsample(F.relu(self.norms[0](x), self.inplace)))
        y = self.convs[1](F.relu(self.norms[1](y), self.inplace))
        return y + self.shortcut(self.upsample(x))


class _FirstBlock(nn.Module):
    """The first block of a critic: conv, ReLU, conv, pooling; the shortcut is pooling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(fan_in, channels, 3, padding=1) for fan_in in (3, channels))
        self.shortcut = nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs[1](F.relu(self.convs[0](x)))
        return F.avg_pool2d(y, 2) + self.shortcut(F.avg_pool2d(x, 2))


class _Block(nn.Module):
    """A block of a critic: ReLU, conv, ReLU, conv, and pooling if down; then the shortcut is a conv and pooling.

    With inplace the first ReLU changes the input of the shortcut, too.
    """

    def __init__(self, channels: int, inplace: bool, down: bool = False) -> None:
        super().__init__()
        self.inplace, self.down = inplace, down
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.shortcut = nn.Conv2d(channels, channels, 1) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs[1](F.relu(self.convs[0](F.relu(x, self.inplace)), self.inplace))
        return F.avg_pool2d(y, 2) + F.avg_pool2d(self.shortcut(x), 2) if self.down else y + x
