"""WGAN-GP: the penalty for a critic of your own, and Algorithm 1 to train with it."""

from wgangp.gradients import (
    NormalizedGradientDescent,
    clip_by_norm_,
    gradient_norm,
    gradient_norm_penalty,
    total_norm,
)
from wgangp.lipschitz import corrected_wasserstein, expected_slope, slope_statistics
from wgangp.penalty import GradientPenalty, check_per_sample, clip_weights_, gradient_penalty, interpolate
from wgangp.step import critic_step, generator_step

__all__ = [
    "GradientPenalty",
    "NormalizedGradientDescent",
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
    "slope_statistics",
    "total_norm",
]
