"""A small labeled run for tests: data and networks with classes, and a loss that reads more than the score."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wgangp import GradientPenalty
from wgangp.losses import Wasserstein
from wgangp.runs import Run
from wgangp.seeds import initialize, rng_for

CLASSES = 3


class LabeledData:
    """Points (B, *) around a mean per class, with their labels (B,)."""

    span, classes = (-4.0, 4.0), CLASSES

    def __init__(self, shape: tuple[int, ...] = (2,)) -> None:
        self.shape = shape

    def batch(self, k: int, size: int, seed: int, split: str = "train", purpose: str = "data") -> tuple[Tensor, Tensor]:
        rng = rng_for(seed, k, f"{purpose}/{split}")
        y = torch.randint(CLASSES, (size,), generator=rng)
        return torch.randn(size, *self.shape, generator=rng) + y.view(-1, *[1] * len(self.shape)), y


class LabeledGenerator(nn.Module):
    """G(z, y): the mean of the label is learned, so that the label changes the sample."""

    latent_dim, classes = 2, CLASSES

    def __init__(self, shape: tuple[int, ...] = (2,)) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, 4)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, torch.Size(shape).numel()))
        self.shape = shape

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.layers(torch.cat([z, self.embedding(y)], dim=1)).unflatten(1, self.shape)


class LabeledCritic(nn.Module):
    """D(x, y) -> scores (B,), or (scores (B,), class logits (B, classes)) if logits is set. The logits do not see y."""

    classes = CLASSES

    def __init__(self, shape: tuple[int, ...] = (2,)) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 8), nn.Tanh())
        self.embedding = nn.Embedding(CLASSES, 8)
        self.classifier = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor, y: Tensor, logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        features = self.features(x)
        score = (features * self.embedding(y)).sum(1)
        return (score, self.classifier(features)) if logits else score


class WithClassifier:
    """The Wasserstein loss plus the cross-entropy of class logits. It has no term "wasserstein"."""

    critic_options = {"logits": True}  # noqa: RUF012 - read only

    def critic(self, real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor], *y: Tensor) -> dict[str, Tensor]:
        entropy = F.cross_entropy(real[1], *y, reduction="none")
        return {"critic_loss": fake[0] - real[0] + entropy, "real_entropy": entropy}

    def generator(self, fake: tuple[Tensor, Tensor], *y: Tensor) -> dict[str, Tensor]:
        entropy = F.cross_entropy(fake[1], *y, reduction="none")
        return {"generator_loss": entropy - fake[0], "fake_entropy": entropy}


def labeled_run(
    shape: tuple[int, ...] = (2,), loss: Wasserstein | None = None, penalty: GradientPenalty | None = None
) -> Run:
    """Build a labeled run. Its weights are the same at every call."""
    generator = initialize(lambda: LabeledGenerator(shape), 0, "generator")
    critic = initialize(lambda: LabeledCritic(shape), 0, "critic")
    optimizers = [torch.optim.Adam(network.parameters(), lr=0.01, betas=(0.0, 0.9)) for network in (generator, critic)]
    return Run(
        generator, critic, *optimizers, LabeledData(shape), loss or Wasserstein(), penalty or GradientPenalty(), 0
    )
