"""Endless, seekable batches from a finite set: shuffled anew every epoch, entered anywhere."""

from functools import lru_cache

import torch
from torch import Tensor

from wgangp.seeds import generator_for

__all__ = ["batch_indices"]


def batch_indices(k: int, size: int, count: int, seed: int, stream: str, device: torch.device) -> Tensor:
    """The indices (size,) into count items that make up batch k of a stream of that name.

    Every epoch is another permutation, a function of (seed, epoch, stream); the remainder that fills no batch is left
    out, as in the released code.
    """
    if size > count:
        raise ValueError(
            f"a batch of {size} is asked for, and there are {count} items ({stream}): choose a smaller one"
        )
    epoch, position = divmod(k, count // size)
    return _permutation(count, seed, epoch, stream, device)[position * size : (position + 1) * size]


@lru_cache(maxsize=16)  # the current epoch of each stream
def _permutation(count: int, seed: int, epoch: int, stream: str, device: torch.device) -> Tensor:
    generator = generator_for(seed, epoch, f"order/{stream}", device)
    return torch.randperm(count, generator=generator, device=device)
