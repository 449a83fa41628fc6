"""Endless batches from a finite set: shuffled anew in every epoch, and readable from any position."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from wgangp.seeds import rng_for

__all__ = ["Unread", "batch_indices"]


def batch_indices(k: int, size: int, count: int, seed: int, stream: str, device: torch.device) -> Tensor:
    """Return the indices (size,) into `count` items of batch k of the stream with this name.

    Every epoch is another permutation, a function of (seed, epoch, stream). The remainder that does not fill a batch
    is left out, as in the released code.
    """
    if size > count:
        raise ValueError(
            f"a batch of {size} is larger than the {count} items of the split ({stream}): use a smaller one"
        )
    epoch, position = divmod(k, count // size)
    return _permutation(count, seed, epoch, stream, device)[position * size : (position + 1) * size]


@lru_cache(maxsize=16)  # the current epoch of each stream
def _permutation(count: int, seed: int, epoch: int, stream: str, device: torch.device) -> Tensor:
    return torch.randperm(count, generator=rng_for(seed, epoch, f"order/{stream}", device), device=device)


class Unread:
    """A placeholder for data that was not read: only its shape, its span and the symbols of text are known."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.shape, self.span, self.fingerprint = tuple(state["shape"]), tuple(state["span"]), state.get("data", "")
        if "symbols" in state:
            self.symbols = state["symbols"]

    def batch(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        raise ValueError("this run was loaded without its data: use load_run(folder, read_data=True)")
