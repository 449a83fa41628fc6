"""What each way of constraining a critic really gives: exact Lipschitz constants in the plane.

Each critic is trained against a fixed generator, real + N(0, I), until its learning rate is 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from wgangp.box import find_box, lipschitz_on_box
from wgangp.figures.common import DEPTH, check_names, describe_range, draw_band, format_spread, select, train_critic
from wgangp.figures.fixed_generator import (
    DATA,
    compute_error,
    compute_mean_distance,
    compute_proved_share,
    draw_batch,
    draw_held_out,
    evaluate,
    evaluate_grid,
    format_constant,
    measure_gap,
)
from wgangp.lipschitz import expected_slope
from wgangp.networks.mlp import MLPCritic
from wgangp.networks.orthogonal import OrthogonalCritic
from wgangp.penalty import GradientPenalty
from wgangp.plots import draw_points, open_figure
from wgangp.seeds import initialize

__all__ = ["LipschitzTable"]

LOOKS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)  # parts of the training after which the constant is computed
RESOLUTION = 64  # of the grid for the slope, per axis


class AtRealAndFake(GradientPenalty):
    """The sum of a penalty at the real points and the same penalty at the fake points."""

    def __call__(
        self, critic: Callable[..., Tensor], real: Tensor, fake: Tensor, eps: Tensor | None = None, *y: Tensor
    ) -> Tensor:
        parts = (GradientPenalty(self.weight, self.target, self.sides, points) for points in ("real", "fake"))
        return sum(part(critic, real, fake, None, *y) for part in parts)


NO_PENALTY = GradientPenalty(weight=0)


@dataclass(frozen=True)
class Constraint:
    """How a critic is constrained: a penalty, a bound of its weights, or its layers."""

    penalty: GradientPenalty = NO_PENALTY
    clip: float | None = None
    build: Callable[..., nn.Module] = MLPCritic


def build_spectral_critic(shape: tuple[int, ...], width: int, depth: int) -> nn.Module:
    """Build an MLP critic with spectral norm in every linear layer."""
    critic = MLPCritic(shape, width, depth)
    for layer in critic.layers:
        if isinstance(layer, nn.Linear):
            spectral_norm(layer)
    return critic


ZERO = GradientPenalty(target=0.0, points="real")
CONSTRAINTS = {
    "two-sided": Constraint(GradientPenalty()),
    "two-sided, lambda 0.1": Constraint(GradientPenalty(weight=0.1)),
    "two-sided, lambda 1": Constraint(GradientPenalty(weight=1)),
    "two-sided, lambda 100": Constraint(GradientPenalty(weight=100)),
    "one-sided": Constraint(GradientPenalty(sides="one")),
    "zero at real (R1)": Constraint(ZERO),
    "zero at fake (R2)": Constraint(replace(ZERO, points="fake")),
    "zero at both (R1 + R2)": Constraint(AtRealAndFake(target=0.0)),
    "DRAGAN": Constraint(GradientPenalty(points="perturbed")),
    "clipping at 0.01": Constraint(clip=0.01),
    "clipping at 0.1": Constraint(clip=0.1),
    "spectral norm": Constraint(build=build_spectral_critic),
    "orthogonal": Constraint(build=OrthogonalCritic),
}
PANELS = {  # of the constant through training
    "two-sided, by lambda": ["two-sided, lambda 0.1", "two-sided, lambda 1", "two-sided", "two-sided, lambda 100"],
    "other penalties with target 1": ["two-sided", "one-sided", "DRAGAN"],
    "zero-centered penalties": ["zero at real (R1)", "zero at fake (R2)", "zero at both (R1 + R2)"],
    "no penalty": ["orthogonal", "spectral norm", "clipping at 0.1", "clipping at 0.01"],
}


@dataclass(frozen=True)
class LipschitzTable:
    """Critics with each constraint. The learning rate decays linearly to 0, so that every critic settles.

    Args:
        data: names from DATA. The pictures show the first.
        max_cells: limit of the search for each constant, as in `lipschitz_on_box`. The interval is proved anyway.
    """

    width: int
    iterations: int
    data: list[str]
    lr: float = 1e-3
    batch_size: int = 256
    max_cells: int = 200_000

    def __post_init__(self) -> None:
        check_names(self, data=DATA)

    def cells(self) -> list[dict[str, str]]:
        return [{"data": data, "constraint": name} for data in self.data for name in CONSTRAINTS]

    def measure(self, cell: dict[str, str], seed: int, folder: Path, device: torch.device) -> dict[str, Any]:
        name, constraint = cell["data"], CONSTRAINTS[cell["constraint"]]
        data, search = DATA[name](device), {"max_cells": self.max_cells}
        critic = initialize(lambda: constraint.build(data.shape, self.width, DEPTH), seed, "critic").to(device)
        samples, curve = draw_held_out(name, seed), []
        together = [torch.cat(kind) for kind in zip(*samples, strict=True)]
        box = find_box(*together)
        looks = {round(part * self.iterations) for part in LOOKS}

        def look(k: int) -> None:
            if k in looks:
                point = {"iteration": k, "gap": measure_gap(critic, *together)}
                if name == self.data[0]:
                    point["constant"] = list(lipschitz_on_box(critic, *box, tolerance=0.1, **search))
                curve.append(point)

        def batch(k: int) -> tuple[Tensor, Tensor]:
            return draw_batch(data, k, self.batch_size, seed)

        options = {"clip_weights": constraint.clip, "decay": True, "look": look}
        train_critic(critic, batch, self.iterations, self.lr, constraint.penalty, seed, **options)
        record = evaluate(critic, name, seed, constraint.penalty.weight, **search)
        curve.append({"iteration": self.iterations, "gap": record["gap"], "constant": record["constant"]})
        record["curve"] = curve
        if name == self.data[0] and seed == 0:
            record["slope_grid"] = evaluate_grid(critic, data.span, RESOLUTION, slope=True)
        return record

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        first = self.data[0]
        data, records = DATA[first](), select(records, data=first)
        (real,) = data.batch(0, 200, 0, "heldout")
        shown = [record for record in records if "slope_grid" in record]
        with open_figure(path, 14.5) as figure:
            above, below = figure.subfigures(2, 1, height_ratios=[7, 6])
            panels = above.subplots(3, 5).flatten()
            for axes, record in zip(panels, shown, strict=False):
                image = draw_slopes(axes, record, data, real)
            for axes in panels[len(shown) :]:
                axes.set_visible(False)
            if shown:
                label = f"slope / Lipschitz constant, seed {shown[0]['seed']}; x: the steepest point of the grid"
                above.colorbar(image, ax=panels, orientation="horizontal", shrink=0.6, aspect=40, label=label)
            for axes, (title, names) in zip(below.subplots(2, 2).flatten(), PANELS.items(), strict=True):
                draw_constants(axes, records, names)
                axes.set_title(title)
            below.supxlabel("critic updates")
            below.supylabel("Lipschitz constant")
            figure.suptitle(
                f"Exact Lipschitz constants on the box of all held-out points, {first}"
                f"\n{self.iterations:,} critic updates, {DEPTH} x {self.width}; curves: {describe_range(records)}"
            )

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        return [summarize_cell(cell, select(records, **cell)) for cell in self.cells()]


def draw_slopes(axes: Any, record: dict[str, Any], data: Any, real: Tensor) -> Any:
    """Draw slope / constant over the plane, the real points, and the steepest point. Returns the image."""
    slope = torch.tensor(record["slope_grid"])
    square = {"extent": (*data.span, *data.span), "origin": "lower"}
    low, high = record["constant"]
    image = axes.imshow(slope.numpy() / high, vmin=0, vmax=1, cmap="cividis", **square)
    draw_points(axes, real, size=1.2)
    row, column = divmod(int(slope.argmax()), RESOLUTION)
    ticks = torch.linspace(*data.span, RESOLUTION)
    axes.scatter(ticks[column], ticks[row], marker="x", s=60, color="red", linewidths=2, zorder=5)
    axes.set(xticks=[], yticks=[], xlabel=f"constant {(low + high) / 2:.3g}")
    axes.set_title(record["constraint"].replace(", ", "\n").replace(" (", "\n("))
    return image


def draw_constants(axes: Any, records: list[dict[str, Any]], names: list[str]) -> None:
    """Draw the middle of the interval through training: the mean over seeds, and the range as a band."""
    for name in names:
        runs = select(records, constraint=name)
        steps = [point["iteration"] for point in runs[0]["curve"]]
        draw_band(axes, steps, [[sum(point["constant"]) / 2 for point in run["curve"]] for run in runs], label=name)
    axes.axhline(1, color="black", linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    low, high = axes.get_ylim()
    if high < 30 * low:  # the ticks between the powers of ten have numbers, too
        axes.set_yticks([tick for tick in (0.2, 0.5, 1, 2, 5, 10, 20, 50) if low < tick < high])
        axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="best")


def summarize_cell(cell: dict[str, str], runs: list[dict[str, Any]]) -> dict[str, str]:
    """Return a row of the table: mean +- standard deviation over the seeds of a cell."""
    weight = CONSTRAINTS[cell["constraint"]].penalty.weight
    one_lipschitz = CONSTRAINTS[cell["constraint"]].penalty.target == 1 and weight
    corrected = [compute_error(run, "corrected") for run in runs] if one_lipschitz else []
    expected = [expected_slope(compute_mean_distance(run), weight) for run in runs] if one_lipschitz else []
    settled = [run["gap"] / run["curve"][-2]["gap"] - 1 for run in runs]
    return {
        **cell,
        "Lipschitz constant": format_constant(runs),
        "slope at interpolates": format_spread([run["slopes"]["interpolates"]["mean"] for run in runs]),
        "expected slope": format_spread(expected) if expected else "",
        "gap": format_spread([run["gap"] for run in runs]),
        "exact W1": format_spread([compute_mean_distance(run) for run in runs]),
        "corrected / W1 - 1": format_spread(corrected, "+.1%") if corrected else "",
        "proved / W1": format_spread([compute_proved_share(run) for run in runs], ".1%"),
        f"change of the gap after {LOOKS[-1]:.0%} of the training": format_spread(settled, "+.1%"),
    }
