"""Samples of a generator, in batches of one size: with batch norm, a sample depends on the others of its batch."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from wgangp.runs import Run, choose_generator
from wgangp.seeds import draw_latent
from wgangp.state import use_eval_mode

__all__ = ["BATCH", "generate", "generate_batches"]

BATCH = 256  # samples per forward pass, always. Differs: released code: 100


def generate(generator: nn.Module, n: int, draw: Callable[[int], tuple[Tensor, ...]]) -> Tensor:
    """Compute the first n samples (n, *) of a generator in eval mode.

    Whole batches are computed, and n samples are kept. So sample i does not depend on n, not even with batch norm.

    Args:
        draw: k -> batch k of what the generator takes: (z (B, latent_dim), *y).
    """
    batches: list[Tensor] = []
    with torch.no_grad(), use_eval_mode(generator):
        while sum(map(len, batches)) < n:
            batches.append(generator(*draw(len(batches))))
    return torch.cat(batches)[:n]


def generate_batches(run: Run, n: int, seed: int) -> Iterator[Tensor]:
    """Yield n samples of the generator that a run draws samples with, at most BATCH at a time.

    The networks must be in eval mode. Labels are uniform. Noise and labels are functions of the seed.
    """
    generator = choose_generator(run)
    device = next(generator.parameters()).device
    for k in range(-(-n // BATCH)):
        with torch.no_grad():
            x = generator(*draw_latent(generator, BATCH, seed, k, "evaluate", device))
        yield x[: n - k * BATCH]
