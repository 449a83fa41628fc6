"""The DCGAN pair of Stacked MNIST, for images with three digits as channels in [-1, 1].

Paper: Kumar et al. 2019, "Maximum Entropy Generators for Energy-Based Models", whose baseline is a WGAN-GP; released
code ritheshkumar95/energy_based_generative_models (commit b4a8d82), networks/mnist.py, lines 5-62. The layers are those
of PyTorch: the padding is symmetric, and the sizes are 28, 14, 7, 4 and 2. The critic has no norm. Weights of
convolutions are drawn from N(0, 0.02^2), scales of batch norm from N(1, 0.02^2), everything else as PyTorch does.
Differs: batch norm uses the statistics of the batch when sampling, too; the released code counts modes with running
averages.
"""

from torch import Tensor, nn

from wgangp.networks.layers import BatchNorm, check_shape

__all__ = ["StackedCritic", "StackedGenerator"]

SHAPE = (3, 28, 28)


class StackedGenerator(nn.Module):
    """z (B, latent_dim) -> images (B, 3, 28, 28) in [-1, 1]."""

    def __init__(self, shape: tuple[int, ...], latent_dim: int = 128, width: int = 64) -> None:
        super().__init__()
        check_shape("the Stacked MNIST generator", SHAPE, shape, latent_dim=latent_dim, width=width)
        self.latent_dim, self.width = latent_dim, width
        self.input = nn.Linear(latent_dim, 8 * width * 2 * 2)
        self.layers = nn.Sequential(
            *(BatchNorm(8 * width), nn.ReLU(), _upsample(8 * width, 4 * width, 4)),
            *(BatchNorm(4 * width), nn.ReLU(), _upsample(4 * width, 2 * width, 7)),
            *(BatchNorm(2 * width), nn.ReLU(), _upsample(2 * width, width, 14)),
            *(BatchNorm(width), nn.ReLU(), _upsample(width, 3, 28), nn.Tanh()),
        )
        self.layers.apply(_draw_weights)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.input(z).view(-1, 8 * self.width, 2, 2))


class StackedCritic(nn.Module):
    """images (B, 3, 28, 28) -> scores (B,)."""

    def __init__(self, shape: tuple[int, ...], width: int = 64) -> None:
        super().__init__()
        check_shape("the Stacked MNIST critic", SHAPE, shape, width=width)
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, width, 5, stride=2, padding=2), nn.LeakyReLU(0.2)),  # 14 x 14
            *(nn.Conv2d(width, 2 * width, 5, stride=2, padding=2), nn.LeakyReLU(0.2)),  # 7 x 7
            *(nn.Conv2d(2 * width, 4 * width, 5, stride=2, padding=2), nn.LeakyReLU(0.2)),  # 4 x 4
            *(nn.Conv2d(4 * width, 8 * width, 5, stride=2, padding=2), nn.LeakyReLU(0.2)),  # 2 x 2
            nn.Flatten(),
            nn.Linear(8 * width * 2 * 2, 1),
        )
        self.layers.apply(_draw_weights)

    def forward(self, x: Tensor) -> Tensor:
        check_shape("the Stacked MNIST critic", SHAPE, x.shape[1:])
        return self.layers(x).squeeze(1)


def _upsample(in_channels: int, out_channels: int, size: int) -> nn.ConvTranspose2d:
    """Return the transposed convolution to size x size, from half of it, rounded up."""
    even = 1 - size % 2
    return nn.ConvTranspose2d(in_channels, out_channels, 5, stride=2, padding=2, output_padding=even)


def _draw_weights(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, BatchNorm):
        nn.init.normal_(layer.weight, 1.0, 0.02)
