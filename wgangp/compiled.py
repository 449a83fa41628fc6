"""What an iteration computes, eager or compiled, in a precision: fakes, and both players' gradients for step.py.

Compiling the critic alone does not work with a penalty (its second derivatives are refused, or silently lost), so the
whole of "objective, and its gradient by the parameters" is compiled. A compiled gradient is used only after it was
compared with the eager one, on the first batch; else the run goes on in eager mode, and says so.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from wgangp.gradients import total_norm
from wgangp.losses import Wasserstein
from wgangp.penalty import GradientPenalty
from wgangp.precision import autocast, check_precision
from wgangp.step import Gradients, critic_objective, differentiate, generator_objective

__all__ = ["checked", "gradients_of"]

Player = Callable[..., Tensor]
Terms = Callable[..., dict[str, Tensor]]  # player, batch -> what it minimises, and the parts

# A ReLU that switches at rounding costs up to 1e-3 in fp32; a gradient in bf16 is up to 1e-1 off, whoever computes it,
# and two of them twice that.
TOLERANCE = {"fp64": 1e-8, "fp32": 1e-2, "tf32": 2e-2, "bf16": 2e-1}
CHECKED = {"cpu": 1, "cuda": 3}  # batches: a CUDA graph warms up at the first, records at the second, replays after it


def gradients_of(
    generator: nn.Module,
    critic: nn.Module,
    loss: Wasserstein,
    penalty: GradientPenalty,
    regularize_gradient_norm: float = 0.0,
    *,
    precision: str = "fp32",
    compile: bool = False,
) -> dict[str, Gradients]:
    """What `critic_step` and `generator_step` take as gradients=, under "critic" and "generator"; and under "fake" what
    maps noise (B, latent_dim) to no terms and [fakes (B, *)], without a graph.

    Args:
        precision: fp32, tf32 or bf16, in which forward passes (and so their derivatives) are computed; the penalty is
            in fp32 unless penalty.autocast. tf32 is set by who calls, for the process (precision.products).
        compile: one graph a step, compiled at the first batch, there compared with the eager gradients, and not used
            where they differ or the compiler fails. A batch of another size is compiled again, unchecked. On CUDA the
            graphs are recorded and replayed (CUDA graphs).

    Raises:
        ValueError: a precision that is unknown, or that the critic's device does not have.
    """
    device = next(critic.parameters()).device
    check_precision(precision, device)

    def critic_terms(critic: Player, *batch: Tensor) -> dict[str, Tensor]:
        with autocast(precision, device):
            return critic_objective(critic, *batch, penalty=penalty, loss=loss)

    def generator_terms(generator: Player, z: Tensor) -> dict[str, Tensor]:
        with autocast(precision, device):
            return generator_objective(generator, critic, z, loss=loss)

    def fakes(z: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        with autocast(precision, device):
            return {}, [generator(z).to(z.dtype)]

    players = {
        "critic": (critic, critic_terms, "critic_loss", regularize_gradient_norm),
        "generator": (generator, generator_terms, "generator_loss", regularize_gradient_norm),
    }
    eager = {name: _eager(*parts) for name, parts in players.items()} | {"fake": torch.no_grad()(fakes)}
    if not compile:
        return eager
    fast = {name: _compiled(*parts) for name, parts in players.items()} | {"fake": _compile(fakes, device)}
    return {name: checked(name, fast[name], eager[name], precision, critic) for name in fast}


def checked(
    name: str, fast: Gradients, eager: Gradients, precision: str = "fp32", critic: nn.Module | None = None
) -> Gradients:
    """fast, if at the first batches its gradients are those of eager to within TOLERANCE; else eager, with a warning.

    The error is ||fast - eager|| / ||eager||, of all parameters together. What it is there for, a second-order part
    that is lost, makes it large where the penalty has a part in the gradient. Initial slopes may be so small that it
    has none (one-sided, say), so the critic's gradients are compared with all its parameters doubled, too.
    """
    chosen: list[Gradients] = []
    seen, what = 0, "samples" if name == "fake" else "gradients"

    def error(batch: tuple[Tensor, ...], right: list[Tensor]) -> tuple[str, Any]:
        result = fast(*batch)
        off = total_norm([a - b for a, b in zip(result[1], right, strict=True)]).item()
        relative = off / max(total_norm(right).item(), torch.finfo(right[0].dtype).tiny)
        allowed = TOLERANCE["fp64" if right[0].dtype == torch.float64 else precision]
        return f"{relative:.2g} off", result if relative <= allowed else None

    def first(*batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        nonlocal seen
        if chosen:
            return chosen[0](*batch)
        seen += 1
        began = time.monotonic()
        terms, right = eager(*batch)
        try:
            said, result = "", ()
            if name == "critic" and critic is not None and seen == 1:
                with _doubled(critic):
                    said, result = error(batch, eager(*batch)[1])
            if result is not None:
                said, result = error(batch, right)
            wrong = "" if result is not None else f"its {what} are {said} the eager ones"
        except Exception as failure:  # whatever the compiler raises
            wrong = f"{type(failure).__name__}: {' '.join(str(failure).splitlines()[:2])}"
        if wrong:
            warnings.warn(f"the compiled {name} step is not used: {wrong}. The run goes on in eager mode", stacklevel=2)
        elif seen == 1:
            print(f"compiled the {name} step in {time.monotonic() - began:.0f} s; its {what} are {said} the eager ones")
        if wrong or seen == CHECKED.get(right[0].device.type, 1):
            chosen.append(eager if wrong else fast)
        return (terms, right) if wrong else result  # never eager where fast will be used: a resumed run sees the same

    return first


@contextmanager
def _doubled(player: nn.Module) -> Iterator[None]:
    before = [p.data for p in player.parameters()]
    try:
        for p in player.parameters():
            p.data = 2 * p.data  # another tensor: what a graph remembers of the old one stays
        yield
    finally:
        for p, value in zip(player.parameters(), before, strict=True):
            p.data = value


def _eager(player: nn.Module, terms_of: Terms, minimised: str, regularize_gradient_norm: float) -> Gradients:
    def gradients(*batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        terms = terms_of(player, *batch)
        found = differentiate(terms[minimised], player, regularize_gradient_norm)
        return {name: term.detach() for name, term in terms.items()}, found

    return gradients


def _compiled(player: nn.Module, terms_of: Terms, minimised: str, regularize_gradient_norm: float) -> Gradients:
    def objective(parameters: dict[str, Tensor], *batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        terms = terms_of(partial(functional_call, player, parameters), *batch)
        return terms[minimised], terms

    def regularized(parameters: dict[str, Tensor], *batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        gradients, (value, terms) = grad_and_value(objective, has_aux=True)(parameters, *batch)
        return value + regularize_gradient_norm * sum(g.square().sum() for g in gradients.values()), terms

    whole = regularized if regularize_gradient_norm else objective

    def differentiated(parameters: dict[str, Tensor], *batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        found, (_, terms) = grad_and_value(whole, has_aux=True)(parameters, *batch)
        return terms, list(found.values())

    step = _compile(differentiated, next(player.parameters()).device)

    def gradients(*batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        return step({name: p.detach() for name, p in player.named_parameters() if p.requires_grad}, *batch)

    return gradients


def _compile(function: Gradients, device: torch.device) -> Gradients:
    """One graph of what function computes, with nothing left to differentiate; on CUDA recorded and replayed."""
    # torch counts recompilations a code object, and gives up at eight: a sweep in one process needs one a step.
    function.__code__ = function.__code__.replace()
    compiled: list[Gradients] = []

    @torch.no_grad()  # else a graph is kept for a backward that never comes, with the weights of the other player
    def call(*batch: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
        if not compiled:  # here, and not before: what fails is said, and falls back
            compiled.append(torch.compile(function, fullgraph=True, dynamic=False, **_how(device)))
        if device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # what the last replay gave may be overwritten, hence the clones
        terms, found = compiled[0](*batch)
        if device.type == "cuda":
            return {name: term.clone() for name, term in terms.items()}, [x.clone() for x in found]
        return terms, found

    return call


def _how(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        return {"mode": "reduce-overhead"}  # CUDA graphs: one launch a step, static buffers
    # Memory layouts stay as train.channels_last has them: by itself the compiler turns each convolution channels last,
    # and keeps what it saves in both layouts.
    options: dict[str, Any] = {"layout_optimization": False}
    if torch.backends.mkldnn.is_available():
        from wgangp.onednn import OneDNN  # here: it imports the compiler, which takes a second

        options["post_grad_custom_post_pass"] = OneDNN()
    return {"options": options}
