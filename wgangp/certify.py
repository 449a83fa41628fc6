"""A proved upper bound of a critic's Lipschitz constant, from its weights alone.

    |D(x) - D(y)| <= L ||x - y||_2    for all x, y         certified_lipschitz(critic, shape) -> L

One forward pass carries, beside every activation, a bound of the map from the input to it. Each operation has a rule:
    dense, matmul                         largest singular value
    convolution                           the same, or the smaller of two bounds: see _convolution
    activation                            its steepest slope
    reshape, slice, padding, averages     Schur's test: see _linear
    max pooling                           sqrt(overlap of the windows)
    sum of branches (residual)            sum of their bounds; concatenation: root of the sum of their squares

An operation without a rule is refused: what comes out is a proof or an error. The product over the layers can be far
above the steepest slope there is, which `slope_statistics` sees from below.
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

SLACK = 1 + 1e-9  # for the rounding of the bound itself
EXPLICIT = 2**20  # entries of a convolution's matrix, or of its basis, that are worth a second of singular values
SAMPLES = 2  # the least that shows a mixed batch
Rule = Callable[[dict[str, Any], Tensor, Callable], float]  # arguments, result for ones, operation: the result's bound
_ones = partial(torch.ones, dtype=torch.float64)


def certified_lipschitz(critic: nn.Module, shape: tuple[int, ...]) -> float:
    """An upper bound of the Lipschitz constant of a critic, for the Euclidean norm of the flattened sample.

    It holds on all of R^n, for the critic in eval mode and exact arithmetic (and for
    softplus without its jump of 2e-9 at 20). So (E D(real) - E D(fake)) / L <= W1.

    Args:
        critic: (B, *shape) -> (B,) or (B, 1). A copy in float64 on the CPU is used: the critic stays as it is.
            A module in it that has a number `lipschitz` is taken at its word: one input, one output, each sample by
            itself, never steeper than that, whatever its forward does.
        shape: of one sample.

    Returns:
        L >= 0, score per unit of the points.

    Raises:
        ValueError: naming the layer: an operation without a rule (a product of two activations, a branch on values, a
            write into part of a tensor), a norm layer, mixed samples, a weight that is not finite, random numbers;
            points that do not fit; a score that is not one number a sample, or not computed from the points by torch.

    Paper: layer by layer as Szegedy et al. 2014, section 4.3. Differs: branches, and strides by their own frequencies.
    """
    if not isinstance(critic, nn.Module):
        raise ValueError(
            f"a certificate is of an nn.Module's layers, not of a {type(critic).__name__}: give the module"
        )
    copied = in_float64(critic).cpu().eval()
    for name, value in [*copied.named_parameters(), *copied.named_buffers()]:
        if not value.isfinite().all():
            raise ValueError(f"{name} has NaN or inf in it: no certificate")
    running = ["the score"]  # the modules being executed, innermost last; where one of them raises, it stays so
    for name, module in copied.named_modules():
        _follow(module, f"{name or 'the critic'} ({type(module).__name__})", running)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        state = torch.get_rng_state()
        try:
            score = copied(_Tracked(_ones([SAMPLES, *shape]), 1.0))
        except _RefusedError as refused:
            raise ValueError(f"no certificate, at {running[-1]}: {refused}") from None
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"points of shape {tuple(shape)} do not fit, at {running[-1]}: {error}") from error
        if not torch.equal(state, torch.get_rng_state()):
            raise ValueError("no certificate: the critic draws random numbers, in eval mode too")
    if not isinstance(score, _Tracked):
        raise ValueError(f"no certificate: the score is not computed from the points, or {LEAVES}")
    if score.ndim == 0 or len(score) != SAMPLES or score.numel() != SAMPLES:
        raise ValueError(
            f"a critic gives one score a sample, (B,) or (B, 1): got {tuple(score.shape)} for {SAMPLES} samples."
            " Reduce everything but the first axis, e.g. score.flatten(1).mean(1)"
        )
    if not math.isfinite(score.bound):
        raise ValueError(f"no certificate: the bound is {score.bound}. Look for a constant that is inf, NaN or huge")
    return score.bound * SLACK


def in_float64(critic: nn.Module) -> nn.Module:
    """A copy of a module in double precision, with detached copies of what the last forward left in it (spectral_norm
    keeps its weight so), which deepcopy refuses.
    """
    left = [t for m in critic.modules() for t in vars(m).values() if isinstance(t, Tensor) and t.grad_fn is not None]
    return copy.deepcopy(critic, {id(t): t.detach().clone() for t in left}).double()


def _follow(module: nn.Module, where: str, running: list[str]) -> None:
    """Note in `running` when the module is executed; one with a number `lipschitz` is given plain ones."""
    module.register_forward_pre_hook(lambda *_: running.append(where), prepend=True)
    module.register_forward_hook(lambda *_: running.pop() and None)  # None: the output stays
    constant, forward = getattr(module, "lipschitz", None), module.forward
    if isinstance(constant, Real) and not isinstance(constant, bool):
        if not 0 <= constant < math.inf:
            raise ValueError(f"{where}: lipschitz = {constant}: must be >= 0 and finite")

        def promised(x: Tensor) -> Tensor:
            return _Tracked(forward(_ones(x.shape)), constant * x.bound) if isinstance(x, _Tracked) else forward(x)

        module.forward = promised


class _RefusedError(Exception):
    """No rule for this operation, or these arguments."""


class _Tracked(Tensor):
    """An activation (n B, *), n rows a sample, without values: its shape, and a bound of the map from the input to it.

    Operations are seen as those of torch.ops.aten, where x.relu(), F.relu and nn.ReLU are one.
    """

    @staticmethod
    def __new__(cls: type, like: Tensor, bound: float, shared: bool = False) -> "_Tracked":
        self = Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)
        self.bound, self.shared = bound, shared  # shared: a view, or there is a view of it
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in REASONS:  # those that aten takes apart, or that never reach it
            raise _RefusedError(f"{name} {REASONS[name]}")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}

        def run(fill: Callable[[Sequence[int]], Tensor]) -> Any:
            plain, named = tree_map_only(cls, lambda t: fill(t.shape), (args, kwargs))
            return func(*plain, **named)

        if name in CONSTANTS:
            return run(_ones)
        in_place = func._schema.is_mutable
        rule = RULES.get(name.removesuffix("_") if in_place else name)
        if rule is None or (in_place and (name[-1] != "_" or rule is _linear or not isinstance(args[0], cls))):
            raise _RefusedError(f"{name} {REASONS.get(name, UNKNOWN)}")
        if in_place and args[0].shared:
            raise _RefusedError(f"{name} writes into a tensor that has views: write {name[:-1]}")
        named = {a.name: a.default_value for a in func._schema.arguments}
        named |= dict(zip(named, args, strict=False)) | kwargs | {"op": name.removesuffix("_")}
        result = run(_ones)
        outs = result if isinstance(result, (list, tuple)) else [result]
        bound = rule(named, outs[0], run)
        if outs[0].dtype != torch.float64:
            raise _RefusedError(f"{name} gives {outs[0].dtype}: that rounds, and a step has no slope")
        if in_place:
            args[0].bound = bound
            return args[0]
        if func.is_view:
            args[0].shared = True  # below, inf: the indices beside a maximum are steps
        tracked = [cls(o, bound if o.dtype == torch.float64 else math.inf, func.is_view) for o in outs]
        return tracked if isinstance(result, (list, tuple)) else tracked[0]


def _only(a: dict[str, Any], name: str) -> _Tracked:
    """The argument of that name, which must be the one that depends on the points."""
    if [x is a[name] for x in _tracked(a)] != [True]:
        raise _RefusedError(f"{a['op']}: more than its {name!r} depends on the points. Is it a product of activations?")
    return a[name]


def _tracked(a: dict[str, Any]) -> list[_Tracked]:
    return [x for x in tree_leaves(a) if isinstance(x, _Tracked)]


def _broadcast(x: _Tracked, out: Tensor) -> float:
    """The bound of x once it has the shape of the result."""
    if x.ndim != out.ndim or len(x) != len(out):
        raise _RefusedError(MIXED)
    return x.bound * math.sqrt(out.numel() / x.numel())


def _slope(steepest: float | Callable[[dict[str, Any]], float], a: dict[str, Any], out: Tensor, run: Callable) -> float:
    """A function of each element by itself."""
    return _broadcast(_only(a, "self"), out) * (steepest(a) if callable(steepest) else steepest)


def _linear(a: dict[str, Any], out: Tensor, run: Callable) -> float:
    """A linear map A without negative entries, plus a constant: ||A||_2^2 <= largest row sum * column sum (Schur)."""
    x = _only(a, "self")
    constants = tree_leaves(run(torch.zeros))

    def apply(values: Tensor) -> list[Tensor]:
        return [value - c for value, c in zip(tree_leaves(run(lambda _: values)), constants, strict=True)]

    with enable_reentrant_dispatch(), torch.enable_grad():
        ones = _ones(x.shape).requires_grad_()
        rows = apply(ones)
        (columns,) = torch.autograd.grad(sum(r.sum() for r in rows), ones)
        without_first = _ones(x.shape)
        without_first[: len(x) // SAMPLES] = 0
        for row, others in zip(rows, apply(without_first), strict=True):
            first = len(row) // SAMPLES if row.ndim and len(row) % SAMPLES == 0 else 0
            if not first or others[:first].any() or not torch.equal(others[first:], row[first:]):
                raise _RefusedError(MIXED)
    return x.bound * math.sqrt(max(r.abs().max().item() for r in rows) * columns.abs().max().item())


def _matmul(a: dict[str, Any], out: Tensor, run: Callable) -> float:
    left, right = "mat1" if "mat1" in a else "self", "mat2"
    if out.ndim == 3 and isinstance(a[right], _Tracked):  # one weight a row of the batch, on either side
        left, right = right, left
    return _only(a, left).bound * abs(a.get("alpha", 1)) * _norm(a[right])


def _convolution(a: dict[str, Any], out: Tensor, run: Callable) -> float:
    """A zero-padded convolution, for any padding: the norm of its matrix where that is small, else the smaller of two
    bounds.

    1. sqrt(overlap) ||W||_2, W (out, in k^d): a pixel is in at most `overlap` windows.
    2. Pixels sorted by their place mod stride s into s^d times the channels, it has stride 1 and t = ceil(k / s) taps
       an axis. With n windows that is a part of the circular one on n - 1 + t pixels, whose norm is the largest over
       its frequencies (Paper: Sedghi, Gupta and Long 2019. Differs: theirs is on the image's own n pixels, of which
       the zero-padded one is no part).
    """
    x, weight, stride, dilation = _only(a, "input"), a["weight"], a["stride"], a["dilation"]
    inputs, outputs = math.prod(x.shape[1:]), math.prod(out.shape[1:])
    if inputs * max(inputs, outputs) <= EXPLICIT:
        basis = torch.eye(inputs, dtype=torch.float64).view(inputs, *x.shape[1:])
        how = [a[name] for name in ("stride", "padding", "dilation", "transposed", "output_padding", "groups")]
        return x.bound * _norm(torch.ops.aten.convolution(basis, weight, None, *how).flatten(1))
    windows = (x if a["transposed"] else out).shape[2:]  # the transposed map has the same norm
    d, w = len(windows), weight.unflatten(0, (a["groups"], -1))  # (groups, out, in, *k)
    spans = [j * (k - 1) + 1 for k, j in zip(weight.shape[2:], dilation, strict=True)]  # k with the zeros of dilation
    taps = [-(-span // s) for span, s in zip(spans, stride, strict=True)]
    kernel = w.new_zeros(*w.shape[:3], *(t * s for t, s in zip(taps, stride, strict=True)))
    kernel[(..., *(slice(0, span, j) for span, j in zip(spans, dilation, strict=True)))] = w
    for t, s in reversed(list(zip(taps, stride, strict=True))):
        kernel = kernel.unflatten(2 + d, (t, s)).movedim(3 + d, 3)  # at last (groups, out, in, *s, *t)
    torus = [n - 1 + t for n, t in zip(windows, taps, strict=True)]
    spectrum = torch.fft.rfftn(kernel.flatten(2, 2 + d), s=torus, dim=tuple(range(-d, 0)))
    unfolded = math.sqrt(_overlap(weight.shape[2:], stride, dilation, windows)) * _norm(w.flatten(2))
    return x.bound * min(unfolded, _norm(spectrum.movedim((1, 2), (-2, -1))))


def _max_pool(a: dict[str, Any], out: Tensor, run: Callable) -> float:
    kernel, stride = a["kernel_size"], a["stride"] or a["kernel_size"]
    return _only(a, "self").bound * math.sqrt(_overlap(kernel, stride, a["dilation"], out.shape[2:]))


def _overlap(kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], windows: Sequence[int]) -> int:
    """In how many windows a pixel is, at most."""
    axes = zip(kernel, stride, dilation, windows, strict=True)
    return math.prod(min(n, -(-k // (s // math.gcd(s, j)))) for k, s, j, n in axes)


def _scale(a: dict[str, Any], out: Tensor, run: Callable) -> float:
    """A constant times, or division by one."""
    name, constant = ("self", "other") if a["op"] == "div" or isinstance(a["self"], _Tracked) else ("other", "self")
    x, factor = _only(a, name), torch.as_tensor(a[constant], dtype=torch.float64)
    if a.get("rounding_mode"):
        raise _RefusedError("div rounds: a step has no slope")
    return _broadcast(x, out) * (1 / factor if a["op"] == "div" else factor).abs().max().item()


def _sum(a: dict[str, Any], out: Tensor, run: Callable) -> float:
    return max(abs(a["alpha"]), 1) * sum(_broadcast(x, out) for x in _tracked(a))


def _joined(a: dict[str, Any], out: Tensor, run: Callable) -> float:
    if a["dim"] % out.ndim == 0:
        raise _RefusedError(MIXED)
    return math.hypot(*(x.bound for x in _tracked(a)))


def _norm(matrices: Tensor) -> float:
    if not matrices.isfinite().all():
        raise _RefusedError("its weight has NaN or inf in it")
    return torch.linalg.svdvals(matrices).max().item()


MIXED = "the samples of a batch are mixed or moved: keep the first axis for them alone"
UNKNOWN = "has no rule. Write it with what has, or give its module a number `lipschitz` that you can prove"
LEAVES = "leaves torch. Stay in it, or give its module a number `lipschitz` that you can prove"
DEVIATION = "divides by a deviation: only gamma / sqrt(eps), about 316 gamma, is certain. Use a critic without"
REASONS = {
    "batch_norm": "mixes the samples of a batch: a score is no function of its point. Use a critic without",
    **dict.fromkeys(["instance_norm", "layer_norm", "group_norm", "rms_norm"], DEVIATION),
    **dict.fromkeys(["numpy", "tolist", "__array__", "__set__"], LEAVES),
    "_local_scalar_dense": "reads a value: a critic that branches on one may jump. Remove item(), bool() or if",
    "copy_": "writes into a part of a tensor (circular padding does). Use cat, or padding with zeros",
}
CONSTANTS = {"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like"}
OF_NAMES = {  # those of torch.ops.aten
    partial(_slope, 1): "clone detach _to_copy neg abs relu tanh sin cos hardtanh clamp clamp_min clamp_max",
    partial(_slope, 1 / 4): "sigmoid",
    partial(_slope, 1.1): "silu",
    partial(_slope, 1.13): "gelu",
    partial(_slope, lambda a: 1 if a["threshold"] >= 20 else math.inf): "softplus",  # it jumps there, at 20 by 2e-9
    partial(_slope, lambda a: abs(a["scale"]) * max(abs(a["alpha"] * a["input_scale"]), 1)): "elu",  # and selu
    partial(_slope, lambda a: max(abs(a["negative_slope"]), 1)): "leaky_relu",
    partial(_slope, lambda a: max(a["weight"].abs().max().item(), 1)): "_prelu_kernel",
    _linear: "view _unsafe_view _reshape_alias squeeze unsqueeze transpose permute flip select slice split unbind index"
    " split_with_sizes expand repeat pixel_unshuffle constant_pad_nd reflection_pad2d replication_pad2d sum mean"
    " avg_pool2d _adaptive_avg_pool2d upsample_nearest1d upsample_nearest2d upsample_bilinear2d",
    _matmul: "mm bmm addmm",
    _convolution: "convolution",
    _max_pool: "max_pool2d_with_indices",
    _sum: "add sub rsub",
    _scale: "mul div",
    _joined: "cat stack",
}
RULES: dict[str, Rule] = {name: rule for rule, names in OF_NAMES.items() for name in names.split()}
