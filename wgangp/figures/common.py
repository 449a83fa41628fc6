"""What several figures do: train a critic alone, and say numbers with their spread."""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import trange

from wgangp.losses import Wasserstein
from wgangp.penalty import GradientPenalty
from wgangp.seeds import generator_for
from wgangp.step import critic_step
from wgangp.train import train

__all__ = ["fit", "optimizer_of", "over", "seeds_of", "select", "spread", "train_both"]

CLIP_LR = 5e-5  # of RMSProp. Paper: released code, for clipping
NEVER = 10**9


def optimizer_of(player: nn.Module, lr: float, clipping: bool) -> torch.optim.Optimizer:
    """Adam (0.5, 0.9) for a penalty, RMSProp at CLIP_LR for clipping. Paper: released gan_toy.py, gan_mnist.py."""
    if clipping:
        return torch.optim.RMSprop(player.parameters(), lr=CLIP_LR, alpha=0.9, eps=1e-10)
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
            raise ValueError(
                f"the critic diverged: {name} is {term.item()} after {iterations} iterations. Lower figure.lr"
            )


def train_both(
    folder: Path,
    generator: nn.Module,
    critic: nn.Module,
    data: Any,
    penalty: GradientPenalty,
    lr: float,
    *,
    clip_weights: float | None,
    steps: int,
    **options: Any,
) -> None:
    """Train both players to the end, five critic updates a generator update, in a folder that is resumed.

    Raises KeyboardInterrupt when it was stopped before: there is nothing to measure then.
    """
    optimizers = [optimizer_of(player, lr, clip_weights is not None) for player in (generator, critic)]
    often = {"checkpoint_every": max(1, steps // 5), "sample_every": NEVER, "lipschitz_every": NEVER, "critic_steps": 5}
    options = {**often, **options, "clip_weights": clip_weights, "steps": steps}
    try:
        reached = train(folder, generator, critic, *optimizers, data, Wasserstein(), penalty, **options)
    except ValueError as error:
        raise ValueError(str(error).replace("optim.lr or clip.gradient_norm=1.0", "figure.lr")) from error
    if reached < steps:
        raise KeyboardInterrupt


def select(records: list[dict[str, Any]], **cell: Any) -> list[dict[str, Any]]:
    """The records of a setting."""
    return [record for record in records if all(record[key] == value for key, value in cell.items())]


def seeds_of(records: list[dict[str, Any]]) -> str:
    """How many seeds there are, in words."""
    number = len({record["seed"] for record in records})
    return f"{number} seed" + "s" * (number > 1)


def over(records: list[dict[str, Any]]) -> str:
    """What the numbers of `spread` are over."""
    seeds = seeds_of(records)
    return seeds if seeds == "1 seed" else f"mean +- sd over {seeds}"


def spread(values: list[float], form: str = ".3f") -> str:
    """mean +- standard deviation over seeds, or the one value there is."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{statistics.mean(values):{form}} +- {statistics.stdev(values):{form.removeprefix('+')}}"
