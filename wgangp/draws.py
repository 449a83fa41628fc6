"""What an iteration draws. Everything is a function of the seed and the step, so that it can be drawn again."""

from typing import NamedTuple

from torch import Tensor

from wgangp.runs import Run
from wgangp.seeds import draw_latent, rng_for

__all__ = ["Draws", "draw_critic_batch", "draw_generator_batch", "draw_iteration"]


class Draws(NamedTuple):
    """What is drawn for one iteration.

    critic: per critic update, the result of `draw_critic_batch`.
    generator: the result of `draw_generator_batch`.
    """

    critic: list[tuple[Tensor | None, ...]]
    generator: tuple[Tensor, ...]


def draw_critic_batch(run: Run, k: int, size: int) -> tuple[Tensor | None, ...]:
    """Draw what critic update k takes.

    Returns:
        real samples (B, *), noise z (B, latent_dim), eps (the result of penalty.draw), and the labels of the real
        samples y (B,), if there are classes.
    """
    real, *y = run.data.batch(k, size, run.seed)
    device = next(run.critic.parameters()).device
    eps = run.penalty.draw(real, rng_for(run.seed, k, "eps", device))
    z, *_ = draw_latent(run.generator, size, run.seed, k, "critic", device)
    return real, z, eps, *y


def draw_generator_batch(run: Run, step: int, size: int) -> tuple[Tensor, ...]:
    """Draw what the generator update after a step takes: (z,), or (z, y), as `draw_latent`."""
    return draw_latent(run.generator, size, run.seed, step, "generator", next(run.critic.parameters()).device)


def draw_iteration(
    run: Run, step: int, critic_steps: int, batch_size: int, generator_batch_size: int | None = None
) -> Draws:
    """Draw again what the iteration drew whose generator update led to a step, on any number of ranks."""
    critic = [draw_critic_batch(run, k, batch_size) for k in range((step - 1) * critic_steps, step * critic_steps)]
    return Draws(critic, draw_generator_batch(run, step - 1, generator_batch_size or batch_size))
