"""Figure 2: eight pairs of networks for 64 x 64 images, each trained with four losses."""

import shlex
import textwrap
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wgangp.figures.common import check_names, count_seeds, select
from wgangp.figures.image_runs import (
    NEVER,
    build_score,
    check_samples,
    describe_real,
    draw_samples,
    format_score,
    list_data_options,
    score_images,
    show_samples,
    train_finite,
)
from wgangp.plots import open_figure

__all__ = ["Architectures"]

PAIRS = {  # title in the picture -> networks=zoo/NAME. Paper: the rows of figure 2, and the pair "Good" of gan_64x64.py
    "released default": "good",
    "DCGAN": "dcgan",
    "generator without batch norm, constant number of filters": "constant_filters",
    "generator: MLP of 4 layers of 512": "mlp",
    "no normalization": "no_norm",
    "gated nonlinearities": "gated",
    "tanh": "tanh",
    "101-layer ResNet": "resnet101",
}
BATCH_NORM = "networks.critic.norm=batch"  # of critics without a penalty. zoo/no_norm has none
RATES = {"DCGAN": 2e-4, "LSGAN": 1e-4, "WGAN, clipping": 5e-5, "WGAN-GP": 1e-4}  # Paper: released gan_64x64.py
LOSSES = {  # column -> overrides of experiment=architectures, without the rate
    "DCGAN": ["loss=non_saturating", "optim=adam_dcgan", "train.critic_steps=1", "penalty.weight=0", BATCH_NORM],
    "LSGAN": ["loss=least_squares", "optim=rmsprop", "train.critic_steps=1", "penalty.weight=0", BATCH_NORM],
    "WGAN, clipping": ["optim=rmsprop", "clip.weights=0.01", "penalty.weight=0", BATCH_NORM],
    "WGAN-GP": [],
}
SHOWN, COLUMNS = 8, 4  # samples per panel


@dataclass(frozen=True)
class Architectures:
    """Every pair of networks with every loss, with one set of hyperparameters per loss.

    Paper: figure 2 shows seven pairs, LSUN bedrooms, 200,000 generator updates; the released gan_64x64.py has ImageNet.
    Differs: any folder of images.

    Args:
        pairs, losses: names from PAIRS and LOSSES.
        width: of both networks.
        steps: generator updates.
        rate_factor: factor of all published learning rates.
        batch_size: samples of each kind per update.
        samples: samples for the scores, 1,281 or more.
        data_root: a folder of images. They are resized to 64 x 64; every tenth is held out.
    """

    pairs: list[str]
    losses: list[str]
    width: int
    steps: int
    rate_factor: float
    batch_size: int
    samples: int
    data_root: str

    def __post_init__(self) -> None:
        check_names(self, pairs=PAIRS, losses=LOSSES)
        check_samples(self.samples)

    def cells(self) -> list[dict[str, str]]:
        return [{"pair": pair, "loss": loss} for pair in self.pairs for loss in self.losses]

    def list_overrides(self, pair: str, loss: str) -> list[str]:
        """Return what a cell adds to the command scripts/train.py."""
        own = [override for override in LOSSES[loss] if (pair, override) != ("no normalization", BATCH_NORM)]
        rate = f"optim.lr={self.rate_factor * RATES[loss]:g}"
        widths = [f"networks.{network}.width={self.width}" for network in ("generator", "critic")]
        sizes = {"steps": self.steps, "batch_size": self.batch_size, "report_size": self.batch_size}
        data = list_data_options("image_folder", self.data_root, 64)
        others = [rate, *data, *widths, *(f"train.{name}={size}" for name, size in sizes.items())]
        return ["experiment=architectures", f"networks=zoo/{PAIRS[pair]}", *own, *others]

    def measure(self, cell: dict[str, str], seed: int, folder: Path, device: torch.device) -> dict[str, Any]:
        every = [f"train.{name}_every={max(1, self.steps // 4)}" for name in ("log", "sample", "checkpoint")]
        others = [*every, f"train.lipschitz_every={NEVER}", f"seed={seed}", f"device={device}"]
        check = partial(build_score, n=self.samples)
        run = train_finite(folder, [*self.list_overrides(**cell), *others], check)
        if run is None:
            return {"finite": False, "is": None, "fid": None, "pictures": None}
        pictures = show_samples(run, folder, SHOWN, COLUMNS)
        return {"finite": True, **score_images(run, self.samples), "pictures": pictures}

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        with open_figure(path, 1.25 * len(self.pairs) + 0.7) as figure:
            panels = figure.subplots(len(self.pairs), len(self.losses), squeeze=False)
            for row, pair in zip(panels, self.pairs, strict=True):
                for axes, loss in zip(row, self.losses, strict=True):
                    runs = select(records, pair=pair, loss=loss)
                    draw_samples(axes, runs[0]["pictures"])
                    if runs[0]["pictures"] is None:
                        axes.set_box_aspect(SHOWN / COLUMNS / COLUMNS)
                    axes.set_xlabel(f"FID {format_score(runs, 'fid')}", labelpad=2)
                row[0].set_ylabel("\n".join(textwrap.wrap(pair, 18)), rotation=0, ha="right", va="center")
            for axes, loss in zip(panels[0], self.losses, strict=True):
                axes.set_title(loss)
            figure.suptitle(
                f"Samples after {self.steps:,} generator updates, width {self.width}, batch {self.batch_size},"
                f" {self.rate_factor:g} x the published learning rates ({count_seeds(records)})"
                f"\nFID of {self.samples:,} samples in features of EfficientNet; {describe_real(records)}"
            )

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        rows = [
            {
                "networks": f"{pair} (`networks=zoo/{PAIRS[pair]}`)",
                **{loss: format_score(select(records, pair=pair, loss=loss), "fid") for loss in self.losses},
            }
            for pair in self.pairs
        ]
        first = self.pairs[0]
        command = f"command of {first}. Other rows: another `networks=`; `zoo/no_norm` without `{BATCH_NORM}`"
        commands = {loss: f"`scripts/train.py {shlex.join(self.list_overrides(first, loss))}`" for loss in self.losses}
        real = {"networks": f"no run: {describe_real(records)}", **dict.fromkeys(self.losses, "")}
        return [*rows, real, {"networks": command, **commands}]
