"""What a run shows of itself at a step: one line of the log, one picture. Both are functions of the players and the
step alone, so that a resumed run shows the same.

A few passes of the networks are made at once. What takes seconds beside them, a certificate and drawing, is handed back
as a function to be called later, in another thread: it has copies of what it needs, on the CPU.
"""

import copy
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wgangp import plots
from wgangp.certify import certified_lipschitz
from wgangp.gradients import total_norm
from wgangp.lipschitz import (
    corrected_wasserstein,
    expected_slope,
    largest_quotient,
    slope_statistics,
)
from wgangp.logs import read_lines
from wgangp.losses import Wasserstein
from wgangp.metrics import mode_coverage
from wgangp.penalty import GradientPenalty, check_per_sample
from wgangp.seeds import generator_for, noise
from wgangp.step import critic_objective, generator_objective

__all__ = ["certificate", "lipschitz_report", "picture", "report"]

PICTURED = 128  # samples in a picture, made from noise that stays the same; four times as many points in the plane
LOOKED = 256  # points of each kind, at most, that a look at the Lipschitz constant takes
COVERAGE_SAMPLES = 10_000  # samples that modes are counted on


def report(
    generator: nn.Module,
    critic: nn.Module,
    data: Any,
    loss: Wasserstein,
    penalty: GradientPenalty,
    seed: int,
    step: int,
    size: int,
) -> dict[str, float]:
    """One line of the log: a function of the players and the step alone, so that a resumed run writes the same.

    Differs: the released code logs the last critic update's own batch, before its generator update; here both players
    are as the step left them, and every number is of draws made for the report. Held out: one batch, not the whole set.
    """
    device = next(critic.parameters()).device
    values: dict[str, float] = {}
    with torch.no_grad():
        fake = generator(noise(generator, size, seed, step, "report", device))
    for split, prefix in (("train", ""), ("heldout", "heldout_")):
        real, _ = data.batch(step, size, seed, split, purpose="report")
        eps = penalty.draw(real, generator_for(seed, step, f"eps/{split}", device))
        terms = critic_objective(critic, real, fake, eps, loss=loss, penalty=penalty)
        values |= {prefix + name: term.item() for name, term in terms.items()}
        if split == "train":
            values |= _parameter_gradient("critic", terms["critic_loss"], critic)
            values |= _flat(slope_statistics(critic, real, fake, generator=_random(seed, step, device)))
    z = noise(generator, size, seed, step, "report", device)
    objective = generator_objective(generator, critic, z, loss=loss)["generator_loss"]
    values |= {"generator_loss": objective.item(), **_parameter_gradient("generator", objective, generator)}
    if hasattr(data, "centres"):
        with torch.no_grad():
            samples = generator(noise(generator, COVERAGE_SAMPLES, seed, 0, "coverage", device))
        values |= mode_coverage(samples, data.centres, data.sd)
    return values


def lipschitz_report(
    generator: nn.Module, critic: nn.Module, data: Any, penalty: GradientPenalty, seed: int, step: int, size: int
) -> dict[str, float]:
    """What train.lipschitz_every adds to a line of the log: the interval of the critic's Lipschitz constant, the slope
    that is expected of it, and on the line and in the plane the slopes on optimally coupled segments. Held-out samples.
    The cheap part of scripts/lipschitz.py, which also climbs to the steepest point. The upper end of the interval is
    what `certificate` gives.
    """
    size = min(size, LOOKED)
    device = next(critic.parameters()).device
    real, _ = data.batch(step, size, seed, "heldout", purpose="lipschitz")
    with torch.no_grad():
        fake = generator(noise(generator, size, seed, step, "lipschitz", device))
        gap = (critic(real).mean() - critic(fake).mean()).item()
    try:
        check_per_sample(critic, torch.cat([real[:1], fake[:1]]))
    except ValueError:  # batch norm, where clipping may have it: scores are no function of a point, and have no slope
        return {}
    values = {"largest_quotient": largest_quotient(critic, torch.cat([real, fake]))}
    if penalty.weight > 0 and penalty.target == 1 and gap >= 0:
        corrected = corrected_wasserstein(gap, penalty.weight)
        values |= {"corrected_wasserstein": corrected, "expected_slope": expected_slope(corrected, penalty.weight)}
    if data.shape in ((1,), (2,)):
        slopes = slope_statistics(critic, real, fake, generator=_random(seed, step, device), coupled=True)
        values |= _flat({"coupled": slopes["coupled"]})
    return values


def certificate(critic: nn.Module, shape: tuple[int, ...]) -> Callable[[], dict[str, float]]:
    """A function that gives certified_lipschitz of the critic as it is now; nothing for one that has no bound."""
    critic = copy.deepcopy(critic).cpu()

    def found() -> dict[str, float]:
        with suppress(ValueError):  # a critic with a norm layer: no bound, no number
            return {"certified_lipschitz": certified_lipschitz(critic, shape)}
        return {}

    return found


def _random(seed: int, step: int, device: torch.device) -> torch.Generator:
    return generator_for(seed, step, "eps/slopes", device)


def _flat(statistics: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"slope_{kind}_{name}": value for kind, part in statistics.items() for name, value in part.items()}


def _parameter_gradient(name: str, objective: Tensor, module: nn.Module) -> dict[str, float]:
    gradients = torch.autograd.grad(objective, list(module.parameters()), materialize_grads=True)
    return {f"{name}_gradient_norm": total_norm(gradients).item()}


def picture(
    folder: Path, generator: nn.Module, critic: nn.Module, data: Any, penalty: GradientPenalty, seed: int, step: int
) -> Callable[[], None]:
    """A function that draws samples/STEP.png from noise that stays the same, and curves.png of the log so far."""
    device = next(critic.parameters()).device
    path = folder / "samples" / f"{step:08d}.png"
    path.parent.mkdir(exist_ok=True)
    in_plane = tuple(data.shape) == (2,)
    with torch.no_grad():
        fake = generator(noise(generator, 4 * PICTURED if in_plane else PICTURED, seed, 0, "picture", device)).cpu()
    draw: Callable[[], None] | None = None
    if in_plane:
        real, _ = data.batch(0, len(fake), seed, "heldout", purpose="picture")
        what = (path, copy.deepcopy(critic).cpu(), real.cpu(), fake, data.span, f"{step} generator updates")
        draw = partial(plots.value_surface, *what)
    elif len(data.shape) == 3:
        draw = partial(plots.image_grid, path, fake, data.span)

    def drawn() -> None:
        if draw:
            draw()
        plots.curves(folder / "curves.png", read_lines(folder / "metrics.jsonl"), penalty.target)

    return drawn
