"""What figures of image networks share: a command per cell, the distance of its samples to held-out images, pictures.

The distance is the sliced Wasserstein distance in pixels (metrics/sliced.py), in units of the floor: the distance
between training images and held-out ones. It tells whether a run failed: divergence, collapse and noise are far away.
It does not tell good images from images with the right colors.
"""

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wgangp.figures.common import format_spread
from wgangp.figures.study import train_command
from wgangp.logs import read_lines
from wgangp.metrics.sliced import sliced_wasserstein
from wgangp.plots import save_image_grid
from wgangp.runs import Run
from wgangp.seeds import draw_latent, rng_for

__all__ = [
    "NEVER",
    "compute_ratio",
    "draw_pictures",
    "draw_samples",
    "encode_pictures",
    "format_ratios",
    "list_data_options",
    "read_elapsed",
    "score_images",
    "train_finite",
]

NEVER = 10**9


def list_data_options(data: str, data_root: str | None, size: int) -> list[str]:
    """Return the overrides that choose the images: cifar10, or image_folder at size x size."""
    options = [f"data={data}"] + [f"data.size={size}"] * (data == "image_folder")
    return options + ([] if data_root is None else [f"data.root={data_root}"])


def train_finite(folder: Path, overrides: list[str]) -> Run | None:
    """Train what `scripts/train.py OVERRIDES` trains and return the run; None if a loss was not finite."""
    try:
        return train_command(folder, overrides)
    except ValueError as error:
        if "is not finite" not in str(error):
            raise
        return None


def draw_samples(run: Run, count: int, batch_size: int) -> Tensor:
    """Draw samples (count, C, H, W) in batches of the training: batch norm uses the statistics of the batch."""
    device = next(run.generator.parameters()).device
    with torch.no_grad():
        parts = [
            run.generator(*draw_latent(run.generator, batch_size, run.seed, k, "figure", device))
            for k in range(math.ceil(count / batch_size))
        ]
    return torch.cat(parts)[:count]


def score_images(run: Run, count: int, batch_size: int) -> dict[str, float]:
    """Compute the distance of `count` samples to held-out images, and the floor, that of training images to them."""
    train, held_out = (run.data.batch(0, count, run.seed, split, purpose="figure")[0] for split in ("train", "heldout"))

    def measure(x: Tensor) -> float:
        return sliced_wasserstein(x, held_out, rng=rng_for(0, 0, "figure/directions", x.device))

    return {"distance": measure(draw_samples(run, count, batch_size)), "floor": measure(train)}


def compute_ratio(record: dict[str, Any]) -> float:
    """Return distance / floor of a run; inf if it was not finite."""
    return record["distance"] / record["floor"] if record["finite"] else math.inf


def format_ratios(records: list[dict[str, Any]]) -> str:
    """Format distance / floor of runs as mean +- standard deviation, or say that a run was not finite."""
    ratios = [compute_ratio(record) for record in records]
    return format_spread(ratios, ".1f") if all(map(math.isfinite, ratios)) else "not finite"


def read_elapsed(folder: Path) -> float:
    """Return the seconds of training of a folder so far."""
    return read_lines(folder / "timing.jsonl")[-1]["elapsed_s"]


def encode_pictures(folder: Path, x: Tensor, span: tuple[float, float], columns: int | None = None) -> str:
    """Save pictures (N, C, H, W) with values in span as one PNG in the folder, and return the file as text."""
    folder.mkdir(parents=True, exist_ok=True)
    save_image_grid(folder / "samples.png", x.cpu(), span, columns=columns)
    return base64.b64encode((folder / "samples.png").read_bytes()).decode()


def draw_pictures(axes: Any, text: str) -> None:
    """Show the pictures that `encode_pictures` returned, without ticks."""
    axes.imshow(np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))), "gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
