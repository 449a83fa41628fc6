"""Images: uint8 on the training device if they fit in memory, otherwise decoded by threads ahead of the loop."""

import hashlib
import math
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
from wgangp.seeds import rng_for

__all__ = ["Images", "Streamed", "cifar10", "fashion_mnist", "image_folder", "mnist"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SPLITS = ("train", "heldout")
AHEAD = 4  # batches that are decoded in advance


class Images:
    """A finite set of images with values in span, shuffled anew in every epoch.

    Args:
        pictures: for each split, uint8 (N, C, H, W).
        labels: for each split, integers (N,) in 0 ... classes - 1.
        dequantize: use (x + u) / 256 with u ~ U[0, 1) in place of x / 255, so that the data has a density.
        span: the values of black and white after scaling.
    """

    labeled = False  # see wgangp/data/__init__.py

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
        self.classes = _count_classes(self.labels, self.pictures)
        self.fingerprint = hashlib.sha256(pictures["train"].cpu().contiguous().numpy()).hexdigest()

    def batch(self, k: int, size: int, seed: int, split: str = "train", purpose: str = "data") -> tuple[Tensor, ...]:
        """Return batch k of a split: images (size, C, H, W) in span, and labels (size,) if labeled is True."""
        stream = f"{purpose}/{split}"
        chosen = batch_indices(k, size, len(self.pictures[split]), seed, stream, self.device)
        pictures = self.pictures[split][chosen]
        x = _scale(pictures, self.span, self.dequantize, seed, k, stream)
        return (x, self.labels[split][chosen]) if self.labeled else (x,)


class Streamed:
    """As `Images`, for images that do not fit in memory: files that are decoded by threads a few batches ahead.

    Args:
        paths, labels: for each split, N files and N integers.
        read: maps a file to uint8 (C, H, W).
        workers: number of threads.
    """

    labeled = False  # see wgangp/data/__init__.py

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
        self.labels, self.classes = labels, _count_classes(labels, paths)
        self.shape = tuple(read(paths["train"][0]).shape)
        names = "\n".join(f"{path.name} {path.stat().st_size}" for path in paths["train"])
        self.fingerprint = hashlib.sha256(names.encode()).hexdigest()
        self.pool = ThreadPoolExecutor(workers)
        self.pending: dict[tuple[Any, ...], list[Future[Tensor]]] = {}

    def batch(self, k: int, size: int, seed: int, split: str = "train", purpose: str = "data") -> tuple[Tensor, ...]:
        """Return batch k of a split, as `Images.batch`. It does not depend on the batches that were read before."""
        stream = f"{purpose}/{split}"
        for soon in range(k, k + 1 + (AHEAD if purpose == "data" else 0)):
            key = (soon, size, seed, stream)
            if key not in self.pending:
                chosen = batch_indices(soon, size, len(self.paths[split]), seed, stream, torch.device("cpu"))
                self.pending[key] = [self.pool.submit(self.read, self.paths[split][i]) for i in chosen.tolist()]
        pictures = torch.stack([one.result() for one in self.pending.pop((k, size, seed, stream))])
        for late in [key for key in self.pending if key[1:] == (size, seed, stream) and not k < key[0] <= k + AHEAD]:
            del self.pending[late]
        chosen = batch_indices(k, size, len(self.paths[split]), seed, stream, torch.device("cpu"))
        labels = self.labels[split][chosen]
        if self.device.type == "cuda":  # so that the copy does not block
            pictures, labels = pictures.pin_memory(), labels.pin_memory()
        pictures, labels = (x.to(self.device, non_blocking=True) for x in (pictures, labels))
        x = _scale(pictures, self.span, self.dequantize, seed, k, stream)
        return (x, labels) if self.labeled else (x,)


def _count_classes(labels: dict[str, Tensor], items: dict[str, Any]) -> int:
    """The number of classes. ValueError if there is not one label >= 0 per item."""
    for split, y in labels.items():
        if len(y) != len(items[split]) or len(y) == 0 or y.min() < 0:
            raise ValueError(f"{split}: {len(items[split])} images have {len(y)} labels; each needs one label >= 0")
    return 1 + int(max(y.max() for y in labels.values()))


def _scale(pictures: Tensor, span: tuple[float, float], dequantize: bool, seed: int, k: int, stream: str) -> Tensor:
    """Scale uint8 images to span."""
    x = pictures.float()
    if dequantize:
        rng = rng_for(seed, k, f"dequantize/{stream}", x.device)
        x = (x + torch.rand(x.shape, generator=rng, device=x.device)) / 256
    else:
        x = x / 255
    low, high = span
    return x if span == (0.0, 1.0) else low + (high - low) * x


def mnist(root: str | None = None, dequantize: bool = False, device: torch.device | str = "cpu") -> Images:
    """Read MNIST, 1 x 28 x 28 in [0, 1]: the first 50,000 training digits for training, the last 10,000 held out.

    Args:
        root: a folder with MNIST/raw/*-ubyte. Nothing is downloaded to it. None: download to ./data, once.

    Paper: released code, whose mnist.pkl.gz has this split. The 10,000 test digits are not used. Differs: that file
    has x / 256, so that its brightest pixel is 0.996. Here it is x / 255, and the largest value is that of the sigmoid.
    """
    return _torchvision(torchvision.datasets.MNIST, root, dequantize, device)


def fashion_mnist(root: str | None = None, dequantize: bool = False, device: torch.device | str = "cpu") -> Images:
    """Read Fashion-MNIST, with the layout and the split of `mnist`; root has FashionMNIST/raw/*-ubyte."""
    return _torchvision(torchvision.datasets.FashionMNIST, root, dequantize, device)


def _torchvision(
    reader: type[torchvision.datasets.MNIST], root: str | None, dequantize: bool, device: torch.device | str
) -> Images:
    name = reader.__name__
    folder = Path(root or "data", name, "raw")
    files = [folder / f"{part}-ubyte" for part in ("train-images-idx3", "train-labels-idx1")]
    try:
        if root is None and not all(path.exists() for path in files):
            reader("data", download=True)
        pictures, labels = _read_idx(files[0], 3).unsqueeze(1), _read_idx(files[1], 1).long()
        if len(labels) != len(pictures) or len(labels) < 6:
            raise ValueError(f"there are {len(pictures)} images and {len(labels)} labels: one per image, and 6 or more")
        if (largest := labels.max()) > 9:
            raise ValueError(f"{files[1].name} has the label {largest} at {labels.argmax()}; labels are 0 ... 9")
    except Exception as error:  # torchvision, urllib and the file system raise many types; the remedy is the same
        network = f"connect to the network, delete {folder} if it exists, and run again: {name} is downloaded once"
        download = network if root is None else f"leave out data.root: {name} is then downloaded to ./data, once"
        raise ValueError(
            f"cannot read {name} from {folder}: {error}. Two remedies:"
            f"\n  - {download}"
            f"\n  - data.root=FOLDER, where FOLDER/{name}/raw has the unpacked files train-images-idx3-ubyte and"
            " train-labels-idx1-ubyte"
        ) from error
    held_out = len(pictures) // 6
    splits = {"train": slice(None, -held_out), "heldout": slice(-held_out, None)}
    return Images(
        {split: pictures[part] for split, part in splits.items()},
        {split: labels[part] for split, part in splits.items()},
        dequantize,
        device,
    )


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an IDX file: four bytes that name type (8: uint8) and dimensions, the big-endian sizes, then the values."""
    raw, start = path.read_bytes(), 4 + 4 * dimensions
    if len(raw) < start or raw[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(f"{path.name} is not an unpacked IDX file of bytes in {dimensions} dimension(s)")
    sizes = np.frombuffer(raw[4:start], ">u4").astype(int).tolist()
    if len(raw) != start + math.prod(sizes):
        raise ValueError(f"{path.name} has {len(raw):,} bytes; its header says {start + math.prod(sizes):,}")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=start).view(sizes)


def cifar10(root: str | None = None, dequantize: bool = False, device: torch.device | str = "cpu") -> Images:
    """Read CIFAR-10, 3 x 32 x 32 in [-1, 1]: 50,000 images for training, the 10,000 test images held out.

    Args:
        root: a folder with cifar-10-batches-py/. Nothing is downloaded to it. None: download to ./data, once.

    Paper: released code, whose "dev" set is the test set. gan_cifar.py scales with 2 (x / 255 - 0.5),
    gan_cifar_resnet.py with 2 (x / 256 - 0.5) + U[0, 1/128), which is dequantize=true.
    """
    parts = {}
    try:
        for split in SPLITS:
            parts[split] = torchvision.datasets.CIFAR10(root or "data", split == "train", download=root is None)
    except Exception as error:  # torchvision, urllib and truncated files raise many types; the remedy is the same
        raise ValueError(
            f"cannot read CIFAR-10 from {Path(root or 'data')}: {error}. Three remedies:"
            "\n  - leave out data.root and connect to the network: it is then downloaded to ./data, once"
            "\n  - data.root=FOLDER, where FOLDER/cifar-10-batches-py has the official files"
            "\n  - data=image_folder data.root=FOLDER: your own images"
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
    """Read a folder of images and its subfolders, as RGB in [-1, 1]. The name of the first subfolder is the class.

    Args:
        root: the folder.
        heldout_root: another folder, with the held-out images. None: every tenth image of root is held out, by name.
        size: images are resized so that the shorter side has this size, and the central size x size square is kept.
            None: all images have the same size and stay as they are.
        memory_gb: the decoded images are kept in memory (uint8, on the device) if they need at most this many GB.
            Otherwise they are decoded again in every epoch.
        workers: number of threads that decode.
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
        raise ValueError(f"root = {root}: at least two images are needed, because one in ten is held out")
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
    """Return every image in a folder and its subfolders, sorted by path."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"root = {folder}: there are no images ({', '.join(SUFFIXES)}) in it or in its subfolders")
    return paths


def _class(path: Path, root: Path) -> str:
    within = path.relative_to(root).parts
    return within[0] if len(within) > 1 else ""


def _read(path: Path, size: int | None, shape: tuple[int, ...] | None) -> Tensor:
    """Read an image as uint8 (3, H, W). ValueError if it cannot be read or does not have the given shape."""
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # the errors of Pillow for a broken file
        raise ValueError(f"{path} cannot be read: {error}. Remove it, or repair it") from error
    if size is not None:
        picture = center_crop(resize(picture, size), [size, size])
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    if shape is not None and tuple(x.shape) != shape:
        raise ValueError(
            f"{path} is {x.shape[1]} x {x.shape[2]}, but the first image is {shape[1]} x {shape[2]}: set data.size"
        )
    return x
