"""What several figures need: train a critic alone or both networks, select records, format numbers."""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from tqdm import trange

from wgangp.compiled import build_computation
from wgangp.data.pairs import Pair
from wgangp.lipschitz import corrected_wasserstein, cosine, slope_at
from wgangp.losses import Wasserstein
from wgangp.metrics.modes import mode_coverage
from wgangp.optim import descend
from wgangp.penalty import GradientPenalty, clip_weights_
from wgangp.runs import Run
from wgangp.seeds import draw_latent, rng_for
from wgangp.train import Clip, train
from wgangp.transport import wasserstein1

__all__ = [
    "CLIP",
    "DEPTH",
    "build_optimizer",
    "check_names",
    "count_seeds",
    "describe_range",
    "draw_band",
    "format_spread",
    "list_points",
    "make_run",
    "score_samples",
    "select",
    "train_critic",
    "train_networks",
    "train_on_pair",
]

CLIP, CLIP_LR = 0.01, 5e-5  # bound of the weights, and the learning rate with it. Paper: released code, for clipping
DEPTH = 3  # hidden layers of the critics and generators of toy data. Paper: released gan_toy.py
NEVER = 10**9
POINTS = 2_000  # for the exact W1
COUNTED = 10_000  # samples for the mode coverage
DRAWN = 500  # samples that are kept for the picture


def build_optimizer(
    network: nn.Module, lr: float, clipping: bool, betas: tuple[float, float] = (0.5, 0.9)
) -> torch.optim.Optimizer:
    """Build RMSProp at CLIP_LR for clipping, otherwise Adam. Paper: betas of released gan_toy.py, gan_mnist.py."""
    if clipping:
        return torch.optim.RMSprop(network.parameters(), lr=CLIP_LR, alpha=0.9, eps=1e-10)
    return torch.optim.Adam(network.parameters(), lr=lr, betas=betas, fused=True)


def train_critic(
    critic: nn.Module,
    batch: Callable[[int], tuple[Tensor, Tensor]],
    iterations: int,
    lr: float,
    penalty: GradientPenalty,
    seed: int,
    clip_weights: float | None = None,
    *,
    betas: tuple[float, float] = (0.5, 0.9),
    decay: bool = False,
    compile: bool = False,
    look: Callable[[int], None] | None = None,
) -> None:
    """Train a critic alone, in iteration k on (real, fake) = batch(k).

    Args:
        clip_weights: the bound of the weights; None: they are not clipped.
        betas: of Adam.
        decay: lower the learning rate linearly to 0.
        compile: compute the gradients with torch.compile.
        look: called as look(k) before iteration k, and as look(iterations) at the end.

    Raises:
        ValueError: a term of the last iteration is not finite.
    """
    optimizer = build_optimizer(critic, lr, clip_weights is not None, betas)
    lr = optimizer.param_groups[0]["lr"]
    gradients = build_computation(critic, critic, Wasserstein(), penalty, compile=compile).critic_gradients
    terms = {}
    for k in trange(iterations, leave=False, dynamic_ncols=True, disable=not sys.stderr.isatty()):
        if look is not None:
            look(k)
        real, fake = batch(k)
        eps = penalty.draw(real, rng_for(seed, k, "eps", real.device))
        if decay:
            optimizer.param_groups[0]["lr"] = lr * (1 - k / iterations)
        terms, gradient = gradients(real, fake, eps)
        descend(critic, gradient, optimizer)
        if clip_weights is not None:
            clip_weights_(critic, clip_weights)
    for name, term in terms.items():
        if not term.isfinite():
            raise ValueError(
                f"the critic diverged: {name} is {term.item()} after {iterations} iterations. Lower figure.lr"
            )
    if look is not None:
        look(iterations)


def train_on_pair(
    critic: nn.Module, pair: Pair, penalty: GradientPenalty, seed: int, points: int, batch_size: int, **options: Any
) -> tuple[tuple[Tensor, Tensor], dict[str, float]]:
    """Train a critic on a pair with a known W1, and measure it on held-out points.

    Args:
        points, batch_size: of each side.
        options: as in `train_critic`.

    Returns:
        the points of both sides, and the numbers. cosine and slope are means over points on the way from one side to
        the other, where mass moves. corrected is the gap itself if there is no penalty.
    """
    device = next(critic.parameters()).device

    def draw(k: int, size: int = batch_size, split: str = "train") -> tuple[Tensor, Tensor]:
        return pair.batch(k, size, seed, split)[0], pair.low(k, size, seed, split)

    train_critic(critic, draw, penalty=penalty, seed=seed, **options)
    high, low = draw(0, points, "heldout")
    moved = pair.transport(high) - high
    on_the_way = high + torch.rand(points, 1, generator=rng_for(seed, 0, "way", device), device=device) * moved
    with torch.no_grad():
        gap = (critic(high).double().mean() - critic(low).double().mean()).item()
    return (high, low), {
        "distance": pair.distance,
        "gap": gap,
        "corrected": corrected_wasserstein(max(gap, 0.0), penalty.weight) if penalty.weight else gap,
        "cosine": cosine(critic, on_the_way, -moved).mean().item(),
        "slope": slope_at(critic, on_the_way).mean().item(),
    }


def make_run(
    generator: nn.Module, critic: nn.Module, data: Any, penalty: GradientPenalty, lr: float, seed: int, clipping: bool
) -> Run:
    """Build a run with the Wasserstein loss and the optimizers of `build_optimizer`."""
    optimizers = (build_optimizer(network, lr, clipping) for network in (generator, critic))
    return Run(generator, critic, *optimizers, data, Wasserstein(), penalty, seed)


def train_networks(
    folder: Path, run: Run, *, steps: int, clip_weights: float | None, batch_size: int, log_every: int, report_size: int
) -> None:
    """Train generator and critic to the end, from the newest checkpoint in the folder if there is one.

    Args:
        steps, batch_size, log_every, report_size: as in `train`. There are five critic updates per generator update.

    Raises:
        ValueError: a loss is not finite.
        KeyboardInterrupt: training was interrupted, so that there is nothing to measure yet.
    """
    try:
        done = train(
            folder,
            run,
            steps=steps,
            critic_steps=5,
            batch_size=batch_size,
            log_every=log_every,
            sample_every=NEVER,
            checkpoint_every=max(1, steps // 5),
            lipschitz_every=NEVER,
            report_size=report_size,
            clip=Clip(weights=clip_weights),
        )
    except ValueError as error:
        message = str(error).partition(". train.on_nonfinite")[0]  # figures do not have this key
        raise ValueError(message.replace("optim.lr, or clip.gradient_norm=1.0", "figure.lr")) from error
    if done < steps:
        raise KeyboardInterrupt


def score_samples(generator: nn.Module, data: Any, seed: int, device: torch.device) -> dict[str, Any]:
    """Compute how good the samples of a generator on a mixture of Gaussians are.

    Returns:
        w1: the exact W1 between samples and held-out points. floor: between two samples of the data. modes,
        high_quality: as in `mode_coverage`. samples: some of them, for a picture.
    """
    with torch.no_grad():
        samples = generator(*draw_latent(generator, COUNTED, seed, 0, "figure", device))
    held_out = [data.batch(k, POINTS, seed, "heldout")[0] for k in (0, 1)]
    return {
        "w1": wasserstein1(held_out[0], samples[:POINTS]),
        "floor": wasserstein1(*held_out),
        **mode_coverage(samples, data.centers, data.sd),
        "samples": list_points(samples),
    }


def list_points(x: Tensor) -> list[list[float]]:
    """Return the first points (N, P) of a batch as numbers, for a picture."""
    return [[round(v, 3) for v in point] for point in x[:DRAWN].tolist()]


def draw_band(axes: Axes, x: Any, runs: Any, **style: Any) -> Any:
    """Draw the mean over runs, and a band from the smallest to the largest value. Returns the color.

    Args:
        x: (N,).
        runs: (runs, N).
        style: of the line.
    """
    values = torch.as_tensor(runs)
    (line,) = axes.plot(x, values.mean(0), **style)
    axes.fill_between(x, values.amin(0), values.amax(0), alpha=0.2, color=line.get_color())
    return line.get_color()


def check_names(figure: Any, **known: Any) -> None:
    """Raise ValueError unless the settings with these keys are lists of known names, one or more, each once."""
    for key, names in known.items():
        chosen = list(getattr(figure, key))
        if not chosen or not set(chosen) <= set(names) or len(set(chosen)) < len(chosen):
            raise ValueError(f"figure.{key} = {chosen}: one or more of {', '.join(map(repr, names))}, once each")


def select(records: list[dict[str, Any]], **cell: Any) -> list[dict[str, Any]]:
    """Return the records of a cell, or of all cells with the given values."""
    return [record for record in records if all(record[key] == value for key, value in cell.items())]


def count_seeds(records: list[dict[str, Any]]) -> str:
    """Return the number of seeds with its unit, for example "3 seeds"."""
    number = len({record["seed"] for record in records})
    return f"{number} seed" + "s" * (number > 1)


def describe_range(records: list[dict[str, Any]], kind: str = "mean and range") -> str:
    """Describe a statistic over seeds for a title, for example "mean and range over 3 seeds"."""
    seeds = count_seeds(records)
    return seeds if seeds == "1 seed" else f"{kind} over {seeds}"


def format_spread(values: list[float], form: str = ".3f") -> str:
    """Format values as mean +- standard deviation; one value as itself."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{statistics.mean(values):{form}} +- {statistics.stdev(values):{form.removeprefix('+')}}"
