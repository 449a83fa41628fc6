"""The rules of the operations of torch for affine forms (form.py): linear and piecewise-linear functions of samples."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from wgangp.bounds import STATISTICS
from wgangp.form import ROUNDING, RULES, UNKNOWN, Cells, Form
from wgangp.linear import MIXED, NoRuleError

__all__ = ["ROUNDING", "Cells", "Form"]

COMPARISONS = 64  # of one operation, at most: each costs a pass over all cells
# Rules: arguments by name (with "op", the name of the operation), the forms among them, the operation as a function.


def _move(args: dict[str, Any], forms: list[Form], call: Callable) -> Any:
    """Entries of a sample are moved, left out or added up."""
    (form,) = forms
    dims = [d for d in tree_leaves([args.get(name) for name in ("dim", "dim0", "dim1", "dims")]) if d is not None]
    if any(d % form.ndim == 0 for d in dims) and args["op"] != "unsqueeze":
        raise NoRuleError(f"{args['op']}: {MIXED}")
    shape = args.get("size")
    if shape is not None:  # it names the number of samples, which differs
        if shape[0] not in (len(form), -1):
            raise NoRuleError(f"{args['op']}: {MIXED}")
        expand = args["op"] == "expand"
        return form.map(lambda x: x.expand(len(x), *shape[1:]) if expand else x.reshape(len(x), *shape[1:]))
    parts = call(form.center)
    if isinstance(parts, (list, tuple)):
        return [form.map(lambda x, i=i: call(x)[i]) for i in range(len(parts))]
    if parts.shape[:1] != form.shape[:1]:
        raise NoRuleError(f"{args['op']}: {MIXED}")
    if args["op"] == "_to_copy" and args.get("dtype") not in (None, torch.float64):
        raise NoRuleError(f"a conversion to {args['dtype']} {UNKNOWN}")
    count = form.numel() // len(form)  # at least the number of entries in a sum
    form.cells.operations += count
    result = form.map(call)
    if args["op"] in ("sum", "mean"):
        result.error = result.error + count * call(form.bound_rounding())
    return result


def _multiply_matrix(args: dict[str, Any], forms: list[Form], call: Callable) -> Form:
    """x matrix, or x matrix + b."""
    x, bias = args.get("mat1", args["self"]), args["self"] if args["op"] == "addmm" else 0
    if len(forms) != 1 or forms[0] is not x or {args.get("alpha", 1), args.get("beta", 1)} != {1}:
        raise NoRuleError(f"{args['op']} {UNKNOWN}")
    matrix = args["mat2"]
    x.cells.operations += 2 * len(matrix)
    grown = matrix.abs() * (1 + len(matrix) * ROUNDING)
    form = x.map(lambda v: v @ matrix, lambda v: v @ grown, bias)
    form.error = form.error + (len(matrix) * x.bound_rounding()) @ grown
    return form


def _scale(args: dict[str, Any], forms: list[Form], call: Callable) -> Form:
    x, *others = forms
    if others or (args["op"] == "div" and (args["self"] is not x or args.get("rounding_mode"))):
        raise NoRuleError(f"{args['op']} {UNKNOWN}")
    factor = torch.as_tensor(args["other"] if args["self"] is x else args["self"], dtype=torch.float64)
    factor = 1 / factor if args["op"] == "div" else factor
    return x.map(lambda v: v * factor, lambda v: v * factor.abs())


def _add(args: dict[str, Any], forms: list[Form], call: Callable | None = None) -> Form:
    x, y, alpha = args["self"], args["other"], args.get("alpha", 1)
    if args["op"] == "rsub":
        x, y = y, x
    factors = (1, -alpha if args["op"] in ("sub", "rsub") else alpha)
    scaled = [
        v if a == 1 else v.map(lambda u, a=a: u * a, lambda u, a=a: u * abs(a)) if isinstance(v, Form) else v * a
        for v, a in zip((x, y), factors, strict=True)
    ]
    if len(forms) == 1:
        form, constant = scaled if isinstance(scaled[0], Form) else reversed(scaled)
        return form.map(lambda v: v, None, constant)
    if x.ndim != y.ndim:
        raise NoRuleError(f"{args['op']}: {MIXED}")
    return _combine(lambda parts: parts[0] + parts[1], scaled)


def _combine(join: Callable[[list[Tensor]], Tensor], forms: list[Any]) -> Form:
    """Return join(forms), a sum or a concatenation, of forms and constants."""
    first = next(form for form in forms if isinstance(form, Form))

    def take(get: Callable[[Form], Tensor], like: Tensor, axes: int) -> Tensor:
        flat = [
            get(form).flatten(0, axes - 1)
            if isinstance(form, Form)
            else (form if like is first.center else torch.zeros_like(form))[:1].expand(
                prod(like.shape[:axes]), *form.shape[1:]
            )
            for form in forms
        ]
        return join(flat).unflatten(0, like.shape[:axes])

    if first.gradients is not None:  # a form that has seen more kinks has more generators
        size = max(form.gradients.shape[1] for form in forms if isinstance(form, Form))
        gradients = take(lambda f: _pad(f.gradients, size), _pad(first.gradients, size), 3)
    center = take(lambda f: f.center, first.center, 1)
    error = take(lambda f: f.error + 2 * f.bound_rounding(), first.error, 1)
    return Form(
        first.cells,
        center,
        take(lambda f: f.gradient, first.gradient, 2),
        None if first.gradients is None else gradients,
        error,
        None if first.rest is None else take(lambda f: f.rest, first.rest, 1),
        take(lambda f: f.magnitude, first.magnitude, 2),
    )


def _pad(gradients: Tensor, size: int) -> Tensor:
    """Add generators that are 0: (C, K, d, *) -> (C, size, d, *), if size is larger than K."""
    return F.pad(gradients, [0, 0] * (gradients.ndim - 2) + [0, max(0, size - gradients.shape[1])])


def _normalize(args: dict[str, Any], forms: list[Form], call: Callable) -> tuple[Form, Tensor, Tensor]:
    """Batch norm in eval mode: (x - mean) / sqrt(var + eps) * weight + bias per channel, with running statistics."""
    x, variance = args["input"], args["running_var"]
    if len(forms) != 1 or forms[0] is not x or args["training"] or variance is None:
        raise NoRuleError(f"{args['op']} {STATISTICS}")
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = (variance + args["eps"]).rsqrt() * (1 if args["weight"] is None else args["weight"])
    scale, mean = scale.view(shape), args["running_mean"].view(shape)
    bias = 0 if args["bias"] is None else args["bias"].view(shape)
    x.cells.operations += 4
    grown = scale.abs() * (1 + 2 * ROUNDING)
    form = x.map(lambda v: v, None, -mean).map(lambda v: v * scale, lambda v: v * grown, bias)
    return form, *call(x.center)[1:]


def _concatenate(args: dict[str, Any], forms: list[Form], call: Callable) -> Form:
    stack, dim = args["op"] == "stack", args["dim"] % (forms[0].ndim + (args["op"] == "stack"))
    constants = [x for x in args["tensors"] if not isinstance(x, Form)]
    if dim == 0 or any((x != x[:1]).any() for x in constants):
        raise NoRuleError(f"{args['op']}: {MIXED}")
    return _combine(lambda parts: (torch.stack if stack else torch.cat)(parts, dim), args["tensors"])


def _bend(form: Form, below: Tensor | float, above: Tensor | float) -> Form:
    """below * min(z, 0) + above * max(z, 0), for each entry z."""
    if form.ndim == 1:
        return _bend(form.map(lambda v: v.unsqueeze(-1)), below, above).map(lambda v: v.squeeze(-1))
    cells = form.cells
    below, above = (torch.as_tensor(x, dtype=torch.float64).expand(form.shape) for x in (below, above))
    reach = form.compute_radius() + form.bound_rounding()
    low, high = form.center - reach, form.center + reach
    kink = (low < 0) & (high > 0) & (below != above)
    # A cell that is one point may be on a kink. Units without a gradient are constant.
    kink |= (low == 0) & (high == 0) & (below != above) & (form.gradient != 0).any(1)
    certain = torch.where(high <= 0, below, above)
    # On the cell the function lies between its chord and the parallel to the chord through 0.
    slope = torch.where(kink, (above * high - below * low) / torch.where(high > low, high - low, 1.0), certain)
    gap = torch.where(kink, (above - slope) * high / 2, 0.0)
    error = slope.abs() * (form.error + 2 * form.bound_rounding()) + gap.abs() + 4 * ROUNDING * (gap.abs() + reach)
    # An argument that is constant on the cell has no kink, as where two dead units are compared.
    moving = (form.gradient != 0).any(1) if form.gradients is None else (form.gradients != 0).flatten(1, 2).any(1)
    kink &= moving if form.rest is None else moving | (form.rest > 0)
    number = cells.kinks.unsqueeze(1) + kink.flatten(1).long().cumsum(1) - 1  # the number of each kink in its cell
    number = number.view(kink.shape)
    cells.kinks = cells.kinks + kink.flatten(1).sum(1)
    gradients, rest = form.gradients, form.rest
    if gradients is not None and cells.corners:
        corner = torch.arange(gradients.shape[1], device=gradients.device).view(1, -1, *[1] * (form.ndim - 1))
        at_end = (corner >> number.clamp(min=0).unsqueeze(1)) & 1 == 1
        ends = torch.where(at_end, above.unsqueeze(1), below.unsqueeze(1))
        gradients = gradients * torch.where(kink.unsqueeze(1), ends, certain.unsqueeze(1)).unsqueeze(2)
    elif gradients is not None:
        gradients = _pad(gradients, 1 + min(cells.k, int(cells.kinks.max())))
        rest = torch.where(kink, torch.maximum(above.abs(), below.abs()), certain.abs()) * rest
        cell, *unit = torch.nonzero(kink, as_tuple=True)  # few of all, so that what follows is cheap
        own, half_range = number[cell, *unit] + 1, (above - below).abs()[cell, *unit] / 2
        before = gradients[cell, :, :, *unit]  # (kinks, K, d)
        lengths = before[:, 1:].norm(dim=2).sum(1)
        crowded = own >= gradients.shape[1]  # kinks that have no generator are a part of the rest
        rest[cell, *unit] += half_range * (lengths + torch.where(crowded, before[:, 0].norm(dim=1), 0.0))
        gradients = gradients * torch.where(kink, (above + below) / 2, certain)[:, None, None]
        keep = ~crowded
        place = (cell[keep], own[keep], slice(None), *(index[keep] for index in unit))
        gradients[place] = (half_range.unsqueeze(1) * before[:, 0])[keep]
    steepest = torch.maximum(below.abs(), above.abs()).amax(0)
    center, gradient = form.center * slope + gap, form.gradient * slope.unsqueeze(1)
    return Form(cells, center, gradient, gradients, error, rest, form.magnitude * steepest)


def _clamp(args: dict[str, Any], forms: list[Form], call: Callable) -> Form:
    (form,) = forms
    for names, below, above in ((("min", "min_val"), 0.0, 1.0), (("max", "max_val"), 1.0, 0.0)):
        bound = next((args[name] for name in names if args.get(name) is not None), None)
        if bound is not None:
            form = _bend(form.map(lambda x: x, None, -bound), below, above).map(lambda x: x, None, bound)
    return form


def _maximum(args: dict[str, Any], forms: list[Form], call: Callable) -> Form:
    """max(x, y) = x + max(y - x, 0), min(x, y) = y - max(y - x, 0). Of one pair they share their kinks."""
    x, y = args["self"], args["other"]
    pair, shared = frozenset((id(v), v._version) for v in (x, y)), forms[0].cells.excess
    if pair not in shared:
        shared[pair] = (x, y, _bend(_sum(y, x, -1), 0.0, 1.0))  # x and y are kept, so that their ids stay theirs
    x, y, above = shared[pair]
    return _sum(x, above) if args["op"] == "maximum" else _sum(y, above, -1)


def _sum(x: Any, y: Any, factor: int = 1) -> Form:
    """x + factor y, of forms or a form and a constant."""
    return _add({"self": x, "other": y, "op": "add", "alpha": factor}, [v for v in (x, y) if isinstance(v, Form)])


class _Places(Tensor):
    """Where the sorted entries were: a tensor that no operation takes."""

    @classmethod
    def __torch_dispatch__(cls, *_: Any, **__: Any) -> Any:
        raise NoRuleError("the places that sort, max and min return have no rule")


def _sort(args: dict[str, Any], forms: list[Form], call: Callable) -> Any:
    """Entries along an axis in order, or the largest or smallest of them."""
    (form,), op, dims = forms, args["op"], tree_leaves(args.get("dim"))
    if len(dims) != 1 or dims[0] is None or dims[0] % form.ndim == 0:
        raise NoRuleError(f"{op}: give it one axis, and not that of the samples")
    dim, count = dims[0] % form.ndim, form.shape[dims[0]]
    if (count * (count - 1) // 2 if op == "sort" else count - 1) > COMPARISONS:
        raise NoRuleError(f"{op} of {count} entries takes more than {COMPARISONS} comparisons: use smaller groups")
    first, *others = (form.map(lambda v, i=i: v.select(dim, i)) for i in range(count))
    form.cells.operations += 4 * count
    ordered = [first]
    for x in others:  # each pair is compared once: a second kink at its place would loosen the bound
        above = [_bend(_sum(x, y, -1), 0.0, 1.0) for y in ordered]
        middle = [_sum(_sum(y, d), e, -1) for y, d, e in zip(ordered, above, above[1:], strict=False)]
        ordered = [_sum(x, above[0], -1), *middle, _sum(ordered[-1], above[-1])]
        if op != "sort":
            ordered = ordered[:1] if op in ("amin", "min") else ordered[-1:]
    if op == "sort":
        result = _combine(lambda x: torch.stack(x, dim), ordered[::-1] if args["descending"] else ordered)
    else:
        result = ordered[0].map(lambda v: v.unsqueeze(dim)) if args["keepdim"] else ordered[0]
    places = Tensor._make_wrapper_subclass(_Places, result.shape, dtype=torch.long)
    return result if op in ("amax", "amin") else (result, places)


NAMES = {
    _move: "view _unsafe_view expand squeeze unsqueeze transpose t permute flip select slice split split_with_sizes"
    " unbind clone detach _to_copy sum mean",
    _multiply_matrix: "mm addmm",
    _scale: "mul div",
    _add: "add sub rsub",
    _concatenate: "cat stack",
    _normalize: "native_batch_norm",
    _clamp: "hardtanh clamp clamp_min clamp_max",
    _maximum: "maximum minimum",
    _sort: "sort amax amin max min",
    lambda args, forms, call: forms[0].map(call, lambda x: x): "neg",
    lambda args, forms, call: _bend(forms[0], 0.0, 1.0): "relu",
    lambda args, forms, call: _bend(forms[0], args["negative_slope"], 1.0): "leaky_relu",
    lambda args, forms, call: _bend(forms[0], args["weight"], 1.0): "_prelu_kernel",
    lambda args, forms, call: _bend(forms[0], -1.0, 1.0): "abs",
}
RULES.update({name: rule for rule, names in NAMES.items() for name in names.split()})
