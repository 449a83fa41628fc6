"""Samples of a trained generator, as a picture, an animation, image files or numbers."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.utils import save_image

from wgangp import plots
from wgangp.config import find_device, restore
from wgangp.runs import Run
from wgangp.seeds import draw_latent
from wgangp.state import use_eval_mode

__all__ = ["generate", "sample"]

SUFFIXES = {"grid": ".png", "interpolation": ".png", "animation": ".gif", "images": "", "npz": ".npz"}
INTERPOLATION_COLUMNS = 8  # images per interpolation
BATCH = 256  # samples per forward pass. With batch norm in the generator, samples depend a little on their batch


def sample(
    run: str,
    what: str = "grid",
    n: int = 64,
    seed: int = 0,
    out: str | None = None,
    device: str = "auto",
) -> Path:
    """Draw samples from the generator of a run folder, write them, and return the path.

    Args:
        run: the run folder.
        what: grid (one picture); interpolation (between two random z); animation (of the pictures that the run saved);
            images (a folder with one file per sample); npz (numbers).
        n: the number of samples. An interpolation of images has n // 8 rows of 8.
        seed: of the noise.
        out: the file to write, or the folder for images; None: a name in run/made that tells step, seed and n.
        device: auto, cpu, cuda, ...

    Raises:
        ValueError: an argument is not valid, or the data cannot be shown in this way. Nothing is written.
    """
    if what not in SUFFIXES:
        raise ValueError(f"what = {what}: must be one of {', '.join(SUFFIXES)}")
    if n < 1 or seed < 0:
        raise ValueError(f"n = {n}, seed = {seed}: n must be >= 1 and seed >= 0")
    trained, step = restore(Path(run), find_device(device))
    dimensions, images = tuple(trained.data.shape), len(trained.data.shape) == 3
    if not images and what == "images":
        raise ValueError("points cannot be written as images: use what=npz for the numbers, what=grid for a picture")
    if not images and dimensions != (2,) and what != "npz":
        raise ValueError(f"points in R^{dimensions[0]} have no picture: use what=npz for the numbers")

    name = f"{what}_step{step}" + ("" if what == "animation" else f"_seed{seed}_n{n}")
    path = Path(out or Path(run, "made", name + SUFFIXES[what]))
    if path.exists():
        if out:
            raise ValueError(f"{path} exists and is not overwritten: choose another out=")
        return path  # it has the same run, step, seed and n
    if out and path.suffix != SUFFIXES[what]:
        expected = SUFFIXES[what] or "a folder, a name without a suffix"
        raise ValueError(f"out = {path}: what={what} writes {expected}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unfinished-") as folder:
        unfinished = Path(folder, path.name)  # renamed at the end, so that a part is not taken for the whole
        _write(unfinished, trained, Path(run), what, n, seed)
        return unfinished.rename(path)


def generate(generator: nn.Module, latent: tuple[Tensor, ...]) -> Tensor:
    """Compute the samples (N, *) of a generator in eval mode for latent = (z (N, latent_dim), *y), in batches."""
    with torch.no_grad(), use_eval_mode(generator):
        return torch.cat([generator(*part) for part in zip(*(x.split(BATCH) for x in latent), strict=True)])


def _write(path: Path, run: Run, folder: Path, what: str, n: int, seed: int) -> None:
    device = next(run.generator.parameters()).device
    images = len(run.data.shape) == 3
    if what == "animation":
        pictures = sorted((folder / "samples").glob("*.png"))
        if not pictures:
            raise ValueError(f"{folder / 'samples'} has no pictures to animate")
        plots.save_animation(path, pictures)
        return
    columns = None
    if what == "interpolation":
        columns = min(INTERPOLATION_COLUMNS, n) if images else n
        latent = _interpolation(run.generator, n // columns, columns, seed, device)
    else:
        latent = draw_latent(run.generator, n, seed, 0, "sample", device)
    x = generate(run.generator, latent)
    if what == "npz":
        np.savez_compressed(path, x=x.cpu().numpy())
    elif what == "images":
        path.mkdir()
        for i, image in enumerate(x):
            save_image(image, path / f"{i:06d}.png", normalize=True, value_range=run.data.span)
    elif images:
        plots.save_image_grid(path, x, run.data.span, columns=columns)
    else:
        plots.save_points(path, x, run.data.span, f"{what}, n = {len(x)}", columns is not None)


def _interpolation(
    generator: nn.Module, rows: int, columns: int, seed: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Return latents of rows * columns samples: each row goes along the great circle from one random z to another.

    The points of a straight line would have norms that N(0, I) never has in high dimension. A row has one label.
    """
    z, *y = draw_latent(generator, 2 * rows, seed, 0, "interpolation", device)
    start, end = z.unsqueeze(1).chunk(2)
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=-1).unsqueeze(-1)
    angle = cosine.clamp(-0.9999, 0.9999).arccos()
    t = torch.linspace(0, 1, columns, device=device).view(1, -1, 1)
    z = ((((1 - t) * angle).sin() * start + (t * angle).sin() * end) / angle.sin()).flatten(0, 1)
    return z, *(labels[:rows].repeat_interleave(columns) for labels in y)
