"""Exact optimal transport between samples: what a critic's estimate is held against, in low dimension.

The distance between two samples of size n is itself an estimate of the distance between their distributions, too large
by about n^(-1/d) in d dimensions: two samples of one distribution are not at distance 0. At the size of an image it
says nothing about W1; data/pairs.py has distributions whose distance is known.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["LIMIT", "optimal_pairs", "wasserstein1"]

LIMIT = 5_000  # points a sample: a cost matrix of 200 MB, and about ten seconds
ITERATIONS = 10_000_000  # POT's own limit stops early, with a warning and a wrong distance


def wasserstein1(x: Tensor, y: Tensor) -> float:
    """The exact 1-Wasserstein distance between two samples, each point with the same weight, in float64.

    Args:
        x: points (N, *); y: points (M, *) of the same shape. Euclidean distance over all axes but the first.
            At most LIMIT points each, but for points on a line, which are only sorted.

    Raises:
        ValueError: shapes that differ, no points, points that are not finite, too many points.
        RuntimeError: the solver did not reach the optimum.
    """
    x, y = _points(x, y)
    if x.shape[1] == 1:
        from scipy.stats import wasserstein_distance  # here, as below: it takes seconds to import

        return float(wasserstein_distance(x[:, 0], y[:, 0]))
    if max(len(x), len(y)) > LIMIT:
        raise ValueError(
            f"exact transport between {len(x)} and {len(y)} points: at most {LIMIT} each. Take a random part,"
            f" x[torch.randperm(len(x))[:{LIMIT}]], and the mean over several such parts"
        )
    return float(_plan(x, y)[1])


def optimal_pairs(x: Tensor, y: Tensor) -> Tensor:
    """The partner of every x_i under optimal transport: y[optimal_pairs(x, y)] is paired with x by its order.

    Args:
        x, y: points (N, *), as many in both, N <= LIMIT.

    Returns:
        a permutation (N,) of 0 ... N - 1, on x's device.

    Raises:
        ValueError, RuntimeError: as in `wasserstein1`; samples of different sizes.

    Paper: Proposition 1 is about the segments between such pairs; the penalty's pairs are independent ones.
    """
    device = x.device
    x, y = _points(x, y)
    if len(x) != len(y) or len(x) > LIMIT:
        raise ValueError(
            f"{len(x)} and {len(y)} points cannot be paired: as many in both, and at most {LIMIT}. Take a random part,"
            f" x[torch.randperm(len(x))[:{LIMIT}]]"
        )
    return torch.from_numpy(_plan(x, y)[0].argmax(1)).to(device)  # a vertex of the polytope: a permutation


def _points(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[1:] != y.shape[1:] or x.ndim < 1 or min(len(x), len(y)) < 1:
        raise ValueError(f"points of one shape are needed, at least one in each: {tuple(x.shape)}, {tuple(y.shape)}")
    x, y = (points.detach().cpu().double().unsqueeze(-1).flatten(1) for points in (x, y))
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("some points are not finite: there is no distance to them")
    return x, y


def _plan(x: Tensor, y: Tensor) -> tuple[np.ndarray, float]:
    """The optimal plan (N, M) between samples of any two sizes, and its cost."""
    import ot  # here: it takes seconds to import

    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    plan, log = ot.emd([], [], cost, numItermax=ITERATIONS, log=True)
    if log["warning"]:  # it stopped too early
        raise RuntimeError(f"exact transport was not solved: {log['warning']}. Take fewer points")
    return plan, log["cost"]
