"""IDX files, the format of MNIST: unpacked arrays of bytes."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wgangp.files import read_file

__all__ = ["read_labeled"]


def read_labeled(pictures_file: Path, labels_file: Path) -> tuple[Tensor, Tensor]:
    """Read the images (N, 1, H, W) and the labels (N,) of two IDX files."""
    pictures, labels = _read_idx(pictures_file, 3).unsqueeze(1), _read_idx(labels_file, 1).long()
    if len(labels) != len(pictures) or len(labels) < 6:
        raise ValueError(f"there are {len(pictures)} images and {len(labels)} labels: one per image, and 6 or more")
    if (largest := labels.max()) > 9:
        raise ValueError(f"{labels_file.name} has the label {largest} at {labels.argmax()}; labels are 0 ... 9")
    return pictures, labels


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an IDX file: four bytes that name type (8: uint8) and dimensions, the big-endian sizes, then the values."""
    raw, start = read_file(path), 4 + 4 * dimensions
    if len(raw) < start or raw[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(f"{path.name} is not an unpacked IDX file of bytes in {dimensions} dimension(s)")
    sizes = np.frombuffer(raw[4:start], ">u4").astype(int).tolist()
    if len(raw) != start + math.prod(sizes):
        raise ValueError(f"{path.name} has {len(raw):,} bytes; its header says {start + math.prod(sizes):,}")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=start).view(sizes)
