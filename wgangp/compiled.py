"""How one training iteration is computed: eagerly or compiled, and at which precision.

Compiling the critic alone does not work with a penalty: its second derivatives are refused, or silently lost. So the
whole of "objective, and its gradient with respect to the parameters" is compiled. At the first batch the compiled
gradients are compared with the eager ones. If they differ, or if the compiler fails, a warning is printed and the run
uses the eager ones.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from wgangp.gradients import total_norm
from wgangp.losses import Wasserstein
from wgangp.penalty import GradientPenalty
from wgangp.precision import autocast, check_precision
from wgangp.state import preserve_state
from wgangp.step import critic_gradients, critic_objective, generator_gradients, generator_objective

__all__ = ["Computation", "build_computation", "verify"]

Gradients = Callable[..., tuple[dict[str, Tensor], list[Tensor]]]  # a batch -> terms (), one gradient per parameter
Objective = Callable[..., dict[str, Tensor]]  # network, batch -> terms

# The largest relative error of a compiled gradient. A ReLU that changes sign because of rounding costs up to 1e-3 in
# fp32. A gradient in bf16 has an error of up to 1e-1, eager or compiled, so two of them differ by up to twice that.
TOLERANCE = {"fp64": 1e-8, "fp32": 1e-2, "tf32": 2e-2, "bf16": 2e-1}
VERIFIED = {"cpu": 1, "cuda": 3}  # batches; a CUDA graph warms up at the first, records the second, replays the third


@dataclass(frozen=True)
class Computation:
    """The three computations of a training iteration.

    sample                 (z, *y) -> fake samples (B, *), without a graph
    critic_gradients       (real, fake, eps, *y) -> the terms (), one gradient per trainable parameter of the critic
    generator_gradients    (z, *y) -> the terms (), one gradient per trainable parameter of the generator
    """

    sample: Callable[..., Tensor]
    critic_gradients: Gradients
    generator_gradients: Gradients


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
            there (see `verify`). A batch of another size is compiled again, without a comparison. On CUDA the graphs
            are recorded and replayed (CUDA graphs).

    Raises:
        ValueError: the precision is unknown, or not available on the device of the critic.
    """
    device = next(critic.parameters()).device
    check_precision(precision, device)

    def sample(z: Tensor, *y: Tensor) -> Tensor:
        with autocast(precision, device):
            return generator(z, *y).to(z.dtype)

    def eager_critic(*batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        with autocast(precision, device):
            return critic_gradients(
                critic, *batch, penalty=penalty, loss=loss, regularize_gradient_norm=regularize_gradient_norm
            )

    def eager_generator(*batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        with autocast(precision, device):
            return generator_gradients(
                generator, critic, *batch, loss=loss, regularize_gradient_norm=regularize_gradient_norm
            )

    eager = Computation(torch.no_grad()(sample), eager_critic, eager_generator)
    if not compile:
        return eager

    def critic_terms(network: Callable[..., Tensor], *batch: Tensor) -> dict[str, Tensor]:
        with autocast(precision, device):
            return critic_objective(network, *batch, penalty=penalty, loss=loss)

    def generator_terms(network: Callable[..., Tensor], *batch: Tensor) -> dict[str, Tensor]:
        with autocast(precision, device):
            return generator_objective(network, critic, *batch, loss=loss)

    fast_critic = _compile_gradients(critic, critic_terms, "critic_loss", regularize_gradient_norm)
    fast_generator = _compile_gradients(generator, generator_terms, "generator_loss", regularize_gradient_norm)
    both = (generator, critic)
    return Computation(
        sample=_verify_samples(_compile(sample, device), eager.sample, precision, both),
        critic_gradients=verify("critic", fast_critic, eager_critic, precision, double=critic, networks=both),
        generator_gradients=verify("generator", fast_generator, eager_generator, precision, networks=both),
    )


def verify(
    name: str,
    fast: Gradients,
    eager: Gradients,
    precision: str = "fp32",
    double: nn.Module | None = None,
    networks: tuple[nn.Module, ...] = (),
) -> Gradients:
    """Return a function that uses fast if its gradients agree with eager at the first batches, and eager otherwise.

    The error is ||fast - eager|| / ||eager||, of all gradients together. It must be at most TOLERANCE. The error that
    matters is a lost second-order part, which is large wherever the penalty contributes to the gradient.

    Args:
        name: of the step, for messages.
        double: a network whose gradients are also compared with all its parameters doubled. Initial slopes may be so
            small that the penalty contributes nothing to the gradient (one-sided penalty, for example).
        networks: that fast and eager compute with. The comparison leaves them and the random numbers as they were.
    """
    return _verified(name, "gradients", fast, eager, precision, double, networks)


def _verify_samples(
    fast: Callable[..., Tensor], eager: Callable[..., Tensor], precision: str, networks: tuple[nn.Module, ...]
) -> Callable[..., Tensor]:
    """As `verify`, for the samples of the generator."""

    def as_gradients(sample: Callable[..., Tensor]) -> Gradients:
        return lambda *batch: ({}, [sample(*batch)])

    verified = _verified("sample", "samples", as_gradients(fast), as_gradients(eager), precision, None, networks)
    return lambda *batch: verified(*batch)[1][0]


def _verified(
    name: str,
    quantity: str,
    fast: Gradients,
    eager: Gradients,
    precision: str,
    double: nn.Module | None,
    networks: tuple[nn.Module, ...],
) -> Gradients:
    chosen: list[Gradients] = []
    batches = 0

    def compute(gradients: Gradients, batch: tuple[Tensor, ...]) -> list[Tensor]:
        """Compute gradients from the state that the networks and random numbers have now, and leave it unchanged."""
        with preserve_state(*networks):
            return gradients(*batch)[1]

    def compare(batch: tuple[Tensor, ...], expected: list[Tensor]) -> tuple[str, bool]:
        """Return the relative error as text, and whether it is small enough."""
        compiled = compute(fast, batch)
        difference = total_norm([a - b for a, b in zip(compiled, expected, strict=True)]).item()
        relative = difference / max(total_norm(expected).item(), torch.finfo(expected[0].dtype).tiny)
        return f"{relative:.2g}", relative <= TOLERANCE["fp64" if expected[0].dtype == torch.float64 else precision]

    def choose(*batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        nonlocal batches
        if chosen:
            return chosen[0](*batch)
        batches += 1
        start = time.monotonic()
        expected = compute(eager, batch)
        try:
            error, equal = "", True
            if double is not None and batches == 1:
                with _doubled(double):
                    error, equal = compare(batch, compute(eager, batch))
            if equal:
                error, equal = compare(batch, expected)
            problem = "" if equal else f"its {quantity} differ from the eager ones by {error} (relative)"
        except Exception as failure:  # the compiler raises many types
            problem = f"{type(failure).__name__}: {' '.join(str(failure).splitlines()[:2])}"
        if problem:
            warnings.warn(
                f"the compiled {name} step is not used: {problem}. The run continues in eager mode", stacklevel=2
            )
        elif batches == 1:
            seconds = time.monotonic() - start
            print(f"compiled the {name} step in {seconds:.0f} s; relative error of its {quantity}: {error}")
        if problem or batches == VERIFIED.get(expected[0].device.type, 1):
            chosen.append(eager if problem else fast)
        return (eager if problem else fast)(*batch)  # not the eager result if fast is used: resumed runs agree

    return choose


@contextmanager
def _doubled(network: nn.Module) -> Iterator[None]:
    """All parameters of the network are doubled inside of the with block."""
    before = [p.data for p in network.parameters()]
    try:
        for p in network.parameters():
            p.data = 2 * p.data  # a new tensor: graphs that were recorded with the old one stay valid
        yield
    finally:
        for p, value in zip(network.parameters(), before, strict=True):
            p.data = value


def _compile_gradients(
    network: nn.Module, compute_terms: Objective, minimized: str, regularize_gradient_norm: float
) -> Gradients:
    """Compile batch -> terms, gradients of terms[minimized] with respect to the parameters of the network."""

    def objective(parameters: dict[str, Tensor], *batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        terms = compute_terms(lambda *x, **options: functional_call(network, parameters, x, options), *batch)
        return terms[minimized], terms

    def regularized(parameters: dict[str, Tensor], *batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        gradients, (value, terms) = grad_and_value(objective, has_aux=True)(parameters, *batch)
        return value + regularize_gradient_norm * sum(g.square().sum() for g in gradients.values()), terms

    whole = regularized if regularize_gradient_norm else objective

    def differentiate(parameters: dict[str, Tensor], *batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        gradients, (_, terms) = grad_and_value(whole, has_aux=True)(parameters, *batch)
        return terms, list(gradients.values())

    compiled = _compile(differentiate, next(network.parameters()).device)

    def gradients(*batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        return compiled({name: p.detach() for name, p in network.named_parameters() if p.requires_grad}, *batch)

    return gradients


def _compile(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Compile a function into one graph that keeps nothing for a backward pass; on CUDA it is recorded and replayed."""
    # torch counts recompilations per code object and gives up at eight. A sweep in one process needs a code object
    # per step.
    function.__code__ = function.__code__.replace()
    compiled: list[Callable[..., Any]] = []

    @torch.no_grad()  # otherwise a graph is kept for a backward pass that never comes, with the other network's weights
    def call(*batch: Any) -> Any:
        if not compiled:  # at the first call, so that `verify` sees an error of the compiler
            compiled.append(torch.compile(function, fullgraph=True, dynamic=False, **_options(device)))
        if device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # the next replay overwrites its outputs, hence the clones
            return torch.utils._pytree.tree_map(torch.clone, compiled[0](*batch))
        return compiled[0](*batch)

    return call


def _options(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        return {"mode": "reduce-overhead"}  # CUDA graphs: one launch per step, static buffers
    # Memory layouts stay as train.channels_last sets them. By default the compiler converts every convolution to
    # channels last, and keeps what it saves for the backward pass in both layouts.
    options: dict[str, Any] = {"layout_optimization": False}
    if torch.backends.mkldnn.is_available():
        from wgangp.onednn import OneDNN  # here: it imports the compiler, which takes a second

        options["post_grad_custom_post_pass"] = OneDNN()
    return {"options": options}
