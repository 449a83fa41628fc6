"""Every picture: grids of images, value surfaces of points in the plane, curves, animations."""

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
    """Save images (N, C, H, W) with values in span as one picture, in so many columns.

    Paper: released save_images.py: as many rows as the largest divisor of N that is <= sqrt(N): 128 makes 8 x 16.
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
    """Save the contours of D(x) over the square span x span, with real and fake points (N, 2) on them.

    Paper: figure 1a. Its released plot was transposed at first; here x runs right and y runs up.
    """
    ticks = torch.linspace(*span, resolution, device=real.device, dtype=real.dtype)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    with torch.no_grad():
        value = critic(torch.stack([x.flatten(), y.flatten()], dim=1)).view(resolution, resolution)
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.add_subplot()
    filled = axes.contourf(ticks.cpu(), ticks.cpu(), value.cpu(), levels=24, cmap="Blues")
    figure.colorbar(filled, label="critic value D(x)")
    _scatter(axes, real, fake)
    _frame(axes, span, title)
    figure.savefig(path, dpi=110)


def points(path: Path, x: Tensor, span: tuple[float, float], title: str = "", joined: bool = False) -> None:
    """Save points (N, 2) in the square span x span; joined draws the line through them in their order."""
    figure = Figure(figsize=(5.4, 5.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*x.cpu().T, linestyle="-" if joined else "none", marker="+", color=FAKE, markersize=5, linewidth=0.8)
    _frame(axes, span, title)
    figure.savefig(path, dpi=110)


def curves(path: Path, records: list[dict[str, Any]], target: float) -> None:
    """Save what a run logged: critic losses, the terms, and the slopes beside the target."""
    panels = {
        "negative critic loss": {"training": "critic_loss", "held out": "heldout_critic_loss"},
        "terms of the critic loss": {"wasserstein": "wasserstein", "penalty": "penalty"},
        "mean slope ||grad D||": {k: f"slope_{k}_mean" for k in ("real", "fake", "interpolates")},
        "Lipschitz constant, at least": {"largest quotient": "largest_quotient"},
        "modes covered": {"modes": "modes"},
    }
    panels = {title: lines for title, lines in panels.items() if all(k in records[0] for k in lines.values())}
    figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        sign = -1 if title.startswith("negative") else 1
        for label, key in lines.items():
            logged = [r for r in records if key in r]  # some are logged less often
            axes.plot([r["step"] for r in logged], [sign * r[key] for r in logged], label=label, linewidth=1.2)
        if title.startswith("mean slope"):
            axes.axhline(target, color="black", linestyle=":", linewidth=1, label="target")
        axes.set(title=title, xlabel="generator updates")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def lipschitz(path: Path, slopes: dict[str, Tensor], found: dict[str, Any], title: str = "") -> None:
    """Save what scripts/lipschitz.py found: slopes (B,) by kind; the interval of the constant; distances.

    Args:
        found: as lipschitz.json has it.
    """
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    at, between, far = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    for row, (kind, slope) in enumerate(reversed(slopes.items())):
        counts, edges = torch.histogram(slope.cpu(), 60)
        at.stairs(row + 0.85 * counts / counts.max(), edges, baseline=row, fill=True, color=FAKE)
        at.annotate(kind, (0.01, row + 0.3), xycoords=("axes fraction", "data"), fontsize=9)
    at.axvline(1, color="black", linestyle=":", linewidth=1, label="1-Lipschitz")
    if "expected_slope" in found:
        label = f"expected {found['expected_slope']:.3f} (from the {found['expected_from']})"
        at.axvline(found["expected_slope"], color=REAL, linewidth=1.4, label=label)
    at.set(
        title="Slope ||grad D|| at held-out points" if slopes else "No slopes: scores depend on the batch",
        xlabel="slope",
        yticks=[],
        ylim=(-0.1, len(slopes) + 0.7),
    )
    at.legend(fontsize=8, loc="upper right", ncols=2)

    bounds = found["lipschitz"]
    names = {"largest_quotient": "largest quotient of two points", "steepest": "steepest point found"}
    names |= {"certified": "certified: no slope is above"}
    values = {label: bounds[key] for key, label in names.items() if key in bounds}
    _bars(between, values, "Lipschitz constant: at least, at most")
    shown = [value for value in values.values() if value > 0]
    between.set_xscale("log")
    between.set_xlim(min([1.0, *shown]) / 2, max([1.0, *shown]) * 6)
    between.axvline(1, color="black", linestyle=":", linewidth=1)
    why = "slope, log scale" if "certified" in bounds else "no certificate: lipschitz.json says why"
    between.set_xlabel(why)

    distances = found["distances"]
    names = {"gap": "gap E D(real) - E D(fake)", "corrected": "gap, corrected", "proved": "proved: W1 is at least"}
    names |= {"exact_w1": "truth: exact W1 of the samples", "sampling_floor": "W1 of two samples of the data"}
    values = {names[key]: distances[key] for key in names if key in distances}
    proved = values.get(names["proved"])
    if proved:
        values[names["proved"]] = proved["bound"]
    _bars(far, values, "Distance between real and generated")
    if proved:
        middle = list(values)[::-1].index(names["proved"])
        far.plot([proved["low"], proved["high"]], [middle, middle], color="black", linewidth=2)
    far.margins(x=0.25)
    far.set_xlabel("score, or distance in the units of the points")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _bars(axes: Any, values: dict[str, float], title: str) -> None:
    """Named horizontal bars, the first on top, each with its number and its name above it."""
    for row, (label, value) in enumerate(reversed(values.items())):
        axes.barh(row, value, height=0.32, color=FAKE)
        axes.annotate(f"{label}: {value:.4g}", (0, row + 0.22), xycoords=("axes fraction", "data"), fontsize=8.5)
    axes.set(title=title, yticks=[], ylim=(-0.4, max(len(values), 1) - 0.2))


def animation(path: Path, pictures: list[Path], seconds: float = 6.0) -> None:
    """Save pictures of one size, in their order, as a GIF that takes so many seconds and rests on the last."""
    frames = []
    for picture in pictures:
        with Image.open(picture) as image:
            frames.append(image.convert("RGB"))
    each = max(20, int(1000 * seconds / len(frames)))
    durations = [each] * (len(frames) - 1) + [each + 1500]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _scatter(axes: Any, real: Tensor, fake: Tensor) -> None:
    axes.scatter(*real.cpu().T, marker="o", s=26, linewidths=0, color=REAL, label="real")
    axes.scatter(*fake.cpu().T, marker="+", s=22, linewidths=0.8, color=FAKE, label="generated")
    axes.legend(loc="upper right", fontsize=8)


def _frame(axes: Any, span: tuple[float, float], title: str) -> None:
    axes.set(xlim=span, ylim=span, xlabel="x1", ylabel="x2", title=title, aspect="equal")
