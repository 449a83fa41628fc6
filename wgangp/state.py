"""Measure networks without changing them: their state and all random states are restored.

A forward pass may change more than its result: running statistics, the vectors of spectral norm, counters, the state of
the random number generators. If they were not restored, the result of a run would depend on how often it is measured.
"""

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from functools import partial
from types import CellType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from wgangp.checks import compute_scores, copy_critic

__all__ = ["check_not_random", "convert_to_float64", "find_networks", "preserve_state", "use_eval_mode"]


@contextmanager
def preserve_state(*networks: Any) -> Iterator[None]:
    """Leave networks and random numbers as they were before the with block, also after an error.

    Preserved are the parameters, buffers and other attributes of every submodule (its mode, counters, tensors, lists),
    .grad and requires_grad, and the global random numbers of torch (CPU and CUDA), numpy and Python.

    Args:
        networks: modules, or functions of modules (see `find_networks`).

    Raises:
        ValueError: a module is lazy and has no weights yet.
    """
    roots = [root for network in networks for root in find_networks(network)]
    modules = list({id(m): m for root in roots for m in root.modules()}.values())
    tensors = list({id(t): t for m in modules for t in _tensors(m)}.values())
    if any(is_lazy(t) for t in tensors):
        raise ValueError("a lazy layer has no weights yet: call the network with a batch once before it is measured")
    values = [(t, t.detach().clone()) for t in tensors]
    gradients = [(t, t.requires_grad, t.grad) for t in tensors if t.is_leaf]
    attributes = [(m, m.training, dict(vars(m))) for m in modules]
    containers = [(c, copy(c)) for m in modules for c in vars(m).values() if isinstance(c, (list, dict))]
    generators = [(g, g.get_state()) for m in modules for g in vars(m).values() if isinstance(g, torch.Generator)]
    random_state = _random_state()
    for t, _, gradient in gradients:
        if gradient is not None:
            t.grad = None  # so that nothing is added to it
    try:
        yield
    finally:
        for container, entries in containers:
            container.clear()
            (container.update if isinstance(container, dict) else container.extend)(entries)
        for module, training, own in attributes:
            vars(module).clear()
            vars(module).update(own)
            if module.training != training:
                module.training = training  # a scripted module keeps it in C++
        for t, value in values:
            if not torch.equal(t.detach(), value):
                t.data.copy_(value)  # .data: graphs that were recorded before stay valid
        for t, requires_grad, gradient in gradients:
            if t.requires_grad != requires_grad:
                t.requires_grad_(requires_grad)
            t.grad = gradient
        for generator, state in generators:
            generator.set_state(state)
        cpu, cuda, of_numpy, of_python = random_state
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(cuda)
        np.random.set_state(of_numpy)
        random.setstate(of_python)


@contextmanager
def use_eval_mode(*networks: Any) -> Iterator[None]:
    """Measure networks in eval mode: `preserve_state`, with module.eval() called at the beginning."""
    with preserve_state(*networks):
        for network in networks:
            for module in find_networks(network):
                with suppress(NotImplementedError):  # a module from torch.export has one mode
                    module.eval()
        yield


def find_networks(critic: Any) -> list[nn.Module]:
    """Return the modules that a callable uses: itself, or those that a function, a method or a partial refers to."""
    networks, queue, seen = [], [critic], {}
    while queue:
        item = queue.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, nn.Module):
            networks.append(item)
        elif isinstance(item, partial):
            queue += [item.func, item.args, item.keywords]
        elif inspect.ismethod(item):
            queue += [item.__func__, item.__self__, getattr(item.__self__, "__dict__", {})]
        elif inspect.isfunction(item):
            named = [item.__globals__.get(name) for name in item.__code__.co_names]
            queue += [value for value in named if isinstance(value, nn.Module)]
            queue += [cell.cell_contents for cell in item.__closure__ or () if cell != CellType()]
            queue += [item.__defaults__, item.__kwdefaults__]
        elif isinstance(item, (list, tuple)):
            queue += item
        elif isinstance(item, dict):
            queue += item.values()
        elif item is critic:  # an object with __call__
            queue.append(getattr(item, "__dict__", {}))
    return networks


def convert_to_float64(critic: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a copy of a module in float64. What cannot be copied (a function) is converted: use `preserve_state`."""
    if isinstance(critic, nn.Module):
        with suppress(TypeError):  # a lock or an open file cannot be copied
            return copy_critic(critic).double()
    future = torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    future.set_overwrite_module_params_on_conversion(True)  # new parameters, which preserve_state replaces by the old
    try:
        for network in find_networks(critic):
            network.double()
    finally:
        future.set_overwrite_module_params_on_conversion(before)
    return critic


def check_not_random(critic: Callable[..., Tensor], *batch: Tensor) -> None:
    """Raise ValueError if a score is random: two passes differ, or a pass draws from a global random state."""
    before = _digest_random_state()
    first, second = (compute_scores(critic, *batch).detach() for _ in range(2))
    rounding = 1000 * torch.finfo(first.dtype).eps * first.abs().max().item()  # CUDA may add in another order
    same = (first == second) | ((first - second).abs() <= rounding) | (first.isnan() & second.isnan())
    if not same.all() or _digest_random_state() != before:
        raise ValueError(
            "the critic draws random numbers in eval mode, so its score is not a function of the point. Use a critic"
            " that draws them in training mode alone, as dropout does"
        )


def _tensors(module: nn.Module) -> list[Tensor]:
    """Return parameters, buffers, and the tensors in other attributes, without those of submodules."""
    leaves = [leaf for leaf in tree_leaves(list(vars(module).values())) if isinstance(leaf, Tensor)]
    return [*module.parameters(recurse=False), *module.buffers(recurse=False), *leaves]


def _random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), cuda, np.random.get_state(), random.getstate()


def _digest_random_state() -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in tree_leaves(_random_state())]
