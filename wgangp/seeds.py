"""Randomness as a function of (seed, step, purpose).

Every draw of a run comes from a generator that is made for it, so nothing has to be saved to resume, and the global
generators are never touched.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["generator_for", "initialised", "noise"]


def generator_for(seed: int, step: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on device, the same for the same three, another one for any other.

    On a CPU torch keeps 32 bits of a seed. So of n generators about n^2 / 2^33 pairs coincide: some hundreds of the two
    million that a run of 200,000 updates makes, at unrelated steps.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def initialised(make: Callable[[], nn.Module], seed: int, name: str) -> nn.Module:
    """What make() builds, its initial weights a function of (seed, name): the global generator is set for it, and set
    back.
    """
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator_for(seed, 0, f"init/{name}").get_state())
        return make()


def noise(
    generator: nn.Module, size: int, seed: int, step: int, purpose: str, device: torch.device | str = "cpu"
) -> Tensor:
    """z ~ N(0, I) (size, generator.latent_dim), a function of (seed, step, purpose)."""
    random = generator_for(seed, step, f"z/{purpose}", device)
    return torch.randn(size, generator.latent_dim, generator=random, device=device)
