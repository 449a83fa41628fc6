"""WGAN-GP: the gradient penalty for your own critic, and Algorithm 1 to train with it."""

from wgangp.box import lipschitz_on_box
from wgangp.certify import certified_lipschitz
from wgangp.config import load_run
from wgangp.gradients import clip_by_norm_, gradient_norm, gradient_norm_penalty, total_norm
from wgangp.lipschitz import (
    corrected_wasserstein,
    expected_slope,
    largest_quotient,
    proved_wasserstein,
    slope_statistics,
    steepest_slope,
)
from wgangp.optim import NormalizedGradientDescent
from wgangp.penalty import GradientPenalty, clip_weights_, gradient_penalty, interpolate
from wgangp.per_sample import check_per_sample
from wgangp.step import critic_step, generator_step
from wgangp.transport import wasserstein1
from wgangp.version import __version__ as __version__

__all__ = [
    "GradientPenalty",
    "NormalizedGradientDescent",
    "certified_lipschitz",
    "check_per_sample",
    "clip_by_norm_",
    "clip_weights_",
    "corrected_wasserstein",
    "critic_step",
    "expected_slope",
    "generator_step",
    "gradient_norm",
    "gradient_norm_penalty",
    "gradient_penalty",
    "interpolate",
    "largest_quotient",
    "lipschitz_on_box",
    "load_run",
    "proved_wasserstein",
    "slope_statistics",
    "steepest_slope",
    "total_norm",
    "wasserstein1",
]
