"""Samples of a trained generator, as a picture, an animation, image files, text or numbers."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wgangp import plots
from wgangp.config import find_device, restore
from wgangp.data.folder import read_header
from wgangp.data.text import write_lines
from wgangp.files import complete, write_file
from wgangp.generate import BATCH, generate
from wgangp.report import describe_budget
from wgangp.runs import Run, choose_generator
from wgangp.seeds import arrange_classes, draw_latent

__all__ = ["sample"]

SUFFIXES = {"grid": ".png", "interpolation": ".png", "animation": ".webp", "images": "", "npz": ".npz"}


def sample(
    run: str,
    what: str = "grid",
    n: int = 64,
    seed: int = 0,
    step: int | None = None,
    class_: int | None = None,
    out: str | None = None,
    device: str = "auto",
    trust: Sequence[str] = (),
) -> Path:
    """Draw samples from the generator of a run folder, write them, and return the path.

    The generator is the averaged one if the run has an average (ema.decay). It is in eval mode. Sample i of a seed is
    the same for every n, except in a grid with one row per class.

    Args:
        run: the run folder.
        what: grid (one picture; for text a file with one sample per line); interpolation (between two random z);
            animation (a WebP of less than 1 MB of the pictures that the run saved); images (a folder with one file per
            sample); npz (numbers: docs/export.md). Text has grid and npz.
        n: the number of samples. An interpolation of images has n // 8 rows of 8. A grid of a generator with classes
            has one row per class, with n // classes samples each.
        seed: the seed of the noise. An animation uses neither n nor seed.
        step: of the checkpoint that is used, and of the last picture of an animation. None: the newest checkpoint.
        class_: the label of all samples, for a generator with classes. None: a grid has one row per class, other
            samples have random labels.
        out: the file to write, or the folder for images. None: a file in the folder `made` of the run folder, with
            step, seed and n in its name.
        device, trust: as in `config.load_run`.

    Raises:
        ValueError: an argument is not valid, there is no such checkpoint, the data cannot be shown in this way, or a
            picture of an animation cannot be read. Nothing is written.
    """
    if what not in SUFFIXES:
        raise ValueError(f"what = {what}: must be one of {', '.join(SUFFIXES)}")
    if n < 1 or seed < 0:
        raise ValueError(f"n = {n}, seed = {seed}: n must be >= 1 and seed >= 0")
    trained, step = restore(Path(run), find_device(device), step=step, trust=trust)
    dimensions, images = tuple(trained.data.shape), len(trained.data.shape) == 3
    classes = getattr(trained.generator, "classes", 0)
    if class_ is not None and not 0 <= class_ < classes:
        known = f"must be one of 0 ... {classes - 1}" if classes else "the generator has no classes: leave it out"
        raise ValueError(f"class = {class_}: {known}")
    if class_ is not None and what == "animation":
        raise ValueError("what=animation shows the pictures that the run saved: leave out class=")
    suffixes, is_text = SUFFIXES, hasattr(trained.data, "symbols")
    if is_text:
        suffixes = {"grid": ".txt", "npz": ".npz"}
        if what not in suffixes:
            raise ValueError(f"what = {what}: text is written as lines with what=grid, or as numbers with what=npz")
    elif not images and what == "images":
        raise ValueError("points cannot be written as images: use what=npz for the numbers, what=grid for a picture")
    if images and dimensions[0] not in plots.CHANNELS and what != "npz":
        raise ValueError(f"images with {dimensions[0]} channels cannot be drawn: use what=npz for the numbers")
    if not images and not is_text and dimensions != (2,) and what != "npz":
        raise ValueError(f"points in R^{dimensions[0]} have no picture: use what=npz for the numbers")

    name = f"{what}_step{step}" + ("" if what == "animation" else f"_seed{seed}_n{n}")
    name += "" if class_ is None else f"_class{class_}"
    path = Path(out or Path(run, "made", name + suffixes[what]))
    if path.exists():
        if out:
            raise ValueError(f"{path} exists and is not overwritten: choose another out=")
        return path  # it has the same run, step, seed and n
    if out and path.suffix != suffixes[what]:
        expected = suffixes[what] or "a folder, a name without a suffix"
        raise ValueError(f"out = {path}: what={what} writes {expected}")
    with complete(path) as unfinished:  # so that a part is not taken for the whole
        _write(unfinished, trained, Path(run), what, n, seed, step, class_)
    return path


def _write(
    path: Path, run: Run, folder: Path, what: str, n: int, seed: int, step: int, class_: int | None = None
) -> None:
    generator = choose_generator(run)
    device = next(generator.parameters()).device
    images = len(run.data.shape) == 3
    if what == "animation":
        pictures = sorted((folder / "samples").glob("[0-9]*.png"))
        pictures = [picture for picture in pictures if picture.stem.isdecimal() and int(picture.stem) <= step]
        if not pictures:
            raise ValueError(f"{folder / 'samples'} has no pictures to animate")
        count, (width, height) = plots.save_animation(path, pictures)
        if (count, (width, height)) != (len(pictures), read_header(pictures[-1]).size):
            print(f"{count} of {len(pictures)} pictures, {width} x {height} px: the file has less than 1 MB")
        return
    columns, labels, classes = None, None, getattr(generator, "classes", 0)
    if what == "interpolation":
        columns = min(8, n) if images else n
        n = n // columns * columns
    if class_ is not None:
        labels = torch.full((n,), class_)
    elif what == "grid" and classes and images:
        labels = arrange_classes(classes, n)
        n, columns = len(labels), int((labels == 0).sum())

    def draw(k: int) -> tuple[Tensor, ...]:
        if what == "interpolation":
            z, *y = _draw_interpolation(generator, columns, seed, k, device)
        else:
            z, *y = draw_latent(generator, BATCH, seed, k, "sample", device)
        if labels is not None:
            y = [labels[torch.arange(k * BATCH, k * BATCH + len(z)) % n].to(device)]
        return z, *y

    x, symbols = generate(generator, n, draw).cpu(), getattr(run.data, "symbols", None)
    note = describe_budget(folder)
    if what == "npz":
        numbers = {"arr_0": plots.to_bytes(x, run.data.span) if images else x, "x": x, "span": run.data.span}
        if symbols is not None:
            numbers |= {"arr_0": x.argmax(1), "symbols": symbols}
        if classes:
            numbers["y"] = torch.cat([draw(k)[1] for k in range(math.ceil(n / BATCH))])[:n].cpu()
        numbers |= {"step": step, "seed": seed}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{name: np.asarray(value) for name, value in numbers.items()})
        write_file(path, buffer.getbuffer())
    elif what == "images":
        path.mkdir()
        for i, pixels in enumerate(plots.to_bytes(x, run.data.span)):
            plots.save_image(path / f"{i:06d}.png", pixels)
    elif symbols is not None:
        write_lines(path, x, symbols, note)
    elif images:
        plots.save_image_grid(path, x, run.data.span, columns, note)
    else:
        title = f"{what}, n = {len(x)}" + ", budget=cpu" * bool(note)
        plots.save_points(path, x, run.data.span, title, what == "interpolation")


def _draw_interpolation(
    generator: nn.Module, columns: int, seed: int, k: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Return batch k of the latents of rows of samples, BATCH or more: a row goes from one random z to another.

    It goes along the great circle. The points of a straight line would have norms that N(0, I) never has in high
    dimension. A row has one label.
    """
    rows = math.ceil(BATCH / columns)
    z, *y = draw_latent(generator, 2 * BATCH, seed, k, "interpolation", device)  # of which 2 * rows are used
    start, end = z[: 2 * rows].unflatten(0, (rows, 2)).unsqueeze(2).unbind(1)
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=-1).unsqueeze(-1)
    angle = cosine.clamp(-0.9999, 0.9999).arccos()
    t = torch.linspace(0, 1, columns, device=device).view(1, -1, 1)
    z = ((((1 - t) * angle).sin() * start + (t * angle).sin() * end) / angle.sin()).flatten(0, 1)
    return z, *(labels[: 2 * rows : 2].repeat_interleave(columns) for labels in y)
