"""The arithmetic of training: fp32, tf32 (fp32 with the inputs of products rounded, on CUDA) or bf16 (autocast)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["PRECISIONS", "autocast", "check_precision", "products"]

PRECISIONS = ("fp32", "tf32", "bf16")


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ValueError for one that is not known, or that the device does not have."""
    if precision not in PRECISIONS:
        raise ValueError(f"train.precision = {precision}: must be one of {', '.join(PRECISIONS)}")
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"train.precision = tf32: CUDA devices have it, and this is {device}. Choose fp32 or bf16")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """What the forward passes run under: weights stay fp32, their products are bf16 where that is asked for."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Whether CUDA rounds the inputs of fp32 products to tf32, for both matrices and convolutions.

    torch by itself rounds them in convolutions and not in matrices, so that its fp32 is neither.
    """
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matrices.fp32_precision, convolutions.fp32_precision
    matrices.fp32_precision = convolutions.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        matrices.fp32_precision, convolutions.fp32_precision = before
