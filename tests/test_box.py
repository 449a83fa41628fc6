"""The interval of lipschitz_on_box is proved and narrow: against enumeration, known constants and dense search."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import Function
from labeled import LabeledCritic
from torch import nn

from wgangp import box, certified_lipschitz, lipschitz_on_box
from wgangp.networks.mlp import MLPCritic

torch.set_num_threads(1)


def slopes(critic, x):
    """The slopes at points x (N, d), in float64 (N,)."""
    x = x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x)
    return gradient.norm(dim=1)


def random_points(d, n, low=-1.0, high=1.0, seed=0):
    return torch.rand(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


def mlp(d, width, depth, activation=nn.ReLU, seed=0, scale=1.0):
    torch.manual_seed(seed)
    sizes = [d, *[width] * depth]
    layers = [layer for n, m in itertools.pairwise(sizes) for layer in (nn.Linear(n, m), activation())]
    network = nn.Sequential(*layers, nn.Linear(width, 1)).double()
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(scale)
    return network


@pytest.mark.parametrize("d", [1, 2, 3])
def test_constant_of_a_linear_critic_is_the_norm_of_its_weight(d):
    critic = nn.Linear(d, 1)
    lower, upper = lipschitz_on_box(critic, [-1.0] * d, [2.0] * d)
    norm = critic.weight.double().norm().item()
    assert lower <= norm <= upper
    assert upper - lower < 1e-12


@pytest.mark.parametrize("seed", range(8))
def test_constant_of_a_small_network_equals_enumeration(seed):
    """One hidden layer in the plane. All regions are found around the crossings of two kinks."""
    critic = mlp(2, 6, 1, seed=seed, scale=2.0)
    hidden = critic[0]
    weight, bias = hidden.weight.detach(), hidden.bias.detach()
    candidates = [random_points(2, 2_000, seed=seed)]
    steps = torch.tensor(list(itertools.product((-1e-6, 1e-6), repeat=2)), dtype=torch.float64)
    lines = [(w, c) for w, c in zip(weight, bias, strict=True)]
    lines += [(torch.eye(2, dtype=torch.float64)[i], torch.tensor(s)) for i in (0, 1) for s in (-1.0, 1.0)]  # the box
    for (w1, b1), (w2, b2) in itertools.combinations(lines, 2):
        matrix = torch.stack([w1, w2])
        if abs(torch.det(matrix)) > 1e-9:
            point = torch.linalg.solve(matrix, -torch.stack([b1, b2]).double())
            candidates.append(point + steps @ torch.linalg.inv(matrix).T)
    points = torch.cat(candidates)
    inside = points[(points.abs() < 1).all(1)]
    true = slopes(critic, inside).max().item()
    lower, upper = lipschitz_on_box(critic, -1.0, [1.0, 1.0], tolerance=1e-3)
    assert lower <= true * (1 + 1e-9) and true <= upper * (1 + 1e-12)
    assert upper <= 1.001 * lower


ACTIVATIONS = [nn.ReLU, nn.LeakyReLU, lambda: nn.PReLU(init=-0.3), nn.Hardtanh, nn.ReLU6, lambda: nn.LeakyReLU(1.7)]


def draw_network(seed):
    """A random network: dimension, width, depth, activations, a residual sum, a concatenation, MaxMin."""
    rng = torch.Generator().manual_seed(seed)
    pick = lambda options: options[torch.randint(len(options), (), generator=rng).item()]  # noqa: E731
    d, width, depth = pick([1, 2, 2, 3]), pick([2, 4, 8]), pick([1, 2, 3])
    scale = pick([0.5, 1.0, 3.0])
    kind = pick(["plain", "plain", "residual", "concatenation", "maxmin", "abs", "clamp"])
    activation = pick(ACTIVATIONS)
    critic = mlp(d, width, depth, activation, seed, scale)
    if kind == "residual":
        inner = mlp(d, width, depth, activation, seed + 1, scale)
        last = nn.Linear(d, 1).double()
        critic = Function(lambda x, f, g: (lambda h: g(x + h) - 0.5 * h)(f(x)), inner, last)
    elif kind == "concatenation":
        tail = mlp(d + 1, width, 1, activation, seed + 1, scale)
        critic = Function(lambda x, f, g: g(torch.cat([x, f(x)], 1)), critic, tail)
    elif kind == "maxmin":
        head = nn.Linear(d, width).double()
        tail = nn.Linear(width, 1).double()

        def maxmin(x, f, g):
            a, b = f(x).chunk(2, 1)
            return g(torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1))

        critic = Function(maxmin, head, tail)
    elif kind == "abs":
        critic = Function(lambda x, f: (f(x).abs() - 0.3).abs() / 2, critic)
    elif kind == "clamp":
        critic = Function(lambda x, f: f(x.clamp(-0.5, 0.7)).clamp(min=-1) * 1.5, critic)
    return critic, d


@pytest.mark.parametrize("block", [0, *(pytest.param(block, marks=pytest.mark.slow) for block in range(1, 20))])
def test_interval_contains_every_slope_of_random_networks(block):
    """500 networks, 25 of them in the default tier. The upper end is never below a slope that a dense search finds."""
    wide = 0
    for seed in range(25 * block, 25 * block + 25):
        critic, d = draw_network(seed)
        lower, upper = lipschitz_on_box(critic, [-1.0] * d, [1.0] * d, max_cells=3_000)
        found = slopes(critic, random_points(d, 4_000, seed=seed)).max().item()
        assert found <= upper * (1 + 1e-12), f"network {seed}: {found} > {upper}"
        assert lower <= upper
        assert lower >= 0.95 * found, f"network {seed}"
        wide += upper > 1.0101 * lower + 1e-9
    assert wide <= 2, "most searches reach their tolerance"


def test_maxmin_with_orthogonal_weights_has_the_constant_1():
    """1-Lipschitz by construction. The two halves of MaxMin share their kinks: apart, the bound would be above 1."""
    torch.manual_seed(0)
    layers = [nn.utils.parametrizations.orthogonal(nn.Linear(n, m)) for n, m in ((2, 16), (16, 16), (16, 1))]

    def forward(x, first, second, last):
        for layer in (first, second):
            a, b = layer(x).chunk(2, 1)
            x = torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)
        return last(x)

    critic = Function(forward, *(layer.double() for layer in layers))
    lower, upper = lipschitz_on_box(critic, -1.0, [1.0, 1.0])
    assert upper <= 1 + 1e-5
    assert lower <= upper <= 1.0101 * lower


ORDERS = {
    "sort": lambda x: x.sort(-1)[0],
    "sort, descending": lambda x: torch.sort(x, 2, descending=True).values,
    "sort along another axis": lambda x: x.sort(dim=1, stable=True)[0],
    "max": lambda x: x.max(-1)[0],
    "max, kept": lambda x: x.max(2, keepdim=True).values,
    "amax": lambda x: x.amax(1),
    "min": lambda x: x.min(1).values,
    "amin, kept": lambda x: x.amin(-1, keepdim=True),
}


@pytest.mark.parametrize("order", ORDERS)
def test_interval_of_ordered_entries_is_proved_and_narrow(order):
    """GroupSort, maxout and the like. Where entries are equal there is one kink: two would make the bound too large."""
    for size, seed in itertools.product((2, 4), range(3)):
        torch.manual_seed(seed)
        head, count = nn.Linear(2, 12).double(), ORDERS[order](torch.zeros(1, 12 // size, size)).numel()
        middle, tail = (nn.Linear(count, n).double() for n in (12, 1))

        def forward(x, head, middle, tail, size=size):
            for layer in (head, middle):
                x = ORDERS[order](layer(x).view(len(x), -1, size)).flatten(1)
            return tail(x)

        critic = Function(forward, head, middle, tail)
        lower, upper = lipschitz_on_box(critic, [-1.0, -2.0], [2.0, 1.0], max_cells=20_000)
        found = slopes(critic, random_points(2, 20_000, -2.0, 2.0).clamp(-1, 1)).max().item()
        assert found <= upper * (1 + 1e-12) and 0.95 * found <= lower <= upper <= 1.0101 * lower


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", ["sort", "max"])
def test_equal_entries_have_no_kink_where_both_are_constant(order, seed):
    """After a ReLU many entries are 0. Without this, no point counts for the lower end."""
    torch.manual_seed(seed)
    head = nn.Linear(2, 8).double()
    tail = nn.Linear(ORDERS[order](torch.zeros(1, 2, 4)).numel(), 1).double()
    critic = Function(lambda x, f, g: g(ORDERS[order](f(x).relu().view(len(x), 2, 4)).flatten(1)), head, tail)
    lower, upper = lipschitz_on_box(critic, -1.0, [1.0, 1.0], max_cells=2_000)
    found = slopes(critic, random_points(2, 20_000)).max().item()
    assert 0.95 * found <= lower <= upper and found <= upper * (1 + 1e-12)


def test_constant_of_a_maximum_may_change_in_place():
    def forward(x, c):
        first = torch.maximum(x, c)
        return (torch.maximum(x, c.add_(10)) + 0 * first).sum(1)

    critic = Function(lambda x: forward(x, torch.zeros(1, 2, dtype=torch.float64)))
    assert lipschitz_on_box(critic, -1.0, [1.0, 1.0])[1] < 1e-9


def test_interval_is_much_narrower_than_the_product_of_norms():
    critic = MLPCritic((2,), width=64)
    with torch.no_grad():
        for p in critic.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    lower, upper = lipschitz_on_box(critic, -1.0, [1.0, 1.0])
    assert upper <= 1.01 * lower * (1 + 1e-12)
    assert upper < certified_lipschitz(critic, (2,)) / 3


def test_kink_at_the_center_of_a_cell_does_not_enter_the_lower_end():
    """D = 5 x - 5 relu(x) + 5 relu(-x) = 0. autograd says 5 at x = 0, which is no slope of D."""
    critic = Function(lambda x: 5 * x - 5 * F.relu(x) + 5 * F.relu(-x))
    assert slopes(critic, torch.zeros(1, 1)).item() == 5
    lower, _ = lipschitz_on_box(critic, [-1.0], [1.0], max_cells=2_000)
    assert lower == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "function, constant",
    [
        (lambda y, b: (y[:, :1] + b).sum(1), 4),
        (lambda y, b: (b - y[:, :1]).sum(1), 4),
        (lambda y, b: (y[:, :1] + b).abs().sum(1), 4),
        (lambda y, b: (y[:, :, None] + b).sum((1, 2)), 4 * 2**0.5),
        (lambda y, b: torch.maximum(y[:, :1], b.expand(1, 4)).sum(1), 4),
        (lambda y, b: y[:, :1].clamp(min=b).sum(1), 4),
    ],
)
def test_constant_that_makes_an_activation_larger_counts_every_entry(function, constant):
    b = torch.tensor([-0.3, 0.2, 0.1, 0.4], dtype=torch.float64)
    lower, upper = lipschitz_on_box(Function(lambda y: function(y, b.to(y.dtype))), [-1.0, -1.0], [1.0, 1.0])
    assert lower == pytest.approx(constant) and upper == pytest.approx(constant)


def test_constant_with_more_axes_is_refused_by_name():
    critic = Function(lambda y: (y + torch.ones(1, 1, 2, dtype=y.dtype)).squeeze(0).sum(1))
    with pytest.raises(ValueError, match=r"a constant of shape \(1, 1, 2\)"):
        lipschitz_on_box(critic, [-1.0, -1.0], [1.0, 1.0])


@pytest.mark.parametrize("scale", [1e103, 1e110, 1e150])
def test_upper_end_is_infinite_where_numbers_are_too_large(scale):
    critic = mlp(2, 8, 2).double()
    with torch.no_grad():
        for p in critic.parameters():
            p.mul_(scale)
    assert lipschitz_on_box(critic, [-1.0, -1.0], [1.0, 1.0], max_cells=2_000)[1] == math.inf


@pytest.mark.parametrize(
    "function, constant",
    [
        (lambda y: y[:, 1].relu() - (-y[:, 1]).relu() + 0.1 * y[:, 0], 1.01**0.5),
        (lambda y: y[:, 1].abs() - (-y[:, 1]).abs() + 0.1 * y[:, 0], 0.1),
        (lambda y: F.leaky_relu(y[:, 1], 0.5) + F.leaky_relu(-y[:, 1], 0.5) + 0.1 * y[:, 0], 0.26**0.5),
    ],
)
def test_several_kinks_through_a_center_do_not_enter_the_lower_end(function, constant):
    """The box is symmetric: after the first division, x2 of a center is exactly 0, where these units have a kink."""
    lower, upper = lipschitz_on_box(Function(function), [-1.0, -1.0], [1.0, 1.0], max_cells=4_000)
    assert lower <= constant * (1 + 1e-12) and upper >= constant * (1 - 1e-12)


def test_conversion_to_float32_is_refused():
    with pytest.raises(ValueError, match=r"conversion to torch\.float32"):
        lipschitz_on_box(Function(lambda y: y.sum(1).float()), [-1.0, -1.0], [1.0, 1.0])


def test_constant_critic_has_the_constant_0():
    critic = Function(lambda x: 3 * F.relu(x - 5) + F.relu(x + 5) - x)
    lower, upper = lipschitz_on_box(critic, [-1.0], [1.0], max_cells=10)
    assert lower == 0 <= upper < 1e-12


def test_work_limit_returns_a_proved_interval():
    """At the start all kinks of a network without biases cross at 0, so the search never ends there."""
    critic = mlp(2, 32, 2)
    nn.init.zeros_(critic[0].bias)
    lower, upper = lipschitz_on_box(critic, -1.0, [1.0, 1.0], max_cells=5_000)
    assert slopes(critic, random_points(2, 20_000)).max().item() <= upper <= certified_lipschitz(critic, (2,))
    assert lower > 0


def test_rounding_of_large_weights_is_covered():
    """The gradient cancels: weights of 1e6 leave a slope of about 1."""
    critic = Function(lambda x: 1e6 * F.relu(x + 3) - (1e6 - 1) * F.relu(x + 3))
    lower, upper = lipschitz_on_box(critic, [-1.0], [1.0])
    assert lower <= 1 <= upper
    assert upper - lower < 1e-6


def test_slope_outside_of_the_box_does_not_count():
    critic = Function(lambda x: x + 10 * F.relu(x - 2))
    assert lipschitz_on_box(critic, [-1.0], [1.5])[1] == pytest.approx(1)
    assert lipschitz_on_box(critic, [-1.0], [2.5])[0] == pytest.approx(11)


def test_critic_and_its_mode_are_left_alone():
    critic = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(8, 1)).train()
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    state = torch.get_rng_state()
    lipschitz_on_box(critic, -1.0, [1.0, 1.0])
    assert critic.training and critic[1].training and critic[0].weight.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_operation_in_place_changes_what_the_same_tensor_is_elsewhere():
    """relu_ changes x itself: relu_(x) + x = 2 relu(x)."""
    critic = Function(lambda x, f: (lambda h: F.relu(h, inplace=True) + h)(f(x)), nn.Linear(1, 1).double())
    expected = 2 * critic.modules_[0].weight.abs().item()
    lower, upper = lipschitz_on_box(critic, [-9.0], [9.0])
    assert lower <= expected * (1 + 1e-12) and expected <= upper * (1 + 1e-12) and upper == pytest.approx(expected)


@pytest.mark.parametrize(
    ("critic", "low", "high", "message"),
    [
        (nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), -1.0, [1.0, 1.0], "tanh.*certified_lipschitz"),
        (
            nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 1)),
            -1.0,
            [1.0, 1.0],
            "batch_norm uses the statistics of the batch",
        ),
        (
            LabeledCritic(),
            -1.0,
            [1.0, 1.0],
            r"called as critic\(x, \*y\).*lambda x: critic\(x, label.expand\(len\(x\)\)\)",
        ),
        (torch.compile(nn.Linear(2, 1)), -1.0, [1.0, 1.0], "pass the original module.*OptimizedModule"),
        (Function(lambda x: x.sum(1) + torch.rand(len(x))), -1.0, [1.0, 1.0], "draws random numbers in eval mode"),
        (nn.Linear(2, 1), [0.0, 0.0], [1.0, 0.0], "low must be below high"),
        (nn.Linear(2, 1), [0.0, 0.0], [1.0, math.inf], "finite"),
        (nn.Linear(4, 1), [0.0] * 4, [1.0] * 4, "1, 2 or 3.*certified_lipschitz"),
        (nn.Linear(2, 1), 0.0, 1.0, "same length"),
        (nn.Linear(2, 3), -1.0, [1.0, 1.0], "one score per sample"),
        (nn.Linear(3, 1), -1.0, [1.0, 1.0], "do not fit"),
        (lambda x: x, -1.0, [1.0], "pass the original module, not a function"),
        (Function(lambda x: (x * x).sum(1)), -1.0, [1.0, 1.0], "mul is neither"),
        (Function(lambda x: x[:, 0] * (x.mean().item() > 0)), -1.0, [1.0, 1.0], "samples of a batch"),
        (Function(lambda x: x.sort(1)[1][:, 0].double() + x[:, 0]), -1.0, [1.0, 1.0], "no interval: the places that"),
        (Function(lambda x: (x.max(1)[1] == 0) * (x[:, 0] - x[:, 1])), -1.0, [1.0, 1.0], "no interval: the places"),
        (Function(lambda x: (x * torch.tensor([1.0, 5.0])[x.sort(1)[1]]).sum(1)), -1.0, [1.0, 1.0], "the places that"),
        (
            Function(lambda x, f: f(x).sort(1)[0][:, 0], nn.Linear(2, 12)),
            -1.0,
            [1.0, 1.0],
            "12 .*than 64 comparisons: use smaller",
        ),
        (Function(lambda x: x.sort(0)[0][:, 0]), -1.0, [1.0, 1.0], "sort: give it one axis, and not that of the samp"),
        (Function(lambda x: x.max() + x[:, 0]), -1.0, [1.0, 1.0], "max: give it one axis, and not that of the samples"),
        (Function(lambda x: x.unsqueeze(2).amax((1, 2))), -1.0, [1.0, 1.0], "amax: give it one axis"),
        (Function(lambda x: x.mean(0, keepdim=True).expand(len(x), -1)[:, 0]), -1.0, [1.0, 1.0], "samples of a batch"),
    ],
)
def test_wrong_use_is_named(critic, low, high, message):
    with pytest.raises(ValueError, match=message):
        lipschitz_on_box(critic, low, high)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_in_eval_mode_is_the_linear_layer_that_it_is(affine):
    norm = nn.BatchNorm1d(8, affine=affine)
    critic = nn.Sequential(nn.Linear(2, 8), norm, nn.ReLU(), nn.Linear(8, 1)).double()
    for p in norm.parameters():
        nn.init.normal_(p)  # also negative scales
    critic(3 * torch.randn(99, 2).double() + 1)
    scale = (norm.running_var + norm.eps).rsqrt() * (norm.weight.detach() if affine else 1)
    folded = copy.deepcopy(critic)
    folded[0].weight.data *= scale.unsqueeze(1)
    folded[0].bias.data = (folded[0].bias.data - norm.running_mean) * scale + (norm.bias.data if affine else 0)
    folded[1] = nn.Identity()
    (lower, upper), expected = (lipschitz_on_box(c, [-2.0, -1.0], [1.0, 2.0]) for c in (critic, folded))
    assert (lower, upper) == pytest.approx(expected, rel=1e-9) and upper - lower < 0.02 * upper
    steepest = slopes(critic.eval(), random_points(2, 20_000)).max().item()
    assert 0.9 * lower < steepest <= upper


def test_inference_mode_gives_the_same_interval():
    critic = mlp(2, 6, 1)
    expected = lipschitz_on_box(critic, -1.0, [1.0, 1.0])
    with torch.inference_mode():
        assert lipschitz_on_box(critic, -1.0, [1.0, 1.0]) == expected


def test_weight_that_is_not_finite_is_named():
    critic = nn.Linear(2, 1)
    with torch.no_grad():
        critic.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="weight has NaN"):
        lipschitz_on_box(critic, -1.0, [1.0, 1.0])


def test_zonotope_bounds_all_corners():
    """The bound for many kinks is above the exact one over all 2^k ends, and close to it."""
    critic = mlp(2, 8, 2, scale=1.5)
    center = random_points(2, 2_000)
    half = torch.full_like(center, 0.1)
    kinks = box._propagate(critic, center, half).cells.kinks
    for k in range(1, 5):
        some = kinks == k
        exact = box._propagate(critic, center[some], half[some], k).gradients.norm(dim=2).amax(1)
        bound = box._bound_zonotope(box._propagate(critic, center[some], half[some], 8))
        assert some.any() and (bound >= exact * (1 - 1e-12)).all()
        assert (bound <= 1.5 * exact + 1e-3).all()


@pytest.mark.parametrize("factor", [lambda x: len(x), lambda x: 1 + (len(x) == 1), lambda x: 1 + (len(x) > 100)])
def test_critic_that_depends_on_the_size_of_the_batch_is_refused(factor):
    with pytest.raises(ValueError, match=r"no interval: the scores of the same points in batches of 2 and of \d+"):
        lipschitz_on_box(Function(lambda x: x.sum(1) * factor(x)), [0.0, 0.0], [1.0, 1.0])
