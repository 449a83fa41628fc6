"""Checkpoints that survive a crash, a full disk and a flipped bit.

A checkpoint is one file of plain tensors and numbers, step_00001000.pt. The file beside it holds its sha256, in the
format of `sha256sum -c`. A file is written under a temporary name, synced to the disk, and renamed. The newest two
undamaged checkpoints are kept, and that with the best score. If the newest is damaged, the older one is loaded.
"""

import hashlib
import io
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from wgangp.files import name_file

__all__ = ["check_finite", "load_latest", "load_step", "save", "write_atomic"]

KEEP = 2


def save(
    folder: Path, step: int, state: dict[str, Any], buffers: Collection[str] = (), kept: Collection[int] = ()
) -> Path:
    """Write the checkpoint of a step and return its path.

    Args:
        state: tensors, numbers and strings, and lists, tuples and dicts of them.
        buffers: as in `check_finite`.
        kept: steps whose checkpoints are kept besides the newest two.

    Raises:
        ValueError: as in `check_finite`. Nothing is written.
        OSError: the disk is full or not writable. The existing files are unchanged.
    """
    check_finite(step, state, buffers)
    folder.mkdir(parents=True, exist_ok=True)
    path = _path_of(folder, step)
    temporary = _temporary(path)
    try:
        # In memory first: torch.save reports a full disk as a RuntimeError without the name of the file.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with name_file(path), temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
        write_atomic(_digest_of(path), f"{digest}  {path.name}\n")  # first: a checkpoint never lacks its sha256
        temporary.replace(path)
        _sync_folder(folder)
    finally:
        temporary.unlink(missing_ok=True)
    undamaged = [other for other in _newest_first(folder) if _damage(other) is None]
    protected = {_path_of(folder, step) for step in kept}
    for old in (other for other in undamaged[KEEP:] if other not in protected):
        old.unlink()
        _digest_of(old).unlink(missing_ok=True)
    return path


def check_finite(step: int, state: dict[str, Any], buffers: Collection[str] = ()) -> None:
    """Raise ValueError if a tensor of a state has NaN in it, or inf. A buffer may have inf, for example a mask.

    Args:
        buffers: the names of buffers, for example state['critic']['mask'].
    """
    for name, value in _flatten(state):
        if not value.isfinite().all() and (name not in buffers or value.isnan().any()):
            reason = "NaN in it" if name in buffers else "values that are not finite"
            remedy = "Try a lower optim.lr" if step else "Weights must be finite; a buffer may have inf, and no NaN"
            raise ValueError(f"step {step}: {name} has {reason}, so no checkpoint can be written. {remedy}")


def load_latest(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Return the state of the newest undamaged checkpoint, or None if there are no checkpoints.

    No file is changed. A damaged checkpoint is reported on stderr, and the next older one is loaded.

    Raises:
        ValueError: there are checkpoints, but all of them are damaged.
    """
    paths = _newest_first(folder)
    for path in paths:
        problem = _damage(path)
        if problem is None:
            return torch.load(path, map_location=device, weights_only=True)
        print(f"warning: checkpoint {path} is damaged ({problem}): the one before it is tried", file=sys.stderr)
    if paths:
        raise ValueError(
            f"every checkpoint in {folder} is damaged: restore a copy of step_*.pt with its .sha256, or start again in"
            " another folder with run_dir="
        )
    return None


def load_step(folder: Path, step: int, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the state of the checkpoint of a step. ValueError if it does not exist or is damaged."""
    path = _path_of(folder, step)
    if not path.exists():
        steps = [int(other.stem.removeprefix("step_")) for other in reversed(_newest_first(folder))]
        raise ValueError(f"step = {step}: {folder} has checkpoints of the steps {steps}. Choose one of them")
    if problem := _damage(path):
        raise ValueError(f"step = {step}: checkpoint {path} is damaged ({problem}). Choose another step")
    return torch.load(path, map_location=device, weights_only=True)


def write_atomic(path: Path, text: str) -> None:
    """Write a small text file. After a crash the file is either the old one or the new one, never a part of it."""
    temporary = _temporary(path)
    try:
        with name_file(path), temporary.open("w") as file:
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
    return None if expected.startswith(actual.encode()) else "its sha256 differs from the one in the file beside it"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.pt"), reverse=True)


def _path_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pt"


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


def _flatten(state: Any, name: str = "state") -> list[tuple[str, torch.Tensor]]:
    """Return the tensors of a state, by name."""
    if isinstance(state, torch.Tensor):
        return [(name, state)]
    items = state.items() if isinstance(state, dict) else ()
    return [pair for key, value in items for pair in _flatten(value, f"{name}[{key!r}]")]
