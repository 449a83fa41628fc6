"""Generators trained with different penalties: the distance of their samples to the data, and the modes they cover."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wgangp.data.toy import gaussians8, gaussians25
from wgangp.figures.common import (
    CLIP,
    DEPTH,
    DRAWN,
    POINTS,
    count_seeds,
    format_spread,
    make_run,
    score_samples,
    select,
    train_networks,
)
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.penalty import GradientPenalty
from wgangp.plots import draw_points, open_figure
from wgangp.seeds import initialize

__all__ = ["Penalties"]

DATA = {"8 Gaussians": gaussians8, "25 Gaussians": gaussians25}
PENALTIES = {
    "two-sided": GradientPenalty(),
    "one-sided": GradientPenalty(sides="one"),
    "zero-centered": GradientPenalty(target=0.0, points="real"),  # its weight is a setting of the figure
    "DRAGAN points": GradientPenalty(points="perturbed"),
    "clipping": GradientPenalty(weight=0.0),
}


@dataclass(frozen=True)
class Penalties:
    """Generator and critic on 8 and 25 Gaussians. With clipping the optimizer is RMSProp, otherwise Adam.

    "zero-centered" is the penalty R1 of Mescheder et al. 2018, at real points, with the weight `zero_weight`.
    """

    width: int
    steps: int
    lr: float = 1e-4
    batch_size: int = 256
    zero_weight: float = 10.0

    def cells(self) -> list[dict[str, str]]:
        return [{"data": data, "penalty": penalty} for data in DATA for penalty in PENALTIES]

    def measure(self, cell: dict[str, str], seed: int, folder: Path, device: torch.device) -> dict[str, Any]:
        data, penalty = DATA[cell["data"]](device), PENALTIES[cell["penalty"]]
        if cell["penalty"] == "zero-centered":
            penalty = replace(penalty, weight=self.zero_weight)
        clipping = cell["penalty"] == "clipping"
        sizes = {"width": self.width, "depth": DEPTH}
        generator = initialize(lambda: MLPGenerator(data.shape, **sizes), seed, "generator").to(device)
        critic = initialize(lambda: MLPCritic(data.shape, **sizes), seed, "critic").to(device)
        train_networks(
            folder,
            make_run(generator, critic, data, penalty, self.lr, seed, clipping),
            steps=self.steps,
            clip_weights=CLIP if clipping else None,
            batch_size=self.batch_size,
            log_every=max(1, self.steps // 50),
            report_size=self.batch_size,
        )
        return score_samples(generator, data, seed, device)

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        same_data = [select(records, data=name, penalty="two-sided") for name in DATA]  # equal for every penalty
        floors = [format_spread([run["floor"] for run in runs]) for runs in same_data]
        with open_figure(path, 2.7 * len(DATA) + 0.3) as figure:
            figure.get_layout_engine().set(h_pad=0.08)
            panels = figure.subplots(len(DATA), len(PENALTIES))
            for row, name in enumerate(DATA):
                data = DATA[name]()
                for column, penalty in enumerate(PENALTIES):
                    axes, runs = panels[row, column], select(records, data=name, penalty=penalty)
                    (real,) = data.batch(0, DRAWN, runs[0]["seed"], "heldout")
                    draw_points(axes, real, torch.tensor(runs[0]["samples"]), size=2)
                    axes.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal", xticks=[], yticks=[])
                    axes.set_title(f"{name},\n{penalty}")
                    axes.set_xlabel(
                        f"W1 {format_spread([run['w1'] for run in runs])}"
                        f"\nmodes {format_spread([run['modes'] for run in runs], '.1f')} of {len(data.centers)}"
                        f"\nwithin 3 sd {format_spread([run['high_quality'] for run in runs], '.0%')}"
                    )
            figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, markerscale=2)
            figure.suptitle(
                f"{self.steps:,} generator updates, {DEPTH} x {self.width} ReLU; mean +- sd over {count_seeds(records)}"
                f"\nW1 between two samples of the data: {', '.join(floors)}"
            )

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        rows = []
        for cell in self.cells():
            runs = select(records, **cell)
            rows.append(
                {
                    **cell,
                    f"W1 to {POINTS:,} held-out points": format_spread([run["w1"] for run in runs]),
                    "W1 between two samples of the data": format_spread([run["floor"] for run in runs]),
                    "modes covered": format_spread([run["modes"] for run in runs], ".1f"),
                    "samples within 3 sd of a mode": format_spread([run["high_quality"] for run in runs], ".0%"),
                }
            )
        return rows
