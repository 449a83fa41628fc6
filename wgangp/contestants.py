"""Who is timed against whom: what a careful user writes with torch's own parts, and the steps of this project."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms

from wgangp.compiled import gradients_of
from wgangp.data.images import Images
from wgangp.data.toy import gaussians8
from wgangp.losses import Wasserstein
from wgangp.networks import layers
from wgangp.penalty import GradientPenalty
from wgangp.step import critic_step, generator_step
from wgangp.train import update

__all__ = ["CRITIC_STEPS", "Case", "Ours", "Textbook"]

PICTURES = {"cpu": 2_000, "cuda": 50_000}  # of noise; on CUDA workers load them, and start anew with every epoch
CRITIC_STEPS = 5  # n_critic


@dataclass(frozen=True)
class Case:
    """A pair of networks, and the sizes that it is trained with."""

    generator: Callable[..., nn.Module]
    critic: Callable[..., nn.Module]
    shape: tuple[int, ...]
    batch: int
    width: int
    generator_batch: int | None = None
    betas: tuple[float, float] = (0.5, 0.9)
    dequantize: bool = False

    def players(self, device: torch.device) -> tuple[nn.Module, nn.Module]:
        """Generator and critic, the same ones every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pair = self.generator(self.shape, width=self.width), self.critic(self.shape, width=self.width)
        return pair[0].to(device), pair[1].to(device)

    def batch_of(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """real, z, eps of a critic step, always the same ones."""
        random, latent = torch.Generator().manual_seed(0), self.generator(self.shape, width=1).latent_dim
        real = torch.rand(self.batch, *self.shape, generator=random)
        z, eps = torch.randn(self.batch, latent, generator=random), torch.rand(self.batch, generator=random)
        return real.to(device), z.to(device), eps.to(device)


class Textbook:
    """What a careful user writes with torch's own parts; the same function of the same initial weights."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.generator, self.critic = (_textbook_layers(player) for player in case.players(device))
        self.optim_generator, self.optim_critic = (
            torch.optim.Adam(player.parameters(), lr=1e-4, betas=case.betas) for player in (self.generator, self.critic)
        )
        self.real, self.z, _ = case.batch_of(device)
        self.fake = self.generator(self.z).detach()
        self.batches = self._batches()

    def critic_loss(self, real: Tensor, fake: Tensor, eps: Tensor | None, weight: float = 10.0) -> Tensor:
        loss = self.critic(fake).mean() - self.critic(real).mean()
        if weight:
            eps = torch.rand(len(real), device=self.device) if eps is None else eps
            eps = eps.view(-1, *[1] * (real.ndim - 1))
            x_hat = (eps * real + (1 - eps) * fake).requires_grad_()
            (gradient,) = torch.autograd.grad(self.critic(x_hat).sum(), x_hat, create_graph=True)
            loss = loss + weight * ((gradient.flatten(1).norm(2, dim=1) - 1) ** 2).mean()
        return loss

    def gradients(self, real: Tensor, fake: Tensor, eps: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(self.critic_loss(real, fake, eps), list(self.critic.parameters())))

    def generator_gradients(self, z: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(-self.critic(self.generator(z)).mean(), list(self.generator.parameters())))

    def critic_step(self, weight: float = 10.0, real: Tensor | None = None, fake: Tensor | None = None) -> None:
        self.optim_critic.zero_grad()
        real, fake = self.real if real is None else real, self.fake if fake is None else fake
        self.critic_loss(real, fake, None, weight).backward()
        self.optim_critic.step()

    def unpenalised_step(self) -> None:
        self.critic_step(weight=0.0)

    def generator_step(self) -> None:
        self.optim_generator.zero_grad()
        z = torch.randn(self.case.generator_batch or self.case.batch, self.z.shape[1], device=self.device)
        (-self.critic(self.generator(z)).mean()).backward()
        self.optim_generator.step()

    def iteration(self) -> None:
        for _ in range(CRITIC_STEPS):
            real = next(self.batches)[0].to(self.device, non_blocking=True)
            z = torch.randn(len(real), self.z.shape[1], device=self.device)
            self.critic_step(real=real, fake=self.generator(z).detach())
        self.generator_step()

    def _batches(self) -> Iterator[Tensor]:
        workers = 4 if self.device.type == "cuda" else 0  # on a CPU they would run while other variants are timed
        loader = DataLoader(
            _dataset(self.case.shape, self.device),
            self.case.batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=workers > 0,
        )
        while True:
            yield from loader


class Ours:
    """The steps of this project, as wgangp.train takes them."""

    def __init__(
        self,
        case: Case,
        device: torch.device,
        precision: str = "fp32",
        autocast: bool = False,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.case, self.precision = case, precision
        self.generator, self.critic = case.players(device)
        if channels_last:
            for player in (self.generator, self.critic):
                player.to(memory_format=torch.channels_last)
        self.optim_generator, self.optim_critic = (
            torch.optim.Adam(player.parameters(), lr=1e-4, betas=case.betas, fused=True)
            for player in (self.generator, self.critic)
        )
        self.data = _data(case, device)
        self.real, self.z, self.eps = case.batch_of(device)
        self.fake = self.generator(self.z).detach()
        self.z_generator = torch.randn(case.generator_batch or case.batch, self.z.shape[1], device=device)
        self.penalty = GradientPenalty(autocast=autocast)
        how = {"precision": precision, "compile": compile}
        self.of = gradients_of(self.generator, self.critic, Wasserstein(), self.penalty, **how)
        self.unpenalised = gradients_of(self.generator, self.critic, Wasserstein(), GradientPenalty(weight=0.0), **how)
        self.step = 0

    def gradients(self, real: Tensor, fake: Tensor, eps: Tensor) -> list[Tensor]:
        return self.of["critic"](real, fake, eps)[1]

    def generator_gradients(self, z: Tensor) -> list[Tensor]:
        return self.of["generator"](z)[1]

    def critic_step(self, gradients: Any = None) -> None:
        gradients = gradients or self.of["critic"]
        critic_step(self.critic, self.optim_critic, self.real, self.fake, self.eps, gradients=gradients)

    def unpenalised_step(self) -> None:
        self.critic_step(self.unpenalised["critic"])

    def generator_step(self) -> None:
        gradients = self.of["generator"]
        generator_step(self.generator, self.critic, self.optim_generator, self.z_generator, gradients=gradients)

    def iteration(self) -> None:
        players = (self.generator, self.critic, self.optim_generator, self.optim_critic)
        sizes = {"batch_size": self.case.batch, "generator_batch_size": self.case.generator_batch}
        more = {"seed": 0, "critic_steps": CRITIC_STEPS, "gradients": self.of}
        update(self.step, *players, self.data, self.penalty, **sizes, **more)
        self.step += 1


class _Pictures(Dataset):
    """PIL pictures of noise, each through the usual transforms when it is asked for."""

    def __init__(self, shape: tuple[int, ...], count: int) -> None:
        pixels = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        self.pictures = [transforms.functional.to_pil_image(x) for x in pixels]
        half = (0.5,) * shape[0]
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(half, half)])

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Tensor]:
        return (self.transform(self.pictures[i]),)


def _dataset(shape: tuple[int, ...], device: torch.device) -> Dataset:
    if len(shape) > 1:
        return _Pictures(shape, PICTURES[device.type])
    return TensorDataset(gaussians8().batch(0, 100_000, seed=0)[0])


def _data(case: Case, device: torch.device) -> Any:
    """What wgangp.data makes of the same: points that are drawn, or uint8 pictures on the device."""
    if len(case.shape) == 1:
        return gaussians8(device)
    random, count = torch.Generator().manual_seed(0), PICTURES[device.type]
    pictures = {
        split: torch.randint(256, (count, *case.shape), dtype=torch.uint8, generator=random)
        for split in ("train", "heldout")
    }
    labels = {split: torch.zeros(count, dtype=torch.int64) for split in pictures}
    return Images(pictures, labels, case.dequantize, device, span=(-1.0, 1.0))


def _textbook_layers(module: nn.Module) -> nn.Module:
    """The same function of the same weights in torch's own layers: nn.ReLU, pooling after a convolution, and so on."""
    for name, child in module.named_children():
        if isinstance(child, layers.LeakyReLU):
            setattr(module, name, nn.LeakyReLU(child.slope) if child.slope else nn.ReLU())
        elif isinstance(child, (layers.ConvMeanPool, layers.UpsampleConv)):
            conv = layers.Conv2d(child.in_channels, child.out_channels, kernel=3)
            conv.load_state_dict(child.state_dict())
            pool = isinstance(child, layers.ConvMeanPool)
            pair = [conv, nn.AvgPool2d(2)] if pool else [nn.Upsample(scale_factor=2), conv]
            setattr(module, name, nn.Sequential(*pair).to(child.weight.device))
        else:
            _textbook_layers(child)
    return module
