"""The one way in which this package calls a critic, and checks of what goes in and comes out.

    real, *y = batch;  compute_scores(critic, real, *y) -> (B,)

A critic gets copies of its inputs, so that one that works in place (x.div_(255), nn.ReLU(inplace=True)) changes neither
the caller's tensors nor a leaf of a graph. Shapes are also checked while torch.compile traces.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from wgangp.state import digest_random_state, find_state

__all__ = [
    "SCORE",
    "average_terms",
    "call_critic",
    "call_derivative",
    "call_generator",
    "check_eps",
    "check_graph",
    "check_no_eps",
    "check_not_random",
    "check_not_wrapped",
    "check_pairs",
    "check_points",
    "check_positive",
    "check_scores",
    "check_slope",
    "compute_scores",
    "differentiate",
    "is_random",
    "refuse_constant_slope",
    "use_math_attention",
]

SCORE = ("the critic's score", "its points")  # names for `differentiate`
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


def call_generator(generator: Callable[..., Any], z: Tensor, *y: Tensor) -> Tensor:
    """Return the samples (B, *) of a generator for copies of noise z (B, *) and labels. ValueError if wrong."""
    check_points(z, *y)
    inputs = [tensor.clone() for tensor in (z, *y)]
    fake = generator(*inputs) if torch.compiler.is_compiling() else _call_generator(generator, inputs)
    if not isinstance(fake, Tensor) or fake.shape[:1] != z.shape[:1] or not fake.is_floating_point():
        raise ValueError(
            "a generator returns one sample per row of z, a tensor (B, *) in floating point: got"
            f" {_describe(fake)} for {len(z)} rows. Return the samples alone"
        )
    return fake


def check_eps(eps: Any, shape: tuple[int, ...], meaning: str) -> None:
    """Raise ValueError unless eps is a tensor of this shape in floating point; meaning is what the message says."""
    if not isinstance(eps, Tensor) or eps.shape != shape or not eps.is_floating_point():
        raise ValueError(
            f"eps must have {meaning}, {tuple(shape)}, in floating point: got {_describe(eps)}. Labels come after eps,"
            " which may be None"
        )


def check_no_eps(eps: Any, points: str) -> None:
    """Raise ValueError if there is an eps for points of a penalty that need none: labels in its place would be lost."""
    if eps is not None:
        raise ValueError(f"points={points} takes no eps. Labels come after eps, which may be None")


def average_terms(terms: Any, minimized: str) -> dict[str, Tensor]:
    """Return the mean over the batch () of every term of a loss. ValueError without the one that is minimized."""
    if not isinstance(terms, dict) or minimized not in terms:
        got = ", ".join(map(str, terms)) if isinstance(terms, dict) else type(terms).__name__
        raise ValueError(f"the loss returns a dict of terms, one of them {minimized}, which is minimized: got {got}")
    return {name: term.mean() for name, term in terms.items()}


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
        sizes = [str(tuple(labels.shape)) if isinstance(labels, Tensor) else repr(labels) for labels in y]
        got = f"has {', '.join(sizes[:4])}{', ...' * (len(sizes) > 4)} labels for {len(x)} samples"
        if all(isinstance(labels, Tensor) and labels.ndim == 0 for labels in y):
            got = "is a tensor: write y=(labels,)"  # a function got its rows
        raise ValueError(f"y {got}: y is a tuple of tensors, with one row per sample")


def check_pairs(real: Tensor, fake: Tensor, *y: Tensor) -> None:
    """Raise ValueError unless real and fake are points of the same shape, as in `check_points`."""
    check_points(real, *y)
    check_points(fake)
    if real.shape != fake.shape:
        remedy = ": take the same number of each" * (real.shape[1:] == fake.shape[1:])
        raise ValueError(f"real {tuple(real.shape)} and fake {tuple(fake.shape)} must have the same shape{remedy}")


def check_scores(scores: Any) -> Tensor:
    """Return scores (B,) or (B, 1) as (B,). ValueError if they are not real numbers, one per sample."""
    count = scores.shape[0] if isinstance(scores, Tensor) and scores.ndim > 0 else None
    if count is None or scores.numel() != count:
        _refuse(scores, count)
    if not scores.is_floating_point():
        raise ValueError(f"{ONE_SCORE}, a real number in floating point: got {scores.dtype}")
    return scores.flatten()


def check_not_wrapped(*networks: nn.Module) -> None:
    """Raise ValueError for a network that is wrapped for another kind of data parallelism."""
    find = _find_wrapper.__wrapped__ if torch.compiler.is_compiling() else _find_wrapper  # it warns about a cache
    for name in {find(type(module)) for network in networks for module in network.modules()} - {None}:
        raise ValueError(
            f"a network is wrapped in {name}. {WRAPPERS[name]}. Pass the module itself. scripts/train.py, started with"
            " torchrun, averages over processes; in a loop of your own average the results of critic_gradients and"
            " generator_gradients yourself"
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
        gradients = call_derivative(value, tensors, name, create_graph=create_graph)
    if all(gradient is None for gradient in gradients):
        _refuse_cut(name, goal)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(tensors, gradients, strict=True)]


def check_graph(value: Tensor, name: str, goal: str) -> None:
    """Raise ValueError if value has no graph at all. Inside of torch.func.grad this tells about its argument alone."""
    if not value.requires_grad:
        _refuse_cut(name, goal)


def _refuse_cut(name: str, goal: str) -> None:
    raise ValueError(
        f"{name} has no graph back to {goal}, so it has no gradient: remove no_grad(), inference_mode(), detach() or"
        " .data from the forward of the network, or from the code around it"
    )


def check_slope(slope: Tensor, critic: Callable[..., Any]) -> None:
    """Raise ValueError if the slope has no graph although the critic has trainable weights: it would train nothing.

    Also if its graph would not reach all ranks.
    """
    if getattr(critic, "static_graph", False) and _find_wrapper(type(critic)) == "DistributedDataParallel":
        raise ValueError(
            "DistributedDataParallel with static_graph=True does not average all gradients of a penalty: leave"
            " static_graph out"
        )
    if slope.requires_grad or not torch.is_grad_enabled():
        return
    if not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is not None:
        return  # requires_grad tells about the argument of torch.func.grad, which may be another one
    networks = [critic] if isinstance(critic, nn.Module) or torch.compiler.is_compiling() else find_state(critic)
    networks = [network for network in networks if isinstance(network, nn.Module)]
    if any(p.requires_grad for network in networks for p in network.parameters()):
        refuse_constant_slope()


def refuse_constant_slope() -> None:
    raise ValueError(
        "the slope of the critic does not depend on any of its trainable weights, so that a gradient penalty trains"
        " nothing: remove round(), floor(), sign() or detach() in front of the layers, or use penalty.weight=0"
    )


def call_derivative(
    value: Tensor, tensors: list[Tensor], name: str, create_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """Call torch.autograd.grad; a ValueError says that the value has no such derivative."""
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


def check_positive(name: str, value: float) -> None:
    """Raise ValueError if the value is not above 0."""
    if not value > 0:
        raise ValueError(f"{name} = {value}: must be > 0")


def check_not_random(critic: Callable[..., Tensor], *batch: Tensor) -> None:
    """Raise ValueError if a score is random: see `is_random`."""
    if is_random(critic, *batch):
        raise ValueError(
            "the critic draws random numbers in eval mode, so its score is not a function of the point. Use a critic"
            " that draws them in training mode alone, as dropout does"
        )


def is_random(critic: Callable[..., Tensor], *batch: Tensor) -> bool:
    """Return True if two passes differ, or a pass draws from a global random state."""
    before = digest_random_state()
    first, second = (compute_scores(critic, *batch).detach() for _ in range(2))
    rounding = 1000 * torch.finfo(first.dtype).eps * first.abs().max().item()  # CUDA may add in another order
    same = (first == second) | ((first - second).abs() <= rounding) | (first.isnan() & second.isnan())
    return not same.all() or digest_random_state() != before


def _describe(value: Any) -> str:
    is_tensor = isinstance(value, Tensor)
    return f"{tuple(value.shape)}, {value.dtype}" if is_tensor else f"a value of type {type(value).__name__}"


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
    """Call the critic, and explain errors of torch and Python that come from how it is called."""
    try:
        return critic(*inputs, **options)
    except TypeError as error:
        try:
            original = inspect.unwrap(critic)
            inspect.signature(getattr(original, "forward", original)).bind(*inputs, **options)
        except (TypeError, ValueError):
            raise ValueError(
                f"a critic is called as critic(x, *y), here with {len(inputs)} argument(s): {error}. Pass labels as y,"
                " as in y=(labels,), not as eps. Where there is no y, wrap the critic, for example `lambda x: critic(x,"
                " label.expand(len(x)))` or `lambda x: critic(pictures=x)`, in an nn.Module if a module is needed"
            ) from error
        raise
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if reason := _explain(error, critic, inputs, options):
            raise ValueError(reason) from error
        raise


def _call_generator(generator: Callable[..., Any], inputs: list[Tensor]) -> Any:
    try:
        return generator(*inputs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if reason := _explain_dtype(error, generator, inputs, "generator"):
            raise ValueError(f"{reason}. Use noise of the type of its weights") from error
        raise


def _explain_dtype(error: RuntimeError, network: Callable[..., Any], inputs: list[Tensor], name: str) -> str:
    modules = [holder for holder in find_state(network) if isinstance(holder, nn.Module)]
    weights = {p.dtype for module in modules for p in module.parameters() if p.is_floating_point()}
    types = {x.dtype for x in inputs if x.is_floating_point()}
    if weights and not types <= weights and "type" in str(error):  # of the many texts of torch all have this word
        one, other = (" and ".join(sorted(map(str, group))) for group in (types, weights))
        return f"the {name} gets {one}, and its weights are {other}: {error}"
    return ""


def _explain(error: RuntimeError, critic: Callable[..., Any], inputs: list[Tensor], options: dict[str, Any]) -> str:
    if "nference tensor" in str(error):
        return (
            "the critic has weights that were made under torch.inference_mode(), and so have no gradient: build, load"
            " and move the critic outside of it"
        )
    if reason := _explain_dtype(error, critic, inputs, "critic"):
        return f"{reason}. Convert real, fake, eps and y, for example real.float() for numbers from NumPy"
    count = len(inputs[0])

    def can_score(count: int) -> bool:
        with suppress(Exception), torch.no_grad():
            outputs = critic(*(x[:count].detach().clone() for x in inputs), **options)
            return all(isinstance(out, Tensor) and len(out) == count for out in tree_leaves(outputs))
        return False

    if not can_score(count) and can_score(count // 2):
        return (
            f"the critic works for {count // 2} samples, and not for {count}: {error}. A step passes real and"
            " fake samples together. Let the critic take any number of samples, and pass labels as y"
            " instead of keeping them in a function"
        )
    return ""
