"""Pictures: uint8 on the training device where they fit, indexed there; else decoded by threads ahead of the loop."""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import center_crop, resize
from tqdm import tqdm

from wgangp.data.stream import batch_indices
from wgangp.seeds import generator_for

__all__ = ["Images", "Streamed", "cifar10", "fashion_mnist", "image_folder", "mnist"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SPLITS = ("train", "heldout")
AHEAD = 4  # batches that are being decoded before they are asked for


class Images:
    """A finite set of pictures with values in span, reshuffled every epoch.

    Args:
        pictures: for each split, uint8 (N, C, H, W).
        labels: for each split, integers (N,).
        dequantize: add U[0, 1) noise to the 256 levels, (x + u) / 256, so that the data has a density;
            otherwise x / 255.
        span: what 0 and 1 become.
    """

    def __init__(
        self,
        pictures: dict[str, Tensor],
        labels: dict[str, Tensor],
        dequantize: bool = False,
        device: torch.device | str = "cpu",
        span: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.device = torch.device(device)
        self.pictures = {split: x.to(self.device) for split, x in pictures.items()}
        self.labels = {split: y.to(self.device) for split, y in labels.items()}
        self.dequantize, self.span = dequantize, span
        self.shape = tuple(pictures["train"].shape[1:])
        self.fingerprint = hashlib.sha256(pictures["train"].cpu().contiguous().numpy()).hexdigest()

    def batch(self, k: int, size: int, seed: int, split: str = "train", purpose: str = "data") -> tuple[Tensor, Tensor]:
        """Batch k of a split: pictures (size, C, H, W) in span, labels (size,)."""
        stream = f"{purpose}/{split}"
        chosen = batch_indices(k, size, len(self.pictures[split]), seed, stream, self.device)
        pictures = self.pictures[split][chosen]
        return _scaled(pictures, self.span, self.dequantize, seed, k, stream), self.labels[split][chosen]


class Streamed:
    """What Images is, for pictures that do not fit in memory: files, decoded by threads a few batches ahead.

    Args:
        paths, labels: for each split, N files and N integers.
        read: a file -> uint8 (C, H, W).
        workers: threads.
    """

    def __init__(
        self,
        paths: dict[str, list[Path]],
        labels: dict[str, Tensor],
        read: Callable[[Path], Tensor],
        dequantize: bool = False,
        device: torch.device | str = "cpu",
        span: tuple[float, float] = (0.0, 1.0),
        workers: int = 4,
    ) -> None:
        self.device = torch.device(device)
        self.paths, self.read, self.dequantize, self.span = paths, read, dequantize, span
        self.labels = labels
        self.shape = tuple(read(paths["train"][0]).shape)
        named = "\n".join(f"{path.name} {path.stat().st_size}" for path in paths["train"])
        self.fingerprint = hashlib.sha256(named.encode()).hexdigest()
        self.pool = ThreadPoolExecutor(workers)
        self.coming: dict[tuple[Any, ...], list[Future[Tensor]]] = {}

    def batch(self, k: int, size: int, seed: int, split: str = "train", purpose: str = "data") -> tuple[Tensor, Tensor]:
        """Batch k of a split: pictures (size, C, H, W) in span, labels (size,). The same one, whatever came before."""
        stream = f"{purpose}/{split}"
        for soon in range(k, k + 1 + (AHEAD if purpose == "data" else 0)):
            key = (soon, size, seed, stream)
            if key not in self.coming:
                chosen = batch_indices(soon, size, len(self.paths[split]), seed, stream, torch.device("cpu"))
                self.coming[key] = [self.pool.submit(self.read, self.paths[split][i]) for i in chosen.tolist()]
        pictures = torch.stack([one.result() for one in self.coming.pop((k, size, seed, stream))])
        for late in [key for key in self.coming if key[1:] == (size, seed, stream) and not k < key[0] <= k + AHEAD]:
            del self.coming[late]
        chosen = batch_indices(k, size, len(self.paths[split]), seed, stream, torch.device("cpu"))
        labels = self.labels[split][chosen]
        if self.device.type == "cuda":  # so that the copy is not waited for
            pictures, labels = pictures.pin_memory(), labels.pin_memory()
        pictures, labels = (x.to(self.device, non_blocking=True) for x in (pictures, labels))
        return _scaled(pictures, self.span, self.dequantize, seed, k, stream), labels


def _scaled(pictures: Tensor, span: tuple[float, float], dequantize: bool, seed: int, k: int, stream: str) -> Tensor:
    """uint8 -> span."""
    x = pictures.float()
    if dequantize:
        random = generator_for(seed, k, f"dequantize/{stream}", x.device)
        x = (x + torch.rand(x.shape, generator=random, device=x.device)) / 256
    else:
        x = x / 255
    low, high = span
    return x if span == (0.0, 1.0) else low + (high - low) * x


def mnist(root: str | None = None, dequantize: bool = False, device: torch.device | str = "cpu") -> Images:
    """MNIST, 1 x 28 x 28: the first 50,000 training digits to train on, the last 10,000 held out.

    Args:
        root: a folder that holds MNIST/raw/*-ubyte; nothing is ever downloaded to it. None: download to ./data once.

    Paper: released code, whose mnist.pkl.gz is split like this. The 10,000 test digits are not touched. Differs: that
    file holds x / 256, so that its brightest pixel is 0.996; here it is x / 255, and the sigmoid's 1 is the data's 1.
    """
    return _torchvision(torchvision.datasets.MNIST, root, dequantize, device)


def fashion_mnist(root: str | None = None, dequantize: bool = False, device: torch.device | str = "cpu") -> Images:
    """Fashion-MNIST, laid out, split and loaded as `mnist` is; root holds FashionMNIST/raw/*-ubyte."""
    return _torchvision(torchvision.datasets.FashionMNIST, root, dequantize, device)


def _torchvision(
    reader: type[torchvision.datasets.MNIST], root: str | None, dequantize: bool, device: torch.device | str
) -> Images:
    name = reader.__name__
    folder = Path(root or "data", name, "raw")
    try:
        data = reader(root or "data", train=True, download=root is None)
    except Exception as error:  # its own, urllib's, a truncated file's: the way out is the same
        network = f"connect to the network, delete {folder} if it is there, and run again: {name} is downloaded, once"
        download = network if root is None else f"leave data.root out: {name} is then downloaded into ./data, once"
        raise ValueError(
            f"cannot read {name} from {folder}: {error}. Two ways out:"
            f"\n  - {download}"
            f"\n  - data.root=FOLDER, where FOLDER/{name}/raw holds the four unpacked files (train-images-idx3-ubyte,"
            " train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte)"
        ) from error
    pictures, labels = data.data.unsqueeze(1), data.targets
    held_out = len(pictures) // 6
    splits = {"train": slice(None, -held_out), "heldout": slice(-held_out, None)}
    return Images(
        {split: pictures[part] for split, part in splits.items()},
        {split: labels[part] for split, part in splits.items()},
        dequantize,
        device,
    )


def cifar10(root: str | None = None, dequantize: bool = False, device: torch.device | str = "cpu") -> Images:
    """CIFAR-10, 3 x 32 x 32 in [-1, 1]: 50,000 pictures to train on, the 10,000 test pictures held out.

    Args:
        root: a folder that holds cifar-10-batches-py/; nothing is ever downloaded to it. None: download to ./data once.

    Paper: released code, whose "dev" set is the test set; 2 (x / 255 - 0.5) in gan_cifar.py, and in gan_cifar_resnet.py
    2 (x / 256 - 0.5) + U[0, 1/128), which is dequantize=true.
    """
    parts = {}
    try:
        for split in SPLITS:
            parts[split] = torchvision.datasets.CIFAR10(root or "data", split == "train", download=root is None)
    except Exception as error:  # its own, urllib's, a truncated file's: the way out is the same
        raise ValueError(
            f"cannot read CIFAR-10 from {Path(root or 'data')}: {error}. Three ways out:"
            "\n  - leave data.root out, with a network: it is then downloaded into ./data, once"
            "\n  - data.root=FOLDER, where FOLDER/cifar-10-batches-py holds the official files"
            "\n  - data=image_folder data.root=FOLDER: pictures of your own"
        ) from error
    pictures = {split: torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for split, part in parts.items()}
    labels = {split: torch.tensor(part.targets) for split, part in parts.items()}
    return Images(pictures, labels, dequantize, device, span=(-1.0, 1.0))


def image_folder(
    root: str,
    heldout_root: str | None = None,
    size: int | None = None,
    dequantize: bool = False,
    memory_gb: float = 4.0,
    workers: int = 4,
    device: torch.device | str = "cpu",
) -> Images | Streamed:
    """Any folder of pictures, RGB in [-1, 1], read from it and its subfolders; the first subfolder is the class.

    Args:
        root: the folder.
        heldout_root: another one, with the pictures that are held out. None: every tenth of root, by name.
        size: pictures become size x size: the shorter side resized, the middle cut out. None: all have one size, as
            they are.
        memory_gb: decoded pictures that take no more are kept in memory (uint8, on the device); else they are decoded
            again every time, by `workers` threads ahead of the loop.
    """
    for name, value in (("size", size), ("workers", workers)):
        if value is not None and value < 1:
            raise ValueError(f"{name} = {value}: must be >= 1")
    if heldout_root is None:
        every = _pictures(Path(root))
        paths = {"heldout": every[::10], "train": [path for i, path in enumerate(every) if i % 10]}
        roots = {split: Path(root) for split in SPLITS}
    else:
        roots = {"train": Path(root), "heldout": Path(heldout_root)}
        paths = {split: _pictures(folder) for split, folder in roots.items()}
    if not paths["train"]:
        raise ValueError(f"root = {root}: one picture is too few, one in ten is held out")
    classes = {split: [_class(path, roots[split]) for path in each] for split, each in paths.items()}
    number = {name: i for i, name in enumerate(sorted({*classes["train"], *classes["heldout"]}))}
    labels = {split: torch.tensor([number[name] for name in each]) for split, each in classes.items()}
    shape = tuple(_read(paths["train"][0], size, None).shape)

    def read(path: Path) -> Tensor:
        return _read(path, size, shape)

    total = sum(map(len, paths.values()))
    if total * int(np.prod(shape)) > memory_gb * 1e9:
        return Streamed(paths, labels, read, dequantize, device, (-1.0, 1.0), workers)
    with ThreadPoolExecutor(workers) as pool, tqdm(total=total, desc="decoding", leave=False, disable=None) as bar:
        pictures = {split: torch.empty(len(each), *shape, dtype=torch.uint8) for split, each in paths.items()}
        for split, each in paths.items():
            for into, picture in zip(pictures[split], pool.map(read, each), strict=True):
                into.copy_(picture)
                bar.update()
    return Images(pictures, labels, dequantize, device, (-1.0, 1.0))


def _pictures(folder: Path) -> list[Path]:
    """Every picture below a folder, in an order that is the same everywhere."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"root = {folder}: no pictures ({', '.join(SUFFIXES)}) are in it or below it")
    return found


def _class(path: Path, root: Path) -> str:
    within = path.relative_to(root).parts
    return within[0] if len(within) > 1 else ""


def _read(path: Path, size: int | None, shape: tuple[int, ...] | None) -> Tensor:
    """A picture as uint8 (3, H, W); ValueError when it cannot be read or is of another shape than the first."""
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for a broken file
        raise ValueError(f"{path} cannot be read: {error}. Take it out, or repair it") from error
    if size is not None:
        picture = center_crop(resize(picture, size), [size, size])
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    if shape is not None and tuple(x.shape) != shape:
        raise ValueError(f"{path} is {x.shape[1]} x {x.shape[2]}, the first one {shape[1]} x {shape[2]}: set data.size")
    return x
