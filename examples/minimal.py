"""WGAN-GP on 8 Gaussians in plain PyTorch: python examples/minimal.py [STEPS]. Only the penalty is from wgangp."""

import math
import sys

import torch
from torch import nn

from wgangp import check_per_sample, gradient_penalty

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 3000  # generator updates: about a minute on two cores
torch.manual_seed(0)


def draw_real(n: int) -> torch.Tensor:
    """n points (n, 2) near eight modes on a circle of radius 1.4."""
    angle = torch.randint(8, (n,)) * (math.pi / 4)
    return 1.4 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.02 * torch.randn(n, 2)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    hidden = [nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(128, outputs))


generator, critic = mlp(2, 2), mlp(2, 1)
optim_generator, optim_critic = (
    torch.optim.Adam(n.parameters(), lr=1e-3, betas=(0.0, 0.9)) for n in (generator, critic)
)
check_per_sample(critic, draw_real(4))  # ValueError if a score depends on other samples

for step in range(STEPS):
    for _ in range(5):  # five critic updates per generator update
        real, fake = draw_real(256), generator(torch.randn(256, 2)).detach()
        gap = critic(real).mean() - critic(fake).mean()  # the critic's estimate of the distance
        critic_loss = -gap + gradient_penalty(critic, real, fake, weight=10.0)
        optim_critic.zero_grad()
        critic_loss.backward()
        optim_critic.step()
    optim_generator.zero_grad()
    (-critic(generator(torch.randn(256, 2))).mean()).backward()
    optim_generator.step()
    if step % 500 == 0 or step == STEPS - 1:
        print(f"step {step}: gap {gap.item():.3f}, critic loss {critic_loss.item():.3f}")

samples = generator(torch.randn(10_000, 2)).detach()
angles = torch.arange(8) * (math.pi / 4)
distance, nearest = torch.cdist(samples, 1.4 * torch.stack([angles.cos(), angles.sin()], dim=1)).min(dim=1)
print(f"modes with a sample within 0.06: {len(nearest[distance < 0.06].unique())} of 8")
