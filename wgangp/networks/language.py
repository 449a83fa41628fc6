"""The character model: text as one-hot vectors (V, L), with V symbols and lines of L symbols.

Paper: released gan_language.py, lines 53-85. Differs: samples are (V, L), as convolutions take them. In the released
code they are (L, V), and both networks transpose them. The function is the same.
"""

from torch import Tensor, nn

from wgangp.networks.layers import Conv1d, check_shape, check_sizes, linear

__all__ = ["LanguageCritic", "LanguageGenerator"]

BLOCKS = 5


class LanguageGenerator(nn.Module):
    """z (B, latent_dim) -> probabilities (B, V, L): those of the V symbols at a position sum to 1."""

    def __init__(self, shape: tuple[int, ...], latent_dim: int = 128, width: int = 512) -> None:
        super().__init__()
        symbols, self.length = _read_shape(shape)
        check_sizes(latent_dim=latent_dim, width=width)
        self.latent_dim, self.width = latent_dim, width
        self.input = linear(latent_dim, width * self.length)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(BLOCKS)))
        self.output = nn.Sequential(Conv1d(width, symbols, kernel=1), nn.Softmax(dim=1))

    def forward(self, z: Tensor) -> Tensor:
        return self.output(self.blocks(self.input(z).view(-1, self.width, self.length)))


class LanguageCritic(nn.Module):
    """one-hot vectors or probabilities (B, V, L) -> scores (B,)."""

    def __init__(self, shape: tuple[int, ...], width: int = 512) -> None:
        super().__init__()
        symbols, length = self.shape = _read_shape(shape)
        check_sizes(width=width)
        self.input = Conv1d(symbols, width, kernel=1)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(BLOCKS)))
        self.output = nn.Sequential(nn.Flatten(), linear(width * length, 1))

    def forward(self, x: Tensor) -> Tensor:
        check_shape("the language critic", self.shape, x.shape[1:])
        return self.output(self.blocks(self.input(x))).squeeze(1)


class _Block(nn.Module):
    """x -> x + 0.3 conv(relu(conv(relu(x)))); the activation does not change the x of the skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.ReLU(), Conv1d(width, width, kernel=5), nn.ReLU(), Conv1d(width, width, kernel=5)]
        self.main = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * self.main(x)


def _read_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (V, L). ValueError if samples do not have two axes."""
    if len(shape) != 2:
        raise ValueError(f"the language networks take text of shape (V, L), got {tuple(shape)}: use data=text")
    return tuple(shape)
