"""All pictures: grids of images, value surfaces and points in the plane, curves, animations.

Every picture can be read where it is shown: at the width of a page on GitHub, and without telling red from green. Text
has at least 9 px there; lines differ in color and in dashes; points differ in color and in shape from each other, and
have a contrast of at least 3 : 1 to what is behind them.
"""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from wgangp.checks import compute_scores
from wgangp.data.folder import read_picture
from wgangp.files import write_file

__all__ = [
    "CHANNELS",
    "cut_colormap",
    "draw_points",
    "open_figure",
    "save_animation",
    "save_curves",
    "save_image",
    "save_image_grid",
    "save_lipschitz",
    "save_points",
    "save_value_surface",
    "to_bytes",
]

PAGE, COLUMN = 8.3, 4.6  # widths in inches: GitHub shows 830 px on a page, and 400 px in one of README's two columns
CHANNELS = (1, 3)  # of images that can be drawn: gray and RGB
REAL, FAKE, EDGE, BAR = "#d55e00", "#000000", "#000000", "#0072b2"
LINES = {"color": ["#0072b2", "#d55e00", "#009e73", "#000000"], "linestyle": ["-", "--", "-.", (0, (5, 1, 1, 1, 1, 1))]}
SURFACE = ("Blues", 0.75)  # the light part of a colormap, so that dark points are seen everywhere on it
SCORES = ("_w1", "_covered", "_fid", "_js4")  # ends of the names of the scores that have a panel
ANIMATION_BYTES = 1_000_000  # an animation is a file of less than this
FEWEST = 24  # pictures that an animation keeps in any case, if it has so many
STYLE = {"font.size": 8, "axes.titlesize": 8.5, "figure.titlesize": 9, "legend.fontsize": 8, "legend.framealpha": 1.0}
PNG = {"savefig.format": "png"}  # whatever a matplotlibrc of the user says


@contextmanager
def open_figure(path: Path, height: float, width: float = PAGE) -> Iterator[Any]:
    """Yield a matplotlib figure in the style of this project, and save it at the end as a PNG.

    Args:
        height, width: in inches.
    """
    import matplotlib  # here, because it takes a second and only pictures need it
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, **PNG, "axes.prop_cycle": matplotlib.cycler(**LINES)}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=130)
    write_file(path, buffer.getbuffer())


def draw_points(axes: Any, real: Tensor | None, fake: Tensor | None = None, size: float = 4.0) -> None:
    """Draw points (N, 2): generated ones as black crosses, real ones above them as colored dots with an outline.

    Args:
        size: the diameter of a dot, in points.
    """
    above = {"zorder": 3}  # lines
    if fake is not None:
        cross = {"marker": "+", "s": (1.5 * size) ** 2, "linewidths": size / 4}
        axes.scatter(*fake.cpu().T, color=FAKE, label="generated", **cross, **above)
    if real is not None:  # first one outline of all dots together, then the dots
        axes.scatter(*real.cpu().T, s=(size + 1.4) ** 2, linewidths=0, color=EDGE, **above)
        axes.scatter(*real.cpu().T, s=size**2, linewidths=0, color=REAL, label="real", **above)


def cut_colormap(name: str, end: float) -> Any:
    """Return the part 0 ... end of a matplotlib colormap, for example without the colors that white or black hides."""
    import matplotlib

    return matplotlib.colors.ListedColormap(matplotlib.colormaps[name](torch.linspace(0, end, 256).numpy()))


def to_bytes(x: Tensor, span: tuple[float, float]) -> Tensor:
    """Convert images (N, C, H, W) with values in span to uint8 (N, H, W, C): rounded, and clamped to 0 ... 255."""
    low, high = span
    return ((x.cpu() - low) * (255 / (high - low))).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def save_image(path: Path, pixels: Tensor) -> None:
    """Save one image, uint8 (H, W, C), as a PNG. With one channel it is gray."""
    _save(path, Image.fromarray(pixels.squeeze(-1).numpy()))


def _save(path: Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_file(path, buffer.getbuffer())


def save_image_grid(
    path: Path, x: Tensor, span: tuple[float, float], columns: int | None = None, note: str = ""
) -> None:
    """Save images as one PNG, row by row, with one black pixel around each, and a note below them.

    Args:
        x: images (N, C, H, W) with values in span.
        columns: the number of images per row. None: N images make as many rows as the largest divisor of N that is
            <= sqrt(N), so 128 images make 8 rows of 16 (Paper: released save_images.py).
    """
    count, channels, height, width = x.shape
    columns = columns or count // max(d for d in range(1, math.isqrt(count) + 1) if count % d == 0)
    rows = math.ceil(count / columns)
    grid = torch.zeros(rows * (height + 1) + 1, columns * (width + 1) + 1, channels, dtype=torch.uint8)
    for i, pixels in enumerate(to_bytes(x, span)):
        top, left = i // columns * (height + 1) + 1, i % columns * (width + 1) + 1
        grid[top : top + height, left : left + width] = pixels
    image = Image.fromarray(grid.squeeze(-1).numpy())
    if note:
        size = max(10, image.width // 80)  # of the font, which can be read at the width of a page
        image = ImageOps.expand(image, (0, 0, max(0, 300 - image.width), size + 3))
        ImageDraw.Draw(image).text((2, len(grid)), note, "white", font_size=size)
    _save(path, image)


def save_value_surface(
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

    Paper: figure 1a.
    """
    ticks = torch.linspace(*span, resolution, device=real.device, dtype=real.dtype)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    with torch.no_grad():
        value = compute_scores(critic, torch.stack([x.flatten(), y.flatten()], dim=1)).view(resolution, resolution)
    with open_figure(path, 3.9, COLUMN) as figure:
        figure.set_layout_engine("none")  # its layout depends on the values, so that an animation would shake
        axes, bar = figure.add_axes((0.1, 0.115, 0.68, 0.802)), figure.add_axes((0.802, 0.115, 0.035, 0.802))
        contours = axes.contourf(ticks.cpu(), ticks.cpu(), value.cpu(), levels=16, cmap=cut_colormap(*SURFACE))
        figure.colorbar(contours, cax=bar, format="%.3g")
        draw_points(axes, real, fake)
        axes.legend(loc="upper right", markerscale=1.5)
        _frame(axes, span, f"{title}; " * bool(title) + "color: critic value D(x)")


def save_points(path: Path, x: Tensor, span: tuple[float, float], title: str = "", connect: bool = False) -> None:
    """Save generated points (N, 2) in the square span x span.

    Args:
        connect: draw a line through the points, in their order.
    """
    with open_figure(path, COLUMN, COLUMN) as figure:
        axes = figure.add_subplot()
        if connect:
            axes.plot(*x.cpu().T, linewidth=0.8)
        draw_points(axes, None, x)
        _frame(axes, span, title)


def save_curves(path: Path, records: list[dict[str, Any]], target: float, title: str = "") -> None:
    """Save the curves of a log: the critic's losses, their terms, and the slopes with their target.

    Args:
        records: lines of metrics.jsonl. A panel is drawn if the first line has one of its metrics.
        target: the slope that the penalty asks for.
        title: above the panels.
    """
    panels = {
        "negative critic loss": {"training": "critic_loss", "held out": "heldout_critic_loss"},
        "terms of the critic loss": {"wasserstein": "wasserstein", "penalty": "penalty"},
        "mean slope ||grad D||": {k: f"slope_{k}_mean" for k in ("real", "fake", "interpolates")},
        "Lipschitz constant, lower bounds": {
            "largest slope at interpolates": "slope_interpolates_max",
            "largest quotient of two points": "largest_quotient",
        },
        "covered modes": {"modes": "modes"},
        "accuracy of the critic's classifier": {"real": "accuracy_real", "generated": "accuracy_fake"},
        "Jensen-Shannon divergence of n-grams (bits)": {f"n = {n}": f"js{n}" for n in range(1, 5)},
    }
    scores = [name for name in records[0] if name.startswith("real_") and name.endswith(SCORES)]
    panels |= {name[5:].replace("_", ": ", 1): {"generated": name[5:], "real samples": name} for name in scores}
    if "largest_quotient" not in records[0]:  # the score depends on more than the point: a slope is no bound
        del panels["Lipschitz constant, lower bounds"]
    logged = {name: {k: v for k, v in lines.items() if v in records[0]} for name, lines in panels.items()}
    panels = {name: lines for name, lines in logged.items() if lines}
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with open_figure(path, 2.3 * rows) as figure:
        for position, (name, lines) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(rows, columns, position)
            sign = -1 if name.startswith("negative") else 1
            for label, key in lines.items():
                logged = [r for r in records if key in r]  # some metrics are not in every line
                axes.plot([r["step"] for r in logged], [sign * r[key] for r in logged], label=label, linewidth=1.2)
            if name.startswith("mean slope"):
                axes.axhline(target, color="black", linestyle=":", linewidth=1, label="target")
            axes.set(title=name, xlabel="generator updates")
            axes.grid(alpha=0.3)
            if len(axes.lines) > 1:
                axes.legend()
        figure.suptitle(title)


def save_lipschitz(path: Path, slopes: dict[str, Tensor], report: dict[str, Any], title: str = "") -> None:
    """Save the picture of scripts/lipschitz.py.

    Args:
        slopes: slopes (B,) by kind of points. Empty if the critic has no slopes (batch norm).
        report: the contents of lipschitz.json.
    """
    with open_figure(path, 5.8) as figure:
        axes = figure.subplot_mosaic([["slopes", "slopes"], ["constant", "distances"]])
        _draw_slopes(axes["slopes"], slopes, report)
        _draw_constant(axes["constant"], report["lipschitz"])
        _draw_distances(axes["distances"], report["distances"])
        figure.suptitle(title)


def save_animation(
    path: Path, pictures: list[Path], seconds: float = 6.0, limit: int = ANIMATION_BYTES
) -> tuple[int, tuple[int, int]]:
    """Save pictures as an animated WebP of less than limit bytes, in their order.

    If the file is too large, pictures are left out evenly, down to FEWEST of them; then they are made smaller. The
    first and the last one are always there.

    Args:
        seconds: the duration. The last picture is shown for 1.5 s longer.

    Returns:
        the number of pictures in it, and their width and height: those of the last picture, or smaller.

    Raises:
        ValueError: a picture cannot be read, or has too many pixels. The message names it.
    """
    frames = [read_picture(picture, channels=3) for picture in pictures]
    width, height = frames[-1].size
    count, scale = len(frames), 1.0
    while True:
        size = (max(1, round(scale * width)), max(1, round(scale * height)))
        selection = [frames[round(i * (len(frames) - 1) / max(count - 1, 1))] for i in range(count - 1)] + frames[-1:]
        selection = [frame.resize(size) for frame in selection]
        duration = max(20, int(1000 * seconds / count))  # ms per picture
        durations = [duration] * (count - 1) + [duration + 1500]
        options = {"append_images": selection[1:], "duration": durations, "loop": 0, "quality": 80}
        buffer = io.BytesIO()
        selection[0].save(buffer, "WEBP", save_all=True, **options)
        excess = buffer.tell() / limit
        if excess < 1:
            write_file(path, buffer.getbuffer())
            return count, size
        if count > FEWEST:
            count = max(FEWEST, int(0.95 * count / excess))
        else:
            scale *= 0.95 / math.sqrt(excess)


def _draw_slopes(axes: Any, slopes: dict[str, Tensor], report: dict[str, Any]) -> None:
    """Draw one histogram per kind of points, the slope 1, and the expected slope."""
    for row, slope in enumerate(reversed(slopes.values())):
        counts, edges = torch.histogram(slope.cpu(), 60)
        axes.stairs(row + 0.85 * counts / counts.max(), edges, baseline=row, fill=True, color=BAR)
    axes.axvline(1, color="black", linestyle=":", linewidth=1, label="1-Lipschitz")
    if "expected_slope" in report:
        label = f"expected: {report['expected_slope']:.3f} (from the {report['expected_from']})"
        axes.axvline(report["expected_slope"], color=REAL, linestyle="-", linewidth=1.4, label=label)
    axes.set(
        title="Slope ||grad D|| at held-out points" if slopes else "No slopes: each score depends on the whole batch",
        xlabel="slope",
        ylim=(-0.1, len(slopes) + 0.7),
    )
    axes.set_yticks([row + 0.4 for row in range(len(slopes))], list(slopes)[::-1])
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="upper right", ncols=2)


def _draw_constant(axes: Any, bounds: dict[str, Any]) -> None:
    """Draw the bounds of the Lipschitz constant, as lipschitz.json has them under "lipschitz"."""
    labels = {
        "largest_quotient": "largest quotient of two points",
        "steepest": "largest slope that was found, anywhere",
    }
    if "high" in bounds:
        ends = {"low": "least", "high": "most"}
        labels |= {key: f"proved on the box of the points: at {end}" for key, end in ends.items()}
    else:
        labels |= {"certified": "certified upper bound"}
    values = {label: bounds[key] for key, label in labels.items() if key in bounds}
    _draw_bars(axes, values, "Lipschitz constant: lower and upper bounds")
    positive = [value for value in values.values() if value > 0]
    axes.set_xscale("log")
    low, high = min([1.0, *positive]) / 2, max([1.0, *positive]) * 6
    axes.set_xlim(low, high)
    if high < 100 * low:  # else matplotlib's ticks, the powers of ten, are enough
        axes.set_xticks([t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low <= t <= high])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    rows = torch.arange(len(values))
    axes.vlines([1] * len(rows), rows - 0.24, rows + 0.14, colors="black", linestyles=":", linewidth=1)
    certified = {"certified", "high"} & set(bounds)
    axes.set_xlabel("slope, log scale; dotted: 1" if certified else "no certificate: lipschitz.json has the reason")


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
    corner = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "xytext": (4, 0)}
    for row, (label, value) in enumerate(reversed(values.items())):
        axes.barh(row, value, height=0.32, color=BAR)
        axes.annotate(f"{label}: {value:.4g}", (0, row + 0.22), **corner)
    axes.set(title=title, yticks=[], ylim=(-0.4, max(len(values), 1) - 0.2))


def _frame(axes: Any, span: tuple[float, float], title: str) -> None:
    axes.set(xlim=span, ylim=span, xlabel="x1", ylabel="x2", title=title, aspect="equal")
