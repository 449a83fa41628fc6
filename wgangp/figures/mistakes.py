"""What common mistakes in WGAN-GP code do to the critic's slope, to its distances, and to the samples.

textbook.py has the code with the mistakes.
"""

import math
import statistics
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wgangp.box import lipschitz_on_box
from wgangp.data.images import Images, mnist
from wgangp.data.toy import Toy, gaussians8
from wgangp.figures.common import DEPTH, count_seeds, list_points, select, train_critic
from wgangp.figures.image_runs import draw_pictures, encode_pictures
from wgangp.figures.textbook import LAMBDA, VERSIONS, Version, insert_batch_norm, penalize, to_pictures, train_pair
from wgangp.lipschitz import corrected_wasserstein, slope_statistics
from wgangp.networks.dcgan import MNISTCritic, MNISTGenerator
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.penalty import GradientPenalty
from wgangp.plots import draw_points, open_figure
from wgangp.seeds import draw_latent, initialize, rng_for
from wgangp.transport import wasserstein1

__all__ = ["Mistakes"]

DIGITS, PLANE = "MNIST", "8 Gaussians"
SHAPES = {DIGITS: (1, 28, 28), PLANE: (1, 1, 2)}  # of one picture
HELD_OUT = 2_000  # samples of each kind for slopes, distances and the exact W1
NEW_CRITIC = 500  # updates of the new critic that measures the distance to held-out digits
TOLERANCE, MAX_CELLS = 0.05, 20_000  # of the exact constant; the interval is wider if the search stops at MAX_CELLS
DRAWN, COLUMNS = 250, 6  # points per panel, panels per row
NUMBERS = ("slope", "slope_sd", "gap", "penalty", "distance", "constant", "samples")  # of a record; None: not finite


@dataclass(frozen=True)
class Mistakes:
    """One pair of networks per mistake: the released ones on MNIST, and multilayer perceptrons on 8 Gaussians.

    width, steps and batch_size are those of 8 Gaussians; digit_width, digit_steps and digit_batch_size those of MNIST.
    """

    width: int
    steps: int
    digit_width: int
    digit_steps: int
    lr: float = 1e-4
    batch_size: int = 256
    digit_batch_size: int = 50
    data_root: str | None = None

    def cells(self) -> list[dict[str, str]]:
        digits = [{"data": DIGITS, "mistake": mistake} for mistake in VERSIONS]
        # In the plane a column is one pixel, so that a norm per column is the norm over axis 1.
        return digits + [{"data": PLANE, "mistake": mistake} for mistake in VERSIONS if mistake != "norm per column"]

    def measure(self, cell: dict[str, str], seed: int, folder: Path, device: torch.device) -> dict[str, Any]:
        version, in_plane = VERSIONS[cell["mistake"]], cell["data"] == PLANE
        data = gaussians8(device) if in_plane else self._read_digits(device)
        width = self.width if in_plane else self.digit_width
        steps = self.steps if in_plane else self.digit_steps
        size = self._batch_size(cell["data"])
        generator = initialize(lambda: build_generator(data, width), seed, "generator").to(device)
        critic = initialize(lambda: build_critic(data, width, version.batch_norm), seed, "critic").to(device)
        stopped = train_pair(version, generator, critic, data, steps, self.lr, size, seed)
        record = {"stopped": stopped, **dict.fromkeys(NUMBERS)}
        if stopped is not None:
            return record

        with torch.no_grad():
            fake = to_pictures(generator(*draw_latent(generator, HELD_OUT, seed, 0, "figure", device)))
        real = to_pictures(*data.batch(0, HELD_OUT, seed, "heldout"))
        record |= evaluate(version, critic, real, fake, seed)
        if in_plane:
            record["distance"] = wasserstein1(real, fake)
            record["constant"] = find_constant(critic[1], torch.cat([real, fake]))
            record["samples"] = list_points(fake[:DRAWN].flatten(1))
        else:
            new_critic = initialize(lambda: build_critic(data, width), seed, "new critic").to(device)
            record["distance"] = measure_distance(new_critic, generator, data, real, fake, self.lr, size, seed)
            record["samples"] = encode_pictures(folder, fake[:16], (0.0, 1.0))
        return record

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        rows = math.ceil(len(VERSIONS) / COLUMNS)  # per data set
        with open_figure(path, 4.1 * rows + 0.8) as figure:
            figure.get_layout_engine().set(h_pad=0.06)
            panels = list(figure.subplots(2 * rows, COLUMNS).flat)
            for data, own in ((DIGITS, panels[: rows * COLUMNS]), (PLANE, panels[rows * COLUMNS :])):
                mistakes = [cell["mistake"] for cell in self.cells() if cell["data"] == data]
                for axes, mistake in zip(own, mistakes, strict=False):
                    draw_panel(axes, data, mistake, select(records, data=data, mistake=mistake))
                for axes in own[len(mistakes) :]:
                    axes.set_axis_off()
                    axes.legend(*own[0].get_legend_handles_labels(), loc="center", markerscale=3)
            figure.suptitle(
                f"{DIGITS}: {self.digit_steps:,} generator updates, width {self.digit_width}. {PLANE}: {self.steps:,}"
                f" updates, {DEPTH} x {self.width} ReLU. Mean +- sd over {count_seeds(records)}"
                "\nslope: ||grad D|| over all axes at held-out interpolates. distance: W1 to held-out digits, estimated"
                " by a new critic; W1: exact"
            )

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        rows = []
        for mistake in VERSIONS:
            digits, points = (select(records, data=data, mistake=mistake) for data in (DIGITS, PLANE))
            ends = [run["constant"] or (None, None) for run in points]
            rows.append(
                {
                    "mistake": mistake,
                    **self._compare_slopes(DIGITS, mistake, digits),
                    f"{DIGITS}: gap of its own critic": format_finite([run["gap"] for run in digits]),
                    f"{DIGITS}: its own penalty": format_finite([run["penalty"] for run in digits]),
                    f"{DIGITS}: distance by a new critic": format_finite([run["distance"] for run in digits]),
                    **self._compare_slopes(PLANE, mistake, points),
                    f"{PLANE}: exact constant, at least": format_finite([low for low, _ in ends]),
                    f"{PLANE}: exact constant, at most": format_finite([high for _, high in ends]),
                    f"{PLANE}: W1": format_finite([run["distance"] for run in points]),
                }
            )
        return rows

    def _compare_slopes(self, data: str, mistake: str, runs: list[dict[str, Any]]) -> dict[str, str]:
        """Return the columns with the slope and with the two predictions of it, which need no run and a distance."""
        distances = [run["distance"] for run in runs if run["distance"] is not None]
        limit = VERSIONS[mistake].expect_slope(SHAPES[data], self._batch_size(data), 0.0)
        expected = None
        if distances:
            mean = sum(distances) / len(distances)
            expected = VERSIONS[mistake].expect_slope(SHAPES[data], self._batch_size(data), mean)
        return {
            f"{data}: slope over all axes": format_finite([run["slope"] for run in runs]),
            f"{data}: sqrt(k)": "" if limit is None or not runs else f"{limit:.3g}",
            f"{data}: sqrt(k) + k W1 / (2 lambda)": "" if expected is None else f"{expected:.3g}",
        }

    def _batch_size(self, data: str) -> int:
        return self.digit_batch_size if data == DIGITS else self.batch_size

    def _read_digits(self, device: torch.device) -> Images:
        try:
            return mnist(self.data_root, device=device)
        except ValueError as error:
            raise ValueError(str(error).replace("data.root", "figure.data_root")) from error


def build_generator(data: Toy | Images, width: int) -> nn.Module:
    """Build the generator of a data set."""
    if data.shape == (2,):
        return MLPGenerator(data.shape, width=width, depth=DEPTH)
    return MNISTGenerator(data.shape, width=width)


def build_critic(data: Toy | Images, width: int, batch_norm: bool = False) -> nn.Module:
    """Build the critic of a data set, a function of pictures (B, C, H, W)."""
    critic = MLPCritic(data.shape, width, DEPTH) if data.shape == (2,) else MNISTCritic(data.shape, width)
    if batch_norm:
        critic.layers = insert_batch_norm(critic.layers)
    return nn.Sequential(nn.Flatten(), critic) if data.shape == (2,) else critic


def evaluate(version: Version, critic: nn.Module, real: Tensor, fake: Tensor, seed: int) -> dict[str, float | None]:
    """Compute slope, gap and penalty on held-out pictures, in eval mode. A number that is not finite is None."""
    critic.eval()
    rng = rng_for(seed, 0, "eps/penalty", real.device)
    with torch.no_grad():
        gap = (critic(real).double().mean() - critic(fake).double().mean()).item()
    slope = slope_statistics(critic, real, fake, rng=rng_for(seed, 0, "eps/heldout", real.device))["interpolates"]
    numbers = {"slope": slope["mean"], "slope_sd": slope["std"], "gap": gap}
    numbers["penalty"] = penalize(version, critic, real, fake, rng).item()
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def find_constant(critic: MLPCritic, points: Tensor) -> tuple[float, float]:
    """Compute an interval for the Lipschitz constant on the square around 0 that holds the data and all points."""
    edge = max(Toy.span[1], points.abs().max().item())
    return lipschitz_on_box(critic, [-edge] * 2, [edge] * 2, tolerance=TOLERANCE, max_cells=MAX_CELLS)


def measure_distance(
    critic: nn.Module, generator: nn.Module, data: Images, real: Tensor, fake: Tensor, lr: float, size: int, seed: int
) -> float:
    """Estimate W1 between held-out real and fake pictures, in the same way for every mistake.

    A new critic is trained with this package's penalty, on training digits and the finished generator. Its gap is
    corrected.
    """

    def batch(k: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            samples = generator(*draw_latent(generator, size, seed, k, "new critic", real.device))
        return data.batch(k, size, seed, purpose="new critic")[0], samples

    train_critic(critic, batch, NEW_CRITIC, lr, GradientPenalty(LAMBDA), seed)
    with torch.no_grad():
        gap = (critic(real).double().mean() - critic(fake).double().mean()).item()
    return corrected_wasserstein(max(gap, 0.0), LAMBDA)


def draw_panel(axes: Any, data: str, mistake: str, runs: list[dict[str, Any]]) -> None:
    """Draw the samples of the first run, with the slope and the distance of all runs under them."""
    samples = runs[0]["samples"]
    axes.set(title="\n".join(textwrap.wrap(mistake, 17)), xticks=[], yticks=[])
    if samples is None:
        axes.text(0.5, 0.5, f"not finite\nafter {runs[0]['stopped']:,}\nupdates", ha="center", va="center")
        axes.set_box_aspect(1)
    elif data == DIGITS:
        draw_pictures(axes, samples)
    else:
        (real,) = gaussians8().batch(0, DRAWN, runs[0]["seed"], "heldout")
        draw_points(axes, real, torch.tensor(samples), size=2)
        axes.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal")
    slope, distance = (format_finite([run[name] for run in runs]) for name in ("slope", "distance"))
    axes.set_xlabel(f"slope {slope}\n{'distance' if data == DIGITS else 'W1'} {distance}")


def format_finite(values: list[float | None]) -> str:
    """Format values as mean +- standard deviation, and say how many are not finite (None). No values: empty."""
    finite = [value for value in values if value is not None]
    if not finite:
        return "not finite" if values else ""
    spread = f" +- {format_number(statistics.stdev(finite), 1)}" if len(finite) > 1 else ""
    lost = f" ({len(values) - len(finite)} of {len(values)} not finite)" if len(finite) < len(values) else ""
    return f"{format_number(statistics.mean(finite), 3)}{spread}{lost}"


def format_number(value: float, digits: int) -> str:
    """Format a number with `digits` digits, but without an exponent below 100,000."""
    large = 10**digits <= abs(value) < 100_000
    return f"{value:,.0f}" if large else f"{value:.{digits}g}".replace("e+0", "e")
