"""The one way in which this package calls a critic, and checks of what goes in and comes out.

    real, *y = batch;  compute_scores(critic, real, *y) -> (B,)

A critic gets copies of its inputs, so that one that works in place (x.div_(255), nn.ReLU(inplace=True)) changes neither
the caller's tensors nor a leaf of a graph. Shapes are also checked while torch.compile traces.
"""

import copy
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from wgangp.precision import product_precision

__all__ = [
    "call_critic",
    "check_not_wrapped",
    "check_pairs",
    "check_per_sample",
    "check_points",
    "check_positive",
    "check_scores",
    "compute_scores",
    "copy_critic",
    "differentiate",
    "use_math_attention",
]

ONE_SCORE = "a critic returns one score per sample"
UNDEFINED = "so a gradient penalty is not defined."
SHARDED = "The network is sharded, which fails on the second-order graph of a gradient penalty"
WRAPPERS = {  # class name: why it is refused
    "DataParallel": "Its replicas on other devices are no part of a step",
    "DistributedDataParallel": "Its hooks do not see gradients that come from autograd.grad (and with static_graph=True"
    " not all of those from backward), so that every rank would train alone",
    "FullyShardedDataParallel": SHARDED,
    "FSDPModule": SHARDED,
}


def compute_scores(critic: Callable[..., Tensor], x: Tensor, *y: Tensor) -> Tensor:
    """Compute the score D(x, y) of every sample (B,). ValueError if points, labels, scores or the call are wrong."""
    return check_scores(call_critic(critic, x, *y))


def call_critic(critic: Callable[..., Any], x: Tensor, *y: Tensor, **options: Any) -> Any:
    """Return what the critic returns for copies of points and labels: tensors with one row per sample."""
    check_points(x, *y)
    inputs = [tensor.clone() for tensor in (x, *y)]
    outputs = critic(*inputs, **options) if torch.compiler.is_compiling() else _call(critic, inputs, options)
    tensors = [outputs] if isinstance(outputs, Tensor) else tree_leaves(outputs)
    if not all(isinstance(out, Tensor) and out.shape[:1] == x.shape[:1] for out in tensors):
        _refuse(outputs, len(x))
    return outputs


def check_points(x: Tensor, *y: Tensor) -> None:
    """Raise ValueError unless x (B, *) is dense, real, in floating point, B >= 1, and y has one row per sample."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.layout is not torch.strided:
        kind = f"{x.dtype}, {x.layout}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"points are a dense tensor of real numbers in floating point: got {kind}. Use x.float(), x.to_dense() or"
            " torch.view_as_real(x); for tokens one-hot vectors, since the slope is taken with respect to x"
        )
    if x.ndim == 0 or x.shape[0] == 0:  # len(x) is slow
        raise ValueError(f"points have the shape (B, *) with at least one sample: got {tuple(x.shape)}")
    if not all(isinstance(labels, Tensor) and labels.shape[:1] == x.shape[:1] for labels in y):
        sizes = ", ".join(str(tuple(labels.shape)) if isinstance(labels, Tensor) else repr(labels) for labels in y)
        raise ValueError(f"y has {sizes} labels for {len(x)} samples: y is a tuple of tensors, with one row per sample")


def check_pairs(real: Tensor, fake: Tensor, *y: Tensor) -> None:
    """Raise ValueError unless real and fake are points of the same shape, as in `check_points`."""
    check_points(real, *y)
    check_points(fake)
    if real.shape != fake.shape:
        raise ValueError(f"real {tuple(real.shape)} and fake {tuple(fake.shape)} must have the same shape")


def check_scores(scores: Any, count: int | None = None) -> Tensor:
    """Return scores (B,) or (B, 1) as (B,). ValueError if they are not real numbers, one per sample (count of them)."""
    if isinstance(scores, Tensor) and scores.ndim > 0 and count is None:
        count = scores.shape[0]
    if not isinstance(scores, Tensor) or scores.ndim == 0 or not scores.shape[0] == scores.numel() == count:
        _refuse(scores, count)
    if not scores.is_floating_point():
        raise ValueError(f"{ONE_SCORE}, a real number in floating point: got {scores.dtype}")
    return scores.flatten()


def check_not_wrapped(*networks: nn.Module) -> None:
    """Raise ValueError for a network that is wrapped for another kind of data parallelism."""
    find = _find_wrapper.__wrapped__ if torch.compiler.is_compiling() else _find_wrapper  # it warns about a cache
    for name in {find(type(module)) for network in networks for module in network.modules()} - {None}:
        raise ValueError(
            f"a network is wrapped in {name}. {WRAPPERS[name]}. Pass the module itself, and start with torchrun"
        )


@cache
def _find_wrapper(kind: type) -> str | None:
    return next((base.__name__ for base in kind.__mro__ if base.__name__ in WRAPPERS), None)


def differentiate(
    value: Tensor, tensors: list[Tensor], name: str, goal: str, *, create_graph: bool = False
) -> list[Tensor]:
    """Return the gradient of value () with respect to each tensor; zeros for tensors that it does not depend on.

    ValueError if it depends on none of them, or torch has no such derivative; name and goal are what the message calls
    value and tensors.
    """
    gradients: tuple[Tensor | None, ...] = ()
    if tensors and value.requires_grad:
        gradients = _grad(value, tensors, name, create_graph=create_graph)
    if all(gradient is None for gradient in gradients):
        raise ValueError(
            f"{name} has no graph back to {goal}, so it has no gradient: remove no_grad(), detach() or .data from the"
            " forward of the network, or from the code around it"
        )
    return [torch.zeros_like(x) if g is None else g for x, g in zip(tensors, gradients, strict=True)]


def _grad(value: Tensor, tensors: list[Tensor], name: str, create_graph: bool = False) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(value, tensors, create_graph=create_graph, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"{name} has no second derivative, which the gradient of a penalty needs: {error}. Compile the step and not"
            " the critic. For an RNN on CUDA use torch.backends.cudnn.flags(enabled=False), for torch.utils.checkpoint"
            " use_reentrant=False; docs/your-own-critic.md lists what works"
        ) from error


def use_math_attention(needed: bool) -> AbstractContextManager[None]:
    """Let attention use the form that has second derivatives if they are needed. The fused form has none."""
    return sdpa_kernel(SDPBackend.MATH) if needed else nullcontext()


def copy_critic(critic: Callable[..., Any]) -> Callable[..., Any]:
    """Return a copy of a module, or of a function together with the modules that it names.

    deepcopy refuses tensors that have a graph. A forward may leave such tensors in a module (spectral_norm keeps its
    weight in this way), so they are copied without their graph.
    """
    if isinstance(critic, FunctionType):
        names, cells = dict(critic.__globals__), list(critic.__closure__ or ())
        for name in critic.__code__.co_names:
            if isinstance(names.get(name), nn.Module):
                names[name] = copy_critic(names[name])
        for i, cell in enumerate(cells):
            if cell != CellType() and callable(cell.cell_contents) and cell.cell_contents is not critic:
                cells[i] = CellType(copy_critic(cell.cell_contents))
        function = FunctionType(critic.__code__, names, critic.__name__, critic.__defaults__, tuple(cells))
        function.__kwdefaults__ = critic.__kwdefaults__
        return function
    modules = critic.modules() if isinstance(critic, nn.Module) else ()
    tensors = [t for module in modules for t in tree_leaves(list(vars(module).values())) if isinstance(t, Tensor)]
    return copy.deepcopy(critic, {id(t): t.detach().clone() for t in tensors if t.grad_fn is not None})


def check_positive(name: str, value: float) -> None:
    """Raise ValueError if the value is not above 0."""
    if not value > 0:
        raise ValueError(f"{name} = {value}: must be > 0")


def _refuse(outputs: Any, count: int | None) -> None:
    if not isinstance(outputs, Tensor):
        key = repr(next(iter(outputs), 0)) if isinstance(outputs, dict) else 0
        raise ValueError(
            f"{ONE_SCORE}: got a value of type {type(outputs).__name__}. Pass a function that returns the score alone,"
            f" for example `lambda x: critic(x)[{key}]`, or to a step an nn.Module whose forward does so"
        )
    remedy = "Reduce all axes but the first, for example score.flatten(1).mean(1)"
    if outputs.numel() == count:
        remedy = "Return score.flatten()"
    elif outputs.ndim == 0:
        remedy = "Return the scores, not their mean"
    raise ValueError(f"{ONE_SCORE}, (B,) or (B, 1): got {tuple(outputs.shape)} for {count} samples. {remedy}")


def _call(critic: Callable[..., Any], inputs: list[Tensor], options: dict[str, Any]) -> Any:
    """Call the critic, and explain two errors of torch and Python."""
    try:
        return critic(*inputs, **options)
    except TypeError as error:
        try:
            original = inspect.unwrap(critic)
            inspect.signature(getattr(original, "forward", original)).bind(*inputs, **options)
        except (TypeError, ValueError):
            raise ValueError(
                f"a critic is called as critic(x, *y), here with {len(inputs)} argument(s): {error}. Pass labels as y,"
                " or wrap the critic, for example `lambda x: critic(pictures=x)`"
            ) from error
        raise
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise ValueError(
            "the critic has weights that were made under torch.inference_mode(), and so have no gradient: build, load"
            " and move the critic outside of it"
        ) from error


def check_per_sample(critic: Callable[..., Tensor], x: Tensor, *, y: tuple[Tensor, ...] = ()) -> None:
    """Raise ValueError if a gradient penalty is not defined for the critic: a score depends on another sample.

    The penalty has no meaning for a critic that maps a whole batch to a batch of scores (Paper: section 4, "No critic
    batch normalization"), and it needs second derivatives. For every pair i, j the check computes d score_i / d x_j,
    which must be 0, and score_i with another x_j, which must not change. Besides, score and gradient of each sample
    must be the same in a batch of its own copies, unless the critic draws random numbers (dropout draws per sample).

    Args:
        critic: (x, *y) -> (B,) or (B, 1). Copies are used: its state does not change, nor do torch's random numbers.
        x: points (B, *), B >= 2.
        y: (labels (B,),), if the critic takes labels.

    Raises:
        ValueError: as above, and as in `gradients.gradient_norm`.
    """
    check_points(x, *y)
    if isinstance(critic, nn.Module):
        check_not_wrapped(critic)
    count = len(x)
    if count < 2:
        raise ValueError(f"x has {count} sample(s): at least two are needed to see if scores depend on each other")
    x, *y = (tensor.detach() for tensor in (x, *y))
    scores, gradient, random = _evaluate(critic, x, *y, second=True)
    if not scores.isfinite().all():
        raise ValueError("the critic's score is NaN or infinite. Use finite points and weights")
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (x, scores))
    largest = scores.abs().max()
    positions = torch.arange(count, device=x.device)
    for bit in range((count - 1).bit_length()):  # the numbers of two samples differ in at least one bit
        for own in (positions >> bit & 1 == 0, positions >> bit & 1 == 1):
            leaked = _evaluate(critic, x, *y, rows=own)[1][~own]
            mixed = [torch.where(own.view(-1, *[1] * (t.ndim - 1)), t, t.roll(1, 0)) for t in (x, *y)]
            change = (_evaluate(critic, *mixed)[0] - scores)[own].abs().max()
            if leaked.ne(0).any() or not change <= 1000 * eps * largest:  # NaN counts as dependence
                raise ValueError(
                    "the critic mixes the samples of a batch (batch norm?): score i changes with x_j,"
                    f" {UNDEFINED} Use a norm within each sample (layer norm), or penalty.weight=0"
                )
    for i in range(0 if random else count):
        copies = (t[i : i + 1].repeat_interleave(2 + (count == 2), dim=0) for t in (x, *y))
        try:
            own_scores, own_gradient, _ = _evaluate(critic, *copies)
        except RuntimeError as error:
            raise ValueError(f"the critic works for batches of one size only: {error}") from error
        change, turn = (own_scores[0] - scores[i]).abs(), (own_gradient[0] - gradient[i]).norm()
        if not (change <= eps**0.5 * largest and turn <= 0.05 * gradient[i].norm()):
            raise ValueError(
                f"the score of sample {i}, or its gradient, depends on the size of the batch or the place in it,"
                f" {UNDEFINED} Let the critic treat every sample by itself, or use penalty.weight=0"
            )


def _evaluate(
    critic: Callable[..., Tensor], x: Tensor, *y: Tensor, rows: Tensor | None = None, second: bool = False
) -> tuple[Tensor, Tensor, bool]:
    """Evaluate a copy of the critic, always with the same random numbers, and with the second derivative of a step.

    Returns:
        scores (B,); the gradient (B, *) of their sum, or of a weighted sum over rows (a mask); whether random numbers
        were drawn.
    """
    devices = [x.device] if x.is_cuda else []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        use_math_attention(True),
        product_precision("fp32"),
        torch.random.fork_rng(devices),
    ):
        states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
        critic, x = copy_critic(critic), x.clone().requires_grad_()
        parameters = [p for p in critic.parameters() if p.requires_grad] if isinstance(critic, nn.Module) else []
        scores = compute_scores(critic, x, *y)
        if second:
            _watch_functions(scores)
        after = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
        weights = 1 / (1 + torch.arange(len(x), device=x.device) % 7)  # nothing cancels
        weights = torch.ones((), device=x.device, requires_grad=second) if rows is None else rows * weights
        name = ("the critic's score", "its points")
        (gradient,) = differentiate((weights * scores).sum(), [x], *name, create_graph=second)
        if second:
            _grad(gradient.square().sum(), [x, *parameters], name[0])
    drawn = not all(map(torch.equal, states, after))
    return scores.detach(), gradient.detach(), drawn


def _watch_functions(scores: Tensor) -> None:
    """Let a backward pass raise ValueError where an autograd.Function returns a gradient without its graph.

    torch.autograd.grad leaves the second derivative of such a function out, without an error.
    """
    nodes, seen = [scores.grad_fn], {None}
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            nodes += [parent for parent, _ in node.next_functions]
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                node.register_hook(partial(_check_graph, node.name()))


def _check_graph(name: str, gradients: tuple[Tensor | None, ...], _: Any) -> None:
    for gradient in gradients:
        lost = gradient is not None and (gradient.grad_fn is None or gradient.grad_fn.name().endswith("::Error"))
        if lost and gradient.any():  # Error: once_differentiable
            raise ValueError(
                f"{name}, the backward of a torch.autograd.Function in the critic, cannot be differentiated, and the"
                " penalty needs its derivative: write it with differentiable operations, without once_differentiable"
            )
