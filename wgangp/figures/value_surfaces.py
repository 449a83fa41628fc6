"""Figure 1a: the contours of critics that are trained against a fixed generator, real + N(0, I), on three data sets.

Two settings decide what a critic shows: how real and fake points are paired for the interpolates, and the penalty.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wgangp.figures.common import CLIP, check_names, describe_range, format_spread, select, train_critic
from wgangp.figures.fixed_generator import (
    DATA,
    PAIRINGS,
    compute_error,
    compute_mean_distance,
    compute_proved_share,
    draw_batch,
    evaluate,
    evaluate_grid,
    format_constant,
)
from wgangp.networks.mlp import MLPCritic
from wgangp.penalty import GradientPenalty
from wgangp.plots import PAGE, cut_colormap, draw_points, open_figure
from wgangp.seeds import initialize

__all__ = ["ValueSurfaces"]

CRITICS = {"clipping": (GradientPenalty(weight=0), "paired")}  # name -> penalty, and one of PAIRINGS
for name, penalty in {
    "two-sided": GradientPenalty(),
    "one-sided": GradientPenalty(sides="one"),
    "lambda 0.1": GradientPenalty(weight=0.1),
}.items():
    CRITICS |= {f"{name}, {pairing}": (penalty, pairing) for pairing in PAIRINGS}
DRAWN = (  # columns of the picture
    *("two-sided, paired", "two-sided, independent", "two-sided, coupled"),
    *("one-sided, independent", "clipping"),
)
LINES = cut_colormap("viridis", 0.6)  # yellow lines would not be seen on white
RESOLUTION = 48  # of the grid for the contours, per axis


@dataclass(frozen=True)
class ValueSurfaces:
    """Critics trained for `iterations` updates. With clipping the optimizer is RMSProp, otherwise Adam.

    Args:
        width, depth: of the ReLU critic.
        repeat: updates per real batch. The noise of the fixed generator is new for every update.
        data, critics: names from DATA and CRITICS. Every data set is measured with every critic.
        compile: compute the gradients with torch.compile.

    Paper: no settings are given. The authors' working repository (igul222/nn, wgan_toy.py) has 2 x 1024, batch 1,024,
    lambda 10, 100,000 updates, 10 per real batch, and fake_i = real_i + noise ("paired"). Differs: the released
    gan_toy.py has 3 x 512, batch 256 and lambda 0.1.
    """

    width: int
    iterations: int
    data: list[str]
    critics: list[str]
    depth: int = 3
    lr: float = 1e-4
    batch_size: int = 256
    repeat: int = 1
    compile: bool = False

    def __post_init__(self) -> None:
        check_names(self, data=DATA, critics=CRITICS)
        if self.repeat < 1:
            raise ValueError(f"figure.repeat = {self.repeat}: must be >= 1")

    def cells(self) -> list[dict[str, str]]:
        return [{"data": data, "critic": critic} for data in self.data for critic in self.critics]

    def measure(self, cell: dict[str, str], seed: int, folder: Path, device: torch.device) -> dict[str, Any]:
        data = DATA[cell["data"]](device)
        penalty, pairing = CRITICS[cell["critic"]]
        critic = initialize(lambda: MLPCritic(data.shape, self.width, self.depth), seed, "critic").to(device)

        def batch(k: int) -> tuple[Tensor, Tensor]:
            return draw_batch(data, k, self.batch_size, seed, pairing=pairing, repeat=self.repeat)

        clip = CLIP if cell["critic"] == "clipping" else None
        train_critic(critic, batch, self.iterations, self.lr, penalty, seed, clip, compile=self.compile)
        record = evaluate(critic, cell["data"], seed, penalty.weight)
        if cell["critic"] in DRAWN:
            record["surface"] = evaluate_grid(critic, data.span, RESOLUTION)
        return record

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        seed = records[0]["seed"]
        drawn = [name for name in DRAWN if name in self.critics] or list(self.critics[:1])
        height = max(3.1, min(5.3, PAGE / len(drawn) + 1.1))  # square panels with a title and four lines below
        with open_figure(path, height * len(self.data) + 0.6) as figure:
            panels = figure.subplots(len(self.data), len(drawn), squeeze=False)
            for (row, name), (column, critic) in product(enumerate(self.data), enumerate(drawn)):
                axes, runs, data = panels[row, column], select(records, data=name, critic=critic), DATA[name]()
                (run,) = select(runs, seed=seed)
                (real,) = data.batch(0, 400, seed, "heldout")
                if "surface" in run:
                    ticks = torch.linspace(*data.span, RESOLUTION)
                    axes.contour(ticks, ticks, torch.tensor(run["surface"]), levels=16, cmap=LINES, linewidths=1)
                draw_points(axes, real, size=1.8)
                axes.set(xlim=data.span, ylim=data.span, aspect="equal", xticks=[], yticks=[])
                axes.set(title=f"{name}\n{critic}", xlabel=describe_panel(runs))
            figure.suptitle(
                "Contours of D(x); generator fixed at real + N(0, I); dots: held-out real points"
                f"\n{self.iterations:,} critic updates, batch {self.batch_size:,}, {self.depth} x {self.width} ReLU,"
                f" lambda {GradientPenalty().weight:g}; numbers: {describe_range(records, 'mean +- sd')}"
            )

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        return [summarize_cell(cell, select(records, **cell)) for cell in self.cells()]


def summarize_cell(cell: dict[str, str], runs: list[dict[str, Any]]) -> dict[str, str]:
    """Return a row of the table: mean +- standard deviation over the seeds of a cell."""
    peaks = [run["peaks"] for run in runs]
    has_modes = None not in peaks
    modes = len(DATA[cell["data"]]().centers) if has_modes else 0
    corrected = [compute_error(run, "corrected") for run in runs if run["corrected"] is not None]
    return {
        **cell,
        "seeds": str(len(runs)),
        "seeds that show all modes": str(sum(p == modes for p in peaks)) if has_modes else "",
        "modes shown": f"{format_spread(peaks, '.1f')} of {modes}" if has_modes else "",
        "cosine to the transport direction": format_spread([run["slopes"]["coupled"]["cosine"] for run in runs], ".2f"),
        "exact W1": format_spread([compute_mean_distance(run) for run in runs]),
        "gap / W1 - 1": format_spread([compute_error(run, "gap") for run in runs], "+.1%"),
        "corrected / W1 - 1": format_spread(corrected, "+.1%") if corrected else "",
        "Lipschitz constant": format_constant(runs),
        "proved / W1 - 1": format_spread([compute_proved_share(run) - 1 for run in runs], "+.1%"),
        "slope at interpolates": format_spread([run["slopes"]["interpolates"]["mean"] for run in runs]),
    }


def describe_panel(records: list[dict[str, Any]]) -> str:
    """Return the text under a panel: numbers over all seeds."""
    gap = format_spread([record["gap"] for record in records], ".2f")
    distance = format_spread([compute_mean_distance(record) for record in records], ".2f")
    cosine = format_spread([record["slopes"]["coupled"]["cosine"] for record in records], ".2f")
    return f"gap {gap}\nexact W1 {distance}\nconstant {format_constant(records)}\ncosine to transport {cosine}"
