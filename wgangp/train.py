"""The training loop: report, picture, checkpoint, done?, update. A step itself is in step.py."""

import math
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wgangp.accumulate import Gradients, accumulate_gradients, split_batch
from wgangp.checkpoint import load_latest, remove_older, save, write_atomic
from wgangp.checks import check_not_wrapped
from wgangp.compiled import Computation, build_computation
from wgangp.distributed import World
from wgangp.draws import draw_critic_batch, draw_generator_batch, draw_iteration
from wgangp.files import refuse_links
from wgangp.gradients import total_norm
from wgangp.logs import Log, amend_last_line, append_line, collect_provenance, read_lines, read_metrics, read_timing
from wgangp.losses import merge_terms
from wgangp.match import COUNTS, load_state
from wgangp.metrics.scores import Score, find_best
from wgangp.nonfinite import check_state, check_updates, copy_state, is_lost, require_finite
from wgangp.penalty import clip_weights_
from wgangp.precision import product_precision
from wgangp.progress import Progress
from wgangp.report import draw_curves, evaluate, lipschitz_report, picture, report
from wgangp.runs import Run, collect_state, collect_stateful
from wgangp.seeds import seed_layers
from wgangp.signals import Interrupted, catch_stop_signals, interruptible
from wgangp.state import digest_weights
from wgangp.step import descend

__all__ = ["Clip", "compute_in_parts", "train", "update"]

ALONE = World()


@dataclass(frozen=True)
class Clip:
    """What an update does with weights and gradients that are too large, or not finite; None: not clipped.

    Args:
        weights: bound of every critic weight after a critic update, > 0 and finite.
        gradient_norm: threshold of the norm of each network's gradient, > 0 and finite.
        on_nonfinite: what the run does if a loss or a gradient is not finite: stop, or skip. With skip, the update
            leaves the network, its optimizer and the moving average as they were, and is counted in the log.
    """

    weights: float | None = None
    gradient_norm: float | None = None
    on_nonfinite: str = "stop"

    def __post_init__(self) -> None:
        if self.on_nonfinite not in ("stop", "skip"):
            raise ValueError(f"on_nonfinite = {self.on_nonfinite}: must be stop or skip")
        for name, bound in (("weights", self.weights), ("gradient_norm", self.gradient_norm)):
            if bound is not None and not 0 < bound < math.inf:
                raise ValueError(f"{name} = {bound}: must be > 0 and finite, or null for no clipping")


NO_CLIP = Clip()


def train(
    folder: Path,  # the run folder, where everything is written
    run: Run,
    *,
    steps: int,  # generator updates in total
    critic_steps: int,  # critic updates per generator update, n_critic
    batch_size: int,  # real samples, and fake samples, per critic update
    log_every: int,  # generator updates between lines of the log
    sample_every: int,  # generator updates between pictures
    checkpoint_every: int,  # generator updates between checkpoints, and between drawings of curves.png
    lipschitz_every: int,  # generator updates between Lipschitz reports, which are added to a line of the log
    report_size: int,  # samples of each kind per line of the log
    evaluate_every: int | None = None,  # generator updates between evaluations, which are added to a line of the log
    scores: Sequence[Score] = (),  # what an evaluation computes
    generator_batch_size: int | None = None,  # fake samples per generator update; None: batch_size
    decay_steps: int | None = None,  # learning rates decay linearly, to 0 at this generator update; None: constant
    compile: bool = False,  # compile the gradients of each network into one graph; compared with eager at the start
    precision: str = "fp32",  # fp32, tf32 or bf16, of the updates. Reports are in fp32
    accumulate: int = 1,  # parts in which the batch of an update is computed, one after another; needs less memory
    sync_batch_norm: bool = False,  # with several ranks: batch norm over the batch of all ranks
    clip: Clip = NO_CLIP,
    regularize_gradient_norm: float = 0.0,  # weight of ||grad||^2 in the objective of both networks
    world: World = ALONE,  # the ranks. Each of them calls this function with the same arguments
    config: str | None = None,  # text of config.yaml; None: the file stays as it is
    stop_signals: list[int] | None = None,  # the number of the signal that stopped the run is appended to this list
) -> int:
    """Train until `steps` generator updates are done, from the newest checkpoint in the folder if there is one.

    config.build_run checks that the critic scores every sample independently of the others.

    Returns:
        the number of generator updates that are done. It is less than steps if a signal stopped the run (`signals.py`);
        a checkpoint is saved before.

    Raises:
        ValueError: a loss, a gradient or a number of a report is not finite (`nonfinite.py`); the checkpoint, the log
            and the data do not belong together; a setting does not work with several ranks.

    Paper: Algorithm 1. Differs: the first iteration of the released code has no generator update. Here every generator
    update comes after critic_steps critic updates, as printed in the paper.
    """
    # Nothing is written before the arguments, the checkpoint and the data are known to fit.
    check_not_wrapped(run.generator, run.critic)
    sizes = {"batch_size": batch_size, "generator_batch_size": generator_batch_size}
    world.check(sizes, regularize_gradient_norm, sync_batch_norm and compile, accumulate)
    device = next(run.critic.parameters()).device
    networks, form = (run.generator, run.critic), {"precision": precision, "compile": compile}
    computation = build_computation(*networks, run.loss, run.penalty, regularize_gradient_norm, **form)
    computation = world.average(compute_in_parts(computation, accumulate))
    options = {"critic_steps": critic_steps, **sizes, "clip": clip, "world": world}
    step, counts = _restore(run, folder, device)
    numbers = {"seed": run.seed, "steps": steps, "decay_steps": decay_steps, "penalty": run.penalty}
    numbers |= {"regularize": regularize_gradient_norm, "accumulate": accumulate, **form, **options}
    _require_equal_ranks(world, run, folder, step, numbers)
    if step > 0 and step >= steps and not counts["unfinished"]:
        if world.first:
            best = _list_best(read_metrics(folder / "metrics.jsonl"))
            remove_older(folder / "checkpoints", step, *collect_state(run, step, counts), best=best)
        return step
    if world.first:
        if config is not None:
            write_atomic(folder / "config.yaml", config)
        ranks = {"ranks": world.size} if world.size > 1 else {}
        settings = {"scores": {score.name: score.settings for score in scores}} if scores else {}
        append_line(folder / "provenance.jsonl", collect_provenance(device) | ranks | settings)
    log = Log(folder, step) if world.first else None
    synchronized = networks if sync_batch_norm else ()
    not_compiled: dict[str, str] = {}  # steps that were to be compiled and are eager, and why
    updates: list[tuple[int, dict[str, Tensor]]] = []  # terms that were not yet checked to be finite, by step
    draw = partial(draw_iteration, run, critic_steps=critic_steps, **sizes) if world.first else None

    with (
        closing(log) if log else nullcontext(),
        product_precision(precision),
        catch_stop_signals(stop_signals := [] if stop_signals is None else stop_signals),
        closing(Progress(step, steps, world.first)) as progress,
    ):
        while True:
            # What is due at this step?
            done = step >= steps
            lipschitz_due = step % lipschitz_every == 0 or done
            evaluate_due = evaluate_every is not None and (step % evaluate_every == 0 or done)
            report_due = step % log_every == 0 or lipschitz_due or evaluate_due
            picture_due = step % sample_every == 0 or done
            lost = log.find_lost() if log and report_due else ""
            stop = world.any(bool(stop_signals or lost) or world.orphaned)
            checkpoint_due = step % checkpoint_every == 0 or evaluate_due or done or stop
            if report_due or picture_due or checkpoint_due:
                counts["skipped"] += check_updates(updates, folder, draw)
                check_state(run, step, folder)

            # Report.
            if report_due and log and not lost:
                values = report(run, step, report_size)
                require_finite(step, values, folder)
                if lipschitz_due:
                    values |= lipschitz_report(run, step, report_size)
                    require_finite(step, values, folder)
                try:
                    if evaluate_due:
                        can_stop = not done and world.size == 1
                        stop_scores = partial(interruptible, stop_signals) if can_stop else nullcontext
                        values |= evaluate(run, step, scores, stop_scores)
                    values |= {"skipped": counts["skipped"]} if clip.on_nonfinite == "skip" else {}
                    log.write(step, values)
                    progress.report(step, values)
                except Interrupted:  # a stop does not wait for scores; the resumed run reports this step again
                    stop = True

            # Picture.
            if picture_due and log:
                picture(folder, run, step)
                log.write_picture(step)

            # Checkpoint, and the curves of the log until here.
            if checkpoint_due and world.first:
                records = read_metrics(folder / "metrics.jsonl")
                if records:  # none if a signal stopped the first evaluation
                    draw_curves(folder, run)
                best = None if lost else _list_best(records)
                counts |= {"reports": log.count, "unfinished": int(not done or bool(lost))}
                save(folder / "checkpoints", step, *collect_state(run, step, counts), best=best)

            # Done?
            if lost:
                raise ValueError(
                    f"{lost}. A checkpoint of step {step} is saved: put the file back, and run the same command again"
                )
            if done or stop:
                return step

            # One generator update, and the critic updates before it.
            if decay_steps is not None:
                _set_rates(run, 1 - step / decay_steps)
            draws = seed_layers(run.seed, step, f"rank {world.rank}", device)
            with world.synchronize_batch_norm(*synchronized), draws:
                terms = update(step, run, computation, **options)
            if world.first and computation.problems != not_compiled:
                not_compiled = dict(computation.problems)
                amend_last_line(folder / "provenance.jsonl", {"not_compiled": not_compiled})
            step += 1
            updates.append((step, terms))
            if device.type == "cpu":  # on other devices the check would wait for the device
                counts["skipped"] += check_updates(updates, folder, draw)
            progress.update()


def update(
    step: int,
    run: Run,
    computation: Computation,
    *,
    critic_steps: int,
    batch_size: int,
    generator_batch_size: int | None = None,
    clip: Clip = NO_CLIP,
    world: World = ALONE,
) -> dict[str, Tensor]:
    """Update the critic critic_steps times, and the generator and its average once. Paper: Algorithm 1, one iteration.

    Every rank of the world draws the whole batch and computes on its slice of it.

    Returns:
        the terms of the last critic update and of the generator update, (), and generator_param_grad_norm, the norm of
        its gradient. With clip.on_nonfinite = "skip" there is also skipped, the number of updates that were left out.
    """
    skipped = []
    for k in range(step * critic_steps, (step + 1) * critic_steps):
        real, z, eps, *y = world.slice(*draw_critic_batch(run, k, batch_size))
        fake = computation.sample(z, *y)  # with the labels of the real batch
        compute = partial(computation.critic_gradients, real, fake, eps, *y)
        critic_terms, lost = _update_network(run.critic, run.optim_critic, compute, clip, bound=clip.weights)
        skipped.append(lost)
    latent = world.slice(*draw_generator_batch(run, step, generator_batch_size or batch_size))

    def compute_generator() -> Gradients:
        terms, gradients = computation.generator_gradients(*latent)
        # A gradient of the critic that is not finite shows in the losses of this step, one of the generator does not.
        return terms | {"generator_param_grad_norm": total_norm(gradients)}, gradients

    own = run.generator, run.optim_generator, compute_generator
    generator_terms, lost = _update_network(*own, clip, average=run.average)
    terms = merge_terms(critic_terms, generator_terms)
    return terms if lost is None else terms | {"skipped": torch.stack([*skipped, lost]).sum()}


def _update_network(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    compute: Callable[[], Gradients],
    clip: Clip,
    bound: float | None = None,
    average: nn.Module | None = None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Update a network once. Return the terms, and whether the update was left out (); None: it cannot be left out."""
    restore = copy_state(network, optimizer, average) if clip.on_nonfinite == "skip" else None
    terms, gradients = compute()
    lost = None if restore is None else is_lost(terms, gradients)  # now: the norm is clipped in place
    descend(network, gradients, optimizer, clip.gradient_norm)
    if bound is not None:
        clip_weights_(network, bound)
    if average is not None:
        average.update_parameters(network)
    if restore is not None:
        restore(lost)
    return terms, lost


def compute_in_parts(computation: Computation, parts: int) -> Computation:
    """Return a computation that computes every batch in equal parts, one after another."""
    if parts == 1:
        return computation

    def sample(*latent: Tensor) -> Tensor:
        return torch.cat([computation.sample(*part) for part in split_batch(parts, *latent)])

    gradients = (computation.critic_gradients, computation.generator_gradients)
    critic, generator = (partial(accumulate_gradients, compute, parts) for compute in gradients)
    return replace(computation, sample=sample, critic_gradients=critic, generator_gradients=generator)


def _restore(run: Run, folder: Path, device: torch.device) -> tuple[int, dict[str, int]]:
    """Load the newest good checkpoint into the run, and return its step and its counts; all are 0 if there is none.

    The counts are: skipped, the updates that were left out; reports, the lines that the log had; unfinished, 1 if the
    run was to go on, or its last report is missing.

    Raises:
        ValueError: there are checkpoints, and none fits the run; there is a log without a checkpoint; a log is damaged;
            a link leads out of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    log, *_ = read_metrics(folder / "metrics.jsonl"), read_timing(folder), read_lines(folder / "provenance.jsonl")

    def load(state: dict[str, Any], step: int) -> tuple[int, dict[str, int]]:
        return load_state(run, state, step), {name: state.get(name, 0) for name in COUNTS}

    step, counts = load_latest(folder / "checkpoints", device, load) or (None, dict.fromkeys(COUNTS, 0))
    if step is None and any(record["step"] > 0 for record in log):
        raise ValueError(
            f"{folder} has the log of a run but no checkpoint to continue from: put the checkpoints back, or choose"
            " another run_dir="
        )
    lines = sum(record["step"] <= (step or 0) for record in log)
    if lines < counts["reports"]:
        text = f"{lines} lines up to step {step}, and at least {counts['reports']} were written. The others are lost"
        print(f"warning: {folder / 'metrics.jsonl'} has {text}", file=sys.stderr, flush=True)
    return step or 0, counts


def _require_equal_ranks(world: World, run: Run, folder: Path, step: int, options: dict[str, Any]) -> None:
    """Raise ValueError on every rank if the ranks would not train the same run."""
    options = {name: value for name, value in options.items() if name != "world"}
    networks = [part for part in collect_stateful(run).values() if isinstance(part, nn.Module)]
    world.require_equal(
        {
            f"the newest checkpoint in {folder}": str(step),
            "the data": f"{getattr(run.data, 'fingerprint', '')} {run.data.shape}",
            "the options": str(options),
            "the weights of the networks": digest_weights(*networks) if world.size > 1 else "",
        }
    )


def _list_best(records: list[dict[str, Any]]) -> Collection[int] | None:
    """Return the steps with the best scores. None if the log does not begin at step 0: then they are not known."""
    return find_best(records).values() if records and records[0]["step"] == 0 else None


def _set_rates(run: Run, factor: float) -> None:
    """lr <- factor * (the rate that the optimizer was made with). Paper: released gan_cifar_resnet.py, DECAY."""
    for optimizer in (run.optim_generator, run.optim_critic):
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * factor
