"""The arithmetic of a step: counted call by call, and run by itself, which is the floor that a step is held against."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["gflop_of", "products_of", "seconds_of"]

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")  # the arithmetic that counts


class _Recorder(TorchDispatchMode):
    """Remembers every product of matrices and every convolution, its arguments, and how often it came.

    flop is the sum of the formulas of torch's FLOP counter, whose own mode cannot look into a second derivative.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0
        self.calls: dict[str, list[Any]] = {}

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in PRODUCTS:
            like = [(a.shape, a.stride(), a.dtype) if isinstance(a, Tensor) else a for a in args]
            call = self.calls.setdefault(f"{function} {like}", [function, args, kwargs or {}, 0])
            call[3] += 1
            self.flop += flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def products_of(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The floor: only the products and convolutions of a step, at its shapes and strides, one after another.

    In fp32 on a CPU each product of matrices by the faster of torch and oneDNN. On CUDA recorded and replayed.
    """
    recorder = _Recorder()
    with recorder:
        run()
    calls = [(partial(f, *args, **kwargs), count) for f, args, kwargs, count in recorder.calls.values()]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        calls = [(_faster(product), count) for product, count in calls]

    @torch.no_grad()
    def replay() -> None:
        for product, count in calls:
            for _ in range(count):
                product()

    if device.type != "cuda":
        return replay
    aside = torch.cuda.Stream(device)
    with torch.cuda.stream(aside):  # what is set up at a first call cannot be recorded
        replay()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replay()
    return graph.replay


def _faster(product: partial) -> partial:
    """The product itself, or the same by oneDNN where that is one of matrices in fp32 and faster."""
    from wgangp.onednn import LEAST

    a, b = (product.args if product.func == torch.ops.aten.mm.default else product.args[1:])[:2]
    named = product.func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    if not named or a.dtype != torch.float32 or min(*a.shape, b.shape[1]) < LEAST:
        return product
    other = partial(torch.ops.wgangp.onednn_mm.default, a, b)
    with torch.no_grad():
        best = {run: min(seconds_of(run, 3, a.device) for _ in range(4)) for run in (product, other)}
    return min(best, key=best.__getitem__)


def gflop_of(run: Callable[[], None]) -> float:
    with _Recorder() as recorder:
        run()
    return recorder.flop / 1e9


def seconds_of(run: Callable[[], None], repeats: int, device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    _wait(device)
    return (time.perf_counter() - began) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
