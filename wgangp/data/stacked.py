"""Stacked MNIST: three random digits are the channels of one image, so that there are 1,000 modes."""

import hashlib

import torch
from torch import Tensor

from wgangp.data.images import Images, mnist
from wgangp.seeds import rng_for

__all__ = ["StackedImages", "combine_digits", "stacked_mnist"]


class StackedImages(Images):
    """Images whose channels are random gray images of a set, with values in span, shuffled anew in every epoch.

    Only the indices of the channels are kept, (N, 3) per split. Images are put together when a batch is drawn. Every
    split has channels of its own: held-out images consist of held-out digits.

    The choice of the channels is fixed: it depends on the numbers of images, and not on the seed of a run.

    Attributes:
        labels: for each split (N,), the mode of each image, 0 ... 999: see `combine_digits`.
        digits: as the argument.

    Args:
        digits: gray images with labels 0 ... 9.
        count: N, the number of training images. There are count // 5 held-out images, at least one.
    """

    classes, span, dequantize = 1_000, (-1.0, 1.0), False  # see wgangp/data/__init__.py

    def __init__(self, digits: Images, count: int = 128_000) -> None:
        if count < 1:
            raise ValueError(f"count = {count}: must be >= 1")
        self.digits = digits
        self.pictures, self.device = {split: x[:, 0] for split, x in digits.pictures.items()}, digits.device
        self.shape = (3, *digits.shape[1:])
        self.channels, self.labels = {}, {}
        for split, number in (("train", count), ("heldout", max(1, count // 5))):
            rng = rng_for(0, 0, f"stacked/{split}")  # on the CPU, so that every device has the same images
            channels = torch.randint(len(self.pictures[split]), (number, 3), generator=rng).to(self.device)
            self.channels[split], self.labels[split] = channels, combine_digits(digits.labels[split][channels])
        self.fingerprint = hashlib.sha256(f"{digits.fingerprint} {count}".encode()).hexdigest()

    def take(self, split: str, indices: Tensor) -> Tensor:
        """Return the images of a split with these indices (B,), uint8 (B, 3, H, W)."""
        return self.pictures[split][self.channels[split][indices.to(self.device)]]


def combine_digits(digits: Tensor) -> Tensor:
    """Return the mode 100 a + 10 b + c (N,) of images with the digits a, b and c in their channels, (N, 3)."""
    return (digits * digits.new_tensor([100, 10, 1])).sum(1)


def stacked_mnist(root: str | None = None, count: int = 128_000, device: torch.device | str = "cpu") -> StackedImages:
    """Read MNIST and stack its digits: 3 x 28 x 28 in [-1, 1].

    Args:
        root: as in `mnist`, whose split this is.
        count: number of training images. Paper: 128,000.

    Paper: Metz et al. 2017. Kumar et al. 2019, released data/mnist.py (commit b4a8d82), draw 128,000 images once, from
    a fixed seed. Differs: they draw from all 60,000 training digits; here the last 10,000 are held out. They draw
    batches with replacement; here every epoch is a permutation. The random numbers are others.
    """
    return StackedImages(mnist(root, device=device), count)
