import copy

import pytest
import torch

from wgangp import GradientPenalty
from wgangp.compiled import gradients_of
from wgangp.gradients import total_norm
from wgangp.losses import Wasserstein
from wgangp.networks.dcgan import MNISTCritic, MNISTGenerator
from wgangp.precision import autocast, check_precision, products

CPU = torch.device("cpu")


def errors(precision, penalty_too):
    """||g - g64|| / ||g64|| of each player's gradient on the MNIST pair, against float64; always the same."""
    torch.manual_seed(0)
    generator, critic = MNISTGenerator((1, 28, 28), width=16), MNISTCritic((1, 28, 28), width=16)
    real, z, eps = torch.rand(32, 1, 28, 28), torch.randn(32, 128), torch.rand(32)
    fake = generator(z).detach()
    players = copy.deepcopy(generator).double(), copy.deepcopy(critic).double()
    right = gradients_of(*players, Wasserstein(), GradientPenalty())
    ours = gradients_of(generator, critic, Wasserstein(), GradientPenalty(autocast=penalty_too), precision=precision)
    batches = {"critic": (real, fake, eps), "generator": (z,)}
    found = {}
    for name, batch in batches.items():
        terms, gradients = ours[name](*batch)
        assert all(value.dtype == torch.float32 for value in (*terms.values(), *gradients))
        _, exact = right[name](*(x.double() for x in batch))
        off = [a.double() - b for a, b in zip(gradients, exact, strict=True)]
        found[name] = (total_norm(off) / total_norm(exact)).item()
    return found


def test_fp32_gradients_are_those_of_float64_to_rounding():
    assert max(errors("fp32", False).values()) < 1e-3  # a ReLU that switches


def test_bf16_gradients_are_within_their_tolerance_and_the_penalty_is_in_fp32_unless_asked():
    penalty_apart, all_of_it = errors("bf16", False), errors("bf16", True)
    assert 1e-4 < penalty_apart["critic"] < all_of_it["critic"] < 0.1
    assert 1e-4 < penalty_apart["generator"] < 0.1


def test_a_precision_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"train\.precision = fp16: must be one of fp32, tf32, bf16"):
        check_precision("fp16", CPU)
    with pytest.raises(ValueError, match="tf32: CUDA devices have it, and this is cpu"):
        check_precision("tf32", CPU)


def test_autocast_is_bf16_where_asked():
    a = torch.ones(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(precision, CPU):
            assert (a @ a).dtype == dtype


def test_fp32_means_fp32_in_convolutions_too_and_what_was_set_comes_back():
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matrices.fp32_precision, convolutions.fp32_precision
    for precision, expected in (("fp32", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")):
        with pytest.raises(KeyError), products(precision):
            assert (matrices.fp32_precision, convolutions.fp32_precision) == (expected, expected)
            raise KeyError
        assert (matrices.fp32_precision, convolutions.fp32_precision) == before
