import copy

import pytest
import torch

from wgangp import GradientPenalty
from wgangp.compiled import build_computation
from wgangp.gradients import total_norm
from wgangp.losses import Wasserstein
from wgangp.networks.dcgan import MNISTCritic, MNISTGenerator
from wgangp.precision import autocast, check_precision, product_precision

CPU = torch.device("cpu")


def gradient_errors(precision, autocast_penalty=False):
    """||g - g64|| / ||g64|| of the gradients of both networks of the MNIST pair, where g64 is in float64."""
    torch.manual_seed(0)
    generator, critic = MNISTGenerator((1, 28, 28), width=16), MNISTCritic((1, 28, 28), width=16)
    real, z, eps = torch.rand(32, 1, 28, 28), torch.randn(32, 128), torch.rand(32)
    fake = generator(z).detach()
    reference = build_computation(
        copy.deepcopy(generator).double(), copy.deepcopy(critic).double(), Wasserstein(), GradientPenalty()
    )
    penalty = GradientPenalty(autocast=autocast_penalty)
    computation = build_computation(generator, critic, Wasserstein(), penalty, precision=precision)
    errors = {}
    for name, batch in (("critic", (real, fake, eps)), ("generator", (z,))):
        terms, gradients = getattr(computation, f"{name}_gradients")(*batch)
        assert all(value.dtype == torch.float32 for value in (*terms.values(), *gradients))
        _, exact = getattr(reference, f"{name}_gradients")(*(x.double() for x in batch))
        difference = [a.double() - b for a, b in zip(gradients, exact, strict=True)]
        errors[name] = (total_norm(difference) / total_norm(exact)).item()
    return errors


def test_fp32_gradients_equal_float64_gradients_up_to_rounding():
    assert max(gradient_errors("fp32").values()) < 1e-3  # a ReLU may change sign because of rounding


def test_bf16_gradients_are_within_tolerance_and_the_penalty_is_in_fp32_unless_autocast_is_set():
    penalty_in_fp32, all_in_bf16 = gradient_errors("bf16"), gradient_errors("bf16", autocast_penalty=True)
    assert 1e-4 < penalty_in_fp32["critic"] < all_in_bf16["critic"] < 0.1
    assert 1e-4 < penalty_in_fp32["generator"] < 0.1


def test_precision_that_is_not_available_raises():
    with pytest.raises(ValueError, match=r"train\.precision = fp16: must be one of fp32, tf32, bf16"):
        check_precision("fp16", CPU)
    with pytest.raises(ValueError, match="tf32: only CUDA devices have it, and this is cpu"):
        check_precision("tf32", CPU)


def test_autocast_computes_products_in_bf16_if_asked():
    a = torch.ones(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(precision, CPU):
            assert (a @ a).dtype == dtype


def test_product_precision_sets_matrices_and_convolutions_and_restores_them():
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matrices.fp32_precision, convolutions.fp32_precision
    for precision, expected in (("fp32", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")):
        with pytest.raises(KeyError), product_precision(precision):
            assert (matrices.fp32_precision, convolutions.fp32_precision) == (expected, expected)
            raise KeyError
        assert (matrices.fp32_precision, convolutions.fp32_precision) == before
