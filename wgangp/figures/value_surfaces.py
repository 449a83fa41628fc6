"""Figure 1a: the contours of critics that are trained against a fixed generator, real + N(0, I), on three data sets."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wgangp.data.toy import SwissRoll, Toy, gaussians8, gaussians25
from wgangp.figures.common import CLIP, DEPTH, format_spread, select, train_critic
from wgangp.lipschitz import corrected_wasserstein, largest_quotient, slope_statistics
from wgangp.networks.mlp import MLPCritic
from wgangp.penalty import GradientPenalty
from wgangp.plots import cut_colormap, draw_points, open_figure
from wgangp.seeds import initialize, rng_for
from wgangp.transport import optimal_pairs, wasserstein1

__all__ = ["ValueSurfaces"]

DATA = {"8 Gaussians": gaussians8, "25 Gaussians": gaussians25, "Swiss roll": SwissRoll}
NO_PENALTY, TWO_SIDED = GradientPenalty(weight=0), GradientPenalty()
CRITICS = {  # name -> penalty; True if real and fake points are paired by optimal transport instead of at random
    "clipping": (NO_PENALTY, False),
    "two-sided": (TWO_SIDED, False),
    "one-sided": (GradientPenalty(sides="one"), False),
    "two-sided, coupled": (TWO_SIDED, True),
    "one-sided, coupled": (GradientPenalty(sides="one"), True),
    "two-sided at real": (GradientPenalty(points="real"), False),
    "two-sided at fake": (GradientPenalty(points="fake"), False),
    "two-sided, perturbed": (GradientPenalty(points="perturbed"), False),
    "one-sided at fake": (GradientPenalty(sides="one", points="fake"), False),
}
DRAWN = ("clipping", "two-sided", "one-sided")  # critics with a row in the picture
HELD_OUT = 20_000  # points of each kind for the gap
POINTS, DRAWS = 2_000, 5  # points of each kind for the exact W1, and how often it is computed
LINES = cut_colormap("viridis", 0.6)  # yellow lines would not be seen on white
RESOLUTION = 48  # of the grid for the contours, per axis


@dataclass(frozen=True)
class ValueSurfaces:
    """Critics trained for `iterations` updates. With clipping the optimizer is RMSProp, otherwise Adam.

    Paper: released gan_toy.py: 3 hidden layers of 512, lr 1e-4, 100,000 iterations. Differs: lambda is 0.1 there, and
    10 here, as the paper says of all experiments.
    """

    width: int
    iterations: int
    lr: float = 1e-4
    batch_size: int = 256

    def cells(self) -> list[dict[str, str]]:
        return [{"data": data, "critic": critic} for data in DATA for critic in CRITICS]

    def measure(self, cell: dict[str, str], seed: int, folder: Path, device: torch.device) -> dict[str, Any]:
        data = DATA[cell["data"]](device)
        penalty, coupled = CRITICS[cell["critic"]]
        critic = initialize(lambda: MLPCritic(data.shape, self.width, DEPTH), seed, "critic").to(device)

        def batch(k: int) -> tuple[Tensor, Tensor]:
            real, fake = draw_batch(data, k, self.batch_size, seed)
            return real, fake[optimal_pairs(real, fake)] if coupled else fake

        clip = CLIP if cell["critic"] == "clipping" else None
        train_critic(critic, batch, self.iterations, self.lr, penalty, seed, clip_weights=clip)
        record = {"w1": exact_distances(cell["data"], seed), **evaluate(critic, data, penalty, seed)}
        if cell["critic"] in DRAWN:
            record["surface"] = value_surface(critic, data)
        return record

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        seed = records[0]["seed"]
        with open_figure(path, 10.8) as figure:
            panels = figure.subplots(len(DRAWN), len(DATA))
            for row, critic in enumerate(DRAWN):
                for column, name in enumerate(DATA):
                    axes, runs = panels[row, column], select(records, data=name, critic=critic)
                    (run,) = select(runs, seed=seed)
                    data = DATA[name]()
                    (real,) = data.batch(0, 400, seed, "heldout")
                    ticks = torch.linspace(*data.span, RESOLUTION)
                    axes.contour(ticks, ticks, torch.tensor(run["surface"]), levels=16, cmap=LINES, linewidths=1)
                    draw_points(axes, real, size=1.8)
                    axes.set(xlim=data.span, ylim=data.span, aspect="equal", xticks=[], yticks=[])
                    axes.set(title=f"{name}, {critic}", xlabel=caption(runs))
            figure.suptitle(
                "Contours of D(x); generator fixed at real + N(0, I); dots: held-out real points"
                f"\n{self.iterations:,} critic iterations, {DEPTH} x {self.width} ReLU, lambda {TWO_SIDED.weight:g}"
            )

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        rows = []
        for critic in CRITICS:
            runs = select(records, critic=critic)
            corrected = [] if critic == "clipping" else [relative_error(run, "corrected") for run in runs]
            losses = {data: two_sided_loss(select(runs, data=data)) for data in DATA}
            rows.append(
                {
                    "critic": critic,
                    "gap / W1 - 1": format_spread([relative_error(run, "gap") for run in runs], "+.1%"),
                    "corrected / W1 - 1": format_spread(corrected, "+.1%") if corrected else "",
                    "cosine to the transport direction": format_spread(
                        [run["slopes"]["coupled"]["cosine"] for run in runs], ".2f"
                    ),
                    "slope at interpolates": format_spread([run["slopes"]["interpolates"]["mean"] for run in runs]),
                    **{f"two-sided loss, {data}": f"{loss:.3f}" for data, loss in losses.items()},
                }
            )
        return rows


def draw_batch(data: Toy, k: int, size: int, seed: int, split: str = "train") -> tuple[Tensor, Tensor]:
    """Draw batch k of both kinds (size, 2), independently: real points, and other real points + N(0, I)."""
    (real,) = data.batch(k, size, seed, split)
    (other,) = data.batch(k, size, seed, split, purpose="fixed generator")
    rng = rng_for(seed, k, f"fixed generator/noise/{split}", real.device)
    return real, other + torch.randn(other.shape, generator=rng, device=real.device)


@cache
def exact_distances(name: str, seed: int) -> list[float]:
    """Compute the exact W1 of DRAWS pairs of samples of POINTS points each. They are the same for every critic."""
    return [wasserstein1(*draw_batch(DATA[name](), 1 + draw, POINTS, seed, "heldout")) for draw in range(DRAWS)]


def evaluate(critic: MLPCritic, data: Toy, penalty: GradientPenalty, seed: int) -> dict[str, Any]:
    """Compute the gap and the slopes of a critic on held-out points."""
    real, fake = draw_batch(data, 0, HELD_OUT, seed, "heldout")
    with torch.no_grad():
        gap = (critic(real).double().mean() - critic(fake).double().mean()).item()
    fewer = draw_batch(data, 1, POINTS, seed, "heldout")
    rng = rng_for(seed, 0, "eps/heldout", real.device)
    return {
        "gap": gap,
        "corrected": corrected_wasserstein(max(gap, 0.0), penalty.weight) if penalty.weight else None,
        "slopes": slope_statistics(critic, *fewer, rng=rng, coupled=True),
        "largest_quotient": largest_quotient(critic, torch.cat(fewer)),
    }


def value_surface(critic: MLPCritic, data: Toy) -> list[list[float]]:
    """Compute D on a grid over the square of the data: one row per y, the smallest y first."""
    ticks = torch.linspace(*data.span, RESOLUTION, device=data.device)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    with torch.no_grad():
        value = critic(torch.stack([x.flatten(), y.flatten()], dim=1)).view(RESOLUTION, RESOLUTION)
    return [[float(f"{v:.4g}") for v in row] for row in value.tolist()]


def mean_distance(record: dict[str, Any]) -> float:
    """Compute the mean of the exact distances of a record."""
    return sum(record["w1"]) / len(record["w1"])


def relative_error(record: dict[str, Any], key: str) -> float:
    """Compute estimate / W1 - 1, where key names the estimate."""
    return record[key] / mean_distance(record) - 1


def two_sided_loss(records: list[dict[str, Any]]) -> float:
    """Compute -gap + lambda E (slope - 1)^2 on held-out points, the mean over seeds.

    It is the loss of the two-sided penalty on independent pairs. Here it is a score of every critic, also of critics
    that were trained with another loss.
    """
    slopes = [record["slopes"]["interpolates"] for record in records]
    excess = [(slope["mean"] - 1) ** 2 + slope["std"] ** 2 for slope in slopes]
    return sum(TWO_SIDED.weight * e - r["gap"] for e, r in zip(excess, records, strict=True)) / len(records)


def caption(records: list[dict[str, Any]]) -> str:
    """Return the text under a panel: numbers over all seeds."""
    distances = [value for record in records for value in record["w1"]]
    slopes = [record["slopes"]["interpolates"] for record in records]
    quantiles = ", ".join(f"{sum(slope[q] for slope in slopes) / len(slopes):.2g}" for q in ("q05", "q50", "q95"))
    gap = format_spread([record["gap"] for record in records], ".2g")
    if records[0]["corrected"] is not None:
        gap += f", corrected {format_spread([record['corrected'] for record in records])}"
    return (
        f"gap {gap}\nexact W1 {format_spread(distances)} ({len(distances)} x {POINTS:,} points)"
        f"\nslope at interpolates, 5 / 50 / 95 %:\n{quantiles}"
    )
