"""Compile the gradients of networks into one graph.

A compiled function has no side effects. So the buffers of a network (running statistics of batch norm, vectors of
spectral norm, counters) go in as arguments, and their new values come out and are stored in the network.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.utils._pytree import tree_map

__all__ = ["Gradients", "compile_gradients", "compile_samples"]

Gradients = Callable[..., tuple[dict[str, Tensor], list[Tensor]]]  # a batch -> terms (), one gradient per parameter
Objective = Callable[..., dict[str, Tensor]]  # networks, batch -> terms
Buffers = list[dict[str, Tensor]]  # per network, by name


def compile_gradients(
    networks: tuple[nn.Module, ...], compute_terms: Objective, minimized: str, regularize_gradient_norm: float
) -> Gradients:
    """Compile batch -> terms, gradients of terms[minimized] with respect to the parameters of the first network."""
    holders = [_WithBuffers(network) for network in networks]

    def objective(parameters: dict[str, Tensor], buffers: Buffers, *batch: Tensor) -> tuple[Tensor, Any]:
        buffers = [dict(own) for own in buffers]
        states = [parameters, *[{}] * (len(holders) - 1)]
        terms = compute_terms(*map(_bind, holders, states, buffers), *batch)
        return terms[minimized], (terms, tree_map(torch.clone, buffers))

    def add_gradient_norm(parameters: dict[str, Tensor], *arguments: Any) -> tuple[Tensor, Any]:
        gradients, (value, results) = grad_and_value(objective, has_aux=True)(parameters, *arguments)
        return value + regularize_gradient_norm * sum(g.square().sum() for g in gradients.values()), results

    whole = add_gradient_norm if regularize_gradient_norm else objective

    def differentiate(buffers: Buffers, parameters: dict[str, Tensor], *batch: Tensor) -> tuple[Any, Buffers]:
        gradients, (_, (terms, buffers)) = grad_and_value(whole, has_aux=True)(parameters, buffers, *batch)
        return (terms, list(gradients.values())), buffers

    compiled = _compile(differentiate, networks)

    def gradients(*batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        return compiled({name: p.detach() for name, p in networks[0].named_parameters() if p.requires_grad}, *batch)

    return gradients


def compile_samples(generator: nn.Module, sample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile z, y -> samples."""
    holder = _WithBuffers(generator)

    def call(buffers: Buffers, *batch: Tensor) -> tuple[Tensor, Buffers]:
        own = dict(buffers[0])
        return sample(_bind(holder, {}, own), *batch), [own]

    return _compile(call, (generator,))


def _compile(function: Callable[..., Any], networks: tuple[nn.Module, ...]) -> Callable[..., Any]:
    """Compile function(buffers of the networks, *arguments) -> (result, new buffers) into one graph.

    The graph keeps nothing for a backward pass. On CUDA it is recorded and replayed.

    Returns:
        a function of the arguments that returns the result and stores the new buffers in the networks.
    """
    # torch counts recompilations per code object and gives up at eight. A sweep in one process needs a code object
    # per step.
    function.__code__ = function.__code__.replace()
    compiled: list[Callable[..., Any]] = []
    device = next(networks[0].parameters()).device

    @torch.no_grad()  # otherwise a graph is kept for a backward pass that never comes, with the other network's weights
    def call(*arguments: Any) -> Any:
        if not compiled:  # at the first call, so that `verify` sees an error of the compiler
            compiled.append(torch.compile(function, fullgraph=True, dynamic=False, options=_options(device)))
        buffers = [dict(network.named_buffers()) for network in networks]
        if device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # the next replay overwrites its outputs, so they are cloned
        result, changed = compiled[0](buffers, *arguments)
        for old, new in zip(buffers, changed, strict=True):
            for name, buffer in old.items():
                buffer.copy_(new[name])
        return tree_map(torch.clone, result) if device.type == "cuda" else result

    return call


def _options(device: torch.device) -> dict[str, Any]:
    options: dict[str, Any] = {"fallback_random": True}  # dropout draws what it draws in eager mode
    if device.type == "cuda":
        return options | {"triton.cudagraphs": True}  # CUDA graphs: one launch per step, static buffers
    # Memory layouts stay as train.channels_last sets them. By default the compiler converts every convolution to
    # channels last, and keeps what it saves for the backward pass in both layouts.
    options["layout_optimization"] = False
    if torch.backends.mkldnn.is_available():
        from wgangp.onednn import OneDNN  # here: it imports the compiler, which takes a second

        options["post_grad_custom_post_pass"] = OneDNN()
    return options


class _WithBuffers(nn.Module):
    """A network that also returns its buffers as they are after the call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *x: Any, **options: Any) -> tuple[Any, dict[str, Tensor]]:
        return self.network(*x, **options), dict(self.network.named_buffers())


def _bind(network: _WithBuffers, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Callable[..., Any]:
    """Return a function that calls the network with these tensors. A call replaces the buffers by their new values."""

    def call(*x: Any, **options: Any) -> Any:
        # Copies, which are made at the level of torch.func at which the call is: only there they may change in place.
        tensors = parameters | {name: buffer.clone() for name, buffer in buffers.items()}
        tensors = {f"network.{name}": tensor for name, tensor in tensors.items()}
        outputs, changed = functional_call(network, tensors, x, options)
        buffers.update(changed)
        return outputs

    return call
