"""How one training iteration is computed: eagerly or compiled, and at which precision.

Compiling the critic alone does not work with a penalty: its second derivatives are refused, or silently lost. So the
whole of "objective, and its gradient with respect to the parameters" is compiled. At the first batch the compiled
gradients are compared with the eager ones. If they differ, or if the compiler fails, a warning is printed and the run
uses the eager ones.

A compiled function has no side effects. So the buffers of a network (running statistics of batch norm, vectors of
spectral norm, counters) go in as arguments, and their new values come out and are stored in the network.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.utils._pytree import tree_map

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
FLOOR = 0.01
VERIFIED = {"cpu": 1, "cuda": 3}  # batches; a CUDA graph warms up at the first, records the second, replays the third


@dataclass(frozen=True)
class Computation:
    """The three computations of a training iteration.

    sample                 (z, *y) -> fake samples (B, *), without a graph
    critic_gradients       (real, fake, eps, *y) -> the terms (), one gradient per trainable parameter of the critic
    generator_gradients    (z, *y) -> the terms (), one gradient per trainable parameter of the generator
    problems               name of a step -> why its compiled form is not used; filled at the first batches
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
            there (see `verify`). A batch of another size is compiled again, without a comparison. On CUDA the graphs
            are recorded and replayed (CUDA graphs).

    Raises:
        ValueError: the precision is unknown, or not available on the device of the critic.
    """
    device = next(critic.parameters()).device
    check_precision(precision, device)

    def sample(generator: Callable[..., Tensor], z: Tensor, *y: Tensor) -> Tensor:
        with autocast(precision, device):
            return generator(z, *y).to(z.dtype)

    def eager_sample(z: Tensor, *y: Tensor) -> Tensor:
        with torch.no_grad():
            return sample(generator, z, *y)

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

    if not compile:
        return Computation(eager_sample, eager_critic, eager_generator)

    def critic_terms(critic: Callable[..., Any], *batch: Tensor) -> dict[str, Tensor]:
        with autocast(precision, device):
            return critic_objective(critic, *batch, penalty=penalty, loss=loss)

    def generator_terms(generator: Callable[..., Any], critic: Callable[..., Any], *batch: Tensor) -> dict[str, Tensor]:
        with autocast(precision, device):
            return generator_objective(generator, critic, *batch, loss=loss)

    fast_critic = _compile_gradients((critic,), critic_terms, "critic_loss", regularize_gradient_norm)
    fast_generator = _compile_gradients(
        (generator, critic), generator_terms, "generator_loss", regularize_gradient_norm
    )
    problems: dict[str, str] = {}
    options = {"precision": precision, "networks": (generator, critic), "problems": problems}
    return Computation(
        sample=_verify_samples(_compile_samples(generator, sample), eager_sample, **options),
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
    ||fast - eager|| / ||eager||, for each parameter. It must be at most TOLERANCE. The error that matters is a lost
    part of a gradient, such as its second-order part. Gradients that are small beside all gradients together are
    compared with FLOOR times the norm of all: there may be nothing but rounding in them.

    Args:
        name: of the step, for messages.
        double: a network whose gradients are also compared with all its parameters doubled. Initial slopes may be so
            small that the penalty contributes nothing to the gradient (one-sided penalty, for example).
        networks: all networks that fast and eager compute with. The comparison leaves them as they were.
        problems: gets an entry under the name if fast is not used.
        quantity: what is compared, for messages.
    """
    chosen: list[Gradients] = []
    batches = 0

    def compute(gradients: Gradients, batch: tuple[Tensor, ...]) -> list[Tensor]:
        with preserve_state(*networks), _preserve_modes():
            return gradients(*batch)[1]

    def compare(batch: tuple[Tensor, ...], expected: list[Tensor]) -> tuple[float, str]:
        """Return the largest relative error, and what is wrong with it if it is too large."""
        allowed = TOLERANCE["fp64" if expected[0].dtype == torch.float64 else precision]
        error, i = _largest_error(compute(fast, batch), expected, FLOOR)
        message = (
            f"its {quantity} differ from the eager ones by {error:.2g} (relative, tensor {i + 1} of {len(expected)})"
        )
        return error, "" if error <= allowed else message

    def choose(*batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        nonlocal batches
        if chosen:
            return chosen[0](*batch)
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
            problem = f"{type(failure).__name__}: {' '.join(str(failure).splitlines()[:2])}"
        if problem:
            if problems is not None:
                problems[name] = problem
            message = f"the compiled {name} step is not used: {problem}. The run continues in eager mode"
            warnings.warn(message, stacklevel=2)
        elif batches == 1:
            seconds = time.monotonic() - start
            print(f"compiled the {name} step in {seconds:.0f} s; relative error of its {quantity}: {error:.2g}")
        if problem or batches == VERIFIED.get(expected[0].device.type, 1):
            chosen.append(eager if problem else fast)
        return (eager if problem else fast)(*batch)  # not the eager result if fast is used: resumed runs agree

    return choose


def _verify_samples(fast: Callable[..., Tensor], eager: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    """As `verify`, for the samples of the generator."""

    def as_gradients(sample: Callable[..., Tensor]) -> Gradients:
        return lambda *batch: ({}, [sample(*batch)])

    choose = verify("sample", as_gradients(fast), as_gradients(eager), quantity="samples", **options)
    return lambda *batch: choose(*batch)[1][0]


def _largest_error(actual: list[Tensor], expected: list[Tensor], floor: float) -> tuple[float, int]:
    """Return the largest relative error of a tensor, and its index. Norms below floor * the norm of all count as that.

    NaN is larger than everything.
    """
    least = max(floor * total_norm(expected).item(), torch.finfo(expected[0].dtype).tiny)
    norms = torch.stack([b.norm() for b in expected]).clamp(min=least)
    errors = torch.stack([(a - b).norm() for a, b in zip(actual, expected, strict=True)]) / norms
    error, i = errors.nan_to_num(nan=math.inf).max(0)
    return error.item(), i.item()


@contextmanager
def _double(network: nn.Module) -> Iterator[None]:
    """All parameters of the network are doubled inside of the with block."""
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


class _WithBuffers(nn.Module):
    """A network that also returns its buffers as they are after the call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *x: Any, **options: Any) -> tuple[Any, dict[str, Tensor]]:
        return self.network(*x, **options), dict(self.network.named_buffers())


def _bind(network: _WithBuffers, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Callable[..., Any]:
    """Return a function that calls the network with these tensors. A call replaces the buffers by their new values."""

    def call(*x: Any, **options: Any) -> Any:
        # Copies, which are made at the level of torch.func at which the call is: only there they may change in place.
        tensors = parameters | {name: buffer.clone() for name, buffer in buffers.items()}
        tensors = {f"network.{name}": tensor for name, tensor in tensors.items()}
        outputs, changed = functional_call(network, tensors, x, options)
        buffers.update(changed)
        return outputs

    return call


def _compile_gradients(
    networks: tuple[nn.Module, ...], compute_terms: Objective, minimized: str, regularize_gradient_norm: float
) -> Gradients:
    """Compile batch -> terms, gradients of terms[minimized] with respect to the parameters of the first network."""
    holders = [_WithBuffers(network) for network in networks]

    def objective(
        parameters: dict[str, Tensor], buffers: list[dict[str, Tensor]], *batch: Tensor
    ) -> tuple[Tensor, Any]:
        buffers = [dict(own) for own in buffers]
        given = [parameters, *[{}] * (len(holders) - 1)]
        terms = compute_terms(*map(_bind, holders, given, buffers), *batch)
        return terms[minimized], (terms, tree_map(torch.clone, buffers))

    def add_gradient_norm(parameters: dict[str, Tensor], *arguments: Any) -> tuple[Tensor, Any]:
        gradients, (value, results) = grad_and_value(objective, has_aux=True)(parameters, *arguments)
        return value + regularize_gradient_norm * sum(g.square().sum() for g in gradients.values()), results

    whole = add_gradient_norm if regularize_gradient_norm else objective

    def differentiate(
        buffers: list[dict[str, Tensor]], parameters: dict[str, Tensor], *batch: Tensor
    ) -> tuple[Any, list[dict[str, Tensor]]]:
        gradients, (_, (terms, buffers)) = grad_and_value(whole, has_aux=True)(parameters, buffers, *batch)
        return (terms, list(gradients.values())), buffers

    compiled = _compile(differentiate, networks)

    def gradients(*batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        return compiled({name: p.detach() for name, p in networks[0].named_parameters() if p.requires_grad}, *batch)

    return gradients


def _compile_samples(generator: nn.Module, sample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile z, y -> samples."""
    holder = _WithBuffers(generator)

    def call(buffers: list[dict[str, Tensor]], *batch: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
        own = dict(buffers[0])
        return sample(_bind(holder, {}, own), *batch), [own]

    return _compile(call, (generator,))


def _compile(function: Callable[..., Any], networks: tuple[nn.Module, ...]) -> Callable[..., Any]:
    """Compile function(buffers of the networks, *arguments) -> (result, new buffers) into one graph.

    The graph keeps nothing for a backward pass. On CUDA it is recorded and replayed.

    Returns:
        a function of the arguments that returns the result and stores the new buffers in the networks.
    """
    # torch counts recompilations per code object and gives up at eight. A sweep in one process needs a code object
    # per step.
    function.__code__ = function.__code__.replace()
    compiled: list[Callable[..., Any]] = []
    device = next(networks[0].parameters()).device

    @torch.no_grad()  # otherwise a graph is kept for a backward pass that never comes, with the other network's weights
    def call(*arguments: Any) -> Any:
        if not compiled:  # at the first call, so that `verify` sees an error of the compiler
            compiled.append(torch.compile(function, fullgraph=True, dynamic=False, options=_options(device)))
        buffers = [dict(network.named_buffers()) for network in networks]
        if device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # the next replay overwrites its outputs, hence the clones
        result, changed = compiled[0](buffers, *arguments)
        for old, new in zip(buffers, changed, strict=True):
            for name, buffer in old.items():
                buffer.copy_(new[name])
        return tree_map(torch.clone, result) if device.type == "cuda" else result

    return call


def _options(device: torch.device) -> dict[str, Any]:
    options: dict[str, Any] = {"fallback_random": True}  # dropout draws what it draws in eager mode
    if device.type == "cuda":
        return options | {"triton.cudagraphs": True}  # CUDA graphs: one launch per step, static buffers
    # Memory layouts stay as train.channels_last sets them. By default the compiler converts every convolution to
    # channels last, and keeps what it saves for the backward pass in both layouts.
    options["layout_optimization"] = False
    if torch.backends.mkldnn.is_available():
        from wgangp.onednn import OneDNN  # here: it imports the compiler, which takes a second

        options["post_grad_custom_post_pass"] = OneDNN()
    return options
