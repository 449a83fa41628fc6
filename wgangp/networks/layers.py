"""The layers of the released TensorFlow code: padding, transposed convolution, initial weights, batch norm.

Paper: released code, tflib/ops. Initial weights are uniform in +-sqrt(3) std, biases are 0. With gain 2 ("he_init") or
gain 1 the standard deviation is
    linear          std = sqrt(2 / (fan_in + fan_out)), or sqrt(2 / fan_in) with init "he"
    convolution     std = sqrt(2 gain / (in k^2 + out k^2 / stride^2))
    transposed      std = sqrt(2 gain / (in k^2 / stride^2 + out k^2))
"""

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "BatchNorm",
    "ConditionalBatchNorm",
    "Conv1d",
    "Conv2d",
    "ConvMeanPool",
    "ConvTranspose2d",
    "Gate",
    "LayerNorm",
    "SubpixelConv",
    "UpsampleConv",
    "build_norm",
    "check_classes",
    "check_labels",
    "check_shape",
    "check_sizes",
    "linear",
    "set_std_",
]


class Gate(nn.Module):
    """x (B, 2C, *) -> sigmoid(x_0, x_2, ...) * tanh(x_1, x_3, ...), (B, C, *): even channels gate the odd ones.

    Paper: released gan_64x64.py, pixcnn_gated_nonlinearity (line 92), and the slices with which it is called.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x[:, ::2].sigmoid() * x[:, 1::2].tanh()


def linear(fan_in: int, fan_out: int, init: str = "glorot") -> nn.Linear:
    """Return nn.Linear with the initial weights of the released code: init "glorot" or "he"."""
    layer = nn.Linear(fan_in, fan_out)
    _uniform_(layer.weight, math.sqrt(2 / (fan_in + fan_out) if init == "glorot" else 2 / fan_in))
    nn.init.zeros_(layer.bias)
    return layer


class Conv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: output ceil(H / stride); an odd pixel of padding is below and right.

    nn.Conv2d(k=5, stride=2, padding=2) has the same output shape, but its grid is shifted by one pixel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        gain: float = 2.0,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, bias=bias)
        fans = in_channels * kernel**2 + out_channels * kernel**2 / stride**2
        _uniform_(self.weight, math.sqrt(2 * gain / fans))
        if bias:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = (self._same(size) for size in x.shape[-2:])
        if (top, left) == (bottom, right):
            return F.conv2d(x, self.weight, self.bias, self.stride, (top, left))
        return super().forward(F.pad(x, (left, right, top, bottom)))

    def _same(self, size: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


class ConvMeanPool(Conv2d):
    """A 3x3 convolution and 2x2 mean pooling, computed as one 4x4 convolution of stride 2.

    This takes 4/9 of the arithmetic. The mean of four shifted convolutions is the convolution with the mean of
    four shifted kernels. H and W of the input must be even.

    Paper: released gan_cifar_resnet.py, ConvMeanPool. Differs: it computes the two operations one after the other,
    which gives the same values to rounding.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel=3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, _four_shifts(self.weight) / 4, self.bias, stride=2, padding=1)


class UpsampleConv(Conv2d):
    """Nearest-neighbor upsampling to 2H x 2W followed by a k x k convolution, computed as one transposed convolution.

    Every pixel of the output is then a sum over (k + 1)^2 / 4 pixels in place of k^2. The kernel is odd.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, gain: float = 2.0, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, gain=gain, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        kernel = _four_shifts(self.weight).flip(2, 3).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=self.kernel_size[0] // 2)


class SubpixelConv(Conv2d):
    """A convolution to 4 out_channels, of which each group of four is a 2x2 square of the output: (.., 2H, 2W).

    Paper: released gan_64x64.py, SubpixelConv2D (line 95). Differs: torch has the four filters of an output channel
    next to each other, TensorFlow has them out_channels apart. The initial values have the same distribution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, gain: float = 2.0) -> None:
        super().__init__(in_channels, 4 * out_channels, kernel, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(super().forward(x), 2)


class Conv1d(nn.Conv1d):
    """Convolution over a sequence (B, C, L) -> (B, out_channels, L), with SAME padding; the kernel is odd."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, gain: float = 2.0) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        _uniform_(self.weight, math.sqrt(2 * gain / ((in_channels + out_channels) * kernel)))
        nn.init.zeros_(self.bias)


class ConvTranspose2d(nn.ConvTranspose2d):
    """TensorFlow's conv2d_transpose with SAME padding and stride 2: output 2H x 2W. The kernel is odd.

    It is the gradient of the SAME convolution above. 5x5 with padding=2, output_padding=1 has the same shape, but other
    values.
    """

    def __init__(self, in_channels: int, out_channels: int, gain: float = 2.0, kernel: int = 5) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=2, padding=(kernel - 2) // 2)
        fans = in_channels * kernel**2 / 2**2 + out_channels * kernel**2
        _uniform_(self.weight, math.sqrt(2 * gain / fans))
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return super().forward(x)[..., : 2 * height, : 2 * width]


class BatchNorm(nn.Module):
    """Batch norm over all axes but 1, always with the statistics of the batch, also when sampling; eps 1e-5.

    If the attribute synchronized is True, the batch is that of all ranks together (torch.distributed).

    Paper: released code, which keeps moving averages and never uses them. So a sample of a generator depends a little
    on the other samples of its batch.
    """

    synchronized = False

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return self._normalize(x, self.weight, self.bias)

    def _normalize(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        if not self.synchronized:
            return F.batch_norm(x, None, None, weight, bias, training=True, eps=1e-5)
        # bf16 is computed in float32, as in torch's own batch norm.
        dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = (-1, *[1] * (x.ndim - 2))
        centered = x - _mean_over_ranks(x.mean(axes)).view(shape)
        variance = _mean_over_ranks(centered.square().mean(axes))
        normalized = centered * ((variance + 1e-5).rsqrt() * (1 if weight is None else weight)).view(shape)
        return (normalized + (0 if bias is None else bias.view(shape))).to(dtype)


class ConditionalBatchNorm(BatchNorm):
    """Batch norm with a scale and an offset per class: (x (B, C, *), y (B,)) -> (B, C, *).

    The statistics are those of all classes together. Scales begin at 1, offsets at 0.

    Paper: released tflib/ops/cond_batchnorm.py.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features)
        self.weight = nn.Parameter(torch.ones(classes, features))
        self.bias = nn.Parameter(torch.zeros(classes, features))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shape = (len(x), -1, *[1] * (x.ndim - 2))
        scale, offset = (F.embedding(y, table).view(shape) for table in (self.weight, self.bias))
        return self._normalize(x) * scale + offset


class LayerNorm(nn.GroupNorm):
    """Layer norm over all axes of a sample (C, *), with a scale and an offset per channel; eps 1e-5.

    Paper: released tflib/ops/layernorm.py. nn.LayerNorm((C, H, W)) has a scale per element.
    """

    def __init__(self, features: int) -> None:
        super().__init__(1, features)


def build_norm(kind: str, features: int) -> list[nn.Module]:
    """Return the modules of a norm: "batch" or "layer", or an empty list for "none"."""
    kinds = {"batch": BatchNorm, "layer": LayerNorm, "none": None}
    if kind not in kinds:
        raise ValueError(f"norm = {kind}: must be one of {', '.join(kinds)}")
    return [kinds[kind](features)] if kinds[kind] else []


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks. Its gradient is the sum of the gradients of the ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverRanks.apply(gradient)


def _mean_over_ranks(x: Tensor) -> Tensor:
    return _SumOverRanks.apply(x) / dist.get_world_size()


def _four_shifts(kernel: Tensor) -> Tensor:
    """Sum a kernel (.., k, k) at its four possible positions in a larger kernel (.., k + 1, k + 1)."""
    wide = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))
    return F.pad(wide, (0, 0, 0, 1)) + F.pad(wide, (0, 0, 1, 0))


def check_shape(network: str, expected: tuple[int, ...], actual: tuple[int, ...], **sizes: int) -> None:
    """Raise ValueError if the points do not have the shape that the network expects, or a size is not positive."""
    check_sizes(**sizes)
    if tuple(expected) != tuple(actual):
        raise ValueError(
            f"{network} takes points of shape {tuple(expected)}, got {tuple(actual)}:"
            " choose data= and networks= that belong together (data=image_folder has data.size and data.channels)"
        )


def check_sizes(**sizes: int) -> None:
    """Raise ValueError if a width, depth or dimension is not positive."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} = {size}: must be >= 1")


def check_classes(classes: int) -> None:
    """Raise ValueError for a number of classes that is negative, or 1: one class has nothing to tell apart."""
    if classes < 0 or classes == 1:
        raise ValueError(f"classes = {classes}: must be 0 for no labels, or >= 2")


def check_labels(network: str, classes: int, y: tuple[Tensor, ...]) -> None:
    """Raise ValueError if there are labels and no classes, or the reverse."""
    if len(y) != (classes > 0):
        raise ValueError(
            f"{network} has {classes} classes, got {len(y)} tensors of labels: give labels (B,) if and only if it has"
            " classes"
        )


def set_std_(network: nn.Module, std: float) -> None:
    """Draw the weights of all linear layers and convolutions anew: uniform, with this standard deviation.

    Paper: released code, set_weights_stdev.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            _uniform_(module.weight, std)


def _uniform_(weight: Tensor, std: float) -> None:
    nn.init.uniform_(weight, -math.sqrt(3) * std, math.sqrt(3) * std)
