"""The losses of critic and generator, as functions of the critic's outputs. Each returns named terms, one value per
sample.

A loss is a small class with two methods and one attribute:

    critic(real, fake, *y)     real, fake: what the critic returned for real and fake samples. The terms include
                               "critic_loss", which the critic minimizes; the others are logged beside it
    generator(fake, *y)        the terms include "generator_loss", which the generator minimizes
    critic_options             keyword arguments for the critic's forward, for a loss that needs more than scores

y is (labels,) if the networks have classes, and () otherwise. The two methods must not use the same name for a term:
both are logged.
"""

from typing import Any

from torch import Tensor

from wgangp.checks import check_scores

__all__ = ["Wasserstein", "merge_terms"]


class Wasserstein:
    """The Wasserstein loss: the critic maximizes E D(x) - E D(x~), the generator maximizes E D(x~). Paper: equation 2.

    x are real samples, x~ generated ones. Terms, one value per sample: wasserstein = D(x) - D(x~), critic_loss =
    -wasserstein (the penalty is added later), generator_loss = -D(x~).
    """

    critic_options: dict[str, Any] = {}  # noqa: RUF012 - read only

    def critic(self, real: Tensor, fake: Tensor, *y: Tensor) -> dict[str, Tensor]:
        """Return wasserstein and critic_loss, each (B,), from the scores of real and fake samples (B,) or (B, 1)."""
        real, fake = check_scores(real), check_scores(fake)
        return {"wasserstein": real - fake, "critic_loss": fake - real}

    def generator(self, fake: Tensor, *y: Tensor) -> dict[str, Tensor]:
        """Return generator_loss (B,), from the scores of fake samples (B,) or (B, 1)."""
        return {"generator_loss": -check_scores(fake)}


def merge_terms(critic_terms: dict[str, Any], generator_terms: dict[str, Any]) -> dict[str, Any]:
    """Return the terms of both networks in one dict. ValueError if a name is in both: one of them would be lost."""
    shared = sorted(critic_terms.keys() & generator_terms.keys())
    if shared:
        raise ValueError(
            f"the loss uses the same name for a term of the critic and of the generator: {', '.join(shared)}. Rename it"
            " in one of the two methods of the loss"
        )
    return critic_terms | generator_terms
