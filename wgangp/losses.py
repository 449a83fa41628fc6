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

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from wgangp.checks import check_scores

__all__ = ["ACGAN", "LeastSquares", "NonSaturating", "Wasserstein", "merge_terms"]


class Wasserstein:
    """The Wasserstein loss: the critic maximizes E D(x) - E D(x~), the generator maximizes E D(x~). Paper: equation 2.

    x are real samples, x~ generated ones. Terms, one value per sample: wasserstein = D(x) - D(x~), critic_loss =
    -wasserstein (the penalty is added later), generator_loss = -D(x~).
    """

    critic_options: ClassVar[dict[str, Any]] = {}

    def critic(self, real: Tensor, fake: Tensor, *y: Tensor) -> dict[str, Tensor]:
        """Return wasserstein and critic_loss, each (B,), from scores (B,) or (B, 1)."""
        real, fake = check_scores(real), check_scores(fake)
        return {"wasserstein": real - fake, "critic_loss": fake - real}

    def generator(self, fake: Tensor, *y: Tensor) -> dict[str, Tensor]:
        """Return generator_loss (B,), from scores (B,) or (B, 1)."""
        return {"generator_loss": -check_scores(fake)}


class NonSaturating:
    """The loss of Goodfellow et al. 2014 in its non-saturating form. A score s means the probability sigmoid(s).

    Terms, one value per sample:

        critic_loss    = -(log sigmoid(D(x)) + log(1 - sigmoid(D(x~)))) / 2
        generator_loss = -log sigmoid(D(x~))

    Paper: released code in "dcgan" mode, with the factor 1 / 2 (gan_mnist.py, lines 163-188).
    """

    critic_options: ClassVar[dict[str, Any]] = {}

    def critic(self, real: Tensor, fake: Tensor, *y: Tensor) -> dict[str, Tensor]:
        """Return critic_loss (B,), from scores (B,) or (B, 1)."""
        return {"critic_loss": (F.softplus(-check_scores(real)) + F.softplus(check_scores(fake))) / 2}

    def generator(self, fake: Tensor, *y: Tensor) -> dict[str, Tensor]:
        """Return generator_loss (B,), from scores (B,) or (B, 1)."""
        return {"generator_loss": F.softplus(-check_scores(fake))}


class LeastSquares:
    """The least-squares loss of Mao et al. 2017: the critic's target is 1 for real samples and 0 for fake ones.

    Terms, one value per sample:

        critic_loss    = ((D(x) - 1)^2 + D(x~)^2) / 2
        generator_loss = (D(x~) - 1)^2

    Paper: released code in "lsgan" mode (gan_64x64.py, lines 482-518), in which only the critic has the factor 1 / 2.
    """

    critic_options: ClassVar[dict[str, Any]] = {}

    def critic(self, real: Tensor, fake: Tensor, *y: Tensor) -> dict[str, Tensor]:
        """Return critic_loss (B,), from scores (B,) or (B, 1)."""
        return {"critic_loss": ((check_scores(real) - 1).square() + check_scores(fake).square()) / 2}

    def generator(self, fake: Tensor, *y: Tensor) -> dict[str, Tensor]:
        """Return generator_loss (B,), from scores (B,) or (B, 1)."""
        return {"generator_loss": (check_scores(fake) - 1).square()}


class ACGAN:
    """Another loss and a classifier of the labels: AC-GAN, Odena et al. 2017. The networks have classes.

    The critic returns (scores (B,), logits (B, classes)) from one pass. Terms, one value per sample, besides those of
    the other loss:

        class_loss_real = CE(logits(x), y)      critic_loss    gets critic_weight * class_loss_real
        class_loss_fake = CE(logits(x~), y)     generator_loss gets generator_weight * class_loss_fake
        accuracy_real, accuracy_fake: 1 if the largest logit is that of the label, else 0. Both are of the critic's step

    Args:
        loss: the other loss.
        critic_weight, generator_weight: weights of the classifier in the losses of both networks, >= 0.

    Paper: released gan_cifar_resnet.py (ACGAN_SCALE 1, ACGAN_SCALE_G 0.1). The critic learns from real samples alone.
    """

    critic_options: ClassVar[dict[str, Any]] = {"logits": True}

    def __init__(self, loss: Any, critic_weight: float = 1.0, generator_weight: float = 0.1) -> None:
        for name, weight in (("critic_weight", critic_weight), ("generator_weight", generator_weight)):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name} = {weight}: must be >= 0 and finite")
        self.loss, self.critic_weight, self.generator_weight = loss, critic_weight, generator_weight

    def critic(self, real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor], *y: Tensor) -> dict[str, Tensor]:
        """Return the critic's terms, each (B,), from (scores, logits) of both kinds of samples and labels (B,)."""
        (labels,) = _check_labels(y)
        terms = self.loss.critic(real[0], fake[0], labels)
        entropy = F.cross_entropy(real[1], labels, reduction="none")
        accuracy = {
            f"accuracy_{kind}": (logits.argmax(1) == labels).to(entropy.dtype)
            for kind, logits in (("real", real[1]), ("fake", fake[1]))
        }
        loss = terms.pop("critic_loss") + self.critic_weight * entropy
        return terms | {"class_loss_real": entropy} | accuracy | {"critic_loss": loss}

    def generator(self, fake: tuple[Tensor, Tensor], *y: Tensor) -> dict[str, Tensor]:
        """Return the generator's terms, each (B,), from (scores, logits) and labels (B,)."""
        (labels,) = _check_labels(y)
        terms = self.loss.generator(fake[0], labels)
        entropy = F.cross_entropy(fake[1], labels, reduction="none")
        loss = terms.pop("generator_loss") + self.generator_weight * entropy
        return terms | {"class_loss_fake": entropy, "generator_loss": loss}


def _check_labels(y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if len(y) != 1:
        raise ValueError("loss=acgan needs networks with classes: choose networks= and data= that have labels")
    return y


def merge_terms(critic_terms: dict[str, Any], generator_terms: dict[str, Any]) -> dict[str, Any]:
    """Return the terms of both networks in one dict. ValueError if a name is in both: one of them would be lost."""
    shared = sorted(critic_terms.keys() & generator_terms.keys())
    if shared:
        raise ValueError(
            f"the loss uses the same name for a term of the critic and of the generator: {', '.join(shared)}. Rename it"
            " in one of the two methods of the loss"
        )
    return critic_terms | generator_terms
