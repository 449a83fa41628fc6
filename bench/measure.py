"""How long a training step takes, compared with the textbook implementation and with the arithmetic that it needs.

All variants of a case live in one process. They are timed in turn, round by round: if the machine becomes slower, all
of them become slower. Times are medians over rounds, and ratios are medians of the ratios within a round. Before a
variant is timed, its gradients are compared with float64.
"""

import math
import re
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from bench.contestants import AnySizeCritic, Case, LinearGenerator, Ours, Textbook
from bench.floor import build_floor, count_gflop, time_calls
from wgangp.compiled import TOLERANCE, build_computation
from wgangp.gradients import total_norm
from wgangp.networks.dcgan import CIFARCritic, CIFARGenerator, MNISTCritic, MNISTGenerator
from wgangp.networks.language import LanguageCritic, LanguageGenerator
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.networks.resnet import ResNetCritic, ResNetGenerator
from wgangp.networks.zoo import GatedCritic, GatedGenerator
from wgangp.networks.zoo_resnet import GoodCritic, GoodGenerator
from wgangp.penalty import GradientPenalty
from wgangp.precision import product_precision

__all__ = [
    "CASES",
    "SMALLER",
    "VARIANTS",
    "measure",
    "measure_growth",
    "quartiles",
    "require_compiled",
    "time_in_turn",
    "with_precision",
]

CASES = {  # the widths of the released code. With the budget cpu they are divided by SMALLER
    "toy MLP": Case(MLPGenerator, MLPCritic, (2,), 256, 512),
    "MNIST DCGAN": Case(MNISTGenerator, MNISTCritic, (1, 28, 28), 50, 64),
    "CIFAR DCGAN": Case(CIFARGenerator, CIFARCritic, (3, 32, 32), 64, 128),
    "CIFAR ResNet": Case(ResNetGenerator, ResNetCritic, (3, 32, 32), 64, 128, 128, (0.0, 0.9), True),
    "CIFAR ResNet, AC-GAN": Case(ResNetGenerator, ResNetCritic, (3, 32, 32), 64, 128, 128, (0.0, 0.9), True, 10),
    "64 x 64 ResNet, layer norm": Case(GoodGenerator, GoodCritic, (3, 64, 64), 64, 64, None, (0.0, 0.9)),
    "64 x 64 gated, layer norm": Case(GatedGenerator, GatedCritic, (3, 64, 64), 64, 64, None, (0.0, 0.9)),
    "text": Case(LanguageGenerator, LanguageCritic, (100, 32), 64, 512, critic_steps=10),
}
SMALLER = {name: 8 if name.startswith("64 x 64") else 4 for name in list(CASES)[2:]}  # divisor of the width on a CPU
VARIANTS: dict[str, dict[str, Any]] = {  # arguments of Ours. The variant "textbook" comes before them
    "eager": {},
    "eager, channels last": {"channels_last": True},
    "compiled": {"compile": True},
    "compiled, channels last": {"compile": True, "channels_last": True},
    "tf32, channels last": {"compile": True, "precision": "tf32", "channels_last": True},
    "bf16, penalty in fp32": {"compile": True, "precision": "bf16"},
    "bf16, penalty in bf16": {"compile": True, "precision": "bf16", "autocast": True},
    "bf16, penalty in bf16, channels last": {
        "compile": True,
        "precision": "bf16",
        "autocast": True,
        "channels_last": True,
    },
}
PARTS = {  # name in the records -> method of the contestants
    "critic_step": "critic_step",
    "unpenalised_step": "unpenalized_step",  # the records keep the spelling of the first ones
    "generator_step": "generator_step",
    "iteration": "iteration",
}
FLOOR_PARTS = ("critic_step", "iteration")  # the parts whose arithmetic is timed by itself
CONTINUES = ". The step is computed in eager mode"  # the end of the warning that a compiled step is not used
LEAST_S = 0.05  # a fast function is called so often that one measurement takes at least this long


def measure(case: Case, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Measure all variants of a case.

    Returns:
        one record per variant: seconds (median and quartiles over rounds), ratios to the textbook, and counts. The
        record of a variant whose compiled step fell back to eager mode has the reason instead, as "left_out".

    Raises:
        ValueError: the gradients of a variant differ from float64 by more than its precision allows.
    """
    variants: dict[str, Textbook | Ours] = {}
    left_out, errors, memory = {}, {}, {}
    timed: dict[tuple[str, str], Callable[[], None]] = {}
    for name, options in {"textbook": {}, **VARIANTS}.items():
        precision = options.get("precision", "fp32")
        no_channels = options.get("channels_last") and len(case.shape) < 3
        if no_channels or (precision == "tf32" and device.type != "cuda"):
            continue
        try:
            with product_precision(precision), require_compiled(name):
                reserved = _reset_cuda_memory(device)
                variant = _build(case, device, name)
                errors[name] = _compare_with_float64(case, variant, device, name, precision)
                memory[name] = _peak_memory(variant, device, reserved)
        except NotCompiledError as error:
            print(f"{name} is left out: {error}")
            left_out[name] = re.sub(r"(/[\w.+-]+){2,}/?", "PATH", str(error).removesuffix(CONTINUES))
            continue
        variants[name] = variant
        timed |= {(name, part): with_precision(precision, getattr(variant, PARTS[part])) for part in PARTS}

    gflop = {"textbook": count_gflop(variants["textbook"].critic_step)}
    layouts: dict[str, list[str]] = {}  # variant -> the floors with its arithmetic, one per memory layout
    for name, options in VARIANTS.items():
        if name in variants:
            precision = options.get("precision", "fp32")
            arithmetic = f"{precision} {options.get('autocast', False)}"
            layouts[name] = layouts.setdefault(arithmetic, [])  # the same list for all variants with this arithmetic
            floor = f"floor: {arithmetic} {options.get('channels_last', False)}"
            with product_precision(precision):
                eager = Ours(case, device, **{**options, "compile": False})
                gflop[name] = count_gflop(eager.critic_step)  # the kernels of a compiler are not seen by the counter
                if floor not in layouts[name]:
                    layouts[name].append(floor)
                    for part in FLOOR_PARTS:
                        timed[floor, part] = with_precision(precision, build_floor(getattr(eager, part), device))

    seconds = time_in_turn(timed, device, rounds)
    records = []
    for name in variants:
        times = {part: seconds[name, part] for part in PARTS}
        floors = layouts[name if name != "textbook" else "eager"]
        floor = {part: _fastest([seconds[layout, part] for layout in floors]) for part in FLOOR_PARTS}
        ratio = {part: _median_ratio(times[part], seconds["textbook", part]) for part in PARTS}
        records.append(
            {
                "variant": name,
                "gradient_error": errors[name],
                **{f"{part}_s": statistics.median(values) for part, values in times.items()},
                **{f"{part}_quartiles_s": quartiles(values) for part, values in times.items()},
                **{f"{part}_ratio": value for part, value in ratio.items()},
                "penalty_share": 1 - _median_ratio(times["unpenalised_step"], times["critic_step"]),
                "samples_per_s": case.critic_steps * case.batch / statistics.median(times["iteration"]),
                "critic_step_share_of_floor": _median_ratio(floor["critic_step"], times["critic_step"]),
                "iteration_share_of_floor": _median_ratio(floor["iteration"], times["iteration"]),
                "floor_of_critic_step_s": statistics.median(floor["critic_step"]),
                "critic_step_gflop": gflop[name],
                "peak_memory_mb": memory[name] / 1e6,
                "rounds": rounds,
            }
        )
    return records + [{"variant": name, "left_out": reason} for name, reason in left_out.items()]


class NotCompiledError(ValueError):
    """A compiled step fell back to eager mode."""


def measure_growth(device: torch.device, rounds: int, small: bool = False) -> list[dict[str, Any]]:
    """Measure how a critic step grows with batch size, width and depth (toy MLP) and with image size (ResNet critic).

    Args:
        small: only the two smallest sizes of each.

    Returns:
        one record per size and variant; the key "grows" names what grows. A variant whose compiled step fell back to
        eager mode has none.

    Raises:
        ValueError: as in `measure`.
    """
    mlp, count = Case(MLPGenerator, MLPCritic, (2,), 256, 512), 2 if small else 99
    growing: dict[str, list[tuple[int, Case]]] = {
        "batch": [(n, replace(mlp, batch=n)) for n in (16, 32, 64, 128, 256, 512)[:count]],
        "width": [(n, replace(mlp, width=n)) for n in (64, 128, 256, 512, 1024)[:count]],
        "depth": [(n, replace(mlp, critic=partial(MLPCritic, depth=n))) for n in (1, 2, 3, 6, 12)[:count]],
        "resolution": [(n, Case(LinearGenerator, AnySizeCritic, (3, n, n), 16, 32)) for n in (8, 16, 32, 64)[:count]],
    }
    records = []
    for quantity, cases in growing.items():
        for size, case in cases:
            timed = {}
            with product_precision("fp32"):
                for name in ("textbook", "eager", "compiled"):
                    try:
                        with require_compiled(name):
                            variant = _build(case, device, name)
                            _compare_with_float64(case, variant, device, name, "fp32")
                    except NotCompiledError as error:
                        print(f"{quantity} {size}, {name} is left out: {error}")
                        continue
                    timed[name, "critic_step"] = with_precision("fp32", variant.critic_step)
            for (name, _), values in time_in_turn(timed, device, rounds).items():
                seconds = {"critic_step_s": statistics.median(values), "critic_step_quartiles_s": quartiles(values)}
                records.append({"grows": quantity, "size": size, "variant": name, **seconds})
    return records


def time_in_turn(
    timed: dict[tuple[str, str], Callable[[], None]], device: torch.device, rounds: int
) -> dict[tuple[str, str], list[float]]:
    """Time every function once per round; the order is rotated by one from round to round. Returns seconds per call."""
    repeats = {}
    for key, function in timed.items():
        function()  # compiles, allocates
        function()
        repeats[key] = max(1, math.ceil(LEAST_S / time_calls(function, 1, device)))
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
    order = list(timed)
    for _ in range(rounds):
        order = [*order[1:], order[0]]
        for key in order:
            seconds[key].append(time_calls(timed[key], repeats[key], device))
    return seconds


def _build(case: Case, device: torch.device, name: str) -> Textbook | Ours:
    return Textbook(case, device) if name == "textbook" else Ours(case, device, **VARIANTS[name])


def with_precision(precision: str, function: Callable[[], None]) -> Callable[[], None]:
    """Return the function with its product precision, which is a setting of the process."""

    def call() -> None:
        with product_precision(precision):
            function()

    return call


@contextmanager
def require_compiled(name: str) -> Iterator[None]:
    """Raise NotCompiledError if a compiled step falls back to eager mode: its row would show the eager step."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the compiled .* is not used")
        try:
            yield
        except UserWarning as warning:
            raise NotCompiledError(f"{name} cannot be measured: {warning}") from warning


def _compare_with_float64(
    case: Case, variant: Textbook | Ours, device: torch.device, name: str, precision: str
) -> float:
    """Return ||g - g64|| / ||g64|| on one batch, the larger one of critic and generator. ValueError if it is large."""
    networks = (network.double() for network in case.build_networks(device))
    reference = build_computation(*networks, case.loss, GradientPenalty())
    real, z, eps, *y = case.draw_batch(device)
    fake = reference.sample(z.double(), *y)
    expected = (
        reference.critic_gradients(real.double(), fake, eps.double(), *y)[1],
        reference.generator_gradients(z.double(), *y)[1],
    )
    actual = (variant.critic_gradients(real, fake.float(), eps, *y), variant.generator_gradients(z, *y))
    errors = []
    for gradients, exact in zip(actual, expected, strict=True):
        difference = [a.double() - b for a, b in zip(gradients, exact, strict=True)]
        errors.append((total_norm(difference) / total_norm(exact)).item())
    allowed = TOLERANCE[precision]
    if not all(error <= allowed for error in errors):  # also if one is NaN
        raise ValueError(
            f"{name} is not timed: its gradients differ from float64 by {max(errors):.2g} (relative), but at most"
            f" {allowed:g} is allowed in {precision}. Correct the gradients first"
        )
    return max(errors)


def _peak_memory(variant: Textbook | Ours, device: torch.device, reserved: int) -> float:
    """Return the largest number of bytes that an iteration holds.

    On a CPU: in addition to parameters, optimizer state and data. On CUDA: everything that was reserved after there
    were `reserved` bytes, because the memory of a recorded graph is reserved once and not seen again.
    """
    iteration = variant.iteration
    _reset_cuda_memory(device)  # frees what the comparison of gradients used
    for _ in range(4):  # compiles, records
        iteration()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_reserved(device) - reserved
    for optimizer in (variant.optim_critic, variant.optim_generator):
        optimizer.zero_grad()
    return _peak_cpu_bytes(iteration)


def _peak_cpu_bytes(function: Callable[[], None]) -> int:
    """Call the function twice. Return the largest number of bytes held in the second call.

    Only bytes that were allocated since the start of the first call count.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with warnings.catch_warnings():
        # The warning recommends acc_events=True, which is several times slower and gives the same events.
        warnings.filterwarnings("ignore", message="Warning: Profiler clears events")
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            function()
            with torch.profiler.record_function("second"):
                function()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    start = next(event.start_ns() for event in events if event.name() == "second")
    held = peak = 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held) if event.start_ns() >= start else held
    return peak


def _reset_cuda_memory(device: torch.device) -> int:
    """Free the unused CUDA memory and reset its peak. Returns the bytes that are still reserved; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_reserved(device)


def _fastest(times: list[list[float]]) -> list[float]:
    """Return the smallest time of each round."""
    return [min(values) for values in zip(*times, strict=True)]


def _median_ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def quartiles(values: list[float]) -> list[float]:
    if len(values) == 1:
        return [values[0]] * 2
    return [statistics.quantiles(values, n=4, method="inclusive")[i] for i in (0, 2)]
