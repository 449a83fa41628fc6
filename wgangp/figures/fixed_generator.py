"""A critic against a fixed generator, real + N(0, I), on three data sets in the plane. Several figures need it.

In the plane nearly everything about a critic can be computed: the exact W1 between samples, the direction in which
optimal transport moves mass, and the critic's Lipschitz constant on a box (box.py).
"""

from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from wgangp.box import find_box, lipschitz_on_box
from wgangp.data.toy import SwissRoll, Toy, gaussians8, gaussians25
from wgangp.figures.common import format_spread
from wgangp.gradients import gradient_norm
from wgangp.lipschitz import corrected_wasserstein, slope_statistics
from wgangp.seeds import rng_for
from wgangp.state import use_eval_mode
from wgangp.transport import optimal_pairs, wasserstein1

__all__ = [
    "DATA",
    "PAIRINGS",
    "compute_error",
    "compute_mean_distance",
    "compute_proved_share",
    "count_peaks",
    "draw_batch",
    "draw_held_out",
    "evaluate",
    "evaluate_grid",
    "format_constant",
    "measure_gap",
]

DATA = {"8 Gaussians": gaussians8, "25 Gaussians": gaussians25, "Swiss roll": SwissRoll}
PAIRINGS = ("paired", "independent", "coupled")
POINTS, DRAWS = 2_000, 5  # points of each kind in a held-out sample, and the number of these samples
ANGLES = 64  # points on the circle around a mode


def draw_batch(
    data: Toy, k: int, size: int, seed: int, split: str = "train", *, pairing: str = "independent", repeat: int = 1
) -> tuple[Tensor, Tensor]:
    """Draw the batch of update k: real points and points of the fixed generator, (size, 2) each.

    Args:
        pairing: how the rows belong together, which decides where the interpolates lie. paired: fake_i is real_i +
            noise. independent: fake_i is another real point + noise. coupled: as independent, and then the rows of
            fake are permuted by optimal transport. The two distributions are the same in all three cases.
        repeat: the real points change every `repeat` updates only. The noise always changes.
    """
    (real,) = data.batch(k // repeat, size, seed, split)
    source = real
    if pairing != "paired":
        (source,) = data.batch(k // repeat, size, seed, split, purpose="fixed generator")
    rng = rng_for(seed, k, f"fixed generator/noise/{split}", real.device)
    fake = source + torch.randn(source.shape, generator=rng, device=real.device)
    return real, fake[optimal_pairs(real, fake)] if pairing == "coupled" else fake


def draw_held_out(name: str, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Draw DRAWS pairs of held-out samples of POINTS points each, drawn independently."""
    return [draw_batch(DATA[name](), 1 + draw, POINTS, seed, "heldout") for draw in range(DRAWS)]


@cache
def compute_distances(name: str, seed: int) -> list[float]:
    """Compute the exact W1 of every pair of held-out samples. They are the same for every critic."""
    return [wasserstein1(*samples) for samples in draw_held_out(name, seed)]


def evaluate(critic: nn.Module, name: str, seed: int, weight: float, *, max_cells: int = 200_000) -> dict[str, Any]:
    """Measure a critic on held-out points of the data set `name`.

    Args:
        weight: of the penalty, for the corrected gap; 0: there is none.
        max_cells: as in `lipschitz_on_box`.

    Returns:
        w1: the exact distance, one number per held-out sample
        gaps: E D(real) - E D(fake), one number per held-out sample; gap: their mean; corrected: see lipschitz.py
        constant: the interval [low, high] of the Lipschitz constant on the smallest box that has all points
        proved: the lower bound gap / high of W1, one number per held-out sample
        slopes: as `slope_statistics` with coupled=True
        peaks: the number of modes that the critic shows (`count_peaks`); None for data without modes
    """
    data = DATA[name](next(critic.parameters()).device)
    samples = draw_held_out(name, seed)
    gaps = [measure_gap(critic, *pair) for pair in samples]
    gap = sum(gaps) / len(gaps)
    constant = lipschitz_on_box(critic, *find_box(*chain.from_iterable(samples)), max_cells=max_cells)
    real, fake = (x.to(data.device) for x in samples[0])
    rng = rng_for(seed, 0, "eps/heldout", data.device)
    return {
        "w1": compute_distances(name, seed),
        "gaps": gaps,
        "gap": gap,
        "corrected": corrected_wasserstein(max(gap, 0.0), weight) if weight else None,
        "constant": list(constant),
        "proved": [gap / constant[1] if constant[1] else 0.0 for gap in gaps],
        "slopes": slope_statistics(critic, real, fake, rng=rng, coupled=True),
        "peaks": count_peaks(critic, data.centers) if hasattr(data, "centers") else None,
    }


def measure_gap(critic: nn.Module, real: Tensor, fake: Tensor) -> float:
    """Compute E D(real) - E D(fake) of a critic in eval mode, as its Lipschitz constant is. Nothing is changed."""
    device = next(critic.parameters()).device
    with use_eval_mode(critic), torch.no_grad():
        scores = [critic(x.to(device)).double().mean() for x in (real, fake)]
    return (scores[0] - scores[1]).item()


@torch.no_grad()
def count_peaks(critic: nn.Module, centers: Tensor) -> int:
    """Count the modes at which D has a peak.

    D has a peak at a mode if it is larger at the center of the mode than everywhere on a circle around it. The radius
    is half the distance to the nearest other mode.

    Args:
        centers: (M, 2), M >= 2.
    """
    distance = torch.cdist(centers, centers).fill_diagonal_(torch.inf)
    angle = torch.arange(ANGLES, device=centers.device) * (2 * torch.pi / ANGLES)
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)  # (ANGLES, 2)
    circles = centers[:, None] + distance.amin(1)[:, None, None] / 2 * ring  # (M, ANGLES, 2)
    around = critic(circles.flatten(0, 1)).view(len(centers), ANGLES)
    return int((critic(centers).flatten() > around.amax(1)).sum())


def evaluate_grid(
    critic: nn.Module, span: tuple[float, float], resolution: int, *, slope: bool = False
) -> list[list[float]]:
    """Compute D, or its slope, on a grid over span x span: one row per y, the smallest y first, with three digits."""
    ticks = torch.linspace(*span, resolution, device=next(critic.parameters()).device)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten()], dim=1)
    with torch.no_grad():
        value = gradient_norm(critic, points) if slope else critic(points).flatten()
    return [[float(f"{v:.3g}") for v in row] for row in value.view(resolution, resolution).tolist()]


def format_constant(records: list[dict[str, Any]]) -> str:
    """Format the Lipschitz constants of a cell: the middle of each interval, and by how much its ends differ."""
    ends = [run["constant"] for run in records]
    text = format_spread([(low + high) / 2 for low, high in ends], ".3g" if max(e[1] for e in ends) < 0.1 else ".2f")
    width = max(high / low - 1 if low else 0.0 for low, high in ends)
    return f"{text} (to {width:.0%})" if width > 0.0101 else text


def compute_mean_distance(record: dict[str, Any]) -> float:
    """Compute the mean of the exact distances of a record."""
    return sum(record["w1"]) / len(record["w1"])


def compute_error(record: dict[str, Any], key: str) -> float:
    """Compute estimate / W1 - 1, where key names the estimate."""
    return record[key] / compute_mean_distance(record) - 1


def compute_proved_share(record: dict[str, Any]) -> float:
    """Compute the proved lower bound of W1, divided by W1: the mean over the held-out samples. It is at most 1."""
    return sum(p / w for p, w in zip(record["proved"], record["w1"], strict=True)) / len(record["w1"])
