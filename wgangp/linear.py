"""The rules of `certified_lipschitz` for linear maps and for pooling: the norms of their matrices, or bounds of them.

See bounds.py for what a rule gets and returns.
"""

import math
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import enable_reentrant_dispatch
from torch.utils._pytree import tree_leaves

__all__ = [
    "MIXED",
    "OWN_CONSTANT",
    "SAMPLES",
    "NoRuleError",
    "bound_convolution",
    "bound_einsum",
    "bound_linear",
    "bound_matmul",
    "bound_max_pool",
    "bound_resize",
    "find_tracked",
    "get_only",
    "ones",
]

EXPLICIT = 2**20  # entries up to which a convolution is written as a matrix: its singular values take about a second
SAMPLES = 2  # the smallest batch in which it can be seen that samples are mixed
ones = partial(torch.ones, dtype=torch.float64)
OWN_CONSTANT = "give its module an attribute `lipschitz`, a constant that you can prove"
MIXED = "the samples of a batch are mixed or moved. Use the first axis for the samples alone"
SEVERAL = (
    "of several activations has no rule: a product of norms does not bound a product of activations. Use operations"
    f" that have a rule, or {OWN_CONSTANT}"
)


class NoRuleError(Exception):
    """There is no rule for an operation, or for its arguments."""


def get_only(args: dict[str, Any], name: str) -> Tensor:
    """Return the argument of this name. It must be the only one that depends on the points."""
    tracked = find_tracked(args)
    if len(tracked) > 1:
        raise NoRuleError(f"{args['op']} {SEVERAL}")
    if tracked[0] is not args[name]:
        raise NoRuleError(f"{args['op']}: of its arguments only {name!r} may depend on the points")
    return args[name]


def find_tracked(args: dict[str, Any]) -> list[Tensor]:
    return [x for x in tree_leaves(args) if hasattr(x, "bound")]


def bound_linear(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    """A linear map A without negative entries, plus a constant: ||A||_2^2 <= largest row sum * column sum (Schur)."""
    x = get_only(args, "self")
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


def bound_matmul(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    left = next(name for name in ("mat1", "batch1", "mat", "self") if name in args)
    right = next(name for name in ("mat2", "batch2", "vec") if name in args)
    if out.ndim == 3 and hasattr(args[right], "bound"):  # bmm: one weight per row of the batch, on either side
        left, right = right, left
    weight = args[right].unsqueeze(1) if right == "vec" else args[right]
    return get_only(args, left).bound * abs(args.get("alpha", 1)) * _spectral_norm(weight)


def bound_einsum(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    """A product of one activation and constants: the norm of its matrix if that is small, else Schur's test of the
    absolute values. An axis that no constant has, and that stays in the result, repeats one map: one entry is enough.
    """
    operands = args["operands"]
    tracked = find_tracked(args)
    if len(tracked) != 1:
        raise NoRuleError(f"einsum {SEVERAL}")
    (x,), place = tracked, next(i for i, operand in enumerate(operands) if operand is tracked[0])
    terms, result = _split_equation(args["equation"], [operand.ndim for operand in operands])
    own, others = terms.pop(place), Counter("".join(terms))
    if not own or own[0] in others or own.count(own[0]) > 1 or not result.startswith(own[0]):
        raise NoRuleError(f"einsum: {MIXED}")
    repeats = [letter in result and letter not in others and own.count(letter) == 1 for letter in own]
    shape = [1 if repeat else n for repeat, n in zip(repeats, x.shape, strict=True)][1:]

    def apply(values: Tensor, function: Callable = lambda w: w) -> Tensor:
        replaced = [values if operand is x else function(operand) for operand in operands]
        return torch.einsum(args["equation"], *replaced).unsqueeze(-1).flatten(1)

    inputs, outputs = math.prod(shape), apply(ones([1, *shape])).numel()
    if inputs * max(inputs, outputs) <= EXPLICIT:
        return x.bound * _spectral_norm(apply(torch.eye(inputs, dtype=torch.float64).view(inputs, *shape)))
    with torch.enable_grad():
        values = ones([1, *shape]).requires_grad_()
        rows = apply(values, torch.abs)
        (columns,) = torch.autograd.grad(rows.sum(), values)
    return x.bound * math.sqrt(rows.max().item() * columns.max().item())


def _split_equation(equation: str, ndims: list[int]) -> tuple[list[str], str]:
    """Return the axes of each operand of einsum and those of its result, with letters for `...`."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms, spare = left.split(","), "".join(c for c in string.ascii_letters if c not in equation)
    counts = [n - len(term) + 3 if "..." in term else 0 for term, n in zip(terms, ndims, strict=True)]
    last = max(counts)  # the axes of all `...` end at the same letter
    terms = [term.replace("...", spare[last - count : last]) for term, count in zip(terms, counts, strict=True)]
    if not arrow:
        letters = Counter(left.replace(",", "").replace(".", ""))
        result = "..." + "".join(sorted(letter for letter, count in letters.items() if count == 1))
    return terms, result.replace("...", spare[:last])


def bound_convolution(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    """A zero-padded convolution, with any padding: the norm of its matrix if that is small, else the smaller of two
    bounds.

    1. sqrt(overlap) ||W||_2, W (out, in k^d), where each pixel is in at most `overlap` windows.
    2. Sort the pixels by their position modulo the stride s into s^d times as many channels. The convolution then has
       stride 1 and t = ceil(k / s) taps per axis. With n windows per axis it is a part of the circular convolution on
       n - 1 + t pixels, whose norm is the largest over its frequencies (Paper: Sedghi, Gupta and Long 2019. Differs:
       they take the image's own n pixels, and the zero-padded convolution is not a part of that one).
    """
    x, weight, stride, dilation = get_only(args, "input"), args["weight"], args["stride"], args["dilation"]
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


def bound_max_pool(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    x = get_only(args, "self")
    if args["op"].startswith("adaptive"):
        return x.bound * math.sqrt(math.prod(map(_count_adaptive_overlap, x.shape[1:], out.shape[1:])))
    kernel, stride = args["kernel_size"], args["stride"] or args["kernel_size"]
    overlap = _count_overlap(kernel, stride, args["dilation"], out.shape[-len(kernel) :])
    return x.bound * math.sqrt(overlap)


def _count_adaptive_overlap(n: int, m: int) -> int:
    """Return the largest number of windows that one of n entries is in, 1 if m = n.

    Window i of m is from floor(i n / m) to ceil((i + 1) n / m).
    """
    starts, ends = [i * n // m for i in range(m)], [-(-(i + 1) * n // m) for i in range(m)]
    return max(sum(start <= j < end for start, end in zip(starts, ends, strict=True)) for j in range(n))


def bound_resize(args: dict[str, Any], out: Tensor, call: Callable) -> float:
    """Bilinear and bicubic interpolation: the product of the norms of its matrices for the two axes."""
    x, resize = get_only(args, "self"), getattr(torch.ops.aten, args["op"])
    if args["op"].endswith("_aa") and out.shape[3] == 1:  # torch 2.14: another result for channels_last
        raise NoRuleError("antialias with a result of width 1 depends on the memory format. Use antialias=False")
    norm = x.bound
    for axis, scale in ((2, "scales_h"), (3, "scales_w")):
        n, m, other = x.shape[axis], out.shape[axis], 5 - axis
        basis = torch.eye(n, dtype=torch.float64).view(n, 1, n, 1)
        basis = torch.cat([basis, 0 * basis], 3).transpose(axis, 2).contiguous()  # two columns, which stay two
        size, scales = [0, 0], {"scales_h": None, "scales_w": None, scale: args[scale]}
        size[axis - 2], size[other - 2] = m, 2
        norm *= _spectral_norm(resize(basis, size, args["align_corners"], **scales).flatten(1))
    return norm


def _count_overlap(
    kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], windows: Sequence[int]
) -> int:
    """Return the largest number of windows that one pixel is in."""
    axes = zip(kernel, stride, dilation, windows, strict=True)
    return math.prod(min(n, -(-k // (s // math.gcd(s, j)))) for k, s, j, n in axes)


def _spectral_norm(matrices: Tensor) -> float:
    """Return the largest singular value of all matrices (..., m, n)."""
    if not matrices.isfinite().all():
        raise NoRuleError("its weight has NaN or inf in it. Use finite weights")
    return torch.linalg.svdvals(matrices).max().item()
