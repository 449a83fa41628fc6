"""How fast a step is, against what a careful user writes and against the arithmetic that it needs.

All variants of a case live in one process and are timed in turn, round by round, so that a machine that slows down
slows all of them; what is shown is the median over rounds, and ratios are medians of the rounds' ratios. Nothing is
timed before its gradients were compared with float64.
"""

import copy
import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wgangp.compiled import TOLERANCE, gradients_of
from wgangp.contestants import CRITIC_STEPS, Case, Ours, Textbook
from wgangp.floor import gflop_of, products_of, seconds_of
from wgangp.gradients import total_norm
from wgangp.losses import Wasserstein
from wgangp.networks.dcgan import CIFARCritic, CIFARGenerator, MNISTCritic, MNISTGenerator
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.networks.resnet import ResNetCritic, ResNetGenerator
from wgangp.penalty import GradientPenalty
from wgangp.precision import products

__all__ = ["CASES", "VARIANTS", "growth", "measure"]

CASES = {  # widths as released; the CIFAR pairs at a quarter of it where budget=cpu
    "toy MLP": Case(MLPGenerator, MLPCritic, (2,), 256, 512),
    "MNIST DCGAN": Case(MNISTGenerator, MNISTCritic, (1, 28, 28), 50, 64),
    "CIFAR DCGAN": Case(CIFARGenerator, CIFARCritic, (3, 32, 32), 64, 128),
    "CIFAR ResNet": Case(ResNetGenerator, ResNetCritic, (3, 32, 32), 64, 128, 128, (0.0, 0.9), True),
}
VARIANTS: dict[str, dict[str, Any]] = {  # beside the textbook
    "eager": {},
    "eager, channels last": {"channels_last": True},
    "compiled": {"compile": True},
    "compiled, channels last": {"compile": True, "channels_last": True},
    "tf32, channels last": {"compile": True, "precision": "tf32", "channels_last": True},
    "bf16, penalty in fp32": {"compile": True, "precision": "bf16"},
    "bf16": {"compile": True, "precision": "bf16", "autocast": True},
    "bf16, channels last": {"compile": True, "precision": "bf16", "autocast": True, "channels_last": True},
}
PARTS = ("critic_step", "unpenalised_step", "generator_step", "iteration")


def measure(case: Case, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """One record a variant: seconds (median, and quartiles over rounds), ratios to the textbook, and the counts.

    Raises:
        ValueError: a variant's gradients are further from float64 than its precision allows, or it was not compiled.
    """
    variants: dict[str, Textbook | Ours] = {}
    errors, memory, timed = {}, {}, {}
    for name, how in {"textbook": {}, **VARIANTS}.items():
        precision = how.get("precision", "fp32")
        unfit = how.get("channels_last") and len(case.shape) == 1
        if unfit or (precision == "tf32" and device.type != "cuda"):
            continue
        with products(precision), _no_fall_back(name):
            before = _reserved(device)
            variant = variants[name] = Textbook(case, device) if name == "textbook" else Ours(case, device, **how)
            errors[name] = _error(case, variant, device, name, precision)
            memory[name] = _peak_memory(variant, device, before)
        timed |= {(name, part): _in(precision, getattr(variant, part)) for part in PARTS}

    gflop = {"textbook": gflop_of(variants["textbook"].critic_step)}
    floors: dict[str, list[str]] = {}  # of each arithmetic, in all layouts: the fastest of them is the floor
    for name, how in VARIANTS.items():
        if name in variants:
            precision = how.get("precision", "fp32")
            kind = f"{precision} {how.get('autocast', False)}"
            floors[name] = floors.setdefault(kind, [])
            layout = f"floor: {kind} {how.get('channels_last', False)}"
            with products(precision):
                eager = Ours(case, device, **{**how, "compile": False})
                gflop[name] = gflop_of(eager.critic_step)  # a compiler's own kernels are not seen by the counter
                if layout not in floors[name]:
                    floors[name].append(layout)
                    for part in ("critic_step", "iteration"):
                        timed[layout, part] = _in(precision, products_of(getattr(eager, part), device))

    records = []
    seconds = _interleaved(timed, device, rounds)
    for name in variants:
        of = {part: seconds[name, part] for part in PARTS}
        layouts = floors[name if name != "textbook" else "eager"]
        floor = {part: _fastest([seconds[at, part] for at in layouts]) for part in ("critic_step", "iteration")}
        ratio = {p: _median_ratio(of[p], seconds["textbook", p]) for p in PARTS}
        records.append(
            {
                "variant": name,
                "gradient_error": errors[name],
                **{f"{part}_s": statistics.median(values) for part, values in of.items()},
                **{f"{part}_quartiles_s": _quartiles(values) for part, values in of.items()},
                **{f"{part}_ratio": value for part, value in ratio.items()},
                "penalty_share": 1 - _median_ratio(of["unpenalised_step"], of["critic_step"]),
                "samples_per_s": CRITIC_STEPS * case.batch / statistics.median(of["iteration"]),
                "critic_step_share_of_floor": _median_ratio(floor["critic_step"], of["critic_step"]),
                "iteration_share_of_floor": _median_ratio(floor["iteration"], of["iteration"]),
                "floor_of_critic_step_s": statistics.median(floor["critic_step"]),
                "critic_step_gflop": gflop[name],
                "peak_memory_mb": memory[name] / 1e6,
                "rounds": rounds,
            }
        )
    return records


def growth(device: torch.device, rounds: int, small: bool = False) -> list[dict[str, Any]]:
    """Seconds of a critic step as batch, width, depth (toy MLP) and resolution (ResNet critic) grow."""
    mlp, top = Case(MLPGenerator, MLPCritic, (2,), 256, 512), 2 if small else 99
    ways: dict[str, list[tuple[int, Case]]] = {
        "batch": [(n, replace(mlp, batch=n)) for n in (16, 32, 64, 128, 256, 512)[:top]],
        "width": [(n, replace(mlp, width=n)) for n in (64, 128, 256, 512, 1024)[:top]],
        "depth": [(n, replace(mlp, critic=partial(MLPCritic, depth=n))) for n in (1, 2, 3, 6, 12)[:top]],
        "resolution": [(n, Case(_Noise, _AnySize, (3, n, n), 16, 32)) for n in (8, 16, 32, 64)[:top]],
    }
    records = []
    for way, cases in ways.items():
        for size, case in cases:
            timed = {}
            with products("fp32"):
                for name in ("textbook", "eager", "compiled"):
                    with _no_fall_back(name):
                        variant = Textbook(case, device) if name == "textbook" else Ours(case, device, **VARIANTS[name])
                        _error(case, variant, device, name, "fp32")
                    timed[name, "critic_step"] = _in("fp32", variant.critic_step)
            for (name, _), values in _interleaved(timed, device, rounds).items():
                found = {"critic_step_s": statistics.median(values), "critic_step_quartiles_s": _quartiles(values)}
                records.append({"grows": way, "size": size, "variant": name, **found})
    return records


def _interleaved(
    timed: dict[tuple[str, str], Callable[[], None]], device: torch.device, rounds: int
) -> dict[tuple[str, str], list[float]]:
    """Seconds of each, once a round, in an order that turns by one every round; fast ones are repeated to 50 ms."""
    repeats = {}
    for key, run in timed.items():
        run()  # compiles, allocates
        run()
        repeats[key] = max(1, math.ceil(0.05 / seconds_of(run, 1, device)))
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
    order = list(timed)
    for _ in range(rounds):
        order = [*order[1:], order[0]]
        for key in order:
            seconds[key].append(seconds_of(timed[key], repeats[key], device))
    return seconds


def _in(precision: str, run: Callable[[], None]) -> Callable[[], None]:
    """The same in a precision that is set for the process."""

    def precisely() -> None:
        with products(precision):
            run()

    return precisely


@contextmanager
def _no_fall_back(name: str) -> Iterator[None]:
    """ValueError where a compiled step is not used: its row would be that of the eager one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the compiled .* is not used")
        try:
            yield
        except UserWarning as warning:
            raise ValueError(f"{name} cannot be measured: {warning}") from warning


def _error(case: Case, variant: Textbook | Ours, device: torch.device, name: str, precision: str) -> float:
    """||g - g64|| / ||g64|| of both players' gradients on one batch, the larger; ValueError where it is too much."""
    players = (copy.deepcopy(player).double() for player in case.players(device))
    generator, critic = players
    of = gradients_of(generator, critic, Wasserstein(), GradientPenalty())
    real, z, eps = case.batch_of(device)
    fake = of["fake"](z.double())[1][0]
    exact = [of["critic"](real.double(), fake, eps.double())[1], of["generator"](z.double())[1]]
    found = [variant.gradients(real, fake.float(), eps), variant.generator_gradients(z)]
    errors = []
    for ours, right in zip(found, exact, strict=True):
        off = [a.double() - b for a, b in zip(ours, right, strict=True)]
        errors.append((total_norm(off) / total_norm(right)).item())
    allowed = TOLERANCE[precision]
    if not max(errors) <= allowed:
        raise ValueError(
            f"{name}: gradients are {max(errors):.2g} off those of float64, and {allowed:g} is allowed in {precision}:"
            " a fast wrong answer is not timed"
        )
    return max(errors)


def _peak_memory(variant: Textbook | Ours, device: torch.device, before: int) -> float:
    """Bytes that an iteration holds at most. On a CPU beyond parameters, the optimisers' state and data; on CUDA all
    that was reserved since `before`, since what a recorded graph uses is reserved once and never seen again.
    """
    run = variant.iteration
    _reserved(device)  # what the comparison of gradients took is given back
    for _ in range(4):  # compiles, records
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_reserved(device) - before
    for optimizer in (variant.optim_critic, variant.optim_generator):
        optimizer.zero_grad()
    return _held(run)


def _held(run: Callable[[], None]) -> int:
    """Bytes that are allocated at most while run goes for the second time, from before the first on."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True, acc_events=True) as profile:
        run()
        with torch.profiler.record_function("second"):
            run()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    began = next(event.start_ns() for event in events if event.name() == "second")
    held = peak = 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held) if event.start_ns() >= began else held
    return peak


def _reserved(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_reserved(device)


def _fastest(of: list[list[float]]) -> list[float]:
    return [min(values) for values in zip(*of, strict=True)]


def _median_ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def _quartiles(values: list[float]) -> list[float]:
    return (
        [statistics.quantiles(values, n=4, method="inclusive")[i] for i in (0, 2)]
        if len(values) > 1
        else [values[0]] * 2
    )


class _Noise(nn.Module):
    """z (B, 8) -> (B, *shape), a linear map: the cheapest partner of a critic."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.latent_dim = 8
        self.layers = nn.Sequential(nn.Linear(8, math.prod(shape)), nn.Unflatten(1, shape))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class _AnySize(ResNetCritic):
    """The ResNet critic on squares of any even size: it ends in a mean over the pixels."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__((3, 32, 32), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.activation(self.blocks(x)).mean(dim=(2, 3))).squeeze(1)
