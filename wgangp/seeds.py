"""Randomness as a function of (seed, step, purpose).

Every draw of a run comes from a generator that is made for it, so nothing has to be saved to resume, and the global
generators are never touched.
"""

import hashlib

import torch

__all__ = ["generator_for"]


def generator_for(seed: int, step: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on device, the same for the same three, unrelated for any other."""
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)
