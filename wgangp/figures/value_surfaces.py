"""Figure 1a: what critics see of three distributions, when the generator is real + N(0, I) and stays so."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor

from wgangp.data.toy import SwissRoll, Toy, gaussians8, gaussians25
from wgangp.figures.common import fit, select, spread
from wgangp.lipschitz import corrected_wasserstein, largest_quotient, slope_statistics
from wgangp.networks.mlp import MLPCritic
from wgangp.penalty import GradientPenalty
from wgangp.seeds import generator_for, initialised
from wgangp.transport import optimal_pairs, wasserstein1

__all__ = ["ValueSurfaces"]

DATA = {"8 Gaussians": gaussians8, "25 Gaussians": gaussians25, "Swiss roll": SwissRoll}
DRAWN = ("clipping", "two-sided", "one-sided")
OFF = GradientPenalty(weight=0)
CRITICS = {  # penalty, and whether real and fake are paired by optimal transport rather than by chance
    "clipping": (OFF, False),
    "two-sided": (GradientPenalty(), False),
    "one-sided": (GradientPenalty(sides="one"), False),
    "two-sided, coupled": (GradientPenalty(), True),
    "one-sided, coupled": (GradientPenalty(sides="one"), True),
    "two-sided at real": (GradientPenalty(points="real"), False),
    "two-sided at fake": (GradientPenalty(points="fake"), False),
    "two-sided, perturbed": (GradientPenalty(points="perturbed"), False),
    "one-sided at fake": (GradientPenalty(sides="one", points="fake"), False),
}
DRAWS, POINTS, HELD_OUT = 5, 2_000, 20_000  # of exact W1; points of the gap
RESOLUTION = 48


@dataclass(frozen=True)
class ValueSurfaces:
    """Critics trained for `iterations` on batches of 256; clipping to +-0.01 with RMSProp 5e-5, Adam for the rest.

    Paper: released gan_toy.py: 3 hidden layers of 512, lr 1e-4, 100,000 iterations. Differs: its lambda is 0.1; here
    10, as the paper says of all experiments.
    """

    width: int
    iterations: int
    lr: float = 1e-4
    batch_size: int = 256

    PAPER: ClassVar = (
        "contours only, no number: critics with clipping ignore higher moments (the modes), those with the penalty see"
        " them"
    )

    @property
    def why(self) -> str:
        if (self.width, self.iterations, self.lr) != (128, 10_000, 1e-4):
            return "not looked into yet at this scale"  # what follows was read off results/value_surfaces
        return (
            f"their contours with the penalty show the modes; at lambda 10, width {self.width} and"
            f" {self.iterations:,} iterations (their code: 0.1, 512, 100,000) the two-sided critic is one tent in"
            " the middle of each data set. It has the slope that it should have, in the wrong direction: between"
            " two peaks the slope must pass 0, which the two-sided penalty charges for and the one-sided does"
            " not. On 8 Gaussians it is not even the best by its own loss: critics of the one-sided penalty and"
            " of coupled pairs have a lower two-sided loss, so descent is stuck. On 25 Gaussians, whose modes"
            " are closest, no critic got far in the time. At real and perturbed points nothing holds the slope"
            " elsewhere: where it agrees with W1, errors cancel. One seed: which of the one-sided choices is"
            " best is within the spread"
        )

    def cells(self) -> list[dict[str, str]]:
        return [{"data": data, "critic": critic} for data in DATA for critic in CRITICS]

    def measure(self, cell: dict[str, str], seed: int, folder: Path, device: torch.device) -> dict[str, Any]:
        data = DATA[cell["data"]](device)
        penalty, coupled = CRITICS[cell["critic"]]
        critic = initialised(lambda: MLPCritic(data.shape, self.width), seed, "critic").to(device)

        def batch(k: int) -> tuple[Tensor, Tensor]:
            real, fake = pairs(data, k, self.batch_size, seed)
            return real, fake[optimal_pairs(real, fake)] if coupled else fake

        clip = 0.01 if penalty is OFF else None
        fit(critic, batch, self.iterations, self.lr, penalty, seed, clip_weights=clip)
        record = {"w1": true_distances(cell["data"], seed), **examine(critic, data, penalty, seed)}
        if cell["critic"] in DRAWN:
            record["surface"] = surface(critic, data)
        return record

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        figure = Figure(figsize=(12, 14.5), layout="constrained")
        panels = figure.subplots(len(DRAWN), len(DATA))
        seed = records[0]["seed"]
        for row, critic in enumerate(DRAWN):
            for column, name in enumerate(DATA):
                axes, cell = panels[row, column], {"data": name, "critic": critic}
                (record,) = select(records, **cell, seed=seed)
                data = DATA[name]()
                ticks = torch.linspace(*data.span, RESOLUTION)
                axes.contour(ticks, ticks, torch.tensor(record["surface"]), levels=16, cmap="viridis", linewidths=1)
                axes.scatter(*data.batch(0, 400, seed, "heldout")[0].T, s=5, linewidths=0, color="#d95f02")
                axes.set(xlim=data.span, ylim=data.span, aspect="equal", xticks=[], yticks=[])
                axes.set_xlabel(caption(select(records, **cell)), fontsize=9)
                axes.set_title(f"{name}, {critic}", fontsize=11)
        title = "Contours of D(x); generator fixed at real + N(0, I); orange: held-out real points"
        figure.suptitle(
            f"{title}\n{self.iterations:,} critic iterations, 3 x {self.width} ReLU, lambda 10", fontsize=12
        )
        figure.savefig(path, dpi=90)

    def findings(self, records: list[dict[str, Any]]) -> str:
        errors = {critic: self.miss(records, critic) for critic in CRITICS if critic != "clipping"}
        closest, plain = min(errors, key=errors.get), errors["two-sided"]
        off = spread([off_by(r, "gap") for r in select(records, critic="two-sided")], "+.1%")
        return (
            f"the two-sided penalty on independent pairs misses the exact W1 of the samples by {off} with its gap, and"
            f" by {plain:.1%} in the mean after correction; {closest} comes closest ({errors[closest]:.1%}). Gaps of"
            " clipping are in the units of no distance. Mean +- sd over data sets and seeds, held out"
        )

    def miss(self, records: list[dict[str, Any]], critic: str) -> float:
        """The mean distance of the corrected gap from W1, as a share of it."""
        mine = select(records, critic=critic)
        return sum(abs(off_by(r, "corrected")) for r in mine) / len(mine)

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        rows = []
        for critic in CRITICS:
            mine, clipping = select(records, critic=critic), critic == "clipping"
            rows.append(
                {
                    "critic": critic,
                    "gap / W1 - 1": spread([off_by(r, "gap") for r in mine], "+.1%"),
                    "corrected / W1 - 1": "" if clipping else spread([off_by(r, "corrected") for r in mine], "+.1%"),
                    "cosine to the way mass moves": spread([r["slopes"]["coupled"]["cosine"] for r in mine], ".2f"),
                    "slope at interpolates": spread([r["slopes"]["interpolates"]["mean"] for r in mine], ".3f"),
                    **{
                        f"two-sided loss, {data}": f"{two_sided_objective(select(mine, data=data)):.3f}"
                        for data in DATA
                    },
                }
            )
        return rows


def off_by(record: dict[str, Any], key: str) -> float:
    return record[key] / w1(record) - 1


def pairs(data: Toy, k: int, size: int, seed: int, split: str = "train") -> tuple[Tensor, Tensor]:
    """Batch k of both sides (size, 2), drawn independently: real, and other real points + N(0, I)."""
    real, _ = data.batch(k, size, seed, split)
    other, _ = data.batch(k, size, seed, split, purpose="fixed generator")
    random = generator_for(seed, k, f"fixed generator/noise/{split}", real.device)
    return real, other + torch.randn(other.shape, generator=random, device=real.device)


def examine(critic: MLPCritic, data: Toy, penalty: GradientPenalty, seed: int) -> dict[str, Any]:
    """The critic on held-out points: its gap and its slopes."""
    real, fake = pairs(data, 0, HELD_OUT, seed, "heldout")
    with torch.no_grad():
        gap = (critic(real).double().mean() - critic(fake).double().mean()).item()
    few = pairs(data, 1, POINTS, seed, "heldout")
    random = generator_for(seed, 0, "eps/heldout", real.device)
    return {
        "gap": gap,
        "corrected": corrected_wasserstein(max(gap, 0.0), penalty.weight) if penalty.weight else None,
        "slopes": slope_statistics(critic, *few, generator=random, coupled=True),
        "largest_quotient": largest_quotient(critic, torch.cat(few)),
    }


def surface(critic: MLPCritic, data: Toy) -> list[list[float]]:
    """D on a grid over the data's square, a row for each y, upwards."""
    ticks = torch.linspace(*data.span, RESOLUTION, device=data.device)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    with torch.no_grad():
        value = critic(torch.stack([x.flatten(), y.flatten()], dim=1)).view(RESOLUTION, RESOLUTION)
    return [[float(f"{v:.4g}") for v in row] for row in value.tolist()]


@cache
def true_distances(name: str, seed: int) -> list[float]:
    """Exact W1 of DRAWS pairs of samples of POINTS each: the same for every critic."""
    return [wasserstein1(*pairs(DATA[name](), 1 + draw, POINTS, seed, "heldout")) for draw in range(DRAWS)]


def w1(record: dict[str, Any]) -> float:
    return sum(record["w1"]) / len(record["w1"])


def two_sided_objective(records: list[dict[str, Any]]) -> float:
    """What the two-sided penalty on independent pairs minimises, of a critic however trained, held out: the mean over
    seeds of -gap + lambda E (slope - 1)^2.
    """
    slopes = [record["slopes"]["interpolates"] for record in records]
    excess = [(slope["mean"] - 1) ** 2 + slope["std"] ** 2 for slope in slopes]
    weight = GradientPenalty().weight
    return sum(weight * e - r["gap"] for e, r in zip(excess, records, strict=True)) / len(records)


def caption(records: list[dict[str, Any]]) -> str:
    """What stands under a panel, over all seeds."""
    draws = [value for record in records for value in record["w1"]]
    slopes = [record["slopes"]["interpolates"] for record in records]
    quantiles = ", ".join(f"{sum(s[q] for s in slopes) / len(slopes):.2g}" for q in ("q05", "q50", "q95"))
    gap = spread([r["gap"] for r in records], ".2g")
    if records[0]["corrected"] is not None:
        gap += f", corrected {spread([r['corrected'] for r in records], '.3f')}"
    return (
        f"gap {gap}\nexact W1 {spread(draws)} ({len(draws)} x {POINTS:,} points)"
        f"\nslope at interpolates, 5 / 50 / 95 %: {quantiles}"
    )
