"""The critic as an estimate of W1, on pairs of distributions with a known W1 in 2 to 16 dimensions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from wgangp.certify import certified_lipschitz
from wgangp.data.pairs import Pair, funnels, shift
from wgangp.figures.common import DEPTH, describe_range, format_spread, select, train_critic
from wgangp.lipschitz import (
    corrected_wasserstein,
    cosine,
    expected_slope,
    proved_wasserstein,
    slope_at,
    steepest_slope,
)
from wgangp.networks.mlp import MLPCritic
from wgangp.penalty import GradientPenalty
from wgangp.plots import open_figure
from wgangp.seeds import initialize, rng_for

__all__ = ["KnownDistance"]

PAIRS = {"shift": shift, "funnels": funnels}
DIMENSIONS = (2, 4, 8, 16)
PENALTY = GradientPenalty()
HELD_OUT = 20_000  # points of each side
STARTS, ASCENT = 200, 100  # points of each side where the search for the steepest slope starts, and its steps
ESTIMATES = {"gap": "gap", "corrected": "corrected gap", "proved": "proved lower bound"}  # key of a record -> label


@dataclass(frozen=True)
class KnownDistance:
    """Critics with the two-sided penalty on independently drawn batches of both sides; the true W1 is `distance`.

    The seed also chooses the layout of the funnels.
    """

    width: int
    iterations: int
    lr: float = 1e-4
    batch_size: int = 256
    distance: float = 1.0

    def cells(self) -> list[dict[str, Any]]:
        return [{"pair": pair, "dim": dim} for pair in PAIRS for dim in DIMENSIONS]

    def measure(self, cell: dict[str, Any], seed: int, folder: Path, device: torch.device) -> dict[str, Any]:
        pair = self.build_pair(cell, seed, device)
        critic = initialize(lambda: MLPCritic(pair.shape, self.width, DEPTH), seed, "critic").to(device)

        def batch(k: int) -> tuple[Tensor, Tensor]:
            return pair.batch(k, self.batch_size, seed)[0], pair.low(k, self.batch_size, seed)

        train_critic(critic, batch, self.iterations, self.lr, PENALTY, seed)

        (high,) = pair.batch(0, HELD_OUT, seed, "heldout")
        low = pair.low(0, HELD_OUT, seed, "heldout")
        position = torch.rand(HELD_OUT, 1, generator=rng_for(seed, 0, "way", device), device=device)
        on_the_way = high + position * (pair.transport(high) - high)  # points where mass moves
        with torch.no_grad():
            scores = critic(high), critic(low)
        gap = (scores[0].double().mean() - scores[1].double().mean()).item()
        certified = certified_lipschitz(critic, pair.shape)
        proved = proved_wasserstein(*scores, certified, seed=seed)
        return {
            "distance": pair.distance,
            "gap": gap,
            "corrected": corrected_wasserstein(max(gap, 0.0), PENALTY.weight),
            "certified": certified,
            "steepest": steepest_slope(critic, torch.cat([high[:STARTS], low[:STARTS]]), ASCENT),
            "proved": proved["bound"],
            "proved_interval": [proved["low"], proved["high"]],
            "cosine": cosine(critic, on_the_way, high - pair.transport(high)).mean().item(),
            "slope": slope_at(critic, on_the_way).mean().item(),
        }

    def build_pair(self, cell: dict[str, Any], seed: int, device: torch.device | str = "cpu") -> Pair:
        """Build the pair of a cell."""
        layout = {"layout": seed} if cell["pair"] == "funnels" else {}
        return PAIRS[cell["pair"]](dim=cell["dim"], distance=self.distance, device=device, **layout)

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        ideal = expected_slope(self.distance, PENALTY.weight)
        with open_figure(path, 3.4) as figure:
            *panels, alignment = figure.subplots(1, 3)
            for axes, pair in zip(panels, PAIRS, strict=True):
                runs = select(records, pair=pair)
                for key, label in ESTIMATES.items():
                    _draw_curve(axes, runs, lambda run, key=key: run[key] / run["distance"], label)
                axes.axhline(1, color="black", linestyle=":", linewidth=1, label="true W1")
                axes.axhline(ideal, color="gray", linestyle="--", linewidth=1, label="gap of an ideal critic")
                axes.set(title=f"{pair}: estimate / true W1", ylim=(0, None))
                axes.legend(loc="center")
                _draw_curve(alignment, runs, lambda run: run["cosine"], pair)
            alignment.set(title="cosine: grad D, true gradient", ylim=(None, 1.005))
            alignment.legend()
            figure.suptitle(
                f"{self.iterations:,} critic iterations, {DEPTH} x {self.width} ReLU, lambda {PENALTY.weight:g},"
                f" W1 = {self.distance:g}, {HELD_OUT:,} held-out points; {describe_range(records)}"
            )

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        rows = []
        for cell in self.cells():
            runs = select(records, **cell)
            rows.append(
                {
                    "pair": f"{cell['pair']}, d = {cell['dim']}",
                    "gap / W1 - 1": format_spread([run["gap"] / run["distance"] - 1 for run in runs], "+.1%"),
                    "corrected / W1 - 1": format_spread(
                        [run["corrected"] / run["distance"] - 1 for run in runs], "+.1%"
                    ),
                    "proved lower bound of W1": format_spread([run["proved"] for run in runs], ".3f"),
                    "certified Lipschitz bound": format_spread([run["certified"] for run in runs], ".1f"),
                    "steepest slope found": format_spread([run["steepest"] for run in runs], ".2f"),
                    "mean slope where mass moves": format_spread([run["slope"] for run in runs], ".3f"),
                    "cosine": format_spread([run["cosine"] for run in runs], ".3f"),
                }
            )
        return rows


def _draw_curve(
    axes: Axes, records: list[dict[str, Any]], value: Callable[[dict[str, Any]], float], label: str
) -> None:
    """Draw the mean over seeds against the dimension, and the range as a band."""
    values = [[value(run) for run in select(records, dim=dim)] for dim in DIMENSIONS]
    (line,) = axes.plot(DIMENSIONS, [sum(v) / len(v) for v in values], marker="o", markersize=4, label=label)
    low, high = [min(v) for v in values], [max(v) for v in values]
    axes.fill_between(DIMENSIONS, low, high, alpha=0.2, color=line.get_color())
    axes.set(xscale="log", xlabel="dimension", xticks=DIMENSIONS, xticklabels=DIMENSIONS)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
