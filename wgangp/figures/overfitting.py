"""Figure 5b: the critic loss on 1,000 training digits and on held-out digits, with the penalty and with clipping."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wgangp.data.images import Images, mnist
from wgangp.figures.common import CLIP, describe_range, draw_band, format_spread, make_run, select, train_networks
from wgangp.logs import read_metrics
from wgangp.networks.dcgan import MNISTCritic, MNISTGenerator
from wgangp.penalty import GradientPenalty
from wgangp.plots import open_figure
from wgangp.seeds import initialize, rng_for

__all__ = ["Overfitting"]

CRITICS = ("penalty", "clipping")
CURVES = {"training": "critic_loss", "held out": "heldout_critic_loss"}  # label -> name in the log


@dataclass(frozen=True)
class Overfitting:
    """The released MNIST networks, trained on `digits` random digits of MNIST.

    With the penalty: Adam. With clipping: RMSProp. Neither has normalization.

    Paper: figure 5b says "large unregularized WGANs" and 1,000 random digits. The code is not released. Differs: the
    released "wgan" mode of gan_mnist.py has batch norm in both networks, which regularizes.
    """

    width: int
    steps: int
    log_every: int
    digits: int = 1_000
    lr: float = 1e-4
    batch_size: int = 50
    data_root: str | None = None

    def __post_init__(self) -> None:
        if not 4 * self.log_every <= self.steps:
            raise ValueError(
                f"log_every = {self.log_every}: with steps = {self.steps} it must be <= {self.steps // 4}, because a"
                " curve needs at least four points"
            )

    def cells(self) -> list[dict[str, str]]:
        return [{"critic": critic} for critic in CRITICS]

    def measure(self, cell: dict[str, str], seed: int, folder: Path, device: torch.device) -> dict[str, Any]:
        try:
            data = choose_digits(mnist(self.data_root, device=device), self.digits, seed)
        except ValueError as error:
            raise ValueError(str(error).replace("data.root", "figure.data_root")) from error
        clipping = cell["critic"] == "clipping"
        generator = initialize(lambda: MNISTGenerator(data.shape, width=self.width), seed, "generator").to(device)
        critic = initialize(lambda: MNISTCritic(data.shape, width=self.width), seed, "critic").to(device)
        penalty = GradientPenalty(weight=0.0 if clipping else 10.0)
        train_networks(
            folder,
            make_run(generator, critic, data, penalty, self.lr, seed, clipping),
            steps=self.steps,
            clip_weights=CLIP if clipping else None,
            batch_size=self.batch_size,
            log_every=self.log_every,
            report_size=self.digits,
        )
        log = read_metrics(folder / "metrics.jsonl")
        curves = {label: [float(f"{-line[name]:.5g}") for line in log] for label, name in CURVES.items()}
        return {"step": [line["step"] for line in log], **curves}

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        with open_figure(path, 3.2) as figure:
            for axes, critic in zip(figure.subplots(1, 2), CRITICS, strict=True):
                runs = select(records, critic=critic)
                steps = runs[0]["step"][1:]  # the first report is of untrained networks
                for label in CURVES:
                    draw_band(axes, steps, [run[label][1:] for run in runs], label=label)
                axes.set(title=critic, xlabel="generator updates", ylabel="negative critic loss")
                axes.grid(alpha=0.3)
                axes.legend()
            figure.suptitle(
                f"Trained on {self.digits:,} MNIST digits; every point is the mean over {self.digits:,} digits;"
                f" width {self.width}; {describe_range(records)}"
            )

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        rows = []
        for critic in CRITICS:
            runs = select(records, critic=critic)
            row = {"critic": critic, "updates": f"{self.steps:,}"}
            for label in CURVES:
                trends = [trend(run[label], run["step"]) for run in runs]
                row[f"{label}: last value"] = format_spread([run[label][-1] for run in runs], ".4g")
                row[f"{label}: change per 100 updates, last half"] = format_spread(trends, "+.3g")
            rows.append(row)
        return rows


def choose_digits(data: Images, digits: int, seed: int) -> Images:
    """Return the same images with only `digits` training images, a random choice that is a function of the seed."""
    rng = rng_for(seed, 0, "overfitting/subset")
    chosen = torch.randperm(len(data.pictures["train"]), generator=rng)[:digits].to(data.device)
    pictures, labels = ({**part, "train": part["train"][chosen]} for part in (data.pictures, data.labels))
    return Images(pictures, labels, data.dequantize, data.device)


def trend(values: list[float], steps: list[int]) -> float:
    """Compute the slope of the last half of a curve by least squares, per 100 updates."""
    half = len(values) // 2
    x, y = (torch.tensor(v[half:], dtype=torch.float64) for v in (steps, values))
    return 100 * ((x - x.mean()) * (y - y.mean())).sum().item() / (x - x.mean()).square().sum().item()
