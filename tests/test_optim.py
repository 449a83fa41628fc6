import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wgangp import NormalizedGradientDescent, total_norm
from wgangp.optim import RMSProp, build_average


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


class TestBuildAverage:
    def build(self):
        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double()

    @pytest.mark.parametrize("decay", [0.9, 0.3])
    def test_average_is_the_recursion_by_hand(self, decay):
        """It begins with the weights of the first call: the initial weights are not in it."""
        network = self.build()
        average, expected = build_average(network, decay), None
        for _ in range(5):
            for p in network.parameters():
                p.data.normal_()
            network(torch.randn(4, 2, dtype=torch.float64))  # running statistics
            average.update_parameters(network)
            weights = [p.detach().clone() for p in network.parameters()]
            expected = weights if expected is None else expected
            expected = [decay * e + (1 - decay) * w for e, w in zip(expected, weights, strict=True)]
        assert [p.dtype for p in average.module.parameters()] == [torch.float64] * 4
        torch.testing.assert_close(list(average.module.parameters()), expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(list(average.module.buffers()), list(network.buffers()), rtol=0, atol=0)
        assert all(torch.equal(p, w) for p, w in zip(network.parameters(), weights, strict=True))

    def test_average_is_a_copy_that_is_not_trained(self):
        network = self.build()
        average = build_average(network, 0.5)
        assert not {id(p) for p in average.parameters()} & {id(p) for p in network.parameters()}
        assert not any(p.requires_grad for p in average.parameters()) and network[0].weight.requires_grad

    def test_average_continues_from_its_state(self):
        network = self.build()
        whole, parts = (build_average(network, 0.9) for _ in range(2))
        for step in range(4):
            network[0].weight.data.normal_()
            whole.update_parameters(network)
            parts.update_parameters(network)
            if step == 1:
                state, parts = copy.deepcopy(parts.state_dict()), build_average(self.build(), 0.9)
                parts.load_state_dict(state)
        torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=0, atol=0)

    def test_null_is_no_average(self):
        assert build_average(self.build(), None) is None

    @pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 1.5, float("nan")])
    def test_decay_out_of_range_is_refused_with_its_key(self, decay):
        with pytest.raises(ValueError, match=rf"^ema\.decay = {decay}: must be > 0 and < 1, or null for no average$"):
            build_average(self.build(), decay)


def test_rmsprop_is_that_of_tensorflow():
    """Three steps with a scalar, by hand: the mean of squares begins at 1, eps is inside of the root."""
    p = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    optimizer = RMSProp([p], lr=0.1, alpha=0.9, eps=1e-2)
    value, square_mean = 0.5, 1.0
    for gradient in (2.0, -0.3, 1e-3):
        p.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        square_mean = 0.9 * square_mean + 0.1 * gradient**2
        value -= 0.1 * gradient / (square_mean + 1e-2) ** 0.5
        assert p.item() == pytest.approx(value, rel=1e-14)


def test_first_step_of_rmsprop_depends_on_the_size_of_the_gradient():
    """In torch.optim.RMSprop a small gradient moves a weight as far as a large one."""
    moves = {}
    for name, optimizer in (("ours", RMSProp), ("torch", torch.optim.RMSprop)):
        p = nn.Parameter(torch.zeros(2))
        p.grad = torch.tensor([1e-3, 1.0])
        optimizer([p], lr=0.1, alpha=0.9, eps=1e-10).step()
        moves[name] = (p.detach()[0] / p.detach()[1]).item()
    assert moves["torch"] == pytest.approx(1, abs=1e-4) and moves["ours"] == pytest.approx(1e-3, rel=0.06)


def test_rmsprop_resumes_from_its_state():
    one, two = (parameters_with_gradients((3, 2), (4,)) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        b.data, b.grad = a.detach().clone(), a.grad.clone()
    first, second = RMSProp(one, lr=0.01), RMSProp(two, lr=0.01)
    first.step()
    second.step()
    resumed = RMSProp(two, lr=0.01)
    resumed.load_state_dict(copy.deepcopy(second.state_dict()))
    first.step()
    resumed.step()
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_rmsprop_leaves_parameters_without_a_gradient():
    p = nn.Parameter(torch.ones(2))
    RMSProp([p], lr=0.1).step()
    assert torch.equal(p.detach(), torch.ones(2))


@pytest.mark.parametrize("name, value", [("lr", 0.0), ("alpha", 1.0), ("alpha", -0.1), ("eps", 0.0)])
def test_rmsprop_refuses_settings_outside_of_their_range(name, value):
    with pytest.raises(ValueError, match=f"{name} = {value}"):
        RMSProp([nn.Parameter(torch.ones(1))], **{"lr": 0.1, name: value})
