"""Pictures that fit in memory: uint8 on the training device, indexed there. No loader, no copy in the loop."""

import hashlib
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from wgangp.data.stream import batch_indices
from wgangp.seeds import generator_for

__all__ = ["Images", "fashion_mnist", "mnist"]


class Images:
    """A finite set of pictures with values in [0, 1], reshuffled every epoch.

    Args:
        pictures: for each split, uint8 (N, C, H, W).
        labels: for each split, integers (N,).
        dequantize: add U[0, 1) noise to the 256 levels, (x + u) / 256, so that the data has a density;
            otherwise x / 255.
    """

    span = (0.0, 1.0)

    def __init__(
        self,
        pictures: dict[str, Tensor],
        labels: dict[str, Tensor],
        dequantize: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.pictures = {split: x.to(self.device) for split, x in pictures.items()}
        self.labels = {split: y.to(self.device) for split, y in labels.items()}
        self.dequantize = dequantize
        self.shape = tuple(pictures["train"].shape[1:])
        self.fingerprint = hashlib.sha256(pictures["train"].cpu().contiguous().numpy()).hexdigest()

    def batch(self, k: int, size: int, seed: int, split: str = "train", purpose: str = "data") -> tuple[Tensor, Tensor]:
        """Batch k of a split: pictures (size, C, H, W) in [0, 1], labels (size,)."""
        stream = f"{purpose}/{split}"
        chosen = batch_indices(k, size, len(self.pictures[split]), seed, stream, self.device)
        x = self.pictures[split][chosen].float()
        if self.dequantize:
            noise = generator_for(seed, k, f"dequantize/{stream}", self.device)
            x = (x + torch.rand(x.shape, generator=noise, device=self.device)) / 256
        else:
            x = x / 255
        return x, self.labels[split][chosen]


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
