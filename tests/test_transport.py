import itertools
import warnings

import pytest
import torch

from wgangp import transport
from wgangp.transport import LIMIT, optimal_pairs, wasserstein1


def test_distance_on_a_line_is_the_mean_difference_of_sorted_points():
    x, y = torch.randn(500, 1).double(), 2 * torch.randn(500, 1).double() + 1
    by_sorting = (x.sort(dim=0).values - y.sort(dim=0).values).abs().mean().item()
    assert wasserstein1(x, y) == pytest.approx(by_sorting, rel=1e-12)
    assert wasserstein1(x[:, 0], y[:, 0]) == pytest.approx(by_sorting, rel=1e-12)
    assert wasserstein1(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0, 3.0])) == pytest.approx(5 / 6)
    assert wasserstein1(torch.zeros(20_000), torch.ones(30_000)) == pytest.approx(1)  # LIMIT does not hold on a line


def test_optimal_pairs_are_the_best_of_all_permutations():
    x, y = torch.randn(6, 3).double(), torch.randn(6, 3).double()
    costs = {p: (x - y[list(p)]).norm(dim=1).mean().item() for p in itertools.permutations(range(6))}
    best = min(costs, key=costs.get)
    assert wasserstein1(x, y) == pytest.approx(costs[best], rel=1e-12)
    assert tuple(optimal_pairs(x, y).tolist()) == best


def test_distance_to_a_shifted_sample_is_the_shift():
    x = torch.randn(300, 2, 3)
    direction = torch.full((2, 3), 1 / 6**0.5)
    assert wasserstein1(x, x + 2 * direction) == pytest.approx(2, rel=1e-6)
    assert wasserstein1(x, x) == 0
    assert wasserstein1(x, x[:150].repeat(2, 1, 1)) == pytest.approx(wasserstein1(x, x[:150]), rel=1e-9)


def test_optimal_pairs_are_a_permutation_whose_cost_is_the_distance():
    x, y = torch.randn(200, 2), torch.randn(200, 2) + 1
    pairs = optimal_pairs(x, y)
    assert sorted(pairs.tolist()) == list(range(200))
    assert (x - y[pairs]).double().norm(dim=1).mean().item() == pytest.approx(wasserstein1(x, y), rel=1e-6)


def test_solver_that_stops_early_raises(monkeypatch):
    monkeypatch.setattr(transport, "ITERATIONS", 3)
    with pytest.raises(RuntimeError, match="fewer points"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error must not depend on the warning filter
        wasserstein1(torch.randn(400, 2), torch.randn(400, 2) + 1)


@pytest.mark.parametrize(
    "x, y, message",
    [
        (torch.zeros(LIMIT + 1, 2), torch.zeros(3, 2), rf"at most {LIMIT} of each.*randperm"),
        (torch.zeros(3, 2), torch.zeros(3, 3), "same shape"),
        (torch.zeros(0, 2), torch.zeros(3, 2), "at least one point each"),
        (torch.full((3, 2), torch.nan), torch.zeros(3, 2), "not finite"),
        (torch.zeros(3, 2), torch.zeros(3, 2) + 0j, "y is torch.complex64: points have real numbers"),
        (torch.zeros(3, 2) + 0j, torch.zeros(3, 2), "x is torch.complex64 and y is torch.float32"),
    ],
)
def test_samples_without_a_distance_raise(x, y, message):
    with pytest.raises(ValueError, match=message):
        wasserstein1(x, y)


def test_samples_of_different_sizes_cannot_be_paired():
    with pytest.raises(ValueError, match="cannot be paired"):
        optimal_pairs(torch.zeros(3, 2), torch.zeros(4, 2))
