"""What a run logs and draws: one line of the log and one picture at a step, and the curves of the log.

Line and picture are functions of the run and the step alone, so that a resumed run logs and draws the same. They see
the networks in eval mode and change nothing: the trained weights do not depend on how often a run is measured.
"""

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wgangp import plots
from wgangp.box import find_box, lipschitz_on_box
from wgangp.certify import certified_lipschitz
from wgangp.checks import call_generator, compute_scores, is_random
from wgangp.data.text import write_lines
from wgangp.gradients import total_norm
from wgangp.lipschitz import corrected_wasserstein, expected_slope, largest_quotient, slope_statistics
from wgangp.logs import read_metrics
from wgangp.losses import merge_terms
from wgangp.metrics.modes import mode_coverage
from wgangp.metrics.ngrams import ngram_divergence
from wgangp.metrics.scores import Score
from wgangp.per_sample import check_per_sample
from wgangp.precision import product_precision
from wgangp.runs import Run, choose_generator, expects_slope
from wgangp.seeds import arrange_classes, draw_latent, rng_for, seed_layers
from wgangp.state import use_eval_mode
from wgangp.step import critic_objective, generator_objective

__all__ = ["describe_budget", "draw_curves", "evaluate", "leave_unchanged", "lipschitz_report", "picture", "report"]

IMAGES, POINTS = 128, 512  # samples (images or lines of text, points) in a picture, all from the same noise
QUOTIENT_POINTS = 256  # points of each kind for the Lipschitz report, at most
LOW_DIMENSION, BOX_TOLERANCE, BOX_CELLS = 3, 0.05, 20_000  # for the interval of the Lipschitz constant: seconds
COVERAGE_SAMPLES, NGRAM_SAMPLES = 10_000, 640  # samples for the mode coverage; lines for the n-grams, as released


def leave_unchanged(measure: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function of a run: it sees the networks in eval mode, and they and random states stay as they were.

    Layers that are random in eval mode, too, draw the same numbers at every call. Products are in fp32.
    """

    @wraps(measure)
    def call(*args: Any, **keywords: Any) -> Any:
        run = next(value for value in (*args, *keywords.values()) if isinstance(value, Run))
        device = next(run.critic.parameters()).device
        networks = (run.generator, run.critic, choose_generator(run))
        with use_eval_mode(*networks), seed_layers(run.seed, 0, "measurement", device), product_precision("fp32"):
            return measure(*args, **keywords)

    return call


@leave_unchanged
def report(run: Run, step: int, size: int) -> dict[str, float]:
    """Compute one line of the log, on `size` samples of each kind. docs/metrics.md explains every name.

    Differs: the released code logs the batch of the last critic update, before the generator update. Here all numbers
    are of both networks after the update, on batches that are drawn for the report. Held-out numbers are of one batch
    here, and of the whole set there.

    Losses, slopes and gradients are of the generator that the critic is trained against. The mode coverage and the
    n-grams are of the averaged generator, if the run has one.
    """
    device = next(run.critic.parameters()).device
    values: dict[str, float] = {}
    z, *y = draw_latent(run.generator, size, run.seed, step, "report", device)
    for split, prefix in (("train", ""), ("heldout", "heldout_")):
        real, *labels = run.data.batch(step, size, run.seed, split, purpose="report")
        with torch.no_grad():
            fake = call_generator(run.generator, z, *labels)
        eps = run.penalty.draw(real, rng_for(run.seed, step, f"eps/{split}", device))
        terms = critic_objective(run.critic, real, fake, eps, *labels, loss=run.loss, penalty=run.penalty)
        values |= {prefix + name: term.item() for name, term in terms.items()}
        if split == "train":
            values["critic_param_grad_norm"] = _param_grad_norm(terms["critic_loss"], run.critic)
            rng = rng_for(run.seed, step, "eps/slopes", device)
            if fake.isfinite().all() and not is_random(run.critic, real, *labels):  # else train() names the setting
                values |= _flatten(slope_statistics(run.critic, real, fake, y=tuple(labels), rng=rng))
    terms = generator_objective(run.generator, run.critic, z, *y, loss=run.loss)
    values = merge_terms(values, {name: term.item() for name, term in terms.items()})
    values["generator_param_grad_norm"] = _param_grad_norm(terms["generator_loss"], run.generator)

    @torch.no_grad()
    def draw(count: int, purpose: str) -> Tensor:
        return choose_generator(run)(*draw_latent(run.generator, count, run.seed, 0, purpose, device))

    if hasattr(run.data, "centers"):
        values |= mode_coverage(draw(COVERAGE_SAMPLES, "coverage"), run.data.centers, run.data.sd)
    if hasattr(run.data, "symbols"):
        values |= ngram_divergence(draw(NGRAM_SAMPLES, "ngrams").argmax(1), run.data)
    return values


@leave_unchanged
def lipschitz_report(run: Run, step: int, size: int) -> dict[str, float]:
    """Compute what train.lipschitz_every adds to a line of the log, on held-out samples.

    docs/metrics.md explains every name. Numbers that are not defined for the critic are left out. scripts/lipschitz.py
    computes the same and more.
    """
    size = min(size, QUOTIENT_POINTS)
    device = next(run.critic.parameters()).device
    real, *labels = run.data.batch(step, size, run.seed, "heldout", purpose="lipschitz")
    if (labels and getattr(run.critic, "score_takes_labels", True)) or is_random(run.critic, real):
        return {}  # the score is not a function of the point alone, so that these numbers are not defined
    with torch.no_grad():
        z, *_ = draw_latent(run.generator, size, run.seed, step, "lipschitz", device)
        fake = run.generator(z, *labels)
        gap = (compute_scores(run.critic, real).mean() - compute_scores(run.critic, fake).mean()).item()
    try:
        check_per_sample(run.critic, torch.cat([real[:1], fake[:1]]))
    except ValueError:  # the released batch norm, which is allowed without a penalty
        return {}
    values = {"largest_quotient": largest_quotient(run.critic, torch.cat([real, fake]))}
    if expects_slope(run) and gap >= 0:
        corrected = corrected_wasserstein(gap, run.penalty.weight)
        values |= {"corrected_wasserstein": corrected, "expected_slope": expected_slope(corrected, run.penalty.weight)}
    if tuple(run.data.shape) in ((1,), (2,)):
        rng = rng_for(run.seed, step, "eps/slopes", device)
        values |= _flatten({"coupled": slope_statistics(run.critic, real, fake, rng=rng, coupled=True)["coupled"]})
    if step > 0 and len(real.shape) == 2 and real.shape[1] <= LOW_DIMENSION:
        with suppress(ValueError):  # the critic is not piecewise linear
            values["lipschitz_low"], values["lipschitz_high"] = lipschitz_on_box(
                run.critic, *find_box(real, fake), tolerance=BOX_TOLERANCE, max_cells=BOX_CELLS
            )
    with suppress(ValueError):  # a critic with a norm layer has no certificate
        values["certified_lipschitz"] = certified_lipschitz(run.critic, run.data.shape)
    return values


@leave_unchanged
def evaluate(
    run: Run, step: int, scores: Sequence[Score], stop: Callable[[], AbstractContextManager[None]] = nullcontext
) -> dict[str, float]:
    """Compute the scores of a run. One that fails is reported on stderr and left out: it must not end the training.

    Args:
        stop: around each score, for example `signals.interruptible`. Nothing else here is interrupted.
    """
    values: dict[str, float] = {}
    for score in scores:
        try:
            with stop():
                numbers = score.compute(run, step)
            lost = [name for name, value in numbers.items() if not math.isfinite(value)]
            if lost:
                raise ValueError(f"{', '.join(lost)}: not finite")
        except Exception as error:  # of torch, scipy and files; whatever it is, the training goes on
            print(f"warning: step {step}: the score {score.name} failed ({error})", file=sys.stderr, flush=True)
        else:
            values |= numbers
    return values


@leave_unchanged
def picture(folder: Path, run: Run, step: int) -> None:
    """Draw samples/STEP.png, or write samples/STEP.txt for text, from noise that is the same at every step.

    With labels there is one row per class.

    The samples are of the averaged generator, if the run has one.
    """
    device = next(run.critic.parameters()).device
    path = folder / "samples" / f"{step:08d}.png"
    path.parent.mkdir(exist_ok=True)
    note, in_plane = describe_budget(folder), tuple(run.data.shape) == (2,)
    title = f"{step} generator updates" + ", budget=cpu" * bool(note)
    latent = draw_latent(run.generator, POINTS if in_plane else IMAGES, run.seed, 0, "picture", device)
    columns = None
    if len(latent) > 1 and not in_plane:
        labels = arrange_classes(run.generator.classes, IMAGES).to(device)
        latent, columns = (latent[0][: len(labels)], labels), int((labels == 0).sum())
    with torch.no_grad():
        fake = choose_generator(run)(*latent)
    if in_plane and len(latent) == 1:
        (real,) = run.data.batch(0, len(fake), run.seed, "heldout", purpose="picture")
        plots.save_value_surface(path, run.critic, real, fake, run.data.span, title)
    elif in_plane:  # with labels there is one value surface per class, so that only the points are drawn
        plots.save_points(path, fake, run.data.span, title)
    elif hasattr(run.data, "symbols"):
        write_lines(path.with_suffix(".txt"), fake, run.data.symbols, note)
    elif len(run.data.shape) == 3 and run.data.shape[0] in plots.CHANNELS:
        plots.save_image_grid(path, fake.cpu(), run.data.span, columns, note)


def draw_curves(folder: Path, run: Run) -> None:
    """Draw curves.png of the log so far."""
    metrics = read_metrics(folder / "metrics.jsonl")
    plots.save_curves(folder / "curves.png", metrics, run.penalty.target, describe_budget(folder))


def describe_budget(folder: Path) -> str:
    """Return a note on a run with budget=cpu, which is not the run of the paper. For other runs: ""."""
    config = folder / "config.yaml"
    is_small = config.exists() and "\nbudget: cpu\n" in config.read_text()
    return "budget=cpu: smaller and shorter than in the paper" if is_small else ""


def _flatten(statistics: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"slope_{kind}_{name}": value for kind, part in statistics.items() for name, value in part.items()}


def _param_grad_norm(objective: Tensor, network: nn.Module) -> float:
    gradients = torch.autograd.grad(objective, list(network.parameters()), materialize_grads=True)
    return total_norm(gradients).item()
