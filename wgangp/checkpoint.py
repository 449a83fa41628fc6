"""Checkpoints that survive a crash, a full disk and a flipped bit.

One file of plain tensors and numbers, step_00001000.pt, and beside it its sha256 in the format of `sha256sum -c`. A
file is written under a temporary name, synced, and renamed; the newest two that are undamaged are kept, and loading
falls back on the older one when the newer is damaged.
"""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import torch

__all__ = ["load_latest", "save", "write_atomic"]

KEEP = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write state (tensors, numbers, strings, and lists, tuples and dicts of them) as the checkpoint of a step.

    Raises:
        ValueError: a tensor in it is not finite; nothing is written then.
        RuntimeError, OSError: the disk is full or not writable; what was there before is as it was.
    """
    for name in _not_finite(state):
        raise ValueError(f"step {step}: {name} holds values that are not finite; no checkpoint of it is written")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.pt"
    temporary = _temporary(path)
    try:
        torch.save(state, temporary)
        digest = _sha256(temporary)
        write_atomic(_digest_of(path), f"{digest}  {path.name}\n")  # first: no checkpoint without its digest
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(folder)
    finally:
        temporary.unlink(missing_ok=True)
    undamaged = [other for other in _newest_first(folder) if _damage(other) is None]
    for old in undamaged[KEEP:]:
        old.unlink()
        _digest_of(old).unlink(missing_ok=True)
    return path


def load_latest(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The state of the newest undamaged checkpoint, or None where there is none.

    Nothing is changed. A damaged one is said so on stderr, and the next older one is taken.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
    """
    paths = _newest_first(folder)
    for path in paths:
        problem = _damage(path)
        if problem is None:
            return torch.load(path, map_location=device, weights_only=True)
        print(f"warning: checkpoint {path} is damaged ({problem}): trying the one before it", file=sys.stderr)
    if paths:
        raise ValueError(
            f"every checkpoint in {folder} is damaged: put back a copy of step_*.pt with its .sha256, or begin again in"
            " another folder with run_dir="
        )
    return None


def write_atomic(path: Path, text: str) -> None:
    """Write a small text file so that a crash leaves either the old one or the new one, never half of it."""
    temporary = _temporary(path)
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _damage(path: Path) -> str | None:
    try:
        expected, actual = _digest_of(path).read_bytes(), _sha256(path)
    except OSError as error:
        return str(error)
    return None if expected.startswith(actual.encode()) else "its sha256 differs from the one beside it"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.pt"), reverse=True)


def _digest_of(path: Path) -> Path:
    return path.with_suffix(".pt.sha256")


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _not_finite(state: Any, name: str = "state") -> list[str]:
    if isinstance(state, torch.Tensor):
        return [] if state.isfinite().all() else [name]
    if isinstance(state, dict):
        return [bad for key, value in state.items() for bad in _not_finite(value, f"{name}[{key!r}]")]
    return []
