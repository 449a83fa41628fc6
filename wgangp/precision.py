"""The precision of training: fp32, tf32 (on CUDA: fp32, but products round their inputs) or bf16 (autocast)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["PRECISIONS", "autocast", "check_precision", "product_precision"]

PRECISIONS = ("fp32", "tf32", "bf16")


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ValueError if the precision is unknown, or not available on the device."""
    if precision not in PRECISIONS:
        raise ValueError(f"train.precision = {precision}: must be one of {', '.join(PRECISIONS)}")
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"train.precision = tf32: only CUDA devices have it, and this is {device}. Use fp32 or bf16")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context manager for forward passes: weights stay in fp32; with bf16 their products are in bf16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def product_precision(precision: str) -> Iterator[None]:
    """Set how CUDA multiplies fp32 numbers inside of the with block, in matrix products and in convolutions.

    With "tf32" the inputs of a product are rounded to tf32, otherwise not. torch's own default rounds them in
    convolutions but not in matrix products.
    """
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matrices.fp32_precision, convolutions.fp32_precision
    matrices.fp32_precision = convolutions.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        matrices.fp32_precision, convolutions.fp32_precision = before
