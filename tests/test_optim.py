import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wgangp import NormalizedGradientDescent, total_norm


def parameters_with_gradients(*shapes):
    parameters = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn_like(p)
    return parameters


@given(st.floats(1e-6, 1e6), st.floats(1e-4, 10))
def test_every_step_has_length_lr_along_the_gradient(size, lr):
    parameters = parameters_with_gradients((3, 2), (4,))
    before = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.grad.mul_(size)
    NormalizedGradientDescent(parameters, lr).step()
    moves = [b - p.detach() for p, b in zip(parameters, before, strict=True)]
    torch.testing.assert_close(total_norm(moves).item(), lr, rtol=1e-9, atol=0)
    inner_product = sum((move * p.grad).sum() for p, move in zip(parameters, moves, strict=True))
    torch.testing.assert_close(inner_product, lr * total_norm(p.grad for p in parameters))


def test_norm_is_taken_over_all_groups_together():
    a, b = parameters_with_gradients((3,), (4,))
    norm, before = total_norm([a.grad, b.grad]), b.detach().clone()
    NormalizedGradientDescent([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=0.1).step()
    torch.testing.assert_close(before - b.detach(), 0.5 * b.grad / norm)


def test_zero_gradient_does_not_change_the_parameters():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.zeros(3)
    NormalizedGradientDescent([p, nn.Parameter(torch.ones(1))], lr=0.1).step()
    assert torch.equal(p.detach(), torch.ones(3))


def test_converges_to_a_circle_of_radius_lr_around_a_minimum():
    p = nn.Parameter(torch.tensor([3.0, -4.0]))
    optimizer = NormalizedGradientDescent([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(25)
    for _ in range(100):
        optimizer.step(closure)
    assert p.detach().norm() < 0.1 + 1e-5


@pytest.mark.parametrize("lr", [0.0, -0.1])
def test_lr_that_is_not_positive_raises(lr):
    with pytest.raises(ValueError, match="lr"):
        NormalizedGradientDescent([nn.Parameter(torch.ones(1))], lr)
