"""Networks that are not ours: with buffers of every kind, random numbers, checkpoints and other people's layers."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class BatchNormGenerator(nn.Module):
    """z (B, 8) -> (B, 1, 8, 8), with batch norm as most published generators have it."""

    latent_dim = 8

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(8, 64),
            nn.BatchNorm1d(64),
            nn.ReLU(True),
            nn.Unflatten(1, (4, 4, 4)),
            nn.ConvTranspose2d(4, 4, 4, 2, 1, bias=False),
            norm(4),
            nn.ReLU(True),
            nn.Conv2d(4, 1, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.body(z)


class Critic(nn.Module):
    """x (B, 1, 8, 8) -> (B,). `wrap` changes each layer, `layer` comes after the first one."""

    def __init__(self, wrap=lambda m: m, layer=nn.Identity):
        super().__init__()
        self.body = nn.Sequential(wrap(nn.Conv2d(1, 4, 3, 2, 1)), layer(), nn.LeakyReLU(0.2), nn.Flatten())
        self.output = wrap(nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.body(x)).squeeze(1)


class Counter(nn.Module):
    """Two counters of forward passes, one changed in place and one replaced; the output depends on both."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        self.average = 0.9 * self.average + 0.1 * x.detach().square().mean()
        return x * (1 + 0.1 * self.count + self.average)


class PythonCounterCritic(Critic):
    """A critic that counts its calls in a Python number, which is a constant of a compiled graph."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return (1 + 0.01 * self.calls) * super().forward(x)


class CheckpointedCritic(Critic):
    def forward(self, x: Tensor) -> Tensor:
        return self.output(checkpoint(self.body, x, use_reentrant=False)).squeeze(1)


class BreakingCritic(Critic):
    """A critic that cannot be compiled into one graph."""

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return super().forward(x)
