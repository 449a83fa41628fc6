"""Is what the generator makes any good? For mixtures of Gaussians: which modes it found, and how well it hits them."""

import torch
from torch import Tensor

__all__ = ["mode_coverage"]


def mode_coverage(x: Tensor, centres: Tensor, sd: float) -> dict[str, float]:
    """How many modes of a Gaussian mixture samples x (N, 2) cover.

    A sample is of high quality within 3 sd of the nearest centre (2-D Gaussians have 98.9 % of their mass there); a
    mode is covered when at least one high-quality sample is its own. The definition is VEEGAN's, where N is 2,500; the
    number of modes grows with N, so give it with the number.

    Returns:
        modes: covered ones, 0 to len(centres); high_quality: the share of such samples, 0 to 1.
    """
    distance, nearest = torch.cdist(x, centres).min(dim=1)
    good = distance < 3 * sd
    return {"modes": len(nearest[good].unique()), "high_quality": good.double().mean().item()}
