"""A proved upper bound of a critic's Lipschitz constant, computed from its weights alone.

    |D(x) - D(y)| <= L ||x - y||_2    for all x, y         certified_lipschitz(critic, shape) -> L

One forward pass carries, with every activation, a bound of the Lipschitz constant of the map from the input to this
activation. Each operation has a rule, which updates the bound:
    dense, matmul                         times the largest singular value
    convolution                           the same, or the smaller of two bounds: see _bound_convolution
    activation                            times its largest slope
    reshape, slice, padding, averages     Schur's test: see _bound_linear
    max pooling                           times sqrt(the largest number of windows that a pixel is in)
    sum of branches (residual)            the sum of their bounds
    concatenation                         the root of the sum of their squared bounds

An operation without a rule raises an error, so every result is proved. The result can be far above the largest slope of
the critic, because it is a product over the layers. `slope_statistics` gives a lower bound of the largest slope.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import enable_reentrant_dispatch
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["certified_lipschitz", "in_float64"]

SLACK = 1 + 1e-9  # covers the rounding of the bound itself
EXPLICIT = 2**20  # entries up to which a convolution is written as a matrix: its singular values take about a second
SAMPLES = 2  # the smallest batch in which it can be seen that samples are mixed
Rule = Callable[[dict[str, Any], Tensor, Callable], float]  # (arguments, result for ones, operation) -> its bound
_ones = partial(torch.ones, dtype=torch.float64)


def certified_lipschitz(critic: nn.Module, shape: tuple[int, ...]) -> float:
    """Compute a proved upper bound L of a critic's Lipschitz constant, in the Euclidean norm of the flattened sample.

    The bound holds on all of R^n, for the critic in eval mode and for exact arithmetic (softplus is taken without its
    jump of 2e-9 at 20). It follows that (E D(real) - E D(fake)) / L <= W1.

    Args:
        critic: (B, *shape) -> (B,) or (B, 1). A copy in float64 on the CPU is used; the critic itself is not changed.
            If a module in it has an attribute `lipschitz`, a number, this number is used and not checked: the module
            promises that it has one input and one output, treats every sample separately, and is nowhere steeper.
        shape: the shape of one sample.

    Returns:
        L >= 0, in units of the score per unit of the points.

    Raises:
        ValueError: the message names the layer. No bound: an operation without a rule (a product of two activations,
            a branch on values, a write into a part of a tensor), a norm layer, mixed samples, a weight that is not
            finite, random numbers. Wrong use: the points do not fit the critic; the score is not one number per
            sample, or is not computed from the points by torch.

    Paper: layer by layer as Szegedy et al. 2014, section 4.3. Differs: here are rules for branches, and convolutions
    with strides are bounded by their own frequencies.
    """
    if not isinstance(critic, nn.Module):
        raise ValueError(
            f"certified_lipschitz reads the layers of an nn.Module, got {type(critic).__name__}: pass the module itself"
        )
    network = in_float64(critic).cpu().eval()
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if not value.isfinite().all():
            raise ValueError(f"no certificate: {name} has NaN or inf in it. Use a critic with finite weights")
    call_stack = ["the score"]  # the modules being executed, innermost last; after an error the last one raised it
    for name, module in network.named_modules():
        _trace(module, f"{name or 'the critic'} ({type(module).__name__})", call_stack)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        state = torch.get_rng_state()
        try:
            score = network(_Tracked(_ones([SAMPLES, *shape]), 1.0))
        except _NoRuleError as error:
            raise ValueError(f"no certificate, at {call_stack[-1]}: {error}") from None
        except (RuntimeError, IndexError) as error:
            message = f"points of shape {tuple(shape)} do not fit the critic, at {call_stack[-1]}: {error}"
            raise ValueError(message) from error
        if not torch.equal(state, torch.get_rng_state()):
            raise ValueError("no certificate: the critic draws random numbers in eval mode. Use a critic without them")
    if not isinstance(score, _Tracked):
        raise ValueError(f"no certificate: the score is not computed from the points, or its computation {LEAVES}")
    if score.ndim == 0 or len(score) != SAMPLES or score.numel() != SAMPLES:
        raise ValueError(
            f"a critic returns one score per sample, (B,) or (B, 1): got {tuple(score.shape)} for {SAMPLES} samples."
            " Reduce all axes but the first, for example score.flatten(1).mean(1)"
        )
    if not math.isfinite(score.bound):
        raise ValueError(f"no certificate: the bound is {score.bound}. Look for a constant that is inf or very large")
    return score.bound * SLACK


def in_float64(critic: nn.Module) -> nn.Module:
    """Return a copy of a module in double precision.

    deepcopy refuses tensors that have a graph. A forward may leave such tensors in a module (spectral_norm keeps its
    weight in this way), so they are copied without their graph.
    """
    attributes = [value for module in critic.modules() for value in vars(module).values()]
    with_graph = [t for t in attributes if isinstance(t, Tensor) and t.grad_fn is not None]
    return copy.deepcopy(critic, {id(t): t.detach().clone() for t in with_graph}).double()


def _trace(module: nn.Module, name: str, call_stack: list[str]) -> None:
    """Record a module's name on call_stack during its forward, and use its attribute `lipschitz`, if it has one."""
    module.register_forward_pre_hook(lambda *_: call_stack.append(name), prepend=True)
    module.register_forward_hook(lambda *_: call_stack.pop() and None)  # None: the output is not changed
    constant, forward = getattr(module, "lipschitz", None), module.forward
    if isinstance(constant, Real) and not isinstance(constant, bool):
        if not 0 <= constant < math.inf:
            raise ValueError(f"{name}: lipschitz = {constant}: must be >= 0 and finite")

        def use_constant(x: Tensor) -> Tensor:
            return _Tracked(forward(_ones(x.shape)), constant * x.bound) if isinstance(x, _Tracked) else forward(x)

        module.forward = use_constant


class _NoRuleError(Exception):
    """There is no rule for an operation, or for its arguments."""


class _Tracked(Tensor):
    """An activation without values: its shape, and a bound of the Lipschitz constant of the map from the input to it.

    The first axis has the same number of rows for every sample, (n B, *). Operations arrive as those of torch.ops.aten,
    where x.relu(), F.relu and nn.ReLU are the same operation.
    """

    @staticmethod
    def __new__(cls: type, like: Tensor, bound: float, shared: bool = False) -> "_Tracked":
        self = Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)
        self.bound, self.shared = bound, shared  # shared: it is a view, or there is a view of it
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in REASONS:  # aten takes these apart, or they never reach it
            raise _NoRuleError(f"{name} {REASONS[name]}")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}

        def call(fill: Callable[[Sequence[int]], Tensor]) -> Any:  # the operation, with fill(shape) for each activation
            plain_args, plain_kwargs = tree_map_only(cls, lambda t: fill(t.shape), (args, kwargs))
            return func(*plain_args, **plain_kwargs)

        if name in CONSTANTS:
            return call(_ones)
        in_place = func._schema.is_mutable
        rule = RULES.get(name.removesuffix("_") if in_place else name)
        if rule is None or (in_place and (name[-1] != "_" or rule is _bound_linear or not isinstance(args[0], cls))):
            raise _NoRuleError(f"{name} {REASONS.get(name, UNKNOWN)}")
        if in_place and args[0].shared:
            raise _NoRuleError(f"{name} writes into a tensor that has views. Use {name[:-1]}")
        by_name = {a.name: a.default_value for a in func._schema.arguments}
        by_name |= dict(zip(by_name, args, strict=False)) | kwargs | {"op": name.removesuffix("_")}
        result = call(_ones)
        outs = result if isinstance(result, (list, tuple)) else [result]
        bound = rule(by_name, outs[0], call)
        if outs[0].dtype != torch.float64:
            raise _NoRuleError(f"{name} returns {outs[0].dtype}, which rounds, and a step has no slope. Use float64")
        if in_place:
            args[0].bound = bound
            return args[0]
        if func.is_view:
            args[0].shared = True
        # Other outputs, the indices of a maximum, are step functions: their bound is inf.
        tracked = [cls(o, bound if o.dtype == torch.float64 else math.inf, func.is_view) for o in outs]
        return tracked if isinstance(result, (list, tuple)) else tracked[0]


# Rules: arguments by name (with "op", the name of the operation), its result for ones, and the operation as `call`.


def _get_only(args: dict[str, Any], name: str) -> _Tracked:
    """Return the argument of this name. It must be the only one that depends on the points."""
    if [x is args[name] for x in _find_tracked(args)] != [True]:
        message = f"{args['op']}: arguments other than {name!r} depend on the points. Is it a product of activations?"
        raise _NoRuleError(message)
    return args[name]


def _find_tracked(args: dict[str, Any]) -> list[_Tracked]:
    return [x for x in tree_leaves(args) if isinstance(x, _Tracked)]


def _bound_broadcast(x: _Tracked, out: Tensor) -> float:
    """Return the bound of x after x is broadcast to the shape of the result."""
    if x.ndim != out.ndim or len(x) != len(out):
        raise _NoRuleError(MIXED)
    return x.bound * math.sqrt(out.numel() / x.numel())


def _bound_elementwise(
    slope: float | Callable[[dict[str, Any]], float], args: dict[str, Any], out: Tensor, call: Callable
) -> float:
    """A function of each element by itself, nowhere steeper than the slope."""
    return _bound_broadcast(_get_only(args, "self"), out) * (slope(args) if callable(slope) else slope)


def _bound_linear(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    """A linear map A without negative entries, plus a constant: ||A||_2^2 <= largest row sum * column sum (Schur)."""
    x = _get_only(args, "self")
    constants = tree_leaves(call(torch.zeros))

    def apply(values: Tensor) -> list[Tensor]:
        return [value - c for value, c in zip(tree_leaves(call(lambda _: values)), constants, strict=True)]

    with enable_reentrant_dispatch(), torch.enable_grad():
        ones = _ones(x.shape).requires_grad_()
        rows = apply(ones)
        (columns,) = torch.autograd.grad(sum(r.sum() for r in rows), ones)
        without_first = _ones(x.shape)
        without_first[: len(x) // SAMPLES] = 0
        for row, others in zip(rows, apply(without_first), strict=True):
            first = len(row) // SAMPLES if row.ndim and len(row) % SAMPLES == 0 else 0
            if not first or others[:first].any() or not torch.equal(others[first:], row[first:]):
                raise _NoRuleError(MIXED)
    return x.bound * math.sqrt(max(r.abs().max().item() for r in rows) * columns.abs().max().item())


def _bound_matmul(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    left, right = "mat1" if "mat1" in args else "self", "mat2"
    if out.ndim == 3 and isinstance(args[right], _Tracked):  # bmm: one weight per row of the batch, on either side
        left, right = right, left
    return _get_only(args, left).bound * abs(args.get("alpha", 1)) * _spectral_norm(args[right])


def _bound_convolution(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    """A zero-padded convolution, with any padding: the norm of its matrix if that is small, else the smaller of two
    bounds.

    1. sqrt(overlap) ||W||_2, W (out, in k^d), where each pixel is in at most `overlap` windows.
    2. Sort the pixels by their position modulo the stride s into s^d times as many channels. The convolution then has
       stride 1 and t = ceil(k / s) taps per axis. With n windows per axis it is a part of the circular convolution on
       n - 1 + t pixels, whose norm is the largest over its frequencies (Paper: Sedghi, Gupta and Long 2019. Differs:
       they take the image's own n pixels, and the zero-padded convolution is not a part of that one).
    """
    x, weight, stride, dilation = _get_only(args, "input"), args["weight"], args["stride"], args["dilation"]
    inputs, outputs = math.prod(x.shape[1:]), math.prod(out.shape[1:])
    if inputs * max(inputs, outputs) <= EXPLICIT:
        basis = torch.eye(inputs, dtype=torch.float64).view(inputs, *x.shape[1:])
        options = [args[name] for name in ("stride", "padding", "dilation", "transposed", "output_padding", "groups")]
        return x.bound * _spectral_norm(torch.ops.aten.convolution(basis, weight, None, *options).flatten(1))
    windows = (x if args["transposed"] else out).shape[2:]  # the transposed map has the same norm
    d, w = len(windows), weight.unflatten(0, (args["groups"], -1))  # (groups, out, in, *k)
    spans = [j * (k - 1) + 1 for k, j in zip(weight.shape[2:], dilation, strict=True)]  # k with the zeros of dilation
    taps = [-(-span // s) for span, s in zip(spans, stride, strict=True)]
    kernel = w.new_zeros(*w.shape[:3], *(t * s for t, s in zip(taps, stride, strict=True)))
    kernel[(..., *(slice(0, span, j) for span, j in zip(spans, dilation, strict=True)))] = w
    for t, s in reversed(list(zip(taps, stride, strict=True))):
        kernel = kernel.unflatten(2 + d, (t, s)).movedim(3 + d, 3)  # at the end (groups, out, in, *s, *t)
    torus = [n - 1 + t for n, t in zip(windows, taps, strict=True)]
    spectrum = torch.fft.rfftn(kernel.flatten(2, 2 + d), s=torus, dim=tuple(range(-d, 0)))
    unfolded = math.sqrt(_count_overlap(weight.shape[2:], stride, dilation, windows)) * _spectral_norm(w.flatten(2))
    return x.bound * min(unfolded, _spectral_norm(spectrum.movedim((1, 2), (-2, -1))))


def _bound_max_pool(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    kernel, stride = args["kernel_size"], args["stride"] or args["kernel_size"]
    overlap = _count_overlap(kernel, stride, args["dilation"], out.shape[2:])
    return _get_only(args, "self").bound * math.sqrt(overlap)


def _count_overlap(
    kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], windows: Sequence[int]
) -> int:
    """Return the largest number of windows that one pixel is in."""
    axes = zip(kernel, stride, dilation, windows, strict=True)
    return math.prod(min(n, -(-k // (s // math.gcd(s, j)))) for k, s, j, n in axes)


def _bound_scale(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    """Multiplication with a constant, or division by a constant."""
    left = args["op"] == "div" or isinstance(args["self"], _Tracked)
    name, constant = ("self", "other") if left else ("other", "self")
    x, factor = _get_only(args, name), torch.as_tensor(args[constant], dtype=torch.float64)
    if args.get("rounding_mode"):
        raise _NoRuleError("div rounds: a step has no slope. Use div without rounding_mode")
    return _bound_broadcast(x, out) * (1 / factor if args["op"] == "div" else factor).abs().max().item()


def _bound_sum(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    return max(abs(args["alpha"]), 1) * sum(_bound_broadcast(x, out) for x in _find_tracked(args))


def _bound_concatenation(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    if args["dim"] % out.ndim == 0:
        raise _NoRuleError(MIXED)
    return math.hypot(*(x.bound for x in _find_tracked(args)))


def _spectral_norm(matrices: Tensor) -> float:
    """Return the largest singular value of all matrices (..., m, n)."""
    if not matrices.isfinite().all():
        raise _NoRuleError("its weight has NaN or inf in it. Use finite weights")
    return torch.linalg.svdvals(matrices).max().item()


OWN_CONSTANT = "give its module an attribute `lipschitz`, a constant that you can prove"
MIXED = "the samples of a batch are mixed or moved. Use the first axis for the samples alone"
UNKNOWN = f"has no rule. Use operations that have one, or {OWN_CONSTANT}"
LEAVES = f"leaves torch. Use torch's operations, or {OWN_CONSTANT}"
DEVIATION = (
    "divides by a standard deviation, so the only certain bound is gamma / sqrt(eps), about 316 gamma. Use a critic"
    " without this norm"
)
REASONS = {
    "batch_norm": "mixes the samples of a batch, so a score depends on other points, too. Use a critic without it",
    **dict.fromkeys(["instance_norm", "layer_norm", "group_norm", "rms_norm"], DEVIATION),
    **dict.fromkeys(["numpy", "tolist", "__array__", "__set__"], LEAVES),
    "_local_scalar_dense": "reads a value, and a critic that branches on a value may jump. Remove item(), bool() or if",
    "copy_": "writes into a part of a tensor (circular padding does this). Use cat, or padding with zeros",
}
CONSTANTS = {"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like"}
NAMES = {  # rule -> names in torch.ops.aten
    partial(_bound_elementwise, 1): "clone detach _to_copy neg abs relu tanh sin cos hardtanh clamp clamp_min"
    " clamp_max",
    partial(_bound_elementwise, 1 / 4): "sigmoid",
    partial(_bound_elementwise, 1.1): "silu",
    partial(_bound_elementwise, 1.13): "gelu",
    # At its threshold softplus jumps: at 20 by 2e-9, at a smaller one by more.
    partial(_bound_elementwise, lambda args: 1 if args["threshold"] >= 20 else math.inf): "softplus",
    # elu, and selu, which arrives as elu
    partial(_bound_elementwise, lambda a: abs(a["scale"]) * max(abs(a["alpha"] * a["input_scale"]), 1)): "elu",
    partial(_bound_elementwise, lambda args: max(abs(args["negative_slope"]), 1)): "leaky_relu",
    partial(_bound_elementwise, lambda args: max(args["weight"].abs().max().item(), 1)): "_prelu_kernel",
    _bound_linear: "view _unsafe_view _reshape_alias squeeze unsqueeze transpose permute flip select slice split unbind"
    " index split_with_sizes expand repeat pixel_unshuffle constant_pad_nd reflection_pad2d replication_pad2d sum mean"
    " avg_pool2d _adaptive_avg_pool2d upsample_nearest1d upsample_nearest2d upsample_bilinear2d",
    _bound_matmul: "mm bmm addmm",
    _bound_convolution: "convolution",
    _bound_max_pool: "max_pool2d_with_indices",
    _bound_sum: "add sub rsub",
    _bound_scale: "mul div",
    _bound_concatenation: "cat stack",
}
RULES: dict[str, Rule] = {name: rule for rule, names in NAMES.items() for name in names.split()}
