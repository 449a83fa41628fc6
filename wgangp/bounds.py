"""The rules of `certified_lipschitz`: how each operation of torch updates the bound of an activation.

    rule(args, out, call) -> the bound of the result

args are the arguments by name, with "op", the name of the operation. Activations among them have the attribute `bound`.
out is the result for ones, and call(fill) is the operation with fill(shape) in the place of each activation.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from wgangp.linear import (
    MIXED,
    OWN_CONSTANT,
    NoRuleError,
    bound_convolution,
    bound_einsum,
    bound_linear,
    bound_matmul,
    bound_max_pool,
    bound_resize,
    find_tracked,
    get_only,
)

__all__ = ["CONSTANTS", "LEAVES", "PRODUCT", "PRODUCTS", "REASONS", "RULES", "STATISTICS", "UNKNOWN"]

Rule = Callable[[dict[str, Any], Tensor, Callable], float]  # (arguments, result for ones, operation) -> its bound


def _bound_broadcast(x: Tensor, out: Tensor) -> float:
    """Return the bound of x after x is broadcast to the shape of the result."""
    if x.ndim != out.ndim or len(x) != len(out):
        raise NoRuleError(MIXED)
    return x.bound * math.sqrt(out.numel() / x.numel())


def _bound_elementwise(
    slope: float | Callable[[dict[str, Any]], float], args: dict[str, Any], out: Tensor, call: Callable
) -> float:
    """A function of each element by itself, nowhere steeper than the slope."""
    return _bound_broadcast(get_only(args, "self"), out) * (slope(args) if callable(slope) else slope)


def _bound_join(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    """Each entry of the result is one of two entries: where with a constant mask, maximum, minimum."""
    return math.hypot(*(_bound_broadcast(x, out) for x in find_tracked(args)))


def _bound_order(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    """The largest or smallest entries along an axis, or all of them in order."""
    if "other" in args:
        return _bound_join(args, out, call)
    x, dims = get_only(args, "self"), tree_leaves(args.get("dim"))
    if not dims or any(d is None or d % x.ndim == 0 for d in dims):
        raise NoRuleError(f"{args['op']}: {MIXED}")
    return x.bound


def _bound_softplus(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    """Above its threshold it is x: it jumps there by log(1 + exp(-threshold)) / beta, 2e-9 for torch's own values."""
    if args["threshold"] < 20 or abs(args["beta"]) < 0.1:
        raise NoRuleError("softplus jumps at its threshold. Use threshold >= 20 and beta >= 0.1")
    return _bound_elementwise(1, args, out, call)


def _find_elu_slope(args: dict[str, Any]) -> float:
    """Return the largest slope of scale * (x if x > 0 else alpha * (exp(input_scale * x) - 1)).

    With input_scale < 0 the exponential grows, and no slope is the largest. For celu, input_scale is 1 / alpha.
    """
    alpha = args["alpha"]
    scale, input_scale = (1, 1 / alpha) if args["op"] == "celu" else (args["scale"], args["input_scale"])
    if not input_scale >= 0:
        raise NoRuleError(f"{args['op']} with input_scale = {input_scale} grows exponentially. Use input_scale >= 0")
    return abs(scale) * max(abs(alpha * input_scale), 1)


def _bound_scale(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    """Multiplication with a constant, or division by a constant."""
    left = args["op"] == "div" or hasattr(args["self"], "bound")
    name, constant = ("self", "other") if left else ("other", "self")
    x, factor = get_only(args, name), torch.as_tensor(args[constant], dtype=torch.float64)
    if args.get("rounding_mode"):
        raise NoRuleError("div rounds: a step has no slope. Use div without rounding_mode")
    return _bound_broadcast(x, out) * (1 / factor if args["op"] == "div" else factor).abs().max().item()


def _bound_batch_norm(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    """(x - mean) / sqrt(var + eps) * weight + bias per channel, with the running statistics."""
    x, variance = get_only(args, "input"), args["running_var"]
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
BRANCH = (
    "compares activations, and a critic that branches on a value may jump. Use relu, leaky_relu, abs, clamp, maximum,"
    " or a mask that does not depend on the points"
)
PRODUCTS = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)  # aten shows only parts of these modules
REASONS = {
    **dict.fromkeys(["scaled_dot_product_attention", "multi_head_attention_forward", "bilinear"], PRODUCT),
    **dict.fromkeys(["instance_norm", "layer_norm", "group_norm", "rms_norm"], DEVIATION),
    **dict.fromkeys(["numpy", "tolist", "__array__", "__set__"], LEAVES),
    **dict.fromkeys(["gt", "ge", "lt", "le", "eq", "ne", "sign", "argmax", "argmin", "nonzero"], BRANCH),
    "_local_scalar_dense": "reads a value, and a critic that branches on a value may jump. Remove item(), bool() or if",
    "copy_": "writes into a part of a tensor (circular padding does this). Use cat, or padding with zeros",
}
CONSTANTS = {"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like"}
NAMES = {  # rule -> names in torch.ops.aten, and einsum
    partial(_bound_elementwise, 1): "clone detach _to_copy neg abs relu tanh sin cos atan hardtanh clamp clamp_min"
    " clamp_max masked_fill softshrink log_sigmoid_forward",
    partial(_bound_elementwise, 1 / 4): "sigmoid",
    partial(_bound_elementwise, 1 / 6): "hardsigmoid",
    partial(_bound_elementwise, 1.1): "silu",
    partial(_bound_elementwise, 1.13): "gelu erf",
    partial(_bound_elementwise, 1.09): "mish",
    partial(_bound_elementwise, 1.5): "hardswish",
    _bound_softplus: "softplus",
    partial(_bound_elementwise, _find_elu_slope): "elu celu",  # selu arrives as elu
    partial(_bound_elementwise, lambda args: max(abs(args["negative_slope"]), 1)): "leaky_relu",
    partial(_bound_elementwise, lambda args: max(args["weight"].abs().max().item(), 1)): "_prelu_kernel",
    bound_linear: "view _unsafe_view _reshape_alias squeeze unsqueeze transpose permute flip roll select slice split"
    " unbind index index_select diagonal split_with_sizes expand repeat tril triu cumsum im2col pixel_shuffle"
    " pixel_unshuffle channel_shuffle native_channel_shuffle constant_pad_nd reflection_pad1d reflection_pad2d"
    " reflection_pad3d replication_pad1d replication_pad2d replication_pad3d sum mean avg_pool2d avg_pool3d"
    " _adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d"
    " _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d"
    " upsample_trilinear3d",
    bound_resize: "upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    bound_matmul: "mm bmm mv addmm baddbmm addmv",
    bound_einsum: "einsum",
    bound_convolution: "convolution",
    bound_max_pool: "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d",
    _bound_order: "amax amin max min sort topk",
    _bound_join: "where maximum minimum",
    _bound_batch_norm: "native_batch_norm",
    _bound_sum: "add sub rsub",
    _bound_scale: "mul div",
    _bound_concatenation: "cat stack",
}
RULES: dict[str, Rule] = {name: rule for rule, names in NAMES.items() for name in names.split()}
