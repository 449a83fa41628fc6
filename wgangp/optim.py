"""One step of any optimizer, optimizers that torch does not have, and the moving average of a generator's weights."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from wgangp.checks import check_positive
from wgangp.gradients import clip_by_norm_, total_norm

__all__ = ["NormalizedGradientDescent", "RMSProp", "build_average", "descend"]


def descend(
    network: nn.Module,
    gradients: list[Tensor],
    optimizer: torch.optim.Optimizer,
    clip_gradient_norm: float | None = None,
) -> None:
    """The second half of a step: theta <- optimizer(theta, gradient), for the parameters of one network.

    Args:
        gradients: one per trainable parameter of the network.
        optimizer: of all trainable parameters of the network. Other parameters that it has are not updated.
        clip_gradient_norm: threshold of the norm of all gradients together.

    Raises:
        ValueError: the optimizer does not have a trainable parameter of the network; it has one whose .grad is not 0
            or None, and would be lost; its step needs a closure, as that of LBFGS. Nothing is changed.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    _check_optimizer(optimizer, network, parameters)
    if clip_gradient_norm is not None:
        check_positive("clip_gradient_norm", clip_gradient_norm)
    if len(gradients) != len(parameters):
        raise ValueError(f"{len(gradients)} gradients for {len(parameters)} trainable parameters: give one for each")
    for p, gradient in zip(parameters, gradients, strict=True):
        # A fused optimizer reads the gradient with the strides of the parameter. The gradient of a convolution may
        # have other strides.
        has_its_strides = gradient.is_sparse or gradient.stride() == p.stride()
        p.grad = gradient if has_its_strides else torch.empty_like(p).copy_(gradient)
    if clip_gradient_norm is not None:
        clip_by_norm_(parameters, clip_gradient_norm)
    try:
        optimizer.step()
    except TypeError as error:
        if "argument: 'closure'" not in str(error):
            raise
        name = type(optimizer).__name__
        raise ValueError(f"{name} computes gradients several times per step: use an optimizer that does not") from error
    finally:
        optimizer.zero_grad()  # frees the memory before the next gradients are computed


def build_average(generator: nn.Module, decay: float | None) -> AveragedModel | None:
    """Build the exponential moving average of a generator's weights; None if decay is None.

        average <- decay * average + (1 - decay) * weights

    at every call of its update_parameters(generator). The first call copies the weights. Buffers, such as running
    statistics, are copied at every call. `.module` is a network like the generator, with the averaged weights.

    Args:
        decay: > 0 and < 1. The average is over about the last 1 / (1 - decay) calls.

    Raises:
        ValueError: decay is not in this range.
    """
    if decay is None:
        return None
    if not 0 < decay < 1:
        raise ValueError(f"ema.decay = {decay}: must be > 0 and < 1, or null for no average")
    return AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(decay)).requires_grad_(False)


def _check_optimizer(optimizer: torch.optim.Optimizer, network: nn.Module, parameters: list[Tensor]) -> None:
    known = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    if any(id(p) not in known for p in parameters):
        missing = [name for name, p in network.named_parameters() if p.requires_grad and id(p) not in known]
        raise ValueError(
            f"the optimizer does not have {len(missing)} trainable parameter(s) of the network:"
            f" {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}. Make it of network.parameters(), after the"
            " network has its final parameters"
        )
    gradients = [p.grad for p in known.values() if p.grad is not None]
    if not gradients:
        return
    if any(gradient.is_sparse or gradient.any() for gradient in gradients):  # waits for the device
        raise ValueError(
            "a parameter of the optimizer has a .grad that is not 0, which the step would lose: call"
            " optimizer.zero_grad() before it, or add it to the gradients that you give to `descend`"
        )
    optimizer.zero_grad()  # zeros are not None: momentum would move the parameters of another network


def _compute_loss(closure: Callable[[], Tensor] | None) -> Tensor | None:
    """Call the closure of a step, if there is one, with gradients."""
    with torch.enable_grad():
        return None if closure is None else closure()


class NormalizedGradientDescent(torch.optim.Optimizer):
    """theta <- theta - lr * g / ||g||_2: every step has the length lr. A zero gradient moves nothing.

    g is the gradient of all parameters of all parameter groups together. Steps do not get shorter near a minimum: the
    optimizer ends up circling it within O(lr), unless lr decays.

    Args:
        params: as for any torch optimizer.
        lr: length of a step, in the units of theta, > 0.

    Paper: Hazan, Levy and Shalev-Shwartz 2015 (quasi-convex functions; the stochastic form needs large batches).
    """

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        check_positive("lr", lr)
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Take one step. A closure, if given, first computes the loss and its gradients."""
        loss = _compute_loss(closure)
        norm = total_norm(p.grad for group in self.param_groups for p in group["params"])
        norm = torch.where(norm > 0, norm, torch.ones_like(norm))
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad / norm.to(p.device) * group["lr"])
        return loss


class RMSProp(torch.optim.Optimizer):
    """TensorFlow 1's RMSProp: the mean of squares starts at 1, and eps is inside of the root.

        v <- alpha v + (1 - alpha) g^2,  v = 1 at the start
        theta <- theta - lr g / sqrt(v + eps)

    torch.optim.RMSprop starts at 0 and adds eps to the root. Its first steps are therefore longer: sqrt(1 / (1 -
    alpha)) lr for every weight, however small its gradient.

    Args:
        params: as for any torch optimizer.
        lr: learning rate, > 0.
        alpha: decay of the mean of squares, >= 0 and < 1.
        eps: added to the mean of squares, > 0.

    Paper: released code, wgan and lsgan modes: tf.train.RMSPropOptimizer with the defaults of TensorFlow 1.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, alpha: float = 0.9, eps: float = 1e-10) -> None:
        check_positive("lr", lr)
        check_positive("eps", eps)
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha = {alpha}: must be >= 0 and < 1")
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Take one step. A closure, if given, first computes the loss and its gradients."""
        loss = _compute_loss(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["square_mean"] = torch.ones_like(p)
                square_mean = state["square_mean"]
                square_mean.mul_(group["alpha"]).addcmul_(p.grad, p.grad, value=1 - group["alpha"])
                p.addcdiv_(p.grad, (square_mean + group["eps"]).sqrt_(), value=-group["lr"])
        return loss
