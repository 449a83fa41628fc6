"""Figure 3: the DCGAN-like CIFAR-10 pair in four modes, over generator updates and over time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wgangp.figures.common import describe_range, format_spread, select
from wgangp.figures.image_runs import (
    NEVER,
    draw_pictures,
    draw_samples,
    encode_pictures,
    list_data_options,
    read_elapsed,
    score_images,
    train_finite,
)
from wgangp.plots import open_figure

__all__ = ["CIFARModes"]

MODES = {  # curve -> experiment
    "weight clipping": "cifar_dcgan_clip",
    "gradient penalty (RMSProp)": "cifar_dcgan_rmsprop",
    "gradient penalty (Adam)": "cifar_dcgan",
    "DCGAN": "cifar_dcgan_dcgan",
}
RATES = dict(zip(MODES, (5e-5, 5e-5, 1e-4, 2e-4), strict=True))  # Paper: released gan_cifar.py
SHOWN, COLUMNS = 24, 6  # samples per panel


@dataclass(frozen=True)
class CIFARModes:
    """The four experiments of figure 3, scored at `points` equal intervals.

    Paper: figure 3: Inception score over 200,000 generator updates, and over time. Differs: the score is the sliced
    Wasserstein distance in pixels (figures/image_runs.py) until there is an Inception score. Times include a report per
    point.

    Args:
        width: of both networks.
        steps: generator updates, a multiple of points.
        rate_factor: factor of all published learning rates.
        points: how often a run is scored.
        batch_size: samples of each kind per update.
        samples: samples of each kind for the distance, and per line of the log.
        data: cifar10 or image_folder, whose images are resized to 32 x 32.
        data_root: the folder of the data; null: data=cifar10 is downloaded to ./data.
    """

    width: int
    steps: int
    points: int
    rate_factor: float = 1.0
    batch_size: int = 64
    samples: int = 1_000
    data: str = "cifar10"
    data_root: str | None = None

    def __post_init__(self) -> None:
        if self.points < 1 or self.steps % self.points or self.steps < 1:
            raise ValueError(f"figure.steps = {self.steps}: must be a multiple of figure.points = {self.points}")

    def cells(self) -> list[dict[str, str]]:
        return [{"mode": mode} for mode in MODES]

    def measure(self, cell: dict[str, str], seed: int, folder: Path, device: torch.device) -> dict[str, Any]:
        interval = self.steps // self.points
        widths = [f"networks.{network}.width={self.width}" for network in ("generator", "critic")]
        sizes = [f"train.batch_size={self.batch_size}", f"train.report_size={self.samples}"]
        every = [f"train.{name}_every={interval}" for name in ("log", "sample", "checkpoint")]
        data = list_data_options(self.data, self.data_root, 32)
        rate = [f"optim.lr={self.rate_factor * RATES[cell['mode']]}"] if self.rate_factor != 1 else []
        others = [*rate, *widths, *sizes, *every, f"train.lipschitz_every={NEVER}", f"seed={seed}", f"device={device}"]
        record: dict[str, Any] = {"finite": True, "step": [], "elapsed_s": [], "distance": [], "floor": None}
        pictures = None
        for step in range(interval, self.steps + 1, interval):  # a longer run continues a shorter one
            experiment = [f"experiment={MODES[cell['mode']]}", f"train.steps={step}"]
            run = train_finite(folder, [*experiment, *data, *others])
            if run is None:
                record["finite"] = False
                break
            scores = score_images(run, self.samples, self.batch_size)
            for name, value in (("step", step), ("elapsed_s", read_elapsed(folder)), ("distance", scores["distance"])):
                record[name].append(value)
            record["floor"] = scores["floor"]
            pictures = encode_pictures(folder, draw_samples(run, SHOWN, self.batch_size), run.data.span, COLUMNS)
        return record | {"pictures": pictures}

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        with open_figure(path, 5.6) as figure:
            upper, lower = figure.subfigures(2, 1, height_ratios=(1.5, 1))
            by_update, by_time = upper.subplots(1, 2, sharey=True)
            for mode, axes in zip(MODES, lower.subplots(1, len(MODES)), strict=True):
                runs = [run for run in select(records, mode=mode) if run["finite"]]
                axes.set_title(mode)
                if not runs:
                    axes.text(0.5, 0.5, "not finite", ha="center", va="center")
                    axes.set(xticks=[], yticks=[])
                    continue
                draw_pictures(axes, runs[0]["pictures"])
                ratios, minutes = (torch.tensor(values) for values in (compute_ratios(runs), list_minutes(runs)))
                for panel, x in ((by_update, torch.tensor(runs[0]["step"])), (by_time, minutes.mean(0))):
                    (line,) = panel.plot(x, ratios.mean(0), label=mode)
                    panel.fill_between(x, ratios.amin(0), ratios.amax(0), alpha=0.2, color=line.get_color())
            by_update.set(xlabel="generator updates", ylabel="distance / floor", yscale="log")
            by_time.set(xlabel="minutes of training")
            for axes in (by_update, by_time):
                axes.grid(alpha=0.3)
            if by_update.lines:
                by_update.legend()
            figure.suptitle(
                f"data={self.data}, width {self.width}, {self.rate_factor:g} x the published learning rates"
                f"\ndistance: sliced W1 of {self.samples:,} samples to held-out images;"
                f" floor: of training images; {describe_range(records)}"
            )

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        rows = []
        for mode, experiment in MODES.items():
            runs = select(records, mode=mode)
            finite = [run for run in runs if run["finite"]]
            rows.append(
                {
                    "mode": mode,
                    "command": f"`scripts/train.py experiment={experiment}`",
                    "finite runs": f"{len(finite)} of {len(runs)}",
                    "distance / floor at the end": format_spread([r[-1] for r in compute_ratios(finite)], ".1f")
                    if finite
                    else "",
                    "smallest": format_spread([min(r) for r in compute_ratios(finite)], ".1f") if finite else "",
                    "minutes": format_spread([m[-1] for m in list_minutes(finite)], ".0f") if finite else "",
                }
            )
        return rows


def compute_ratios(records: list[dict[str, Any]]) -> list[list[float]]:
    """Return distance / floor at every point of every run."""
    return [[distance / run["floor"] for distance in run["distance"]] for run in records]


def list_minutes(records: list[dict[str, Any]]) -> list[list[float]]:
    """Return the minutes of training until every point of every run."""
    return [[seconds / 60 for seconds in run["elapsed_s"]] for run in records]
