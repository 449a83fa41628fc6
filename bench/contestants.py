"""The two implementations that are compared: the textbook one, in torch's own parts, and that of this project."""

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms

from wgangp.compiled import Computation, build_computation
from wgangp.data.images import Images
from wgangp.data.stream import batch_indices
from wgangp.data.toy import gaussians8
from wgangp.losses import ACGAN, Wasserstein
from wgangp.networks import layers
from wgangp.networks.resnet import ResNetCritic
from wgangp.penalty import GradientPenalty
from wgangp.runs import Run
from wgangp.step import descend
from wgangp.train import update

__all__ = ["CRITIC_STEPS", "LATENT_DIM", "AnySizeCritic", "Case", "LinearGenerator", "Ours", "Textbook"]

# The number of images in the data set of noise. On CUDA, worker processes load them. The workers start again in every
# epoch, so an epoch must be long.
IMAGES = {"cpu": 2_000, "cuda": 50_000}
CRITIC_STEPS = 5  # n_critic
LATENT_DIM = 8  # of a generator that does not have it as an argument


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
    classes: int = 0  # with classes the loss is that of an AC-GAN
    critic_steps: int = CRITIC_STEPS

    @property
    def loss(self) -> Any:
        return ACGAN(Wasserstein()) if self.classes else Wasserstein()

    def build_networks(self, device: torch.device) -> tuple[nn.Module, nn.Module]:
        """Build generator and critic. Their weights are the same at every call."""
        options = {"width": self.width} | ({"classes": self.classes} if self.classes else {})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pair = self.generator(self.shape, **options), self.critic(self.shape, **options)
        return pair[0].to(device), pair[1].to(device)

    def draw_batch(self, device: torch.device, size: int | None = None) -> tuple[Tensor, ...]:
        """Draw real samples (B, *), z (B, latent_dim), eps (B,) and labels (B,), if there are classes, of a step.

        They are the same at every call. B is size, or the size of a batch.
        """
        rng, size = torch.Generator().manual_seed(0), size or self.batch
        latent_dim = inspect.signature(self.generator).parameters.get("latent_dim")
        real = torch.rand(size, *self.shape, generator=rng)
        z = torch.randn(size, latent_dim.default if latent_dim else LATENT_DIM, generator=rng)
        eps = torch.rand(size, generator=rng)
        y = (torch.randint(self.classes, (size,), generator=rng),) if self.classes else ()
        return tuple(x.to(device) for x in (real, z, eps, *y))


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
        self.real, self.z, _, *self.y = case.draw_batch(device)
        self.fake = self.generator(self.z, *self.y).detach()
        self.batches = self._load_batches()

    def critic_loss(self, real: Tensor, fake: Tensor, eps: Tensor | None, *y: Tensor, weight: float = 10.0) -> Tensor:
        if y:
            score, logits = self.critic(real, *y, logits=True)
            loss = self.critic(fake, *y).mean() - score.mean() + F.cross_entropy(logits, *y)
        else:
            loss = self.critic(fake).mean() - self.critic(real).mean()
        if weight:
            eps = torch.rand(len(real), device=self.device) if eps is None else eps
            eps = eps.view(-1, *[1] * (real.ndim - 1))
            x_hat = (eps * real + (1 - eps) * fake).requires_grad_()
            (gradient,) = torch.autograd.grad(self.critic(x_hat, *y).sum(), x_hat, create_graph=True)
            loss = loss + weight * ((gradient.flatten(1).norm(2, dim=1) - 1) ** 2).mean()
        return loss

    def generator_loss(self, z: Tensor, *y: Tensor) -> Tensor:
        if not y:
            return -self.critic(self.generator(z)).mean()
        score, logits = self.critic(self.generator(z, *y), *y, logits=True)
        return 0.1 * F.cross_entropy(logits, *y) - score.mean()

    def critic_gradients(self, real: Tensor, fake: Tensor, eps: Tensor, *y: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(self.critic_loss(real, fake, eps, *y), list(self.critic.parameters())))

    def generator_gradients(self, z: Tensor, *y: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(self.generator_loss(z, *y), list(self.generator.parameters())))

    def critic_step(self) -> None:
        self._critic_step(self.real, self.fake, *self.y)

    def _critic_step(self, real: Tensor, fake: Tensor, *y: Tensor, weight: float = 10.0) -> None:
        self.optim_critic.zero_grad()
        self.critic_loss(real, fake, None, *y, weight=weight).backward()
        self.optim_critic.step()

    def unpenalized_step(self) -> None:
        self._critic_step(self.real, self.fake, *self.y, weight=0.0)

    def generator_step(self) -> None:
        self.optim_generator.zero_grad()
        size, classes = self.case.generator_batch or self.case.batch, self.case.classes
        y = (torch.randint(classes, (size,), device=self.device),) if classes else ()
        self.generator_loss(torch.randn(size, self.z.shape[1], device=self.device), *y).backward()
        self.optim_generator.step()

    def iteration(self) -> None:
        for _ in range(self.case.critic_steps):
            real, *y = (x.to(self.device, non_blocking=True) for x in next(self.batches))
            z = torch.randn(len(real), self.z.shape[1], device=self.device)
            self._critic_step(real, self.generator(z, *y).detach(), *y)
        self.generator_step()

    def _load_batches(self) -> Iterator[Tensor]:
        workers = 4 if self.device.type == "cuda" else 0  # on a CPU they would run while other variants are timed
        loader = DataLoader(
            _build_dataset(self.case, self.device),
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
        self.real, self.z, self.eps, *self.y = case.draw_batch(device)
        self.fake = self.generator(self.z, *self.y).detach()
        _, z, _, *y = case.draw_batch(device, case.generator_batch)
        self.latent = (z, *y)
        loss, penalty = case.loss, GradientPenalty(autocast=autocast)
        options = {"precision": precision, "compile": compile}
        self.computation = build_computation(self.generator, self.critic, loss, penalty, **options)
        self.unpenalized = build_computation(self.generator, self.critic, loss, GradientPenalty(weight=0.0), **options)
        optimizers = (self.optim_generator, self.optim_critic)
        self.run = Run(self.generator, self.critic, *optimizers, data, loss, penalty, seed=0)
        self.step = 0

    def critic_gradients(self, real: Tensor, fake: Tensor, eps: Tensor, *y: Tensor) -> list[Tensor]:
        return self.computation.critic_gradients(real, fake, eps, *y)[1]

    def generator_gradients(self, z: Tensor, *y: Tensor) -> list[Tensor]:
        return self.computation.generator_gradients(z, *y)[1]

    def critic_step(self) -> None:
        self._critic_step(self.computation)

    def unpenalized_step(self) -> None:
        self._critic_step(self.unpenalized)

    def _critic_step(self, computation: Computation) -> None:
        _, gradients = computation.critic_gradients(self.real, self.fake, self.eps, *self.y)
        descend(self.critic, gradients, self.optim_critic)

    def generator_step(self) -> None:
        _, gradients = self.computation.generator_gradients(*self.latent)
        descend(self.generator, gradients, self.optim_generator)

    def iteration(self) -> None:
        sizes = {"batch_size": self.case.batch, "generator_batch_size": self.case.generator_batch}
        update(self.step, self.run, self.computation, critic_steps=self.case.critic_steps, **sizes)
        self.step += 1


class _PILImages(Dataset):
    """PIL images of noise, with a label if there are classes. An image is transformed whenever it is read."""

    def __init__(self, shape: tuple[int, ...], count: int, classes: int) -> None:
        rng = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=rng)
        self.images = [transforms.functional.to_pil_image(x) for x in pixels]
        self.labels = torch.randint(classes, (count,), generator=rng) if classes else None
        half = (0.5,) * shape[0]
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(half, half)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        image = self.transform(self.images[i])
        return (image,) if self.labels is None else (image, self.labels[i])


class _OneHotText(Dataset):
    """Random text: symbols are kept as numbers, and become one-hot vectors (V, L) whenever a line is read."""

    def __init__(self, shape: tuple[int, ...], count: int) -> None:
        self.symbols = shape[0]
        self.lines = torch.randint(shape[0], (count, shape[1]), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, i: int) -> tuple[Tensor]:
        return (F.one_hot(self.lines[i], self.symbols).T.float(),)


class _TextBatches:
    """The data of this project for random text: one-hot vectors (B, V, L), which are made for a whole batch."""

    def __init__(self, shape: tuple[int, ...], count: int, device: torch.device) -> None:
        self.shape, self.span, self.device = shape, (0.0, 1.0), device
        self.lines = _OneHotText(shape, count).lines.to(device)

    def batch(self, k: int, size: int, seed: int) -> tuple[Tensor]:
        indices = batch_indices(k, size, len(self.lines), seed, "data", self.device)
        return (F.one_hot(self.lines[indices], self.shape[0]).transpose(1, 2).float(),)


def _build_dataset(case: Case, device: torch.device) -> Dataset:
    """Build the data set of the textbook implementation."""
    if len(case.shape) == 3:
        return _PILImages(case.shape, IMAGES[device.type], case.classes)
    if len(case.shape) == 2:
        return _OneHotText(case.shape, 50_000)
    (points,) = gaussians8().batch(0, 100_000, seed=0)
    return TensorDataset(points)


def _build_data(case: Case, device: torch.device) -> Any:
    """Build the data of this project: points that are drawn for every batch, or images or text on the device."""
    if len(case.shape) == 1:
        return gaussians8(device)
    if len(case.shape) == 2:
        return _TextBatches(case.shape, 50_000, device)
    rng, count = torch.Generator().manual_seed(0), IMAGES[device.type]
    pictures = {
        split: torch.randint(256, (count, *case.shape), dtype=torch.uint8, generator=rng)
        for split in ("train", "heldout")
    }
    labels = {split: torch.randint(max(case.classes, 1), (count,), generator=rng) for split in pictures}
    data = Images(pictures, labels, case.dequantize, device, span=(-1.0, 1.0))
    data.labeled = case.classes > 0
    return data


def _to_torch_layers(module: nn.Module) -> nn.Module:
    """Replace the layers of this project by torch's own, with the same weights and the same function, in place.

    A convolution with pooling becomes a convolution, then pooling.
    """
    for name, child in module.named_children():
        if isinstance(child, (layers.ConvMeanPool, layers.UpsampleConv)):
            bias = child.bias is not None
            conv = layers.Conv2d(child.in_channels, child.out_channels, kernel=child.kernel_size[0], bias=bias)
            conv.load_state_dict(child.state_dict())
            is_pool = isinstance(child, layers.ConvMeanPool)
            pair = [conv, nn.AvgPool2d(2)] if is_pool else [nn.Upsample(scale_factor=2), conv]
            setattr(module, name, nn.Sequential(*pair).to(child.weight.device))
        else:
            _to_torch_layers(child)
    return module


class LinearGenerator(nn.Module):
    """z (B, 8) -> (B, *shape), a linear map: the cheapest generator for the measurement of a critic."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.latent_dim = LATENT_DIM
        self.layers = nn.Sequential(nn.Linear(LATENT_DIM, math.prod(shape)), nn.Unflatten(1, shape))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class AnySizeCritic(ResNetCritic):
    """The ResNet critic for square images of any even size: its last layer sees the mean over the pixels."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__((3, 32, 32), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.activation(self.blocks(x)).mean(dim=(2, 3))).squeeze(1)
