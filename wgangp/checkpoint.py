"""Checkpoints that survive a crash, a full disk, a flipped bit and a mix-up.

A checkpoint is one file of plain tensors and numbers, step_00001000.pt. The file beside it holds its sha256, in the
format of `sha256sum -c`. A file is written under a temporary name, synced to the disk, and renamed. The newest two good
checkpoints are kept, and that with the best score. Good is one that is undamaged and fits the run (`match.py`). If the
newest is not good, the older one is loaded.
"""

import hashlib
import io
import os
import re
import sys
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from wgangp.files import digest_file, read_file, write_file
from wgangp.match import MisfitError, list_differences, require_match, require_owner

__all__ = ["check_finite", "list_checkpoints", "load_latest", "load_step", "remove_older", "save", "write_atomic"]

KEEP = 2
Fit = Callable[[Any, int], Any]  # (state, step) -> a result; it raises MisfitError for a state that does not fit


def save(
    folder: Path, step: int, state: dict[str, Any], buffers: Collection[str] = (), best: Collection[int] | None = ()
) -> Path:
    """Write the checkpoint of a step and return its path.

    Older checkpoints are deleted if two newer ones are good: undamaged and like the state that is written. Those that
    are not good, and those of later steps, stay and do not count.

    Args:
        state: tensors, numbers and strings, and lists, tuples and dicts of them.
        buffers: as in `check_finite`.
        best: steps whose checkpoints are kept besides the newest two; None: all are kept.

    Raises:
        ValueError: as in `check_finite`. Nothing is written.
        OSError: the disk is full or not writable. The existing files are unchanged.
    """
    check_finite(step, state, buffers)
    folder.mkdir(exist_ok=True)  # in a folder that was removed nothing is written: it would be no run folder
    path = _path_of(folder, step)
    # In memory first: torch.save reports a full disk as a RuntimeError without the name of the file.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    write_atomic(_digest_of(path), f"{digest}  {path.name}\n")  # first: a checkpoint never lacks its sha256
    write_file(path, buffer.getbuffer())
    _sync_folder(folder)
    remove_older(folder, step, state, buffers, best)
    return path


def remove_older(
    folder: Path, step: int, state: dict[str, Any], buffers: Collection[str] = (), best: Collection[int] | None = ()
) -> None:
    """Delete checkpoints that are not kept: the second half of `save`. A process may have been killed before it.

    Args:
        folder, step, state, buffers, best: as in `save`.
    """
    if best is None:
        return
    best_paths = {_path_of(folder, step) for step in best}
    older = [other for other in list_checkpoints(folder) if _step_of(other) <= step]
    good = [other for other in older if _is_good(other, state, buffers)]
    for old in (other for other in good[KEEP:] if other not in best_paths):
        old.unlink()
        _digest_of(old).unlink(missing_ok=True)
    for digest in folder.glob("step_*.pt.sha256") if len(good) >= KEEP else ():
        path = digest.with_suffix("")
        if path < good[KEEP - 1] and not path.exists():  # its checkpoint was deleted just before a kill
            digest.unlink(missing_ok=True)


def check_finite(step: int, state: dict[str, Any], buffers: Collection[str] = ()) -> None:
    """Raise ValueError if a state could not be loaded again: a tensor has NaN in it, or inf, or it has no owner.

    A buffer may have inf, for example a mask.

    Args:
        buffers: the names of buffers, for example state['critic']['mask'].
    """
    try:
        if "identity" in state:
            require_owner(state, step, **state["identity"])
    except MisfitError as error:
        raise ValueError(f"step {step}: the checkpoint could not be loaded again: {error}. Correct the data") from error
    problem = next(list_differences("state", state, state, buffers), None)
    if problem:
        remedy = "Try a lower optim.lr" if step else "Weights must be finite; a buffer may have inf, and no NaN"
        raise ValueError(f"step {step}: {problem}, so no checkpoint can be written. {remedy}")


def load_latest(folder: Path, device: torch.device | str = "cpu", fit: Fit | None = None) -> Any:
    """Return fit(state, step) of the newest good checkpoint, or None if there are no checkpoints.

    No file is changed. Newer ones that are not good are reported on stderr.

    Args:
        fit: raises MisfitError for a state that does not fit. None: the state is returned as it is.

    Raises:
        ValueError: there are checkpoints, but none of them is good.
    """
    problems: list[str] = []
    for path in list_checkpoints(folder):
        try:
            result = _load(path, device, fit)
        except MisfitError as error:
            problems.append(f"checkpoint {path} {error}")
            continue
        for problem in problems:
            print(f"warning: {problem}: {path.name} is used", file=sys.stderr, flush=True)
        return result
    if problems:
        others = " The older ones are not good, either." if len(problems) > 1 else ""
        raise ValueError(
            f"{problems[0]}.{others} Restore a copy of a step_*.pt with its .sha256, or start again in another folder"
            " with run_dir="
        )
    return None


def load_step(folder: Path, step: int, device: torch.device | str = "cpu", fit: Fit | None = None) -> Any:
    """Return fit(state, step) of the checkpoint of a step. ValueError if it does not exist or is not good."""
    path = _path_of(folder, step)
    if path not in list_checkpoints(folder):
        steps = [_step_of(other) for other in reversed(list_checkpoints(folder))]
        raise ValueError(f"step = {step}: {folder} has checkpoints of the steps {steps}. Choose one of them")
    try:
        return _load(path, device, fit)
    except MisfitError as error:
        raise ValueError(f"step = {step}: checkpoint {path} {error}. Choose another step") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first. Files with other names are not among them."""
    paths = [path for path in folder.glob("step_*.pt") if re.fullmatch(r"step_(\d{8}|[1-9]\d{8,15})", path.stem)]
    return sorted((path for path in paths if path.is_file()), key=_step_of, reverse=True)


def write_atomic(path: Path, text: str) -> None:
    """Write a small text file. After a crash the file is either the old one or the new one, never a part of it."""
    write_file(path, text.encode())


def _load(path: Path, device: torch.device | str, fit: Fit | None, mmap: bool = False) -> Any:
    """Return fit(state, step) of a checkpoint. MisfitError if it is damaged or does not fit."""
    try:
        expected, actual = read_file(_digest_of(path), 1_000), digest_file(path)
    except (OSError, ValueError) as error:
        raise MisfitError(f"is damaged ({error})") from error
    if not expected.startswith(actual.encode()):
        raise MisfitError("is damaged (its sha256 differs from the one in the file beside it)")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise MisfitError("is damaged (torch.save does not compress, and it is compressed)")
        state = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except MisfitError:
        raise
    except Exception as error:  # torch raises many types for a file that it did not write
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise MisfitError(f"is damaged ({reason})") from error
    step = _step_of(path)
    try:
        return state if fit is None else fit(state, step)
    except MisfitError as error:
        raise MisfitError(f"does not fit this run ({error})") from error


def _is_good(path: Path, state: dict[str, Any], buffers: Collection[str]) -> bool:
    def fit(other: Any, step: int) -> None:
        require_match(other, state, step, buffers)

    try:
        _load(path, "cpu", fit, mmap=True)
    except MisfitError:
        return False
    return True


def _path_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pt"


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _digest_of(path: Path) -> Path:
    return path.with_suffix(".pt.sha256")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
