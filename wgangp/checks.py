"""The one way in which this package calls a critic, and checks of what goes in and comes out.

    real, *y = batch;  compute_scores(critic, real, *y) -> (B,)

A critic gets copies of its inputs, so that one that works in place (x.div_(255), nn.ReLU(inplace=True)) changes neither
the caller's tensors nor a leaf of a graph. Shapes are also checked while torch.compile traces.
"""

import copy
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

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
    "math_attention",
]

ONE_SCORE = "a critic returns one score per sample"
SHARDED = "The network is sharded, which fails on the second-order graph of a gradient penalty"
WRAPPERS = {  # class name: why it is refused
    "DataParallel": "Its replicas on other devices are no part of a step",
    "DistributedDataParallel": "Its hooks do not see gradients that come from autograd.grad (and with static_graph=True"
    " not all of those from backward), so that every rank would train alone",
    "FullyShardedDataParallel": SHARDED,
    "FSDPModule": SHARDED,
}


def compute_scores(critic: Callable[..., Tensor], x: Tensor, *y: Tensor) -> Tensor:
    """Compute the score D(x, y) of every sample (B,), and check points, labels and scores.

    Args:
        critic: (x, *y) -> (B,) or (B, 1).
        x: points (B, *), B >= 1, in floating point.
        y: labels, one per sample.

    Raises:
        ValueError: as in `check_points` and `check_scores`; the critic cannot be called with these arguments.
    """
    return check_scores(call_critic(critic, x, *y), len(x))


def call_critic(critic: Callable[..., Any], x: Tensor, *y: Tensor, **options: Any) -> Any:
    """Return what the critic returns for copies of points and labels: tensors with one row per sample."""
    check_points(x, *y)
    inputs = [tensor.clone() for tensor in (x, *y)]
    outputs = critic(*inputs, **options) if torch.compiler.is_compiling() else _call(critic, inputs, options)
    if not all(isinstance(out, Tensor) and out.ndim > 0 and len(out) == len(x) for out in tree_leaves(outputs)):
        _refuse(outputs, len(x))
    return outputs


def check_points(x: Tensor, *y: Tensor) -> None:
    """Raise ValueError unless x (B, *) is dense, real, in floating point, B >= 1, and y has one row per sample."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.layout is not torch.strided:
        kind = f"{x.dtype}, {x.layout}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"points are a dense tensor of real numbers in floating point: got {kind}. Use x.float(), x.to_dense() or"
            " torch.view_as_real(x)"
        )
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"points have the shape (B, *) with at least one sample: got {tuple(x.shape)}")
    if any(not isinstance(labels, Tensor) or labels.ndim == 0 or len(labels) != len(x) for labels in y):
        sizes = ", ".join(str(tuple(labels.shape)) if isinstance(labels, Tensor) else repr(labels) for labels in y)
        raise ValueError(f"y has {sizes} labels for {len(x)} samples: y is a tuple of tensors, with one row per sample")


def check_pairs(real: Tensor, fake: Tensor, *y: Tensor) -> None:
    """Raise ValueError unless real and fake are points of the same shape, as in `check_points`."""
    check_points(real, *y)
    check_points(fake)
    if real.shape != fake.shape:
        raise ValueError(f"real {tuple(real.shape)} and fake {tuple(fake.shape)} must have the same shape")


def check_scores(scores: Any, count: int | None = None) -> Tensor:
    """Return scores (B,) or (B, 1) as (B,). ValueError if they are not `count` real numbers, one per sample."""
    count = len(scores) if count is None and isinstance(scores, Tensor) and scores.ndim else count
    if not isinstance(scores, Tensor) or scores.ndim == 0 or len(scores) != count or scores.numel() != count:
        _refuse(scores, count)
    if not scores.is_floating_point():
        raise ValueError(f"{ONE_SCORE}, a real number in floating point: got {scores.dtype}")
    return scores.flatten()


def check_not_wrapped(*networks: nn.Module) -> None:
    """Raise ValueError for a network that is wrapped for another kind of data parallelism."""
    for module in (module for network in networks for module in network.modules()):
        for kind in type(module).__mro__:
            if kind.__name__ in WRAPPERS:
                raise ValueError(
                    f"a network is wrapped in {kind.__name__}. {WRAPPERS[kind.__name__]}. Pass the module itself, and"
                    " start with torchrun"
                )


def differentiate(
    value: Tensor, tensors: list[Tensor], name: str, goal: str, *, create_graph: bool = False
) -> list[Tensor]:
    """Return the gradient of value () with respect to each tensor; zeros for tensors that it does not depend on.

    Raises:
        ValueError: value depends on none of them through the graph. name and goal are what the message calls them.
    """
    gradients: tuple[Tensor | None, ...] = ()
    if tensors and value.requires_grad:
        gradients = torch.autograd.grad(value, tensors, create_graph=create_graph, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise ValueError(
            f"{name} has no graph back to {goal}, so it has no gradient: remove no_grad(), detach() or .data from the"
            " forward of the network, or from the code around it"
        )
    return [torch.zeros_like(x) if g is None else g for x, g in zip(tensors, gradients, strict=True)]


def math_attention(needed: bool) -> AbstractContextManager[None]:
    """Let attention use the form that has second derivatives if they are needed. The fused form has none."""
    return sdpa_kernel(SDPBackend.MATH) if needed else nullcontext()


def copy_critic(critic: Callable[..., Any]) -> Callable[..., Any]:
    """Return a copy of a critic, whose state (buffers, counters) moves on without that of the critic.

    deepcopy refuses tensors that have a graph. A forward may leave such tensors in a module (spectral_norm keeps its
    weight in this way), so they are copied without their graph. A plain function is not copied.
    """
    modules = critic.modules() if isinstance(critic, nn.Module) else ()
    tensors = [t for module in modules for t in tree_leaves(list(vars(module).values())) if isinstance(t, Tensor)]
    return copy.deepcopy(critic, {id(t): t.detach().clone() for t in tensors if t.grad_fn is not None})


def check_positive(name: str, value: float) -> None:
    """Raise ValueError if the value is not above 0."""
    if not value > 0:
        raise ValueError(f"{name} = {value}: must be > 0")


def _refuse(outputs: Any, count: int | None) -> None:
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"{ONE_SCORE}: this one returns a {type(outputs).__name__}. Pass a function that returns the score alone,"
            " for example `lambda x: critic(x)[0]`, or to a step an nn.Module whose forward does so"
        )
    raise ValueError(
        f"{ONE_SCORE}, (B,) or (B, 1): got {tuple(outputs.shape)} for {count} samples. Reduce all axes but the first,"
        " for example score.flatten(1).mean(1)"
    )


def _call(critic: Callable[..., Any], inputs: list[Tensor], options: dict[str, Any]) -> Any:
    """Call the critic, and explain two errors of torch and Python."""
    try:
        return critic(*inputs, **options)
    except TypeError as error:
        try:
            inspect.signature(getattr(critic, "forward", critic)).bind(*inputs, **options)
        except (TypeError, ValueError):
            raise ValueError(
                f"a critic is called as critic(x, *y) with a batch, here with {len(inputs)} arguments: {error}. Pass"
                " labels as y, or wrap the critic, for example `lambda x: critic(pictures=x)`"
            ) from error
        raise
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise ValueError(
            "the critic has weights that were made under torch.inference_mode(), and so have no gradient: build, load"
            " and move the critic outside of it"
        ) from error


def check_per_sample(critic: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Raise ValueError if the score of one sample depends on another sample, as it does with batch norm.

    The penalty is on the gradient of each score with respect to its own sample. It has no meaning for a critic that
    maps a whole batch to a batch of scores (Paper: section 4, "No critic batch normalization"). The check computes
    d score_i / d x_0, which must be 0 for every i > 0.

    Args:
        critic: (B, *) -> (B,) or (B, 1). A copy is used, so its running statistics do not change.
        x: points (B, *), B >= 2.
    """
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} sample(s): at least two are needed to see if scores depend on each other")
    critic = copy.deepcopy(critic)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        others = critic(x)[1:].sum()
    if not others.requires_grad:
        raise ValueError("the critic's score has no graph: remove no_grad(), detach() or .data from its forward")
    (gradient,) = torch.autograd.grad(others, x, materialize_grads=True)
    if gradient[0].ne(0).any():  # NaN counts as dependence
        raise ValueError(
            "the critic mixes the samples of a batch (batch norm?): score i changes with x_j, so a gradient penalty is"
            " not defined. Use a critic without batch norm, a norm within each sample (layer norm), or"
            " penalty.weight=0"
        )
