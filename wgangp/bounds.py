"""The rules of `certified_lipschitz`: how each operation of torch updates the bound of an activation.

    rule(args, out, call) -> the bound of the result

args are the arguments by name, with "op", the name of the operation. Activations among them have the attribute `bound`.
out is the result for ones, and call(fill) is the operation with fill(shape) in the place of each activation.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import enable_reentrant_dispatch
from torch.utils._pytree import tree_leaves

__all__ = [
    "CONSTANTS",
    "LEAVES",
    "MIXED",
    "PRODUCT",
    "PRODUCTS",
    "REASONS",
    "RULES",
    "SAMPLES",
    "STATISTICS",
    "UNKNOWN",
    "NoRuleError",
]

EXPLICIT = 2**20  # entries up to which a convolution is written as a matrix: its singular values take about a second
SAMPLES = 2  # the smallest batch in which it can be seen that samples are mixed
Rule = Callable[[dict[str, Any], Tensor, Callable], float]  # (arguments, result for ones, operation) -> its bound
ones = partial(torch.ones, dtype=torch.float64)


class NoRuleError(Exception):
    """There is no rule for an operation, or for its arguments."""


def _get_only(args: dict[str, Any], name: str) -> Tensor:
    """Return the argument of this name. It must be the only one that depends on the points."""
    if [x is args[name] for x in find_tracked(args)] != [True]:
        message = f"{args['op']}: arguments other than {name!r} depend on the points. Is it a product of activations?"
        raise NoRuleError(message)
    return args[name]


def find_tracked(args: dict[str, Any]) -> list[Tensor]:
    return [x for x in tree_leaves(args) if hasattr(x, "bound")]


def _bound_broadcast(x: Tensor, out: Tensor) -> float:
    """Return the bound of x after x is broadcast to the shape of the result."""
    if x.ndim != out.ndim or len(x) != len(out):
        raise NoRuleError(MIXED)
    return x.bound * math.sqrt(out.numel() / x.numel())


def _bound_elementwise(
    slope: float | Callable[[dict[str, Any]], float], args: dict[str, Any], out: Tensor, call: Callable
) -> float:
    """A function of each element by itself, nowhere steeper than the slope."""
    return _bound_broadcast(_get_only(args, "self"), out) * (slope(args) if callable(slope) else slope)


def bound_linear(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    """A linear map A without negative entries, plus a constant: ||A||_2^2 <= largest row sum * column sum (Schur)."""
    x = _get_only(args, "self")
    constants = tree_leaves(call(torch.zeros))

    def apply(values: Tensor) -> list[Tensor]:
        return [value - c for value, c in zip(tree_leaves(call(lambda _: values)), constants, strict=True)]

    with enable_reentrant_dispatch(), torch.enable_grad():
        inputs = ones(x.shape).requires_grad_()
        rows = apply(inputs)
        (columns,) = torch.autograd.grad(sum(r.sum() for r in rows), inputs)
        without_first = ones(x.shape)
        without_first[: len(x) // SAMPLES] = 0
        for row, others in zip(rows, apply(without_first), strict=True):
            first = len(row) // SAMPLES if row.ndim and len(row) % SAMPLES == 0 else 0
            if not first or others[:first].any() or not torch.equal(others[first:], row[first:]):
                raise NoRuleError(MIXED)
    return x.bound * math.sqrt(max(r.abs().max().item() for r in rows) * columns.abs().max().item())


def _bound_matmul(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    left, right = "mat1" if "mat1" in args else "self", "mat2"
    if out.ndim == 3 and hasattr(args[right], "bound"):  # bmm: one weight per row of the batch, on either side
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
    left = args["op"] == "div" or hasattr(args["self"], "bound")
    name, constant = ("self", "other") if left else ("other", "self")
    x, factor = _get_only(args, name), torch.as_tensor(args[constant], dtype=torch.float64)
    if args.get("rounding_mode"):
        raise NoRuleError("div rounds: a step has no slope. Use div without rounding_mode")
    return _bound_broadcast(x, out) * (1 / factor if args["op"] == "div" else factor).abs().max().item()


def _bound_batch_norm(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    """(x - mean) / sqrt(var + eps) * weight + bias per channel, with the running statistics."""
    x, variance = _get_only(args, "input"), args["running_var"]
    if args["training"] or variance is None:
        raise NoRuleError(f"{args['op']} {STATISTICS}")
    scale = (variance + args["eps"]).rsqrt() * (1 if args["weight"] is None else args["weight"])
    return x.bound * scale.abs().max().item()


def _bound_sum(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    return max(abs(args["alpha"]), 1) * sum(_bound_broadcast(x, out) for x in find_tracked(args))


def _bound_concatenation(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    if args["dim"] % out.ndim == 0:
        raise NoRuleError(MIXED)
    return math.hypot(*(x.bound for x in find_tracked(args)))


def _spectral_norm(matrices: Tensor) -> float:
    """Return the largest singular value of all matrices (..., m, n)."""
    if not matrices.isfinite().all():
        raise NoRuleError("its weight has NaN or inf in it. Use finite weights")
    return torch.linalg.svdvals(matrices).max().item()


OWN_CONSTANT = "give its module an attribute `lipschitz`, a constant that you can prove"
MIXED = "the samples of a batch are mixed or moved. Use the first axis for the samples alone"
UNKNOWN = f"has no rule. Use operations that have one, or {OWN_CONSTANT}"
LEAVES = f"leaves torch. Use torch's operations, or {OWN_CONSTANT}"
DEVIATION = (
    "divides by a standard deviation, so the only certain bound is gamma / sqrt(eps), about 316 gamma. Use a critic"
    " without this norm"
)
STATISTICS = (
    "uses the statistics of the batch, which mixes its samples, so a score depends on other points, too. Use a critic"
    " without it"
)
PRODUCT = (
    "has no rule: a product of norms does not bound products of activations, nor weights that are used once per time"
    f" step. Use operations that have one, or {OWN_CONSTANT}"
)
PRODUCTS = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)  # aten shows only parts of these modules
REASONS = {
    **dict.fromkeys(["einsum", "scaled_dot_product_attention", "multi_head_attention_forward", "bilinear"], PRODUCT),
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
    bound_linear: "view _unsafe_view _reshape_alias squeeze unsqueeze transpose permute flip select slice split unbind"
    " index split_with_sizes expand repeat pixel_unshuffle constant_pad_nd reflection_pad2d replication_pad2d sum mean"
    " avg_pool2d _adaptive_avg_pool2d upsample_nearest1d upsample_nearest2d upsample_bilinear2d",
    _bound_matmul: "mm bmm addmm",
    _bound_convolution: "convolution",
    _bound_max_pool: "max_pool2d_with_indices",
    _bound_batch_norm: "native_batch_norm",
    _bound_sum: "add sub rsub",
    _bound_scale: "mul div",
    _bound_concatenation: "cat stack",
}
RULES: dict[str, Rule] = {name: rule for rule, names in NAMES.items() for name in names.split()}
