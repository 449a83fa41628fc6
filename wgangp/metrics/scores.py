"""The scores of a run, by the kind of its data. A score is a function (run, step) -> {name: number}.

Every name begins with that of the score, as in classifier_fid. real_classifier_fid is the same number with real samples
in place of generated ones, which is what a perfect generator would get. Networks must be in eval mode.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wgangp.checks import call_generator, compute_scores
from wgangp.data.stacked import combine_digits
from wgangp.generate import BATCH, generate_batches
from wgangp.lipschitz import corrected_wasserstein
from wgangp.metrics.classifier import classify, find_labeled, load_classifier
from wgangp.metrics.efficientnet import load_efficientnet
from wgangp.metrics.features import (
    SPLITS,
    WIDTHS,
    Features,
    FeatureSpace,
    cache_per_content,
    compare_features,
    extract_features,
    require_library,
    require_samples,
    to_bytes,
)
from wgangp.metrics.inception import load_inception
from wgangp.metrics.modes import count_modes, mode_coverage
from wgangp.metrics.ngrams import ngram_divergence
from wgangp.networks.layers import BatchNorm
from wgangp.runs import Run, choose_generator, expects_slope
from wgangp.seeds import draw_latent
from wgangp.transport import LIMIT, wasserstein1

__all__ = ["MAIN", "NAMES", "Score", "build_scores", "find_best", "list_scores"]

SAMPLES = {  # n by default
    "points": 2_500,  # Paper: Srivastava et al. 2017
    "ngrams": 640,  # Paper: released gan_language.py
    "modes": 26_000,  # Paper: Srivastava et al. 2017
    "classifier": 10_000,
    "efficientnet": 10_000,
    "inception": 50_000,  # Paper: table 3
    "critic": 5_000,
}
NAMES = tuple(SAMPLES)
MAIN = {  # the numbers that say which checkpoint of a run is the best -> True if a large one is good
    "points_w1": False,
    "ngrams_js4": False,
    "modes_covered": True,
    "classifier_fid": False,
    "efficientnet_fid": False,
    "inception_is": True,
}
MODES = 1_000  # of three stacked digits


@dataclass(frozen=True)
class Score:
    """A score with its options.

    name       one of NAMES
    compute    (run, step) -> the numbers
    settings   what they depend on, besides the checkpoint: samples, reference, digest of the weights, batch norm
    """

    name: str
    compute: Callable[[Run, int], dict[str, float]]
    settings: dict[str, Any]


def list_scores(data: Any) -> list[str]:
    """Return the names of the scores that are computed by default. They need no download."""
    if hasattr(data, "symbols"):
        return ["ngrams", "critic"]
    if len(data.shape) != 3:
        return ["points", "critic"]
    if hasattr(data, "digits"):
        return ["modes", "critic"]
    try:
        find_labeled(data)
    except ValueError:
        return ["efficientnet", "critic"]
    return ["classifier", "critic"]


def build_scores(
    run: Run,
    scores: list[str] | None = None,
    n: int | None = None,
    seed: int = 0,
    reference: str | None = None,
    weights: str | None = None,
    classifier: str | None = None,
) -> list[Score]:
    """Build the scores of a run. Everything that they need is loaded here, so that errors come before training.

    Args:
        scores: names of scores; None: those of `list_scores`.
        n: number of samples; None: 26,000 for modes, 50,000 for inception, 10,000 for images otherwise, 2,500 for
            points, 640 for ngrams, 5,000 for critic.
        seed: of the noise.
        reference: the split whose images samples are compared with. None: train for inception, as in the literature;
            otherwise test if there is one, else heldout.
        weights: file with the weights of inception; None: downloaded once.
        classifier: file with the classifier; None: trained once.

    Raises:
        ValueError: there is no such score, it does not fit the data, it needs something that cannot be loaded, n is too
            small, or no score uses reference, weights or classifier.
    """
    names = list_scores(run.data) if scores is None else list(scores)
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(f"scores = {names}: choose among {', '.join(NAMES)}, each at most once")
    if seed < 0:
        raise ValueError(f"seed = {seed}: must be >= 0")
    for option, (value, users) in {
        "reference": (reference, tuple(WIDTHS)),
        "weights": (weights, ("inception",)),
        "classifier": (classifier, ("classifier", "modes")),
    }.items():
        if value is not None and not set(users) & set(names):
            raise ValueError(
                f"{option} = {value}: it is for {', '.join(users)}, not for {', '.join(names)}. Leave it out"
            )
    device = next(run.generator.parameters()).device
    loaders = {
        "inception": partial(load_inception, weights, device),
        "efficientnet": partial(load_efficientnet, device=device),
        "classifier": partial(load_classifier, run.data, classifier, device),
    }
    chosen_scores = []
    for name in names:
        count, split = SAMPLES[name] if n is None else n, reference or _choose_reference(name, run.data)
        _check(name, run, count, split)
        if name == "ngrams":
            count = min(count, len(run.data.ids["heldout"]))  # as many lines are compared
        settings = {"n": count, "seed": seed}
        if name in loaders:
            space = loaders[name]()
            measure = partial(_score_images, space=space, n=count, seed=seed, reference=split)
            facts = {"reference": f"the {len(run.data.labels[split]):,} images of {split}", "splits": SPLITS}
            settings |= facts | space.facts
        elif name == "modes":
            space = load_classifier(run.data, classifier, device)
            measure = partial(_score_modes, space=space, n=count, seed=seed)
            settings |= space.facts
        else:
            measures = {"points": _score_points, "ngrams": _score_ngrams, "critic": _score_critic}
            measure = partial(measures[name], n=count, seed=seed)
        generator = run.generator if name == "critic" else choose_generator(run)
        chosen_scores.append(Score(name, measure, settings | _describe_samples(run, generator)))
    return chosen_scores


def find_best(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return the step with the best value of each number in MAIN that the lines of a log have, by its name."""
    best = {}
    for name, large in MAIN.items():
        logged = [record for record in records if name in record]
        if logged:
            best[name] = (max if large else min)(logged, key=lambda record: record[name])["step"]
    return best


def _check(name: str, run: Run, n: int, reference: str) -> None:
    """Raise ValueError if a score does not fit the data of a run, or if there are too few or too many samples.

    Args:
        reference: the split that images are compared with.
    """
    data = run.data
    images, text = len(data.shape) == 3, hasattr(data, "symbols")
    needs = {
        "points": (not images and not text, "points, as data=gaussians8 has"),
        "ngrams": (text, "text, as data=text has"),
        "modes": (hasattr(data, "digits"), "stacked digits, data=stacked_mnist"),
        "inception": (images and data.shape[0] in (1, 3), "images with 1 or 3 channels"),
        "efficientnet": (images and data.shape[0] in (1, 3), "images with 1 or 3 channels"),
        "classifier": (not hasattr(data, "digits"), "gray images with labels, as data=mnist has"),
    }
    fits, kind = needs.get(name, (True, ""))
    if not fits:
        usual = ", ".join(list_scores(data))
        raise ValueError(f"scores = {name}: it needs {kind}. For this data, choose among {usual}")
    if name == "classifier":
        find_labeled(data)
    if n < 2:
        raise ValueError(f"n = {n}: a score needs at least 2 samples")
    if name == "points" and n > LIMIT and data.shape != (1,):
        raise ValueError(f"n = {n}: the exact distance between points takes at most {LIMIT:,} of them")
    if name in WIDTHS:
        require_library("torch_fidelity", "torch-fidelity")
        if reference not in data.labels:
            splits = ", ".join(data.labels)
            raise ValueError(f"reference = {reference}: this data has the splits {splits}. Choose one of them")
        require_samples(name, WIDTHS[name], n)
        require_samples(name, WIDTHS[name], len(data.labels[reference]), f"images of reference = {reference}")


def _choose_reference(name: str, data: Any) -> str:
    if name == "inception":
        return "train"
    return "test" if "test" in getattr(data, "labels", {}) else "heldout"


def _describe_samples(run: Run, generator: nn.Module) -> dict[str, Any]:
    """Return what the samples of a generator of a run depend on, besides the checkpoint."""
    settings = {"generator": "last weights" if generator is run.generator else "moving average of the weights"}
    for module in generator.modules():
        if isinstance(module, BatchNorm):
            return settings | {"batch norm": f"statistics of batches of {BATCH}"}
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return settings | {"batch norm": "running averages"}
    return settings


def _score_images(run: Run, step: int, space: FeatureSpace, n: int, seed: int, reference: str) -> dict[str, float]:
    """Compute Inception score, FID and KID of n samples; real ones are of another split than the reference."""
    batches = (to_bytes(x, run.data.span) for x in generate_batches(run, n, seed))
    samples = extract_features(space, batches)
    values = compare_features(samples, _extract_real(run.data, space, reference), space.name)
    return values | _compare_real(run.data, space, reference, n)


@cache_per_content
def _compare_real(data: Any, space: FeatureSpace, reference: str, n: int) -> dict[str, float]:
    """Compute the scores of at most n real images of another split; no scores if there are too few."""
    other = "heldout" if reference != "heldout" else "train"  # the classifier was not trained on held-out images
    real, beside = extract_features(space, _read_images(data, other, n)), _extract_real(data, space, reference)
    try:
        values = compare_features(real, beside, space.name)
    except ValueError:  # too few held-out images: the samples are scored without a real value
        return {}
    return {f"real_{name}": value for name, value in values.items()} | {"real_" + space.name + "_n": len(real.logits)}


@cache_per_content
def _extract_real(data: Any, space: FeatureSpace, split: str) -> Features:
    """Compute the features of all images of a split."""
    return extract_features(space, _read_images(data, split))


def _read_images(data: Any, split: str, n: int | None = None) -> Iterator[Tensor]:
    """Yield images of a split, uint8 (B, C, H, W): n of them in a fixed random order; None: all."""
    order = torch.randperm(len(data.labels[split]), generator=torch.Generator().manual_seed(0))
    for indices in order[:n].split(BATCH):
        yield data.take(split, indices)


def _score_modes(run: Run, step: int, space: FeatureSpace, n: int, seed: int) -> dict[str, float]:
    """Count modes of stacked digits: the classifier names the digit in each channel."""
    batches = (to_bytes(x, run.data.span) for x in generate_batches(run, n, seed))
    real = _count_real_modes(run.data, space, n)
    return _count_modes(space, batches) | {f"real_{name}": value for name, value in real.items()}


@cache_per_content
def _count_real_modes(data: Any, space: FeatureSpace, n: int) -> dict[str, float]:
    count = min(n, len(data.labels["heldout"]))
    return _count_modes(space, _read_images(data, "heldout", count)) | {"modes_n": count}


def _count_modes(space: FeatureSpace, batches: Iterator[Tensor]) -> dict[str, float]:
    """Count the modes of batches of images, uint8 (B, 3, H, W)."""
    digits = torch.cat([classify(space, x.flatten(0, 1).unsqueeze(1)).view(len(x), -1).cpu() for x in batches])
    counts = count_modes(combine_digits(digits), MODES)
    return {"modes_covered": counts["modes"], "modes_reverse_kl": counts["reverse_kl"]}


def _score_points(run: Run, step: int, n: int, seed: int) -> dict[str, float]:
    """Compute exact W1 to held-out points, and for Gaussian mixtures modes, reverse KL and high-quality samples."""
    real, other = (run.data.batch(0, n, seed, split, purpose="evaluate")[0] for split in ("heldout", "train"))

    def measure(x: Tensor) -> dict[str, float]:
        values = {"points_w1": wasserstein1(x, real)}
        if hasattr(run.data, "centers"):
            coverage, centers = mode_coverage(x, run.data.centers, run.data.sd), run.data.centers
            nearest = torch.cdist(x, centers).argmin(1)
            values["points_modes"], values["points_high_quality"] = coverage["modes"], coverage["high_quality"]
            values["points_reverse_kl"] = count_modes(nearest.cpu(), len(centers))["reverse_kl"]
        return values

    values = measure(torch.cat(list(generate_batches(run, n, seed))))
    return values | {f"real_{name}": value for name, value in measure(other).items()}


def _score_ngrams(run: Run, step: int, n: int, seed: int) -> dict[str, float]:
    ids = torch.cat([x.argmax(1) for x in generate_batches(run, n, seed)])
    values = ngram_divergence(ids, run.data)
    return {("real_ngrams_" if k.startswith("reference_") else "ngrams_") + k[-3:]: v for k, v in values.items()}


def _score_critic(run: Run, step: int, n: int, seed: int) -> dict[str, float]:
    """Compute the gap of the critic on training and on held-out data. Their difference is its overfitting."""
    gaps = {}
    for split in ("train", "heldout"):
        items = getattr(run.data, "ids", getattr(run.data, "labels", {})).get(split)
        size = BATCH if items is None else min(BATCH, len(items))
        parts = []
        for k in range(-(-n // size)):
            real, *y = run.data.batch(k, size, seed, split, purpose="evaluate")
            z, *_ = draw_latent(run.generator, size, seed, k, "evaluate/critic", real.device)
            with torch.no_grad():
                fake = call_generator(run.generator, z, *y)
                parts.append(compute_scores(run.critic, real, *y) - compute_scores(run.critic, fake, *y))
        gaps[split] = torch.cat(parts)[:n].double().mean().item()
    values = {"critic_train_gap": gaps["train"], "critic_heldout_gap": gaps["heldout"]}
    values["critic_overfitting"] = gaps["train"] - gaps["heldout"]
    if expects_slope(run) and gaps["heldout"] >= 0:
        values["critic_heldout_corrected"] = corrected_wasserstein(gaps["heldout"], run.penalty.weight)
    return values
