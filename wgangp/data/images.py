"""Images: uint8 on the training device if they fit in memory, otherwise decoded by threads ahead of the loop."""

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wgangp.data.download import download_cifar10, download_mnist
from wgangp.data.folder import (
    check_files,
    count_reasons,
    digest_files,
    find_pictures,
    format_path,
    read_header,
    read_picture,
    verify_picture,
)
from wgangp.data.idx import read_labeled
from wgangp.data.stream import batch_indices
from wgangp.seeds import rng_for

__all__ = ["Images", "Streamed", "cifar10", "fashion_mnist", "image_folder", "mnist"]

SPLITS = ("train", "heldout")
AHEAD = 4  # batches that are decoded in advance


class Images:
    """A finite set of images with values in span, shuffled anew in every epoch.

    Args:
        pictures: for each split, uint8 (N, C, H, W).
        labels: for each split, integers (N,) in 0 ... classes - 1.
        dequantize: use (x + u) / 256 with u ~ U[0, 1) in place of x / 255, so that the data has a density.
        span: the values of black and white after scaling.
        fingerprint: identifies the set. None: the sha256 of the pictures and labels to train on and held out.
    """

    labeled, label_problem = False, ""  # see wgangp/data/__init__.py

    def __init__(
        self,
        pictures: dict[str, Tensor],
        labels: dict[str, Tensor],
        dequantize: bool = False,
        device: torch.device | str = "cpu",
        span: tuple[float, float] = (0.0, 1.0),
        fingerprint: str | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.pictures = {split: x.to(self.device) for split, x in pictures.items()}
        self.labels = {split: y.to(self.device) for split, y in labels.items()}
        self.dequantize, self.span = dequantize, span
        self.shape = tuple(pictures["train"].shape[1:])
        self.classes = _count_classes(self.labels, self.pictures)
        self.fingerprint = fingerprint or _digest_tensors(pictures, labels)

    def take(self, split: str, indices: Tensor) -> Tensor:
        """Return the images of a split with these indices (B,) as they are in the files, uint8 (B, C, H, W)."""
        return self.pictures[split][indices.to(self.device)]

    def batch(self, k: int, size: int, seed: int, split: str = "train", purpose: str = "data") -> tuple[Tensor, ...]:
        """Return batch k of a split: images (size, C, H, W) in span, and labels (size,) if labeled is True."""
        stream = f"{purpose}/{split}"
        chosen = batch_indices(k, size, len(self.labels[split]), seed, stream, self.device)
        x = _scale(self.take(split, chosen), self.span, self.dequantize, seed, k, stream)
        return (x, self.labels[split][chosen]) if self.labeled else (x,)


class Streamed:
    """As `Images`, for images that do not fit in memory: files that are decoded by threads a few batches ahead.

    Args:
        paths, labels: for each split, N files and N integers.
        read: maps a file to uint8 (C, H, W).
        workers: number of threads.
        fingerprint: identifies the set. None: the result of `digest_files`.
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
        fingerprint: str | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.paths, self.read, self.dequantize, self.span = paths, read, dequantize, span
        self.labels, self.classes = labels, _count_classes(labels, paths)
        self.shape = tuple(read(paths["train"][0]).shape)
        self.fingerprint = fingerprint or digest_files(paths, labels, workers)
        self.pool = ThreadPoolExecutor(workers)
        self.pending: dict[tuple[Any, ...], list[Future[Tensor]]] = {}

    def take(self, split: str, indices: Tensor) -> Tensor:
        """Return images of a split as `Images.take`."""
        return torch.stack([self.read(self.paths[split][i]) for i in indices.tolist()]).to(self.device)

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


def _digest_tensors(pictures: dict[str, Tensor], labels: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for x in (part[split] for split in SPLITS if split in pictures for part in (pictures, labels)):
        digest.update(f"{x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.cpu().contiguous().numpy())
    return digest.hexdigest()


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

    The 10,000 test digits are the split "test", if their files are there. Only scores use them.

    Args:
        root: a folder with MNIST/raw/*-ubyte. Nothing is downloaded to it. None: download to ./data, once.

    Paper: released code, whose mnist.pkl.gz has this split. Differs: that file has x / 256, so that its brightest pixel
    is 0.996. Here it is x / 255, and the largest value is that of the sigmoid.
    """
    return _read_mnist("MNIST", root, dequantize, device)


def fashion_mnist(root: str | None = None, dequantize: bool = False, device: torch.device | str = "cpu") -> Images:
    """Read Fashion-MNIST, with the layout and the split of `mnist`; root has FashionMNIST/raw/*-ubyte."""
    return _read_mnist("FashionMNIST", root, dequantize, device)


def _read_mnist(name: str, root: str | None, dequantize: bool, device: torch.device | str) -> Images:
    folder = Path(root or "data", name, "raw")
    files = [folder / f"{part}-ubyte" for part in ("train-images-idx3", "train-labels-idx1")]
    test_files = [path.with_name(path.name.replace("train", "t10k")) for path in files]
    try:
        if root is None and not all(path.exists() for path in files):
            download_mnist(name, folder)
        pictures, labels = read_labeled(*files)
        test = read_labeled(*test_files) if all(path.exists() for path in test_files) else None
    except Exception as error:  # urllib and the file system raise many types; the remedy is the same
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
    parts = {split: (pictures[part], labels[part]) for split, part in splits.items()}
    parts |= {} if test is None else {"test": test}
    return Images({s: x for s, (x, _) in parts.items()}, {s: y for s, (_, y) in parts.items()}, dequantize, device)


def cifar10(root: str | None = None, dequantize: bool = False, device: torch.device | str = "cpu") -> Images:
    """Read CIFAR-10, 3 x 32 x 32 in [-1, 1]: 50,000 images for training, the 10,000 test images held out.

    Args:
        root: a folder with cifar-10-batches-py/. Nothing is downloaded to it. None: download to ./data, once.

    Paper: released code, whose "dev" set is the test set. gan_cifar.py scales with 2 (x / 255 - 0.5),
    gan_cifar_resnet.py with 2 (x / 256 - 0.5) + U[0, 1/128), which is dequantize=true.
    """
    from torchvision import datasets  # here: the import takes seconds

    folder = Path(root or "data", "cifar-10-batches-py")
    files = [folder / name for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")]
    try:
        if root is None and not all(path.exists() for path in files):
            download_cifar10(folder.parent, [f"{folder.name}/{path.name}" for path in files])
        for path in files:
            if path.exists() and not path.is_file():  # torchvision would wait for a pipe
                raise ValueError(f"{path} is not a file")
        parts = {split: datasets.CIFAR10(root or "data", split == "train", download=False) for split in SPLITS}
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
    channels: int | None = None,
    dequantize: bool = False,
    memory_gb: float = 4.0,
    workers: int = 4,
    device: torch.device | str = "cpu",
) -> Images | Streamed:
    """Read a folder of images and its subfolders, in [-1, 1]. The name of the first subfolder is the class.

    wgangp/data/folder.py says which files are read and how they are converted. The result has .summary, one line with
    the numbers of files that were read, converted and skipped. The header of every file is read before this returns.

    Args:
        root: the folder.
        heldout_root: another folder, with the held-out images. Those that are in root, too, are not trained on.
            None: every tenth image of root is held out, by name.
        size: images are resized so that the shorter side has this size, and the central size x size square is kept.
            None: all images have the same size and stay as they are.
        channels: 1 (gray) or 3 (RGB). None: 1 if all images are gray, otherwise 3.
        memory_gb: the decoded images are kept in memory (uint8, on the device) if they need at most this many GB.
            Otherwise they are decoded again in every epoch.
        workers: number of threads that decode.

    Raises:
        ValueError: a file or folder cannot be read; there are no images to train on; they have different sizes.
    """
    for name, value in (("size", size), ("workers", workers)):
        if value is not None and value < 1:
            raise ValueError(f"{name} = {value}: must be >= 1")
    if not memory_gb >= 0:
        raise ValueError(f"memory_gb = {memory_gb}: must be >= 0")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels = {channels}: must be 1 (gray), 3 (RGB) or null (as the files are)")
    in_root, skipped = find_pictures(Path(root))
    if heldout_root is None:
        every = list(in_root.values())
        parts = {"heldout": every[::10], "train": [picture for i, picture in enumerate(every) if i % 10]}
    else:
        held_out, skipped_too = find_pictures(Path(heldout_root))
        skipped = {reason: skipped[reason] | skipped_too[reason] for reason in (*skipped, *skipped_too)}
        skipped["in root and held out"] = in_root.keys() & held_out.keys()
        parts = {"train": [picture for real, picture in in_root.items() if real not in held_out]}
        parts["heldout"] = list(held_out.values())
    if not parts["train"]:
        reason = "at least two images are needed, because one in ten is held out"
        raise ValueError(f"root = {root}: {'all of its images are in heldout_root, too' if heldout_root else reason}")
    classes = {split: {picture.label for picture in part} for split, part in parts.items()}
    number = {name: i for i, name in enumerate(sorted(classes["train"] | classes["heldout"]))}
    labels = {split: torch.tensor([number[picture.label] for picture in part]) for split, part in parts.items()}
    paths = {split: [picture.path for picture in part] for split, part in parts.items()}
    every, count = paths["train"] + paths["heldout"], len(paths["train"])
    headers = check_files(read_header, every, workers, "reading headers")
    channels = channels or (1 if all(header.gray for header in headers) else 3)
    width, height = headers[0].size if size is None else (size, size)
    shape = (channels, height, width)

    def read(path: Path) -> Tensor:
        picture = read_picture(path, channels)
        if size is not None:
            from torchvision.transforms.functional import center_crop, resize  # as in cifar10

            picture = center_crop(resize(picture, size), [size, size])
        _check_size(path, picture.size, shape)
        return torch.from_numpy(np.array(picture)).view(height, width, channels).permute(2, 0, 1)

    converted: dict[str, list[Path]] = {}
    for path, header in zip(every, headers, strict=True):
        if size is None:
            _check_size(path, header.size, shape)
        color = () if header.gray == (channels == 1) else ("gray, as RGB" if header.gray else "in color, as gray",)
        for change in (*header.changes, *color):
            converted.setdefault(change, []).append(path)
    fingerprint = digest_files(paths, labels, workers)
    streamed = len(every) * math.prod(shape) > memory_gb * 1e9
    if streamed:
        unsure = [path for path, header in zip(every, headers, strict=True) if not header.whole]
        check_files(lambda path: read(path).shape, unsure, workers, "checking")
        check_files(verify_picture, every, workers, "verifying")
        data = Streamed(paths, labels, read, dequantize, device, (-1.0, 1.0), workers, fingerprint)
    else:
        decoded = torch.empty(len(every), *shape, dtype=torch.uint8)
        check_files(lambda i: decoded[i].copy_(read(every[i])).shape, range(len(every)), workers, "decoding")
        pictures = {"train": decoded[:count], "heldout": decoded[count:]}
        data = Images(pictures, labels, dequantize, device, (-1.0, 1.0), fingerprint)
    loose = [picture.path for picture in parts["train"] if not picture.label and len(number) > 1]
    only_held_out = {name or "no class" for name in classes["heldout"] - classes["train"]}
    if loose:
        data.label_problem = f"{len(loose)} images are in no class folder ({format_path(loose[0])}): move them to one"
    elif only_held_out:
        names = ", ".join(sorted(only_held_out))
        data.label_problem = f"there are held-out images, and none to train on, of: {names}. Add or remove images"
    notes = {
        "converted": converted,
        "skipped": skipped,
        "note": {"in no class folder": loose, "classes with held-out images only": only_held_out},
    }
    data.summary = (
        f"{count:,} images to train on and {len(every) - count:,} held out, {' x '.join(map(str, shape))},"
        f" classes: {len(number)}, {'decoded in every epoch' if streamed else 'in memory'}"
        + "".join(f"; {title}: {text}" for title, reasons in notes.items() if (text := count_reasons(reasons)))
    )
    return data


def _check_size(path: Path, size: tuple[int, int], shape: tuple[int, ...]) -> None:
    """Raise ValueError if a picture of size (W, H) does not have the shape (C, H, W)."""
    if size != (shape[2], shape[1]):
        raise ValueError(
            f"{format_path(path)} is {size[1]} x {size[0]}, but the first image is {shape[1]} x {shape[2]}:"
            " set data.size"
        )
