"""What a run does when a loss, a gradient or the data is not finite: it stops, or leaves the update out.

A run that stops keeps its last checkpoint, and writes the batch of the update that failed. Whether an update is left
out is decided on the device, so that a GPU does not wait for the answer.
"""

import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wgangp.draws import Draws
from wgangp.files import write_file
from wgangp.gradients import total_norm
from wgangp.runs import Run, collect_stateful

__all__ = ["check_state", "check_updates", "copy_state", "is_lost", "require_finite"]

REMEDY = "Try a lower optim.lr, or clip.gradient_norm=1.0: that is another run, in a folder of its own"
DATA = "The real samples of this update are not finite: correct the data"
SKIP = "train.on_nonfinite=skip leaves such updates out"


def is_lost(terms: dict[str, Tensor], gradients: Iterable[Tensor]) -> Tensor:
    """Return True () if an update must be left out: a term is not finite, or the squared norm of the gradient.

    The norm is squared because optimizers square gradients: their state must stay finite, too.
    """
    return ~torch.stack([total_norm(gradients).square(), *terms.values()]).isfinite().all()


def copy_state(*parts: nn.Module | torch.optim.Optimizer | None) -> Callable[[Tensor], None]:
    """Copy the state of networks and optimizers, and return a function that sets it back.

    The function takes lost (), True or False on any device: if it is False, nothing changes. It does not wait for the
    device, unless an optimizer keeps state on another device or as a number, or has no state yet.
    """
    copies: list[tuple[dict[str, Any], str, Any]] = []
    fresh = []
    for part in (part for part in parts if part is not None):
        if isinstance(part, nn.Module):
            states = [part.state_dict()]
        else:
            states = list(part.state.values())
            fresh += [] if states else [part]
        pairs = ((state, name, value) for state in states for name, value in state.items())
        copies += [(s, name, value.clone() if isinstance(value, Tensor) else value) for s, name, value in pairs]

    @torch.no_grad()
    def restore(lost: Tensor) -> None:
        for state, name, before in copies:
            now = state[name]
            if isinstance(now, Tensor):
                now.copy_(torch.where(lost.to(now.device), before, now))
            elif now is not before and lost:
                state[name] = before
        for optimizer in fresh:
            if optimizer.state and lost:
                optimizer.state.clear()

    return restore


def check_updates(
    updates: list[tuple[int, dict[str, Tensor]]], folder: Path, draw: Callable[[int], Draws] | None
) -> int:
    """Return the number of updates that were left out. The list is empty afterwards.

    Args:
        updates: steps, and the terms () of their updates. With the term skipped, an update whose numbers are not
            finite was left out.
        draw: step -> what the iteration that led to it drew; None: no file is written.

    Raises:
        ValueError: a term is not finite, and the update was not left out. The message names the first such step, and
            the file with its batches.
    """
    skipped = 0
    if updates:
        table = torch.stack([torch.stack(list(terms.values())) for _, terms in updates]).tolist()
        for (step, terms), values in zip(updates, table, strict=True):
            numbers = dict(zip(terms, values, strict=True))
            skipped += int(numbers.get("skipped", 0))
            if "skipped" not in numbers:
                require_finite(step, numbers, folder, draw)
        updates.clear()
    return skipped


def check_state(run: Run, step: int, folder: Path) -> None:
    """Raise ValueError if a weight or the optimizer state is not finite, such as Adam's mean of huge squares."""
    numbers = _list_numbers(run)
    if not total_norm((x for _, x in numbers), math.inf).isfinite():
        require_finite(step, {name: x.abs().max().item() for name, x in numbers if not x.isfinite().all()}, folder)


def require_finite(
    step: int, values: dict[str, float], folder: Path, draw: Callable[[int], Draws] | None = None
) -> None:
    """Raise ValueError, as in `check_updates`, if a number of a step is not finite."""
    name = next((name for name, value in values.items() if not math.isfinite(value)), None)
    if name is None:
        return
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    remedy, notes = REMEDY, []
    if any((folder / "checkpoints").glob("step_*.pt")):
        notes.append(f"The last good checkpoint is kept in {folder / 'checkpoints'}")
    if draw is not None:
        draws = draw(step)
        remedy = f"{REMEDY if all(real.isfinite().all() for real, *_ in draws.critic) else DATA}. {SKIP}"
        notes.append(_save_draws(folder / "nonfinite" / f"step_{step:08d}.pt", step, values, draws))
    raise ValueError(f"step {step}: {name} is not finite ({numbers}). {'. '.join([*notes, remedy])}")


def _save_draws(path: Path, step: int, values: dict[str, float], draws: Draws) -> str:
    """Write a file for `torch.load(path, weights_only=True)`, and say where it is, or why it could not be written."""
    critic = [{"real": real, "z": z, "eps": eps, "labels": y[0] if y else None} for real, z, eps, *y in draws.critic]
    z, *y = draws.generator
    generator, buffer = {"z": z, "labels": y[0] if y else None}, io.BytesIO()
    torch.save({"step": step, "terms": values, "critic": critic, "generator": generator}, buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, buffer.getbuffer())
    except OSError as error:
        return f"Its batches could not be written to {path} ({error.strerror or error})"
    return f"Its batches are in {path}"


def _list_numbers(run: Run) -> list[tuple[str, Tensor]]:
    """Return the parameters and the optimizer state, by name. Buffers are left out: a mask may be infinite."""
    numbers = []
    for key, part in collect_stateful(run).items():
        if isinstance(part, nn.Module):
            numbers += [(f"{key}.{name}", p.detach()) for name, p in part.named_parameters()]
        else:
            items = (item for state in part.state.values() for item in state.items())
            numbers += [(f"{key}.{name}", x) for name, x in items if isinstance(x, Tensor)]
    return [(name, x) for name, x in numbers if x.is_floating_point() and x.numel()]
