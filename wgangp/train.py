"""The loop: report -> sample -> checkpoint -> done? -> step. What a step is stands in step.py."""

import hashlib
import math
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from wgangp.checkpoint import load_latest, save, write_atomic
from wgangp.compiled import gradients_of
from wgangp.distributed import World, check_plain
from wgangp.logs import Log, append_line, provenance, read_lines
from wgangp.losses import Wasserstein
from wgangp.penalty import GradientPenalty
from wgangp.precision import products
from wgangp.report import certificate, lipschitz_report, picture, report
from wgangp.seeds import generator_for, noise
from wgangp.step import Gradients, critic_step, generator_step

__all__ = ["train", "update"]

ALONE = World()


def train(
    folder: Path,  # where everything is written
    generator: nn.Module,  # (B, latent_dim) -> (B, *)
    critic: nn.Module,  # (B, *) -> (B,)
    optim_generator: torch.optim.Optimizer,
    optim_critic: torch.optim.Optimizer,
    data: Any,  # .batch(k, size, seed, split), .shape, .span: see wgangp/data
    loss: Wasserstein,
    penalty: GradientPenalty,
    *,
    seed: int,  # every draw is a function of it, the step and the purpose
    steps: int,  # generator updates in all
    critic_steps: int,  # critic updates for each of them, n_critic
    batch_size: int,  # real points, and fake ones, a critic update
    log_every: int,  # updates between lines of the log
    sample_every: int,  # updates between pictures
    checkpoint_every: int,  # updates between checkpoints
    lipschitz_every: int,  # updates between looks at the critic's Lipschitz constant, in the same log
    report_size: int,  # points of each kind that a line of the log is computed on
    generator_batch_size: int | None = None,  # fake points a generator update; None: batch_size
    decay_steps: int | None = None,  # the learning rates fall linearly, to 0 at this generator update
    compile: bool = False,  # each player's gradients as one compiled graph, checked against eager at the first batch
    precision: str = "fp32",  # of the steps; fp32, tf32 or bf16. Reports are in fp32
    sync_batch_norm: bool = False,  # over the batch of all ranks, instead of over each one's slice
    world: World = ALONE,  # the ranks, each of which calls this with the same arguments; rank 0 alone writes
    clip_weights: float | None = None,  # bound of the critic's weights
    clip_gradient_norm: float | None = None,  # threshold of both players' gradients
    regularize_gradient_norm: float = 0.0,  # weight of ||grad||^2 of both players' objectives
    config: str | None = None,  # what config.yaml is to say; None leaves it as it is
) -> int:
    """Train until `steps` generator updates are done, from the newest checkpoint in the folder if there is one.

    Returns the step that was reached: less than steps when it was interrupted (Ctrl-C, SIGTERM) and saved itself.
    Raises ValueError when a loss stops being finite. That the critic scores each sample by itself, without which the
    penalty means nothing, is checked by who builds it (config.objects). With several ranks each calls this, takes its
    slice of every batch, and ends where the others end.

    Paper: Algorithm 1. Differs: from the released code, whose first iteration has no generator update; here every
    generator update comes after critic_steps critic updates, as printed.
    """
    check_plain(generator, critic)
    given = {"batch_size": batch_size, "generator_batch_size": generator_batch_size}
    world.check(given, regularize_gradient_norm, sync_batch_norm and compile)
    device = next(critic.parameters()).device
    players = {"generator": generator, "critic": critic}
    stateful = {**players, "optim_generator": optim_generator, "optim_critic": optim_critic}
    fingerprint = getattr(data, "fingerprint", "")
    computed = {"precision": precision, "compile": compile}
    gradients = gradients_of(generator, critic, loss, penalty, regularize_gradient_norm, **computed)
    gradients |= {name: world.reduced(gradients[name]) for name in players}
    parts = (generator, critic, optim_generator, optim_critic, data, penalty)
    sizes = {"critic_steps": critic_steps, **given}
    clip = {"clip_weights": clip_weights, "clip_gradient_norm": clip_gradient_norm}
    how = {"gradients": gradients, "world": world}

    folder.mkdir(parents=True, exist_ok=True)
    state = load_latest(folder / "checkpoints", device)
    _check_record(folder, state, fingerprint)
    step = 0
    if state is not None:
        step = state["step"]
        for name, part in stateful.items():
            part.load_state_dict(state[name])
        _as_parameters_lie(optim_generator, optim_critic)
    computed |= {**clip, **sizes, "seed": seed, "steps": steps, "decay_steps": decay_steps, "penalty": penalty}
    world.agree(
        {
            f"the newest checkpoint in {folder}": str(step),
            "the data": f"{fingerprint} {data.shape}",
            "the options": str(computed),
            "the players' weights": _digest(generator, critic) if world.size > 1 else "",
        }
    )
    if step > 0 and step >= steps:
        return step

    if world.first and config is not None:
        write_atomic(folder / "config.yaml", config)
    if world.first:
        append_line(folder / "provenance.jsonl", provenance(device) | ({"ranks": world.size} if world.size > 1 else {}))
    log = Log(folder, step) if world.first else None
    synchronised = (generator, critic) if sync_batch_norm else ()
    unchecked: list[tuple[int, dict[str, Tensor]]] = []  # the terms of steps whose finiteness nobody looked at yet
    pending: list[Future] = []  # what is written and drawn meanwhile, in this order
    with (
        closing(log) if log else nullcontext(),
        ThreadPoolExecutor(1) as aside,
        products(precision),
        _stop_signals() as received,
        _progress(step, steps, world) as bar,
    ):
        while True:
            done = step >= steps
            stop = world.any(bool(received))
            look = step % lipschitz_every == 0 or done
            logs, draws = step % log_every == 0 or look, step % sample_every == 0 or done
            saves = step % checkpoint_every == 0 or done or stop
            if logs or draws or saves:
                _check_finite(unchecked, folder)
                _settle(pending, wait=saves or len(pending) > 2)  # a checkpoint has all lines before it
            if logs and log:
                values = report(generator, critic, data, loss, penalty, seed, step, report_size)
                _require_finite(step, values, folder)
                if look:
                    values |= lipschitz_report(generator, critic, data, penalty, seed, step, report_size)
                more = certificate(critic, data.shape) if look else dict
                pending.append(aside.submit(_write, log, step, values, log.elapsed(), more, folder))
                shown = {"wasserstein": "wasserstein", "penalty": "penalty", "slope": "slope_interpolates_mean"}
                bar.set_postfix({label: f"{values[name]:.3f}" for label, name in shown.items()})
            if draws and world.first:
                pending.append(aside.submit(picture(folder, generator, critic, data, penalty, seed, step)))
            if saves and world.first:
                states = {name: part.state_dict() for name, part in stateful.items()}
                about = {"step": step, "shape": list(data.shape), "span": list(data.span), "data": fingerprint}
                save(folder / "checkpoints", step, {**about, **states})
            if done or stop:
                _settle(pending, wait=True)
                break

            if decay_steps is not None:
                _decay((optim_generator, optim_critic), 1 - step / decay_steps)
            with world.synchronised(*synchronised):
                terms = update(step, *parts, seed=seed, **sizes, **clip, **how)
            step += 1
            unchecked.append((step, terms))
            if device.type == "cpu":  # free here; elsewhere it would wait for the device
                _check_finite(unchecked, folder)
            bar.update()
    return step


def update(
    step: int,
    generator: nn.Module,
    critic: nn.Module,
    optim_generator: torch.optim.Optimizer,
    optim_critic: torch.optim.Optimizer,
    data: Any,
    penalty: GradientPenalty,
    *,
    seed: int,
    critic_steps: int,
    batch_size: int,
    generator_batch_size: int | None,
    gradients: dict[str, Gradients],  # see compiled.gradients_of
    clip_weights: float | None = None,
    clip_gradient_norm: float | None = None,
    world: World = ALONE,  # this rank computes on its slice of the batch; everything is drawn whole
) -> dict[str, Tensor]:
    """One generator update and the critic_steps critic updates before it; the terms of both, (). Paper: Algorithm 1."""
    device = next(critic.parameters()).device
    terms = {}
    for k in range(step * critic_steps, (step + 1) * critic_steps):
        real, _ = data.batch(k, batch_size, seed)
        eps = penalty.draw(real, generator_for(seed, k, "eps", device))
        z = world.slice(noise(generator, batch_size, seed, k, "critic", device))
        real, eps = world.slice(real), None if eps is None else world.slice(eps)
        _, (fake,) = gradients["fake"](z)
        clip = {"clip_weights": clip_weights, "clip_gradient_norm": clip_gradient_norm}
        terms |= critic_step(critic, optim_critic, real, fake, eps, gradients=gradients["critic"], **clip)
    z = world.slice(noise(generator, generator_batch_size or batch_size, seed, step, "generator", device))
    clip = {"clip_gradient_norm": clip_gradient_norm}
    return terms | generator_step(generator, critic, optim_generator, z, gradients=gradients["generator"], **clip)


def _decay(optimizers: tuple[torch.optim.Optimizer, ...], left: float) -> None:
    """lr <- left * (the rate that the optimiser was made with). Paper: released gan_cifar_resnet.py, DECAY."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * left


def _as_parameters_lie(*optimizers: torch.optim.Optimizer) -> None:
    """Give what an optimiser remembers the strides of its parameter: a fused one reads both with the same."""
    for optimizer in optimizers:
        for p, remembered in optimizer.state.items():
            for name, value in remembered.items():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    remembered[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)


def _check_record(folder: Path, state: dict[str, Any] | None, fingerprint: str) -> None:
    """Raise ValueError rather than lose a log that has no checkpoint, or go on with other data."""
    if state is None and any(record["step"] > 0 for record in read_lines(folder / "metrics.jsonl")):
        raise ValueError(
            f"{folder} has the log of a run and no checkpoint to go on from: put the checkpoints back, or choose"
            " another run_dir="
        )
    if state is not None and state.get("data") != fingerprint:
        raise ValueError(
            f"the data is not what {folder} was trained on (its sha256 differs, or an early version made the"
            " checkpoint): set data.root back, or choose another run_dir="
        )


def _check_finite(unchecked: list[tuple[int, dict[str, Tensor]]], folder: Path) -> None:
    """Stop at the first step that had a term that is not finite; forget those that were looked at."""
    if unchecked:
        table = torch.stack([torch.stack(list(terms.values())) for _, terms in unchecked]).tolist()
        for (step, terms), values in zip(unchecked, table, strict=True):
            _require_finite(step, dict(zip(terms, values, strict=True)), folder)
        unchecked.clear()


def _write(
    log: Log, step: int, values: dict[str, float], elapsed: float, more: Callable[[], dict[str, float]], folder: Path
) -> None:
    values = values | more()
    _require_finite(step, values, folder)
    log.write(step, values, elapsed)


def _settle(pending: list[Future], wait: bool) -> None:
    """Raise what went wrong meanwhile; forget what is done, or wait until all of it is."""
    while pending and (wait or pending[0].done()):
        pending.pop(0).result()


def _require_finite(step: int, terms: dict[str, float], folder: Path) -> None:
    for name, value in terms.items():
        if not math.isfinite(value):
            listed = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
            raise ValueError(
                f"step {step}: {name} is not finite ({listed}). The last good checkpoint is kept in"
                f" {folder / 'checkpoints'}. Try a lower optim.lr or clip.gradient_norm=1.0: that is another run, in a"
                " folder of its own"
            )


def _digest(*players: nn.Module) -> str:
    numbers = (x.cpu().contiguous().numpy().tobytes() for player in players for x in player.state_dict().values())
    return hashlib.sha256(b"".join(numbers)).hexdigest()


def _progress(step: int, steps: int, world: World) -> tqdm:
    shown = world.first and sys.stderr.isatty()
    return tqdm(initial=step, total=steps, unit="update", dynamic_ncols=True, disable=not shown)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C or SIGTERM asks to stop after this step; a second one stops at once."""
    received: list[int] = []
    previous = {}

    def remember(number: int, frame: Any) -> None:
        received.append(number)
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.getsignal(number)
        signal.signal(number, remember)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
