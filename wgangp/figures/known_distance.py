"""The critic as an estimate of W1, on pairs of distributions with a known W1 in 2 to 16 dimensions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes

from wgangp.certify import certified_lipschitz
from wgangp.data.pairs import Pair, funnels, shift
from wgangp.figures.common import DEPTH, describe_range, draw_band, format_spread, select, train_on_pair
from wgangp.lipschitz import expected_slope, proved_wasserstein, steepest_slope
from wgangp.networks.mlp import MLPCritic
from wgangp.penalty import GradientPenalty
from wgangp.plots import open_figure
from wgangp.seeds import initialize

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
        options = {"iterations": self.iterations, "lr": self.lr, "batch_size": self.batch_size}
        (high, low), numbers = train_on_pair(critic, pair, PENALTY, seed, HELD_OUT, **options)
        certified = certified_lipschitz(critic, pair.shape)
        with torch.no_grad():
            proved = proved_wasserstein(critic(high), critic(low), certified, seed=seed)
        return numbers | {
            "certified": certified,
            "steepest": steepest_slope(critic, torch.cat([high[:STARTS], low[:STARTS]]), ASCENT),
            "proved": proved["bound"],
            "proved_interval": [proved["low"], proved["high"]],
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
    values = torch.tensor([[value(run) for run in select(records, dim=dim)] for dim in DIMENSIONS])
    draw_band(axes, DIMENSIONS, values.T, marker="o", markersize=4, label=label)
    axes.set(xscale="log", xlabel="dimension", xticks=DIMENSIONS, xticklabels=DIMENSIONS)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
