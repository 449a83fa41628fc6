import math

import pytest
import torch
from helpers import Linear, smooth_critic
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wgangp import clip_by_norm_, gradient_norm, gradient_norm_penalty, total_norm

SHAPES = [(), (3,), (2, 3), (2, 3, 4), (2, 3, 2, 2)]  # of one point, so batches have rank 1 to 5


def points(*shape):
    return torch.randn(5, *shape, dtype=torch.float64)


def parameters_with_gradients(*shapes):
    parameters = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn_like(p)
    return parameters


class TestGradientNorm:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_of_half_the_squared_norm_is_the_norm(self, shape):
        x = points(*shape)
        slope = gradient_norm(lambda x: x.unsqueeze(-1).flatten(1).square().sum(1) / 2, x)
        assert slope.shape == (5,)
        torch.testing.assert_close(slope, x.unsqueeze(-1).flatten(1).norm(dim=1))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_of_a_linear_function_is_the_norm_of_its_weight(self, shape):
        critic = Linear(shape)
        torch.testing.assert_close(gradient_norm(critic, points(*shape)), critic.w.detach().norm().expand(5))

    def test_accepts_scores_in_a_column(self):
        critic = Linear((3,))
        x = points(3)
        torch.testing.assert_close(gradient_norm(lambda x: critic(x).unsqueeze(1), x), gradient_norm(critic, x))

    def test_equals_the_rows_of_the_jacobian(self):
        critic, x = smooth_critic(6), points(2, 3)
        jacobian = torch.autograd.functional.jacobian(lambda x: critic(x).squeeze(1), x)
        rows = jacobian[torch.arange(5), torch.arange(5)].flatten(1).norm(dim=1)
        torch.testing.assert_close(gradient_norm(critic, x), rows)

    def test_does_not_change_the_points_or_the_critic(self):
        critic, x = smooth_critic(3), points(3)
        gradient_norm(critic, x)
        assert not x.requires_grad and all(p.grad is None for p in critic.parameters())
        x.requires_grad_()
        gradient_norm(critic, x * 2, create_graph=True).sum().backward()
        assert x.grad is None

    def test_works_under_no_grad_and_keeps_a_graph_only_if_asked(self):
        critic, x = smooth_critic(3), points(3)
        with torch.no_grad():
            assert not gradient_norm(critic, x).requires_grad
        assert not gradient_norm(critic, x).requires_grad
        assert gradient_norm(critic, x, create_graph=True).requires_grad

    def test_of_a_flat_critic_is_zero_with_a_finite_gradient(self):
        critic = Linear((3,))
        nn.init.zeros_(critic.w)
        slope = gradient_norm(critic, points(3), create_graph=True)
        assert slope.eq(0).all()
        (gradient,) = torch.autograd.grad((slope - 1).square().sum(), critic.w)
        assert gradient.isfinite().all()

    def test_derivatives_of_every_order_are_finite_where_the_critic_is_flat(self):
        """The plain root of a sum of squares has a first derivative of NaN here, and vector_norm a second one."""
        critic, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double(), points(3).abs()
        with torch.no_grad():
            critic[0].weight.abs_()
            critic[0].bias.zero_()
        x[0] *= -1  # for this sample no unit is active
        slope = gradient_norm(critic, x, create_graph=True)
        assert slope[0] == 0 and slope[1:].gt(0).all()
        value = (slope - 1).square().sum()
        for _ in range(3):
            gradients = torch.autograd.grad(value, list(critic.parameters()), create_graph=True, materialize_grads=True)
            value = sum(g.square().sum() for g in gradients)
            assert value.isfinite() and value > 0

    @pytest.mark.parametrize("score", [lambda x: x.sum(), lambda x: x, lambda x: x[1:].sum(1)])
    def test_raises_if_there_is_not_one_score_per_sample(self, score):
        with pytest.raises(ValueError, match="one score per sample"):
            gradient_norm(score, points(3))

    def test_raises_if_the_scores_have_no_graph(self):
        with pytest.raises(ValueError, match="no graph"):
            gradient_norm(lambda x: x.detach().sum(1), points(3))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("slope", [0.05, 1.0, 1000.0])
    def test_of_half_precision_points_is_summed_in_float32(self, slope, dtype):
        """The squares of the elements are too small or too large for float16."""
        shape = (3, 256, 256)
        w, x = nn.Parameter(torch.full(shape, slope / 196_608**0.5, dtype=dtype)), torch.zeros(2, *shape, dtype=dtype)
        slopes = gradient_norm(lambda x: (w * x).flatten(1).sum(1), x, create_graph=True)
        assert slopes.dtype == torch.float32
        torch.testing.assert_close(slopes, w.double().norm().float().expand(2), rtol=1e-5, atol=0)
        assert slopes[0].item() == pytest.approx(slope, rel=0.01)
        (gradient,) = torch.autograd.grad(slopes.sum(), w)
        torch.testing.assert_close(gradient.double(), 2 * w.double() / w.double().norm(), rtol=0.02, atol=0)

    def test_is_nan_where_the_score_is_not_finite_and_only_there(self):
        """The derivative of a ReLU at NaN is 0, so that the slope alone would be finite."""
        critic, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).double(), points(3)
        expected = gradient_norm(critic, x)
        x[1, 2], x[3] = math.nan, math.inf
        slopes = gradient_norm(critic, x)
        assert slopes[[1, 3]].isnan().all() and torch.equal(slopes[[0, 2, 4]], expected[[0, 2, 4]])

    def test_of_float64_scores_of_float32_points_is_float32(self):
        critic, x = smooth_critic(3).float(), points(3).float()
        assert torch.equal(gradient_norm(lambda x: critic(x).double(), x), gradient_norm(critic, x))


class TestTotalNorm:
    @pytest.mark.parametrize("order", [1.0, 2.0, 3.0, math.inf])
    def test_is_the_norm_of_all_tensors_as_one_vector(self, order):
        tensors = [torch.randn(3, 2), torch.randn(()), torch.randn(4)]
        long = torch.cat([t.flatten() for t in tensors])
        torch.testing.assert_close(total_norm([*tensors, None], order), torch.linalg.vector_norm(long, order))

    def test_of_no_tensors_is_zero(self):
        assert total_norm([]) == 0
        assert total_norm([None]) == 0

    def test_raises_if_p_is_below_one(self):
        with pytest.raises(ValueError, match="p >= 1"):
            total_norm([torch.ones(2)], 0.5)


class TestClipByNorm:
    def test_does_not_change_a_gradient_within_the_threshold(self):
        parameters = parameters_with_gradients((3, 2), (4,))
        before = [p.grad.clone() for p in parameters]
        norm = total_norm(before)
        for threshold in (norm.item(), 2 * norm.item(), math.inf):
            torch.testing.assert_close(clip_by_norm_(parameters, threshold), norm, rtol=0, atol=0)
            assert all(torch.equal(p.grad, b) for p, b in zip(parameters, before, strict=True))

    @given(st.floats(1e-3, 1e3), st.floats(1e-3, 1.0))
    def test_scales_a_larger_gradient_exactly_to_the_threshold(self, size, share):
        parameters = parameters_with_gradients((3, 2), (4,))
        for p in parameters:
            p.grad.mul_(size)
        before = [p.grad.clone() for p in parameters]
        norm = total_norm(before)
        threshold = share * norm.item()
        assert clip_by_norm_(iter(parameters), threshold) == norm
        # torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm, which would be a larger error than this
        torch.testing.assert_close(total_norm(p.grad for p in parameters).item(), threshold, rtol=1e-12, atol=0)
        for p, b in zip(parameters, before, strict=True):
            torch.testing.assert_close(p.grad, b * share, rtol=1e-12, atol=0)

    def test_ignores_missing_gradients_and_keeps_a_zero_gradient(self):
        parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
        parameters[0].grad = torch.zeros(2)
        assert clip_by_norm_(parameters, 1.0) == 0
        assert parameters[0].grad.eq(0).all() and parameters[1].grad is None

    @pytest.mark.parametrize("threshold", [0.0, -1.0, math.nan])
    def test_raises_if_the_threshold_is_not_positive(self, threshold):
        with pytest.raises(ValueError, match="max_norm"):
            clip_by_norm_(parameters_with_gradients((2,)), threshold)


class TestGradientNormPenalty:
    def test_of_a_quadratic_has_the_known_value_and_gradient(self):
        a = torch.randn(4, 4, dtype=torch.float64)
        hessian = a @ a.T
        theta = torch.randn(4, dtype=torch.float64, requires_grad=True)
        loss = theta @ hessian @ theta / 2
        penalty = gradient_norm_penalty(loss, [theta], 0.3)
        torch.testing.assert_close(penalty, 0.3 * (hessian @ theta).square().sum())
        (gradient,) = torch.autograd.grad(penalty, theta)
        torch.testing.assert_close(gradient, 2 * 0.3 * hessian @ hessian @ theta)

    def test_counts_unused_parameters_as_zero(self):
        used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        assert gradient_norm_penalty(used.square().sum(), [used, unused], 1.0) == 8

    @pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
    def test_raises_if_the_weight_is_negative_or_not_finite(self, weight):
        theta = torch.ones(2, requires_grad=True)
        with pytest.raises(ValueError, match="weight"):
            gradient_norm_penalty(theta.sum(), [theta], weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norm_of_half_precision_gradients_is_finite_and_clipping_keeps_their_direction(dtype):
    parameter = nn.Parameter(torch.zeros(400, dtype=dtype))
    parameter.grad = torch.full((400,), 1e4, dtype=dtype)
    norm = clip_by_norm_([parameter], 1.0)  # the sum of the squares is 4e10
    assert norm.dtype == torch.float32 and norm.item() == pytest.approx(2e5, rel=1e-2)
    assert parameter.grad.float().norm().item() == pytest.approx(1, rel=1e-2)


def test_one_parameter_is_a_list_of_one():
    parameter = nn.Parameter(torch.ones(6))
    parameter.grad = torch.full((6,), 10.0)
    assert clip_by_norm_(parameter, 1.0).item() == pytest.approx(600**0.5)
    assert parameter.grad.norm().item() == pytest.approx(1)
    values = [
        gradient_norm_penalty((p[0] ** 3).sum(), p[1], 2.0) for p in ((parameter, parameter), (parameter, [parameter]))
    ]
    assert values[0] == values[1] == 2 * 6 * 9
