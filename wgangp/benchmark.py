"""How fast a step is, against what a careful user writes and against the arithmetic that it needs.

All variants of a case live in one process and are timed in turn, round by round, so that a machine that slows down
slows all of them; what is shown is the median over rounds, and ratios are medians of the rounds' ratios. Nothing is
timed before its gradients were compared with float64.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from wgangp.compiled import TOLERANCE, gradients_of
from wgangp.contestants import CRITIC_STEPS, Case, Ours, Textbook
from wgangp.gradients import total_norm
from wgangp.losses import Wasserstein
from wgangp.networks.dcgan import CIFARCritic, CIFARGenerator, MNISTCritic, MNISTGenerator
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.networks.resnet import ResNetCritic, ResNetGenerator
from wgangp.penalty import GradientPenalty
from wgangp.precision import products

__all__ = ["CASES", "VARIANTS", "growth", "measure"]

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")  # the arithmetic that counts

CASES = {  # widths as released; the CIFAR pairs at a quarter of it where budget=cpu
    "toy MLP": Case(MLPGenerator, MLPCritic, (2,), 256, 512),
    "MNIST DCGAN": Case(MNISTGenerator, MNISTCritic, (1, 28, 28), 50, 64),
    "CIFAR DCGAN": Case(CIFARGenerator, CIFARCritic, (3, 32, 32), 64, 128),
    "CIFAR ResNet": Case(ResNetGenerator, ResNetCritic, (3, 32, 32), 64, 128, 128, (0.0, 0.9)),
}
VARIANTS: dict[str, dict[str, Any]] = {  # beside the textbook
    "eager": {},
    "eager, channels last": {"channels_last": True},
    "compiled": {"compile": True},
    "compiled, channels last": {"compile": True, "channels_last": True},
    "bf16, penalty in fp32": {"compile": True, "precision": "bf16"},
    "bf16": {"compile": True, "precision": "bf16", "autocast": True},
    "bf16, channels last": {"compile": True, "precision": "bf16", "autocast": True, "channels_last": True},
}


def measure(case: Case, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """One record a variant: seconds (median, and quartiles over rounds), ratios to the textbook, and the counts.

    Raises:
        ValueError: a variant's gradients are further from float64 than its precision allows.
    """
    variants: dict[str, Any] = {"textbook": Textbook(case, device)}
    errors = {"textbook": _error(case, variants["textbook"], device, "fp32")}
    floors: dict[str, dict[str, Callable[[], None]]] = {}
    gflop = {"textbook": _gflop(variants["textbook"].critic_step)}
    for name, how in VARIANTS.items():
        if how.get("channels_last") and len(case.shape) == 1:
            continue
        precision = how.get("precision", "fp32")
        with products(precision):
            variants[name] = Ours(case, device, **how)
            errors[name] = _error(case, variants[name], device, precision)
            eager = Ours(case, device, **{**how, "compile": False})
            floors[name] = {part: _products_of(getattr(eager, part)) for part in ("critic_step", "iteration")}
            gflop[name] = _gflop(eager.critic_step)  # a compiler's own kernels are not seen by the counter

    records = []
    parts = ("critic_step", "unpenalised_step", "generator_step", "iteration")
    timed = {(name, part): getattr(v, part) for name, v in variants.items() for part in parts}
    kinds = {name: name.replace("compiled", "eager") for name in floors}  # compiling leaves the products as they are
    timed |= {(kinds[name], f"floor of {part}"): floors[name][part] for name in kinds for part in floors[name]}
    seconds = _interleaved(timed, device, rounds)
    for name, variant in variants.items():
        variant.optim_critic.zero_grad()  # so that memory is counted beyond parameters and the optimiser's state
        kind = kinds.get(name, "eager")
        of = {part: seconds[name, part] for part in parts}
        floor = {part: seconds[kind, f"floor of {part}"] for part in ("critic_step", "iteration")}
        ratio = {p: _median_ratio(of[p], seconds["textbook", p]) for p in parts}
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
                "peak_memory_mb": _peak_memory(variant.critic_step, device) / 1e6,
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
            variants = {"textbook": Textbook(case, device)}
            variants |= {name: Ours(case, device, **VARIANTS[name]) for name in ("eager", "compiled")}
            timed = {(name, "critic_step"): v.critic_step for name, v in variants.items()}
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
        repeats[key] = max(1, math.ceil(0.05 / _seconds(run, 1, device)))
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
    order = list(timed)
    for _ in range(rounds):
        order = [*order[1:], order[0]]
        for key in order:
            seconds[key].append(_seconds(timed[key], repeats[key], device))
    return seconds


def _seconds(run: Callable[[], None], repeats: int, device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    _wait(device)
    return (time.perf_counter() - began) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _error(case: Case, variant: Any, device: torch.device, precision: str) -> float:
    """||g - g64|| / ||g64|| of the critic's gradient on one batch; ValueError where it is too much."""
    generator, critic = (copy.deepcopy(player).double() for player in case.players(device))
    real, z, eps = case.batch_of(device)
    fake = generator(z.double()).detach()
    exact = gradients_of(generator, critic, Wasserstein(), GradientPenalty())["critic"](
        real.double(), fake, eps.double()
    )[1]
    found = variant.gradients(real, fake.float(), eps)
    off = [a.double() - b for a, b in zip(found, exact, strict=True)]
    error = (total_norm(off) / total_norm(exact)).item()
    if not error <= TOLERANCE[precision]:
        raise ValueError(f"the gradients of {variant} are {error:.2g} off those of float64: a fast wrong answer")
    return error


class _Recorder(TorchDispatchMode):
    """Remembers every product of matrices and every convolution, its arguments, and how often it came.

    flop is the sum of the formulas of torch's FLOP counter, whose own mode cannot look into a second derivative.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0
        self.calls: dict[str, list[Any]] = {}

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in PRODUCTS:
            like = [(a.shape, a.stride(), a.dtype) if isinstance(a, Tensor) else a for a in args]
            call = self.calls.setdefault(f"{function} {like}", [function, args, kwargs or {}, 0])
            call[3] += 1
            self.flop += flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def _products_of(run: Callable[[], None]) -> Callable[[], None]:
    """The floor: only the products and convolutions of a step, at its shapes and strides, one after another."""
    recorder = _Recorder()
    with recorder:
        run()

    @torch.no_grad()
    def replay() -> None:
        for function, args, kwargs, count in recorder.calls.values():
            for _ in range(count):
                function(*args, **kwargs)

    return replay


def _gflop(run: Callable[[], None]) -> float:
    with _Recorder() as recorder:
        run()
    return recorder.flop / 1e9


def _peak_memory(run: Callable[[], None], device: torch.device) -> float:
    """Bytes that a step has allocated at most, beyond what was there before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


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
