"""Scores of images in the features of a classifier: Inception score, Frechet distance, kernel distance.

The formulas are those of torch-fidelity. What turns images into features is a `FeatureSpace`: inception.py is that of
the literature, efficientnet.py and classifier.py need no download. Numbers in different features are not comparable.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

__all__ = [
    "WIDTHS",
    "FeatureSpace",
    "Features",
    "cache_per_content",
    "cache_per_data",
    "compare_features",
    "extract_features",
    "require_library",
    "require_samples",
    "to_bytes",
]

SPLITS = 10  # of the samples, for the Inception score. Paper: 10
SUBSETS, SUBSET_SIZE = 100, 1_000  # for the kernel distance. Paper: Binkowski et al. 2018
PIECE = 16  # images per forward pass on a CPU. 256 take twice the time
WIDTHS = {"classifier": 512, "efficientnet": 1_280, "inception": 2_048}  # name of a space -> number of its features


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """A classifier whose features images are compared in.

    name       the first part of the names of the numbers, as in NAME_fid
    extract    images, uint8 (B, C, H, W) -> features (B, F), logits (B, K)
    facts      what the numbers depend on: digest of the weights, size of the images, accuracy
    """

    name: str
    extract: Callable[[Tensor], tuple[Tensor, Tensor]]
    facts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Features:
    """The features (N, F) and the logits (N, K) of N images, on the CPU."""

    features: Tensor
    logits: Tensor


def cache_per_data(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function of a data set: its results are kept as long as the data set exists."""
    results: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()

    @wraps(compute)
    def call(data: Any, *arguments: Any) -> Any:
        values = results.setdefault(data, {})
        if arguments not in values:
            values[arguments] = compute(data, *arguments)
        return values[arguments]

    call.cache_clear = results.clear
    return call


def cache_per_content(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function of images and a feature space: runs on the same images share its newest results."""
    results: dict[Any, Any] = {}

    @wraps(compute)
    def call(data: Any, space: FeatureSpace, *arguments: Any) -> Any:
        key = (_identify(data) or data, space.name, *space.facts.items(), *arguments)
        if key not in results:
            results[key] = compute(data, space, *arguments)
            if len(results) > 4:  # two scores, two splits
                del results[next(iter(results))]
        return results[key]

    return call


@cache_per_data
def _identify(data: Any) -> tuple[Any, ...] | None:
    """Return what only sets of the same images have in common; None: not known."""
    if not hasattr(data, "pictures"):
        return None
    others = sorted(data.pictures.keys() - {"train", "heldout"})  # those of the fingerprint
    digests = [hashlib.sha256(data.pictures[split].cpu().numpy()).hexdigest() for split in others]
    return data.fingerprint, data.shape, *digests


def require_library(name: str, package: str) -> None:
    """Raise ValueError if a Python module that belongs to the extra `metrics` is not installed."""
    try:
        __import__(name)
    except ImportError as error:
        raise ValueError(
            f"this score needs the package {package}, which is not installed: pip install 'wgangp[metrics]', or, in a"
            " checkout, pip install -e '.[metrics]'"
        ) from error


def require_samples(name: str, width: int, n: int, kind: str = "samples") -> None:
    """Raise ValueError if n samples are too few for the distances in a space of `width` features."""
    least = max(width + 1, SUBSET_SIZE)
    if n < least:
        raise ValueError(
            f"{n:,} {kind} are too few for {name}_fid and {name}_kid, which need at least {least:,}: more than the"
            f" {width:,} features, so that the covariance is not singular, and {SUBSET_SIZE:,} per subset"
        )


def extract_features(space: FeatureSpace, batches: Iterable[Tensor]) -> Features:
    """Compute the features of batches of images, uint8 (B, C, H, W)."""
    pieces = (piece for x in batches for piece in x.split(PIECE if x.device.type == "cpu" else len(x)))
    with torch.no_grad():
        pairs = [tuple(x.float().cpu() for x in space.extract(piece)) for piece in pieces]
    features, logits = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return Features(features, logits)


def compare_features(samples: Features, reference: Features, name: str) -> dict[str, float]:
    """Compute the scores of samples (N images) beside reference images (M images).

    Returns:
        NAME_is, NAME_is_sd: mean and standard deviation of the Inception score over 10 contiguous parts of the samples.
        NAME_fid: the squared Frechet distance between Gaussians with the means and covariances of the features.
        NAME_kid, NAME_kid_sd: mean and standard deviation of the squared kernel distance (unbiased, cubic kernel
            (x . y / F + 1)^3) over 100 random subsets of 1,000 images.

    Raises:
        ValueError: there are too few images. The message names the minimum.

    Paper: Salimans et al. 2016, Heusel et al. 2017, Binkowski et al. 2018. The parts are contiguous, as in the scorer
    of the released code. torch-fidelity shuffles by default, and so does its known value for CIFAR-10.
    """
    require_library("torch_fidelity", "torch-fidelity")
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    for kind, part in (("samples", samples), ("reference images", reference)):
        require_samples(name, part.features.shape[1], len(part.features), kind)
    score = isc_features_to_metric(samples.logits, splits=SPLITS, shuffle=False)
    x, y = samples.features.double(), reference.features.double()
    statistics = [fid_features_to_statistics(part) for part in (x, y)]
    distance = fid_statistics_to_metric(*statistics, verbose=False)
    options = {"kid_subsets": SUBSETS, "kid_subset_size": SUBSET_SIZE, "rng_seed": 0, "verbose": False}
    kernel = kid_features_to_metric(x, y, **options)
    values = {
        "is": score["inception_score_mean"],
        "is_sd": score["inception_score_std"],
        "fid": distance["frechet_inception_distance"],
        "kid": kernel["kernel_inception_distance_mean"],
        "kid_sd": kernel["kernel_inception_distance_std"],
    }
    return {f"{name}_{key}": value for key, value in values.items()}


def to_bytes(x: Tensor, span: tuple[float, float]) -> Tensor:
    """Convert images (B, C, H, W) with values in span to uint8: floor(256 y), at most 255, where span becomes [0, 1].

    Paper: released gan_cifar_resnet.py, floor(255.99 y).
    """
    low, high = span
    return ((x - low) * (256 / (high - low))).floor().clamp(0, 255).byte()
