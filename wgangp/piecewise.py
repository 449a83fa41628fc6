"""Piecewise-linear functions of torch, without their second derivative, which is zero everywhere.

torch computes it nevertheless: in the second backward pass of the penalty, a tensor of zeros goes through the whole
critic. Without it, a critic step of a deep ReLU network takes 10 instead of 12 times the arithmetic of a forward pass.
Values and gradients stay equal to those of torch: bit for bit in eager mode, to rounding in compiled steps.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["skip_second_derivatives"]

aten = torch.ops.aten


def skip_second_derivatives(critic: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, whose piecewise-linear parts have no second derivative. The critic itself is unchanged.

    Its calls of torch's functions are replaced while it runs. What torch.jit or torch.func computes is not replaced.
    """

    def call(*x: Any) -> Any:
        with _Replace():
            return critic(*x)

    if not torch.compiler.is_compiling():
        call.__wrapped__ = critic  # for messages about its arguments
    return call


class _Replace(TorchFunctionMode):
    """Replaces torch's piecewise-linear functions by those below."""

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            if function is Tensor.unflatten:  # torch 2.11 cannot compile it, and 2.14 cannot look it up in TRACED
                return _trace_unflatten(*args, **kwargs)
            replacement = TRACED.get(function)
            return (replacement or function)(*args, **kwargs)
        if function not in ACTIVATIONS and function not in OTHERS:  # nearly all
            return function(*args, **kwargs)
        has_graph = args and isinstance(args[0], Tensor) and args[0].requires_grad and torch.is_grad_enabled()
        if has_graph and not torch._C._are_functorch_transforms_active():
            if function in ACTIVATIONS:
                return ACTIVATIONS[function](*args, **kwargs)
            # |z| of complex z has a second derivative; a leaf cannot be changed in place
            if not args[0].is_complex() and not kwargs.get("inplace"):
                return _Piecewise.apply(lambda x, *others: function(x, *others, **kwargs), *args)
        return function(*args, **kwargs)


class _Activation(torch.autograd.Function):
    """An activation without second derivative. differentiate(gradient, saved) gives the same result for the argument
    and for the value.

    The one that torch saves is saved: the other one may be changed in place. torch.utils.checkpoint, which calls
    torch's own activation again, compares the number of saved tensors.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, activate: Callable[..., Tensor], differentiate: Callable[..., Tensor]) -> Tensor:
        y = activate(x)
        if y is x:
            ctx.mark_dirty(x)
        ctx.save_for_backward(y if activate is torch.relu else x)
        ctx.set_materialize_grads(False)
        ctx.differentiate = differentiate
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None, None]:
        (saved,) = ctx.saved_tensors
        return None if gradient is None else ctx.differentiate(gradient, saved.detach()), None, None


class _Piecewise(torch.autograd.Function):
    """Any function(x, *others) that is piecewise linear in x. Its own graph begins at x: zeros do not flow on."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], x: Tensor, *others: Any) -> Tensor:
        with torch.enable_grad():
            ctx.inputs = (x.detach().requires_grad_(), *others)
            ctx.y = function(*ctx.inputs)
        ctx.set_materialize_grads(False)
        return ctx.y.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        used = [isinstance(x, Tensor) and x.requires_grad and gradient is not None for x in ctx.inputs]
        inputs = [x for x, is_used in zip(ctx.inputs, used, strict=True) if is_used]
        options = {"create_graph": torch.is_grad_enabled(), "retain_graph": True}
        gradients = iter(torch.autograd.grad(ctx.y, inputs, gradient, **options) if inputs else ())
        return None, *(next(gradients) if is_used else None for is_used in used)


def _relu(input: Tensor, inplace: bool = False) -> Tensor:
    activate = torch.relu_ if inplace else torch.relu
    return _Activation.apply(input, activate, lambda g, y: aten.threshold_backward(g, y, 0))


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    activate = lambda x: F.leaky_relu(x, negative_slope, inplace)  # noqa: E731
    if negative_slope < 0:  # the value does not tell the derivative
        return activate(input)
    return _Activation.apply(input, activate, lambda g, y: aten.leaky_relu_backward(g, y, negative_slope, False))


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    activate = lambda x: F.hardtanh(x, min_val, max_val)  # noqa: E731
    if inplace:  # of a copy, since the value may be changed in place, too
        return input.copy_(_hardtanh(input.clone(), min_val, max_val))
    return _Activation.apply(input, activate, lambda g, y: aten.hardtanh_backward(g, y, min_val, max_val))


# In a compiled step, masks: a compiler may lose the second derivatives of the classes above.
def _trace_relu(input: Tensor, inplace: bool = False) -> Tensor:
    mask = input.detach() <= 0  # NaN stays NaN
    return input.masked_fill_(mask, 0) if inplace else input.masked_fill(mask, 0)


def _trace_leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    y = torch.where(input.detach() > 0, input, input * negative_slope)
    return input.copy_(y) if inplace else y


def _trace_hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    x = input.detach()
    y = torch.where((x > min_val) & (x < max_val), input, x.clamp(min_val, max_val))
    return input.copy_(y) if inplace else y


def _trace_abs(input: Tensor) -> Tensor:
    return input.abs() if input.is_complex() else input * input.detach().sgn()


def _trace_avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    size = kernel_size if isinstance(kernel_size, int) and stride in (None, kernel_size) and padding == 0 else 0
    if not size or divisor_override or any(length % size for length in input.shape[-2:]):
        return F.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    *outer, height, width = input.shape
    return input.reshape(*outer, height // size, size, width // size, size).mean((-3, -1))


def _trace_unflatten(input: Tensor, dim: int, sizes: Any) -> Tensor:
    known = math.prod([size for size in sizes if size != -1])
    sizes = [input.shape[dim] // known if size == -1 else size for size in sizes]
    return input.reshape(*input.shape[:dim], *sizes, *input.shape[dim:][1:])


def _map_names(relu: Any, leaky_relu: Any, hardtanh: Any) -> dict[Any, Callable[..., Tensor]]:
    """Return what replaces each name that torch has for three activations."""
    return {
        **dict.fromkeys((F.relu, torch.relu, Tensor.relu), relu),
        **dict.fromkeys((torch.relu_, Tensor.relu_), partial(relu, inplace=True)),
        F.leaky_relu: leaky_relu,
        F.leaky_relu_: partial(leaky_relu, inplace=True),
        F.hardtanh: hardtanh,
        F.hardtanh_: partial(hardtanh, inplace=True),
        F.relu6: partial(hardtanh, min_val=0.0, max_val=6.0),
    }


ACTIVATIONS = _map_names(_relu, _leaky_relu, _hardtanh)
ABS = (torch.abs, torch.absolute, Tensor.abs, Tensor.absolute, Tensor.__abs__)
TRACED = _map_names(_trace_relu, _trace_leaky_relu, _trace_hardtanh) | dict.fromkeys(ABS, _trace_abs)
TRACED[F.avg_pool2d] = _trace_avg_pool2d
OTHERS = {*ABS, F._threshold, torch.prelu, Tensor.prelu}
OTHERS |= {getattr(F, f"{kind}_pool{n}d") for kind in ("avg", "max", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)}
