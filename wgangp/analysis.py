"""The Lipschitz analysis of a trained critic: what its slopes are, and what they should be."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wgangp import lipschitz, plots
from wgangp.box import find_box, lipschitz_on_box
from wgangp.certify import certified_lipschitz, list_assumptions
from wgangp.checkpoint import write_atomic
from wgangp.checks import compute_scores
from wgangp.config import find_device, restore
from wgangp.files import complete
from wgangp.generate import BATCH, generate
from wgangp.logs import collect_provenance
from wgangp.per_sample import check_per_sample
from wgangp.report import describe_budget, leave_unchanged
from wgangp.runs import Run, expects_slope
from wgangp.seeds import draw_latent, rng_for
from wgangp.transport import LIMIT, wasserstein1

__all__ = ["analyze", "measure"]

LOW_DIMENSION = 3  # up to here the distance between two samples is close to the distance between their distributions


def analyze(
    run: str,
    n: int = 2000,
    starts: int = 200,
    ascent: int = 100,
    seed: int = 0,
    out: str | None = None,
    data_root: str | None = None,
    device: str = "auto",
    trust: Sequence[str] = (),
) -> Path:
    """Analyze the critic of a run folder; write lipschitz.json and lipschitz.png, and return their folder.

    Args:
        run: the run folder.
        n: the number of held-out real samples, and of generated samples.
        starts: the number of points of each kind at which the search for the steepest slope starts.
        ascent: steps of this search.
        seed: of the random draws.
        out: a new folder; None: a name in run/made that tells step, seed and sizes.
        data_root: the folder where the data is now; None: where it was during training.
        device, trust: as in `config.load_run`.

    Raises:
        ValueError: an argument is not valid, or the data is not the data of the run. Nothing is written.
    """
    for name, value, least in (("n", n, 2), ("starts", starts, 1), ("ascent", ascent, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} = {value}: must be >= {least}")
    trained, step = restore(Path(run), find_device(device), read_data=True, data_root=data_root, trust=trust)
    low_dimension = torch.Size(trained.data.shape).numel() <= LOW_DIMENSION
    if low_dimension and n > LIMIT:
        raise ValueError(f"n = {n}: exact transport takes at most {LIMIT} points, so use n={LIMIT} or less")
    path = Path(out or Path(run, "made", f"lipschitz_step{step}_seed{seed}_n{n}_starts{starts}_ascent{ascent}"))
    if path.exists():
        if out:
            raise ValueError(f"{path} exists and is not overwritten: choose another out=")
        return path  # it has the same run, step, seed and sizes

    report, slopes = measure(trained, n, starts, ascent, seed, low_dimension)
    with complete(path) as unfinished:
        unfinished.mkdir()
        arguments = {"run": run, "n": n, "starts": starts, "ascent": ascent, "seed": seed, "data_root": data_root}
        origin = {"step": step, **arguments, "out": out, **collect_provenance(next(trained.critic.parameters()).device)}
        write_atomic(unfinished / "lipschitz.json", json.dumps({**origin, **report}, indent=2) + "\n")
        title = "; ".join(filter(None, [f"{step} generator updates", describe_budget(Path(run))]))
        plots.save_lipschitz(unfinished / "lipschitz.png", slopes, report, title)
    return path


@leave_unchanged
def measure(
    run: Run, n: int, starts: int, ascent: int, seed: int, low_dimension: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Compute all measures that are defined for the critic.

    Returns:
        the report, as in lipschitz.json (see docs/lipschitz.md); the slopes (N,) at each kind of points.
    """
    critic, device = run.critic, next(run.critic.parameters()).device
    if getattr(critic, "classes", 0) and getattr(critic, "score_takes_labels", True):
        raise ValueError(
            "the score of this critic depends on labels, and these measures are defined for a function of the points."
            " slope_statistics(..., y=(labels,)) of this package takes labels; a critic whose score does not depend on"
            " them has the attribute score_takes_labels = False, and can be called without them"
        )
    try:
        splits = [run.data.batch(0, n, seed, split, purpose="lipschitz")[0] for split in ("heldout", "train")]
    except ValueError as error:
        raise ValueError(f"n: {error}") from error
    real, trained_on = splits
    fake = generate(run.generator, n, lambda k: draw_latent(run.generator, BATCH, seed, k, "lipschitz", device))
    with torch.no_grad():
        score_real, score_fake = (
            torch.cat([compute_scores(critic, part) for part in x.split(BATCH)]) for x in (real, fake)
        )
    gap = (score_real.double().mean() - score_fake.double().mean()).item()
    distances = {"gap": gap}
    if low_dimension:
        distances["exact_w1"] = wasserstein1(real, fake)
        distances["sampling_floor"] = wasserstein1(real, trained_on)  # two samples of the data
    try:
        check_per_sample(critic, real[:4])
    except ValueError as error:  # the scores are not functions of a point, so there are no slopes
        return {"slopes": {}, "lipschitz": {"not_certified": str(error)}, "distances": distances}, {}

    rng = rng_for(seed, 0, "lipschitz/eps", device)
    slopes, cosines = lipschitz.critic_slopes(critic, real, fake, rng=rng, coupled=low_dimension, float64=True)
    report = {"slopes": lipschitz.summarize(slopes, cosines)}
    start_points = torch.cat([x[:starts] for x in (real, fake, (real + fake) / 2)])
    report["lipschitz"] = {
        "largest_quotient": lipschitz.largest_quotient(critic, torch.cat([real, fake])),
        "steepest": lipschitz.steepest_slope(critic, start_points, ascent),
    }
    weight = run.penalty.weight
    if expects_slope(run):
        if gap >= 0:
            distances["corrected"] = lipschitz.corrected_wasserstein(gap, weight)
        for name, source in (("exact_w1", "exact W1"), ("corrected", "corrected gap")):
            if name in distances and "expected_slope" not in report:
                slope = lipschitz.expected_slope(distances[name], weight)
                report |= {"expected_slope": slope, "expected_from": source}
    constant = 0.0
    try:
        constant = report["lipschitz"]["certified"] = certified_lipschitz(critic, tuple(real.shape[1:]))
        if assumptions := list_assumptions(critic):
            report["lipschitz"]["assumed"] = assumptions
            values = ", ".join(f"{name}.lipschitz = {value:g}" for name, value in assumptions.items())
            print(f"note: the certificate {constant:.4g} assumes, without a proof, {values}", file=sys.stderr)
    except ValueError as error:
        report["lipschitz"]["not_certified"] = str(error)
    if low_dimension and real.ndim == 2:
        box = find_box(real, fake)
        with suppress(ValueError):  # the critic is not piecewise linear
            low, constant = lipschitz_on_box(critic, *box)
            report["lipschitz"] |= {"low": low, "high": constant, "box": box}
    if constant > 0:
        distances["proved"] = lipschitz.proved_wasserstein(score_real, score_fake, constant, seed=seed)
    return report | {"distances": distances}, slopes
