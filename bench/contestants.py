"""The two implementations that are compared: the textbook one, in torch's own parts, and that of this project."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms

from wgangp.compiled import Computation, build_computation
from wgangp.data.images import Images
from wgangp.data.toy import gaussians8
from wgangp.losses import Wasserstein
from wgangp.networks import layers
from wgangp.penalty import GradientPenalty
from wgangp.runs import Run
from wgangp.step import descend
from wgangp.train import update

__all__ = ["CRITIC_STEPS", "Case", "Ours", "Textbook"]

# The number of images in the data set of noise. On CUDA, worker processes load them. The workers start again in every
# epoch, so an epoch must be long.
IMAGES = {"cpu": 2_000, "cuda": 50_000}
CRITIC_STEPS = 5  # n_critic


@dataclass(frozen=True)
class Case:
    """A pair of networks, and the sizes that it is trained with."""

    generator: Callable[..., nn.Module]
    critic: Callable[..., nn.Module]
    shape: tuple[int, ...]
    batch: int
    width: int
    generator_batch: int | None = None  # None: batch
    betas: tuple[float, float] = (0.5, 0.9)
    dequantize: bool = False

    def build_networks(self, device: torch.device) -> tuple[nn.Module, nn.Module]:
        """Build generator and critic. Their weights are the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pair = self.generator(self.shape, width=self.width), self.critic(self.shape, width=self.width)
        return pair[0].to(device), pair[1].to(device)

    def draw_batch(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Draw real samples (B, *), z (B, latent_dim) and eps (B,) of a critic step, the same ones at every call."""
        rng, latent_dim = torch.Generator().manual_seed(0), self.generator(self.shape, width=1).latent_dim
        real = torch.rand(self.batch, *self.shape, generator=rng)
        z, eps = torch.randn(self.batch, latent_dim, generator=rng), torch.rand(self.batch, generator=rng)
        return real.to(device), z.to(device), eps.to(device)


class Textbook:
    """The implementation that a careful user writes with torch's own parts.

    It computes the same function as `Ours`, from the same initial weights.
    """

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.generator, self.critic = (_to_torch_layers(network) for network in case.build_networks(device))
        self.optim_generator, self.optim_critic = (
            torch.optim.Adam(network.parameters(), lr=1e-4, betas=case.betas)
            for network in (self.generator, self.critic)
        )
        self.real, self.z, _ = case.draw_batch(device)
        self.fake = self.generator(self.z).detach()
        self.batches = self._load_batches()

    def critic_loss(self, real: Tensor, fake: Tensor, eps: Tensor | None, weight: float = 10.0) -> Tensor:
        loss = self.critic(fake).mean() - self.critic(real).mean()
        if weight:
            eps = torch.rand(len(real), device=self.device) if eps is None else eps
            eps = eps.view(-1, *[1] * (real.ndim - 1))
            x_hat = (eps * real + (1 - eps) * fake).requires_grad_()
            (gradient,) = torch.autograd.grad(self.critic(x_hat).sum(), x_hat, create_graph=True)
            loss = loss + weight * ((gradient.flatten(1).norm(2, dim=1) - 1) ** 2).mean()
        return loss

    def critic_gradients(self, real: Tensor, fake: Tensor, eps: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(self.critic_loss(real, fake, eps), list(self.critic.parameters())))

    def generator_gradients(self, z: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(-self.critic(self.generator(z)).mean(), list(self.generator.parameters())))

    def critic_step(self, weight: float = 10.0, real: Tensor | None = None, fake: Tensor | None = None) -> None:
        self.optim_critic.zero_grad()
        real, fake = self.real if real is None else real, self.fake if fake is None else fake
        self.critic_loss(real, fake, None, weight).backward()
        self.optim_critic.step()

    def unpenalized_step(self) -> None:
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

    def _load_batches(self) -> Iterator[Tensor]:
        workers = 4 if self.device.type == "cuda" else 0  # on a CPU they would run while other variants are timed
        loader = DataLoader(
            _build_dataset(self.case.shape, self.device),
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
    """The implementation of this project: the steps that `wgangp.train` takes."""

    def __init__(
        self,
        case: Case,
        device: torch.device,
        precision: str = "fp32",
        autocast: bool = False,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.case = case
        self.generator, self.critic = case.build_networks(device)
        if channels_last:
            for network in (self.generator, self.critic):
                network.to(memory_format=torch.channels_last)
        self.optim_generator, self.optim_critic = (
            torch.optim.Adam(network.parameters(), lr=1e-4, betas=case.betas, fused=True)
            for network in (self.generator, self.critic)
        )
        data = _build_data(case, device)
        self.real, self.z, self.eps = case.draw_batch(device)
        self.fake = self.generator(self.z).detach()
        self.z_generator = torch.randn(case.generator_batch or case.batch, self.z.shape[1], device=device)
        loss, penalty = Wasserstein(), GradientPenalty(autocast=autocast)
        options = {"precision": precision, "compile": compile}
        self.computation = build_computation(self.generator, self.critic, loss, penalty, **options)
        self.unpenalized = build_computation(self.generator, self.critic, loss, GradientPenalty(weight=0.0), **options)
        optimizers = (self.optim_generator, self.optim_critic)
        self.run = Run(self.generator, self.critic, *optimizers, data, loss, penalty, seed=0)
        self.step = 0

    def critic_gradients(self, real: Tensor, fake: Tensor, eps: Tensor) -> list[Tensor]:
        return self.computation.critic_gradients(real, fake, eps)[1]

    def generator_gradients(self, z: Tensor) -> list[Tensor]:
        return self.computation.generator_gradients(z)[1]

    def critic_step(self) -> None:
        self._critic_step(self.computation)

    def unpenalized_step(self) -> None:
        self._critic_step(self.unpenalized)

    def _critic_step(self, computation: Computation) -> None:
        _, gradients = computation.critic_gradients(self.real, self.fake, self.eps)
        descend(self.critic, gradients, self.optim_critic)

    def generator_step(self) -> None:
        _, gradients = self.computation.generator_gradients(self.z_generator)
        descend(self.generator, gradients, self.optim_generator)

    def iteration(self) -> None:
        sizes = {"batch_size": self.case.batch, "generator_batch_size": self.case.generator_batch}
        update(self.step, self.run, self.computation, critic_steps=CRITIC_STEPS, **sizes)
        self.step += 1


class _PILImages(Dataset):
    """PIL images of noise. The usual transforms are applied to an image whenever it is read."""

    def __init__(self, shape: tuple[int, ...], count: int) -> None:
        pixels = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        self.images = [transforms.functional.to_pil_image(x) for x in pixels]
        half = (0.5,) * shape[0]
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(half, half)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor]:
        return (self.transform(self.images[i]),)


def _build_dataset(shape: tuple[int, ...], device: torch.device) -> Dataset:
    """Build the data set of the textbook implementation."""
    if len(shape) > 1:
        return _PILImages(shape, IMAGES[device.type])
    (points,) = gaussians8().batch(0, 100_000, seed=0)
    return TensorDataset(points)


def _build_data(case: Case, device: torch.device) -> Any:
    """Build the data of this project: points that are drawn for every batch, or uint8 images on the device."""
    if len(case.shape) == 1:
        return gaussians8(device)
    rng, count = torch.Generator().manual_seed(0), IMAGES[device.type]
    pictures = {
        split: torch.randint(256, (count, *case.shape), dtype=torch.uint8, generator=rng)
        for split in ("train", "heldout")
    }
    labels = {split: torch.zeros(count, dtype=torch.int64) for split in pictures}
    return Images(pictures, labels, case.dequantize, device, span=(-1.0, 1.0))


def _to_torch_layers(module: nn.Module) -> nn.Module:
    """Replace the layers of this project by torch's own, with the same weights and the same function, in place.

    Activations become nn.ReLU and nn.LeakyReLU; a convolution with pooling becomes a convolution, then pooling.
    """
    for name, child in module.named_children():
        if isinstance(child, layers.LeakyReLU):
            setattr(module, name, nn.LeakyReLU(child.slope) if child.slope else nn.ReLU())
        elif isinstance(child, (layers.ConvMeanPool, layers.UpsampleConv)):
            conv = layers.Conv2d(child.in_channels, child.out_channels, kernel=3)
            conv.load_state_dict(child.state_dict())
            is_pool = isinstance(child, layers.ConvMeanPool)
            pair = [conv, nn.AvgPool2d(2)] if is_pool else [nn.Upsample(scale_factor=2), conv]
            setattr(module, name, nn.Sequential(*pair).to(child.weight.device))
        else:
            _to_torch_layers(child)
    return module
