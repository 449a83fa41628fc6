"""All pictures: grids of images, value surfaces and points in the plane, curves, animations."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.utils import save_image

__all__ = ["animation", "curves", "image_grid", "lipschitz", "points", "value_surface"]

REAL, FAKE = "#d95f02", "#1b7837"


def image_grid(path: Path, x: Tensor, span: tuple[float, float], columns: int | None = None) -> None:
    """Save images as one picture, row by row.

    Args:
        x: images (N, C, H, W) with values in span.
        columns: the number of images per row. None: N images make as many rows as the largest divisor of N that is
            <= sqrt(N), so 128 images make 8 rows of 16 (Paper: released save_images.py).
    """
    rows = max(d for d in range(1, math.isqrt(len(x)) + 1) if len(x) % d == 0)
    save_image(x, path, nrow=columns or len(x) // rows, padding=1, normalize=True, value_range=span)


def value_surface(
    path: Path,
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    span: tuple[float, float],
    title: str = "",
    resolution: int = 128,
) -> None:
    """Save the contours of D(x) over the square span x span, with the real and the fake points (N, 2).

    Args:
        critic: (B, 2) -> (B,) or (B, 1).
        resolution: the critic is evaluated on a grid of resolution x resolution points.

    Paper: figure 1a. Its released plot was transposed at first; here x_1 goes to the right and x_2 goes up.
    """
    ticks = torch.linspace(*span, resolution, device=real.device, dtype=real.dtype)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    with torch.no_grad():
        value = critic(torch.stack([x.flatten(), y.flatten()], dim=1)).view(resolution, resolution)
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.add_subplot()
    contours = axes.contourf(ticks.cpu(), ticks.cpu(), value.cpu(), levels=24, cmap="Blues")
    figure.colorbar(contours, label="critic value D(x)")
    _scatter(axes, real, fake)
    _frame(axes, span, title)
    figure.savefig(path, dpi=110)


def points(path: Path, x: Tensor, span: tuple[float, float], title: str = "", connect: bool = False) -> None:
    """Save points (N, 2) in the square span x span.

    Args:
        connect: draw a line through the points, in their order.
    """
    figure = Figure(figsize=(5.4, 5.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*x.cpu().T, linestyle="-" if connect else "none", marker="+", color=FAKE, markersize=5, linewidth=0.8)
    _frame(axes, span, title)
    figure.savefig(path, dpi=110)


def curves(path: Path, records: list[dict[str, Any]], target: float) -> None:
    """Save the curves of a log: the critic's losses, their terms, and the slopes with their target.

    Args:
        records: lines of metrics.jsonl. A panel is drawn if the first line has all of its metrics.
        target: the slope that the penalty asks for.
    """
    panels = {
        "negative critic loss": {"training": "critic_loss", "held out": "heldout_critic_loss"},
        "terms of the critic loss": {"wasserstein": "wasserstein", "penalty": "penalty"},
        "mean slope ||grad D||": {k: f"slope_{k}_mean" for k in ("real", "fake", "interpolates")},
        "Lipschitz constant, lower bound": {"largest quotient": "largest_quotient"},
        "covered modes": {"modes": "modes"},
    }
    logged = {title: {k: v for k, v in lines.items() if v in records[0]} for title, lines in panels.items()}
    panels = {title: lines for title, lines in logged.items() if lines}
    figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        sign = -1 if title.startswith("negative") else 1
        for label, key in lines.items():
            logged = [r for r in records if key in r]  # some metrics are not in every line
            axes.plot([r["step"] for r in logged], [sign * r[key] for r in logged], label=label, linewidth=1.2)
        if title.startswith("mean slope"):
            axes.axhline(target, color="black", linestyle=":", linewidth=1, label="target")
        axes.set(title=title, xlabel="generator updates")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def lipschitz(path: Path, slopes: dict[str, Tensor], report: dict[str, Any], title: str = "") -> None:
    """Save the picture of scripts/lipschitz.py: slopes, bounds of the Lipschitz constant, and distances.

    Args:
        slopes: slopes (B,) by kind of points. Empty if the critic has no slopes (batch norm).
        report: the contents of lipschitz.json.
    """
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    _draw_slopes(left, slopes, report)
    _draw_constant(middle, report["lipschitz"])
    _draw_distances(right, report["distances"])
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def animation(path: Path, pictures: list[Path], seconds: float = 6.0) -> None:
    """Save pictures of the same size as a GIF, in their order.

    Args:
        seconds: the duration of the GIF. The last picture is shown for 1.5 s longer.
    """
    frames = []
    for picture in pictures:
        with Image.open(picture) as image:
            frames.append(image.convert("RGB"))
    duration = max(20, int(1000 * seconds / len(frames)))  # ms per picture
    durations = [duration] * (len(frames) - 1) + [duration + 1500]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _draw_slopes(axes: Any, slopes: dict[str, Tensor], report: dict[str, Any]) -> None:
    """Draw one histogram per kind of points, the slope 1, and the expected slope."""
    for row, (kind, slope) in enumerate(reversed(slopes.items())):
        counts, edges = torch.histogram(slope.cpu(), 60)
        axes.stairs(row + 0.85 * counts / counts.max(), edges, baseline=row, fill=True, color=FAKE)
        axes.annotate(kind, (0.01, row + 0.3), xycoords=("axes fraction", "data"), fontsize=9)
    axes.axvline(1, color="black", linestyle=":", linewidth=1, label="1-Lipschitz")
    if "expected_slope" in report:
        label = f"expected: {report['expected_slope']:.3f} (from the {report['expected_from']})"
        axes.axvline(report["expected_slope"], color=REAL, linewidth=1.4, label=label)
    axes.set(
        title="Slope ||grad D|| at held-out points" if slopes else "No slopes: each score depends on the whole batch",
        xlabel="slope",
        yticks=[],
        ylim=(-0.1, len(slopes) + 0.7),
    )
    axes.legend(fontsize=8, loc="upper right", ncols=2)


def _draw_constant(axes: Any, bounds: dict[str, Any]) -> None:
    """Draw the bounds of the Lipschitz constant, as lipschitz.json has them under "lipschitz"."""
    labels = {"largest_quotient": "largest quotient of two points", "steepest": "largest slope that was found"}
    labels |= {"certified": "certified upper bound"}
    values = {label: bounds[key] for key, label in labels.items() if key in bounds}
    _draw_bars(axes, values, "Lipschitz constant: lower and upper bounds")
    positive = [value for value in values.values() if value > 0]
    axes.set_xscale("log")
    axes.set_xlim(min([1.0, *positive]) / 2, max([1.0, *positive]) * 6)
    axes.axvline(1, color="black", linestyle=":", linewidth=1)
    axes.set_xlabel("slope, log scale" if "certified" in bounds else "no certificate: lipschitz.json has the reason")


def _draw_distances(axes: Any, distances: dict[str, Any]) -> None:
    """Draw the estimates of W1, as lipschitz.json has them under "distances"."""
    labels = {"gap": "gap E D(real) - E D(fake)", "corrected": "corrected gap", "proved": "proved lower bound of W1"}
    labels |= {"exact_w1": "exact W1 between the samples", "sampling_floor": "W1 between two samples of the data"}
    values = {label: distances[key] for key, label in labels.items() if key in distances}
    proved = values.get(labels["proved"])
    if proved:
        values[labels["proved"]] = proved["bound"]
    _draw_bars(axes, values, "Distance between real and generated samples")
    if proved:
        row = list(values)[::-1].index(labels["proved"])
        axes.plot([proved["low"], proved["high"]], [row, row], color="black", linewidth=2)
    axes.margins(x=0.25)
    axes.set_xlabel("score, or distance in the units of the points")


def _draw_bars(axes: Any, values: dict[str, float], title: str) -> None:
    """Draw horizontal bars, the first one on top. Name and value are written above each bar."""
    for row, (label, value) in enumerate(reversed(values.items())):
        axes.barh(row, value, height=0.32, color=FAKE)
        axes.annotate(f"{label}: {value:.4g}", (0, row + 0.22), xycoords=("axes fraction", "data"), fontsize=8.5)
    axes.set(title=title, yticks=[], ylim=(-0.4, max(len(values), 1) - 0.2))


def _scatter(axes: Any, real: Tensor, fake: Tensor) -> None:
    axes.scatter(*real.cpu().T, marker="o", s=26, linewidths=0, color=REAL, label="real")
    axes.scatter(*fake.cpu().T, marker="+", s=22, linewidths=0.8, color=FAKE, label="generated")
    axes.legend(loc="upper right", fontsize=8)


def _frame(axes: Any, span: tuple[float, float], title: str) -> None:
    axes.set(xlim=span, ylim=span, xlabel="x1", ylabel="x2", title=title, aspect="equal")
