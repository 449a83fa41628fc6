"""Randomness as a function of (seed, step, purpose).

Every random draw of a run comes from a random number generator that is made for this one draw. Nothing about it has to
be saved to resume a run. The global random number generators of torch are used by layers alone, such as dropout; see
`seed_layers`.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["arrange_classes", "draw_latent", "initialize", "rng_for", "seed_layers"]


def rng_for(seed: int, step: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new random number generator whose state is a function of seed, step and purpose.

    On a CPU, torch keeps 32 bits of a seed. Of n random number generators, about n^2 / 2^33 pairs are therefore
    equal: a few hundred pairs, at unrelated steps, of the two million that a run of 200,000 updates makes.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def initialize(build: Callable[[], nn.Module], seed: int, name: str) -> nn.Module:
    """Call build() and return the module, with initial weights that are a function of (seed, name).

    name: of the network, for example "critic". Nothing that was drawn before changes the weights.

    The state of the global random number generator is restored afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(rng_for(seed, 0, f"init/{name}").get_state())
        return build()


@contextmanager
def seed_layers(seed: int, step: int, purpose: str, device: torch.device) -> Iterator[None]:
    """Make what layers draw inside of the with block (dropout, noise) a function of (seed, step, purpose).

    They draw from torch's global random number generators, whose states are restored afterwards.
    """
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.set_rng_state(rng_for(seed, step, f"layers/{purpose}").get_state())
        if cuda:
            torch.cuda.set_rng_state(rng_for(seed, step, f"layers/{purpose}", device).get_state(), device)
        yield


def draw_latent(
    generator: nn.Module, size: int, seed: int, step: int, purpose: str, device: torch.device | str = "cpu"
) -> tuple[Tensor, ...]:
    """Draw what a generator network takes: (z,), or (z, y) if the network has classes.

    Args:
        generator: a network with the attribute latent_dim, and with the attribute classes if it takes labels.

    Returns:
        z ~ N(0, I) (size, latent_dim); y (size,), uniform in 0 ... classes - 1. Both are functions of (seed, step,
        purpose).

    Paper: released gan_cifar_resnet.py, whose generator step draws uniform labels.
    """
    rng = rng_for(seed, step, f"z/{purpose}", device)
    z = torch.randn(size, generator.latent_dim, generator=rng, device=device)
    classes = getattr(generator, "classes", 0)
    if not classes:
        return (z,)
    return z, torch.randint(classes, (size,), generator=rng_for(seed, step, f"y/{purpose}", device), device=device)


def arrange_classes(classes: int, n: int) -> Tensor:
    """Return the labels (at most n,) of a grid that has one row per class, all rows with the same number of samples.

    If there are more classes than samples, the grid has the first n classes, one sample each.
    """
    columns = max(n // classes, 1)
    return torch.arange(classes).repeat_interleave(columns)[:n]
