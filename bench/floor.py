"""The arithmetic of a step: how much there is, and how long it takes by itself (the floor of the step's time)."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["build_floor", "count_gflop", "time_calls"]

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")  # the operations that are counted


class _Recorder(TorchDispatchMode):
    """A record of every matrix product and every convolution: arguments and number of calls.

    flop is the sum of the formulas of torch's FLOP counter. The counter itself does not see second derivatives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0
        self.calls: dict[str, list[Any]] = {}

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in PRODUCTS:
            signature = [(a.shape, a.stride(), a.dtype) if isinstance(a, Tensor) else a for a in args]
            call = self.calls.setdefault(f"{function} {signature}", [function, args, kwargs or {}, 0])
            call[3] += 1
            self.flop += flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def build_floor(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Return a function that computes only the matrix products and convolutions of a step, one after another.

    They have the shapes and strides that they have in the step. On a CPU, each fp32 matrix product is computed by torch
    or by oneDNN, whichever is faster. On CUDA the function is recorded and replayed (CUDA graph).
    """
    recorder = _Recorder()
    with recorder:
        step()
    calls = [(partial(f, *args, **kwargs), count) for f, args, kwargs, count in recorder.calls.values()]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        calls = [(_choose_faster(product), count) for product, count in calls]

    @torch.no_grad()
    def replay() -> None:
        for product, count in calls:
            for _ in range(count):
                product()

    if device.type != "cuda":
        return replay
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):  # the first call sets things up, which cannot be recorded
        replay()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replay()
    return graph.replay


def _choose_faster(product: partial) -> partial:
    """Return the product itself, or the same product by oneDNN if it is an fp32 matrix product and faster there."""
    from wgangp.onednn import LEAST  # here: it imports the compiler, which takes a second

    if product.func not in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
        return product
    a, b = (product.args if product.func == torch.ops.aten.mm.default else product.args[1:])[:2]
    if a.dtype != torch.float32 or min(*a.shape, b.shape[1]) < LEAST:
        return product
    onednn = partial(torch.ops.wgangp.onednn_mm.default, a, b)
    with torch.no_grad():
        seconds = {call: min(time_calls(call, 3, a.device) for _ in range(4)) for call in (product, onednn)}
    return min(seconds, key=seconds.__getitem__)


def count_gflop(step: Callable[[], None]) -> float:
    """Count the arithmetic of one call of a step, in 10^9 floating point operations."""
    with _Recorder() as recorder:
        step()
    return recorder.flop / 1e9


def time_calls(function: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Measure the mean time of a call, in seconds."""
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    _synchronize(device)
    return (time.perf_counter() - start) / repeats


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
