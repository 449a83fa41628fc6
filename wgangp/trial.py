"""A trial of a run before it is trained: what fails, fails before a run folder is made."""

import os
from math import prod
from typing import Any

import torch

from wgangp.checkpoint import check_finite
from wgangp.compiled import build_computation
from wgangp.distributed import World
from wgangp.metrics.scores import MAIN, list_scores
from wgangp.per_sample import check_per_sample
from wgangp.precision import product_precision
from wgangp.report import lipschitz_report, report
from wgangp.runs import Run, collect_state
from wgangp.train import Clip, compute_in_parts, update

__all__ = ["try_run"]

SOMETIMES = ("corrected_wasserstein", "expected_slope")  # logged only while the critic's gap is positive


def try_run(run: Run, cfg: Any, objective: str | None, world: World) -> None:
    """Try a run: draw batches, compute a report and make one update. The networks change: do not train this run.

    Args:
        cfg: the config of the run.
        objective: a name that the log must have; None: any.

    Raises:
        ValueError: one of them fails; the critic has a penalty and mixes samples; the log will not have the objective.
    """
    sizes = {name: cfg.train[name] for name in ("batch_size", "generator_batch_size", "report_size")}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name, size in sizes.items():
        # An update needs more than 8 float32 tensors of this size: samples, points between them, and their gradients.
        if 8 * 4 * (size or 0) * max(prod(run.data.shape), run.generator.latent_dim) > memory:
            raise ValueError(f"train.{name} = {size}: so many samples do not fit in the memory of this machine")
    for name, split in (("batch_size", "train"), ("report_size", "train"), ("report_size", "heldout")):
        try:
            run.data.batch(0, sizes[name], run.seed, split)
        except ValueError as error:
            raise ValueError(f"train.{name}: {error}") from error
    report_size, values = sizes.pop("report_size"), None
    try:
        check_finite(0, *collect_state(run, 0))
        if run.penalty.weight > 0:
            x, *y = run.data.batch(0, 4, run.seed)
            check_per_sample(run.critic, x, y=tuple(y))
        with torch.random.fork_rng(), product_precision(cfg.train.precision):
            values = report(run, 0, min(report_size, 2))
            if objective is not None:
                values |= lipschitz_report(run, 0, 2) | (dict.fromkeys(SOMETIMES) if run.penalty.weight else {})
                scores = (cfg.evaluate.scores or list_scores(run.data)) if cfg.train.evaluate_every else ()
                values |= dict.fromkeys(name for name in MAIN if name.split("_")[0] in scores)
            if world.size == 1 or not cfg.train.sync_batch_norm:  # the ranks make their trials one after another
                networks, weight = (run.generator, run.critic, run.loss, run.penalty), cfg.regularize.gradient_norm
                computation = build_computation(*networks, weight, precision=cfg.train.precision)
                computation = compute_in_parts(computation, cfg.train.accumulate)
                update(0, run, computation, critic_steps=1, **sizes, clip=Clip(**cfg.clip), world=world)
    except Exception as error:  # torch and the networks of others raise many types
        if "Expected more than 1 value per channel" in str(error):
            if values is None:
                raise ValueError(f"train.report_size = {report_size}: batch norm needs at least two samples") from error
            ones = [f"train.{name} = {n}" for name, n in sizes.items() if n == world.size * cfg.train.accumulate]
            raise ValueError(
                f"{' and '.join(ones)}: batch norm needs at least two samples per rank and part"
            ) from error
        if isinstance(error, ValueError):
            raise  # it says what is wrong
        raise ValueError(
            f"a first report and update of this run fail ({type(error).__name__}: {str(error).partition(chr(10))[0]})."
            " HYDRA_FULL_ERROR=1 shows where"
        ) from error
    if objective is not None and objective not in values:
        raise ValueError(f"objective = {objective}: the log of this run will have {', '.join(sorted(values))}")
