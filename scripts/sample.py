"""Pictures from a trained generator: python scripts/sample.py run=FOLDER [what=grid] [n=64] [seed=0] [out=FILE]."""

import sys
import tempfile
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision.utils import save_image

from wgangp import config, plots
from wgangp.seeds import noise

SUFFIX = {"grid": ".png", "interpolation": ".png", "animation": ".gif", "images": "", "npz": ".npz"}
ACROSS = 8  # pictures from one end of an interpolation to the other
BATCH = 256  # samples at once; with batch norm in the generator they depend a little on each other


@hydra.main(version_base="1.3", config_path="../conf", config_name="sample")
def main(cfg: DictConfig) -> None:
    try:
        print(make(cfg))
    except ValueError as error:
        sys.exit(f"error: {error}")


def make(cfg: DictConfig) -> Path:
    """Make what the config asks for; returns the file or folder. ValueError where that cannot be."""
    if cfg.what not in SUFFIX:
        raise ValueError(f"what = {cfg.what}: must be one of {', '.join(SUFFIX)}")
    if cfg.n < 1 or cfg.seed < 0:
        raise ValueError(f"n = {cfg.n}, seed = {cfg.seed}: n must be >= 1 and seed >= 0")
    config.check_keys(cfg, config.Sample)
    if not cfg.run:
        raise ValueError("run=FOLDER is needed: the folder that scripts/train.py named")
    device = config.device_of(cfg.device)
    _, players, state = config.trained(Path(cfg.run), device, ("generator",))
    generator, in_plane = players["generator"], len(state["shape"]) == 1
    if in_plane and cfg.what == "images":
        raise ValueError("points are no images: use what=npz for the numbers, what=grid for a picture")
    if in_plane and tuple(state["shape"]) != (2,) and cfg.what != "npz":
        raise ValueError(f"points in R^{state['shape'][0]} have no picture: use what=npz for the numbers")

    name = f"{cfg.what}_step{state['step']}" + ("" if cfg.what == "animation" else f"_seed{cfg.seed}_n{cfg.n}")
    path = Path(cfg.out or Path(cfg.run, "made", name + SUFFIX[cfg.what]))
    if path.exists():
        if cfg.out:
            raise ValueError(f"{path} exists and is not overwritten: choose another out=")
        return path  # the same run, step, seed and n: it is this already
    if cfg.out and path.suffix != SUFFIX[cfg.what]:
        raise ValueError(f"out = {path}: {cfg.what} makes {SUFFIX[cfg.what] or 'a folder, a name without a suffix'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unfinished-") as folder:
        unfinished = Path(folder, path.name)  # so that what is cut off is not taken for the whole
        write(unfinished, cfg, generator, tuple(state["span"]), in_plane)
        return unfinished.rename(path)


def write(path: Path, cfg: DictConfig, generator: nn.Module, span: tuple[float, float], in_plane: bool) -> None:
    """Make the thing itself at path."""
    device = next(generator.parameters()).device
    if cfg.what == "animation":
        pictures = sorted(Path(cfg.run, "samples").glob("*.png"))
        if not pictures:
            raise ValueError(f"{cfg.run}/samples holds no pictures to animate")
        plots.animation(path, pictures)
        return
    across = None
    if cfg.what == "interpolation":
        across = cfg.n if in_plane else min(ACROSS, cfg.n)
        z = between(generator, cfg.n // across, across, cfg.seed, device)
    else:
        z = noise(generator, cfg.n, cfg.seed, 0, "sample", device)
    with torch.no_grad():
        x = torch.cat([generator(part) for part in z.split(BATCH)])
    if cfg.what == "npz":
        np.savez_compressed(path, x=x.cpu().numpy())
    elif cfg.what == "images":
        path.mkdir()
        for i, image in enumerate(x):
            save_image(image, path / f"{i:06d}.png", normalize=True, value_range=span)
    elif in_plane:
        plots.points(path, x, span, title=f"{cfg.what}, n = {len(x)}", joined=across is not None)
    else:
        plots.image_grid(path, x, span, columns=across)


def between(generator: nn.Module, pairs: int, across: int, seed: int, device: torch.device) -> Tensor:
    """Noise (pairs * across, latent_dim): along the great circle from one random z to another, for each pair.

    A straight line would pass through norms that N(0, I) never has in high dimension.
    """
    start, end = noise(generator, 2 * pairs, seed, 0, "interpolation", device).unsqueeze(1).chunk(2)
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=-1).unsqueeze(-1)
    angle = cosine.clamp(-0.9999, 0.9999).arccos()
    t = torch.linspace(0, 1, across, device=device).view(1, -1, 1)
    return ((((1 - t) * angle).sin() * start + (t * angle).sin() * end) / angle.sin()).flatten(0, 1)


if __name__ == "__main__":
    main()
