"""Exact optimal transport between samples. In low dimension, the estimates of a critic are compared with it.

The distance between two samples of size n is itself an estimate of the distance between their distributions. It is too
large by about n^(-1/d) in d dimensions: the distance between two samples of the same distribution is not 0. In the
dimension of an image it therefore says nothing about W1. data/pairs.py has distributions with a known distance.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["LIMIT", "optimal_pairs", "wasserstein1"]

LIMIT = 5_000  # points per sample: the cost matrix takes 200 MB, and the solver about ten seconds
ITERATIONS = 10_000_000  # the default of POT is too small: it stops early, with a warning and a wrong distance


def wasserstein1(x: Tensor, y: Tensor) -> float:
    """Compute the exact 1-Wasserstein distance between two samples, in float64. All points have the same weight.

    Args:
        x, y: points (N, *) and (M, *), where N and M may differ. The Euclidean distance is taken over all axes but the
            first. N, M <= LIMIT, except for points on a line, which are only sorted.

    Raises:
        ValueError: the shapes of the points differ, there are no points, points are complex or not finite, or there
            are too many.
        RuntimeError: the solver did not reach the optimum.
    """
    x, y = _flatten_points(x, y)
    if x.shape[1] == 1:
        from scipy.stats import wasserstein_distance  # here: the import takes seconds

        return float(wasserstein_distance(x[:, 0], y[:, 0]))
    if max(len(x), len(y)) > LIMIT:
        raise ValueError(
            f"exact transport between {len(x)} and {len(y)} points: at most {LIMIT} of each. Use a random part,"
            f" x[torch.randperm(len(x))[:{LIMIT}]], and take the mean over several parts"
        )
    return float(_solve(x, y)[1])


def optimal_pairs(x: Tensor, y: Tensor) -> Tensor:
    """Return the partner of every x_i under optimal transport: x_i is coupled with y[optimal_pairs(x, y)[i]].

    Args:
        x, y: points (N, *), the same number of each, N <= LIMIT.

    Returns:
        a permutation (N,) of 0 ... N - 1, on the device of x.

    Raises:
        ValueError, RuntimeError: as in `wasserstein1`; the samples have different sizes.

    Paper: Proposition 1 is about the segments between such pairs. The pairs of the penalty are independent.
    """
    device = x.device
    x, y = _flatten_points(x, y)
    if len(x) != len(y) or len(x) > LIMIT:
        raise ValueError(
            f"{len(x)} and {len(y)} points cannot be paired: the numbers must be equal, and at most {LIMIT}. Use a"
            f" random part, x[torch.randperm(len(x))[:{LIMIT}]]"
        )
    return torch.from_numpy(_solve(x, y)[0].argmax(1)).to(device)  # the plan is a vertex, so it is a permutation


def _flatten_points(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points as (N, d) and (M, d), in float64 on the CPU. ValueError if they have no distance."""
    if x.shape[1:] != y.shape[1:] or x.ndim < 1 or min(len(x), len(y)) < 1:
        raise ValueError(
            f"x {tuple(x.shape)} and y {tuple(y.shape)} must be points of the same shape, with at least one point each"
        )
    if x.is_complex() or y.is_complex():
        raise ValueError(f"x is {x.dtype} and y is {y.dtype}: points have real numbers. Use torch.view_as_real")
    x, y = (points.detach().cpu().double().unsqueeze(-1).flatten(1) for points in (x, y))
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("some points are not finite, so there is no distance: remove points with NaN or inf")
    return x, y


def _solve(x: Tensor, y: Tensor) -> tuple[np.ndarray, float]:
    """Return the optimal plan (N, M) between two samples, and its cost."""
    import ot  # here: the import takes seconds

    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    plan, log = ot.emd([], [], cost, numItermax=ITERATIONS, log=True)
    if log["warning"]:  # it stopped before the optimum
        raise RuntimeError(f"exact transport was not solved: {log['warning']}. Use fewer points")
    return plan, log["cost"]
