"""How one training iteration is computed: eagerly or compiled, and at which precision.

Compiling the critic alone does not work with a penalty: its second derivatives are refused, or silently lost. So the
whole of "objective, and its gradient with respect to the parameters" is compiled. At the first batch the compiled
gradients are compared with the eager ones. If they differ, or if the compiler fails, a warning is printed and the run
uses the eager ones.
"""

import math
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wgangp.checks import call_generator
from wgangp.compiler import Gradients, compile_gradients, compile_samples
from wgangp.losses import Wasserstein
from wgangp.penalty import GradientPenalty
from wgangp.precision import autocast, check_precision
from wgangp.state import preserve_state
from wgangp.step import critic_gradients, critic_objective, generator_gradients, generator_objective

__all__ = ["Computation", "build_computation", "verify"]

# The largest relative error of a compiled gradient. A ReLU that changes sign because of rounding costs up to 1e-3 in
# fp32. A gradient in bf16 has an error of up to 1e-1, eager or compiled, so two of them differ by up to twice that.
TOLERANCE = {"fp64": 1e-8, "fp32": 1e-2, "tf32": 2e-2, "bf16": 2e-1}
# A gradient with a smaller part of the norm of all gradients is compared with this part of it. In bf16, 0.01 would
# give our smallest networks errors of 0.3; 0.1 gives them the error of all gradients together.
FLOOR = {"fp64": 0.01, "fp32": 0.01, "tf32": 0.01, "bf16": 0.1}
VERIFIED = {"cpu": 1, "cuda": 3}  # batches; a CUDA graph warms up at the first, records the second, replays the third
_resets = 0  # number of calls of torch.compiler.reset in this process


@dataclass(frozen=True)
class Computation:
    """The three computations of a training iteration.

    Attributes (the first three are functions; y is (labels,) or nothing):
        sample: (z, *y) -> fake samples (B, *), detached.
        critic_gradients: (real, fake, eps, *y) -> the terms by name, each (), and one gradient per trainable parameter
            of the critic.
        generator_gradients: (z, *y) -> the same for the generator.
        problems: name of a step -> why its compiled form is not used, or not any more.
    """

    sample: Callable[..., Tensor]
    critic_gradients: Gradients
    generator_gradients: Gradients
    problems: dict[str, str] = field(default_factory=dict)


def build_computation(
    generator: nn.Module,
    critic: nn.Module,
    loss: Wasserstein,
    penalty: GradientPenalty,
    regularize_gradient_norm: float = 0.0,
    *,
    precision: str = "fp32",
    compile: bool = False,
) -> Computation:
    """Build the computations of a training iteration for two networks, a loss and a penalty.

    Args:
        precision: fp32, tf32 or bf16, for the forward passes and their derivatives. The penalty is computed in fp32
            unless penalty.autocast is set. tf32 has to be switched on by the caller (`precision.product_precision`).
        compile: compile each computation into one graph at the first batch. It is compared with the eager result
            there (see `verify`). A batch of another size is compiled again, without a comparison, or is computed
            eagerly if this fails. On CUDA the graphs are recorded and replayed (CUDA graphs).

    Raises:
        ValueError: the precision is unknown, or not available on the device of the critic.
    """
    device = next(critic.parameters()).device
    check_precision(precision, device)

    def sample(generator: Callable[..., Tensor], z: Tensor, *y: Tensor) -> Tensor:
        with autocast(precision, device):
            return call_generator(generator, z, *y).to(z.dtype)

    def eager_sample(z: Tensor, *y: Tensor) -> Tensor:
        with torch.no_grad():
            return sample(generator, z, *y)

    objective = {"loss": loss, "regularize_gradient_norm": regularize_gradient_norm}

    def eager_critic(*batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        with autocast(precision, device):
            return critic_gradients(critic, *batch, penalty=penalty, **objective)

    def eager_generator(*batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        with autocast(precision, device):
            return generator_gradients(generator, critic, *batch, **objective)

    if not compile:
        return Computation(eager_sample, eager_critic, eager_generator)

    def critic_terms(critic: Callable[..., Any], *batch: Tensor) -> dict[str, Tensor]:
        with autocast(precision, device):
            return critic_objective(critic, *batch, penalty=penalty, loss=loss)

    def generator_terms(generator: Callable[..., Any], critic: Callable[..., Any], *batch: Tensor) -> dict[str, Tensor]:
        with autocast(precision, device):
            return generator_objective(generator, critic, *batch, loss=loss)

    fast_critic = compile_gradients((critic,), critic_terms, "critic_loss", regularize_gradient_norm)
    fast_generator = compile_gradients((generator, critic), generator_terms, "generator_loss", regularize_gradient_norm)
    problems: dict[str, str] = {}
    options = {"precision": precision, "networks": (generator, critic), "problems": problems}
    return Computation(
        sample=_verify_samples(compile_samples(generator, sample), eager_sample, **options),
        critic_gradients=verify("critic", fast_critic, eager_critic, double=critic, **options),
        generator_gradients=verify("generator", fast_generator, eager_generator, **options),
        problems=problems,
    )


def verify(
    name: str,
    fast: Gradients,
    eager: Gradients,
    precision: str = "fp32",
    double: nn.Module | None = None,
    networks: tuple[nn.Module, ...] = (),
    problems: dict[str, str] | None = None,
    quantity: str = "gradients",
) -> Gradients:
    """Return a function that uses fast if its gradients agree with eager at the first batches, and eager otherwise.

    Both are computed from the same state of the networks and of the random numbers. The error of a gradient is
    ||fast - eager|| / ||eager||, for each parameter. It must be at most TOLERANCE. For a gradient that is small beside
    all gradients together, ||eager|| is FLOOR times the norm of all: there may be nothing but rounding in it. Buffers
    are compared, too. After `_reset_compiler` they are compared again.

    Args:
        name: of the step, for messages.
        double: a network whose gradients are also compared with all its parameters doubled. Initial slopes may be so
            small that the penalty contributes nothing to the gradient (one-sided penalty, for example).
        networks: all networks that fast and eager compute with. The comparison leaves them as they were.
        problems: gets an entry under the name if fast is not used.
        quantity: what is compared, for messages.
    """
    chosen: list[Gradients] = []
    batches, known_resets = 0, _resets

    def compute(gradients: Gradients, batch: tuple[Tensor, ...]) -> dict[str, list[Tensor]]:
        """Return gradients and new buffers, and leave the networks and the random numbers as they are."""
        with preserve_state(*networks), _preserve_modes():
            _, values = gradients(*batch)
            return {quantity: values, "buffers": [b.clone() for n in networks for b in n.buffers()]}

    def compare(batch: tuple[Tensor, ...], expected: dict[str, list[Tensor]]) -> tuple[float, str]:
        """Return the largest relative error of the quantity, and what is wrong if an error is too large."""
        errors, problem, actual = {}, "", compute(fast, batch)
        kind = "fp64" if expected[quantity][0].dtype == torch.float64 else precision
        for key, tensors in expected.items():
            errors[key], i = _largest_error(actual[key], tensors, FLOOR[kind])
            if errors[key] > TOLERANCE[kind]:
                place = f"(relative, tensor {i + 1} of {len(tensors)})"
                problem = problem or f"its {key} differ from the eager ones by {errors[key]:.2g} {place}"
        return errors[quantity], problem

    def give_up(problem: str) -> None:
        chosen[:] = [eager]
        if problems is not None:
            problems[name] = problem
        message = f"the compiled {name} step is not used: {problem}. The step is computed in eager mode"
        warnings.warn(message, stacklevel=3)

    def choose(*batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        nonlocal batches, known_resets
        if chosen == [eager]:
            return eager(*batch)
        if known_resets < _resets:  # fast is compiled again
            chosen.clear()
            batches, known_resets = 0, _resets
        if chosen:
            try:
                with _preserve_modes():
                    return fast(*batch)
            except _list_compiler_errors() as failure:  # at a batch of another size, or after many compilations
                give_up(_summarize(failure))
            return eager(*batch)
        batches += 1
        start = time.monotonic()
        expected = compute(eager, batch)
        try:
            problem = ""
            if double is not None and batches == 1:
                with _double(double):
                    _, problem = compare(batch, compute(eager, batch))
            if not problem:
                error, problem = compare(batch, expected)
        except Exception as failure:  # the compiler raises many types
            if not isinstance(failure, _list_compiler_errors()):
                _reset_compiler()
            problem = _summarize(failure)
        if problem:
            give_up(problem)
        elif batches == 1:
            seconds = time.monotonic() - start
            print(f"compiled the {name} step in {seconds:.0f} s; relative error of its {quantity}: {error:.2g}")
        if not problem and batches == VERIFIED.get(expected[quantity][0].device.type, 1):
            chosen.append(fast)
        return (eager if problem else fast)(*batch)  # not the eager result if fast is used: resumed runs agree

    return choose


def _verify_samples(fast: Callable[..., Tensor], eager: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    """As `verify`, for the samples of the generator."""

    def as_gradients(sample: Callable[..., Tensor]) -> Gradients:
        return lambda *batch: ({}, [sample(*batch)])

    choose = verify("sample", as_gradients(fast), as_gradients(eager), quantity="samples", **options)
    return lambda *batch: choose(*batch)[1][0]


def _list_compiler_errors() -> tuple[type[Exception], ...]:
    return torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit


def _reset_compiler() -> None:
    """Compile everything again at its next call, on a GPU, after an error in a compiled function.

    An error while a CUDA graph warms up leaves the graph unfinished, and the next compiled call fails, whatever it
    computes (torch 2.11: an AssertionError in dealloc_current_path_weakrefs).
    """
    global _resets
    if torch.cuda.is_initialized():
        torch.compiler.reset()
        _resets += 1


def _summarize(error: Exception) -> str:
    """Return the type of an error, its first two lines, and the last error that it quotes: of another process, say."""
    if isinstance(error, torch._dynamo.exc.FailOnRecompileLimitHit):
        return (
            "it was compiled too often. A Python attribute of a network changes in forward (keep it in a buffer), or"
            " batches have many sizes"
        )
    lines = str(error).splitlines()
    causes = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return f"{type(error).__name__}: {' '.join(dict.fromkeys(filter(None, lines[:2] + causes[-1:])))}"


def _largest_error(actual: list[Tensor], expected: list[Tensor], floor: float) -> tuple[float, int]:
    """Return the largest relative error of a tensor, and its index. NaN in actual alone counts as infinite."""
    pairs = [
        (a.float(), b.float()) if not b.is_floating_point() else (a, b) for a, b in zip(actual, expected, strict=True)
    ]
    if not pairs:
        return 0.0, 0
    norms = torch.stack([b.masked_fill(~b.isfinite(), 0).norm() for _, b in pairs])  # a mask may have -inf
    least = max(floor * norms.norm().item(), torch.finfo(norms.dtype).tiny)
    errors = torch.stack([(a - b).masked_fill(a == b, 0).norm() for a, b in pairs]) / norms.clamp(min=least)
    error, i = errors.nan_to_num(nan=math.inf).max(0)
    return error.item(), i.item()


@contextmanager
def _double(network: nn.Module) -> Iterator[None]:
    """Double all parameters of the network inside of the with block."""
    before = [p.data for p in network.parameters()]
    try:
        for p in network.parameters():
            p.data = 2 * p.data  # a new tensor: graphs that were recorded with the old one stay valid
        yield
    finally:
        for p, value in zip(network.parameters(), before, strict=True):
            p.data = value


@contextmanager
def _preserve_modes() -> Iterator[None]:
    """Set torch back if the compiler gives up inside of a torch.func.grad: torch then still refuses saved tensor hooks.

    Those are what torch.utils.checkpoint works with.
    """
    autograd = torch._C._autograd
    message = autograd._saved_tensors_hooks_get_disabled_error_message()
    try:
        yield
    finally:
        if message is None:
            autograd._saved_tensors_hooks_enable()
        else:
            autograd._saved_tensors_hooks_disable(message)
