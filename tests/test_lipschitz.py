import math

import pytest
import torch
from helpers import Linear, smooth_critic
from hypothesis import given
from hypothesis import strategies as st

from wgangp import (
    certified_lipschitz,
    check_per_sample,
    corrected_wasserstein,
    expected_slope,
    largest_quotient,
    proved_wasserstein,
    slope_statistics,
    steepest_slope,
)
from wgangp.lipschitz import CHUNK, cosine, critic_slopes, summarize
from wgangp.networks.mlp import MLPCritic
from wgangp.transport import LIMIT, optimal_pairs


def make_rng(seed=0):
    return torch.Generator().manual_seed(seed)


def half_square(x):
    """D(x) = ||x||^2 / 2, whose slope is ||x||."""
    return x.flatten(1).square().sum(1) / 2


def test_slopes_of_half_the_squared_norm_are_the_norms_of_the_points():
    real, fake, eps = torch.randn(50, 2, 3).double(), torch.randn(50, 2, 3).double() * 3, torch.rand(50).double()
    statistics = slope_statistics(half_square, real, fake, eps)
    between = eps.view(-1, 1, 1) * real + (1 - eps.view(-1, 1, 1)) * fake
    assert set(statistics) == {"real", "fake", "interpolates", "perturbed"}
    for kind, x in (("real", real), ("fake", fake), ("interpolates", between)):
        norm = x.flatten(1).norm(dim=1)
        of_kind = statistics[kind]
        assert of_kind["mean"] == pytest.approx(norm.mean().item())
        assert of_kind["std"] == pytest.approx(norm.std(correction=0).item())
        assert of_kind["max"] == pytest.approx(norm.max().item())
        for name, q in (("q05", 0.05), ("q50", 0.5), ("q95", 0.95)):
            assert of_kind[name] == pytest.approx(norm.quantile(q).item())
        assert of_kind["above_1"] == (norm > 1).double().mean()


def test_linear_critic_has_the_same_slope_at_every_point():
    critic = Linear((3,))
    for statistics in slope_statistics(critic, torch.randn(9, 3).double(), torch.randn(9, 3).double()).values():
        assert statistics["mean"] == pytest.approx(critic.w.detach().norm().item())
        assert statistics["std"] == pytest.approx(0, abs=1e-12)


@given(st.floats(0, 100), st.floats(0.01, 100))
def test_expected_slope_minimizes_the_penalized_objective_and_corrected_wasserstein_inverts_it(w1, weight):
    a = expected_slope(w1, weight)
    minimum = -a * w1 + weight * (a - 1) ** 2
    for other in (a - 1e-3, a + 1e-3):
        assert -other * w1 + weight * (other - 1) ** 2 > minimum
    assert corrected_wasserstein(a * w1, weight) == pytest.approx(w1, abs=1e-9, rel=1e-9)  # gap K = a W


@pytest.mark.parametrize("gap, w1", [(66.25, 27.75), (36.16, 18.69), (214.13, 56.20), (64.39, 27.25)])
def test_corrected_wasserstein_of_published_gaps(gap, w1):
    """Gaps that Korotin et al. measured on pairs with a known distance, with lambda 10."""
    assert corrected_wasserstein(gap, 10.0) == pytest.approx(w1, abs=0.006)


def test_corrected_wasserstein_is_the_gap_for_a_very_large_weight():
    for weight in (1e12, 1e16, 1e18):
        assert corrected_wasserstein(2.0, weight) == pytest.approx(2.0, rel=1e-11)


def test_expected_slope_and_corrected_wasserstein_refuse_invalid_arguments():
    for call in (lambda: expected_slope(1.0, 0.0), lambda: corrected_wasserstein(1.0, -1.0)):
        with pytest.raises(ValueError, match="weight"):
            call()
    with pytest.raises(ValueError, match=r"gap = -0\.1"):
        corrected_wasserstein(-0.1, 10.0)
    with pytest.raises(ValueError, match="w1"):
        expected_slope(float("nan"), 10.0)


def test_perturbed_points_are_within_half_a_standard_deviation_of_real_points():
    real, fake = torch.full((400, 1), 5.0).double(), torch.zeros(400, 1).double()
    real[::2] += 2  # sd 1
    at_real, at_perturbed = (critic_slopes(half_square, real, fake)[0][kind] for kind in ("real", "perturbed"))
    difference = at_perturbed - at_real
    assert difference.min() >= 0 and 0.4 < difference.max() < 0.501


def test_coupled_points_lie_between_optimal_pairs_and_cosine_uses_their_direction():
    real, fake, eps = torch.randn(60, 2).double(), torch.randn(60, 2).double() + 3, torch.rand(60).double()
    partner = fake[optimal_pairs(real, fake)]
    between = eps.unsqueeze(1) * real + (1 - eps.unsqueeze(1)) * partner
    slopes, cosines = critic_slopes(half_square, real, fake, eps, coupled=True)
    assert slopes["coupled"].numpy() == pytest.approx(between.norm(dim=1).numpy())
    expected = ((real - partner) * between).sum(1) / (real - partner).norm(dim=1) / between.norm(dim=1)
    assert cosines.numpy() == pytest.approx(expected.numpy())
    assert slope_statistics(half_square, real, fake, eps, coupled=True)["coupled"]["cosine"] == pytest.approx(
        expected.mean().item()
    )


def test_cosine_is_one_along_the_gradient_and_minus_one_against_it():
    x = torch.randn(7, 3, 2)
    assert cosine(half_square, x, x).numpy() == pytest.approx(1)
    assert cosine(half_square, x, -x).numpy() == pytest.approx(-1)
    assert cosine(half_square, x, 0 * x).numpy() == pytest.approx(0)


def test_draws_come_from_the_given_rng_alone():
    real, fake = torch.randn(20, 2), torch.randn(20, 2)
    before = torch.random.get_rng_state()
    one, two, other = (slope_statistics(half_square, real, fake, rng=make_rng(seed)) for seed in (0, 0, 1))
    assert one == two and one["interpolates"] != other["interpolates"]
    assert torch.random.get_rng_state().equal(before)


def test_float64_uses_double_precision_and_does_not_change_the_critic():
    critic, real, fake = MLPCritic((2,), width=64), torch.randn(30, 2), torch.randn(30, 2)
    single = slope_statistics(critic, real, fake, torch.rand(30))
    double, reference = (
        slope_statistics(c, *points, torch.zeros(30), rng=make_rng(), float64=is_single)
        for c, points, is_single in (
            (critic, (real, fake), True),
            (MLPCritic((2,), width=64).double(), (real.double(), fake.double()), False),
        )
        if c.load_state_dict(critic.state_dict())
    )
    assert next(critic.parameters()).dtype == torch.float32
    assert double["real"] == reference["real"] and double["real"]["mean"] != single["real"]["mean"]
    assert double["real"]["mean"] == pytest.approx(single["real"]["mean"], rel=1e-5)


def test_largest_quotient_is_the_maximum_over_all_pairs():
    x = torch.randn(40, 2, 3)
    score = half_square(x).double()
    expected = max(
        ((score[i] - score[j]).abs() / (x[i] - x[j]).double().norm()).item()
        for i in range(40)
        for j in range(40)
        if i != j
    )
    assert largest_quotient(half_square, x) == pytest.approx(expected, rel=1e-5)
    assert largest_quotient(half_square, x.repeat(2, 1, 1)) == pytest.approx(
        expected, rel=1e-5
    )  # equal points are left out
    assert largest_quotient(Linear((3,)), torch.randn(1, 3)) == 0


def test_steepest_slope_of_a_linear_critic_is_its_norm_and_no_quotient_is_larger():
    critic, x = Linear((3,)), torch.randn(20, 3)
    assert steepest_slope(critic, x, steps=3) == pytest.approx(critic.w.detach().norm().item())
    assert largest_quotient(critic, x) <= critic.w.detach().norm().item() * (1 + 1e-12)


def test_ascent_finds_the_steep_part_of_a_piecewise_linear_critic():
    """D has slope 1 along x_1, and slope 5 for x_1 > 3.5. No start is there, but some are within their sd of it."""

    def critic(x):
        return x[:, 0] + 4 * (x[:, 0] - 3.5).clamp(min=0)

    x = torch.rand(50, 2) * 3
    assert critic_slopes(critic, x, x)[0]["real"].max() == 1
    assert steepest_slope(critic, x, steps=100) == pytest.approx(5)


def test_two_steps_of_the_ascent_equal_the_formula():
    """For D = x A x / 2 the slope is ||A x||, and its gradient is A (A x) / ||A x||."""
    a = torch.tensor([[1.0, 0.5], [0.5, 3.0]]).double()
    x = torch.tensor([2.0, 0.3]).double()
    scale, v = x.std(correction=0), torch.nn.functional.normalize(a @ x, dim=0)
    gradients = [a @ (x + scale * v), a @ (x - scale * v)]
    x = x + scale * torch.nn.functional.normalize(a @ v, dim=0)
    gradients += [a @ (x + 0.01 * scale * v), a @ (x - 0.01 * scale * v)]
    start = torch.tensor([[2.0, 0.3]]).double()
    steepest = steepest_slope(lambda x: ((x @ a) * x).sum(1) / 2, start, steps=2)
    assert steepest == pytest.approx(max(g.norm().item() for g in gradients)) == gradients[2].norm().item()


def test_ascent_finds_more_than_the_points_show_on_smooth_and_on_relu_critics():
    shares = []
    for critic, points in ((smooth_critic(2, width=64), 100), (MLPCritic((2,), width=64, depth=4), 100)):
        x = torch.randn(points, 2, generator=make_rng())
        plane = torch.cartesian_prod(*[torch.linspace(-4, 4, 200).double()] * 2)
        steepest = critic_slopes(critic.double(), plane, plane)[0]["real"].max().item()
        at_starts = critic_slopes(critic, x.double(), x.double())[0]["real"].max().item()
        shares.append((steepest_slope(critic, x, steps=100) - at_starts) / (steepest - at_starts))
    assert min(shares) > 0.9  # of the increase from the starts to the steepest of 40,000 points


def test_proved_wasserstein_of_a_shift_is_the_shift_and_the_interval_covers_it():
    real, fake = torch.randn(4000, 1).double() + 1, torch.randn(4000, 1).double()
    proved = proved_wasserstein(3 * real, 3 * fake, lipschitz=3.0)
    assert proved["bound"] == pytest.approx((real.mean() - fake.mean()).item())
    error = math.sqrt(2 / 4000)
    assert proved["bound"] - proved["low"] == pytest.approx(1.96 * error, rel=0.1)
    assert proved["high"] - proved["bound"] == pytest.approx(1.96 * error, rel=0.1)
    assert proved["low"] < 1 < proved["high"] and proved == proved_wasserstein(3 * real, 3 * fake, lipschitz=3.0)
    assert proved_wasserstein(3 * real, 3 * fake, lipschitz=6.0)["bound"] == pytest.approx(proved["bound"] / 2)
    assert proved_wasserstein(fake, real, lipschitz=1.0)["bound"] < 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda c, x: slope_statistics(c, torch.randn(5, 3), torch.randn(5, 3)), r"\(3,\).*data="),
        (lambda c, x: steepest_slope(torch.nn.Linear(2, 1), torch.randn(5, 3)), r"shape \(3,\) do not fit"),
        (lambda c, x: largest_quotient(torch.nn.Linear(2, 1), torch.randn(5, 3)), r"shape \(3,\) do not fit"),
        (
            lambda c, x: slope_statistics(torch.nn.Linear(2, 1), torch.randn(5, 3), torch.randn(5, 3)),
            r"\(3,\) do not fit",
        ),
        (lambda c, x: slope_statistics(c, x, x[:3]), "must have the same shape"),
        (lambda c, x: slope_statistics(c, x[:0], x[:0]), "at least one sample"),
        (lambda c, x: slope_statistics(c, *torch.zeros(2, LIMIT + 1, 2), coupled=True), f"at most {LIMIT}.*randperm"),
        (lambda c, x: steepest_slope(c, x, steps=0), "steps = 0: must be >= 1"),
        (lambda c, x: proved_wasserstein(x, x, lipschitz=0.0), "lipschitz = 0.0: must be > 0"),
        (lambda c, x: proved_wasserstein(x, x, lipschitz=1.0, confidence=95), "confidence = 95: must be > 0 and < 1"),
        (lambda c, x: slope_statistics(c, x, x, torch.zeros(len(x)).long()), "eps must have one value per sample"),
        (lambda c, x: proved_wasserstein(x[:1], x[:1, 0], lipschitz=1.0), "at least two of each"),
    ],
)
def test_invalid_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call(MLPCritic((2,), width=4), torch.randn(6, 2))


def test_function_of_a_module_is_computed_in_float64():
    net, x = torch.nn.Linear(2, 1), torch.randn(5, 2)
    assert steepest_slope(lambda x: net(x), x) == steepest_slope(net, x)
    assert net.weight.dtype == torch.float32
    with pytest.raises(ValueError, match="a tensor that it makes itself may be float32"):
        steepest_slope(lambda x: x @ torch.ones(2, 1), x)


def test_quotient_of_a_critic_that_returns_nan_is_nan():
    assert math.isnan(largest_quotient(lambda x: x[:, 0] * math.nan, torch.randn(600, 2)))


class ConditionalLinear(torch.nn.Module):
    """D(x, y) = w_y . x, whose slope at (x, y) is ||w_y||."""

    def __init__(self, classes, dim):
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(classes, dim, dtype=torch.float64))

    def forward(self, x, y):
        return (self.w[y] * x).sum(1)


@pytest.mark.parametrize("size", [7, CHUNK + 1, 3 * CHUNK])
def test_slope_of_a_conditional_critic_is_computed_with_the_label_of_each_sample(size):
    critic, y = ConditionalLinear(classes=3, dim=4), torch.randint(3, (size,), generator=make_rng())
    real, fake = torch.randn(2, size, 4, generator=make_rng(), dtype=torch.float64)
    expected = critic.w.detach().norm(dim=1)[y]
    slopes, cosines = critic_slopes(critic, real, fake, y=(y,))
    assert set(slopes) == {"real", "fake", "interpolates", "perturbed"} and cosines is None
    for slope in slopes.values():
        torch.testing.assert_close(slope, expected)
    for of_kind in slope_statistics(critic, real, fake, y=(y,), rng=make_rng()).values():
        assert of_kind["mean"] == pytest.approx(expected.mean().item())
        assert of_kind["max"] == pytest.approx(expected.max().item())
        assert of_kind["above_1"] == pytest.approx((expected > 1).double().mean().item())


def test_quotient_and_ascent_take_labels():
    """Only points with equal labels are compared: different labels give different functions of the point."""
    critic, y = ConditionalLinear(classes=2, dim=2), torch.arange(2 * CHUNK + 200) // 7 % 2
    x = torch.randn(len(y), 2, generator=make_rng(), dtype=torch.float64)
    masks = y.unsqueeze(1).expand(-1, 3)  # a tensor y may have more axes
    assert largest_quotient(lambda x, m: critic(x, m[:, 2]), x, y=(masks,)) == largest_quotient(critic, x, y=(y,))
    slopes = critic.w.detach().norm(dim=1)
    assert largest_quotient(critic, x, y=(y,)) == pytest.approx(slopes.max().item(), rel=1e-3)
    for label, slope in enumerate(slopes.tolist()):
        own = torch.tensor(label)
        quotient = largest_quotient(critic, x, y=(own.expand(len(x)),))
        assert quotient == largest_quotient(lambda x, own=own: critic(x, own.expand(len(x))), x)
        assert quotient == pytest.approx(slope, rel=1e-3) and quotient <= slope
        assert steepest_slope(critic, x[:6], steps=2, y=(own.expand(6),)) == pytest.approx(slope)
    assert steepest_slope(critic, x, steps=2, y=(y,)) == pytest.approx(slopes.max().item())
    assert largest_quotient(critic, x[6:8], y=(y[6:8],)) == 0  # one point per label


@pytest.mark.parametrize(
    "function, start, expected", [(lambda x: x.square() / 2, 1.0, 2.0), (torch.tanh, 0.0, 1.0)], ids=["later", "start"]
)
def test_labels_are_used_at_the_start_and_in_the_ascent(function, start, expected):
    """The first function is steeper at start + 1, where the ascent looks, the second at the start."""
    weight, y = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([1, 0])
    critic = lambda x, y: weight[y] * function(x[:, 0])  # noqa: E731
    assert steepest_slope(critic, torch.full((2, 1), start), steps=1, y=(y,)) == pytest.approx(3 * expected)


def test_labels_in_a_function_are_refused_with_the_argument_that_takes_them():
    critic, x, y = ConditionalLinear(classes=2, dim=2), torch.randn(6, 2), torch.zeros(6, dtype=torch.long)
    for measure in (largest_quotient, steepest_slope):
        with pytest.raises(ValueError, match=r"do not fit this critic.*Labels are passed as y=\(labels,\)"):
            measure(lambda x: critic(x, y), x)


def test_share_of_steep_points_is_nan_where_slopes_are():
    values = summarize({"real": torch.tensor([2.0, math.nan])}, None)["real"]
    assert math.isnan(values["above_1"]) and math.isnan(values["mean"])
    assert summarize({"real": torch.tensor([2.0, 0.5])}, None)["real"]["above_1"] == 0.5


def test_labels_that_do_not_fit_are_refused():
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"y has \(3,\) labels for 4 samples"):
        slope_statistics(lambda x, y: x.sum(1), x, x, y=(torch.zeros(3),))
    with pytest.raises(ValueError, match="coupled=True does not work with labels"):
        slope_statistics(lambda x, y: x.sum(1), x, x, y=(torch.zeros(4),), coupled=True)


# Critics that do not fit, and critics of an unusual kind

MEASURES = {
    "slope_statistics": lambda critic, x: slope_statistics(critic, x, x.flip(0)),
    "slope_statistics, float64": lambda critic, x: slope_statistics(critic, x, x.flip(0), float64=True),
    "largest_quotient": largest_quotient,
    "steepest_slope": lambda critic, x: steepest_slope(critic, x, steps=2),
}
each_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


@each_measure
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda score: (score, score), "one score per sample: got a value of type tuple"),
        (lambda score: {"score": score}, "one score per sample: got a value of type dict"),
        (lambda score: score[None], "one score per sample"),
        (lambda score: score.view(-1, 1, 1).expand(-1, 4, 4), "one score per sample"),
        (lambda score: score.mean(), "one score per sample"),
        (lambda score: score.long(), "a real number in floating point"),
        (lambda score: score + 0j, "a real number in floating point"),
        (lambda score: score.tolist(), "one score per sample: got a value of type list"),
    ],
)
def test_critic_without_one_score_per_sample_is_refused(change, message, measure):
    with pytest.raises(ValueError, match=message):
        measure(lambda x: change(x.sum(1)), torch.randn(6, 2))


@each_measure
@pytest.mark.parametrize(
    "points, message",
    [
        (torch.tensor([[0.0, math.nan], [1, 1]]), "have NaN or inf"),
        (torch.tensor([[0.0, math.inf], [1, 1]]), "have NaN or inf"),
        (torch.zeros(0, 2), "at least one sample"),
        (torch.zeros(3, 2, dtype=torch.complex64), "real numbers"),
        (torch.zeros(3, 2, dtype=torch.long), "floating point"),
    ],
)
def test_points_that_have_no_slope_are_refused(points, message, measure):
    with pytest.raises(ValueError, match=message):
        measure(MLPCritic((2,), width=4), points)


@each_measure
def test_critic_that_works_in_place_is_measured_and_the_points_stay_as_they_are(measure):
    class InPlace(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.ReLU(inplace=True), torch.nn.Linear(4, 1))

        def forward(self, x):
            return self.layers(x.div_(255))

    critic, x = InPlace(), 255 * torch.rand(20, 4)
    before = x.clone()
    plain = torch.nn.Sequential(torch.nn.Linear(4, 1)).requires_grad_(False)
    plain[0].weight.copy_(critic.layers[1].weight / 255), plain[0].bias.copy_(critic.layers[1].bias)
    result, expected = measure(critic, x), measure(plain, x)
    assert torch.equal(x, before)
    if isinstance(result, float):
        assert result == pytest.approx(expected, rel=1e-5)
        assert result <= certified_lipschitz(plain, (4,)) * (1 + 1e-6)
    else:
        assert result["real"]["max"] == pytest.approx(expected["real"]["max"], rel=1e-5)


@each_measure
def test_measures_work_under_inference_mode_and_without_gradients(measure):
    critic, x = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)), torch.randn(6, 2)
    torch.manual_seed(0)
    expected = measure(critic, x)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            torch.manual_seed(0)
            assert measure(critic, x.clone()) == expected
    assert all(p.grad is None for p in critic.parameters())


@each_measure
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_critics_and_points_in_half_precision_are_measured(dtype, measure):
    critic = torch.nn.Linear(2, 1).to(dtype)
    result = measure(critic, torch.randn(20, 2).to(dtype))
    slope = result if isinstance(result, float) else result["interpolates"]["max"]
    norm = critic.weight.detach().double().norm().item()
    assert (0.5 * norm if measure is largest_quotient else 0.99 * norm) < slope < 1.01 * norm
    x = 1e-4 * torch.randn(20, 2).to(dtype)
    assert math.isfinite(slope_statistics(critic, x, x.flip(0), coupled=True)["coupled"]["cosine"])


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9, 1e-12, 1e-15])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_no_rounding_lifts_a_quotient_above_the_truth(distance, offset):
    """The scores of points that are close to each other differ by rounding, which a small distance makes large."""
    rng = make_rng()
    for _ in range(10):
        critic = Linear((5,))
        x = torch.randn(30, 5, generator=rng, dtype=torch.float64)
        x = torch.cat([x, x + distance * torch.randn(30, 5, generator=rng, dtype=torch.float64)])
        norm = critic.w.detach().norm().item()
        assert largest_quotient(lambda x, critic=critic: critic(x) + offset, x) <= norm
        assert largest_quotient(critic, x) <= certified_lipschitz(critic, (5,))
    far = largest_quotient(critic, torch.cat([x[:30], x[:30] + critic.w.detach()]))
    assert far == pytest.approx(norm, rel=1e-9)


SIGNS = torch.tensor([[1.0]] * 5 + [[-1.0]] * 5, dtype=torch.float64)


@pytest.mark.parametrize("distance", [1e-2, 1e-6, 1e-7, 1e-9, 1e-12, 1e-15])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: (x + 1e6) - 1e6,
        lambda x: x.clone().add_(1e6).sub_(1e6),
        lambda x: ((x + 1e6) * 1 + 0).neg().neg() - 1e6,
        lambda x: torch.cat([1e6 + x, 1e6 - x], 1) @ torch.eye(5).double().repeat(2, 1).mul(SIGNS) / 2,
        lambda x: x.float().double(),
        lambda x: torch.sinh(torch.asinh(1e4 * x)) / 1e4,
        lambda x: (9 * x).softmax(1).log() / 9 + torch.logsumexp(9 * x, 1, True) / 9,
    ],
)
def test_no_rounding_inside_of_the_critic_lifts_a_quotient_above_the_truth(change, distance):
    """D(x) = w . x, computed with a loss of digits that its scores do not show."""
    rng = make_rng()
    for _ in range(5):
        critic = Linear((5,))
        x = torch.randn(20, 5, generator=rng, dtype=torch.float64)
        step = torch.nn.functional.normalize(critic.w.detach(), dim=0)  # the steepest direction
        x = torch.cat([x, x + distance * step, 1e-9 * x])
        norm = critic.w.detach().norm().item()
        assert largest_quotient(lambda x, critic=critic: critic(change(x)), x) <= norm
        if distance == 1e-2 and change(x[:1]).sub(x[:1]).abs().max() < 1e-9:
            assert largest_quotient(lambda x, critic=critic: critic(change(x)), x) > 0.999 * norm


def test_no_rounding_of_a_score_that_torch_does_not_compute_lifts_a_quotient_above_the_truth():
    for seed in range(20):
        x = torch.randn(2, 3, generator=make_rng(seed), dtype=torch.float64)
        x[1] = x[0] + 1e-9
        assert largest_quotient(lambda x: torch.from_numpy(1e6 + x.numpy().sum(1)), x) <= 3**0.5


def test_quotient_of_two_points_that_rounding_explains_is_zero():
    x = torch.tensor([[1.0, 0.0], [1.0 + 2**-52, 0.0]], dtype=torch.float64)
    assert largest_quotient(Linear((2,)), x) == 0


def test_largest_quotient_is_the_same_in_every_call_and_changes_no_random_state():
    critic, x = smooth_critic(3), torch.randn(9, 3)
    before = torch.get_rng_state()
    assert largest_quotient(critic, x) == largest_quotient(critic, x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:The .grad attribute")
def test_scripts_are_measured_as_their_module_or_refused_in_words():
    critic, x = smooth_critic(3), torch.randn(6, 3, dtype=torch.float64)
    scripts = torch.jit.script(critic), torch.jit.trace(critic, x), torch.jit.freeze(torch.jit.script(critic.eval()))
    for script in scripts:
        for measure in MEASURES.values():
            torch.manual_seed(0)
            result = measure(script, x)
            torch.manual_seed(0)
            expected = measure(critic, x)
            if isinstance(result, float):
                assert result == pytest.approx(expected, rel=1e-9)
            else:
                assert result["real"]["max"] == pytest.approx(expected["real"]["max"], rel=1e-9)
        check_per_sample(script, x)
        with pytest.raises(ValueError, match="pass the original module"):
            certified_lipschitz(script, (3,))
    single = torch.jit.freeze(torch.jit.script(smooth_critic(3).float().eval()))  # its weights are constants
    with pytest.raises(ValueError, match="do not fit this critic"):
        largest_quotient(single, x.float())


def test_interval_is_that_of_the_critic_in_eval_mode():
    critic = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.ReLU(), torch.nn.Dropout(0.9), torch.nn.Linear(64, 1))
    x = torch.randn(50, 2)
    upper, lower = certified_lipschitz(critic, (2,)), [largest_quotient(critic, x), steepest_slope(critic, x, steps=5)]
    lower.append(slope_statistics(critic, x, x.flip(0), float64=True)["interpolates"]["max"])
    assert critic.training and max(lower) <= upper
    critic.eval()
    assert [largest_quotient(critic, x), steepest_slope(critic, x, steps=5)] == lower[:2]
