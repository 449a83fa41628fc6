"""What critic and generator minimise. A loss is two functions of scores; each gives one value a sample.

Another loss is another small class with the same two methods (the non-saturating one: softplus(-real) + softplus(fake)
for the critic, softplus(-fake) for the generator).
"""

from torch import Tensor

__all__ = ["Wasserstein"]


class Wasserstein:
    """The critic raises D(x) - D(x~), the generator raises D(x~). Paper: equation 2."""

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """D(x~) - D(x) (B,), from the scores of real and fake samples (B,)."""
        return fake - real

    def generator(self, fake: Tensor) -> Tensor:
        """-D(x~) (B,), from the scores of fake samples (B,)."""
        return -fake
