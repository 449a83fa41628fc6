"""Activations as affine forms on many cells at once, through the layers of a piecewise-linear critic.

On a cell with the center c, an activation z is

    z(c + d) = center + gradient d + r,   |r| <= error,      for all points c + d of the cell

A unit (a ReLU, for example) is linear on the cell if its argument has one sign there. The others are the `kinks` of the
cell. Their derivative lies between two ends, 0 and 1 for a ReLU.

`Form` is a tensor without values of its own. Each operation of torch has a rule that computes the form of its result
(affine.py). An operation without a rule raises an error.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from wgangp.linear import MIXED, NoRuleError

__all__ = ["ROUNDING", "RULES", "UNKNOWN", "Cells", "Form"]

UNKNOWN = (
    "is neither linear nor a piecewise-linear function that is known here. Use Linear, ReLU, LeakyReLU, PReLU, abs,"
    " clamp, maximum, minimum, sort; or certified_lipschitz, which has more rules"
)
RULES: dict[str, Callable[..., Any]] = {}  # name of an operation -> its rule; affine.py has all of them
ROUNDING = 2.0**-50  # relative error of one operation in float64, with a margin


class Cells:
    """What all forms of one pass share.

    Attributes:
        half: half of the sides of each cell (C, d).
        k: so many kinks per cell have a generator of their own; with corners, at most so many are in each cell. None:
            no gradients are computed.
        corners: see Form.gradients.
        kinks: the number of kinks so far (C,).
        operations: a bound of the number of additions behind one value so far.
        excess: x, y and max(y - x, 0) of pairs, at least one of them a form.
    """

    def __init__(self, half: Tensor, k: int | None, corners: bool) -> None:
        self.half, self.k, self.corners, self.operations = half, k, corners, 4
        self.kinks = torch.zeros(len(half), dtype=torch.long, device=half.device)
        self.excess: dict[frozenset[int], Any] = {}


class Form(Tensor):
    """An activation (C, *) on C cells: center + G d, with an error.

    Attributes:
        center, error: (C, *).
        gradient: (C, d, *), the gradient of the affine form.
        gradients: None, or (C, K, d, *). With cells.corners: the gradients at all combinations of the ends of the
            derivatives, K = 2^k. Without: the middle gradient and one generator for each of the first k kinks so far,
            K <= 1 + k. The gradient is the middle, plus each generator times a factor in [-1, 1], plus a rest.
        rest: None, or (C, *), a bound of the norm of this rest: of the other kinks, and of products of two factors.
        magnitude: (1, d, *), a bound of the absolute values that are added up in a gradient. Rounding is a part of it.
    """

    @staticmethod
    def __new__(
        cls: type,
        cells: Cells,
        center: Tensor,
        gradient: Tensor,
        gradients: Tensor | None,
        error: Tensor,
        rest: Tensor | None,
        magnitude: Tensor,
    ) -> "Form":
        self = Tensor._make_wrapper_subclass(cls, center.shape, dtype=center.dtype)
        self.cells, self.center, self.gradient, self.gradients = cells, center, gradient, gradients
        self.error, self.rest, self.magnitude = error, rest, magnitude
        self.shared = False  # True: it is a view, or there is a view of it
        return self

    def compute_radius(self) -> Tensor:
        """Return how far the activation can be from its center (C, *)."""
        half = self.cells.half.view(*self.cells.half.shape, *[1] * (self.ndim - 1))
        return (self.gradient.abs() * half).sum(1) + self.error

    def bound_rounding(self) -> Tensor:
        """Return a bound of the rounding of one operation on the activation (C, *)."""
        return ROUNDING * (self.center.abs() + self.compute_radius())

    def bound_gradient_rounding(self) -> float:
        """Return a bound of the rounding in a gradient of the score."""
        return self.cells.operations * ROUNDING * self.magnitude.norm().item() * (1 + (self.cells.k or 0))

    def map(self, f: Callable[[Tensor], Tensor], absolute: Callable | None = None, constant: Any = 0) -> "Form":
        """Apply f, a linear map of samples (N, *) that it treats separately, and add a constant.

        absolute: f with the absolute values of its matrix, if it has negative ones.
        """
        absolute = absolute or f
        center = f(self.center)
        shape = torch.broadcast_shapes(center.shape, torch.as_tensor(constant).shape)
        if len(shape) != center.ndim or shape[0] != len(center):
            raise NoRuleError(f"a constant of shape {tuple(torch.as_tensor(constant).shape)}: {MIXED}")
        if shape != center.shape:  # the constant makes the activation larger
            f, absolute = _expand(f, shape), _expand(absolute, shape)
            center = f(self.center)
        error = absolute(self.error + self.bound_rounding())
        if not (isinstance(constant, int) and constant == 0):
            center = center + constant
            error = error + ROUNDING * (center.abs() + torch.as_tensor(constant).abs())
        rest = None if self.rest is None else absolute(self.rest)
        gradients = None if self.gradients is None else _apply_to_samples(f, self.gradients, 3)
        gradient, magnitude = _apply_to_samples(f, self.gradient, 2), _apply_to_samples(absolute, self.magnitude, 2)
        return Form(self.cells, center, gradient, gradients, error, rest, magnitude)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        in_place = func._schema.is_mutable
        rule = RULES.get(name.removesuffix("_") if in_place else name)
        if rule is None or (in_place and not isinstance(args[0], cls)):
            raise NoRuleError(f"{name} {UNKNOWN}")
        if in_place and args[0].shared:
            raise NoRuleError(f"{name} writes into a tensor that has views. Use {name[:-1]}")
        by_name = {a.name: a.default_value for a in func._schema.arguments}
        by_name |= dict(zip(by_name, args, strict=False)) | kwargs | {"op": name.removesuffix("_")}
        forms = [x for x in tree_leaves((args, kwargs)) if isinstance(x, cls)]
        forms[0].cells.operations += 2
        result = rule(by_name, forms, lambda x: func(*_replace(args, forms[0], x), **_replace(kwargs, forms[0], x)))
        if in_place:
            vars(args[0]).update(vars(result))
            args[0].cells.excess.clear()  # one of them may be of the value before
            return args[0]
        if func.is_view:
            for form in (forms[0], *tree_leaves(result)):
                form.shared = True
        return result


def _apply_to_samples(f: Callable[[Tensor], Tensor], x: Tensor, axes: int) -> Tensor:
    """Apply f (N, *) -> (N, *) to a tensor whose first axes are all samples."""
    return f(x.flatten(0, axes - 1)).unflatten(0, x.shape[:axes])


def _expand(f: Callable[[Tensor], Tensor], shape: torch.Size) -> Callable[[Tensor], Tensor]:
    """Return f, with its result expanded to the shape without the first axis."""

    def call(x: Tensor) -> Tensor:
        y = f(x)
        return y.expand(len(y), *shape[1:])

    return call


def _replace(arguments: Any, form: Tensor, x: Tensor) -> Any:
    if isinstance(arguments, dict):
        return {name: x if value is form else value for name, value in arguments.items()}
    return [x if value is form else value for value in arguments]
