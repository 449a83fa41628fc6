"""Measure networks without changing them: their state and all random states are restored.

A forward pass may change more than its result: running statistics, the vectors of spectral norm, counters, the state of
the random number generators. If they were not restored, the result of a run would depend on how often it is measured.
"""

import copy
import hashlib
import inspect
import itertools
import random
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import CellType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

__all__ = [
    "convert_to_float64",
    "digest_random_state",
    "digest_weights",
    "find_state",
    "preserve_state",
    "use_eval_mode",
]

CLOSED = (Tensor, nn.Module, type, FunctionType, ModuleType)  # objects whose attributes are not looked at
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)  # of random numbers


@contextmanager
def preserve_state(*holders: Any) -> Iterator[None]:
    """Leave networks and random numbers as they were before the with block, also after an error.

    Preserved are the parameters, buffers and other attributes of every submodule (its mode, counters, tensors, arrays,
    lists in dicts, simple objects), .grad and requires_grad, random number generators, and the global random numbers of
    torch (CPU and CUDA), numpy and Python.

    Args:
        holders: modules and random number generators; those of a function are the result of `find_state`.

    Raises:
        ValueError: a module is lazy and has no weights yet.
    """
    items = _list_items(holders)
    tensors = [item for item in items if isinstance(item, Tensor)]
    if any(is_lazy(t) for t in tensors):
        raise ValueError("a lazy layer has no weights yet: call the network with a batch once before it is measured")
    values = [(t, t.detach().clone()) for t in tensors]
    gradients = [(t, t.requires_grad, t.grad) for t in tensors if t.is_leaf]
    modes = [(m, m.training) for m in _list_modules(holders) if hasattr(m, "training")]  # a frozen script has no mode
    restores = [restore for item in items if (restore := _save(item)) is not None]
    random_state = _random_state()
    for t, _, gradient in gradients:
        if gradient is not None:
            t.grad = None  # so that nothing is added to it
    try:
        yield
    finally:
        for restore in restores:
            restore()
        for module, training in modes:
            if module.training != training:
                module.training = training  # a scripted module keeps it in C++
        for t, value in values:
            if t.layout is not torch.strided or not torch.equal(t.detach(), value):  # sparse tensors are not compared
                t.data.copy_(value)  # .data: graphs that were recorded before stay valid
        for t, requires_grad, gradient in gradients:
            if t.requires_grad != requires_grad:
                t.requires_grad_(requires_grad)
            t.grad = gradient
        cpu, cuda, of_numpy, of_python = random_state
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(cuda)
        np.random.set_state(of_numpy)
        random.setstate(of_python)


@contextmanager
def use_eval_mode(*holders: Any) -> Iterator[None]:
    """Measure networks in eval mode: `preserve_state`, with module.eval() called at the beginning."""
    with preserve_state(*holders):
        known: set[int] = set()
        for module in _list_modules(holders):
            if id(module) not in known:
                known |= set(map(id, module.modules()))  # what its eval() sets, or leaves in training mode
                with suppress(NotImplementedError):  # a module from torch.export has one mode
                    module.eval()
        yield


class _UnknownModuleError(BaseException):
    """Ends the call of a critic at a module that was not known. No `except Exception` in the critic stops it."""


def find_state(critic: Any, *batch: Tensor) -> list[Any]:
    """Return what holds the state of a critic: modules and random number generators.

    First come those that a module, a function, a method or a partial refers to. A function may also keep a module in an
    object or in a dict of a file. Such a module is found when it is called with the batch: the call is ended before the
    module is entered, so that nothing in it has changed, and begins again. Without a batch these are not found.

    Args:
        batch: (x, *y), the points and labels of a few samples. They are copied.
    """
    holders, stops, thread = _list_references(critic), set(), threading.get_ident()
    while batch:
        known, calls = {id(module) for module in _list_modules(holders)}, itertools.count()

        def stop(module: nn.Module, _: Any, known: Any = known, calls: Any = calls) -> None:
            if not torch.compiler.is_compiling() and threading.get_ident() == thread:
                call = next(calls)
                if id(module) not in known and call not in stops:  # at most once per call: it may make a new module
                    stops.add(call)
                    raise _UnknownModuleError(module)

        hook = register_module_forward_pre_hook(stop)
        try:
            # Hooks do not run in a compiled graph, and torch warns of them.
            with preserve_state(*holders), torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Using `torch.compile")
                critic(*(tensor.detach().clone() for tensor in batch))
        except _UnknownModuleError as error:
            holders.append(error.args[0])
            continue
        except Exception:  # the call that follows raises it, too, and explains it
            break
        finally:
            hook.remove()
        break
    return holders


def _list_references(critic: Any) -> list[Any]:
    """Return the modules and random number generators that a callable refers to."""
    holders, queue, seen = [], [critic], {}
    while queue:
        item = queue.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, (nn.Module, *GENERATORS)):
            holders.append(item)
        elif isinstance(item, partial):
            queue += [item.func, item.args, item.keywords]
        elif inspect.ismethod(item):
            queue += [item.__func__, item.__self__, getattr(item.__self__, "__dict__", {})]
        elif inspect.isfunction(item):
            values_of_globals = [item.__globals__.get(name) for name in item.__code__.co_names]
            queue += [value for value in values_of_globals if isinstance(value, (nn.Module, *GENERATORS))]
            queue += [cell.cell_contents for cell in item.__closure__ or () if cell != CellType()]
            queue += [item.__defaults__, item.__kwdefaults__]
        elif isinstance(item, (list, tuple)):
            queue += item
        elif isinstance(item, dict):
            queue += item.values()
        elif item is critic:  # an object with __call__
            queue.append(getattr(item, "__dict__", {}))
    return holders


def convert_to_float64(critic: Callable[..., Tensor], holders: Iterable[Any] = ()) -> Callable[..., Tensor]:
    """Return a copy of a module in float64. What cannot be copied is converted in place: use `preserve_state`.

    Args:
        holders: the result of `find_state`. Modules that are no part of the critic are not copied with it.
    """
    own = critic.modules() if isinstance(critic, nn.Module) else ()
    if own and set(map(id, _list_modules(holders))) <= set(map(id, own)):
        with suppress(TypeError):  # a lock or an open file cannot be copied
            return _copy(critic).double()
    future = torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    future.set_overwrite_module_params_on_conversion(True)  # new parameters, which preserve_state replaces by the old
    try:
        for module in _list_modules((critic, *holders)):
            module.double()
    finally:
        future.set_overwrite_module_params_on_conversion(before)
    return critic


def digest_random_state(*holders: Any) -> list[bytes]:
    """Return the global random states, and those of the random number generators that modules hold."""
    own = [_get_random_state(item) for item in _list_items(holders) if isinstance(item, GENERATORS)]
    # The 625 numbers of Python's generator are one leaf: every call of a critic does this.
    leaves = tree_leaves(
        (_random_state(), own), is_leaf=lambda x: isinstance(x, tuple) and x and isinstance(x[-1], int)
    )
    return [np.asarray(x).tobytes() if isinstance(x, (Tensor, np.ndarray)) else repr(x).encode() for x in leaves]


def digest_weights(*networks: nn.Module) -> str:
    """Return the sha256 of the parameters and buffers of networks."""
    arrays = (x.cpu().contiguous().numpy().tobytes() for network in networks for x in network.state_dict().values())
    return hashlib.sha256(b"".join(arrays)).hexdigest()


def _list_modules(holders: Iterable[Any]) -> list[nn.Module]:
    """Return all modules, those in plain lists and dicts of modules among them, which module.modules() leaves out."""
    seen, queue = {}, deque(holders)
    while queue:
        item = queue.popleft()
        if id(item) in seen or not isinstance(item, (nn.Module, dict, list, tuple)):
            continue
        seen[id(item)] = item
        if isinstance(item, nn.Module):
            queue += [*item.children(), *vars(item).values()]
        else:
            queue += item.values() if isinstance(item, dict) else item
    return [item for item in seen.values() if isinstance(item, nn.Module)]


def _list_items(holders: Iterable[Any]) -> list[Any]:
    """Return all objects in modules that can change: tensors, containers, arrays, random number generators.

    The attributes of an object in an attribute are listed, too, and not those of objects in it: such an object may lead
    to a whole trainer with its data.
    """
    roots = [(holder, 1) for holder in holders if not isinstance(holder, nn.Module)]
    for m in _list_modules(holders):
        roots += [(item, 0) for item in (vars(m), *m.parameters(recurse=False), *m.buffers(recurse=False))]
    items: dict[int, Any] = {}
    queue = deque(roots)
    while queue:
        item, depth = queue.popleft()
        if id(item) in items:
            continue
        items[id(item)] = item
        if isinstance(item, dict):
            queue += [(value, depth) for value in item.values()]
        elif isinstance(item, (list, tuple, set, frozenset, deque)):
            queue += [(value, depth) for value in item]
        elif depth == 0 and hasattr(item, "__dict__") and not isinstance(item, CLOSED):
            queue.append((vars(item), 1))
    return list(items.values())


def _save(item: Any) -> Callable[[], None] | None:
    """Return a function that sets a container, an array or a random number generator back to what it is now."""
    if isinstance(item, dict):
        return partial(_refill, item, dict(item))
    if isinstance(item, (list, set, deque)):
        return partial(_refill, item, list(item))
    if isinstance(item, np.ndarray) and item.flags.writeable:
        return partial(item.__setitem__, ..., item.copy())
    if isinstance(item, GENERATORS) and not isinstance(item, random.SystemRandom):
        return partial(_set_random_state, item, _get_random_state(item))
    return None


def _refill(container: Any, entries: Any) -> None:
    """Give a container its entries back, in place. One that has them is not touched: a thread may use it."""
    now, before = ([*x.keys(), *x.values()] if isinstance(x, dict) else list(x) for x in (container, entries))
    if len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
        container.clear()
        (container.extend if isinstance(container, (list, deque)) else container.update)(entries)


def _get_random_state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()


def _set_random_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _copy(module: nn.Module) -> nn.Module:
    """Return a deep copy. A forward may leave tensors with a graph in a module (spectral_norm keeps its weight in this
    way), and deepcopy refuses them, so they are copied without their graph.
    """
    tensors = [t for m in module.modules() for t in tree_leaves(list(vars(m).values())) if isinstance(t, Tensor)]
    return copy.deepcopy(module, {id(t): t.detach().clone() for t in tensors if t.grad_fn is not None})


def _random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), cuda, np.random.get_state(), random.getstate()
