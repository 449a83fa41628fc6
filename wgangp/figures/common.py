"""What several figures do: train a critic alone, and say numbers with their spread."""

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import trange

from wgangp.penalty import GradientPenalty
from wgangp.seeds import generator_for
from wgangp.step import critic_step

__all__ = ["fit", "optimizer_of", "seeds_of", "select", "spread"]


def optimizer_of(player: nn.Module, lr: float, clipping: bool) -> torch.optim.Optimizer:
    """Adam (0.5, 0.9) for a penalty, RMSProp at 5e-5 for clipping. Paper: released gan_toy.py, gan_mnist.py."""
    if clipping:
        return torch.optim.RMSprop(player.parameters(), lr=5e-5, alpha=0.9, eps=1e-10)
    return torch.optim.Adam(player.parameters(), lr=lr, betas=(0.5, 0.9), fused=True)


def fit(
    critic: nn.Module,
    pairs: Callable[[int], tuple[Tensor, Tensor]],
    iterations: int,
    lr: float,
    penalty: GradientPenalty,
    seed: int,
    clip_weights: float | None = None,
) -> None:
    """Train a critic alone, on the batches (real, fake) = pairs(k). Raises ValueError when its loss is not finite."""
    optimizer = optimizer_of(critic, lr, clipping=clip_weights is not None)
    terms = {}
    for k in trange(iterations, leave=False, dynamic_ncols=True, disable=not sys.stderr.isatty()):
        real, fake = pairs(k)
        eps = penalty.draw(real, generator_for(seed, k, "eps", real.device))
        terms = critic_step(critic, optimizer, real, fake, eps, penalty=penalty, clip_weights=clip_weights)
    for name, term in terms.items():
        if not term.isfinite():
            raise ValueError(f"the critic diverged: {name} is {term.item()} after {iterations} iterations. Lower lr")


def select(records: list[dict[str, Any]], **cell: Any) -> list[dict[str, Any]]:
    """The records of a setting."""
    return [record for record in records if all(record[key] == value for key, value in cell.items())]


def seeds_of(records: list[dict[str, Any]]) -> str:
    """How many seeds there are, in words."""
    number = len({record["seed"] for record in records})
    return f"{number} seed" + "s" * (number > 1)


def spread(values: list[float], form: str = ".3f") -> str:
    """mean +- standard deviation over seeds, or the one value there is."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{statistics.mean(values):{form}} +- {statistics.stdev(values):{form.removeprefix('+')}}"
