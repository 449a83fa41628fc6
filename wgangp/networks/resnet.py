"""The CIFAR-10 ResNet pair, with labels or without: images with values in [-1, 1].

Paper: released gan_cifar_resnet.py lines 66-179 with NORMALIZATION_D False; appendix F. classes=0 is the pair with
CONDITIONAL False. With labels the generator has conditional batch norm in its blocks, and the critic has a classifier
on the features of the score (AC-GAN).
Differs: the paper upsamples before the second convolution of a block (upsample_second), and the first block of its
critic has an activation on the image (plain_first); the defaults are those of the code. A 1x1 convolution commutes with
mean pooling and with nearest-neighbor upsampling, so the shortcuts have the lower resolution: the same function, in a
quarter of the arithmetic. Batch norm uses the whole batch; in the released code each of two devices uses its half, as
with train.accumulate=2.
"""

from torch import Tensor, nn

from wgangp.networks.blocks import PoolBlock, Residual, UpsampleBlock
from wgangp.networks.layers import (
    BatchNorm,
    ConditionalBatchNorm,
    Conv2d,
    ConvMeanPool,
    UpsampleConv,
    check_classes,
    check_labels,
    check_shape,
    linear,
)

__all__ = ["ResNetCritic", "ResNetGenerator"]

SHAPE = (3, 32, 32)


class ResNetGenerator(nn.Module):
    """(z (B, latent_dim), *y) -> images (B, 3, 32, 32) in [-1, 1]: three blocks, each doubles the resolution.

    Args:
        classes: number of classes; y is (labels (B,),). 0: there are no labels.
        upsample_second: a block upsamples before its second convolution, not before its first.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        latent_dim: int = 128,
        width: int = 128,
        classes: int = 0,
        upsample_second: bool = False,
    ) -> None:
        super().__init__()
        check_shape("the CIFAR ResNet generator", SHAPE, shape, latent_dim=latent_dim, width=width)
        check_classes(classes)
        self.latent_dim, self.width, self.classes = latent_dim, width, classes
        self.input = linear(latent_dim, width * 4 * 4)
        self.blocks = nn.Sequential(*(_up(width, classes, upsample_second) for _ in range(3)))  # to 32 x 32
        self.output = nn.Sequential(BatchNorm(width), nn.ReLU(), Conv2d(width, 3, kernel=3, gain=1.0), nn.Tanh())

    def forward(self, z: Tensor, *y: Tensor) -> Tensor:
        check_labels("the CIFAR ResNet generator", self.classes, y)
        x = self.input(z).view(-1, self.width, 4, 4)
        for block in self.blocks:
            x = block(x, *y)
        return self.output(x)


class ResNetCritic(nn.Module):
    """(images (B, 3, 32, 32), *y) -> scores (B,): four blocks, mean over all pixels, linear layer.

    With logits=True it returns (scores (B,), logits (B, classes)). Neither depends on y, which can be left out.

    Args:
        classes: number of classes; y is (labels (B,),). 0: there are no labels and no classifier.
        plain_first: the first block has an activation on the image, and 3 channels inside, which the paper does not
            give: they are those of ResidualBlock in the released code.
    """

    score_takes_labels = False  # so that its slopes and its Lipschitz constant are those of a function of x

    def __init__(self, shape: tuple[int, ...], width: int = 128, classes: int = 0, plain_first: bool = False) -> None:
        super().__init__()
        check_shape("the CIFAR ResNet critic", SHAPE, shape, width=width)
        check_classes(classes)
        self.classes = classes
        first = _down(3, width) if plain_first else _first(width)
        self.blocks = nn.Sequential(first, _down(width, width), _same(width), _same(width))  # 16, 8, 8, 8
        self.activation = nn.ReLU()
        self.output = linear(width, 1)
        self.classifier = linear(width, classes) if classes else None

    def forward(self, x: Tensor, *y: Tensor, logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        check_shape("the CIFAR ResNet critic", SHAPE, x.shape[1:])
        if y:
            check_labels("the CIFAR ResNet critic", self.classes, y)
        features = self.activation(self.blocks(x)).mean(dim=(2, 3))
        scores = self.output(features).squeeze(1)
        if not logits:
            return scores
        if self.classifier is None:
            raise ValueError(
                "the CIFAR ResNet critic has no classifier: loss=acgan needs networks.critic.classes and"
                " networks.generator.classes"
            )
        return scores, self.classifier(features)


def _up(width: int, classes: int, upsample_second: bool) -> nn.Module:
    """x -> upsample(conv1(x)) + conv(relu(norm(conv(relu(norm(x)))))), upsampled before one of these conv.

    With classes its norms are conditional.
    """
    norms = [ConditionalBatchNorm(width, classes) if classes else BatchNorm(width) for _ in range(2)]
    convs = UpsampleConv(width, width), Conv2d(width, width, kernel=3)
    first, second = reversed(convs) if upsample_second else convs
    main = norms[0], nn.ReLU(), first, norms[1], nn.ReLU(), second
    return UpsampleBlock(*main, shortcut=Conv2d(width, width, kernel=1, gain=1.0))


def _first(width: int) -> nn.Module:
    """x -> conv1(pool(x)) + pool(conv(relu(conv(x)))): there is no activation on the image itself."""
    main = Conv2d(3, width, kernel=3), nn.ReLU(), ConvMeanPool(width, width)
    return PoolBlock(*main, shortcut=Conv2d(3, width, kernel=1, gain=1.0))


def _down(in_channels: int, out_channels: int) -> nn.Module:
    """x -> conv1(pool(x)) + pool(conv(relu(conv(relu(x)))))."""
    main = nn.ReLU(), Conv2d(in_channels, in_channels, kernel=3), nn.ReLU(), ConvMeanPool(in_channels, out_channels)
    return PoolBlock(*main, shortcut=Conv2d(in_channels, out_channels, kernel=1, gain=1.0))


def _same(width: int) -> nn.Module:
    """x -> x + conv(relu(conv(relu(x)))); the activation does not change the x of the skip connection."""
    return Residual(nn.ReLU(), Conv2d(width, width, kernel=3), nn.ReLU(), Conv2d(width, width, kernel=3))
