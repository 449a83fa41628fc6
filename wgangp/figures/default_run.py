"""The default run with and without a linear decay of the learning rates and an average of the generator's weights."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wgangp.data.toy import gaussians8
from wgangp.figures.common import count_seeds, format_spread, score_samples, select
from wgangp.figures.study import train_command
from wgangp.plots import draw_points, open_figure
from wgangp.runs import choose_generator

__all__ = ["DefaultRun"]

CONSTANT, AVERAGED = "train.decay_steps=null", "ema.decay={}"  # overrides of conf/config.yaml
VARIANTS = {"none": [CONSTANT], "decay": [], "EMA": [CONSTANT, AVERAGED], "both": [AVERAGED]}
SPAN = (-2.0, 2.0)  # of the panels


@dataclass(frozen=True)
class DefaultRun:
    """The run of scripts/train.py without arguments, in four variants. "decay" is the run as it is.

    steps, width and batch_size are those of conf/config.yaml; other values are for tests. ema_decay is the one of the
    variants with an average.
    """

    steps: int
    width: int
    batch_size: int
    ema_decay: float

    def cells(self) -> list[dict[str, str]]:
        return [{"variant": variant} for variant in VARIANTS]

    def list_overrides(self, variant: str) -> list[str]:
        """Return what a variant adds to the command scripts/train.py."""
        return [override.format(self.ema_decay) for override in VARIANTS[variant]]

    def measure(self, cell: dict[str, str], seed: int, folder: Path, device: torch.device) -> dict[str, Any]:
        widths = [f"networks.{network}.width={self.width}" for network in ("generator", "critic")]
        sizes = [f"train.steps={self.steps}", f"train.batch_size={self.batch_size}", *widths]
        own = [f"seed={seed}", f"device={device}", *self.list_overrides(cell["variant"])]
        run = train_command(folder, [*sizes, *own])
        return score_samples(choose_generator(run), run.data, seed, device)

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        with open_figure(path, 3.4) as figure:
            panels = figure.subplots(1, len(VARIANTS))
            for axes, variant in zip(panels, VARIANTS, strict=True):
                runs = select(records, variant=variant)
                (real,) = gaussians8().batch(0, len(runs[0]["samples"]), runs[0]["seed"], "heldout")
                draw_points(axes, real, torch.tensor(runs[0]["samples"]), size=2)
                axes.set(xlim=SPAN, ylim=SPAN, aspect="equal", xticks=[], yticks=[], title=variant)
                modes, share, w1 = (
                    statistics.median(run[key] for run in runs) for key in ("modes", "high_quality", "w1")
                )
                axes.set_xlabel(f"modes {modes:g} of 8\nwithin 3 sd {share:.0%}\nW1 {w1:.3f}")
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, markerscale=2)
            floor = statistics.median(run["floor"] for run in records)
            figure.suptitle(
                f"{self.steps:,} generator updates; samples of seed {records[0]['seed']}, medians over"
                f" {count_seeds(records)}. W1 between two samples of the data: {floor:.3f}"
            )

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        rows = []
        for cell in self.cells():
            runs = select(records, **cell)
            share = [run["high_quality"] for run in runs]
            rows.append(
                {
                    **cell,
                    "command": f"`{' '.join(['scripts/train.py', *self.list_overrides(cell['variant'])])}`",
                    "modes covered, median": f"{statistics.median(run['modes'] for run in runs):g} of 8",
                    "samples within 3 sd of a mode, median": f"{statistics.median(share):.0%}",
                    "mean +- sd": format_spread(share, ".0%"),
                    "W1 to 2,000 held-out points": format_spread([run["w1"] for run in runs]),
                    "W1 between two samples of the data": format_spread([run["floor"] for run in runs]),
                    "seconds": format_spread([run["seconds"] for run in runs], ".0f"),
                }
            )
        return rows
