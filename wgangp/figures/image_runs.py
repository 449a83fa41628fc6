"""What figures of trained runs share: a command per cell, scores, samples in the picture."""

import base64
import io
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wgangp.data.text import decode
from wgangp.figures.common import DRAWN, format_spread, list_points
from wgangp.figures.study import train_command
from wgangp.generate import generate
from wgangp.metrics.features import WIDTHS
from wgangp.metrics.scores import Score, build_scores
from wgangp.plots import draw_points, save_image_grid
from wgangp.report import leave_unchanged
from wgangp.runs import Run, choose_generator
from wgangp.seeds import arrange_classes, draw_latent

__all__ = [
    "NEVER",
    "SCORES",
    "build_score",
    "check_plane",
    "check_samples",
    "describe_real",
    "draw_pictures",
    "draw_samples",
    "encode_pictures",
    "format_score",
    "list_data_options",
    "score_images",
    "show_samples",
    "train_finite",
]

NEVER = 10**9
Samples = str | list[str] | dict[str, list[list[float]]]  # a picture, lines of text, or points
LINES = 32  # of text per panel, in two columns
SCORES = {"efficientnet": "EfficientNet", "inception": "the Inception network"}  # score -> whose features it uses


def list_data_options(data: str, data_root: str | None, size: int) -> list[str]:
    """Return the overrides that choose the images: cifar10, or image_folder at size x size."""
    options = [f"data={data}"] + [f"data.size={size}"] * (data == "image_folder")
    return options + ([] if data_root is None else [f"data.root={data_root}"])


def check_samples(samples: int, score: str = "efficientnet") -> None:
    """Raise ValueError if there is no such score, or if there are too few samples for it."""
    if score not in SCORES:
        raise ValueError(f"figure.score = {score}: must be one of {', '.join(SCORES)}")
    if samples <= WIDTHS[score]:
        features = f"more than the features of {SCORES[score]}"
        raise ValueError(f"figure.samples = {samples}: must be >= {WIDTHS[score] + 1:,}, {features}")


def check_plane(run: Run) -> None:
    """Raise ValueError for points that are not in the plane: they have no picture."""
    if len(run.data.shape) == 1 and run.data.shape[0] != 2:
        raise ValueError(f"points in R^{run.data.shape[0]} have no picture: choose data in the plane")


def train_finite(folder: Path, overrides: list[str], check: Callable[[Run], Any] | None = None) -> Run | None:
    """Train what `scripts/train.py OVERRIDES` trains and return the run; None if a loss was not finite.

    check is called with the run before the training.
    """
    try:
        return train_command(folder, overrides, check)
    except ValueError as error:
        if "is not finite" not in str(error):
            raise
        return None


def build_score(run: Run, n: int, name: str = "efficientnet") -> Score:
    """Build the score of `score_images`. ValueError if there are too few images, or no library or weights for it.

    The reference is the held-out images, or the training images if fewer are held out than the score needs.
    """
    split = "heldout" if len(run.data.labels["heldout"]) > WIDTHS[name] else "train"
    return build_scores(run, [name], n, reference=split)[0]


def score_images(run: Run, n: int, name: str = "efficientnet") -> dict[str, Any]:
    """Compute Inception score and FID of n samples in the features of SCORES[name], and those of real images."""
    score = build_score(run, n, name)
    numbers = leave_unchanged(score.compute)(run, 0)
    keys = [(kind, number) for kind in ("", "real_") for number in ("is", "fid")]
    values = {kind + number: numbers.get(f"{kind}{name}_{number}") for kind, number in keys}
    return values | {"facts": score.settings}


def format_score(records: list[dict[str, Any]], name: str) -> str:
    """Format a number of runs as mean +- standard deviation, or say that a run was not finite."""
    values = [record[name] for record in records if record["finite"]]
    return format_spread(values, ".4g") if len(values) == len(records) else "not finite"


def describe_real(records: list[dict[str, Any]], name: str = "fid") -> str:
    """Say what real images would get, for a title."""
    known = [record[f"real_{name}"] for record in records if record.get(f"real_{name}") is not None]
    return f"real images have {known[0]:.3g}" if known else "too few real images to compare"


def show_samples(run: Run, folder: Path, count: int, columns: int) -> Samples:
    """Return samples of a run: a picture as text, with one row per class if there are classes; lines; or points."""
    in_plane = len(run.data.shape) == 1
    count = DRAWN if in_plane else count
    generator = choose_generator(run)
    device = next(generator.parameters()).device
    classes = getattr(generator, "classes", 0)
    labels = arrange_classes(classes, count).to(device) if classes else None
    if labels is not None:
        count, columns = len(labels), int((labels == 0).sum())

    def draw(k: int) -> tuple[Tensor, ...]:
        z, *y = draw_latent(generator, max(count, 64), run.seed, k, "figure", device)  # a batch, for batch norm
        return (z, *y) if labels is None else (z[:count], labels)

    x = generate(generator, count, draw)
    if in_plane:
        real, *_ = run.data.batch(0, count, run.seed, "heldout", purpose="figure")
        return {"real": list_points(real), "generated": list_points(x)}
    if hasattr(run.data, "symbols"):
        return decode(x.argmax(1)[:LINES], run.data.symbols)
    return encode_pictures(folder, x, run.data.span, columns)


def draw_samples(axes: Any, samples: Samples | None, split: bool = False) -> None:
    """Show what `show_samples` returned; None: the run was not finite."""
    axes.set(xticks=[], yticks=[])
    if samples is None:
        axes.text(0.5, 0.5, "not finite", ha="center", va="center")
    elif isinstance(samples, dict):
        draw_points(axes, *(torch.tensor(samples[kind]) for kind in ("real", "generated")), size=2)
        axes.set(aspect="equal")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    elif isinstance(samples, list):
        half, width = -(-len(samples) // 2), max(map(len, samples))
        columns = zip_longest(samples[:half], samples[half:], fillvalue="")
        text = "\n".join(f"{left:<{width}}   {right}" for left, right in columns)
        axes.text(0.5, 0.5, text, family="monospace", ha="center", va="center", ma="left", parse_math=False)
    else:
        draw_pictures(axes, samples, split)


def encode_pictures(folder: Path, x: Tensor, span: tuple[float, float], columns: int | None = None) -> str:
    """Save pictures (N, C, H, W) with values in span as one PNG in the folder, and return the file as text."""
    folder.mkdir(parents=True, exist_ok=True)
    save_image_grid(folder / "samples.png", x.cpu(), span, columns=columns)
    return base64.b64encode((folder / "samples.png").read_bytes()).decode()


def draw_pictures(axes: Any, text: str, split: bool = False) -> None:
    """Show the pictures that `encode_pictures` returned, without ticks. split: 8 of them, and their channels below."""
    x = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    if split:
        row = x[: x.shape[1] // 8]
        x = np.concatenate([row, *(np.repeat(row[..., k : k + 1], 3, axis=2) for k in range(3))])
        axes.set_xlabel("above: images; below: their channels")
    axes.imshow(x, "gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
