"""How other implementations of WGAN-GP train: their loops, with everything that costs time in them.

They are written anew from what the published code does. No code was copied.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench import peer_networks
from bench.contestants import CRITIC_STEPS, IMAGES

__all__ = ["PEERS", "Loop", "Peer", "draw_batch", "draw_pixels"]


@dataclass(frozen=True)
class Peer:
    """A public implementation.

    build                width -> (generator, critic)
    loop                 how it trains them
    shape, span          of its images
    batch, lr, betas     as published there
    width                as published there; a CPU gets it divided by cpu_division
    """

    source: str
    build: Callable[[int], tuple[nn.Module, nn.Module]]
    loop: "type[Loop]"
    shape: tuple[int, ...]
    batch: int
    lr: float
    betas: tuple[float, float]
    width: int = 0
    cpu_division: int = 1
    span: tuple[float, float] = (-1.0, 1.0)
    flat: bool = False  # an image is a row of numbers
    # With channels last, compiled steps of both ResNets are wrong in bf16 on a CPU (torch 2.14.1): NaN gradients in the
    # generator step of collections (two blocks with nearest upsampling and a shortcut are enough) and in the critic
    # step of mimicry. The check at the start refuses them.
    # The generator step of caogang MNIST fails on a GPU (torch 2.11): the compiler expects a gradient of a convolution
    # in another memory format than it has. On a CPU it works.
    bf16_channels_last: bool = True


class Loop:
    """What all the loops have in common: networks, Adam with its default options, one fixed batch.

    All of them call autograd.grad with retain_graph=True and ones as grad_outputs. Neither takes time: create_graph
    retains the graph anyway. All of them take one forward pass for real samples, one for fake ones, and one for x^.
    """

    def __init__(self, peer: Peer, device: torch.device, networks: tuple[nn.Module, nn.Module]) -> None:
        self.peer, self.device = peer, device
        self.generator, self.critic = networks
        self.optim_generator, self.optim_critic = (
            torch.optim.Adam(network.parameters(), lr=peer.lr, betas=peer.betas) for network in networks
        )
        self.real, self.fake, self.eps = draw_batch(peer, device)
        self.batches = self.load_batches()

    def penalty(self, real: Tensor, fake: Tensor, eps: Tensor | None) -> Tensor:
        eps = self.draw_eps(len(real)) if eps is None else eps
        eps = eps.view(-1, *[1] * (real.ndim - 1))
        x_hat = (eps * real.detach() + (1 - eps) * fake.detach()).requires_grad_()
        score = self.critic(x_hat)
        options = {"grad_outputs": torch.ones_like(score), "create_graph": True, "retain_graph": True}
        (gradient,) = torch.autograd.grad(score, x_hat, **options)
        return 10 * ((gradient.flatten(1).norm(2, dim=1) - 1) ** 2).mean()

    def draw_eps(self, count: int) -> Tensor:
        return torch.rand(count, 1).to(self.device)  # on the CPU, then copied

    def backward(self, real: Tensor, fake: Tensor, eps: Tensor | None = None) -> None:
        """Compute the critic's gradients."""
        loss = self.critic(fake).mean() - self.critic(real).mean() + self.penalty(real, fake, eps)
        loss.backward()

    def critic_gradients(self) -> list[Tensor]:
        self.optim_critic.zero_grad()
        self.backward(self.real, self.fake, self.eps)
        return [p.grad.clone() for p in self.critic.parameters()]

    def critic_step(self) -> None:
        self.update_critic(self.real, self.fake)

    def update_critic(self, real: Tensor, fake: Tensor) -> None:
        self.optim_critic.zero_grad()
        self.backward(real, fake)
        self.optim_critic.step()

    def update_generator(self, z: Tensor) -> float:
        """Gradients of the critic's weights are computed, too, and are thrown away by the next zero_grad."""
        self.optim_generator.zero_grad()
        loss = -self.critic(self.generator(z)).mean()
        loss.backward()
        self.optim_generator.step()
        return loss.item()

    def draw_noise(self) -> Tensor:
        return torch.randn(self.peer.batch, self.generator.latent_dim).to(self.device)

    def load_batches(self) -> Iterator[Tensor]:
        workers = 4 if self.device.type == "cuda" else 0  # on a CPU they would run while other variants are timed
        options = {"shuffle": True, "drop_last": True, "num_workers": workers, "persistent_workers": workers > 0}
        loader = DataLoader(
            _PILImages(self.peer, IMAGES[self.device.type], self.transform()), self.peer.batch, **options
        )
        while True:
            yield from loader

    def transform(self) -> Any:
        half = (0.5,) * self.peer.shape[0]
        return transforms.Compose([transforms.ToTensor(), transforms.Normalize(half, half)])


class PyTorchGAN(Loop):
    """eriklindernoren/PyTorch-GAN, implementations/wgan_gp/wgan_gp.py.

    Fake samples keep their graph in the critic update: its backward pass goes on through the generator, and that
    gradient is thrown away. Random numbers come from numpy. Images are resized to the size that they have. The
    generator is updated after the first critic update, with the same noise.
    """

    def iteration(self) -> None:
        for k in range(CRITIC_STEPS):
            real = next(self.batches).to(self.device)
            z = torch.tensor(np.random.normal(0, 1, (len(real), 100)), dtype=torch.float32).to(self.device)
            self.update_critic(real, self.generator(z))
            self.optim_generator.zero_grad()
            if k == 0:
                self.update_generator(z)

    def draw_eps(self, count: int) -> Tensor:
        return torch.tensor(np.random.random((count, 1, 1, 1)), dtype=torch.float32).to(self.device)

    def transform(self) -> Any:
        return transforms.Compose([transforms.Resize(28), super().transform()])


class Caogang(Loop):
    """caogang/wgan-gp, gan_mnist.py and gan_cifar10.py.

    There are three backward passes per critic update, and no graph for fake samples. The generator update does not
    compute gradients of the critic's weights. Three numbers are read per iteration.
    """

    def backward(self, real: Tensor, fake: Tensor, eps: Tensor | None = None) -> None:
        real_score = self.critic(real).mean()
        (-real_score).backward()
        fake_score = self.critic(fake).mean()
        fake_score.backward()
        penalty = self.penalty(real, fake, eps)
        penalty.backward()
        self.terms = fake_score - real_score + penalty, real_score - fake_score

    def iteration(self) -> None:
        self.critic.requires_grad_(True)
        for _ in range(CRITIC_STEPS):
            real = next(self.batches).to(self.device)
            with torch.no_grad():
                fake = self.generator(self.draw_noise())
            self.update_critic(real, fake)
        self.critic.requires_grad_(False)
        self.update_generator(self.draw_noise())
        for term in self.terms:
            term.item()
        self.critic.requires_grad_(True)

    def load_batches(self) -> Iterator[Tensor]:
        """Batches are slices of one array in memory; for CIFAR-10, each image becomes a PIL-like array and a tensor."""
        images, transform = draw_pixels(self.peer, IMAGES[self.device.type]).numpy(), self.transform()
        while True:
            np.random.shuffle(images)
            for i in range(0, len(images) - self.peer.batch + 1, self.peer.batch):
                batch = images[i : i + self.peer.batch]
                if self.peer.flat:
                    yield torch.tensor(batch.reshape(self.peer.batch, -1) / np.float32(255))
                else:
                    yield torch.stack([transform(image.transpose(1, 2, 0)) for image in batch])


class Collections(Loop):
    """w86763777/pytorch-gan-collections, as its later versions do it.

    There is no graph for fake samples. The generator update does not compute gradients of the critic's weights. One
    number is read per critic update.
    """

    def iteration(self) -> None:
        for _ in range(CRITIC_STEPS):
            with torch.no_grad():
                fake = self.generator(self.draw_noise())
            self.update_critic(next(self.batches).to(self.device), fake)
        self.critic.requires_grad_(False)
        self.update_generator(self.draw_noise())
        self.critic.requires_grad_(True)

    def backward(self, real: Tensor, fake: Tensor, eps: Tensor | None = None) -> None:
        difference = self.critic(fake).mean() - self.critic(real).mean()
        (difference + self.penalty(real, fake, eps)).backward()
        difference.item()


class Mimicry(Loop):
    """kwotsin/mimicry, torch_mimicry/nets/wgan_gp/wgan_gp_base.py and torch_mimicry/training/trainer.py.

    Fake samples are made with a graph that is not used. Two probabilities are read per critic update. The generator is
    updated before the first critic update.
    """

    def iteration(self) -> None:
        for k in range(CRITIC_STEPS):
            real = next(self.batches).to(self.device)
            if k == 0:
                self.update_generator(self.draw_noise())
            self.update_critic(real, self.generator(self.draw_noise()).detach())

    def backward(self, real: Tensor, fake: Tensor, eps: Tensor | None = None) -> None:
        real_score, fake_score = self.critic(real), self.critic(fake)
        (fake_score.mean() - real_score.mean() + self.penalty(real, fake, eps)).backward()
        for score in (real_score, fake_score):
            torch.sigmoid(score).mean().item()


class _PILImages(Dataset):
    """PIL images of noise, transformed whenever they are read."""

    def __init__(self, peer: Peer, count: int, transform: Callable[[Any], Tensor]) -> None:
        self.images = [transforms.functional.to_pil_image(x) for x in draw_pixels(peer, count)]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.transform(self.images[i])


PEERS = {
    "PyTorch-GAN MLP": Peer(
        "eriklindernoren/PyTorch-GAN",
        peer_networks.build_pytorch_gan,
        PyTorchGAN,
        (1, 28, 28),
        batch=64,
        lr=2e-4,
        betas=(0.5, 0.999),
    ),
    "caogang MNIST": Peer(
        "caogang/wgan-gp",
        peer_networks.build_caogang_mnist,
        Caogang,
        (1, 28, 28),
        batch=50,
        lr=1e-4,
        betas=(0.5, 0.9),
        width=64,
        span=(0.0, 1.0),
        flat=True,
        bf16_channels_last=False,
    ),
    "caogang CIFAR": Peer(
        "caogang/wgan-gp",
        peer_networks.build_caogang_cifar,
        Caogang,
        (3, 32, 32),
        batch=64,
        lr=1e-4,
        betas=(0.5, 0.9),
        width=128,
    ),
    "collections ResNet": Peer(
        "w86763777/pytorch-gan-collections",
        peer_networks.build_collections,
        Collections,
        (3, 32, 32),
        batch=64,
        lr=2e-4,
        betas=(0.0, 0.9),
        width=128,
        cpu_division=4,
        bf16_channels_last=False,
    ),
    "mimicry ResNet": Peer(
        "kwotsin/mimicry",
        peer_networks.build_mimicry,
        Mimicry,
        (3, 32, 32),
        batch=64,
        lr=2e-4,
        betas=(0.0, 0.9),
        width=128,
        cpu_division=4,
        bf16_channels_last=False,
    ),
}


def draw_batch(peer: Peer, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Draw real and fake samples and eps (B,) of a critic step, the same ones at every call."""
    rng = torch.Generator().manual_seed(0)
    low, high = peer.span
    shape = (int(np.prod(peer.shape)),) if peer.flat else peer.shape
    real, fake = (low + (high - low) * torch.rand(peer.batch, *shape, generator=rng) for _ in range(2))
    return real.to(device), fake.to(device), torch.rand(peer.batch, generator=rng).to(device)


def draw_pixels(peer: Peer, count: int) -> Tensor:
    return torch.randint(256, (count, *peer.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
