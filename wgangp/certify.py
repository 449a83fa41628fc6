"""A proved upper bound of a critic's Lipschitz constant, computed from its weights alone.

    |D(x) - D(y)| <= L ||x - y||_2    for all x, y         certified_lipschitz(critic, shape) -> L

One forward pass carries, with every activation, a bound of the Lipschitz constant of the map from the input to this
activation. Each operation has a rule, which updates the bound:
    dense, matmul                         times the largest singular value
    convolution                           the same, or the smaller of two bounds: see bounds.py
    activation                            times its largest slope
    reshape, slice, padding, averages     Schur's test: see bounds.py
    max pooling                           times sqrt(the largest number of windows that a pixel is in)
    batch norm in eval mode               times the largest |weight| / sqrt(var + eps)
    sum of branches (residual)            the sum of their bounds
    concatenation                         the root of the sum of their squared bounds

An operation without a rule raises an error, so every result is proved. The result can be far above the largest slope of
the critic, because it is a product over the layers. `slope_statistics` gives a lower bound of the largest slope.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from wgangp.bounds import CONSTANTS, LEAVES, PRODUCT, PRODUCTS, REASONS, RULES, UNKNOWN
from wgangp.checks import check_not_random, compute_scores
from wgangp.linear import MIXED, SAMPLES, NoRuleError, bound_linear, find_tracked, ones
from wgangp.state import convert_to_float64, use_eval_mode

__all__ = ["SIZES", "certified_lipschitz", "check_batch_sizes", "list_assumptions", "open_network"]

SLACK = 1 + 1e-9  # covers the rounding of the bound itself
SIZES = (2, 1, 3, 4, 12)  # of batches that must give a point the same score; the others divide the last one
LARGE_SIZES, LARGE = (16, 64, 256), 2**17  # also these, if such a batch has at most so many numbers


def certified_lipschitz(critic: nn.Module, shape: tuple[int, ...]) -> float:
    """Compute a proved upper bound L of a critic's Lipschitz constant, in the Euclidean norm of the flattened sample.

    The bound holds on all of R^n, for the critic in eval mode and for exact arithmetic (softplus is taken without its
    jump of 2e-9 at 20). It assumes that the critic does the same in batches of all sizes: random points are scored in
    batches of SIZES and LARGE_SIZES, and a critic that changes only in a batch of 37 is not noticed. It follows that
    (E D(real) - E D(fake)) / L <= W1.

    Args:
        critic: (B, *shape) -> (B,) or (B, 1). A copy in float64 on the CPU is used; the critic itself is not changed.
            If a module inside of it has an attribute `lipschitz`, a number, this number is used: the module promises
            that it has one input and one output, treats every sample separately, and is nowhere steeper. It is
            compared with a few points, which can only disprove it: the bound is proved only if the promises hold, and
            `list_assumptions` lists them. On the critic itself the attribute is not used: it would be the whole proof.
        shape: the shape of one sample.

    Returns:
        L >= 0, in units of the score per unit of the points.

    Raises:
        ValueError: the message names the layer. No bound: an operation without a rule (a product of two activations,
            a branch on values, a write into a part of a tensor), a norm layer, mixed samples, a weight that is not
            finite, random numbers, scores that change with the size of the batch. Wrong use: shape is not a sequence
            of sizes; the points do not fit the critic; the score is not one number per sample, or is not computed from
            the points by torch.

    Paper: layer by layer as Szegedy et al. 2014, section 4.3. Differs: here are rules for branches, and convolutions
    with strides are bounded by their own frequencies.
    """
    try:
        shape = tuple(torch.empty(tuple(shape), device="meta").shape)
    except (TypeError, RuntimeError):
        raise ValueError(f"shape = {str(shape)[:40]}: must be the sizes of one sample, as in (1, 28, 28)") from None
    with open_network(critic, "certified_lipschitz", "no certificate") as network:
        call_stack = ["the score"]  # modules being executed, innermost last; after an error the last one raised it
        products: dict[str, str] = {}  # LSTM, attention and the like that were called: name -> class
        for name, module in network.named_modules():
            _trace(module, f"{name or 'the critic'} ({type(module).__name__})", call_stack, products, name != "")
        scale = torch.logspace(-1, 1, SIZES[-1], dtype=torch.float64).view(-1, *[1] * len(shape))
        points = scale * torch.randn(SIZES[-1], *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        try:
            check_not_random(network, points[-SAMPLES:])
            score = network(_Tracked(ones([SAMPLES, *shape]), 1.0))
            if not isinstance(score, _Tracked):
                raise ValueError(
                    f"no certificate: the score is not computed from the points, or its computation {LEAVES}"
                )
            if not math.isfinite(score.bound):
                raise ValueError(
                    f"no certificate: the bound is {score.bound}. Look for a constant that is inf or very large"
                )
            check_batch_sizes(network, points, "no certificate")
        except NoRuleError as error:
            place, reason = call_stack[-1], str(error)
            if MIXED in reason and products:  # the samples were moved to the axis where such a layer takes them
                place, kind = next(iter(products.items()))
                reason = f"{kind} {PRODUCT}"
            raise ValueError(f"no certificate, at {place}: {reason}") from None
        except (RuntimeError, LookupError, AssertionError) as error:
            message = f"points of shape {tuple(shape)} do not fit the critic, at {call_stack[-1]}: {error}"
            raise ValueError(message) from error
    return score.bound * SLACK


def list_assumptions(critic: nn.Module) -> dict[str, float]:
    """Return what a certificate assumes and does not prove: the attributes `lipschitz` of modules, by their names.

    Those of this package are proved in its tests, and are not listed.
    """
    foreign = {name: m for name, m in critic.named_modules() if name and not type(m).__module__.startswith("wgangp.")}
    attributes = {name: getattr(module, "lipschitz", None) for name, module in foreign.items()}
    return {name: float(value) for name, value in attributes.items() if _is_constant(value)}


def check_batch_sizes(network: nn.Module, points: Tensor, failure: str) -> None:
    """Raise ValueError if the score of a point changes with the size of its batch.

    The rules are read off in a batch of SAMPLES points, and hold for other batches only if the network does the same
    there. A network that fails for one point alone has no score for it.

    Args:
        points: (SIZES[-1], *).
        failure: what the error begins with.
    """
    expected = None
    for size in [*SIZES, *(n for n in LARGE_SIZES if n * points[0].numel() <= LARGE)]:
        batch = points[torch.arange(max(size, len(points))) % len(points)]
        try:  # for one point, squeeze() also removes the axis of the samples
            score = compute_scores if size > 1 else lambda network, point: network(point.clone()).reshape(1)
            scores = torch.cat([score(network, part) for part in batch.split(size)])[: len(points)]
        except Exception:
            if size == 1:
                continue
            raise
        expected = scores if expected is None else expected
        rounding = 1e-6 * expected[expected.isfinite()].abs().sum().item()
        if not torch.allclose(scores, expected, rtol=0, atol=rounding, equal_nan=True):
            raise ValueError(
                f"{failure}: the scores of the same points in batches of {SIZES[0]} and of {size} are not equal. Use a"
                " critic whose forward does not depend on the size of the batch"
            )


@contextmanager
def open_network(critic: nn.Module, name: str, failure: str) -> Iterator[nn.Module]:
    """Yield a copy of a critic whose operations can be read: in eval mode, in float64, on the CPU, with finite weights.

    Args:
        name, failure: of the function that reads the critic, and what its errors begin with.
    """
    if not isinstance(critic, nn.Module) or any(_is_program(module) for module in critic.modules()):
        raise ValueError(
            f"{name} reads the operations of an nn.Module: pass the original module, not a function and not"
            f" what torch.jit, torch.export or torch.compile made of it (got {type(critic).__name__})"
        )
    if isinstance(critic, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        critic = critic.module
    with use_eval_mode(critic), torch.inference_mode(False), torch.no_grad():
        network = convert_to_float64(critic).cpu()
        for part, value in [*network.named_parameters(), *network.named_buffers()]:
            if not value.isfinite().all():
                raise ValueError(f"{failure}: {part} has NaN or inf in it. Use a critic with finite weights")
        yield network


def _is_program(module: nn.Module) -> bool:
    """Return True if torch.jit, torch.compile or torch.export made the module."""
    exported = isinstance(module, torch.fx.GraphModule) and "eval" in vars(module)
    return isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod") or exported


def _trace(module: nn.Module, name: str, call_stack: list[str], products: dict[str, str], trusted: bool) -> None:
    """Record a module's name on call_stack during its forward, and use its attribute `lipschitz` if it is trusted."""

    def enter(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        call_stack.append(name)
        if isinstance(module, PRODUCTS):
            products[name] = type(module).__name__
            if find_tracked({"inputs": inputs, "options": options}):
                raise NoRuleError(f"{products[name]} {PRODUCT}")

    module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
    module.register_forward_hook(lambda *_: call_stack.pop() and None)  # None: the output is not changed
    constant, forward = getattr(module, "lipschitz", None), module.forward
    if trusted and _is_constant(constant):
        if not 0 <= constant < math.inf:
            raise ValueError(f"{name}: lipschitz = {constant}: must be >= 0 and finite")

        def use_constant(x: Tensor) -> Tensor:
            if isinstance(x, _Tracked):
                return _Tracked(forward(ones(x.shape)), constant * x.bound)
            _check_constant(name, float(constant), forward, x)
            return forward(x)

        module.forward = use_constant


def _is_constant(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_constant(name: str, constant: float, forward: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Raise ValueError if two of a few inputs show that a module is steeper than its attribute `lipschitz`."""
    noise = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    for other in (x + 1e-3 * noise, x.roll(1, 0)):
        y = forward(x.clone())
        values = (y - forward(other.clone()), x - other, y)
        change, distance, size = (v.unsqueeze(-1).flatten(1).norm(dim=1) for v in values)
        if not (change <= constant * distance * (1 + 1e-6) + 1e-6 * size).all():  # it may compute in float32
            quotient = (change / distance).nan_to_num(0).max()
            raise ValueError(
                f"{name}: lipschitz = {constant} is wrong: two of its inputs have the quotient {quotient:.6g}. Use a"
                " constant that you can prove"
            )


class _Tracked(Tensor):
    """Stands for an activation: its shape, and an upper bound of the Lipschitz constant from the points to it.

    It has no values. The first axis has n rows for each of the B samples, (n B, *), for example n = 1. torch passes
    each operation as one of torch.ops.aten, so that x.relu(), F.relu and nn.ReLU are the same operation.
    """

    @staticmethod
    def __new__(cls: type, like: Tensor, bound: float, shared: bool = False) -> "_Tracked":
        self = Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)
        self.bound, self.shared = bound, shared  # shared: it is a view, or there is a view of it
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "instance_norm" and not (kwargs or {}).get("use_input_stats", True):
            return F.batch_norm(*args, **{n: value for n, value in kwargs.items() if n != "use_input_stats"})
        if name == "einsum":  # aten takes it apart, and moves the samples to another axis

            def call(fill: Callable[[Sequence[int]], Tensor]) -> Tensor:
                return func(*tree_map_only(cls, lambda t: fill(t.shape), args))

            out = call(ones)
            return cls(out, RULES[name]({"op": name, "equation": args[0], "operands": args[1:]}, out, call))
        if name in REASONS:  # aten takes these apart, or they never reach it
            raise NoRuleError(f"{name} {REASONS[name]}")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}

        def call(fill: Callable[[Sequence[int]], Tensor]) -> Any:  # the operation, with fill(shape) for each activation
            plain_args, plain_kwargs = tree_map_only(cls, lambda t: fill(t.shape), (args, kwargs))
            return func(*plain_args, **plain_kwargs)

        if name in CONSTANTS:
            return call(ones)
        in_place = func._schema.is_mutable
        rule = RULES.get(name.removesuffix("_") if in_place else name)
        if rule is None or (in_place and (name[-1] != "_" or rule is bound_linear or not isinstance(args[0], cls))):
            raise NoRuleError(f"{name} {REASONS.get(name, UNKNOWN)}")
        if in_place and args[0].shared:
            raise NoRuleError(f"{name} writes into a tensor that has views. Use {name[:-1]}")
        by_name = {a.name: a.default_value for a in func._schema.arguments}
        by_name |= dict(zip(by_name, args, strict=False)) | kwargs | {"op": name.removesuffix("_")}
        result = call(ones)
        outs = result if isinstance(result, (list, tuple)) else [result]
        bound = rule(by_name, outs[0], call)
        if outs[0].dtype != torch.float64:
            raise NoRuleError(f"{name} returns {outs[0].dtype}, which rounds, and a step has no slope. Use float64")
        if in_place:
            args[0].bound = bound
            return args[0]
        if func.is_view:
            args[0].shared = True
        # Other outputs, the indices of a maximum, are step functions: their bound is inf.
        tracked = [cls(o, bound if o.dtype == torch.float64 else math.inf, func.is_view) for o in outs]
        return tracked if isinstance(result, (list, tuple)) else tracked[0]
