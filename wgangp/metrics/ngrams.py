"""Character n-grams: how far the short sequences of generated text are from those of the training text."""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["count_ngrams", "js_divergence", "ngram_divergence"]

ORDERS = (1, 2, 3, 4)
ROWS = 100_000  # lines that are counted at once, so that millions of lines need little memory


def ngram_divergence(ids: Tensor, data: Any) -> dict[str, float]:
    """Compare the n-grams of generated lines with those of the whole training text, for n = 1 ... 4.

    A small set of lines is at a distance from the text that it is drawn from. The reference values say how far as many
    lines of held-out text are, so they are what a perfect generator would get.

    Args:
        ids: generated lines (N, L), integers. At most as many as there are held-out lines are used.
        data: the text, with ids and symbols: see wgangp/data/text.py.

    Returns:
        js1 ... js4: Jensen-Shannon divergence in bits, 0 (equal) to 1 (no common n-gram).
        reference_js1 ... reference_js4: that of N held-out lines.

    Paper: released gan_language.py lines 127-134, 171-178, with N = 640. Differs: its reference is the divergence of
    640 training lines from the others.
    """
    ids, values = ids[: len(data.ids["heldout"])], {}
    for n in ORDERS:
        real = _count_training(data, n)
        values[f"js{n}"] = js_divergence(count_ngrams(ids, n, len(data.symbols)), real)
        values[f"reference_js{n}"] = _compute_reference(data, n, len(ids))
    return values


def count_ngrams(ids: Tensor, n: int, size: int) -> tuple[Tensor, Tensor]:
    """Count the sequences of n symbols within the lines ids (N, L), integers in 0 ... size - 1.

    Returns:
        the numbers (K,) of the n-grams that occur, sorted: sum_i id_i size^(n - 1 - i); and their counts (K,).
    """
    codes = counts = torch.empty(0, dtype=torch.int64, device=ids.device)
    for rows in ids.split(ROWS):
        windows = rows.long().unfold(1, n, 1)  # (N, L - n + 1, n)
        code = windows[..., 0]
        for i in range(1, n):
            code = code * size + windows[..., i]
        code, count = code.unique(return_counts=True)
        codes, inverse = torch.cat([codes, code]).unique(return_inverse=True)
        counts = torch.zeros_like(codes).index_add_(0, inverse, torch.cat([counts, count]))
    return codes, counts


def js_divergence(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> float:
    """Compute the Jensen-Shannon divergence (KL(p | m) + KL(q | m)) / 2, m = (p + q) / 2, in bits.

    Args:
        p, q: numbers (K,) and counts (K,) of what occurs, as of `count_ngrams`.
    """
    codes, inverse = torch.cat([p[0], q[0]]).unique(return_inverse=True)
    shares = torch.zeros(2, len(codes), dtype=torch.float64, device=codes.device)
    for share, place, (_, counts) in zip(shares, inverse.split([len(p[0]), len(q[0])]), (p, q), strict=True):
        share[place] = counts.double() / counts.sum()
    middle = shares.mean(0)
    divergence = torch.special.xlogy(shares, shares / middle).sum() / 2
    return max(0.0, divergence.item() / math.log(2))  # rounding can make it negative


@lru_cache(maxsize=8)  # of two texts
def _count_training(data: Any, n: int) -> tuple[Tensor, Tensor]:
    return count_ngrams(data.ids["train"], n, len(data.symbols))


@lru_cache(maxsize=8)
def _compute_reference(data: Any, n: int, count: int) -> float:
    heldout = data.ids["heldout"]
    spread = heldout[:: len(heldout) // count][:count]  # of the whole text, not of its beginning
    return js_divergence(count_ngrams(spread, n, len(data.symbols)), _count_training(data, n))
